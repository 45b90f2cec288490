"""The network as a linear map (MATH 6)."""

from .linearization import Linearization, Recording

__all__ = ["Linearization", "Recording"]

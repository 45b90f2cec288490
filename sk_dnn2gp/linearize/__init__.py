"""The network as a linear map (MATH 6)."""

from .linearization import Linearization

__all__ = ["Linearization"]

"""The network as a linear map (MATH 6)."""

from .gram import symmetric_product
from .linearization import Linearization, Recording

__all__ = ["Linearization", "Recording", "symmetric_product"]

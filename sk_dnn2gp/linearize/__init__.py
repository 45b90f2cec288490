"""The network as a linear map (:ref:`math-ntk`)."""

from .gram import symmetric_product
from .linearization import Linearization
from .recording import Recording

__all__ = ["Linearization", "Recording", "symmetric_product"]

"""One room per way to q(w): each gives the same Result."""

from .result import Result
from .specification import SWAG, Laplace, LinearizedVariational, Variational, resolve_inference
from .swag import Snapshots

__all__ = [
    "SWAG",
    "Laplace",
    "LinearizedVariational",
    "Result",
    "Snapshots",
    "Variational",
    "resolve_inference",
]

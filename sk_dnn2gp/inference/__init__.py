"""One room per way to q(w): each gives the same Result."""

from .result import Result
from .specification import Laplace, LinearizedVariational, Variational, resolve_inference

__all__ = ["Laplace", "LinearizedVariational", "Result", "Variational", "resolve_inference"]

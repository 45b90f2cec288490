"""The package's own errors and warnings, beside scikit-learn's."""

from __future__ import annotations

from sklearn.exceptions import ConvergenceWarning

from ._utils.linalg import CholeskyJitterWarning

__all__ = [
    "ApproximationWarning",
    "CholeskyJitterWarning",
    "ConvergenceError",
    "ConvergenceWarning",
]


class ConvergenceError(ArithmeticError):
    """Training diverged: the loss became NaN or infinite."""


class ApproximationWarning(UserWarning):
    """The result rests on an approximation that the user may not have asked for."""

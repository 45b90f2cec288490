"""What every posterior of the linear model offers."""

from __future__ import annotations

from typing import Protocol

from torch import Generator, Tensor

from ..linear_model import LinearModel

__all__ = ["Posterior"]


class Posterior(Protocol):
    """What every posterior offers (see the package docstring for the meaning of each)."""

    model: LinearModel

    @property
    def is_exact(self) -> bool:
        """Whether it is the linear model's own posterior, and no approximation of it."""
        ...

    @property
    def log_determinant(self) -> float:
        """log|B|."""
        ...

    @property
    def effective_dimension(self) -> float:
        """γ."""
        ...

    @property
    def newton_decrement(self) -> float:
        """gᵀ A⁻¹ g."""
        ...

    @property
    def inverse_diagonal(self) -> Tensor:
        """diag A⁻¹, of shape (n_params,)."""
        ...

    def solve(self, v: Tensor) -> Tensor:
        """A⁻¹ v, of shape (n_params,)."""
        ...

    def variance(self, X: Tensor) -> Tensor:
        """Marginal variances of f, of shape (n_samples, n_outputs)."""
        ...

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* of f(x), of shape (n_samples, n_outputs, n_outputs)."""
        ...

    def joint_covariance(self, X: Tensor) -> Tensor:
        """Joint V_*, of shape (n_samples n_outputs, n_samples n_outputs)."""
        ...

    def sample(self, X: Tensor, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw zero-mean fluctuations of f(X), of shape (n_samples, len(X), n_outputs)."""
        ...

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw zero-mean fluctuations of w, of shape (n_samples, n_params)."""
        ...

"""What every posterior of the linear model offers."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from torch import Generator, Tensor

from ..linear_model import LinearModel

__all__ = ["Posterior"]


class Posterior(Protocol):
    """What every posterior offers (see the package docstring for the meaning of each)."""

    model: LinearModel
    is_exact: bool

    @property
    def log_determinant(self) -> float:
        """log|B|."""
        ...

    @property
    def effective_dimension(self) -> float:
        """γ: how many weights the data determine."""
        ...

    @cached_property
    def newton_decrement(self) -> float:
        """gᵀ A⁻¹ g: zero at a true minimum."""
        g = self.model.gradient
        return max(float(g @ self.solve(g)), 0.0)  # of nan nan

    @property
    def inverse_diagonal(self) -> Tensor:
        """diag A⁻¹, of shape (n_params,): the marginal variances of the weights."""
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
        """Draw J_* (w - w*) with w from the posterior, of shape (n_samples, len(X), n_outputs)."""
        fluctuations = self.sample_weights(n_samples, generator).mT
        return self.model.linearization.jvp(X, fluctuations).permute(2, 0, 1)

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw w - w* from N(0, A⁻¹), of shape (n_samples, n_params)."""
        ...

"""The diagonal posterior: diag(ΦᵀΦ) + δ only, the paper's choice for large networks (MATH 3).

An approximation, and named so: correlations between weights are dropped, which makes the
variance of f too small where errors of weights would have cancelled.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Generator, Tensor

from ..linear_model import LinearModel

__all__ = ["DiagonalPosterior"]


class DiagonalPosterior:
    """N(w*, diag(a)⁻¹) with a = diag(ΦᵀΦ) + δ (MATH 3).

    Parameters
    ----------
    model : LinearModel
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.
    ggn_diagonal : Tensor of shape (n_params,), optional
        diag(ΦᵀΦ) where the caller has it already.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior import DiagonalPosterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> round(DiagonalPosterior(model).covariance(X[:1]).item(), 6)
    0.25
    """

    def __init__(
        self,
        model: LinearModel,
        memory_limit: float | None = None,
        ggn_diagonal: Tensor | None = None,
    ) -> None:
        self.model = model
        if ggn_diagonal is None:
            ggn_diagonal = model.linearization.ggn_diagonal(model.X, cotangents=model.noise_factor)
        self.precision = ggn_diagonal + model.prior_precision

    @cached_property
    def log_determinant(self) -> float:
        """Σ log a - Σ log δ."""
        return float((self.precision.log() - self.model.prior_precision.log()).sum())

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """1/a, of shape (n_params,): the variances of the weights."""
        return 1.0 / self.precision

    @cached_property
    def effective_dimension(self) -> float:
        """γ = Σ_p (1 - δ_p/a_p)."""
        return float((1.0 - self.model.prior_precision / self.precision).sum())

    @cached_property
    def newton_decrement(self) -> float:
        """Σ g²/a."""
        return float((self.model.gradient**2 / self.precision).sum())

    def solve(self, v: Tensor) -> Tensor:
        """v/a, of shape (n_params,)."""
        return v / self.precision

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* = J_* diag(a)⁻¹ J_*ᵀ, of shape (n_samples, n_outputs, n_outputs)."""
        blocks = []
        for _, rows in self.model.linearization.iter_rows(X):
            blocks.append((rows / self.precision) @ rows.mT)
        return torch.cat(blocks)

    def joint_covariance(self, X: Tensor) -> Tensor:
        """V_* over all examples and outputs, of shape (n K, n K)."""
        rows = [part.flatten(0, 1) for _, part in self.model.linearization.iter_rows(X)]
        half = torch.cat(rows) * self.precision.rsqrt()
        return half @ half.mT

    def sample(self, X: Tensor, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw J_* (w - w*) with w from the posterior, of shape (n_samples, len(X), n_outputs)."""
        fluctuations = self.sample_weights(n_samples, generator).mT
        return self.model.linearization.jvp(X, fluctuations).permute(2, 0, 1)

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw w - w* from N(0, diag(a)⁻¹), of shape (n_samples, n_params)."""
        z = torch.randn(n_samples, self.model.n_params, dtype=torch.float64, generator=generator)
        return z.to(self.precision.device) * self.precision.rsqrt()

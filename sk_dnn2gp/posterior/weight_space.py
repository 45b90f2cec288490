"""The exact posterior by a P×P factor, whatever the number of examples (MATH 3).

A = diag(δ) + ΦᵀΦ, streamed over examples;  V_* = J_* A⁻¹ J_*ᵀ;  log|B| = log|A| - Σ log δ.
Cost NK P² + P³/3, memory 2P² numbers and one chunk of rows.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Generator, Tensor

from .._utils.linalg import cholesky
from ..linear_model import LinearModel

__all__ = ["WeightSpacePosterior"]


class WeightSpacePosterior:
    """N(w*, A⁻¹) with A = diag(δ) + ΦᵀΦ held as a Cholesky factor (MATH 3).

    Parameters
    ----------
    model : LinearModel
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.
    ggn : Tensor of shape (n_params, n_params), optional
        ΦᵀΦ where the caller has it already. Not modified.

    Raises
    ------
    numpy.linalg.LinAlgError
        If A is not positive definite in floating point.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior import WeightSpacePosterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> round(WeightSpacePosterior(model).covariance(X[:1]).item(), 6)  # 1 / (3 + 1)
    0.25
    """

    def __init__(
        self, model: LinearModel, memory_limit: float | None = None, ggn: Tensor | None = None
    ) -> None:
        self.model = model
        if ggn is None:
            A = model.linearization.ggn(model.X, cotangents=model.noise_factor)
        else:
            A = ggn.clone()
        A.diagonal().add_(model.prior_precision)
        self.cholesky_factor = cholesky(
            A,
            "the posterior precision ΦᵀΦ + δI",
            "Raise prior_precision or noise_std, or standardise the inputs.",
        )

    @cached_property
    def log_determinant(self) -> float:
        """log|B| = log|A| - Σ log δ."""
        log_A = 2.0 * self.cholesky_factor.diagonal().log().sum()
        log_delta = self.model.prior_precision.log().expand(self.model.n_params).sum()
        return float(log_A - log_delta)

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """diag(A⁻¹), of shape (n_params,): the marginal variances of the weights."""
        return torch.cholesky_inverse(self.cholesky_factor).diagonal().clone()

    @cached_property
    def effective_dimension(self) -> float:
        """γ = P - Σ_p δ_p (A⁻¹)_pp: how many weights the data determine."""
        return self.model.n_params - float(
            (self.model.prior_precision * self.inverse_diagonal).sum()
        )

    @cached_property
    def newton_decrement(self) -> float:
        """gᵀ A⁻¹ g: zero at a true minimum."""
        g = self.model.gradient
        return float(g @ self.solve(g))

    def solve(self, v: Tensor) -> Tensor:
        """A⁻¹ v, of shape (n_params,)."""
        return torch.cholesky_solve(v[:, None], self.cholesky_factor)[:, 0]

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* = J_* A⁻¹ J_*ᵀ per example, of shape (n_samples, n_outputs, n_outputs)."""
        blocks = []
        for _, rows in self.model.linearization.iter_rows(X):
            n, K, P = rows.shape
            half = self._half_solve(rows.reshape(n * K, P).mT).mT.reshape(n, K, P)
            blocks.append(half @ half.mT)
        return torch.cat(blocks)

    def joint_covariance(self, X: Tensor) -> Tensor:
        """V_* over all examples and outputs, of shape (n K, n K)."""
        halves = [
            self._half_solve(rows.flatten(0, 1).mT)
            for _, rows in self.model.linearization.iter_rows(X)
        ]
        half = torch.cat(halves, dim=1)
        return half.mT @ half

    def sample(self, X: Tensor, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw J_* (w - w*) with w from the posterior, of shape (n_samples, len(X), n_outputs)."""
        fluctuations = self.sample_weights(n_samples, generator).mT
        return self.model.linearization.jvp(X, fluctuations).permute(2, 0, 1)

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw w - w* from N(0, A⁻¹), of shape (n_samples, n_params)."""
        z = torch.randn(
            self.model.n_params, n_samples, dtype=torch.float64, generator=generator
        ).to(self.cholesky_factor.device)
        return torch.linalg.solve_triangular(self.cholesky_factor.mT, z, upper=True).mT

    def _half_solve(self, columns: Tensor) -> Tensor:
        """C⁻¹ columns with A = C Cᵀ, so that a squared norm is a quadratic form in A⁻¹."""
        return torch.linalg.solve_triangular(self.cholesky_factor, columns, upper=False)

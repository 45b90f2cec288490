"""Posteriors by a precision of the weights, N(w*, A⁻¹) (:ref:`math-laplace`).

A = diag(δ) + ΦᵀΦ, streamed over examples;  V_* = J_* A⁻¹ J_*ᵀ;  log|B| = log|A| - Σ log δ.
Of a dense A: cost NK P² + P³/3, memory 2P² numbers and one chunk of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Generator, Tensor

from .._utils.memory import joined_parts
from ..linear_model import LinearModel
from .contract import Posterior
from .precision import DensePrecision, Precision, with_prior

__all__ = ["PrecisionPosterior", "WeightSpacePosterior"]


class PrecisionPosterior(Posterior):
    """N(w*, A⁻¹) for any precision A of the weights that has a factor.

    Parameters
    ----------
    model : LinearModel
    precision : Precision
        A, factored.
    is_exact : bool
        Whether A is ΦᵀΦ + diag(δ), or what stands in for it.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior.precision import DensePrecision
    >>> from sk_dnn2gp.posterior.weight_space import PrecisionPosterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> A = DensePrecision(torch.full((1, 1), 4.0, dtype=torch.float64))
    >>> PrecisionPosterior(model, A, is_exact=True).variance(X[:1]).item()
    0.25
    """

    def __init__(self, model: LinearModel, precision: Precision, is_exact: bool) -> None:
        self.model, self.precision, self.is_exact = model, precision, is_exact

    @cached_property
    def log_determinant(self) -> float:
        """log|B| = log|A| - Σ log δ."""
        return self.precision.log_determinant - float(self.model.prior_precision.log().sum())

    @property
    def inverse_diagonal(self) -> Tensor:
        return self.precision.inverse_diagonal

    @cached_property
    def effective_dimension(self) -> float:
        """γ = P - Σ_p δ_p (A⁻¹)_pp: how many weights the data determine."""
        return float((1.0 - self.model.prior_precision * self.inverse_diagonal).sum())

    def solve(self, v: Tensor) -> Tensor:
        return self.precision.solve(v)

    def variance(self, X: Tensor) -> Tensor:
        """Marginal variances of f, of shape (n_samples, n_outputs): no K×K block is formed."""
        parts = (half.square_().sum(0).view(n, -1) for n, half in self._halves(X))
        return joined_parts(parts, len(X))

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* = J_* A⁻¹ J_*ᵀ per example, of shape (n_samples, n_outputs, n_outputs)."""
        blocks = []
        for n, half in self._halves(X):
            rows = half.mT.reshape(n, -1, len(half))
            blocks.append(rows @ rows.mT)
        return torch.cat(blocks)

    def joint_covariance(self, X: Tensor) -> Tensor:
        half = torch.cat([half for _, half in self._halves(X)], dim=1)
        return half.mT @ half

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        z = torch.randn(n_samples, self.model.n_params, dtype=torch.float64, generator=generator)
        return self.precision.scale(z.to(self.precision.factor.device))

    def _halves(self, X: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Chunks: how many examples, and C⁻¹ J_*ᵀ (n_params, n K) of them."""
        for _, rows in self.model.linearization.iter_rows(X):
            yield len(rows), self.precision.half_solve(rows.flatten(0, 1).mT)


class WeightSpacePosterior(PrecisionPosterior):
    """N(w*, A⁻¹) with A = diag(δ) + ΦᵀΦ held as a Cholesky factor (:ref:`math-laplace`).

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
        own = ggn is None
        if ggn is None:
            ggn = model.linearization.ggn(model.X, cotangents=model.noise_factor)
        A = with_prior(ggn, model.prior_precision, out=ggn if own else None)
        advice = "Raise prior_precision or noise_std, or standardise the inputs."
        precision = DensePrecision(A, "the posterior precision ΦᵀΦ + δ", advice)
        super().__init__(model, precision, is_exact=True)

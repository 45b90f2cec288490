"""One Gaussian process per output, their correlations dropped: an approximation, by name.

Output k has the prior J_k J_kᵀ/δ and the noise precision (Λ_i)_kk of every example, so that
B_k = I + D_k (J_k J_kᵀ/δ) D_k with D_k = diag √(Λ_i)_kk. K factors of N×N take the place of one of
NK×NK. The outputs share weights and Λ couples the classes: what is left out is Λ's and K's
off-diagonal part, and the weights are counted once per output.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Generator, Tensor

from .._utils.linalg import cholesky, nonnegative_variance
from .._utils.memory import batches, chunk_length, require_memory
from ..linear_model import LinearModel

__all__ = ["IndependentPosterior", "output_gram"]


class IndependentPosterior:
    """Independent outputs: one factor of B_k per output (an approximation of MATH 3).

    Parameters
    ----------
    model : LinearModel
    memory_limit : float, optional
        MiB for the factors and temporary work; None is scikit-learn's ``working_memory``.

    Raises
    ------
    MemoryError
        If the factors do not fit.
    numpy.linalg.LinAlgError
        If a B_k is not positive definite in floating point.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior import IndependentPosterior
    >>> net = torch.nn.Linear(1, 2, bias=False, dtype=torch.float64)
    >>> X, y = torch.ones(3, 1, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, y, Gaussian(1.0), 1.0)
    >>> IndependentPosterior(model).covariance(X[:1]).diagonal(dim1=1, dim2=2).tolist()
    [[0.25, 0.25]]
    """

    def __init__(self, model: LinearModel, memory_limit: float | None = None) -> None:
        self.model = model
        self.memory_limit = memory_limit
        N, K = model.whitened_residual.shape
        require_memory(
            8.0 * (K + 1) * N**2,
            memory_limit,
            f"The posterior of {K} independent outputs ({N} examples)",
            "Use a subset of the data, posterior='last_layer' or 'diag', or raise memory_limit.",
        )
        self.cholesky_factors = [self._factor(k) for k in range(K)]

    @cached_property
    def log_determinant(self) -> float:
        """Σ_k log|B_k|."""
        return sum(float(2.0 * C.diagonal().log().sum()) for C in self.cholesky_factors)

    @cached_property
    def effective_dimension(self) -> float:
        """Σ_k (N - tr B_k⁻¹): weights that several outputs share are counted in each."""
        total = 0.0
        for C in self.cholesky_factors:
            half = torch.linalg.solve_triangular(
                C, torch.eye(len(C), dtype=C.dtype, device=C.device), upper=False
            )
            total += len(C) - float((half**2).sum())
        return total

    @property
    def newton_decrement(self) -> float:
        """Not defined: see :meth:`solve`."""
        return float(self.model.gradient @ self.solve(self.model.gradient))

    def solve(self, v: Tensor) -> Tensor:
        """Not defined: independent outputs have no common precision A of the weights.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            "Independent outputs have no common posterior precision of the weights, so that the "
            "dual evidence and the Newton decrement are not defined. Use outputs='joint'."
        )

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* per example, diagonal, of shape (n_samples, n_outputs, n_outputs)."""
        K = len(self.cholesky_factors)
        return torch.diag_embed(torch.stack([self._variance(k, X) for k in range(K)], -1))

    def joint_covariance(self, X: Tensor) -> Tensor:
        """V_* over all examples and outputs, of shape (n K, n K), zero between outputs."""
        K, n = len(self.cholesky_factors), len(X)
        joint = torch.zeros(n, K, n, K, dtype=torch.float64, device=X.device)
        for k in range(K):
            joint[:, k, :, k] = self._output_covariance(k, X)
        return joint.reshape(n * K, n * K)

    def sample(self, X: Tensor, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw zero-mean fluctuations of f(X), of shape (n_samples, len(X), n_outputs)."""
        draws = []
        for k in range(len(self.cholesky_factors)):
            values, vectors = torch.linalg.eigh(self._output_covariance(k, X))
            z = torch.randn(len(values), n_samples, dtype=torch.float64, generator=generator)
            draws.append(vectors @ (values.clamp_min(0.0).sqrt()[:, None] * z.to(values.device)))
        return torch.stack(draws, -1).transpose(0, 1)

    def _factor(self, k: int) -> Tensor:
        B = self._kernel(k, self.model.X)
        B.diagonal().add_(1.0)
        return cholesky(B, f"B of output {k}", "Raise prior_precision, or standardise the inputs.")

    @property
    def _scale(self) -> list[float] | None:
        return self.model.parameter_scale()

    def _kernel(self, k: int, X: Tensor, X2: Tensor | None = None, whiten: bool = True) -> Tensor:
        """D_k K_k(X, X2), with D_k on the training side; both sides where ``X2`` is None."""
        linearization = self.model.linearization
        unit = linearization.unit_cotangents(k)
        left = _cotangents(self.model, k) if whiten else unit
        gram = linearization.gram(
            X,
            X2,
            cotangents=left,
            cotangents2=left if X2 is None else unit,
            parameter_scale=self._scale,
        )
        return gram if self._scale is not None else gram.div_(self.model.prior_precision)

    def _variance(self, k: int, X: Tensor) -> Tensor:
        unit, parts = self.model.linearization.unit_cotangents(k), []
        N = len(self.model.X)
        for part in batches(len(X), chunk_length(3 * 8 * N, self.memory_limit)):
            prior = self.model.linearization.diagonal_blocks(
                X[part], cotangents=unit, parameter_scale=self._scale
            )[:, 0, 0].double()
            prior = prior if self._scale is not None else prior / self.model.prior_precision
            half = self._half(k, X[part])
            variance = prior - (half**2).sum(0)
            parts.append(nonnegative_variance(variance, prior, "the posterior variance"))
        return torch.cat(parts)

    def _output_covariance(self, k: int, X: Tensor) -> Tensor:
        half = self._half(k, X)
        return self._kernel(k, X, whiten=False) - half.mT @ half

    def _half(self, k: int, X: Tensor) -> Tensor:
        cross = self._kernel(k, self.model.X, X)
        return torch.linalg.solve_triangular(self.cholesky_factors[k], cross, upper=False)


def output_gram(model: LinearModel, k: int) -> Tensor:
    """D_k J_k J_kᵀ D_k of output k alone, of shape (n_samples, n_samples).

    Parameters
    ----------
    model : LinearModel
    k : int

    Returns
    -------
    Tensor of shape (n_samples, n_samples)
    """
    return model.linearization.gram(model.X, cotangents=_cotangents(model, k))


def _cotangents(model: LinearModel, k: int) -> Tensor:
    """e_k √(Λ_i)_kk per example: row k of L has that norm."""
    C = torch.zeros_like(model.noise_factor[:, :, :1])
    C[:, k, 0] = model.noise_factor[:, k].norm(dim=-1)
    return C

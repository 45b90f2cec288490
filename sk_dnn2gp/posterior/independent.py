"""One Gaussian process per output, their correlations dropped: an approximation, by name.

Output k has the prior J_k J_kᵀ/δ and the noise precision (Λ_i)_kk of every example, so that
B_k = I + D_k (J_k J_kᵀ/δ) D_k with D_k = diag √(Λ_i)_kk. K factors of N×N take the place of one of
NK×NK. The outputs share weights and Λ couples the classes: what is left out is Λ's and K's
off-diagonal part, and the weights are counted once per output.
"""

from __future__ import annotations

from functools import cached_property

import torch
from sklearn.utils import gen_batches
from torch import Generator, Tensor

from .._utils.linalg import nonnegative_variance
from .._utils.memory import chunk_length, require_memory
from ..linear_model import LinearModel
from .contract import Posterior
from .function_space import draws_of
from .precision import DensePrecision

__all__ = ["IndependentPosterior", "output_gram"]


class IndependentPosterior(Posterior):
    """Independent outputs: one factor of B_k per output (an approximation).

    Of :ref:`math-laplace`.

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

    is_exact = False

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
        self.B = [self._factor(k) for k in range(K)]

    @cached_property
    def log_determinant(self) -> float:
        """Σ_k log|B_k|."""
        return sum(B.log_determinant for B in self.B)

    @cached_property
    def effective_dimension(self) -> float:
        """Σ_k (N - tr B_k⁻¹): weights that several outputs share are counted in each."""
        return sum(float((1.0 - B.inverse_diagonal).sum()) for B in self.B)

    @property
    def inverse_diagonal(self) -> Tensor:
        """Not defined: see :meth:`solve`."""
        return self.solve(self.model.weights)

    def solve(self, v: Tensor) -> Tensor:
        """Raise ValueError: independent outputs have no common precision A of the weights."""
        raise ValueError(
            "Independent outputs have no common posterior precision of the weights, so that the "
            "dual evidence, the Newton decrement, and variances and draws of the weights are not "
            "defined. Use outputs='joint'."
        )

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Not defined: see :meth:`solve`."""
        return self.solve(self.model.weights)

    def variance(self, X: Tensor) -> Tensor:
        return torch.stack([self._variance(k, X) for k in range(len(self.B))], -1)

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* per example, diagonal, of shape (n_samples, n_outputs, n_outputs)."""
        return torch.diag_embed(self.variance(X))

    def joint_covariance(self, X: Tensor) -> Tensor:
        """V_* over all examples and outputs, of shape (n K, n K), zero between outputs."""
        K, n = len(self.B), len(X)
        joint = torch.zeros(n, K, n, K, dtype=torch.float64, device=X.device)
        for k in range(K):
            joint[:, k, :, k] = self._output_covariance(k, X)
        return joint.reshape(n * K, n * K)

    def sample(self, X: Tensor, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw zero-mean fluctuations of f(X), of shape (n_samples, len(X), n_outputs)."""
        covariances = (self._output_covariance(k, X) for k in range(len(self.B)))
        return torch.stack([draws_of(V, n_samples, generator) for V in covariances], -1)

    def _factor(self, k: int) -> DensePrecision:
        B = self.model.prior_gram(self.model.X, cotangents=_cotangents(self.model, k))
        B.diagonal().add_(1.0)
        advice = "Raise prior_precision, or standardise the inputs."
        return DensePrecision(B, f"B of output {k}", advice)

    def _variance(self, k: int, X: Tensor) -> Tensor:
        unit, parts = self.model.linearization.unit_cotangents(k), []
        for part in gen_batches(len(X), chunk_length(3 * 8 * len(self.model.X), self.memory_limit)):
            prior = self.model.prior_blocks(X[part], cotangents=unit)[:, 0, 0]
            variance = prior - self._half(k, X[part]).square().sum(0)
            parts.append(nonnegative_variance(variance, prior, "the posterior variance"))
        return torch.cat(parts)

    def _output_covariance(self, k: int, X: Tensor) -> Tensor:
        half, unit = self._half(k, X), self.model.linearization.unit_cotangents(k)
        return self.model.prior_gram(X, cotangents=unit) - half.mT @ half

    def _half(self, k: int, X: Tensor) -> Tensor:
        """C⁻¹ D_k K_k(training, X), with B_k = C Cᵀ."""
        model = self.model
        unit = model.linearization.unit_cotangents(k)
        cross = model.prior_gram(model.X, X, cotangents=_cotangents(model, k), cotangents2=unit)
        return self.B[k].half_solve(cross)


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

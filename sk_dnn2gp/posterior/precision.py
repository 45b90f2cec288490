"""A Gaussian over weights, by its precision: the one home of its Cholesky, solutions and draws.

A precision is a matrix or a diagonal, held as a factor, or is given by its inverse, a diagonal and
a few columns. All offer the same:

    solve              A⁻¹ v                  half_solve        C⁻¹ v with A = C Cᵀ
    scale              z -> C⁻ᵀ z, of covariance A⁻¹ for a standard normal z
    log_determinant    log|A|                 inverse_diagonal  diag A⁻¹

The squared norm of a column of C⁻¹V is vᵀA⁻¹v: variances and covariances are products of half
solutions, and so never negative. Shapes: A (P, P) or (P,); columns V (P, n); draws z (n, P).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from .._utils.linalg import cholesky

__all__ = [
    "DensePrecision",
    "DiagonalPrecision",
    "GaussianWeights",
    "LowRankCovariance",
    "Precision",
    "precision_of",
    "with_prior",
]


class DensePrecision:
    """A dense positive definite matrix A (n, n), held as its lower Cholesky factor.

    ``what`` and ``advice`` are for the message of the LinAlgError where it has none.
    """

    def __init__(
        self,
        A: Tensor,
        what: str = "the posterior precision S + δ",
        advice: str = "Raise prior_precision or lower the learning rates.",
    ) -> None:
        self.factor = cholesky(A, what, advice)

    def solve(self, v: Tensor) -> Tensor:
        """A⁻¹ v for v (n,) or (n, m)."""
        if v.ndim == 1:  # LAPACK's solver is made for many: for one it takes 3 to 16 times this
            return self.scale(self.half_solve(v[:, None])[:, 0])
        return torch.cholesky_solve(v, self.factor)

    def half_solve(self, columns: Tensor) -> Tensor:
        """C⁻¹ V, of shape (n, m)."""
        return torch.linalg.solve_triangular(self.factor, columns, upper=False)

    def scale(self, z: Tensor) -> Tensor:
        """C⁻ᵀ z for every row of z (m, n), or for z (n,)."""
        columns = z.mT if z.ndim == 2 else z[:, None]
        draws = torch.linalg.solve_triangular(self.factor.mT, columns, upper=True)
        return draws.mT if z.ndim == 2 else draws[:, 0]

    @cached_property
    def log_determinant(self) -> float:
        """log|A|."""
        return float(2.0 * self.factor.diagonal().log().sum())

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """diag A⁻¹, of shape (n,)."""
        return torch.cholesky_inverse(self.factor).diagonal().clone()


class DiagonalPrecision:
    """A positive diagonal (n,), held as A^(-1/2): draws need it, and a solution twice."""

    def __init__(self, A: Tensor) -> None:
        self.factor = torch.rsqrt(A)

    @classmethod
    def from_factor(cls, factor: Tensor) -> DiagonalPrecision:
        """Of A^(-1/2) itself, without a copy."""
        made = cls.__new__(cls)
        made.factor = factor
        return made

    def solve(self, v: Tensor) -> Tensor:
        """v/A for v (n,) or (n, m)."""
        root = self._beside(v)
        return torch.mul(v, root).mul_(root)

    def half_solve(self, columns: Tensor) -> Tensor:
        """V/√A, of shape (n, m)."""
        return columns * self._beside(columns)

    def scale(self, z: Tensor) -> Tensor:
        """z/√A for every row of z (m, n), or for z (n,); in the place of z."""
        return z.mul_(self.factor)

    @cached_property
    def log_determinant(self) -> float:
        """Σ log A."""
        return float(-2.0 * self.factor.log().sum())

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """1/A, of shape (n,)."""
        return self.factor.square()

    def _beside(self, v: Tensor) -> Tensor:
        return self.factor if v.ndim == 1 else self.factor[:, None]


class LowRankCovariance:
    """A⁻¹ = diag(D) + U Uᵀ with D (n,) ≥ 0 and U (n, m), held as they are.

    Half solutions [√D; Uᵀ] V have n + m rows, and draws take as many normals: z (·, n + m).
    """

    def __init__(self, diagonal: Tensor, factor: Tensor) -> None:
        self.diagonal, self.factor = diagonal, factor

    def solve(self, v: Tensor) -> Tensor:
        """A⁻¹ v for v (n,) or (n, k)."""
        D = self.diagonal if v.ndim == 1 else self.diagonal[:, None]
        return D * v + self.factor @ (self.factor.mT @ v)

    def half_solve(self, columns: Tensor) -> Tensor:
        """[√D; Uᵀ] V, of shape (n + m, k)."""
        return torch.cat([self.diagonal.sqrt()[:, None] * columns, self.factor.mT @ columns])

    def scale(self, z: Tensor) -> Tensor:
        """[√D, U] z for every row of z (k, n + m)."""
        n = len(self.diagonal)
        return z[:, :n] * self.diagonal.sqrt() + z[:, n:] @ self.factor.mT

    @cached_property
    def log_determinant(self) -> float:
        """log|A| = -Σ log D - log|I + Uᵀ D⁻¹ U|; infinite where a weight has no variance."""
        if not bool((self.diagonal > 0).all()):
            return math.inf
        half = self.factor / self.diagonal.sqrt()[:, None]
        inner = torch.linalg.svdvals(half).square().log1p().sum()
        return -float(self.diagonal.log().sum() + inner)

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """diag A⁻¹, of shape (n,)."""
        return self.diagonal + self.factor.square().sum(1)


Precision = DensePrecision | DiagonalPrecision | LowRankCovariance


def precision_of(A: Tensor) -> Precision:
    """The factor of a precision (n, n), or of its diagonal (n,)."""
    return DensePrecision(A) if A.ndim == 2 else DiagonalPrecision(A)


def with_prior(S: Tensor, delta: Tensor | float, out: Tensor | None = None) -> Tensor:
    """A = S + δ, of the shape of the curvature S, (n, n) or (n,); in ``out``, which may be S."""
    if S.ndim == 1:
        return S + delta if out is None else torch.add(S, delta, out=out)
    A = S.clone() if out is None else out.copy_(S)
    A.diagonal().add_(delta)
    return A


@dataclass(frozen=True)
class GaussianWeights:
    """A Gaussian over the weights, q = N(μ, A⁻¹) (:ref:`math-variational`).

    Parameters
    ----------
    mean : Tensor of shape (n_params,), float64
        μ, in the order of the optimiser's parameters.
    precision : Tensor of shape (n_params, n_params) or (n_params,), float64
        A = S + δ, a matrix or its diagonal.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.optim import GaussianWeights
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> round(GaussianWeights(one, 4 * one).kl_divergence(1.0), 4)
    1.6363
    """

    mean: Tensor
    precision: Tensor

    @cached_property
    def factored(self) -> Precision:
        """A as a factor."""
        return precision_of(self.precision)

    def variances(self) -> Tensor:
        """diag A⁻¹, of shape (n_params,): the variances of the weights."""
        return self.factored.inverse_diagonal

    def sample(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw weights, of shape (n_samples, n_params)."""
        z = torch.randn(n_samples, len(self.mean), dtype=torch.float64, generator=generator)
        return self.mean + self.factored.scale(z.to(self.mean.device))

    def kl_divergence(self, prior_precision: float | Tensor) -> float:
        """KL(q ‖ N(0, I/δ)) = ½ [δ tr A⁻¹ + δ‖μ‖² - P + log|A| - P log δ]."""
        delta = torch.as_tensor(prior_precision, dtype=torch.float64).expand(len(self.mean))
        delta = delta.to(self.mean.device)
        squares = float((delta * (self.variances() + self.mean**2)).sum())
        log_ratio = self.factored.log_determinant - float(delta.log().sum())
        return 0.5 * (squares - len(self.mean) + log_ratio)

"""The two shapes of a Gaussian's precision over weights: a matrix, or its diagonal.

Both offer the same few functions of the curvature S and the prior precision δ, with A = S + δ:

    start      S = s I                       factor      what solves with A fast
    solve      A⁻¹ v                         scale       z -> a draw of covariance A⁻¹
    log_determinant   log|A|                 variances   diag A⁻¹
    blend      (1-β) S + β H

Shapes: S and A are (P, P) for Full, (P,) for Diagonal; v, z, variances (P,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.linalg import cholesky

__all__ = ["Diagonal", "Full", "Structure"]


class Full:
    """A dense precision, in float64, held as a Cholesky factor."""

    @staticmethod
    def dtype(weights: torch.dtype) -> torch.dtype:
        """Precision of the work."""
        return torch.float64

    @staticmethod
    def start(n_params: int, value: float, like: Tensor) -> Tensor:
        """S = value · I."""
        return value * torch.eye(n_params, dtype=torch.float64, device=like.device)

    @staticmethod
    def blend(S: Tensor, H: Tensor, beta: float) -> Tensor:
        """(1-β) S + β H as a new matrix: what comes of it may have no factor, and S must stay."""
        return torch.lerp(S, H, beta)

    @staticmethod
    def precision(S: Tensor, delta: Tensor | float, out: Tensor | None = None) -> Tensor:
        """A = S + δ, in the place of ``out`` where it is given, which may be S."""
        A = S.clone() if out is None else out.copy_(S)
        A.diagonal().add_(delta)
        return A

    @staticmethod
    def factor(A: Tensor) -> Tensor:
        """Lower Cholesky factor."""
        return cholesky(
            A,
            "the posterior precision S + δI",
            "Raise prior_precision or lower the learning rates.",
        )

    @staticmethod
    def solve(factor: Tensor, v: Tensor) -> Tensor:
        """A⁻¹ v."""
        return torch.cholesky_solve(v[:, None], factor)[:, 0]

    @staticmethod
    def scale(factor: Tensor, z: Tensor) -> Tensor:
        """C⁻ᵀ z with A = C Cᵀ; z (P,) or (n, P), no longer needed."""
        columns = z.mT if z.ndim == 2 else z[:, None]
        draws = torch.linalg.solve_triangular(factor.mT, columns, upper=True)
        return draws.mT if z.ndim == 2 else draws[:, 0]

    @staticmethod
    def log_determinant(factor: Tensor) -> Tensor:
        """log|A|."""
        return 2.0 * factor.diagonal().log().sum()

    @staticmethod
    def variances(factor: Tensor) -> Tensor:
        """diag A⁻¹."""
        return torch.cholesky_inverse(factor).diagonal().clone()


class Diagonal:
    """A diagonal precision, in the precision of the weights; its factor is A^(-1/2)."""

    @staticmethod
    def dtype(weights: torch.dtype) -> torch.dtype:
        """Precision of the work."""
        return weights

    @staticmethod
    def start(n_params: int, value: float, like: Tensor) -> Tensor:
        """S = value."""
        return torch.full((n_params,), value, dtype=like.dtype, device=like.device)

    @staticmethod
    def blend(S: Tensor, H: Tensor, beta: float) -> Tensor:
        """(1-β) S + β H in the place of S: a positive diagonal always has its factor."""
        return S.lerp_(H, beta)

    @staticmethod
    def precision(S: Tensor, delta: Tensor | float, out: Tensor | None = None) -> Tensor:
        """A = S + δ, in the place of ``out`` where it is given, which may be S."""
        return S + delta if out is None else torch.add(S, delta, out=out)

    @staticmethod
    def factor(A: Tensor) -> Tensor:
        """A^(-1/2): draws need it, and a solution takes it twice."""
        return A.rsqrt()

    @staticmethod
    def solve(factor: Tensor, v: Tensor) -> Tensor:
        """v/A."""
        return torch.mul(v, factor).mul_(factor)

    @staticmethod
    def scale(factor: Tensor, z: Tensor) -> Tensor:
        """z/√A, in the place of z."""
        return z.mul_(factor)

    @staticmethod
    def log_determinant(factor: Tensor) -> Tensor:
        """Σ log A."""
        return -2.0 * factor.log().sum()

    @staticmethod
    def variances(factor: Tensor) -> Tensor:
        """1/A."""
        return factor.square()


Structure = type[Full] | type[Diagonal]

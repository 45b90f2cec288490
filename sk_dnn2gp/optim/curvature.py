"""The Gauss-Newton system (ΦᵀΦ + D) x = g for any diagonal D, in the smaller of two spaces.

    weight space, P ≤ NK:    Cholesky of ΦᵀΦ + D                                        P × P
    function space, NK < P:  x = h - D⁻¹Φᵀ (I + Φ D⁻¹ Φᵀ)⁻¹ Φ h,  h = D⁻¹ g            NK × NK

The curvature is computed once at a point and solved with as many D as the damping tries. In
function space D must be one number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.memory import limit_in_bytes, require_memory
from ..linearize import Linearization, symmetric_product

__all__ = [
    "FEW",
    "Curvature",
    "FunctionSpaceCurvature",
    "WeightSpaceCurvature",
    "check_size",
    "curvature_at",
]

# With at most this many weights a row, products with explicit rows beat passes over the network.
FEW = 4


@dataclass(frozen=True)
class WeightSpaceCurvature:
    """ΦᵀΦ, of shape (n_params, n_params)."""

    ggn: Tensor
    is_explicit = True

    @property
    def scale(self) -> float:
        """Largest diagonal entry: what a damping is measured against."""
        return float(self.ggn.diagonal().max())

    def solve(self, g: Tensor, diagonal: Tensor | float) -> Tensor | None:
        """x, or None where the matrix is not positive definite in floating point."""
        A = self.ggn.clone()
        A.diagonal().add_(diagonal)
        L, info = torch.linalg.cholesky_ex(A)
        if int(info) != 0:
            return None
        return torch.cholesky_solve(g[:, None], L)[:, 0]


@dataclass(frozen=True)
class FunctionSpaceCurvature:
    """ΦΦᵀ, of shape (n_rows, n_rows), with the two products that lead in and out of it.

    They are passes over the network at its present weights unless they are explicit rows.
    """

    gram: Tensor
    apply: Callable[[Tensor], Tensor]
    apply_transposed: Callable[[Tensor], Tensor]
    is_explicit: bool = False

    @property
    def scale(self) -> float:
        """Largest diagonal entry: what a damping is measured against."""
        return float(self.gram.diagonal().max())

    def solve(self, g: Tensor, diagonal: Tensor | float) -> Tensor | None:
        """x, or None where the matrix is not positive definite in floating point."""
        d = torch.as_tensor(diagonal, dtype=torch.float64).flatten()
        if bool((d != d[0]).any()):
            raise ValueError("Function space needs one prior precision for all weights.")
        B = self.gram / d[0]
        B.diagonal().add_(1.0)
        L, info = torch.linalg.cholesky_ex(B)
        if int(info) != 0:
            return None
        h = g / d[0]
        inner = torch.cholesky_solve(self.apply(h)[:, None], L)[:, 0]
        return h - self.apply_transposed(inner) / d[0]


Curvature = WeightSpaceCurvature | FunctionSpaceCurvature


def curvature_at(
    linearization: Linearization,
    X: Tensor,
    L: Tensor,
    memory_limit: float | None = None,
    known: Callable[[Tensor], Tensor | None] = lambda L: None,
) -> Curvature:
    """Curvature of the loss at the module's present weights; L (n, K, K) at the present outputs.

    ``known`` gives the rows Lᵀ J (n, K, P) where a pass that was made already has them.
    MemoryError if the smaller of the two matrices does not fit twice.
    """
    n_rows, P = L.shape[0] * L.shape[2], linearization.n_params
    check_size(n_rows, P, memory_limit)
    is_small = FEW * n_rows >= P and 8 * n_rows * P <= limit_in_bytes(memory_limit) / 4
    rows = known(L) if is_small else None
    if n_rows >= P:
        if rows is not None:
            return WeightSpaceCurvature(symmetric_product(rows.flatten(0, 1).double()))
        return WeightSpaceCurvature(linearization.ggn(X, cotangents=L))
    if is_small:
        rows = linearization.rows(X, L) if rows is None else rows
        Phi = rows.flatten(0, 1).double()
        return FunctionSpaceCurvature(linearization.gram(X, cotangents=L), Phi.mv, Phi.mT.mv, True)
    L = L.double()
    return FunctionSpaceCurvature(
        gram=linearization.gram(X, cotangents=L),
        apply=lambda v: (L.mT @ linearization.jvp(X, v).double()[..., None]).flatten(),
        apply_transposed=lambda t: linearization.vjp(X, (L @ t.reshape(*L.shape[:2], 1))[..., 0]),
    )


def check_size(n_rows: int, n_params: int, memory_limit: float | None) -> None:
    """Raise MemoryError where a step's matrix and factor do not fit, saying what would."""
    size = min(n_rows, n_params)
    largest = int((limit_in_bytes(memory_limit) / 16) ** 0.5)
    require_memory(
        16 * size**2,
        memory_limit,
        f"A Gauss-Newton step (P={n_params} weights, NK={n_rows} rows)",
        f"Within it fits min(P, NK) <= {largest}: use solver='adam' with minibatches, a smaller "
        "network, or raise memory_limit.",
    )

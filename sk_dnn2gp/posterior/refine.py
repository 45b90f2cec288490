"""Solves with A by conjugate gradients, and brackets of quadratic forms in A⁻¹ at every step.

In the prior's scale (:ref:`math-refinement`) A = cI + ΨᵀΨ and M = cI + Ĝ ⪯ A, with the sketch
Ĝ = F Fᵀ. For any Z and R = J - A Z

    Q = JᵀZ + ZᵀJ - ZᵀAZ  ⪯  Jᵀ A⁻¹ J  ⪯  Q + Rᵀ M⁻¹ R,

a bracket of K×K covariances that holds wherever the iteration stops, and narrows with every step;
the condition number is at most 1 + η/c. Columns have steps of their own and share their products.

Shapes: J, Z, R (n_params, q).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Preconditioner", "Step", "conjugate_gradients", "solve"]


@dataclass(frozen=True)
class Preconditioner:
    """M = cI + F Fᵀ of a sketch with orthogonal columns, its inverse and its inverse root.

    F (P, rank); ``eigenvalues`` (rank,) are λ̂, the diagonal of FᵀF; ``ratio`` is c.
    """

    factor: Tensor
    eigenvalues: Tensor
    ratio: float = 1.0

    def solve(self, V: Tensor) -> Tensor:
        """M⁻¹ V = (V - F (c + Λ̂)⁻¹ Fᵀ V)/c."""
        inner = (self.factor.mT @ V) / (self.ratio + self.eigenvalues)[:, None]
        return (V - self.factor @ inner) / self.ratio

    def half_solve(self, V: Tensor) -> Tensor:
        """M^(-1/2) V, the symmetric root."""
        c, whole = self.ratio**0.5, (self.ratio + self.eigenvalues).sqrt()
        inner = (self.factor.mT @ V) / (whole * (whole + c))[:, None]
        return (V - self.factor @ inner) / c


@dataclass(frozen=True)
class Step:
    """One iterate of conjugate gradients for A Z = J: Z, R = J - A Z and M⁻¹ R, all (P, q).

    ``lower`` and ``upper`` (q,) bracket jᵀA⁻¹j for every column j of J.
    """

    solution: Tensor
    residual: Tensor
    preconditioned: Tensor
    lower: Tensor
    upper: Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], M: Preconditioner, J: Tensor
) -> Iterator[Step]:
    """Yield the iterates from Z = 0 on, for as long as the caller asks.

    ``product``: V ↦ A V; M ⪯ A; J (P, q).
    """
    Z, R = torch.zeros_like(J), J.clone()
    Y = M.solve(R)
    direction, rho = Y.clone(), (R * Y).sum(0)
    while True:
        q = ((J + R) * Z).sum(0)  # 2jᵀz - zᵀAz, where Az = j - r
        yield Step(Z, R, Y, q, q + (R * Y).sum(0))
        A_direction = product(direction)
        curvature = (direction * A_direction).sum(0)
        # A column that has converged to the last digit rests: 0/0 would undo it.
        alpha = torch.where(curvature > 0.0, rho / curvature, 0.0)
        Z, R = Z + alpha * direction, R - alpha * A_direction
        Y = M.solve(R)
        fresh = (R * Y).sum(0)
        direction = Y + torch.where(rho > 0.0, fresh / rho, 0.0) * direction
        rho = fresh


def solve(
    product: Callable[[Tensor], Tensor],
    M: Preconditioner,
    J: Tensor,
    tol: float,
    max_iter: int,
) -> tuple[Step, int]:
    """The first iterate whose bracket is narrower than ``tol`` of its lower end, in every column.

    The error of Z in A's norm is then below √tol of the solution's. Whatever the bracket, the
    iterate at ``max_iter``; and the number of steps.
    """
    step, n_iter = None, 0
    for n_iter, step in enumerate(conjugate_gradients(product, M, J)):
        if n_iter >= max_iter or bool((step.upper - step.lower <= tol * step.lower).all()):
            break
    assert step is not None
    return step, n_iter

"""The last digits: Newton steps with exact Hessian products and a kept factor (:ref:`math-newton`).

Conjugate gradients preconditioned with A = δ + ΦᵀΦ, the posterior precision at an *earlier* point,
within a trust region in A's norm (Steihaug 1983), which negative curvature meets at its boundary.
A is factored anew where the products show that it has become another point's.

Shapes: w, gradients and steps (n_params,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .minimum import (
    DECREMENT,
    ROUNDING,
    ExactPosterior,
    Factorise,
    Minimum,
    begun,
    inverse,
    steps_worth_a_factor,
)
from .objective import Point

__all__ = ["conjugate_gradients", "newton"]

# Below this part of the loss there is nothing left to gain.
_NOTHING = 1e-15
# Conjugate gradients: products at most in a step, those that tell of an A that has become too old,
# and how many steps' cost in products a good A is kept for.
_PRODUCTS, _OLD, _KEPT = 60, 14, 3


def newton(
    start: Point,
    factorise: Factorise,
    factor: ExactPosterior | None = None,
    tol: float = 1e-8,
    max_iter: int = 100,
    to_boundary: bool = False,
) -> Minimum:
    """Newton steps by preconditioned conjugate gradients, to ‖∇loss‖ ≤ tol (1 + abs loss).

    ``factorise`` gives A at a point, or None; ``factor`` is that of an earlier point; ``max_iter``
    counts the steps tried. With ``to_boundary`` the first step taken to the boundary of the trust
    region ends it: there is a long way to go yet.

    Converged where ``tol`` was met, or where rounding allows no step and the Newton decrement is
    below 1e-6: a kink, where no step lowers the loss either, is no minimum of that kind.
    ConvergenceError if the loss at the start is not finite.
    """
    found = begun(start, factorise, factor)
    radius, spent, worth = math.nan, 0, steps_worth_a_factor(start)
    known: list[Tensor] = []
    factored: Point | None = None
    for _ in range(max_iter):
        point = found.point
        norm = float(point.gradient.norm())
        if norm <= tol * (1.0 + abs(point.loss)):
            found.converged = True
            break
        solve = inverse(found.factor, point.objective)
        if math.isnan(radius):
            # In function space A⁻¹g is a difference: rounding may leave gᵀA⁻¹g below zero.
            radius = 3.0 * math.sqrt(max(0.0, float(point.gradient @ solve(point.gradient))))
            radius = max(radius, 0.3 * math.sqrt(point.squares))
        # A step can be no better than its Hessian, which may be that of a part of the rows.
        fine = math.sqrt(norm / (1.0 + abs(point.loss)))
        accuracy = min(0.1, fine) if point.curvature is point else 0.1
        step = _steihaug(point, solve, radius, accuracy, known)
        new = point.objective.at(point.w + step.z)
        ratio = _decrease(point, new, step) / max(step.predicted, 1e-300)
        if ratio < 0.25:
            radius = 0.25 * min(radius, step.length)
        elif ratio > 0.5 and step.at_boundary:
            radius *= 4.0
        spent += step.n_products
        found.n_rejected += ratio <= 1e-4
        if ratio > 1e-4:
            found.point, found.n_iter, known = new, found.n_iter + 1, []
            found.losses.append(new.loss)
            if to_boundary and step.at_boundary:
                break
        elif step.predicted <= _NOTHING * abs(point.loss):
            decrement = float(point.gradient @ solve(point.gradient))
            found.converged = decrement <= DECREMENT
            break
        elif radius < 1e-10 * math.sqrt(point.squares):
            break
        if spent >= (worth if step.n_products >= _OLD else _KEPT * worth):
            spent = 0
            if factored is not found.point:  # where steps were rejected it is of this very point
                found.factor, factored, known = factorise(found.point), found.point, []
    return found


@dataclass(frozen=True)
class _Step:
    z: Tensor
    predicted: float
    length: float
    at_boundary: bool
    n_products: int


def _steihaug(
    point: Point,
    solve: Callable[[Tensor], Tensor],
    radius: float,
    accuracy: float,
    known: list[Tensor] | None = None,
) -> _Step:
    """The minimum of the quadratic model within ‖z‖_A ≤ radius, as far as CG goes.

    Norms in A are kept by recursion, so that A itself is never multiplied with. ``known`` are the
    products of the same way with a larger radius, and takes those that are new: a step that was
    rejected costs none again.
    """
    known = [] if known is None else known
    z, r = torch.zeros_like(point.w), point.gradient.clone()
    Hz = torch.zeros_like(z)
    y = solve(r)
    d, ry = -y, float(r @ y)
    first, zz, zd, dd = ry, 0.0, 0.0, ry
    n_products = 0
    while n_products < _PRODUCTS:
        if n_products == len(known):
            known.append(point.curvature.hessian_product(d))
        Hd = known[n_products]
        n_products += 1
        curvature = float(d @ Hd)
        a = ry / curvature if curvature > 1e-12 * dd else math.inf
        longer = zz + 2.0 * a * zd + a * a * dd if math.isfinite(a) else math.inf
        at_boundary = longer >= radius**2
        if at_boundary:
            a = (-zd + math.sqrt(max(0.0, zd * zd + dd * (radius**2 - zz)))) / dd
        z, Hz = z + a * d, Hz + a * Hd
        if at_boundary:
            zz = radius**2
            break
        r, zz = r + a * Hd, longer
        y = solve(r)
        next_ry = float(r @ y)
        if next_ry <= accuracy**2 * first:
            break
        b, ry = next_ry / ry, next_ry
        zd, dd = b * (zd + a * dd), next_ry + b * b * dd
        d = b * d - y
    predicted = -float(point.gradient @ z + 0.5 * (z @ Hz))
    return _Step(z, predicted, math.sqrt(max(zz, 0.0)), at_boundary, n_products)


def _decrease(point: Point, new: Point, step: _Step) -> float:
    """How far the loss fell along the step."""
    if not math.isfinite(new.loss):
        return -math.inf
    if step.predicted >= ROUNDING * abs(point.loss):
        return point.loss - new.loss
    # Too small to be seen in the loss: the trapezoid rule along the step is exact to third order
    # in the step, and the rounding of the loss does not reach it.
    return -0.5 * float((point.gradient + new.gradient) @ step.z)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    solve: Callable[[Tensor], Tensor],
    tol: float = 1e-3,
    max_iter: int = 100,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """H⁻¹ b by preconditioned conjugate gradients; up to the first direction of no curvature.

    ``product`` is v -> H v and ``solve`` v -> M⁻¹ v; ``tol`` is of the residual in M⁻¹'s norm,
    relative to b's. Returns the solution, and the first direction of no curvature where one ended
    the way, all of shape (n_params,).
    """
    y = solve(b)
    first = float(b @ y)
    if start is None:
        z, r = torch.zeros_like(b), b
    else:
        z, r = start, b - product(start)
        y = solve(r)
    d, ry = y, float(r @ y)
    if ry <= tol**2 * first:
        return z, None
    for _ in range(max_iter if first > 0 else 0):
        Hd = product(d)
        curvature = float(d @ Hd)
        if curvature <= 0:
            return z, d
        a = ry / curvature
        z, r = z + a * d, r - a * Hd
        y = solve(r)
        next_ry = float(r @ y)
        if next_ry <= tol**2 * first:
            break
        d, ry = y + (next_ry / ry) * d, next_ry
    return z, None

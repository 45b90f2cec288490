"""Minima of the MAP objective by second-order steps (:ref:`math-newton`).

Two stages, both with one kept factor of A = δ + ΦᵀΦ, the posterior precision at an *earlier* point:

    descend    L-BFGS whose first matrix is A⁻¹: an iteration costs one gradient and one solution,
               and the loss never rises. For the way down, where the Hessian is of little use.
    newton     Newton steps by conjugate gradients preconditioned with A, exact Hessian products,
               within a trust region in A's norm (Steihaug 1983), which negative curvature meets at
               its boundary. For the last digits, in a few steps.

A is factored anew where the products show that it has become another point's.
Shapes: w, gradients and steps (n_params,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..exceptions import ConvergenceError
from ..optim.curvature import Curvature, WeightSpaceCurvature, curvature_at
from ..optim.gauss_newton import SecantMemory
from ..posterior import FunctionSpacePosterior, WeightSpacePosterior
from .objective import Objective, Point

__all__ = [
    "ExactPosterior",
    "Minimum",
    "conjugate_gradients",
    "descend",
    "gauss_newton",
    "inverse",
    "minimise",
    "newton",
]

# What factors A at a point; None where no factor fits, and the prior alone is the first matrix.
ExactPosterior = WeightSpacePosterior | FunctionSpacePosterior
Factorise = Callable[[Point], "ExactPosterior | None"]

# L-BFGS: pairs kept, the least part of a step, and how much more of a step is tried than was good
# for the last one.
_PAIRS, _SHORTEST, _LONGER = 30, 1e-8, 3.0
# Factoring A costs about n/25 steps (n³/3 and the products ΦᵀΦ beside two triangular solutions and
# a gradient; measured for n from 500 to 4,000), and never less than these.
_FRESH, _SIZE = 20, 25
# Below this part of the loss a decrease drowns in the rounding of the sum over examples,
_ROUNDING = 1e-9
# and below this one there is nothing left to gain.
_NOTHING = 1e-15
# Newton decrement, in nats, that counts as none where rounding allows no further step.
_DECREMENT = 1e-6
# Conjugate gradients: products at most in a step, those that tell of an A that has become too old,
# and how many steps' cost in products a good A is kept for.
_PRODUCTS, _OLD, _KEPT = 60, 14, 3
# Directions of curvature tried at a stationary point, and the first length, of ‖w‖, along one that
# bends down.
_LANCZOS, _FIRST = 30, 0.1
# Newton decrement, in nats, of a rough minimum, and how much less after every saddle.
_GAIN, _LESS = 1e-3, 0.1


@dataclass
class Minimum:
    """Where a solver stopped.

    Parameters
    ----------
    point : Point
    factor : ExactPosterior or None
        A⁻¹ at an earlier point, or at this one.
    converged : bool
    n_iter : int
        Accepted steps.
    losses : list of float
        The loss before and after every step.
    """

    point: Point
    factor: ExactPosterior | None
    converged: bool = False
    n_iter: int = 0
    losses: list[float] = field(default_factory=list)


def descend(
    objective: Objective,
    w: Tensor,
    factorise: Factorise,
    factor: ExactPosterior | None = None,
    gain: float = 1e-2,
    max_iter: int = 200,
) -> Minimum:
    """Go down until a Newton step promises less than ``gain``, by preconditioned L-BFGS.

    Parameters
    ----------
    objective : Objective
    w : Tensor of shape (n_params,)
    factorise : callable
        Point -> A there, or None.
    factor : ExactPosterior, optional
        A of an earlier point.
    gain : float, default=1e-2
        gᵀHg, in nats.
    max_iter : int, default=200

    Returns
    -------
    Minimum
        Converged where ``gain`` was met.

    Raises
    ------
    ConvergenceError
        If the loss at w is not finite.
    """
    point, memory, age = _finite(objective.at(w)), SecantMemory(_PAIRS), 0
    found = Minimum(point, factorise(point) if factor is None else factor, losses=[point.loss])
    longest, worth = 1.0, _worth(point)
    while found.n_iter < max_iter:
        point = found.point
        x = memory.solve(point.gradient, inverse(found.factor, objective))
        assert x is not None
        slope = float(point.gradient @ x)
        if slope <= gain:
            found.converged = True
            break
        new, t = _searched(point, x, slope, longest) if slope > 0 else (None, 1.0)
        longest = min(1.0, _LONGER * t)
        if new is None and age == 0:  # not even A of this very point leads down
            break
        if new is not None:
            memory.remember(new.w - point.w, new.gradient - point.gradient)
            found.point, found.n_iter, age = new, found.n_iter + 1, age + 1
            found.losses.append(new.loss)
        if new is None or age == worth:
            found.factor, age = factorise(found.point), 0
            memory.forget()
    return found


def _searched(point: Point, x: Tensor, slope: float, t: float) -> tuple[Point | None, float]:
    """The first point along -x, from the part t on backwards, that lowers the loss enough."""
    while t >= _SHORTEST:
        new = point.objective.at(point.w - t * x)
        if new.loss <= point.loss - 1e-4 * t * slope:
            return new, t
        bend = new.loss - point.loss + slope * t
        best = 0.5 * slope * t * t / bend if math.isfinite(bend) else 0.0
        t = min(max(best, 0.1 * t), 0.5 * t)
    return None, 1.0


def _worth(point: Point) -> int:
    """Steps that cost what factoring A costs: it is factored anew after so many."""
    return max(_FRESH, min(len(point.w), point.outputs.numel()) // _SIZE)


def inverse(factor: ExactPosterior | None, objective: Objective) -> Callable[[Tensor], Tensor]:
    """v -> A⁻¹v, or by the prior's own inverse where there is no factor.

    Parameters
    ----------
    factor : ExactPosterior or None
    objective : Objective

    Returns
    -------
    callable
    """
    return factor.solve if factor is not None else lambda v: v / objective.prior_precision


def newton(
    objective: Objective,
    w: Tensor,
    factorise: Factorise,
    factor: ExactPosterior | None = None,
    tol: float = 1e-8,
    max_iter: int = 100,
    to_boundary: bool = False,
) -> Minimum:
    """Newton steps by preconditioned conjugate gradients, to ‖∇loss‖ ≤ tol (1 + abs loss).

    Parameters
    ----------
    objective : Objective
    w : Tensor of shape (n_params,)
    factorise : callable
        Point -> A there, or None.
    factor : ExactPosterior, optional
        A of an earlier point.
    tol : float, default=1e-8
    max_iter : int, default=100
        Steps tried.
    to_boundary : bool, default=False
        Whether the first step taken to the boundary of the trust region ends it: there is a long
        way to go yet.

    Returns
    -------
    Minimum
        Converged where ``tol`` was met, or where rounding allows no step and the Newton decrement
        is below 1e-6: a kink, where no step lowers the loss either, is no minimum of that kind.

    Raises
    ------
    ConvergenceError
        If the loss at w is not finite.
    """
    point = _finite(objective.at(w))
    found = Minimum(point, factorise(point) if factor is None else factor, losses=[point.loss])
    radius, spent, worth = math.nan, 0, _worth(point)
    for _ in range(max_iter):
        point = found.point
        norm = float(point.gradient.norm())
        if norm <= tol * (1.0 + abs(point.loss)):
            found.converged = True
            break
        solve = inverse(found.factor, objective)
        if math.isnan(radius):
            # In function space A⁻¹g is a difference: rounding may leave gᵀA⁻¹g below zero.
            radius = 3.0 * math.sqrt(max(0.0, float(point.gradient @ solve(point.gradient))))
            radius = max(radius, 0.3 * math.sqrt(point.squares))
        accuracy = min(0.1, math.sqrt(norm / (1.0 + abs(point.loss))))
        step = _steihaug(point, solve, radius, accuracy)
        new = objective.at(point.w + step.z)
        ratio = _decrease(point, new, step) / max(step.predicted, 1e-300)
        if ratio < 0.25:
            radius = 0.25 * min(radius, step.length)
        elif ratio > 0.5 and step.at_boundary:
            radius *= 4.0
        spent += step.n_products
        if ratio > 1e-4:
            found.point, found.n_iter = new, found.n_iter + 1
            found.losses.append(new.loss)
            if to_boundary and step.at_boundary:
                break
        elif step.predicted <= _NOTHING * abs(point.loss):
            decrement = float(point.gradient @ solve(point.gradient))
            found.converged = decrement <= _DECREMENT
            break
        elif radius < 1e-10 * math.sqrt(point.squares):
            break
        if spent >= (worth if step.n_products >= _OLD else _KEPT * worth):
            found.factor, spent = factorise(found.point), 0
    return found


@dataclass(frozen=True)
class _Step:
    z: Tensor
    predicted: float
    length: float
    at_boundary: bool
    n_products: int


def _steihaug(
    point: Point, solve: Callable[[Tensor], Tensor], radius: float, accuracy: float
) -> _Step:
    """The minimum of the quadratic model within ‖z‖_A ≤ radius, as far as CG goes.

    Norms in A are kept by recursion, so that A itself is never multiplied with.
    """
    z, r = torch.zeros_like(point.w), point.gradient.clone()
    Hz = torch.zeros_like(z)
    y = solve(r)
    d, ry = -y, float(r @ y)
    first, zz, zd, dd = ry, 0.0, 0.0, ry
    n_products = 0
    while n_products < _PRODUCTS:
        n_products += 1
        Hd = point.hessian_product(d)
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
    if step.predicted >= _ROUNDING * abs(point.loss):
        return point.loss - new.loss
    # Too small to be seen in the loss: the trapezoid rule along the step is exact to third order
    # in the step, and the rounding of the loss does not reach it.
    return -0.5 * float((point.gradient + new.gradient) @ step.z)


def minimise(
    objective: Objective,
    w: Tensor,
    factorise: Factorise,
    factor: ExactPosterior | None = None,
    tol: float = 1e-8,
    max_iter: int = 500,
) -> Minimum:
    """A true minimum: :func:`descend`, then :func:`newton`, and again where a saddle was left.

    Along negative curvature a Newton step of many products goes no farther than the trust region
    lets it; once off the saddle, L-BFGS goes the same way for a gradient a step.

    Parameters
    ----------
    objective : Objective
    w : Tensor of shape (n_params,)
    factorise : callable
        Point -> A there, or None.
    factor : ExactPosterior, optional
        A of an earlier point.
    tol : float, default=1e-8
    max_iter : int, default=500
        Steps in all.

    Returns
    -------
    Minimum

    Raises
    ------
    ConvergenceError
        If the loss at w is not finite.
    """
    found, gain = Minimum(objective.at(w), factor), _GAIN
    found.losses = [found.point.loss]
    while found.n_iter < max_iter:
        left, here = max_iter - found.n_iter, found.point.w
        found = _then(found, descend(objective, here, factorise, found.factor, gain, left))
        if found.n_iter >= max_iter:
            return replace(found, converged=False)
        left, here = max_iter - found.n_iter, found.point.w
        exact = newton(objective, here, factorise, found.factor, tol, left, to_boundary=True)
        found = _then(found, exact)
        if not exact.converged and exact.n_iter == 0:
            break
        if exact.converged:
            lower = _beside_saddle(found.point, found.factor)
            if lower is None:
                break
            found = _then(found, Minimum(lower, found.factor, False, 1, [0.0, lower.loss]))
        gain *= _LESS
    return found


def _beside_saddle(point: Point, factor: ExactPosterior | None) -> Point | None:
    """A lower point along negative curvature, where a stationary point is a saddle.

    By symmetry (two hidden units alike, say) neither gradient nor products with it may ever leave
    the saddle's plane. Lanczos' directions from a random vector do: those of conjugate gradients.
    """
    z = torch.randn(len(point.w), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = z.to(point.w) * point.objective.prior_precision.sqrt()
    steepest: list[Tensor] = []
    solve = inverse(factor, point.objective)
    conjugate_gradients(point.hessian_product, b, solve, 0.0, _LANCZOS, steepest.append)
    for d in steepest:
        t = _FIRST * math.sqrt(
            point.squares / float((point.objective.prior_precision * d * d).sum())
        )
        while t > 1e-6:
            new = min((point.objective.at(point.w + s * d) for s in (t, -t)), key=lambda p: p.loss)
            if new.loss < point.loss - _ROUNDING * abs(point.loss):
                return new
            t *= 0.25
    return None


def _then(first: Minimum, second: Minimum) -> Minimum:
    """Two ways, one after the other."""
    losses = first.losses + second.losses[1:]
    return replace(second, n_iter=first.n_iter + second.n_iter, losses=losses)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    solve: Callable[[Tensor], Tensor],
    tol: float = 1e-3,
    max_iter: int = 100,
    bends_down: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """H⁻¹ b by preconditioned conjugate gradients; up to the first direction of no curvature.

    Parameters
    ----------
    product : callable
        v -> H v.
    b : Tensor of shape (n_params,)
    solve : callable
        v -> M⁻¹ v.
    tol : float, default=1e-3
        Of the residual in M⁻¹'s norm, relative to b's.
    max_iter : int, default=100
    bends_down : callable, optional
        Told the first direction of no curvature.

    Returns
    -------
    Tensor of shape (n_params,)
    """
    z, r = torch.zeros_like(b), b.clone()
    y = solve(r)
    d, ry = y, float(r @ y)
    first = ry
    for _ in range(max_iter if first > 0 else 0):
        Hd = product(d)
        curvature = float(d @ Hd)
        if curvature <= 0:
            if bends_down is not None:
                bends_down(d)
            break
        a = ry / curvature
        z, r = z + a * d, r - a * Hd
        y = solve(r)
        next_ry = float(r @ y)
        if next_ry <= tol**2 * first:
            break
        d, ry = y + (next_ry / ry) * d, next_ry
    return z


def _finite(point: Point) -> Point:
    if math.isfinite(point.loss) and bool(torch.isfinite(point.gradient).all()):
        return point
    raise ConvergenceError(
        f"The loss is {point.loss} at the starting weights, or its gradient is not finite: the "
        "network's outputs are too large there. Put StandardScaler before it, or give the network "
        "smaller initial weights."
    )


# First damping, relative to the curvature's largest diagonal entry.
_DAMPING = 1e-2


def gauss_newton(
    objective: Objective,
    w: Tensor,
    tol: float = 1e-8,
    max_iter: int = 500,
    memory_limit: float | None = None,
) -> Minimum:
    """Damped Gauss-Newton steps: (A + μI) x = -∇loss, taken only if the loss falls.

    μ follows the ratio ρ of the actual to the predicted decrease by Nielsen's rule (1999,
    IMM-REP-1999-05): times max(1/3, 1 - (2ρ - 1)³), and growing fast while steps fail. Secant pairs
    near the minimum hold what the Gauss-Newton matrix leaves out.

    Parameters
    ----------
    objective : Objective
    w : Tensor of shape (n_params,)
    tol : float, default=1e-8
    max_iter : int, default=500
    memory_limit : float, optional
        MiB for the matrices of a step.

    Returns
    -------
    Minimum

    Raises
    ------
    ConvergenceError
        If the loss at w is not finite.
    MemoryError
        If the matrix of a step does not fit.
    """
    found = Minimum(_finite(objective.at(w)), None)
    found.losses = [found.point.loss]
    memory, damping, growth = SecantMemory(8), math.nan, 2.0
    while True:
        point = found.point
        norm = float(point.gradient.norm())
        found.converged = norm <= tol * (1.0 + abs(point.loss))
        if found.converged or found.n_iter >= max_iter:
            return found
        curvature = _curvature(point, memory_limit)
        if math.isnan(damping):
            damping = _DAMPING * curvature.scale
        ceiling = 1e12 * (curvature.scale + float(objective.prior_precision.max()))
        while True:
            diagonal = objective.prior_precision + damping
            x = memory.solve(point.gradient, partial(curvature.solve, diagonal=diagonal))
            new, gain = _tried(point, x, damping if len(memory) == 0 else 0.0)
            if new is not None and gain > 0:
                break
            if gain == 0.0 or damping > ceiling:
                decrement = math.inf if x is None else float(point.gradient @ x)
                found.converged = gain == 0.0 and decrement <= _DECREMENT
                return found
            memory.forget()
            damping = max(damping * growth, 1e-12 * curvature.scale)
            growth *= 2.0
        memory.remember(new.w - point.w, new.gradient - point.gradient)
        damping *= max(1 / 3, 1.0 - (2.0 * min(gain, 2.0) - 1.0) ** 3)
        growth = 2.0
        found.point, found.n_iter = new, found.n_iter + 1
        found.losses.append(new.loss)


def _tried(point: Point, x: Tensor | None, damping: float) -> tuple[Point | None, float]:
    """The point at -x and the actual over the predicted decrease; 0 where there is none to gain."""
    if x is None:
        return None, -math.inf
    predicted = 0.5 * float(point.gradient @ x) + 0.5 * damping * float(x @ x)
    if predicted <= 1e-18 * abs(point.loss):
        return None, 0.0
    new = point.objective.at(point.w - x)
    if not math.isfinite(new.loss) or not bool(torch.isfinite(new.gradient).all()):
        return None, -math.inf
    if predicted >= _ROUNDING * abs(point.loss):
        return new, (point.loss - new.loss) / predicted
    return new, 0.5 * float((point.gradient + new.gradient) @ x) / predicted


def _curvature(point: Point, memory_limit: float | None) -> Curvature:
    objective = point.objective
    L = objective.likelihood.noise_precision_factor(point.outputs)
    L = L * objective.data.sample_weight.sqrt().to(L)[:, None, None]
    linearization, delta = objective.linearization.at(point.w), objective.prior_precision
    if bool((delta != delta[0]).any()):  # function space takes one δ for all weights
        return WeightSpaceCurvature(linearization.ggn(objective.data.X, cotangents=L))
    return curvature_at(linearization, objective.data.X, L, memory_limit)

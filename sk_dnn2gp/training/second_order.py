"""Minima of the MAP objective by second-order steps (:ref:`math-newton`).

:func:`minimise` goes down by L-BFGS (``descent``) and takes the last digits by Newton's steps
(``newton``), both with one kept factor of the posterior precision; :func:`gauss_newton` takes
damped Gauss-Newton steps alone.

Shapes: w, gradients and steps (n_params,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..optim.curvature import Curvature, WeightSpaceCurvature, curvature_at
from ..optim.gauss_newton import SecantMemory
from .descent import descend
from .minimum import (
    DECREMENT,
    ROUNDING,
    ExactPosterior,
    Factorise,
    Minimum,
    begun,
    checked,
    inverse,
)
from .newton import conjugate_gradients, newton
from .objective import Objective, Point

__all__ = ["gauss_newton", "minimise"]

# Directions of curvature tried at a stationary point, and the first length, of ‖w‖, along one that
# bends down.
_LANCZOS, _FIRST = 30, 0.1
# How much less of the way is left to Newton after every saddle.
_LESS = 0.1


def minimise(
    start: Point,
    factorise: Factorise,
    factor: ExactPosterior | None = None,
    tol: float = 1e-8,
    max_iter: int = 500,
    is_near: bool = False,
    gain: float = 1e-3,
    is_long: bool = False,
) -> Minimum:
    """A true minimum: :func:`descend`, then :func:`newton`, and again where a saddle was left.

    Along negative curvature a Newton step of many products goes no farther than the trust region
    lets it; once off the saddle, L-BFGS goes the same way for a gradient a step.

    ``factorise`` gives A at a point, or None; ``factor`` is that of an earlier point; ``max_iter``
    counts all steps that are tried; ``is_near`` says that a minimum is known to be next to w, so
    that no saddle is looked for; ``gain`` are the nats that Newton's steps are left to go down at
    first; ``is_long`` is as for :func:`descend`. ConvergenceError if the loss at the start is not
    finite.
    """
    found = begun(start, factorise, factor)
    while found.n_tried < max_iter:
        left, held = max_iter - found.n_tried, False
        if found.n_iter > 0 or start.curvature is start:  # with that of a part, Newton's are cheap
            down = descend(found.point, factorise, found.factor, gain, left, is_long)
            found, held = found.then(down), not down.converged and down.n_iter == 0
        if found.n_tried >= max_iter:
            return replace(found, converged=False)
        left = max_iter - found.n_tried
        exact = newton(found.point, factorise, found.factor, tol, left, to_boundary=True)
        found = found.then(exact)
        fall = exact.losses[0] - exact.losses[-1]
        if not exact.converged and (exact.n_iter == 0 or (held and fall <= DECREMENT)):
            break  # a kink: the gradient is large, and no step along it leads down
        if exact.converged:
            lower = None if is_near else _beside_saddle(found.point, found.factor)
            if lower is None:
                break
            losses = [found.point.loss, lower.loss]
            found = found.then(Minimum(lower, found.factor, n_iter=1, losses=losses))
        gain *= _LESS
    return found


def _beside_saddle(point: Point, factor: ExactPosterior | None) -> Point | None:
    """A lower point along negative curvature, where a stationary point is a saddle.

    By symmetry (two hidden units alike, say) neither gradient nor products with it may ever leave
    the saddle's plane. Lanczos' directions from a random vector do: those of conjugate gradients.
    """
    z = torch.randn(len(point.w), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = z.to(point.w) * point.objective.prior_precision.sqrt()
    solve = inverse(factor, point.objective)
    product = point.curvature.hessian_product
    _, d = conjugate_gradients(product, b, solve, 0.0, _LANCZOS)
    if d is None:
        return None
    t = _FIRST * math.sqrt(point.squares / float((point.objective.prior_precision * d * d).sum()))
    while t > 1e-6:
        new = min((point.objective.at(point.w + s * d) for s in (t, -t)), key=lambda p: p.loss)
        if new.loss < point.loss - ROUNDING * abs(point.loss):
            return new
        t *= 0.25
    return None


# First damping, relative to the curvature's largest diagonal entry.
_DAMPING = 1e-2


def gauss_newton(
    start: Point,
    tol: float = 1e-8,
    max_iter: int = 500,
    memory_limit: float | None = None,
) -> Minimum:
    """Damped Gauss-Newton steps: (A + μI) x = -∇loss, taken only if the loss falls.

    μ follows the ratio ρ of the actual to the predicted decrease by Nielsen's rule (1999,
    IMM-REP-1999-05): times max(1/3, 1 - (2ρ - 1)³), and growing fast while steps fail. Secant pairs
    near the minimum hold what the Gauss-Newton matrix leaves out. ConvergenceError if the loss at
    the start is not finite, MemoryError if the matrix of a step does not fit ``memory_limit``.
    """
    prior, curvature_of = start.objective.prior_precision, _curvature(start.objective, memory_limit)
    largest = float(prior.max())
    found = Minimum(checked(start), None, losses=[start.loss])
    memory, damping, growth = SecantMemory(8), math.nan, 2.0
    while True:
        point = found.point
        norm = float(point.gradient.norm())
        found.converged = norm <= tol * (1.0 + abs(point.loss))
        if found.converged or found.n_tried >= max_iter:
            return found
        curvature = curvature_of(point)
        scale = curvature.scale
        damping = _DAMPING * scale if math.isnan(damping) else damping
        ceiling = 1e12 * (scale + largest)
        while True:
            diagonal = prior + damping
            x = memory.solve(point.gradient, partial(curvature.solve, diagonal=diagonal))
            new, gain = _tried(point, x, damping if len(memory) == 0 else 0.0)
            if new is not None and gain > 0:
                break
            found.n_rejected += 1
            if gain == 0.0 or damping > ceiling or found.n_tried >= max_iter:
                decrement = math.inf if x is None else float(point.gradient @ x)
                found.converged = gain == 0.0 and decrement <= DECREMENT
                return found
            memory.forget()
            damping = max(damping * growth, 1e-12 * scale)
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
    gain = (point.loss - new.loss) / predicted
    if predicted < ROUNDING * abs(point.loss):
        gain = 0.5 * float((point.gradient + new.gradient) @ x) / predicted
    # Where the loss rose, no one asks for the gradient.
    if not math.isfinite(new.loss) or (gain > 0 and not bool(torch.isfinite(new.gradient).all())):
        return None, -math.inf
    return new, gain


def _curvature(objective: Objective, memory_limit: float | None) -> Callable[[Point], Curvature]:
    """The Gauss-Newton matrix at a point, from the rows of the point's pass where it has them."""
    delta, root = objective.prior_precision, objective.data.sample_weight.double().sqrt()
    differ = bool((delta != delta[0]).any())

    def at(point: Point) -> Curvature:
        L = objective.likelihood.noise_precision_factor(point.outputs) * root[:, None, None]
        if differ:  # function space takes one δ for all weights
            return WeightSpaceCurvature(point.linearization.ggn(objective.data.X, cotangents=L))
        return curvature_at(point.linearization, objective.data.X, L, memory_limit, point.rows)

    return at

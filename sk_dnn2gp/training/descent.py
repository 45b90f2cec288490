"""The way down: L-BFGS whose first matrix is a kept A⁻¹ (:ref:`math-newton`).

A = δ + ΦᵀΦ is the posterior precision at an *earlier* point. An iteration costs one gradient and
one solution, and the loss never rises: for where the Hessian is of little use.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..optim.gauss_newton import SecantMemory
from .minimum import ExactPosterior, Factorise, Minimum, begun, inverse, steps_worth_a_factor
from .objective import Point

__all__ = ["descend"]

# Pairs kept, the least part of a step, and how much more of a step is tried than was good for the
# last one.
_PAIRS, _SHORTEST, _LONGER = 30, 1e-8, 3.0
# The part of a step, and of A's use, from which on A is worth no more on a long way down.
_CUT, _USED = 0.5, 0.4


def descend(
    start: Point,
    factorise: Factorise,
    factor: ExactPosterior | None = None,
    gain: float = 1e-2,
    max_iter: int = 200,
    is_long: bool = False,
) -> Minimum:
    """Go down until a Newton step promises less than ``gain``, by preconditioned L-BFGS.

    ``factorise`` gives A at a point, or None; ``factor`` is that of an earlier point; ``gain`` is
    gᵀHg, in nats. ``is_long``: all the way under one weak prior, where A soon is another's and
    steps with it are cut, so that a fresh one pays earlier. Converged where ``gain`` was met;
    ConvergenceError if the loss at the start is not finite.
    """
    found = begun(start, factorise, factor)
    memory, age, longest, worth = SecantMemory(_PAIRS), 0, 1.0, steps_worth_a_factor(start)
    while found.n_iter < max_iter:
        point = found.point
        x = memory.solve(point.gradient, inverse(found.factor, point.objective))
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
        if new is None or age >= worth or (is_long and t < _CUT and age >= _USED * worth):
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

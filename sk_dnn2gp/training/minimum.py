"""What the second-order solvers share: where they stopped, and the factor that they keep.

Shapes: w, gradients and steps (n_params,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..exceptions import ConvergenceError
from ..posterior import FunctionSpacePosterior, WeightSpacePosterior
from .objective import Objective, Point

__all__ = [
    "DECREMENT",
    "ROUNDING",
    "ExactPosterior",
    "Factorise",
    "Minimum",
    "begun",
    "checked",
    "inverse",
    "steps_worth_a_factor",
]

# What factors A at a point; None where no factor fits, and the prior alone is the first matrix.
ExactPosterior = WeightSpacePosterior | FunctionSpacePosterior
Factorise = Callable[[Point], "ExactPosterior | None"]

# Factoring A costs about n/25 steps (n³/3 and the products ΦᵀΦ beside two triangular solutions and
# a gradient; measured for n from 500 to 4,000), and never less than these.
_FRESH, _SIZE = 20, 25
# Below this part of the loss a decrease drowns in the rounding of the sum over examples.
ROUNDING = 1e-9
# Newton decrement, in nats, that counts as none where rounding allows no further step.
DECREMENT = 1e-6


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
    n_rejected : int
        Second-order steps that were tried and not accepted: they cost as much.
    """

    point: Point
    factor: ExactPosterior | None
    converged: bool = False
    n_iter: int = 0
    losses: list[float] = field(default_factory=list)
    n_rejected: int = 0

    @property
    def n_tried(self) -> int:
        """Steps, accepted or not: what a budget is spent by."""
        return self.n_iter + self.n_rejected

    def then(self, second: Minimum) -> Minimum:
        """This way and one from its end, as one."""
        losses = self.losses + second.losses[1:]
        n_iter, n_rejected = self.n_iter + second.n_iter, self.n_rejected + second.n_rejected
        return replace(second, n_iter=n_iter, losses=losses, n_rejected=n_rejected)


def begun(start: Point, factorise: Factorise, factor: ExactPosterior | None) -> Minimum:
    """A way with no step yet, with a factor of this point where none is given.

    Raises
    ------
    ConvergenceError
        If the loss at the start is not finite.
    """
    factor = factorise(checked(start)) if factor is None else factor
    return Minimum(checked(start), factor, losses=[start.loss])


def checked(point: Point) -> Point:
    """The point, if its loss and gradient are finite; ConvergenceError otherwise."""
    if math.isfinite(point.loss) and bool(torch.isfinite(point.gradient).all()):
        return point
    raise ConvergenceError(
        f"The loss is {point.loss} at the starting weights, or its gradient is not finite: the "
        "network's outputs are too large there. Put StandardScaler before it, or give the network "
        "smaller initial weights."
    )


def steps_worth_a_factor(point: Point) -> int:
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

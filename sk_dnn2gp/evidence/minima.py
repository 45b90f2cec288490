"""Minima of the loss along θ, their evidences and slopes (:ref:`math-search`).

At a minimum

    dE/dθ = ∂E/∂θ + ∇_w E · ẇ        ẇ = dw*/dθ = -H⁻¹ δ w*,   H the loss's true Hessian

a difference quotient along (1, ẇ): two evidences, and no minimum but the one at θ. The same ẇ
predicts the next minimum, w*(θ + h) ≈ w* + h ẇ.

Shapes: w, ẇ, δ (n_params,).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.linalg import LinAlgError
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from ..linear_model import LinearModel
from ..posterior import Posterior, PosteriorSpecification
from ..training.descent import descend
from ..training.minimum import ExactPosterior, Minimum, inverse
from ..training.newton import conjugate_gradients
from ..training.objective import Objective, Point
from ..training.second_order import gauss_newton, minimise
from .bounds import bracket_width
from .freedom import PRIOR_PRECISION_BOUNDS, Freedom, profiled
from .spectrum import log_marginal_likelihood

__all__ = ["MANY", "Minima", "Trial", "random_parts"]

# Part of S that is misfit, at least, where σ is free: 1 - γ/NK at its best. A network that takes up
# all observations leaves no noise to judge, and its evidence grows without bound as σ falls.
_LEFT = 0.1
# Nats that a rough minimum may still be above its bottom; steps to get there, and how many more of
# a larger ``max_iter``.
_ROUGH, _ROUGH_STEPS, _ROUGH_PART = 0.03, 80, 0.02
# Steps of ``max_iter`` for true minima: so many, within a half and a quarter of it.
_TRUE = 1000
# Nats of its way that a true minimum leaves to Newton's steps.
_GAIN = 1e-3
# The derivative, in nats, that a one-sided difference will do for; the step of the quotient.
_STEEP, _DIFFERENCE = 0.1, 1e-3
# Of ẇ, in the norm of A⁻¹, and products to get there.
_ACCURACY, _PRODUCTS = 1e-5, 200
# Rows of the part of many on which starts are tried, and by how much parts grow to the whole.
MANY, _GROWTH = 4096, 16
# Rows to a weight whose curvature may stand for that of more.
_PER_WEIGHT = 16


@dataclass
class Trial:
    """A minimum at one θ, with its σ and its evidence, and ẇ where it has been asked for.

    ``guess`` is ẇ of the trial before; ``upper`` the upper end of the evidence, where it is known
    as a bracket alone, whose lower end is ``evidence``.
    """

    theta: float
    minimum: Minimum
    objective: Objective
    posterior: Posterior | None
    evidence: float
    derivative: Tensor | None = None
    guess: Tensor | None = None
    upper: float = -math.inf

    @property
    def w(self) -> Tensor:
        """The minimum."""
        return self.minimum.point.w


class Minima:
    """Minima and evidences along θ for one network, data set and posterior.

    Parameters
    ----------
    objective : Objective
        With the δ and σ to begin with; where both are free only ρ counts.
    freedom : Freedom
    specification : PosteriorSpecification
        Of the posterior whose evidence counts.
    factorise : callable
        Point -> what preconditions the steps from there on, or None.
    rows : Tensor of int, optional
        Examples that the posterior is of.
    tol : float, default=1e-8
        Of a true minimum: ‖∇loss‖ ≤ tol (1 + abs loss).
    max_iter : int, default=4000
        Steps to a true minimum; of a search a part of it, to all true minima together.
    damped : bool, default=False
        Whether Gauss-Newton steps make it, and not Newton's.
    conditional : bool, default=False
        Whether the conditional evidence takes the place of the evidence: what is written of the
        one here then holds for the other.
    """

    def __init__(
        self,
        objective: Objective,
        freedom: Freedom,
        specification: PosteriorSpecification,
        factorise: Callable[[Point], ExactPosterior | None],
        rows: Tensor | None = None,
        tol: float = 1e-8,
        max_iter: int = 4000,
        damped: bool = False,
        conditional: bool = False,
    ) -> None:
        self.damped, self.conditional = damped, conditional
        self.objective, self.freedom = _with_part(objective), freedom
        self.specification, self.factorise, self.rows = specification, factorise, rows
        self.tol, self.max_iter = tol, max_iter
        self.left = self._budget()

    # What a search asks between its steps; a subclass that is watched knows more.

    @property
    def is_stopped(self) -> bool:
        """Whether the user asked for the end."""
        return False

    @property
    def is_spent(self) -> bool:
        """Whether there are no steps left for rough minima."""
        return False

    @property
    def of_one(self) -> int:
        """Steps that one true minimum of many may take."""
        return max(self.max_iter // 4, min(self.max_iter, _TRUE))

    @property
    def is_short(self) -> bool:
        """Whether the last true minimum took all the steps that were left."""
        return self.left <= 1

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """Around a part of a search; what it gives takes the ``evidence`` that the part found."""
        return nullcontext(SimpleNamespace())

    def _budget(self) -> int:
        """Steps for all true minima of a search together, fewer where each is of very many rows."""
        if not self.freedom.is_any:
            return self.max_iter
        steps = max(self.max_iter // 4, min(self.max_iter // 2, _TRUE))
        return max(1, int(steps * min(1.0, 4 * MANY / len(self.objective.data))))

    def first(self, w: Tensor, theta: float) -> Trial:
        """The rough minimum at θ from weights that have not been trained."""
        objective = self.freedom.moved(self.objective, theta)
        start = objective.at(w)
        minimum = descend(start, self.factorise, None, self.rough, 2 * self.rough_steps)
        return self._judged(objective, theta, minimum)

    def trained(self, w: Tensor) -> Trial:
        """The true minimum at the objective's own δ and σ, from untrained weights."""
        return self._judged(self.objective, 0.0, self._exactly(self.objective, w, None))

    def at(self, objective: Objective, before: Trial) -> Trial:
        """The true minimum of another objective, from where ``before`` stands."""
        minimum = self._exactly(objective, before.w, before.minimum.factor)
        minimum.n_iter += before.minimum.n_iter
        minimum.losses = before.minimum.losses + minimum.losses
        return self._judged(objective, before.theta, minimum)

    def moved(self, before: Trial, step: float, exact: bool = False) -> Trial:
        """The minimum at θ + step, begun at its prediction."""
        objective = self.freedom.moved(before.objective, step)
        w = before.w if step == 0.0 else self._predicted(before, step, exact)
        minimum = self._minimum(objective, w, before, exact)
        if not math.isfinite(minimum.point.loss):
            minimum = self._minimum(objective, before.w, before, exact)
        minimum.n_iter += before.minimum.n_iter
        minimum.losses = before.minimum.losses + minimum.losses
        trial = self._judged(objective, before.theta + step, minimum)
        trial.guess = before.derivative
        return trial

    def _predicted(self, before: Trial, step: float, exact: bool) -> Tensor:
        """w* + h ẇ, with the Gauss-Newton matrix in the place of H where rough will do."""
        if exact:
            return before.w + step * self.derivative(before)
        pull = before.objective.prior_precision * before.w
        return before.w - step * inverse(before.minimum.factor, before.objective)(pull)

    def _minimum(self, objective: Objective, w: Tensor, before: Trial, exact: bool) -> Minimum:
        factor = before.minimum.factor
        if not exact:
            return descend(objective.at(w), self.factorise, factor, self.rough, self.rough_steps)
        return self._exactly(objective, w, factor, is_near=before.derivative is not None)

    def _exactly(
        self, objective: Objective, w: Tensor, factor: ExactPosterior | None, is_near: bool = False
    ) -> Minimum:
        start = objective.at(w)
        if self.damped:
            minimum = gauss_newton(start, self.tol, self.left)
        else:
            minimum = minimise(
                start,
                self.factorise,
                factor,
                self.tol,
                self.left,
                is_near,
                _GAIN * self.scale,
                # Of least squares A is nearly all of the curvature, and a fresh one worth having.
                is_long=not self.freedom.is_any and objective.likelihood.sigma is not None,
            )
        if self.freedom.is_any:  # the steps of all minima on the way to the best θ count together
            self.left = max(1, self.left - minimum.n_tried)
        return minimum

    def _judged(self, objective: Objective, theta: float, minimum: Minimum) -> Trial:
        """The evidence at a minimum, with the best σ where it is free together with δ."""
        objective, model = self._profiled_at(objective, minimum.point.w)
        try:
            posterior = self.specification.build(model)
            evidence = self._score(objective, minimum.point.w, posterior)
        except LinAlgError:
            return Trial(theta, minimum, objective, None, -math.inf)
        if isinstance(posterior, ExactPosterior) and self.is_of_all:
            minimum.factor = posterior
        if not math.isfinite(evidence) or self._is_out_of_range(objective, posterior):
            evidence = -math.inf
        return Trial(
            theta,
            minimum,
            objective,
            posterior,
            evidence,
            upper=evidence + bracket_width(posterior),
        )

    def _profiled_at(self, objective: Objective, w: Tensor) -> tuple[Objective, LinearModel]:
        """The linear model at w, with the best σ where it is free together with δ."""
        model = self.model(objective, w)
        if self.freedom.prior_precision and self.freedom.noise_std:
            objective = profiled(objective, model)
            model = self.model(objective, w)
        return objective, model

    @property
    def is_of_all(self) -> bool:
        """Whether the posterior is of all weights and examples: what preconditions the steps."""
        return self.specification.is_network_process and self.rows is None

    def model(self, objective: Objective, w: Tensor) -> LinearModel:
        """The linear model at w that the posterior is of."""
        return objective.linear_model(w, self.rows, self.specification.parameters)

    def _is_out_of_range(self, objective: Objective, posterior: Posterior) -> bool:
        """Whether δ left its bounds, or a free σ is that of a network that takes up all data."""
        low, high = PRIOR_PRECISION_BOUNDS
        delta = objective.prior_precision
        if (
            self.freedom.prior_precision
            and not low <= float(delta.min()) <= float(delta.max()) <= high
        ):
            return True
        if not self.freedom.noise_std:
            return False
        model = posterior.model
        misfit = float(model.whitened_residual.square().sum())
        penalty = float((model.prior_precision * model.weights**2).sum())
        return misfit < _LEFT * (misfit + penalty)

    @staticmethod
    def is_flat(trial: Trial) -> bool:
        """Whether the prior still holds the network at next to nothing but its biases."""
        if trial.posterior is None:
            return False
        return trial.posterior.effective_dimension <= trial.minimum.point.outputs.shape[1] + 2

    def derivative(self, trial: Trial) -> Tensor:
        """ẇ = -H⁻¹ δ w* at a trial's minimum."""
        if trial.derivative is None:
            point = trial.minimum.point
            pull = point.objective.prior_precision * trial.w
            solve = inverse(trial.minimum.factor, point.objective)
            guess = None if trial.guess is None else -trial.guess
            found, _ = conjugate_gradients(
                point.hessian_product, pull, solve, _ACCURACY, _PRODUCTS, start=guess
            )
            trial.derivative = -found
        return trial.derivative

    def slope(self, trial: Trial, roughly: bool = False) -> float:
        """dE/dθ at a true minimum that moves along: a difference quotient along (1, ẇ).

        ``roughly``, one side of it will do where it is steep.
        """
        if trial.posterior is None:
            return math.nan
        ahead = (self._evidence_beside(trial, _DIFFERENCE) - trial.evidence) / _DIFFERENCE
        if roughly and abs(ahead) > _STEEP:
            return ahead
        behind = (trial.evidence - self._evidence_beside(trial, -_DIFFERENCE)) / _DIFFERENCE
        return 0.5 * (ahead + behind)

    def _evidence_beside(self, trial: Trial, step: float) -> float:
        """The evidence at (θ + h, w* + h ẇ), where the minimum is to second order."""
        w = trial.w + step * self.derivative(trial)
        objective, model = self._profiled_at(self.freedom.moved(trial.objective, step), w)
        return self._score(objective, w, self.specification.build(model))

    def _score(self, objective: Objective, w: Tensor, posterior: Posterior) -> float:
        """What the search maximises, in nats of all rows."""
        if not self.conditional:
            return log_marginal_likelihood(posterior)
        weight = objective.data.sample_weight
        whole, values = log_marginal_likelihood(posterior, "dual"), []
        for rows, rest in random_parts(len(weight)):
            given = self.specification.build(objective.linear_model(w, torch.tensor(rows)))
            value = whole - log_marginal_likelihood(given, "dual")
            values.append(value / float(weight[torch.tensor(rest)].sum()))
        return float(weight.sum()) * sum(values) / len(values)

    @property
    def scale(self) -> float:
        """How much more than a small data set's an evidence is: tolerances in nats grow with it."""
        return max(1.0, len(self.objective.data) / MANY)

    def of_few(self) -> Minima:
        """The same on a part of many rows, where starts and steps cost little."""
        return self._of_first(MANY)

    def _of_first(self, n: int) -> Minima:
        """On the first rows of a fixed random order."""
        data = self.objective.data
        if len(data) <= 2 * n or self.rows is not None:
            return self
        other = copy.copy(self)
        other.objective = _with_part(self.objective.of(_order(len(data))[:n]))
        other.left = other._budget()
        return other

    def growing(self, whole: Minima) -> Iterator[Minima]:
        """Ever larger parts of the data, the whole last; none where this is the whole."""
        n = len(self.objective.data)
        while n < len(whole.objective.data):
            n *= _GROWTH
            part = whole._of_first(n)
            n = len(part.objective.data)
            yield part

    def taken_over(self, before: Trial) -> Trial:
        """Where a trial of fewer rows stands, as one of these, still to be trained and judged."""
        likelihood, delta = before.objective.likelihood, before.objective.prior_precision
        objective = self.objective.under(likelihood, delta)
        minimum = Minimum(objective.at(before.w), None)
        return Trial(before.theta, minimum, objective, None, -math.inf)

    @property
    def rough(self) -> float:
        """Nats that a rough minimum may still be above its bottom."""
        return _ROUGH * self.scale

    @property
    def rough_steps(self) -> int:
        """Steps that a rough minimum may take."""
        return max(_ROUGH_STEPS, round(_ROUGH_PART * self.max_iter))


def random_parts(
    n: int, part: float = 0.5, n_parts: int = 4, random_state: Any = 0
) -> Iterator[tuple[NDArray, NDArray]]:
    """Random parts of n rows, and the rows that each leaves."""
    draws = check_random_state(random_state)
    for _ in range(n_parts):
        rows, rest = np.split(draws.permutation(n), [int(part * n)])
        yield rows, rest


def _order(n: int) -> Tensor:
    """A fixed random order of n rows."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _with_part(objective: Objective) -> Objective:
    """With the curvature of a part of the rows, where that many have next to the same.

    H and A of n rows, times N/n, differ from those of all by about √(P/n): steps with them leave so
    much of the way for the next one, for a small part of the time.
    """
    N, P = len(objective.data), len(objective.prior_precision)
    n = max(_PER_WEIGHT * P, N // _GROWTH)
    return objective.with_part(_order(N)[:n]) if n <= N // 4 else objective

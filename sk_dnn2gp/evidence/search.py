"""The best δ and σ by the evidence at the minimum of the loss: a search in one dimension.

For Gaussian noise the minimum w* depends on ρ = δσ² alone, and for fixed ρ the best σ is closed
form (:ref:`math-search`), so that θ = log ρ is all there is to search; for other likelihoods, or a
σ that is given, θ = log δ; for a given δ, θ = log σ² + log δ. At a minimum

    dE/dθ = ∂E/∂θ + ∇_w E · ẇ        ẇ = dw*/dθ = -H⁻¹ δ w*,   H the loss's true Hessian

a difference quotient along (1, ẇ): two evidences, and no minimum but the one at θ. The same ẇ
predicts the next minimum, w*(θ + h) ≈ w* + h ẇ. The search:

1. From each start (on a part of the rows, where there are many) down to a minimum at a strong
   prior, then in steps of θ, each minimum begun at the prediction, until the evidence falls: rough
   minima, to a part of a nat.
2. The best of all starts is taken to a true minimum and moved to dE/dθ = 0 by secants.

Shapes: w, ẇ, δ (n_params,).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from ..likelihoods import Gaussian, Likelihood
from ..linear_model import LinearModel
from ..posterior import Posterior, PosteriorSpecification
from ..training.objective import Objective, Point, part_of
from ..training.second_order import (
    ExactPosterior,
    Minimum,
    conjugate_gradients,
    descend,
    gauss_newton,
    inverse,
    minimise,
)
from .spectrum import log_marginal_likelihood

__all__ = [
    "MANY",
    "Found",
    "Freedom",
    "NOISE_STD_BOUNDS",
    "PRIOR_PRECISION_BOUNDS",
    "Searcher",
    "Trial",
    "fixed",
    "found",
    "search",
]

logger = logging.getLogger("sk_dnn2gp")

# Finite, wide bounds: the best δ grows with width (0.5 at 50, 220 at 20,000), and σ is in units of
# the standardised targets.
PRIOR_PRECISION_BOUNDS = (1e-5, 1e8)
NOISE_STD_BOUNDS = (1e-4, 1e2)
# log ρ (or log δ) of the first start; later ones begin so far above the best θ found: minima that
# a strong prior leads to are smooth, others are reached from weights that were never pressed.
_STRONG, _ABOVE = (5.0, 100.0), (2.5, 0.0, 1.0)
# Steps of θ on the way, at most so many in a direction, and so many of lower evidence where a
# network that was flat takes shape.
_STEP, _STEPS, _PATIENCE = 1.0, 24, 2
# A start is given up that is so far behind the best one, as a part of what that one has gained.
_BEHIND = 0.05
# How often a start that ends flat is begun again, under a prior ten times weaker.
_WEAKER = 4
# Part of S that is misfit, at least, where σ is free: 1 - γ/NK at its best. A network that takes up
# all observations leaves no noise to judge, and its evidence grows without bound as σ falls.
_LEFT = 0.1
# Nats that a rough minimum may still be above its bottom, and steps to get there.
_ROUGH, _ROUGH_STEPS = 0.03, 80
# The derivative, in nats, that counts as none, and one that a one-sided difference will do for; the
# step of its difference quotient; most secants.
_STATIONARY, _STEEP, _DIFFERENCE, _SECANTS = 7e-4, 0.1, 1e-3, 12
# Of ẇ, in the norm of A⁻¹, and products to get there.
_ACCURACY, _PRODUCTS = 1e-5, 200
# Rows of the part of many on which starts are tried, and by how much parts grow to the whole.
MANY, _GROWTH = 4096, 16
# Where the evidence leaps over so little of θ, a minimum ends there.
_LEAP = 0.02
# Nats lost in a secant that tell of another minimum, and how often that is borne.
_LOST, _LOST_MOST = 0.5, 2


@dataclass(frozen=True)
class Freedom:
    """What θ moves: both δ and σ (ρ), δ alone, or σ alone.

    Parameters
    ----------
    prior_precision, noise_std : bool
        Whether δ and σ are free.
    """

    prior_precision: bool
    noise_std: bool

    @property
    def is_any(self) -> bool:
        """Whether anything is free."""
        return self.prior_precision or self.noise_std

    def moved(self, objective: Objective, step: float) -> Objective:
        """The objective with θ moved by ``step``; σ follows later where both are free."""
        if self.prior_precision:
            return objective.under(objective.likelihood, objective.prior_precision * math.exp(step))
        sigma = _sigma(objective.likelihood) * math.exp(0.5 * step)
        return objective.under(Gaussian(sigma), objective.prior_precision)

    def room(self, objective: Objective) -> tuple[float, float]:
        """How far θ may move down and up before δ or σ is at a bound."""
        if self.prior_precision:
            logs = objective.prior_precision.log()
            low, high = (math.log(b) for b in PRIOR_PRECISION_BOUNDS)
            return low - float(logs.min()), high - float(logs.max())
        log_sigma = math.log(_sigma(objective.likelihood))
        low, high = (math.log(b) for b in NOISE_STD_BOUNDS)
        return 2.0 * (low - log_sigma), 2.0 * (high - log_sigma)


@dataclass
class Trial:
    """A minimum at one θ, with its σ and its evidence, and ẇ where it has been asked for.

    ``guess`` is ẇ of the trial before.
    """

    theta: float
    minimum: Minimum
    objective: Objective
    posterior: Posterior | None
    evidence: float
    derivative: Tensor | None = None
    guess: Tensor | None = None

    @property
    def w(self) -> Tensor:
        """The minimum."""
        return self.minimum.point.w


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Parameters
    ----------
    w : Tensor of shape (n_params,)
        The minimum.
    objective : Objective
        With the chosen δ and σ.
    posterior : Posterior
    evidence : float
    slope : float
        dE/dθ there; nan where it was not asked for.
    converged : bool
    n_iter : int
        Steps of the start that was kept.
    losses : list of float
        Of that start.
    gradient : Tensor of shape (n_params,)
        ∇loss over all examples, with respect to the posterior's weights.
    """

    w: Tensor
    objective: Objective
    posterior: Posterior
    evidence: float
    slope: float
    converged: bool
    n_iter: int
    losses: list[float]
    gradient: Tensor


class Searcher:
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
    max_iter : int, default=500
        Steps to a true minimum.
    damped : bool, default=False
        Whether Gauss-Newton steps make it, and not Newton's.
    """

    def __init__(
        self,
        objective: Objective,
        freedom: Freedom,
        specification: PosteriorSpecification,
        factorise: Callable[[Point], ExactPosterior | None],
        rows: Tensor | None = None,
        tol: float = 1e-8,
        max_iter: int = 500,
        damped: bool = False,
    ) -> None:
        self.damped = damped
        self.objective, self.freedom = objective, freedom
        self.specification, self.factorise, self.rows = specification, factorise, rows
        self.tol, self.max_iter = tol, max_iter
        # A search has less for all its true minima together than a single one may take.
        self.left = max(1, max_iter // 2) if freedom.is_any else max_iter
        # θ and evidence of the trials of this start, and of the best start before it.
        self.way: list[tuple[float, float]] = []
        self.best_way: list[tuple[float, float]] = []

    def first(self, w: Tensor, theta: float) -> Trial:
        """The rough minimum at θ from weights that have not been trained."""
        objective = self.freedom.moved(self.objective, theta)
        minimum = descend(objective, w, self.factorise, None, self.rough, 2 * _ROUGH_STEPS)
        return self._judged(objective, theta, minimum)

    def trial(self, start: Found) -> Trial:
        """What a search ended with, to go on from."""
        point = start.objective.at(start.w)
        factor = start.posterior if isinstance(start.posterior, ExactPosterior) else None
        factor = factor if self._is_of_all else None
        minimum = Minimum(point, factor, start.converged, start.n_iter, start.losses)
        return Trial(0.0, minimum, start.objective, start.posterior, start.evidence)

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
            return descend(objective, w, self.factorise, factor, self.rough, _ROUGH_STEPS)
        return self._exactly(objective, w, factor, is_near=before.derivative is not None)

    def _exactly(
        self, objective: Objective, w: Tensor, factor: ExactPosterior | None, is_near: bool = False
    ) -> Minimum:
        if self.damped:
            minimum = gauss_newton(objective, w, self.tol, self.left)
        else:
            minimum = minimise(objective, w, self.factorise, factor, self.tol, self.left, is_near)
        if self.freedom.is_any:  # the steps of all minima on the way to the best θ count together
            self.left = max(1, self.left - minimum.n_iter)
        return minimum

    def _judged(self, objective: Objective, theta: float, minimum: Minimum) -> Trial:
        """The evidence at a minimum, with the best σ where it is free together with δ."""
        objective, model = self._profiled_at(objective, minimum.point.w)
        try:
            posterior = self.specification.build(model)
            evidence = log_marginal_likelihood(posterior)
        except LinAlgError:
            return Trial(theta, minimum, objective, None, -math.inf)
        if isinstance(posterior, ExactPosterior) and self._is_of_all:
            minimum.factor = posterior
        if not math.isfinite(evidence) or self._is_out_of_range(objective, posterior):
            evidence = -math.inf
        return Trial(theta, minimum, objective, posterior, evidence)

    def _profiled_at(self, objective: Objective, w: Tensor) -> tuple[Objective, LinearModel]:
        """The linear model at w, with the best σ where it is free together with δ."""
        model = self.model(objective, w)
        if self.freedom.prior_precision and self.freedom.noise_std:
            objective = _profiled(objective, model)
            model = self.model(objective, w)
        return objective, model

    @property
    def _is_of_all(self) -> bool:
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
            point, pull = (
                trial.minimum.point,
                trial.minimum.point.objective.prior_precision * trial.w,
            )
            solve = inverse(trial.minimum.factor, point.objective)
            guess = None if trial.guess is None else -trial.guess
            found = conjugate_gradients(
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
        _, model = self._profiled_at(self.freedom.moved(trial.objective, step), w)
        return log_marginal_likelihood(self.specification.build(model))

    @property
    def strong(self) -> float:
        """θ of the first start: a part of the number of examples, within bounds."""
        return math.log(min(max(0.3 * self.objective.data.total_weight, _STRONG[0]), _STRONG[1]))

    @property
    def scale(self) -> float:
        """How much more than a small data set's an evidence is: tolerances in nats grow with it."""
        return max(1.0, len(self.objective.data) / MANY)

    def of_few(self) -> Searcher:
        """The same on a part of many rows, where starts and steps cost little."""
        return self._of_first(MANY)

    def _of_first(self, n: int) -> Searcher:
        """On the first rows of a fixed random order."""
        data = self.objective.data
        if len(data) <= 2 * n or self.rows is not None:
            return self
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        other = copy.copy(self)
        other.objective = self.objective.of(order[:n])
        return other

    def growing(self, whole: Searcher) -> Iterator[Searcher]:
        """Ever larger parts of the data, the whole last; none where this is the whole."""
        n = len(self.objective.data)
        while n < len(whole.objective.data):
            n *= _GROWTH
            part = whole._of_first(n)
            n = len(part.objective.data)
            yield part

    def taken_over(self, before: Trial) -> Trial:
        """The rough minimum of more rows at a trial's θ, begun at its weights."""
        likelihood, delta = before.objective.likelihood, before.objective.prior_precision
        objective = self.objective.under(likelihood, delta)
        minimum = descend(objective, before.w, self.factorise, None, self.rough, _ROUGH_STEPS)
        return self._judged(objective, before.theta, minimum)

    @property
    def rough(self) -> float:
        """Nats that a rough minimum may still be above its bottom."""
        return _ROUGH * self.scale

    def started(self, w: Tensor, theta: float) -> Trial:
        """The best on the way from untrained weights; begun again where the prior flattens them."""
        self.way = []
        best = self.climb(self.first(w, theta))
        for weaker in range(1, _WEAKER + 1):
            if not self.is_flat(best):
                break
            other = self.climb(self.first(w, theta - weaker * math.log(10.0)))
            best = max(best, other, key=lambda trial: trial.evidence)
        return best

    def climb(self, trial: Trial) -> Trial:
        """On from a trial in steps of θ, down first, to the best evidence on the way."""
        best = trial
        self.way.append((trial.theta, trial.evidence))
        for direction in (-1.0, 1.0):
            here, lower = best, 0
            for _ in range(_STEPS):
                low, high = self.freedom.room(here.objective)
                if self._cannot_win(here) or not low < direction * _STEP < high:
                    break
                here = self.moved(here, direction * _STEP)
                self.way.append((here.theta, here.evidence))
                logger.debug("  theta %.2f, evidence %.2f", here.theta, here.evidence)
                if here.evidence > best.evidence:
                    best = here
                    continue
                if best is not trial or direction > 0:
                    break
                # Under a strong prior the network is flat, and E falls before it first rises.
                lower += not self.is_flat(here)
                if lower >= _PATIENCE:
                    break
            if best is not trial:
                break
        return best

    def _at_vertex(self, trial: Trial) -> list[Trial]:
        """The trial, and that at the vertex of the parabola through it and its neighbours."""
        known = {round(theta, 6): evidence for theta, evidence in self.best_way}
        sides = [known.get(round(trial.theta + step, 6), -math.inf) for step in (-_STEP, _STEP)]
        bend = sides[0] - 2.0 * trial.evidence + sides[1]
        if not math.isfinite(bend) or bend >= 0:
            return [trial]
        return [trial, self.moved(trial, 0.5 * _STEP * (sides[0] - sides[1]) / bend)]

    def _cannot_win(self, trial: Trial) -> bool:
        """Whether a start is far behind where the best one before it was at the same θ."""
        known = sorted(pair for pair in self.best_way if math.isfinite(pair[1]))
        if not known or not known[0][0] <= trial.theta <= known[-1][0]:
            return False
        thetas, evidences = zip(*known, strict=True)
        rival = float(np.interp(trial.theta, thetas, evidences))
        return trial.evidence < rival - _BEHIND * (max(evidences) - min(evidences))

    def polish(self, trial: Trial) -> tuple[Trial, float]:
        """To a true minimum where dE/dθ = 0, by secants within what is known to hold it."""
        here = self.moved(max(self._at_vertex(trial), key=lambda t: t.evidence), 0.0, exact=True)
        slope = self.slope(here, roughly=True)
        best, lost, bracket = (here, slope), 0, _Bracket()
        step = math.copysign(min(0.3, max(0.02, 0.2 * abs(slope))), slope)
        for _ in range(_SECANTS):
            if not abs(slope) > _STATIONARY * self.scale or self.left <= 1:
                break
            bracket.tighten(here, slope)
            low, high = self.freedom.room(here.objective)
            step = min(max(bracket.within(here, step), low), high)
            if step == 0.0 or bracket.leaps:
                break
            there = self.moved(here, step, exact=True)
            new = self.slope(there, roughly=True)
            logger.debug("theta %.4f, evidence %.4f, slope %.2e", there.theta, there.evidence, new)
            if not math.isfinite(new) or there.evidence < here.evidence - _LOST:
                step *= 0.25  # another minimum, with less evidence: nearer
                lost += 1
                if lost > _LOST_MOST:
                    break
                continue
            if abs(new) < abs(best[1]) or there.evidence > best[0].evidence:
                best = (there, new)
            step = _secant(step, slope, new)
            here, slope = there, new
        return best


def _secant(step: float, slope: float, new: float) -> float:
    """Newton's next step where the evidence bent down along the last one; uphill otherwise."""
    change = (new - slope) / step
    following = -new / change if change < 0 else math.copysign(2.0 * abs(step), new)
    return max(-1.0, min(1.0, following))


class _Bracket:
    """The nearest trials with evidence that rises, to the left of the best θ, and that falls."""

    def __init__(self) -> None:
        self.rising: tuple[Trial, float] | None = None
        self.falling: tuple[Trial, float] | None = None

    def tighten(self, trial: Trial, slope: float) -> None:
        """Take a trial as one end; an end on its wrong side was of another minimum."""
        if slope > 0:
            self.rising = (trial, slope)
            if self.falling is not None and self.falling[0].theta <= trial.theta:
                self.falling = None
        else:
            self.falling = (trial, slope)
            if self.rising is not None and self.rising[0].theta >= trial.theta:
                self.rising = None

    def within(self, trial: Trial, step: float) -> float:
        """The step, or half the way to the end that it would pass."""
        end = self.rising if step < 0 else self.falling
        if end is None or end[0] is trial or abs(step) < abs(end[0].theta - trial.theta):
            return step
        return 0.5 * (end[0].theta - trial.theta)

    @property
    def leaps(self) -> bool:
        """Whether the evidence differs by more between near ends than their slopes explain."""
        if self.rising is None or self.falling is None:
            return False
        width = self.falling[0].theta - self.rising[0].theta
        explained = 2.0 * width * max(abs(self.rising[1]), abs(self.falling[1]))
        difference = abs(self.falling[0].evidence - self.rising[0].evidence)
        return width < _LEAP and difference > explained


def search(searcher: Searcher, starts: Iterable[Tensor]) -> Found:
    """The best of several starts, its θ a stationary point of the evidence.

    Parameters
    ----------
    searcher : Searcher
    starts : iterable of Tensor of shape (n_params,)
        Untrained weights.

    Returns
    -------
    Found

    Raises
    ------
    numpy.linalg.LinAlgError
        If no start led to a finite evidence.
    """
    few = searcher.of_few()
    best = _best_start(few, starts)
    for part in few.growing(searcher):
        best = part.taken_over(best)
        if len(part.objective.data) < len(searcher.objective.data):
            best, _ = part.polish(best)  # a step of all rows costs as much as many of a part
    return found(searcher, *searcher.polish(best))


def _best_start(searcher: Searcher, starts: Iterable[Tensor]) -> Trial:
    """The rough trial of the best evidence, of all starts."""
    best: Trial | None = None
    for number, w in enumerate(starts):
        theta = searcher.strong
        if best is not None and not searcher.is_flat(best):
            theta = best.theta + _ABOVE[(number - 1) % len(_ABOVE)]
        trial = searcher.started(w, theta)
        logger.debug("start: theta %.2f, evidence %.2f", trial.theta, trial.evidence)
        if best is None or trial.evidence > best.evidence:
            best, searcher.best_way = trial, searcher.way
    if best is None or not math.isfinite(best.evidence):
        raise LinAlgError(
            "No start led to a finite evidence: the model is too badly conditioned. Standardise X, "
            "or set prior_precision and noise_std to numbers."
        )
    return best


def fixed(searcher: Searcher, starts: Iterable[Tensor]) -> Found:
    """The best of several starts, each trained to a true minimum at the objective's own δ and σ.

    Parameters
    ----------
    searcher : Searcher
        With nothing free.
    starts : iterable of Tensor of shape (n_params,)

    Returns
    -------
    Found

    Raises
    ------
    numpy.linalg.LinAlgError
        If no minimum has a posterior.
    """
    trials = [searcher.trained(w) for w in starts]
    best = max(trials, key=lambda trial: trial.evidence)
    if best.posterior is None:
        raise LinAlgError(
            "The posterior precision of the trained network is not positive definite. Standardise "
            "X, or raise prior_precision or noise_std."
        )
    return found(searcher, best)


def found(searcher: Searcher, trial: Trial, slope: float = math.nan) -> Found:
    """A trial as the result of a search.

    Parameters
    ----------
    searcher : Searcher
    trial : Trial
    slope : float, optional

    Returns
    -------
    Found
    """
    assert trial.posterior is not None
    minimum, whole = trial.minimum, searcher.objective.linearization
    gradient = trial.objective.at(trial.w).gradient
    if searcher.specification.parameters is not None:
        gradient = part_of(whole, trial.posterior.model.linearization, gradient)
    return Found(
        w=trial.w,
        objective=trial.objective,
        posterior=trial.posterior,
        # A trial that the search ruled out has an evidence all the same.
        evidence=log_marginal_likelihood(trial.posterior),
        slope=slope,
        converged=minimum.converged,
        n_iter=minimum.n_iter,
        losses=minimum.losses,
        gradient=gradient,
    )


def _profiled(objective: Objective, model: LinearModel) -> Objective:
    """σ² = S/NK at the same ρ: w*, J and B stay as they are."""
    sigma = _sigma(objective.likelihood)
    S = float(model.whitened_residual.square().sum())
    S += float((model.prior_precision * model.weights**2).sum())
    best = sigma * math.sqrt(S / _count(model, sigma))
    best = min(max(best, NOISE_STD_BOUNDS[0]), NOISE_STD_BOUNDS[1])
    delta = objective.prior_precision * (sigma / best) ** 2
    return objective.under(Gaussian(best), delta)


def _count(model: LinearModel, sigma: float) -> float:
    """K Σ s: L Lᵀ = s I/σ²."""
    return float(model.noise_factor.square().sum()) * sigma**2


def _sigma(likelihood: Likelihood) -> float:
    if not isinstance(likelihood, Gaussian):
        raise TypeError(f"{type(likelihood).__name__} has no noise_std to choose.")
    return likelihood.noise_std

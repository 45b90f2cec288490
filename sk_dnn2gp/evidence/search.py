"""The best δ and σ by the evidence at the minimum of the loss: a search in one dimension.

For Gaussian noise the minimum w* depends on ρ = δσ² alone, and for fixed ρ the best σ is closed
form (:ref:`math-search`), so that θ = log ρ is all there is to search; for other likelihoods, or a
σ that is given, θ = log δ; for a given δ, θ = log σ² + log δ. The search:

1. From each start (on a part of the rows, where there are many) down to a minimum at a strong
   prior, then in steps of θ, each minimum begun at the prediction, until the evidence falls: rough
   minima, to a part of a nat.
2. The best of all starts is taken to a true minimum and moved to dE/dθ = 0 by secants.

Shapes: w, δ (n_params,).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.linalg import LinAlgError
from torch import Tensor

from ..posterior import Posterior
from ..training.minimum import ExactPosterior, Minimum
from ..training.objective import Objective, part_of
from .bounds import warn_of_starts
from .bracket import Bracket, Sample, secant
from .minima import Minima, Trial
from .spectrum import log_marginal_likelihood

__all__ = ["Found", "fixed", "found", "polish", "resumed", "search", "search_each"]

logger = logging.getLogger("sk_dnn2gp")

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
# The derivative, in nats, that counts as none; most secants.
_STATIONARY, _SECANTS = 7e-4, 12
# How often a search goes back to a branch.
_LOST_MOST = 3

# θ and evidence of the trials of one start.
Way = list[tuple[float, float]]


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


def search(minima: Minima, starts: Iterable[Tensor]) -> Found:
    """The best of several starts, its θ a stationary point of the evidence.

    Parameters
    ----------
    minima : Minima
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
    few, brackets = minima.of_few(), []
    best: tuple[Trial, Way] | None = None
    for pair in _finite(_tried(few, starts)):
        brackets.append((pair[0].evidence, pair[0].upper))
        best = pair if best is None or pair[0].evidence > best[0].evidence else best
    assert best is not None
    warn_of_starts(brackets)
    return _finished(minima, few, *best)


def search_each(make: Callable[[], Minima], starts: Iterable[Tensor]) -> list[Found]:
    """Every start of one search, taken to its own stationary point, the highest evidence first.

    None is given up for being behind. ``make`` gives a Minima for all starts together and one for
    the end of each, whose steps are its own. LinAlgError as :func:`search`.
    """
    tried = _finite(_tried(make().of_few(), starts, keep=True))
    ends = []
    for pair in list(tried):
        minima = make()
        ends.append(_finished(minima, minima.of_few(), *pair))
    return sorted(ends, key=lambda end: -end.evidence)


def _finished(minima: Minima, few: Minima, best: Trial, way: Way) -> Found:
    """From the rough trial of a start, on some rows of many, to a stationary point."""
    best = _at_vertex(few, best, way)
    for part in few.growing(minima):
        best = part.taken_over(best)
        if len(part.objective.data) < len(minima.objective.data):
            best, _ = polish(part, best)  # a step of all rows costs as much as many of a part
    return found(minima, *polish(minima, best))


def _tried(
    minima: Minima, starts: Iterable[Tensor], keep: bool = False
) -> Iterator[tuple[Trial, Way]]:
    """The rough trial of the best evidence of each start, and its way.

    Unless all are to ``keep``, a start that is far behind the best one is given up.
    """
    best: Trial | None = None
    best_way: Way = []
    for number, w in enumerate(starts):
        if best is not None and minima.is_spent:
            break
        theta = _strong(minima)
        if best is not None and not minima.is_flat(best):
            theta = best.theta + _ABOVE[(number - 1) % len(_ABOVE)]
        with minima.stage(f"start {number + 1}") as stage:
            trial, way = _started(minima, w, theta, [] if keep else best_way)
            stage.evidence = trial.evidence
        logger.debug("start: theta %.2f, evidence %.2f", trial.theta, trial.evidence)
        yield trial, way
        if best is None or trial.evidence > best.evidence:
            best, best_way = trial, way


def _finite(tried: Iterable[tuple[Trial, Way]]) -> Iterator[tuple[Trial, Way]]:
    """Those of a finite evidence, of which there must be one."""
    is_any = False
    for pair in tried:
        if math.isfinite(pair[0].evidence):
            is_any = True
            yield pair
    if not is_any:
        raise LinAlgError(
            "No start led to a finite evidence: the model is too badly conditioned. Standardise X, "
            "or set prior_precision and noise_std to numbers."
        )


def _strong(minima: Minima) -> float:
    """θ of the first start: a part of the number of examples, within bounds."""
    return math.log(min(max(0.3 * minima.objective.data.total_weight, _STRONG[0]), _STRONG[1]))


def _started(minima: Minima, w: Tensor, theta: float, rival: Way) -> tuple[Trial, Way]:
    """The best on the way from untrained weights; begun again where the prior flattens them."""
    way: Way = []
    best = _climb(minima, minima.first(w, theta), rival, way)
    for weaker in range(1, _WEAKER + 1):
        if not minima.is_flat(best):
            break
        other = minima.first(w, theta - weaker * math.log(10.0))
        best = max(best, _climb(minima, other, rival, way), key=lambda trial: trial.evidence)
    return best, way


def _climb(minima: Minima, trial: Trial, rival: Way, way: Way) -> Trial:
    """On from a trial in steps of θ, down first, to the best evidence on the way."""
    best = trial
    way.append((trial.theta, trial.evidence))
    for direction in (-1.0, 1.0):
        here, lower = best, 0
        for _ in range(_STEPS):
            low, high = minima.freedom.room(here.objective)
            if _cannot_win(here, rival) or not low < direction * _STEP < high:
                break
            here = minima.moved(here, direction * _STEP)
            way.append((here.theta, here.evidence))
            logger.debug("  theta %.2f, evidence %.2f", here.theta, here.evidence)
            if here.evidence > best.evidence:
                best = here
                continue
            if best is not trial or direction > 0:
                break
            # Under a strong prior the network is flat, and E falls before it first rises.
            lower += not minima.is_flat(here)
            if lower >= _PATIENCE:
                break
        if best is not trial:
            break
    return best


def _cannot_win(trial: Trial, rival: Way) -> bool:
    """Whether a start is far behind where the best one before it was at the same θ."""
    known = sorted(pair for pair in rival if math.isfinite(pair[1]))
    if not known or not known[0][0] <= trial.theta <= known[-1][0]:
        return False
    thetas, evidences = zip(*known, strict=True)
    at_theta = float(np.interp(trial.theta, thetas, evidences))
    return trial.evidence < at_theta - _BEHIND * (max(evidences) - min(evidences))


def _at_vertex(minima: Minima, trial: Trial, way: Way) -> Trial:
    """The better of a trial and that at the vertex of the parabola through its neighbours."""
    known = {round(theta, 6): evidence for theta, evidence in way}
    sides = [known.get(round(trial.theta + step, 6), -math.inf) for step in (-_STEP, _STEP)]
    bend = sides[0] - 2.0 * trial.evidence + sides[1]
    if not math.isfinite(bend) or bend >= 0:
        return trial
    vertex = minima.moved(trial, 0.5 * _STEP * (sides[0] - sides[1]) / bend)
    return max(trial, vertex, key=lambda t: t.evidence)


def polish(minima: Minima, trial: Trial) -> tuple[Trial, float]:
    """To a true minimum where dE/dθ = 0, by secants within what is known to hold it, and dE/dθ."""
    if minima.is_stopped and trial.posterior is not None:
        return trial, math.nan
    with minima.stage("best prior and noise") as stage:
        best = _stationary(minima, minima.moved(trial, 0.0, exact=True))
        stage.evidence = best[0].evidence
    return best


def _stationary(minima: Minima, here: Trial) -> tuple[Trial, float]:
    """Secants from a true minimum on, to where its branch of minima has the best evidence.

    A step may lead to another branch, where one minimum goes over into another: one of more
    evidence is followed from there on, from one of less the search goes back to take less of a
    step. Where a branch ends before its evidence does, that end is the best there is.
    """
    now = _sampled(minima, here)
    best, way, bracket, lost = now, [now], Bracket(), 0
    step = math.copysign(min(0.3, max(0.02, 0.2 * abs(now.slope))), now.slope)
    for _ in range(_SECANTS):
        if not abs(now.slope) > _STATIONARY * minima.scale or minima.left <= 1:
            break
        bracket.tighten(now)
        low, high = minima.freedom.room(now.of.objective)
        step = min(max(bracket.within(now, step), low), high)
        if step == 0.0:
            break
        way.append(_sampled(minima, minima.moved(now.of, step, exact=True)))
        new = way[-1]
        logger.debug("theta %.4f, evidence %.4f, slope %.2e", *new[:3])
        if math.isfinite(new.slope):
            best = max(best, new, key=lambda sample: sample.value)
        below, above = bracket.leaps(new, now)
        if below is not None and lost == _LOST_MOST:
            break
        if below is not None:
            k = next(k for k, sample in enumerate(way) if sample is below)
            # What was reached from there is where its branch had ended.
            bracket = Bracket(wall=way[k + 1].theta)
            lost, step, now, way = lost + 1, bracket.wall - below.theta, below, way[: k + 1]
            continue
        step, now = secant(step, now.slope, new.slope), new
        bracket = Bracket() if above else bracket
    return best.of, best.slope


def _sampled(minima: Minima, trial: Trial) -> Sample:
    return Sample(trial.theta, trial.evidence, minima.slope(trial, roughly=True), trial)


def fixed(minima: Minima, starts: Iterable[Tensor]) -> list[Found]:
    """Each untrained start at a true minimum, nothing being free, the highest evidence first.

    LinAlgError if no minimum has a posterior.
    """
    trials = []
    for number, w in enumerate(starts):
        with minima.stage(f"start {number + 1}") as stage:
            trials.append(minima.trained(w))
            stage.evidence = trials[-1].evidence
    trials = [trial for trial in trials if trial.posterior is not None]
    if not trials:
        raise LinAlgError(
            "The posterior precision of the trained network is not positive definite. Standardise "
            "X, or raise prior_precision or noise_std."
        )
    trials.sort(key=lambda trial: -trial.evidence)
    warn_of_starts([(trial.evidence, trial.upper) for trial in trials])
    return [found(minima, trial) for trial in trials]


def found(minima: Minima, trial: Trial, slope: float = math.nan) -> Found:
    """A trial as the result of a search; ``slope`` is dE/dθ."""
    assert trial.posterior is not None
    minimum, whole = trial.minimum, minima.objective.linearization
    gradient = trial.objective.at(trial.w).gradient
    if minima.specification.parameters is not None:
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


def resumed(minima: Minima, found: Found) -> Trial:
    """What a search ended with, as a trial to go on from."""
    factor = found.posterior if isinstance(found.posterior, ExactPosterior) else None
    factor = factor if minima.is_of_all else None
    point = found.objective.at(found.w)
    minimum = Minimum(point, factor, found.converged, found.n_iter, found.losses)
    return Trial(0.0, minimum, found.objective, found.posterior, found.evidence)

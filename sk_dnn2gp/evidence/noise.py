"""The prior precision of a varying noise: how far log s may leave its level, by the evidence.

With outputs f = (m, g) and s = σ e^g (:ref:`math-heteroscedastic`), let δ_s be the prior precision
of the weights that act on g alone. As δ_s → ∞, g → 0, and all is the Gaussian of constant noise,
its evidence too. There is no way from there by small steps: where s falls, the prior weighs less
beside the data, so that at the δ of constant noise the means take up noise as soon as s may vary.
So, from the best constant noise,

1. with a stronger prior on the means, δ_s falls in steps, each minimum begun at the last one's
   weights, as long as the evidence rises; then the evidence moves every δ (:ref:`math-groups`).
2. What has less evidence than constant noise gives way to it, as the end δ_s → ∞.

Shapes: w, δ, head, index (n_params,).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..likelihoods import HeteroscedasticGaussian, Likelihood
from ..linearize import Linearization
from ..training.objective import Objective
from .freedom import PRIOR_PRECISION_BOUNDS
from .groups import choose_groups
from .minima import Minima, Trial
from .search import Found, found, resumed

__all__ = ["awake", "choose_noise_head", "head_group", "noise_head"]

# How much stronger the means' prior is on the way; factor by which δ_s falls in a step, at most so
# many steps, and so many in a row of lower evidence, or short of a minimum. δ_s that stands for
# infinity, beside the data's.
_FIRMER, _STEP, _STEPS, _PATIENCE, _INFINITE = 2.5, 4.0, 9, 2, 1e4
# Of the minima on the way: ‖∇loss‖ ≤ tol (1 + |loss|), and steps.
_TOL, _FEW = 1e-6, 250
# Nats a row behind constant noise that the other δ do not make up for.
_HOPELESS = 0.1
# Derivatives of g below this part of the largest are none.
_ASLEEP = 1e-6


def noise_head(linearization: Linearization, X: Tensor, n_targets: int) -> Tensor:
    """Which weights act on the noise and not on the means, bool: where ∂m/∂w = 0, and ∂g/∂w is not.

    By one random combination of all rows each.
    """
    mean, noise = _slopes(linearization, X, n_targets)
    return (mean == 0) & (noise != 0)


def _slopes(linearization: Linearization, X: Tensor, n_targets: int) -> tuple[Tensor, Tensor]:
    """Random combinations of the rows of ∂m/∂w and ∂g/∂w."""
    generator = torch.Generator().manual_seed(0)
    shape = len(X), 2 * n_targets
    of_both = torch.randn(shape, generator=generator, dtype=torch.float64).to(X.device)
    of_mean = of_both.clone()
    of_mean[:, n_targets:] = 0.0
    return linearization.vjp(X, of_mean), linearization.vjp(X, of_both - of_mean)


def head_group(names: Sequence[str], index: Tensor, head: Tensor) -> tuple[list[str], Tensor]:
    """Groups of weights with the noise's head as the first; those left empty are dropped."""
    kept, index = torch.unique(torch.where(head, 0, index + 1), return_inverse=True)
    return [["noise", *names][k] for k in kept.tolist()], index


def choose_noise_head(
    minima: Minima, start: Found, head: Tensor, index: Tensor, n_groups: int
) -> Found:
    """From the best constant noise to the best varying one.

    ``minima`` is of the network with both heads, ``start`` of its means alone (its σ is the level
    that stays); ``index`` holds the number of each weight's group.
    """
    sigma = start.objective.likelihood.sigma
    assert sigma is not None
    likelihood = HeteroscedasticGaussian(sigma)
    before, delta = resumed(minima, start), start.objective.prior_precision
    known = _information(minima.objective, start.w, head)
    infinite = min(_INFINITE * known, 0.5 * PRIOR_PRECISION_BOUNDS[1])
    constant = _at(minima, before, likelihood, torch.where(head, infinite, delta), head)
    firmer = torch.where(head, known, _FIRMER * delta)
    best = _on_the_way(minima, _at(_rough(minima), before, likelihood, firmer, head), head)
    if best.evidence < constant.evidence - _HOPELESS * minima.objective.data.total_weight:
        return found(minima, constant)
    exact = _at(minima, best, likelihood, best.objective.prior_precision, head)
    if minima.is_short:
        return found(minima, max(constant, exact, key=lambda trial: trial.evidence))
    varying = choose_groups(_rough(minima), found(minima, exact), index, n_groups)
    delta = varying.objective.prior_precision
    last = _at(minima, resumed(minima, varying), likelihood, delta, head)
    return found(minima, max(constant, last, key=lambda trial: trial.evidence))


def _on_the_way(minima: Minima, first: Trial, head: Tensor) -> Trial:
    """The best of falling δ_s, up to where the evidence falls too."""
    here, best, lower, short, minima = first, first, 0, 0, _rough(minima)
    for _ in range(_STEPS):
        objective = here.objective
        weaker = torch.where(head, 1.0 / _STEP, 1.0) * objective.prior_precision
        here = _at(minima, here, objective.likelihood, weaker, head)
        best, lower = (here, 0) if here.evidence > best.evidence else (best, lower + 1)
        short = short + 1 if minima.is_short else 0
        if lower >= _PATIENCE or short > _PATIENCE:
            break
    return best


def _rough(minima: Minima) -> Minima:
    """The same with less asked of each minimum: what needs many steps has little evidence."""
    rough = copy.copy(minima)
    rough.tol, rough.max_iter = max(rough.tol, _TOL), min(rough.max_iter, _FEW)
    return rough


def _at(
    minima: Minima, before: Trial, likelihood: Likelihood, delta: Tensor, head: Tensor
) -> Trial:
    """The minimum of another objective, begun where ``before`` stands."""
    minima.left = minima.of_one  # of each minimum: there are many
    objective = minima.objective.under(likelihood, delta)
    w = awake(objective, before.w, head)
    return minima.at(
        objective, replace(before, minimum=replace(before.minimum, point=objective.at(w)))
    )


def _information(objective: Objective, w: Tensor, head: Tensor) -> float:
    """2 tr J_s J_sᵀ: what the data know of the head's weights, δ_s being beside it."""
    linearization, data = objective.linearization.at(w), objective.data
    K, n = data.y.shape[1], len(data)
    L = torch.zeros(n, 2 * K, K, dtype=torch.float64, device=data.X.device)
    L[:, K:] = torch.eye(K).to(L) * math.sqrt(2.0)
    L *= data.sample_weight.sqrt().to(L)[:, None, None]
    return float(linearization.ggn_diagonal(data.X, cotangents=L)[head].sum())


def awake(objective: Objective, w: Tensor, head: Tensor) -> Tensor:
    """w, with untrained weights for those on which g no longer depends.

    A strong prior takes a noise network of several layers to zero everywhere, which is a saddle.
    """
    untrained = objective.linearization
    _, slope = _slopes(untrained.at(w), objective.data.X, objective.data.y.shape[1])
    asleep = head & (slope.abs() <= _ASLEEP * slope.abs().max())
    return torch.where(asleep, untrained.weights(), w)

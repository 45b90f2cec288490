"""δ and σ chosen by the evidence while a network trains (MATH 8).

For Gauss-Newton training three stages, each going on where the last one ended:

1. ``alternate``: a few steps at fixed (δ, σ), then MacKay's δ = γ/‖w‖² and σ² = ‖y-f‖²/(NK-γ),
   again and again. Fast, but what it finds depends on where it began, and it is blind to how log|B|
   moves with w. So it runs from several starts, of which the worse half is dropped, twice.
2. ``polish``: a simplex search in (log δ, log σ) over the evidence *at the minimum of the loss* for
   each, the number a grid search would compare, every minimum reached from the best one's weights.
3. ``settle``: training to the solver's tolerance at the chosen (δ, σ).

For other optimisers the same updates are a callback every few epochs
(Immer et al. 2021, arXiv 2104.04975, algorithm 1).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.linalg import LinAlgError
from scipy.optimize import minimize
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn

from .dual import LinearModel
from .evidence import (
    EvidenceSpectrum,
    log_marginal_likelihood,
    updated_noise_std,
    updated_precision,
)
from .linearize import Linearization
from .posterior import Posterior, make_posterior
from .training import Objective, TrainingData, train

__all__ = ["Candidate", "EvidenceUpdates", "Tuning", "posterior_at", "starting_point", "tune"]

# Finite, wide bounds: the best δ grows with width (0.5 at 50, 220 at 20,000), and σ is in units of
# the standardised targets.
PRIOR_PRECISION_BOUNDS = (1e-5, 1e8)
NOISE_STD_BOUNDS = (1e-4, 1e2)


@dataclass(frozen=True)
class Tuning:
    """What the evidence may change, and how hard it works.

    Parameters
    ----------
    prior_precision, noise_std : bool
        Whether δ and σ are free.
    structure : str
        "full", "diag" or "last_layer": the posterior whose evidence counts.
    n_rounds : int
        Alternations of training and updates in each of the two heats.
    steps_per_round : int
        Gauss-Newton steps between updates.
    n_polished : int
        Candidates that reach the simplex search.
    n_polish : int
        Evaluations of a simplex search.
    interval : int
        Epochs between updates, for other optimisers.
    memory_limit : float, optional
        MiB for temporary work.
    """

    prior_precision: bool = True
    noise_std: bool = True
    structure: str = "full"
    n_rounds: int = 15
    steps_per_round: int = 3
    n_polished: int = 2
    n_polish: int = 30
    interval: int = 20
    memory_limit: float | None = None

    @property
    def is_needed(self) -> bool:
        """Whether anything is free."""
        return self.prior_precision or self.noise_std


@dataclass
class Candidate:
    """One start of the search: its net, its objective with its own (δ, σ), its evidence so far."""

    net: NeuralNet
    objective: Objective
    posterior: Posterior | None = None
    evidence: float = -math.inf
    converged: bool = False
    losses: list[float] = field(default_factory=list)


def starting_point(restart: int, tuning: Tuning, objective: Objective) -> Objective:
    """The (δ, σ) that a restart begins with: from noisy and strongly regularised to neither."""
    changed = objective.copy()
    if tuning.prior_precision:
        changed.prior_precision = (10.0, 1.0, 30.0, 1.0)[restart % 4]
    if tuning.noise_std:
        changed.likelihood = changed.likelihood.with_noise_std((1.0, 0.1, 0.3, 0.3)[restart % 4])
    return changed


def tune(candidates: list[Candidate], data: TrainingData, tuning: Tuning) -> Candidate:
    """Return the candidate of the best evidence, its δ and σ chosen and its weights settled.

    Parameters
    ----------
    candidates : list of Candidate
        Each with an initialised net whose optimiser is GaussNewton. Changed in place.
    data : TrainingData
    tuning : Tuning

    Returns
    -------
    Candidate

    Raises
    ------
    numpy.linalg.LinAlgError
        If no candidate has a finite evidence.
    """
    for _ in range(2):
        for candidate in candidates:
            alternate(candidate, data, tuning)
        candidates = sorted(candidates, key=lambda c: -c.evidence)[: (len(candidates) + 1) // 2]
    candidates = candidates[: tuning.n_polished]
    for candidate in candidates:
        polish(candidate, data, tuning)
    best = max(candidates, key=lambda c: c.evidence)
    if not math.isfinite(best.evidence):
        raise LinAlgError(
            "No start led to a finite evidence: the model is too badly conditioned. Standardise X, "
            "or set prior_precision and noise_std to numbers."
        )
    advance(best, data, best.net.optimizer_.max_iter)
    evaluated(best, data, tuning)
    return best


def evaluated(candidate: Candidate, data: TrainingData, tuning: Tuning) -> Posterior | None:
    """Posterior at the candidate's weights; its evidence is stored (-inf where there is none)."""
    try:
        posterior = posterior_at(candidate.net.module_, data, candidate.objective, tuning)
        candidate.evidence = log_marginal_likelihood(posterior)
    except LinAlgError:
        posterior, candidate.evidence = None, -math.inf
    candidate.posterior = posterior
    return posterior


def posterior_at(
    module: nn.Module, data: TrainingData, objective: Objective, tuning: Tuning
) -> Posterior:
    """Theorem 1 at the module's present weights, in float64 whatever the module's precision."""
    linearization = Linearization(
        module,
        parameters="last_layer" if tuning.structure == "last_layer" else None,
        dtype=torch.float64,
        memory_limit=tuning.memory_limit,
    )
    model = LinearModel.from_laplace(
        linearization,
        data.X,
        data.y,
        objective.likelihood,
        objective.prior_precision,
        data.sample_weight,
    )
    structure = "diag" if tuning.structure == "diag" else "full"
    return make_posterior(model, structure, tuning.memory_limit)


def update(objective: Objective, posterior: Posterior, data: TrainingData, tuning: Tuning) -> float:
    """Take MacKay's step in ``objective``; return the larger change in log δ and log σ."""
    model, gamma = posterior.model, posterior.effective_dimension
    change = 0.0
    if tuning.prior_precision:
        delta = updated_precision(gamma, float((model.weights**2).sum()))
        delta = float(np.clip(delta, *PRIOR_PRECISION_BOUNDS))
        change = abs(math.log(delta / objective.prior_precision))
        objective.prior_precision = delta
    if tuning.noise_std:
        sigma = objective.likelihood.noise_std
        squares = float((model.whitened_residual**2).sum()) * sigma**2
        count = float(data.sample_weight.sum()) * model.whitened_residual.shape[1]
        new = float(np.clip(updated_noise_std(gamma, squares, count), *NOISE_STD_BOUNDS))
        change = max(change, abs(math.log(new / sigma)))
        objective.likelihood = objective.likelihood.with_noise_std(new)
    return change


def alternate(candidate: Candidate, data: TrainingData, tuning: Tuning) -> None:
    """Stage 1: training steps and MacKay's updates in turn."""
    for _ in range(0 if candidate.converged else tuning.n_rounds):
        advance(candidate, data, tuning.steps_per_round)
        posterior = evaluated(candidate, data, tuning)
        if posterior is None:
            return
        change = update(candidate.objective, posterior, data, tuning)
        candidate.converged = change < 1e-2 and candidate.net.optimizer_.converged
        if candidate.converged:
            return


def polish(candidate: Candidate, data: TrainingData, tuning: Tuning, steps: int = 25) -> None:
    """Stage 2: simplex search over the evidence at the minimum of the loss."""
    free = [tuning.prior_precision, tuning.noise_std]
    bounds = np.log([PRIOR_PRECISION_BOUNDS, NOISE_STD_BOUNDS])[free]
    start = np.clip(get_hyperparameters(candidate.objective, tuning), *bounds.T)
    weights = copy.deepcopy(candidate.net.module_.state_dict())
    best = (-math.inf, start, weights)

    def negative_evidence(theta: np.ndarray) -> float:
        nonlocal best
        set_hyperparameters(candidate.objective, theta, tuning)
        candidate.net.module_.load_state_dict(best[2])
        advance(candidate, data, steps)
        evaluated(candidate, data, tuning)
        if candidate.evidence > best[0]:
            weights = copy.deepcopy(candidate.net.module_.state_dict())
            best = (candidate.evidence, theta.copy(), weights)
        return -candidate.evidence

    simplex = np.vstack([start, start + 0.2 * np.eye(len(start))])
    options = {"maxfev": tuning.n_polish, "xatol": 0.01, "fatol": 0.01}
    options["initial_simplex"] = np.clip(simplex, *bounds.T)
    minimize(negative_evidence, start, method="Nelder-Mead", bounds=bounds, options=options)
    candidate.evidence = best[0]
    set_hyperparameters(candidate.objective, best[1], tuning)
    candidate.net.module_.load_state_dict(best[2])


def advance(candidate: Candidate, data: TrainingData, steps: int) -> None:
    """Make up to ``steps`` Gauss-Newton steps at the candidate's present δ and σ."""
    optimizer, objective = candidate.net.optimizer_, candidate.objective
    optimizer.set_objective(objective.likelihood, objective.prior_precision)
    before, optimizer.max_iter = optimizer.max_iter, steps
    try:
        candidate.losses += train(candidate.net, data, objective)
    finally:
        optimizer.max_iter = before


def maximise_at_fixed_weights(
    module: nn.Module, data: TrainingData, objective: Objective, tuning: Tuning
) -> None:
    """MacKay's updates to their fixed point at the module's weights, changing ``objective``.

    One eigendecomposition serves all of them: γ for any (δ, σ) costs O(min(P, NK)).
    """
    model = posterior_at(module, data, objective, tuning).model
    sigma = getattr(objective.likelihood, "noise_std", None)
    count = float(data.sample_weight.sum()) * model.whitened_residual.shape[1]
    spectrum = EvidenceSpectrum.from_model(model, sigma, count, diagonal=tuning.structure == "diag")
    delta, sigma = spectrum.maximise(
        objective.prior_precision,
        sigma,
        prior_precision_bounds=PRIOR_PRECISION_BOUNDS if tuning.prior_precision else None,
        noise_std_bounds=NOISE_STD_BOUNDS if tuning.noise_std else None,
    )
    objective.prior_precision = delta
    if tuning.noise_std:
        objective.likelihood = objective.likelihood.with_noise_std(sigma)


class EvidenceUpdates(Callback):
    """MacKay's updates of δ and σ every few epochs of any optimiser (Immer et al. 2021).

    Parameters
    ----------
    data : TrainingData
    objective : Objective
        Changed in place.
    tuning : Tuning
    """

    def __init__(self, data: TrainingData, objective: Objective, tuning: Tuning) -> None:
        self.data = data
        self.objective = objective
        self.tuning = tuning

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        """Update where the interval is over, and the weights have left their initial values."""
        if len(net.history) % self.tuning.interval == 0:
            posterior = posterior_at(net.module_, self.data, self.objective, self.tuning)
            update(self.objective, posterior, self.data, self.tuning)


def get_hyperparameters(objective: Objective, tuning: Tuning) -> np.ndarray:
    """log of the free ones of (δ, σ)."""
    values = []
    if tuning.prior_precision:
        values.append(objective.prior_precision)
    if tuning.noise_std:
        values.append(objective.likelihood.noise_std)
    return np.log(values)


def set_hyperparameters(objective: Objective, theta: np.ndarray, tuning: Tuning) -> None:
    """Put exp(theta) into the free ones of (δ, σ)."""
    values = iter(np.exp(theta))
    if tuning.prior_precision:
        objective.prior_precision = float(next(values))
    if tuning.noise_std:
        objective.likelihood = objective.likelihood.with_noise_std(float(next(values)))

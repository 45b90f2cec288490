"""δ and σ chosen by the evidence while a network trains (MATH 8).

At the minimum w*(δ, σ) of the loss the evidence E = -loss - ½ log|B| changes with log δ by
½(γ - δ‖w‖²) *and* by c = d/dε[-½ log|B(w* - ε δ A⁻¹w*)|], the part that comes from w* moving (A,
the Gauss-Newton matrix, stands for the Hessian here); with log σ² by ½(‖y-f‖²/σ² - NK + γ) and the
same c. So with γ' = γ + 2c in the place of γ, MacKay's

    δ = γ'/‖w‖²        σ² = ‖y-f‖²/(NK - γ')

have the stationary points of the evidence that a grid search would compare as fixed points. c is
one finite difference: one more factorisation. Without it the updates drift into overfitted optima.

Gauss-Newton training runs three stages, each going on where the last one ended:

1. ``alternate``: a few steps at fixed (δ, σ), then the updates, again and again, the best settled
   point kept. What it finds depends on where it begins: it runs from several starts, strong
   priors and weak.
2. ``polish``: a short simplex search in (log δ, log σ) over the evidence at the minimum of the
   loss, every minimum reached from the best one's weights.
3. ``settle``: training to the solver's tolerance at the chosen (δ, σ).
4. ``refine``: the corrected updates solved as equations from the best one, to more digits.

The best start takes stages 2 and 3, one start in eight does, and every further one whose evidence
was above that of the best settled so far: on the way down the evidence can be higher than at the
end.

For other optimisers the updates are a callback every few epochs
(Immer et al. 2021, arXiv 2104.04975, algorithm 1).
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.linalg import LinAlgError
from scipy.optimize import minimize, root
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn

from ..likelihoods import Gaussian
from ..linear_model import LinearModel
from ..linearize import Linearization
from ..posterior import Posterior, make_posterior
from ..training.first_order import Objective, TrainingData, train
from .spectrum import (
    EvidenceSpectrum,
    log_marginal_likelihood,
    updated_noise_std,
    updated_precision,
)

__all__ = [
    "Candidate",
    "EvidenceUpdates",
    "Tuning",
    "linear_model",
    "posterior_at",
    "starting_point",
    "tune",
]

# Finite, wide bounds: the best δ grows with width (0.5 at 50, 220 at 20,000), and σ is in units of
# the standardised targets.
PRIOR_PRECISION_BOUNDS = (1e-5, 1e8)
NOISE_STD_BOUNDS = (1e-3, 1e2)
# (δ, σ) that the restarts begin with, for standardised targets, and the steps before the first
# update: an optimum of little noise is reached only if the network may fit before σ is judged.
_STARTS = (
    (10.0, 0.5, 60),
    (100.0, 1.0, 60),
    (1.0, 0.3, 60),
    (0.1, 0.1, 200),
    (0.1, 0.3, 60),
    (0.3, 0.03, 60),
    (0.1, 0.1, 60),
    (0.03, 0.1, 200),
)
# One candidate in so many reaches stages 2 and 3 whatever the others show.
_POLISHED_OF = 8
# Largest change of log δ and log σ in an update, and the one that counts as none.
_TRUST, _SETTLED = 0.5, 1e-2
# Updates without a better evidence before a candidate stops.
_PATIENCE = 4
# Fall of the loss in the last step, in nats, below which it counts as settled. An evidence on the
# way down to an overfitted minimum can be far above the one at its end.
_DRIFT = 0.03
# Evidence, in nats, that the last digits of δ and σ may cost.
_FLAT = 1e-2
# Evidence, in nats, that a simplex search gains at the most (seen: 2).
_REACH = 4.0
# Relative step of the difference that gives c, and first steps of the simplex in (log δ, log σ).
_DIFFERENCE = 1e-2
_SIMPLEX = np.array([0.3, 0.1])


@dataclass(frozen=True)
class Tuning:
    """What the evidence may change, and how hard it works.

    Parameters
    ----------
    prior_precision, noise_std : bool
        Whether δ and σ are free.
    structure : str
        "full", "diag", "last_layer" or "independent": the posterior whose evidence counts.
    n_rounds : int
        Alternations of training and updates.
    steps_per_round : int
        Gauss-Newton steps between updates.
    n_polished : int
        Candidates that reach stages 2 and 3 at the most.
    n_polish : int
        Evaluations of a simplex search.
    interval : int
        Epochs between updates, for other optimisers.
    memory_limit : float, optional
        MiB for temporary work.
    rows : Tensor of int, optional
        Examples that the posterior, and with it the evidence, is of; None for all.
    """

    prior_precision: bool = True
    noise_std: bool = True
    structure: str = "full"
    n_rounds: int = 24
    steps_per_round: int = 6
    n_polished: int = 8
    n_polish: int = 12
    interval: int = 20
    memory_limit: float | None = None
    rows: Tensor | None = None

    @property
    def is_needed(self) -> bool:
        """Whether anything is free."""
        return self.prior_precision or self.noise_std


@dataclass
class Snapshot:
    """The best point that a candidate has seen: settled ones rank above all others."""

    is_settled: bool
    evidence: float
    objective: Objective
    weights: dict[str, Tensor]

    @property
    def rank(self) -> tuple[bool, float]:
        """What snapshots are compared by."""
        return self.is_settled, self.evidence


@dataclass
class Candidate:
    """One start of the search: its net, its objective with its own (δ, σ), its evidence so far."""

    net: NeuralNet
    objective: Objective
    posterior: Posterior | None = None
    evidence: float = -math.inf
    finished: bool = False
    losses: list[float] = field(default_factory=list)
    best: Snapshot | None = None

    def remember(self) -> bool:
        """Keep the present point if it is the best so far; return whether it is."""
        better = self.best is None or (self.is_settled, self.evidence) > self.best.rank
        if better:
            weights = copy.deepcopy(self.net.module_.state_dict())
            objective = self.objective.copy()
            self.best = Snapshot(self.is_settled, self.evidence, objective, weights)
        return better

    def posterior_at(self, data: TrainingData, tuning: Tuning) -> Posterior:
        """Posterior at the present weights, with Gauss-Newton's own linearisation if it serves."""
        linearization = getattr(self.net.optimizer_, "linearization", None)
        serves = linearization is not None and linearization.dtype == torch.float64
        if tuning.structure == "last_layer" or not serves:
            linearization = None
        return posterior_at(self.net.module_, data, self.objective, tuning, linearization)

    @property
    def is_settled(self) -> bool:
        """Whether the loss has stopped falling, so that the evidence is that of a minimum."""
        optimizer = self.net.optimizer_
        losses = optimizer.losses[-2:]
        return optimizer.converged or losses[0] - losses[-1] < _DRIFT

    def restore(self) -> None:
        """Go back to the best point."""
        if self.best is not None:
            self.objective = self.best.objective.copy()
            self.evidence = self.best.evidence
            self.net.module_.load_state_dict(self.best.weights)


def starting_point(restart: int, tuning: Tuning, objective: Objective) -> Objective:
    """The (δ, σ) that a restart begins with: strong and weak priors, much noise and little."""
    changed = objective.copy()
    delta, sigma, _ = _STARTS[restart % len(_STARTS)]
    if tuning.prior_precision:
        changed.prior_precision = delta
    if tuning.noise_std:
        changed.likelihood = gaussian(changed).with_noise_std(sigma)
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
    for restart, candidate in enumerate(candidates):
        advance(candidate, data, _STARTS[restart % len(_STARTS)][2])
        alternate(candidate, data, tuning)
    shown = [(c.best.rank, c) for c in candidates if c.best is not None]
    shown.sort(key=lambda pair: pair[0], reverse=True)
    best: Candidate | None = None
    least = math.ceil(len(candidates) / _POLISHED_OF)
    for n_done, ((_, evidence), candidate) in enumerate(shown[: tuning.n_polished]):
        if best is not None and n_done >= least and evidence <= best.evidence:
            break
        hopeless = -math.inf if best is None else best.evidence - _REACH
        polish(candidate, data, tuning, hopeless)
        if candidate.evidence < hopeless:
            continue
        settle(candidate, data, tuning)
        if best is None or candidate.evidence > best.evidence:
            best = candidate
    if best is None or not math.isfinite(best.evidence):
        raise LinAlgError(
            "No start led to a finite evidence: the model is too badly conditioned. Standardise X, "
            "or set prior_precision and noise_std to numbers."
        )
    refine(best, data, tuning)
    return best


def refine(candidate: Candidate, data: TrainingData, tuning: Tuning) -> None:
    """Stage 4: solve MacKay's corrected equations for (δ, σ) from the simplex's two digits.

    The evidence is flat at its top: there the equations tell far more digits than its values do.
    """
    candidate.best = None
    candidate.remember()
    start = get_hyperparameters(candidate.objective, tuning)
    before = candidate.evidence

    def imbalance(theta: np.ndarray) -> np.ndarray:
        candidate.restore()
        near = np.clip(theta, start - _TRUST, start + _TRUST)
        set_hyperparameters(candidate.objective, np.exp(near), tuning)
        advance(candidate, data, candidate.net.optimizer_.max_iter)
        posterior = evaluated(candidate, data, tuning)
        if posterior is None:
            raise LinAlgError("no posterior at this point")
        gamma = total_dimension(candidate, posterior, data, tuning, central=True)
        update(candidate.objective, posterior, data, tuning, gamma)
        return get_hyperparameters(candidate.objective, tuning) - theta

    options = {"xtol": 1e-6, "maxfev": 12, "eps": 1e-4, "factor": 0.1}
    with contextlib.suppress(LinAlgError):
        theta = root(imbalance, start, method="hybr", options=options).x
        if np.abs(theta - start).max() < _TRUST:
            candidate.restore()
            set_hyperparameters(candidate.objective, np.exp(theta), tuning)
            settle(candidate, data, tuning)
    if candidate.evidence < before - _FLAT:
        candidate.restore()
        settle(candidate, data, tuning)


def settle(candidate: Candidate, data: TrainingData, tuning: Tuning) -> None:
    """Stage 3: train to the solver's tolerance; the evidence is then that of a minimum."""
    # The search knows about two digits; rounding to four makes the result the same everywhere.
    values = np.exp(get_hyperparameters(candidate.objective, tuning))
    set_hyperparameters(candidate.objective, [float(f"{v:.4g}") for v in values], tuning)
    advance(candidate, data, candidate.net.optimizer_.max_iter)
    evaluated(candidate, data, tuning)


def evaluated(candidate: Candidate, data: TrainingData, tuning: Tuning) -> Posterior | None:
    """Posterior at the candidate's weights; its evidence is stored (-inf where there is none)."""
    try:
        posterior = candidate.posterior_at(data, tuning)
        candidate.evidence = log_marginal_likelihood(posterior)
    except LinAlgError:
        posterior, candidate.evidence = None, -math.inf
    candidate.posterior = posterior
    return posterior


def posterior_at(
    module: nn.Module,
    data: TrainingData,
    objective: Objective,
    tuning: Tuning,
    linearization: Linearization | None = None,
) -> Posterior:
    """Theorem 1 at the module's present weights, in float64 whatever the module's precision."""
    if linearization is None:
        linearization = Linearization(
            module,
            parameters="last_layer" if tuning.structure == "last_layer" else None,
            dtype=torch.float64,
            memory_limit=tuning.memory_limit,
        )
    model = linear_model(linearization, data.take(tuning.rows), objective)
    structure = "full" if tuning.structure == "last_layer" else tuning.structure
    return make_posterior(model, structure, tuning.memory_limit)


def linear_model(
    linearization: Linearization, data: TrainingData, objective: Objective
) -> LinearModel:
    """Theorem 1's linear model of the data at the network's present weights."""
    return LinearModel.from_laplace(
        linearization,
        data.X,
        data.y,
        objective.likelihood,
        objective.prior_precision,
        data.sample_weight,
    )


def update(
    objective: Objective,
    posterior: Posterior,
    data: TrainingData,
    tuning: Tuning,
    gamma: float | None = None,
) -> float:
    """Take MacKay's step in ``objective``; return the larger change in log δ and log σ.

    ``gamma`` is γ' of the module's docstring; None is the posterior's own γ.
    """
    model = posterior.model
    gamma = posterior.effective_dimension if gamma is None else gamma
    change = 0.0
    if tuning.prior_precision:
        delta = updated_precision(gamma, float((model.weights**2).sum()))
        delta = _limited(delta, objective.prior_precision, PRIOR_PRECISION_BOUNDS)
        change = abs(math.log(delta / objective.prior_precision))
        objective.prior_precision = delta
    if tuning.noise_std:
        sigma = gaussian(objective).noise_std
        squares = float((model.whitened_residual**2).sum()) * sigma**2
        count = n_observations(model, data)
        new = _limited(updated_noise_std(gamma, squares, count), sigma, NOISE_STD_BOUNDS)
        change = max(change, abs(math.log(new / sigma)))
        objective.likelihood = gaussian(objective).with_noise_std(new)
    return change


def gaussian(objective: Objective) -> Gaussian:
    """The likelihood, where σ is free: only the Gaussian has one."""
    return cast(Gaussian, objective.likelihood)


def _limited(new: float, old: float, bounds: tuple[float, float]) -> float:
    """Stay within the bounds and within a trust region around the old value."""
    ratio = min(max(new / old, math.exp(-_TRUST)), math.exp(_TRUST))
    return min(max(old * ratio, bounds[0]), bounds[1])


def total_dimension(
    candidate: Candidate,
    posterior: Posterior,
    data: TrainingData,
    tuning: Tuning,
    central: bool = False,
) -> float:
    """γ' = γ + 2c: the effective dimension, corrected for how log|B| moves with w*.

    c is a one-sided difference, or a central one where the last digits count.
    """
    model, gamma = posterior.model, posterior.effective_dimension
    step = model.prior_precision * posterior.solve(model.weights)
    named = dict(candidate.net.module_.named_parameters())
    parameters = [named[name] for name in model.linearization.parameter_names]

    def log_determinant(distance: float) -> float:
        with moved(parameters, distance * step):
            return candidate.posterior_at(data, tuning).log_determinant

    if central:
        there, here, width = log_determinant(-_DIFFERENCE), log_determinant(_DIFFERENCE), 2.0
    else:
        there, here, width = log_determinant(-_DIFFERENCE), posterior.log_determinant, 1.0
    slope = -0.5 * (there - here) / (width * _DIFFERENCE)
    # A difference can be far off where training has not settled: γ' stays a dimension.
    most = max(0.95 * n_observations(model, data), gamma)
    return min(max(gamma + 2.0 * slope, 0.1 * gamma), most)


def n_observations(model: LinearModel, data: TrainingData) -> float:
    """K Σ s: how many numbers were observed, an example of weight s counting s times."""
    return float(data.sample_weight.sum()) * model.whitened_residual.shape[1]


@contextlib.contextmanager
def moved(parameters: list[nn.Parameter], step: Tensor) -> Iterator[None]:
    """Add ``step`` (n_params,) to the parameters inside the block; restore them after it."""
    before = [p.detach().clone() for p in parameters]
    pieces = step.split([p.numel() for p in parameters])
    try:
        with torch.no_grad():
            for p, piece in zip(parameters, pieces, strict=True):
                p.add_(piece.reshape(p.shape).to(p))
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)


def alternate(candidate: Candidate, data: TrainingData, tuning: Tuning) -> None:
    """Stage 1: training steps and updates in turn, until nothing changes or nothing improves."""
    behind = 0
    for _ in range(0 if candidate.finished else tuning.n_rounds):
        advance(candidate, data, tuning.steps_per_round)
        posterior = evaluated(candidate, data, tuning)
        if posterior is None:
            break
        if candidate.remember():
            behind = 0
        elif candidate.is_settled:
            behind += 1
        gamma = total_dimension(candidate, posterior, data, tuning)
        change = update(candidate.objective, posterior, data, tuning, gamma)
        settled = change < _SETTLED and candidate.is_settled
        candidate.finished = settled or behind >= _PATIENCE
        if candidate.finished:
            break


def polish(
    candidate: Candidate,
    data: TrainingData,
    tuning: Tuning,
    hopeless: float = -math.inf,
    steps: int = 60,
) -> None:
    """Stage 2: simplex search over the evidence at the minimum of the loss.

    Not begun where the evidence of the first minimum is below ``hopeless``.
    """
    candidate.restore()
    advance(candidate, data, candidate.net.optimizer_.max_iter)
    evaluated(candidate, data, tuning)
    if candidate.evidence < hopeless:
        return
    candidate.best = None
    candidate.remember()
    free = [tuning.prior_precision, tuning.noise_std]
    bounds = np.log([PRIOR_PRECISION_BOUNDS, NOISE_STD_BOUNDS])[free]
    start = np.clip(get_hyperparameters(candidate.objective, tuning), *bounds.T)

    def negative_evidence(theta: np.ndarray) -> float:
        candidate.restore()
        set_hyperparameters(candidate.objective, np.exp(theta), tuning)
        advance(candidate, data, steps)
        evaluated(candidate, data, tuning)
        candidate.remember()
        return -candidate.evidence

    simplex = np.vstack([start, start + np.diag(_SIMPLEX[free])])
    options = {"maxfev": tuning.n_polish, "xatol": 0.03, "fatol": 0.03}
    options["initial_simplex"] = np.clip(simplex, *bounds.T)
    minimize(negative_evidence, start, method="Nelder-Mead", bounds=bounds, options=options)
    candidate.restore()


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
    count = n_observations(model, data)
    spectrum = EvidenceSpectrum.from_model(model, sigma, count, tuning.structure)
    delta, sigma = spectrum.maximise(
        objective.prior_precision,
        sigma,
        prior_precision_bounds=PRIOR_PRECISION_BOUNDS if tuning.prior_precision else None,
        noise_std_bounds=NOISE_STD_BOUNDS if tuning.noise_std else None,
    )
    objective.prior_precision = delta
    if tuning.noise_std and sigma is not None:
        objective.likelihood = gaussian(objective).with_noise_std(sigma)


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


def warn_at_bounds(objective: Objective, tuning: Tuning) -> None:
    """Warn where a chosen hyperparameter ended at an end of its range."""
    found = []
    if tuning.prior_precision:
        found.append(("prior_precision", objective.prior_precision, PRIOR_PRECISION_BOUNDS))
    if tuning.noise_std:
        found.append(("noise_std", gaussian(objective).noise_std, NOISE_STD_BOUNDS))
    for name, value, (low, high) in found:
        if not low * 1.01 < value < high / 1.01:
            warnings.warn(
                f"{name} chosen by the evidence is {value:.3g}, an end of its range "
                f"[{low:g}, {high:g}]: the targets hold no noise, no signal, or too little data. "
                f"Set {name} to a number if that is not what you expect.",
                ConvergenceWarning,
                stacklevel=5,
            )


def get_hyperparameters(objective: Objective, tuning: Tuning) -> np.ndarray:
    """log of the free ones of (δ, σ)."""
    values = []
    if tuning.prior_precision:
        values.append(objective.prior_precision)
    if tuning.noise_std:
        values.append(gaussian(objective).noise_std)
    return np.log(values)


def set_hyperparameters(objective: Objective, values: Iterable[float], tuning: Tuning) -> None:
    """Put values into the free ones of (δ, σ)."""
    remaining = iter(values)
    if tuning.prior_precision:
        objective.prior_precision = float(next(remaining))
    if tuning.noise_std:
        objective.likelihood = gaussian(objective).with_noise_std(float(next(remaining)))

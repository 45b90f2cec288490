"""The walk of a fit without the estimator: restarts, training, best evidence (MATH 1, 3, 8)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from numpy.linalg import LinAlgError
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from torch import Tensor, nn

from .._utils.random import seeded
from .._utils.threads import few_threads
from ..evidence.prior_groups import choose_groups
from ..evidence.search import (
    Candidate,
    EvidenceUpdates,
    Tuning,
    evaluated,
    linear_model,
    maximise_at_fixed_weights,
    posterior_at,
    starting_point,
    tune,
    warn_at_bounds,
)
from ..optim import GaussNewton
from ..posterior import Posterior
from ..training.first_order import Objective, SolverSettings, TrainingData, default_net, train
from ..training.source import NetworkSource, check_outputs, check_trainable, module_dtype

__all__ = ["FittedNetwork", "fit_network"]

# Starts where the evidence chooses and Gauss-Newton trains (most are dropped after a few steps):
# more for small problems, whose evidence has many optima and whose steps cost next to nothing.
_STAGED_RESTARTS, _STAGED_RESTARTS_SMALL = 6, 24
_SMALL = 10_000


@dataclass(frozen=True)
class FittedNetwork:
    """A trained network as a Gaussian process.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode.
    net : NeuralNet or None
        What trained it; None for a frozen network.
    objective : Objective
        With the δ and the likelihood of the end.
    posterior : Posterior
    gradient : Tensor of shape (n_params,)
        ∇loss over all examples, with respect to the posterior's weights.
    loss_curve : list of float
    n_iter : int
    """

    module: nn.Module
    net: NeuralNet | None
    objective: Objective
    posterior: Posterior
    gradient: Tensor
    loss_curve: list[float]
    n_iter: int


def fit_network(
    source: NetworkSource,
    data: TrainingData,
    objective: Objective,
    tuning: Tuning,
    settings: SolverSettings,
    n_restarts: int | str,
    seed: int,
    previous: NeuralNet | None = None,
    prior_groups: str = "all",
) -> FittedNetwork:
    """Train from one or several starts and keep the network of the best evidence.

    Parameters
    ----------
    source : NetworkSource
    data : TrainingData
        In float64, on the CPU; cast to the network's precision and device here.
    objective : Objective
        With the δ and σ to begin with, or to keep where ``tuning`` frees nothing.
    tuning : Tuning
    settings : SolverSettings
    n_restarts : int or "auto"
    seed : int
    previous : NeuralNet, optional
        A trained net to go on with (``warm_start``).
    prior_groups : {"all", "layer", "feature"}
        Which weights share a δ; others than "all" for the default network, Gauss-Newton and a free
        δ.

    Returns
    -------
    FittedNetwork

    Raises
    ------
    ConvergenceError
        If training diverged.
    MemoryError
        If a matrix does not fit the memory limit.
    ValueError
        If the network does not fit the data.
    """
    if source.is_frozen:
        return _frozen(source, data, objective, tuning, settings)
    n_params = source.count_params(data.X)
    rows = len(data) * source.n_outputs
    with few_threads(2.0 * n_params * rows * min(n_params, rows)):
        best, own = _searched(source, data, objective, tuning, settings, n_restarts, seed, previous)
        if prior_groups != "all":
            with seeded(seed, settings.device):
                best = choose_groups(
                    best,
                    own,
                    tuning,
                    prior_groups == "feature",
                    lambda module, changed: default_net(module, own, changed, settings),
                )
        warn_at_bounds(best.objective, tuning)
        return _finished(best, own, tuning)


def _searched(
    source: NetworkSource,
    data: TrainingData,
    objective: Objective,
    tuning: Tuning,
    settings: SolverSettings,
    n_restarts: int | str,
    seed: int,
    previous: NeuralNet | None,
) -> tuple[Candidate, TrainingData]:
    """The best of the restarts, and the data in its precision.

    The restarts are staged where the evidence chooses and Gauss-Newton trains.
    """
    gauss_newton = settings.solver == "gauss-newton" and not source.brings_own_net
    staged = tuning.is_needed and gauss_newton
    if previous is not None:
        n_starts = 1
    elif n_restarts == "auto":
        n_starts = _automatic_restarts(source, data) if staged else 1
    else:
        n_starts = int(n_restarts)
    candidates = []
    for restart in range(n_starts):
        fresh = starting_point(restart, tuning, objective)
        start = fresh if staged and previous is None else objective.copy()
        with seeded((seed + restart) % 2**31, settings.device):
            candidate, own = _start(source, data, start, settings, restart, previous)
            if not staged:
                _train(candidate, own, tuning)
        candidates.append(candidate)
    if staged:
        with seeded(seed, settings.device):  # data loaders draw from the global generator
            best = tune(candidates, own, tuning)
    else:
        best = max(candidates, key=lambda c: c.evidence)
    return best, own


def _automatic_restarts(source: NetworkSource, data: TrainingData) -> int:
    n_rows = float(data.sample_weight.sum()) * source.n_outputs
    small = source.count_params(data.X) * n_rows <= _SMALL
    return _STAGED_RESTARTS_SMALL if small else _STAGED_RESTARTS


def _start(
    source: NetworkSource,
    data: TrainingData,
    objective: Objective,
    settings: SolverSettings,
    restart: int,
    previous: NeuralNet | None,
) -> tuple[Candidate, TrainingData]:
    """A network that is ready to train, and the data in its precision."""
    if previous is not None:
        module, net = previous.module_, previous if source.brings_own_net else None
    else:
        module, net = source.start(data.X, restart)
    check_trainable(module)
    device = settings.device if net is None else net.device
    own = data.astype(module_dtype(module)).to(device)
    check_outputs(module.to(device), own.X, source.n_outputs)
    if net is None:
        net = default_net(module, own, objective, settings)
    return Candidate(net, objective), own


def _train(candidate: Candidate, data: TrainingData, tuning: Tuning) -> None:
    """Train to the end, δ and σ updated every few epochs where they are free."""
    updates = [EvidenceUpdates(data, candidate.objective, tuning)] if tuning.is_needed else []
    candidate.losses += train(candidate.net, data, candidate.objective, updates)
    if tuning.is_needed:
        maximise_at_fixed_weights(candidate.net.module_, data, candidate.objective, tuning)
    evaluated(candidate, data, tuning)


def _frozen(
    source: NetworkSource,
    data: TrainingData,
    objective: Objective,
    tuning: Tuning,
    settings: SolverSettings,
) -> FittedNetwork:
    """Take the network as trained; the evidence may choose δ and σ at its weights."""
    module = source.frozen_module().to(settings.device).eval()
    own = data.astype(module_dtype(module)).to(settings.device)
    check_outputs(module, own.X, source.n_outputs)
    if tuning.is_needed:
        maximise_at_fixed_weights(module, own, objective, tuning)
    posterior = posterior_at(module, own, objective, tuning)
    gradient = _gradient(posterior, own, objective, tuning)
    return FittedNetwork(module, None, objective, posterior, gradient, [], 0)


def _finished(best: Candidate, data: TrainingData, tuning: Tuning) -> FittedNetwork:
    """Take the winner out of the search.

    Raises
    ------
    numpy.linalg.LinAlgError
        If not even the winner has a posterior.
    """
    net, optimizer = best.net, best.net.optimizer_
    module = net.module_.eval()
    if best.posterior is None:
        raise LinAlgError(
            "The posterior precision of the trained network is not positive definite. Standardise "
            "X, or raise prior_precision or noise_std."
        )
    _warn_of_training(best)
    n_iter = int(getattr(optimizer, "n_iter", len(net.history)))
    for p in module.parameters():
        p.grad = None
    gradient = _gradient(best.posterior, data, best.objective, tuning)
    return FittedNetwork(module, net, best.objective, best.posterior, gradient, best.losses, n_iter)


def _gradient(
    posterior: Posterior, data: TrainingData, objective: Objective, tuning: Tuning
) -> Tensor:
    """∇loss over all the data, whatever part of it the posterior is of."""
    if tuning.rows is None:
        return posterior.model.gradient
    return linear_model(posterior.model.linearization, data, objective).gradient


def _warn_of_training(candidate: Candidate) -> None:
    """Say it where training did not end at a minimum, or made the loss worse."""
    optimizer, losses = candidate.net.optimizer_, candidate.losses
    if not getattr(optimizer, "converged", True):
        warnings.warn(
            f"Gauss-Newton stopped at max_iter with gradient norm {optimizer.gradient_norm:.1e}. "
            "The network is not at a minimum of the loss; raise max_iter or tol.",
            ConvergenceWarning,
            stacklevel=5,
        )
    elif not isinstance(optimizer, GaussNewton) and len(losses) > 1 and losses[-1] > losses[0]:
        warnings.warn(
            f"Training ended with a higher loss ({losses[-1]:.3g}) than it began with "
            f"({losses[0]:.3g}). Lower learning_rate, or use solver='gauss-newton'.",
            ConvergenceWarning,
            stacklevel=5,
        )

"""From a network and data to the Laplace posterior: training, choice of δ and σ (math-laplace).

Three ways, by what the network is and how it is trained:

    frozen          used as trained; the evidence may choose δ and σ at its weights
    first order     minibatches by skorch, δ and σ updated every few epochs
    second order    a search over θ, each point a minimum of the whole objective (``evidence``)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from .._utils.checkpoint import Checkpoint
from .._utils.copies import copied
from .._utils.memory import limit_in_bytes
from .._utils.progress import Progress
from .._utils.random import seeded
from .._utils.threads import few_threads
from .._utils.warn import warn
from ..evidence.bounds import (
    log_marginal_likelihood_bounds,
    warn_of_starts,
    warn_of_undecided,
)
from ..evidence.freedom import NOISE_STD_BOUNDS, PRIOR_PRECISION_BOUNDS, Freedom
from ..evidence.groups import choose_groups, weight_groups
from ..evidence.minima import MANY, Minima
from ..evidence.noise import awake, choose_noise_head, head_group, noise_head
from ..evidence.search import Found, fixed, search, search_each
from ..evidence.spectrum import log_marginal_likelihood
from ..evidence.updates import EvidenceUpdates, maximise_at_fixed_weights
from ..exceptions import ConvergenceError
from ..likelihoods import Gaussian, Likelihood
from ..linear_model import LinearModel
from ..linearize import Linearization
from ..posterior import Full, Posterior, PosteriorSpecification
from ..training.first_order import BatchLoss, KeptEpochs, ToldEpochs, default_net, train
from ..training.objective import Objective, Point, TrainingData, part_of
from ..training.second_order import minimise
from ..training.solvers import LBFGS, FirstOrder, FullBatch, GaussNewtonLM, automatic_solver
from ..training.source import (
    NetworkSource,
    check_outputs,
    check_trainable,
    module_dtype,
    of_first_half,
)
from .result import Result
from .watched import WatchedMinima

__all__ = ["Task", "by_gradients", "fit_laplace"]

logger = logging.getLogger("sk_dnn2gp")

# Operations that the starts of a search may take together, and the most starts.
_OPERATIONS, _MOST_STARTS = 1.6e10, 4
# What a start costs, in factors and in passes.
_FACTORS, _PASSES = 12, 400


@dataclass(frozen=True)
class Task:
    """What a fit is asked to do.

    σ (in ``likelihood``) and δ are to keep, or to begin with where ``freedom`` lets the evidence
    choose them.
    """

    source: NetworkSource
    data: TrainingData  # y in float64, on the CPU; cast to the network's precision and device here
    likelihood: Likelihood
    prior_precision: float
    freedom: Freedom
    specification: PosteriorSpecification
    solver: Any  # a FullBatch, a FirstOrder, or None for "auto"
    n_restarts: int | str
    seed: int
    device: Any = "cpu"
    previous: nn.Module | None = None  # a trained network to go on with (``warm_start``)
    groups: Any = "all"  # which weights share a δ
    feature_names: Sequence[str] = ()  # for groups by feature
    encode: Any = None  # what takes targets of a user's own validation set to those of ``data``
    progress: Progress = field(default_factory=Progress)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    keep: bool = False  # every start, and not the best one alone
    conditional: bool = False  # whether the conditional evidence chooses

    @property
    def rows(self) -> Tensor | None:
        """Rows that the posterior is conditioned on; None for all."""
        chosen = self.specification.rows(len(self.data), self.seed)
        return None if chosen is None else torch.tensor(chosen)


def fit_laplace(task: Task) -> list[Result]:
    """Train, choose δ and σ where they are free, and take the Laplace posterior.

    The best start's, or with ``task.keep`` that of each start, the best first. ConvergenceError if
    training diverged, MemoryError if a matrix does not fit, ValueError if the network does not fit
    the data, or the arguments each other.
    """
    results = _fitted(task)
    if task.freedom.prior_precision:
        warn_of_undecided(results[0].posterior)
    return results


def _fitted(task: Task) -> list[Result]:
    """The best start's result, or every start's, the best first."""
    if task.source.is_frozen:
        return [_frozen(task)]
    solver = task.solver
    with seeded(task.seed, task.device):
        module, net = _start(task, 0)
    own = _own_data(task, module, task.device if net is None else net.device)
    check_outputs(module, own.X, task.source.n_outputs, task.likelihood.outputs_per_target)
    n_params = sum(p.numel() for p in module.parameters() if p.requires_grad)
    n_rows = own.total_weight * task.source.n_outputs
    if net is None and solver is None:
        size = min(n_rows, n_params)
        fits = 24.0 * size**2 <= limit_in_bytes(None)
        solver = automatic_solver(n_rows, n_params, 6.0 * n_rows * n_params, fits)
    if task.conditional and isinstance(solver, FirstOrder):
        raise ValueError(
            "Laplace(criterion='conditional') needs a solver that sees all examples, and 'auto' "
            "takes minibatches for so many: give solver='lbfgs', or take criterion='evidence'."
        )
    with few_threads(n_rows * n_params * min(n_params, n_rows)):
        if net is not None or isinstance(solver, FirstOrder):
            return _first_order(task, own, solver)
        return _second_order(task, own, solver, module)


def by_gradients(task: Task, result: Result) -> Result:
    """The same with Σ ∇ℓ ∇ℓᵀ in the place of ΦᵀΦ: weights, δ, σ and evidence stay as they are."""
    data = task.data.to(result.model.X.device).take(task.rows)
    model = result.model.with_gradients(data.sample_weight)
    return replace(result, posterior=task.specification.build(model))


def _own_data(task: Task, module: nn.Module, device: Any) -> TrainingData:
    return task.data.astype(module_dtype(module)).to(device)


def _exact_data(task: Task, own: TrainingData) -> TrainingData:
    """In float64, targets and weights not rounded to the network's precision."""
    return task.data.to(own.X.device)


def _start(task: Task, restart: int) -> tuple[nn.Module, Any]:
    """A network that is ready to train, and its skorch net where the user brought one."""
    if task.previous is not None:
        module = copied(task.previous)
        net: Any = None
        if task.source.brings_own_net:
            _, net = task.source.start(task.data.X, restart)
            net.module_.load_state_dict(module.state_dict())
            module = net.module_
    else:
        module, net = task.source.start(task.data.X, restart)
    check_trainable(module)
    return module.to(task.device if net is None else net.device), net


# ------------------------------------------------------------------------------ second order


def _second_order(
    task: Task, own: TrainingData, solver: FullBatch, module: nn.Module
) -> list[Result]:
    """A search over θ, or minima where δ and σ are given; the module is the first start."""
    linearization = _float64(module, own.X, solver)
    ones = torch.ones(linearization.n_params, dtype=torch.float64, device=own.X.device)
    data = _exact_data(task, own)
    objective = Objective(linearization, data, task.likelihood, task.prior_precision * ones)
    starts = _starts(task, module, _n_starts(task, linearization, data))
    if task.freedom.is_any:
        ends = _searched(task, solver, objective, starts, module)
        for found, _, _ in ends:
            _warn_at_bounds(found.objective, task.freedom)
    else:
        minima = _minima(task, solver, objective, task.freedom)
        trained = fixed(minima, _smooth(starts, minima, solver, module))
        ends = [(found, *weight_groups(linearization, "all", ())) for found in trained]
    ends = ends if task.keep else ends[:1]
    for found, _, _ in ends:
        _warn_of_minimum(found, solver)
    modules = [copied(module) for _ in ends[1:]] + [module]
    name = type(solver).__name__
    return [_result_of(task, own, m, *end, name) for m, end in zip(modules, ends, strict=True)]


def _minima(task: Task, solver: FullBatch, objective: Objective, freedom: Freedom) -> Minima:
    return WatchedMinima(
        objective,
        freedom,
        task.specification,
        _factorise(solver),
        task.rows,
        solver.tol,
        solver.max_iter,
        damped=isinstance(solver, GaussNewtonLM),
        conditional=task.conditional,
        progress=task.progress,
        checkpoint=task.checkpoint,
    )


# What a search ends with, and names and index of the groups of weights that have a δ each.
_End = tuple[Found, list[str], Tensor]


def _searched(
    task: Task,
    solver: FullBatch,
    objective: Objective,
    starts: Iterator[Tensor],
    module: nn.Module,
) -> list[_End]:
    """The best δ and σ; of every start where all are kept, the best first."""
    groups = weight_groups(objective.linearization, task.groups, task.feature_names)
    head, sought, freedom = None, objective, task.freedom
    if task.likelihood.outputs_per_target > 1:
        n_targets = objective.data.y.shape[1]
        head = noise_head(objective.linearization, objective.data.X, n_targets)
        head = head if bool(head.any()) else None
    if head is not None:
        sought, freedom = _constant(objective, solver, module), Freedom(True, True)
        groups = head_group(*groups, head)

    def minima() -> Minima:
        return _minima(task, solver, sought, freedom)

    own = minima()
    found = search_each(minima, starts) if task.keep else [search(own, starts)]
    ends = []
    for start in found:
        if task.keep or head is not None:
            own = _minima(task, solver, objective, task.freedom)
        ends.append((_grouped(task, own, start, *groups, head), *groups))
    return sorted(ends, key=lambda end: -end[0].evidence)


def _grouped(
    task: Task, minima: Minima, start: Found, names: list[str], index: Tensor, head: Tensor | None
) -> Found:
    """From one δ to one for each group, and for the noise's head."""
    if head is not None:
        with task.progress.stage("noise that varies") as stage:
            found = choose_noise_head(minima, start, head, index, len(names))
            stage.evidence = found.evidence
        return found
    if len(names) == 1:
        return start
    with task.progress.stage("prior of each group") as stage:
        found = choose_groups(minima, start, index, len(names))
        stage.evidence = found.evidence
    return found


def _constant(objective: Objective, solver: FullBatch, module: nn.Module) -> Objective:
    """Of the means alone, under constant noise."""
    data = objective.data
    means = _float64(of_first_half(module, data.y.shape[1]), data.X, solver)
    return replace(objective, linearization=means, likelihood=Gaussian())


def _smooth(
    starts: Iterator[Tensor], minima: Minima, solver: FullBatch, module: nn.Module
) -> Iterator[Tensor]:
    """Starts; of a varying noise, minima under constant noise of the spread of the targets."""
    objective = minima.objective
    if objective.likelihood.outputs_per_target == 1:
        yield from starts
        return
    head = noise_head(objective.linearization, objective.data.X, objective.data.y.shape[1])
    constant = _constant(objective, solver, module)
    for w in starts:
        smooth = minimise(constant.at(w), minima.factorise, None, solver.tol, solver.max_iter)
        yield awake(objective, smooth.point.w, head)


def _float64(module: nn.Module, X: Tensor, solver: FullBatch) -> Linearization:
    """A module's linearisation at its weights: it moves with no module."""
    linearization = Linearization(module, dtype=torch.float64, memory_limit=solver.memory_limit)
    fixed = linearization.at(linearization.weights())
    fixed.outputs(X[:1])
    return fixed


def _starts(task: Task, module: nn.Module, n_starts: int) -> Iterator[Tensor]:
    """Untrained weights, one start after the other."""
    yield Linearization(module).weights()
    for restart in range(1, n_starts):
        if task.progress.stopped:
            return
        with seeded((task.seed + restart) % 2**31, task.device):
            other, _ = _start(task, restart)
        yield Linearization(other).weights()


def _n_starts(task: Task, linearization: Linearization, data: TrainingData) -> int:
    """As many starts as the data's size allows, or as asked for."""
    if task.previous is not None:
        return 1
    if task.n_restarts != "auto":
        return int(task.n_restarts)
    if not (task.freedom.is_any and task.source.draws_weights):
        return 1
    tried = min(data.total_weight, 2 * MANY)
    n_rows, P = tried * task.source.n_outputs, linearization.n_params
    size = min(n_rows, P)
    operations = _FACTORS * (n_rows * P * size / 2 + size**3 / 3) + _PASSES * 6 * n_rows * P
    return int(min(_MOST_STARTS, max(1, _OPERATIONS // operations)))


def _factorise(solver: FullBatch) -> Any:
    """Point -> the posterior there as a preconditioner; None where no factor fits."""
    exact = Full(solver.memory_limit)

    def factorise(point: Point) -> Posterior:
        return exact.build(point.curvature.objective.linear_model(point.w))

    return (lambda point: None) if isinstance(solver, LBFGS) else factorise


def _result_of(
    task: Task,
    own: TrainingData,
    module: nn.Module,
    found: Found,
    names: Sequence[str],
    index: Tensor,
    solver: str,
) -> Result:
    """Put the weights into the module, and take everything at what it then holds."""
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in trained.values()]
    with torch.no_grad():
        for p, piece in zip(trained.values(), found.w.split(sizes), strict=True):
            p.copy_(piece.view_as(p))
    module.eval()
    precisions = {
        name: float(found.objective.prior_precision[index == k][0]) for k, name in enumerate(names)
    }
    exact = module_dtype(module) == torch.float64
    result = Result(
        module=module,
        net=None,
        likelihood=found.objective.likelihood,
        prior_precision=float(found.objective.prior_precision[index == len(names) - 1][0]),
        prior_precisions=precisions,
        model=found.posterior.model,
        posterior=found.posterior,
        evidence=found.evidence,
        gradient=found.gradient,
        converged=found.converged,
        solver=solver,
        loss_curve=found.losses,
        n_iter=found.n_iter,
        posterior_indices=None if task.rows is None else task.rows.numpy(),
    )
    if exact:
        return result
    # Weights in single precision are others than those that were found.
    delta = found.objective.prior_precision
    return _at_module(task, own, module, result, delta)


def _at_module(
    task: Task, own: TrainingData, module: nn.Module, result: Result, delta: Tensor | float
) -> Result:
    """The same with model, posterior, evidence and gradient at the module's own weights."""
    whole = Linearization(module, dtype=torch.float64)
    whole.outputs(own.X[:1])
    parts = Linearization(module, parameters=task.specification.parameters, dtype=torch.float64)
    parts.outputs(own.X[:1])
    delta = torch.as_tensor(delta, dtype=torch.float64, device=own.X.device)
    delta = delta.expand(whole.n_params)
    chosen = part_of(whole, parts, delta)
    data = _exact_data(task, own)
    model = _model(parts, data, result.likelihood, chosen)
    gradient = model.gradient
    if not bool(torch.isfinite(gradient).all()):
        raise ConvergenceError(
            "Training diverged: the gradient at its end is not finite. Lower learning_rate, "
            "standardise X, or use solver='newton-cg', whose loss never increases."
        )
    if task.rows is not None:
        model = _model(parts, data.take(task.rows), result.likelihood, chosen)
    posterior = task.specification.build(model)
    return replace(
        result,
        model=model,
        posterior=posterior,
        gradient=gradient,
        evidence=log_marginal_likelihood(posterior),
    )


def _model(
    linearization: Linearization, data: TrainingData, likelihood: Likelihood, delta: Tensor
) -> LinearModel:
    frozen = linearization.at(linearization.weights())
    return LinearModel.from_laplace(frozen, data.X, data.y, likelihood, delta, data.sample_weight)


# ------------------------------------------------------------------------------- first order


def _first_order(task: Task, own: TrainingData, solver: FirstOrder | None) -> list[Result]:
    """The restarts, each trained by skorch, the best first; without ``keep``, that one alone."""
    n_starts = 1 if task.n_restarts == "auto" or task.previous is not None else task.n_restarts
    results: list[Result] = []
    for restart in range(int(n_starts)):
        if results and task.progress.stopped:
            break
        with seeded((task.seed + restart) % 2**31, task.device):
            module, net = _start(task, restart)
            if net is None:
                assert solver is not None
                net = default_net(module, len(own), solver, task.likelihood, task.device)
            results.append(_trained(task, own, net, solver, f"start {restart + 1}"))
            results.sort(key=lambda result: -result.evidence)
    warn_of_starts([log_marginal_likelihood_bounds(result.posterior) for result in results])
    return results if task.keep else results[:1]


def _trained(
    task: Task, own: TrainingData, net: Any, solver: FirstOrder | None, name: str
) -> Result:
    loss = BatchLoss(task.likelihood, task.prior_precision, len(own), encode=task.encode)
    interval = 20 if solver is None else solver.evidence_interval
    updates: list[Any] = []
    if task.freedom.is_any:
        updates = [
            EvidenceUpdates(own, loss, task.freedom, task.specification, task.rows, interval)
        ]
    with task.progress.stage(name, net.max_epochs) as stage:
        told = [*updates, ToldEpochs(stage), KeptEpochs(task.checkpoint, name, loss)]
        losses = train(net, own, loss, told)
        module = net.module_.eval()
        for p in module.parameters():
            p.grad = None
        optimizer = type(net.optimizer_).__name__
        result = _at_trained_weights(task, own, module, net, loss, losses, optimizer)
        stage.evidence = result.evidence
    if len(losses) > 1 and losses[-1] > losses[0]:
        warn(
            f"Training ended with a higher loss ({losses[-1]:.3g}) than it began with "
            f"({losses[0]:.3g}). Lower learning_rate, or use solver='newton-cg'.",
            ConvergenceWarning,
        )
    return result


def _at_trained_weights(
    task: Task,
    own: TrainingData,
    module: nn.Module,
    net: Any,
    loss: BatchLoss,
    losses: list[float],
    solver: str,
) -> Result:
    """The best δ and σ where they are free, and the posterior, at the weights as they are."""
    likelihood, delta = loss.likelihood, loss.prior_precision
    if task.freedom.is_any:
        delta, likelihood = maximise_at_fixed_weights(
            module,
            _exact_data(task, own),
            likelihood,
            delta,
            task.freedom,
            task.specification,
            task.rows,
        )
    empty: Any = None
    result = Result(
        module=module,
        net=net,
        likelihood=likelihood,
        prior_precision=float(delta),
        prior_precisions={"all": float(delta)},
        model=empty,
        posterior=empty,
        evidence=math.nan,
        gradient=empty,
        converged=False,
        solver=solver,
        loss_curve=losses,
        n_iter=len(losses),
        posterior_indices=None if task.rows is None else task.rows.numpy(),
    )
    return _at_module(task, own, module, result, float(delta))


def _frozen(task: Task) -> Result:
    """Take the network as trained; the evidence may choose δ and σ at its weights."""
    module = task.source.frozen_module().to(task.device).eval()
    own = _own_data(task, module, task.device)
    check_outputs(module, own.X, task.source.n_outputs, task.likelihood.outputs_per_target)
    loss = BatchLoss(task.likelihood, task.prior_precision, len(own))
    net = task.source.net.estimator
    with task.progress.stage("posterior of the frozen network") as stage:
        result = _at_trained_weights(task, own, module, net, loss, [], "frozen")
        stage.evidence = result.evidence
    return result


# ----------------------------------------------------------------------------------- warnings


def _warn_of_minimum(found: Found, solver: FullBatch) -> None:
    if found.converged:
        return
    norm = float(found.gradient.norm())
    warn(
        f"Training stopped with gradient norm {norm:.1e}: the network is not at a minimum of the "
        f"loss to tol={solver.tol:g}. Raise max_iter ({solver.max_iter}) or tol of the solver; "
        "where the activation has kinks (relu), no step may lower the loss any more.",
        ConvergenceWarning,
    )


def _warn_at_bounds(objective: Objective, freedom: Freedom) -> None:
    """Warn where a chosen hyperparameter ended at an end of its range."""
    found = []
    if freedom.prior_precision:
        value = float(np.median(objective.prior_precision.cpu().numpy()))
        found.append(("prior_precision", value, PRIOR_PRECISION_BOUNDS))
    if freedom.noise_std and isinstance(objective.likelihood, Gaussian):
        found.append(("noise_std", objective.likelihood.noise_std, NOISE_STD_BOUNDS))
    for name, value, (low, high) in found:
        if not low * 1.01 < value < high / 1.01:
            warn(
                f"{name} chosen by the evidence is {value:.3g}, an end of its range "
                f"[{low:g}, {high:g}]: the targets hold no noise, no signal, or too little data. "
                f"Set {name} to a number if that is not what you expect.",
                ConvergenceWarning,
            )

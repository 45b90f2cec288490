"""Training to the MAP objective, through skorch: the only loop of the house (MATH 1 and 8).

    loss(w) = Σ_i s_i ℓ(y_i, f_w(x_i)) + δ/2 ‖w‖²

Every optimiser sees loss(w)/N, estimated on a batch as  mean_b(s ℓ) + δ/(2N) ‖w‖², so a learning
rate means the same whatever N is. Only skorch's ``get_loss`` is replaced, on the one net that is
trained; optimiser, batch size, callbacks, schedule and device are the net's own.

With ``"auto"`` hyperparameters the evidence hands the objective new δ and σ between epochs, as
plain numbers (MATH 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochTimer, LRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..exceptions import ConvergenceError
from ..likelihoods import Likelihood
from ..optim import GaussNewton

__all__ = ["Objective", "SolverSettings", "TrainingData", "default_net", "train"]


_COLLATE = "iterator_train__collate_fn"


@dataclass(frozen=True)
class TrainingData(torch.utils.data.Dataset):
    """Inputs, targets and weights of the examples, each on axis 0, as skorch's data set.

    An item is ``(x, (y, s))``.
    """

    X: Tensor
    y: Tensor
    sample_weight: Tensor

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, i: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.X[i], (self.y[i], self.sample_weight[i])

    def astype(self, dtype: torch.dtype) -> TrainingData:
        """Cast what is floating-point to ``dtype``; class labels and token indices stay."""
        return type(self)(*(t.to(dtype) if t.is_floating_point() else t for t in self._parts()))

    def to(self, device: str | torch.device) -> TrainingData:
        """Move to a device."""
        return type(self)(*(t.to(device) for t in self._parts()))

    def take(self, rows: Tensor | None) -> TrainingData:
        """The chosen examples; all of them for None."""
        if rows is None:
            return self
        return type(self)(*(t[rows.to(t.device)] for t in self._parts()))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.X, self.y, self.sample_weight


class _WholeBatches(TrainingData):
    """The same, handing whole batches to a loader whose collate function is :func:`as_is`."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # A loader that does not shuffle asks for everything in order: no copy then.
        if len(indices) == len(self) and indices == list(range(len(self))):
            return self[:]
        return self[torch.as_tensor(indices)]


def as_is(batch: Any) -> Any:
    """Collate function for data that come as batches already."""
    return batch


@dataclass
class Objective:
    """The MAP objective of MATH 1; δ and the likelihood's σ may change between epochs."""

    likelihood: Likelihood
    prior_precision: float
    n_samples: int
    has_prior: bool = True  # False where the optimiser itself adds the prior
    parameters: list[Tensor] = field(repr=False, default_factory=list)

    def __call__(self, f: Tensor, y: Tensor, sample_weight: Tensor) -> Tensor:
        """loss(w)/N on a batch."""
        nll = self.likelihood.negative_log_likelihood(f, y)
        loss = (sample_weight * nll).sum() / len(f)
        return loss + self.penalty() if self.has_prior else loss

    def copy(self) -> Objective:
        """Another objective with the same δ and likelihood, to be changed on its own."""
        return replace(self, parameters=[])

    def penalty(self) -> Tensor:
        """δ/(2N) ‖w‖²."""
        w = torch.cat([p.flatten() for p in self.parameters])
        return (w @ w) * (0.5 * self.prior_precision / self.n_samples)


def train(
    net: NeuralNet,
    data: TrainingData,
    objective: Objective,
    callbacks: Sequence[Callback] = (),
) -> list[float]:
    """Train an initialised skorch net on the MAP objective.

    Parameters
    ----------
    net : NeuralNet
        Initialised; trained in place. Its ``get_loss`` is replaced while this runs.
    data : TrainingData
    objective : Objective
    callbacks : sequence of Callback
        Added to the net's own for this training only.

    Returns
    -------
    list of float
        loss(w) of every epoch; of every step for Gauss-Newton.

    Raises
    ------
    ConvergenceError
        If the loss becomes NaN or infinite.
    """
    objective.parameters = _trainable(net.module_)
    record = LossRecord(len(data))
    own_callbacks = net.callbacks_
    added = [(f"_dnn2gp_{i}", cb.initialize()) for i, cb in enumerate([record, *callbacks])]
    net.callbacks_ = [*own_callbacks, *added]
    if net.iterator_train is DataLoader and net.get_params().get(_COLLATE) is as_is:
        data = _WholeBatches(*data._parts())
    net.get_loss = partial(_map_loss, objective)
    try:
        net.partial_fit(data, None)
    finally:
        del net.get_loss
        net.callbacks_ = own_callbacks
    # An optimiser that makes several steps a call keeps their losses itself.
    return getattr(net.optimizer_, "losses", record.losses)


def _trainable(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def _map_loss(
    objective: Objective, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
) -> Tensor:
    """Stand in for ``NeuralNet.get_loss``: the loss of a batch under the MAP objective."""
    y, sample_weight = (part.to(y_pred.device) for part in y_true)
    return objective(y_pred, y, sample_weight)


class LossRecord(Callback):
    """Keeps loss(w) of every epoch, and stops training when it is no longer finite.

    Parameters
    ----------
    n_samples : int
        N, by which the objective was divided.
    """

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples

    def initialize(self) -> LossRecord:
        """Start an empty record."""
        self.losses: list[float] = []
        return self

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        """Append the epoch's mean loss times N.

        Raises
        ------
        ConvergenceError
            If it is NaN or infinite.
        """
        loss = _epoch_loss(net) * self.n_samples
        if not math.isfinite(loss):
            raise ConvergenceError(
                f"Training diverged: the loss is {loss} in epoch {len(net.history)}. Lower "
                "learning_rate, standardise X, or use solver='gauss-newton', whose loss never "
                "increases."
            )
        self.losses.append(loss)


@dataclass(frozen=True)
class SolverSettings:
    """How the default net is trained (the estimators' arguments of the same names)."""

    solver: str | type[torch.optim.Optimizer] = "gauss-newton"
    max_iter: int = 500
    learning_rate: float = 1e-2
    learning_rate_schedule: str = "constant"
    batch_size: int | str = "auto"
    tol: float = 1e-8
    n_iter_no_change: int = 10
    memory_limit: float | None = None
    device: str = "cpu"
    verbose: int = 0


def default_net(
    module: nn.Module, data: TrainingData, objective: Objective, settings: SolverSettings
) -> NeuralNet:
    """Return an initialised skorch net that trains ``module`` with the chosen solver.

    Parameters
    ----------
    module : torch.nn.Module
        Trained in place.
    data : TrainingData
    objective : Objective
        Gauss-Newton takes δ, the likelihood and N from it.
    settings : SolverSettings

    Returns
    -------
    NeuralNet
    """
    optimizer, options, full_batch = _optimizer(module, data, objective, settings)
    automatic = len(data) if full_batch else min(200, len(data))
    given = settings.batch_size != "auto" and optimizer is not GaussNewton
    batch_size = int(settings.batch_size) if given else automatic
    net = NeuralNet(
        module,
        criterion=nn.MSELoss,  # never called: get_loss is the objective's
        optimizer=optimizer,
        lr=settings.learning_rate,
        max_epochs=1 if optimizer is GaussNewton else settings.max_iter,
        batch_size=batch_size,
        iterator_train__shuffle=batch_size < len(data),
        iterator_train__collate_fn=as_is,
        train_split=None,
        callbacks="disable",
        device=settings.device,
        verbose=settings.verbose,
        **{f"optimizer__{name}": value for name, value in options.items()},
    )
    net.initialize()
    net.callbacks_ += [(cb.__class__.__name__, cb.initialize()) for cb in _callbacks(settings)]
    return net


def _optimizer(
    module: nn.Module, data: TrainingData, objective: Objective, settings: SolverSettings
) -> tuple[type[torch.optim.Optimizer], dict[str, Any], bool]:
    """The optimiser class, its options, and whether it wants the whole data at once."""
    solver = settings.solver
    if solver == "gauss-newton":
        options = {
            "lr": 1.0,
            "module": module,
            "likelihood": objective.likelihood,
            "prior_precision": objective.prior_precision,
            "sample_weight": data.sample_weight,
            "loss_scale": float(len(data)),
            "max_iter": settings.max_iter,
            "tol": settings.tol,
            "memory_limit": settings.memory_limit,
            "targets": data.y,
        }
        return GaussNewton, options, True
    if solver == "lbfgs":
        options = {"lr": 1.0, "line_search_fn": "strong_wolfe", "max_iter": 20, "history_size": 20}
        return torch.optim.LBFGS, options, True
    if solver == "adam":
        return torch.optim.Adam, {}, False
    if solver == "sgd":
        return torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, False
    return solver, {}, False  # type: ignore[return-value]


def _callbacks(settings: SolverSettings) -> list[Callback]:
    """Callbacks of the default net: the schedule, the stop on a plateau, and the log."""
    if settings.solver == "gauss-newton":
        return []
    callbacks: list[Callback] = [EpochTimer()]
    if settings.learning_rate_schedule == "cosine":
        callbacks.append(LRScheduler("CosineAnnealingLR", T_max=settings.max_iter))
    elif settings.learning_rate_schedule == "plateau":
        patience = max(1, settings.n_iter_no_change // 2)
        callbacks.append(
            LRScheduler("ReduceLROnPlateau", monitor=_epoch_loss, factor=0.5, patience=patience)
        )
    callbacks.append(Plateau(settings.tol, settings.n_iter_no_change))
    return callbacks


def _epoch_loss(net: NeuralNet) -> float:
    batches = net.history[-1, "batches", :, ("train_loss", "train_batch_size")]
    return sum(loss * size for loss, size in batches) / sum(size for _, size in batches)


class Plateau(Callback):
    """Stops training when the loss no longer falls, as MLPRegressor does.

    Parameters
    ----------
    tol : float
        Least relative decrease that counts.
    patience : int
        Epochs without one before training stops.
    """

    def __init__(self, tol: float, patience: int) -> None:
        self.tol = tol
        self.patience = patience

    def initialize(self) -> Plateau:
        """Forget earlier training."""
        self.best: float | None = None
        self.waited = 0
        return self

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        """Raise KeyboardInterrupt, skorch's own way to stop, on a plateau."""
        loss = _epoch_loss(net)
        if self.best is None or loss < self.best - self.tol * max(1.0, abs(self.best)):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            raise KeyboardInterrupt

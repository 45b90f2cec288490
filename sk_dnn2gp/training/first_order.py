"""Training in minibatches, by skorch: the user's own nets, and the default one (math-objective).

Every optimiser sees loss(w)/N, estimated on a batch as  mean_b(s ℓ) + ½ Σ δ w² / N, so a learning
rate means the same whatever N is. Only skorch's ``get_loss`` is replaced, on the one net that is
trained; optimiser, batch size, callbacks, schedule and device are the net's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet, NeuralNetBinaryClassifier
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, EpochTimer, LRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from .._utils.checkpoint import Checkpoint
from .._utils.copies import copied
from .._utils.interrupts import end_if_asked
from .._utils.progress import Stage
from ..exceptions import ConvergenceError
from ..likelihoods import Gaussian, Likelihood
from .objective import TrainingData
from .solvers import FirstOrder

__all__ = [
    "BatchLoss",
    "KeptEpochs",
    "NegativeLogLikelihood",
    "ToldEpochs",
    "as_is",
    "default_net",
    "shown_as_net",
    "train",
]

_COLLATE = "iterator_train__collate_fn"


def as_is(batch: Any) -> Any:
    """Collate function for data that come as batches already."""
    return batch


class NegativeLogLikelihood(nn.Module):
    """The mean of ℓ over a batch, as a criterion of torch."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        """Mean of ℓ(y, f)."""
        if y.ndim < f.ndim and y.is_floating_point():
            y = y.view(len(f), -1)
        return self.likelihood.negative_log_likelihood(f, y).mean()


@dataclass
class BatchLoss:
    """loss(w)/N of a batch; δ and the likelihood's σ may change between epochs.

    ``has_prior`` is False where the optimiser itself adds it; ``encode`` takes targets of a
    validation set of the user's to those of training; ``parameters``, the trainable
    weights, are set by :func:`train`.
    """

    likelihood: Likelihood
    prior_precision: Any
    n_samples: int
    has_prior: bool = True
    encode: Callable[[Tensor], Tensor] | None = None
    parameters: list[Tensor] = field(repr=False, default_factory=list)

    def __call__(self, f: Tensor, y: Tensor, sample_weight: Tensor) -> Tensor:
        """loss(w)/N on a batch."""
        nll = self.likelihood.negative_log_likelihood(f, y)
        loss = (sample_weight * nll).sum() / len(f)
        return loss + self._penalty() if self.has_prior else loss

    def _penalty(self) -> Tensor:
        """½ Σ δ w² / N."""
        w = torch.cat([p.flatten() for p in self.parameters])
        delta = torch.as_tensor(self.prior_precision).to(w)
        return (delta * w * w).sum() * (0.5 / self.n_samples)


def train(
    net: NeuralNet,
    data: TrainingData,
    objective: BatchLoss,
    callbacks: Sequence[Callback] = (),
) -> list[float]:
    """loss(w) of every epoch of training an initialised skorch net on the MAP objective, in place.

    Its ``get_loss`` is replaced, and ``callbacks`` are added to its own, while this runs.
    ConvergenceError if the loss becomes NaN or infinite.
    """
    objective.parameters = [p for p in net.module_.parameters() if p.requires_grad]
    record = LossRecord(len(data))
    own_callbacks = net.callbacks_
    added = [(f"_dnn2gp_{i}", cb.initialize()) for i, cb in enumerate([record, *callbacks])]
    net.callbacks_ = [*own_callbacks, *added]
    set_: Any = data
    if not (net.iterator_train is DataLoader and net.get_params().get(_COLLATE) is as_is):
        set_ = _OneByOne(data)
    net.get_loss = partial(_map_loss, objective)
    epochs = net.max_epochs - sum(map(_done, callbacks))
    try:
        with _scored_by_targets(own_callbacks):
            net.partial_fit(set_, _targets_of(net, data), epochs=epochs)
    finally:
        del net.get_loss
        net.callbacks_ = own_callbacks
    end_if_asked()  # skorch takes an interrupt for a callback's wish to stop
    if net.get_params().get(_COLLATE) is as_is:  # from here on it takes arrays, one by one
        setattr(net, _COLLATE, default_collate)
    return record.losses


@contextmanager
def _scored_by_targets(callbacks: Sequence[Any]) -> Iterator[None]:
    """Let scores see the targets of a batch, beside which lie the weights."""
    scores = [callback for _, callback in callbacks if isinstance(callback, EpochScoring)]
    before = [callback.target_extractor for callback in scores]
    for callback, extract in zip(scores, before, strict=True):
        callback.target_extractor = partial(_extracted, extract)
    try:
        yield
    finally:
        for callback, extract in zip(scores, before, strict=True):
            callback.target_extractor = extract


def _extracted(extract: Callable[[Any], Any], y: Any) -> Any:
    return extract(y[0] if isinstance(y, tuple | list) else y)


def _targets_of(net: NeuralNet, data: TrainingData) -> Any:
    """What a split by classes needs; None where nothing is split."""
    if net.train_split is None:
        return None
    y = data.y.cpu().numpy()
    return y[:, 0].astype(int) if isinstance(net, NeuralNetBinaryClassifier) else y


def _done(callback: Callback) -> int:
    """Epochs that a checkpoint holds already."""
    return callback.n_epochs if isinstance(callback, KeptEpochs) else 0


class _OneByOne(torch.utils.data.Dataset):
    """Examples one by one, for loaders that collate themselves."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: Any) -> Any:
        return self.data[i]


def _map_loss(
    objective: BatchLoss, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
) -> Tensor:
    """Stand in for ``NeuralNet.get_loss``: the loss of a batch under the MAP objective."""
    if isinstance(y_true, Tensor):  # of a validation set of the user's own
        y_true = y_true if objective.encode is None else objective.encode(y_true)
        y_true = y_true, torch.ones(len(y_true), dtype=y_pred.dtype)
    y, sample_weight = (part.to(y_pred.device) for part in y_true)
    return objective(y_pred, y, sample_weight)


class LossRecord(Callback):
    """Keeps loss(w) of every epoch, and stops training when it is no longer finite."""

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples

    def initialize(self) -> LossRecord:
        """Start an empty record."""
        self.losses: list[float] = []
        return self

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        """Append the epoch's mean loss times N; ConvergenceError if it is NaN or infinite."""
        loss = epoch_loss(net) * self.n_samples
        if not math.isfinite(loss):
            raise ConvergenceError(
                f"Training diverged: the loss is {loss} in epoch {len(net.history)}. Lower "
                "learning_rate, standardise X, or use solver='newton-cg', whose loss never "
                "increases."
            )
        self.losses.append(loss)


class ToldEpochs(Callback):
    """Tells a stage of every epoch, and stops training where it is stopped."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def on_epoch_begin(self, net: NeuralNet, **_: Any) -> None:
        """A step begins."""
        self.stage.begin_step()

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        """A step ends; KeyboardInterrupt is what skorch takes for a wish to stop."""
        if self.stage.end_step():
            raise KeyboardInterrupt


class KeptEpochs(Callback):
    """Keeps the state of training in a checkpoint after every epoch, and begins with the one there.

    ``loss``: the objective, whose δ and σ are part of the state.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, loss: BatchLoss) -> None:
        self.checkpoint, self.name, self.loss = checkpoint, name, loss

    @property
    def n_epochs(self) -> int:
        """Epochs of the state that is there."""
        state = self.checkpoint.states.get(self.name)
        return 0 if state is None else len(state["history"])

    def on_train_begin(self, net: NeuralNet, **_: Any) -> None:
        """Go back to the state: after the other callbacks, which begin anew."""
        state = self.checkpoint.states.get(self.name)
        if state is None:
            return
        net.module_.load_state_dict(state["module"])
        net.optimizer_.load_state_dict(state["optimizer"])
        net.history.extend({"batches": [], **epoch} for epoch in state["history"])
        for (_name, callback), own in zip(net.callbacks_, state["callbacks"], strict=True):
            vars(callback).update({k: v for k, v in own.items() if k != "schedule"})
            if "schedule" in own:
                callback.lr_scheduler_.load_state_dict(own["schedule"])
        self.loss.prior_precision = state["prior_precision"]
        if state["noise_std"] is not None:
            self.loss.likelihood = Gaussian(state["noise_std"])
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])  # noqa: NPY002

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        """Keep the state."""
        if self.checkpoint.path is None:
            return
        history = [{k: v for k, v in epoch.items() if k != "batches"} for epoch in net.history]
        state = {
            "module": dict(net.module_.state_dict()),
            "optimizer": net.optimizer_.state_dict(),
            "history": history,
            "callbacks": [_state_of(callback) for _, callback in net.callbacks_],
            "prior_precision": self.loss.prior_precision,
            "noise_std": self.loss.likelihood.sigma,
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),  # noqa: NPY002
        }
        self.checkpoint.keep_state(self.name, copied(state))


def _state_of(callback: Callback) -> dict[str, Any]:
    """What a callback of the default net remembers: numbers, losses, and its schedule."""
    kinds = (int, float, list)
    own = {name: value for name, value in vars(callback).items() if isinstance(value, kinds)}
    schedule = getattr(callback, "lr_scheduler_", None)
    return own if schedule is None else {**own, "schedule": schedule.state_dict()}


def default_net(
    module: nn.Module,
    n_samples: int,
    solver: FirstOrder,
    likelihood: Likelihood,
    device: Any = "cpu",
) -> NeuralNet:
    """An initialised skorch net that trains ``module``, in place, with the chosen optimiser."""
    optimizer, options = _optimizer(solver.optimizer)
    automatic = min(200, n_samples)
    batch_size = automatic if solver.batch_size == "auto" else int(solver.batch_size)
    net = NeuralNet(
        module,
        criterion=NegativeLogLikelihood,
        criterion__likelihood=likelihood,
        optimizer=optimizer,
        lr=solver.learning_rate,
        max_epochs=solver.max_iter,
        batch_size=batch_size,
        iterator_train__shuffle=batch_size < n_samples,
        iterator_train__collate_fn=as_is,
        train_split=None,
        callbacks="disable",
        device=device,
        verbose=0,
        **{f"optimizer__{name}": value for name, value in options.items()},
    )
    net.initialize()
    net.callbacks_ += [(type(cb).__name__, cb.initialize()) for cb in _callbacks(solver)]
    return net


def shown_as_net(
    module: nn.Module, likelihood: Likelihood, losses: Sequence[float], device: Any = "cpu"
) -> NeuralNet:
    """A fitted skorch net of a module that was trained without skorch.

    Its history holds the loss of every step, its criterion is the likelihood's mean negative
    logarithm; ``partial_fit`` goes on with Adam, without the prior.
    """
    net = NeuralNet(
        module,
        criterion=NegativeLogLikelihood,
        criterion__likelihood=likelihood,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        train_split=None,
        callbacks="disable",
        device=device,
        verbose=0,
    )
    net.initialize()
    for number, loss in enumerate(losses, 1):
        net.history.new_epoch()
        net.history.record("epoch", number)
        net.history.record("train_loss", float(loss))
    return net


def _optimizer(name: Any) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    if name == "adam":
        return torch.optim.Adam, {}
    if name == "sgd":
        return torch.optim.SGD, {"momentum": 0.9, "nesterov": True}
    return name, {}


def _callbacks(solver: FirstOrder) -> list[Callback]:
    """Callbacks of the default net: the schedule, the stop on a plateau, and the clock."""
    callbacks: list[Callback] = [EpochTimer(), _EpochLoss()]
    if solver.learning_rate_schedule == "cosine":
        callbacks.append(LRScheduler("CosineAnnealingLR", T_max=solver.max_iter))
    elif solver.learning_rate_schedule == "plateau":
        patience = max(1, solver.n_iter_no_change // 2)
        callbacks.append(
            LRScheduler("ReduceLROnPlateau", monitor=epoch_loss, factor=0.5, patience=patience)
        )
    callbacks.append(
        EarlyStopping(
            "map_loss",
            patience=solver.n_iter_no_change,
            threshold=solver.tol,
            threshold_mode="abs",
            sink=_silent,
        )
    )
    return callbacks


def _silent(message: str) -> None:
    """Where EarlyStopping's words go; by name, so that the net can be pickled."""


class _EpochLoss(Callback):
    """Records the epoch's loss where EarlyStopping finds it."""

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        for name in ("map_loss", "train_loss"):
            net.history.record(name, epoch_loss(net))


def epoch_loss(net: NeuralNet) -> float:
    """Mean of the epoch's batch losses, by their sizes."""
    batches = net.history[-1, "batches", :, ("train_loss", "train_batch_size")]
    return sum(loss * size for loss, size in batches) / sum(size for _, size in batches)

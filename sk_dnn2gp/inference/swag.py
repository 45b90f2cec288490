"""SWAG: the moments of weights along SGD at a constant rate as q(w) (:ref:`math-swag`).

With w̄ the mean of recorded weights w_1 … w_T, s² their variances, and w_t - w̄_t the deviation of
each of the last m from the mean until then, the columns of D (Maddox et al. 2019, section 3.2),

    q = N(w̄, Σ),    Σ = ½ (diag s² + D Dᵀ/(m - 1)).

SGD at the rate ε, in batches of S rows on loss/N, has about the stationary distribution N(w*, Σ)
with HΣ + ΣH = εC/S, H the Hessian of loss/N and C the covariance of the rows' gradients. Of all
rates ε* = 2SP/(N tr C) brings it nearest to N(w*, (NH)⁻¹) (Mandt, Hoffman, Blei 2017, theorem 1).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from sklearn.utils import gen_batches
from skorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import update_bn
from torch.utils.data import RandomSampler

from .._utils.random import seeded
from ..linear_model import LinearModel
from ..linearize import Linearization
from ..posterior import Diagonal, SWAGPosterior
from ..training.first_order import BatchLoss, ToldEpochs, default_net, train
from ..training.objective import TrainingData
from ..training.solvers import FirstOrder
from ..training.source import module_dtype
from .laplace import Task
from .result import Result
from .specification import SWAG
from .variational import largest_eigenvalue

__all__ = ["Snapshots", "fit_swag", "snapshots_of"]

# Rows in a batch of the automatic size: at most, and as a part of all.
_BATCH, _PART = 128, 8


class Snapshots(Callback):
    """Keeps the moments of a skorch net's weights at the ends of epochs (:ref:`math-swag`).

    For a net of one's own, trained at a constant rate in its later epochs: ``inference="swag"``
    takes q from here.

    Parameters
    ----------
    rank : int, default=20
        The last deviations to keep: as many vectors of all weights.
    start : int, default=1
        The first epoch that counts.

    Attributes
    ----------
    n_snapshots_ : int
    mean_ : Tensor of shape (n_params,), float64
        w̄, of the weights that need a gradient.
    squares_ : Tensor of shape (n_params,), float64
        Σ (w_t - w̄)².
    deviations_ : list of Tensor of shape (n_params,), float64
        Of the last weights from the mean until then.

    Examples
    --------
    >>> import torch
    >>> from skorch import NeuralNetRegressor
    >>> from sk_dnn2gp.inference import Snapshots
    >>> net = NeuralNetRegressor(torch.nn.Linear, module__in_features=1, module__out_features=1,
    ...                          callbacks=[Snapshots(start=6)], max_epochs=10, verbose=0)
    >>> net = net.fit(torch.ones(20, 1), torch.ones(20, 1))
    >>> dict(net.callbacks_)["Snapshots"].n_snapshots_
    5
    """

    def __init__(self, rank: int = 20, start: int = 1) -> None:
        self.rank = rank
        self.start = start

    def initialize(self) -> Snapshots:
        """Begin with none."""
        self.n_snapshots_ = 0
        self.mean_ = self.squares_ = torch.zeros(())
        self.deviations_: list[Tensor] = []
        return self

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Count the weights in, where the epoch is late enough."""
        if len(net.history) < self.start:
            return
        weights = [p.detach().flatten() for p in net.module_.parameters() if p.requires_grad]
        self._count(torch.cat(weights).double())

    def _count(self, w: Tensor) -> None:
        """Welford's steps: no difference of large sums."""
        self.n_snapshots_ += 1
        before = w - self.mean_
        self.mean_ = self.mean_ + before / self.n_snapshots_
        after = w - self.mean_
        self.squares_ = self.squares_ + before * after
        self.deviations_ = [*self.deviations_, after][-self.rank :]


def snapshots_of(net: Any) -> Snapshots | None:
    """What a skorch net's own callback kept of its weights; None where it has none."""
    callbacks = getattr(net, "callbacks_", ())
    return next((one for _, one in callbacks if isinstance(one, Snapshots)), None)


def fit_swag(task: Task, result: Result, settings: SWAG) -> Result:
    """Replace q by the moments of weights; the result's module is moved to their mean, in place.

    ValueError if a batch holds all rows, or fewer than two of the weights were kept;
    ConvergenceError if SGD diverges.
    """
    kept = snapshots_of(result.net)
    data = task.data.to(result.model.X.device)
    own = data.astype(module_dtype(result.module))
    if kept is None:
        kept, losses = _collected(task, result, own, settings)
        result = replace(
            result, net=None, solver="SWAG", loss_curve=losses, n_iter=len(losses), converged=False
        )
    if kept.n_snapshots_ < 2:
        raise ValueError(
            f"inference='swag' needs weights of two epochs at least, and {kept.n_snapshots_} were "
            f"kept: lower start={kept.start} of the net's Snapshots, or raise its max_epochs."
        )
    with seeded(task.seed, task.device):
        _move(result.module, kept.mean_, own)
    model = _model_at(result, data)
    mean_squares = kept.squares_.to(model.weights) / kept.n_snapshots_
    columns = None
    if not isinstance(task.specification, Diagonal):
        columns = torch.stack(kept.deviations_, dim=1).to(model.weights)
    return replace(
        result,
        model=model,
        posterior=SWAGPosterior(model, mean_squares, columns),
        evidence=math.nan,
        gradient=model.gradient,
    )


def _collected(
    task: Task, result: Result, data: TrainingData, settings: SWAG
) -> tuple[Snapshots, list[float]]:
    """Snapshots of plain SGD from the trained weights on, and the loss of each epoch."""
    automatic = max(1, min(_BATCH, len(data) // _PART))
    batch_size = automatic if settings.batch_size == "auto" else int(settings.batch_size)
    if batch_size >= len(data):
        raise ValueError(
            f"SWAG: batch_size={batch_size} holds all {len(data)} rows, so that steps have no "
            "noise and the weights no variance: take fewer, or 'auto'."
        )
    model, rate = result.model, settings.learning_rate
    solver = FirstOrder(
        torch.optim.SGD,
        max_iter=settings.max_iter,
        learning_rate=_rate(model, batch_size) if rate == "auto" else float(rate),
        batch_size=batch_size,
        n_iter_no_change=settings.max_iter,  # no epoch is left out
    )
    kept, device = Snapshots(settings.rank), model.X.device
    loss = BatchLoss(result.likelihood, model.prior_precision, len(data))
    with (
        seeded(task.seed, task.device),
        task.progress.stage("SWAG", settings.max_iter) as stage,
    ):
        net = default_net(result.module, len(data), solver, result.likelihood, device)
        # Drawn for each step alone: the noise of an epoch that takes every row once cancels.
        rows = RandomSampler(range(len(data)), replacement=True)
        net.iterator_train__shuffle, net.iterator_train__sampler = False, rows
        losses = train(net, data, loss, [kept, ToldEpochs(stage)])
    for p in result.module.parameters():
        p.grad = None
    return kept, losses


def _rate(model: LinearModel, batch_size: int) -> float:
    """ε* = 2SP/(N tr C), but at most half of 2/λ_max of the Gauss-Newton matrix of loss/N."""
    assert model.residual is not None
    linearization, X = model.linearization, model.X
    squares = float(linearization.squared_gradients(X, model.residual).sum())  # N tr C
    ones = torch.ones_like(model.weights)
    stable = len(X) / largest_eigenvalue(model, linearization, ones)
    nearest = 2.0 * batch_size * model.n_params
    return stable if nearest >= stable * squares else nearest / squares


def _move(module: torch.nn.Module, mean: Tensor, data: TrainingData) -> None:
    """Put the mean into the module; running statistics of norms are those of the mean weights."""
    trained = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, piece in zip(trained, mean.split([p.numel() for p in trained]), strict=True):
            p.copy_(piece.view_as(p))
    update_bn((data.X[rows] for rows in gen_batches(len(data), _BATCH)), module)
    module.eval()


def _model_at(result: Result, data: TrainingData) -> LinearModel:
    """Theorem 1's linear model at the module's present weights."""
    linearization = Linearization(result.module, dtype=torch.float64)
    linearization.outputs(data.X[:1])
    return LinearModel.from_laplace(
        linearization.at(linearization.weights()),
        data.X,
        data.y,
        result.likelihood,
        result.model.prior_precision,
        data.sample_weight,
    )

"""The MAP objective of one network on one data set, as a function of its weights.

    loss(w) = Σ_i s_i ℓ(y_i, f_w(x_i)) + ½ Σ_p δ_p w_p²          (:ref:`math-objective`)

Weights are arguments: the module that a user sees is never moved while a solver searches.

Shapes: w, gradient, v (n_params,); f (n_samples, n_outputs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .._utils.interrupts import end_if_asked
from .._utils.rows import Streamed
from ..likelihoods import Likelihood
from ..linear_model import LinearModel
from ..linearize import Linearization

__all__ = ["Objective", "Point", "TrainingData", "part_of"]


@dataclass(frozen=True)
class TrainingData(torch.utils.data.Dataset):
    """Inputs, targets and weights of the examples, on axis 0: items ``(x, (y, s))`` for torch."""

    X: Tensor
    y: Tensor
    sample_weight: Tensor

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, i: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.X[i], (self.y[i], self.sample_weight[i])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # A loader that does not shuffle asks for everything in order: no copy then.
        if len(indices) == len(self) and indices == list(range(len(self))):
            return self[:]
        return self[torch.as_tensor(indices)]

    @property
    def total_weight(self) -> float:
        """Σ s: an example of weight s counts s times."""
        return float(self.sample_weight.sum())

    def astype(self, dtype: torch.dtype) -> TrainingData:
        """Cast what is floating-point to ``dtype``; class labels and token indices stay."""
        return type(self)(*(t.to(dtype) if t.is_floating_point() else t for t in self._parts()))

    def to(self, device: str | torch.device) -> TrainingData:
        """Move to a device."""
        return type(self)(*(t.to(device) for t in self._parts()))

    def take(self, rows: Tensor | None) -> TrainingData:
        """The chosen examples; all of them for None. What lies in a file stays there."""
        if rows is None:
            return self
        chosen = (
            t.take(rows) if isinstance(t, Streamed) else t[rows.to(t.device)] for t in self._parts()
        )
        return type(self)(*chosen)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.X, self.y, self.sample_weight


@dataclass(frozen=True)
class Objective:
    """loss(w) of one network on one data set, under one likelihood and prior.

    The linearisation is in float64, of all trainable weights; δ (P,) of each. Where rows are many,
    ``part`` holds some of them, with the weight of all: its curvature stands for theirs.
    """

    linearization: Linearization
    data: TrainingData
    likelihood: Likelihood
    prior_precision: Tensor
    part: TrainingData | None = None

    def under(self, likelihood: Likelihood, prior_precision: Tensor) -> Objective:
        """The same network and data under another likelihood and prior."""
        return replace(self, likelihood=likelihood, prior_precision=prior_precision)

    def of(self, rows: Tensor | None) -> Objective:
        """The same of some of the examples."""
        return self if rows is None else replace(self, data=self.data.take(rows), part=None)

    def with_part(self, rows: Tensor) -> Objective:
        """The same, whose curvature is that of some of the examples."""
        part = self.data.take(rows)
        more = self.data.total_weight / part.total_weight
        return replace(self, part=replace(part, sample_weight=more * part.sample_weight))

    def at(self, w: Tensor) -> Point:
        """The loss at w."""
        return Point(self, w)

    def linear_model(
        self, w: Tensor, rows: Tensor | None = None, parameters: Any = None
    ) -> LinearModel:
        """Theorem 1's linear model at w, of all examples and weights or of some."""
        data, linearization = self.data.take(rows), self.linearization.at(w)
        delta = self.prior_precision
        if parameters is not None:
            whole = linearization
            linearization = Linearization(whole.module, parameters=parameters)
            linearization.outputs(data.X[:1])
            delta = part_of(whole, linearization, delta)
            linearization = linearization.at(linearization.weights())
        return LinearModel.from_laplace(
            linearization, data.X, data.y, self.likelihood, delta, data.sample_weight
        )


def part_of(whole: Linearization, part: Linearization, values: Tensor) -> Tensor:
    """The entries of a vector over all weights of ``whole`` that belong to those of ``part``."""
    sizes = list(whole.parameter_sizes)
    pieces = dict(zip(whole.parameter_names, values.split(sizes), strict=True))
    return torch.cat([pieces[name] for name in part.parameter_names])


@dataclass(frozen=True)
class _DataLoss:
    """Σ s ℓ of the rows of a slice, as a function of their outputs."""

    likelihood: Likelihood
    y: Tensor
    sample_weight: Tensor

    def __call__(self, f: Tensor, part: slice) -> Tensor:
        nll = self.likelihood.negative_log_likelihood(f, self.y[part])
        return self.sample_weight[part] @ nll

    def of(self, part: slice) -> _DataLoss:
        """That of a shard, which holds nothing of the others."""
        return replace(self, y=self.y[part].clone(), sample_weight=self.sample_weight[part].clone())


class Point:
    """loss(w) at one w (P,); its gradient and its Hessian are made when they are asked for."""

    def __init__(self, objective: Objective, w: Tensor) -> None:
        end_if_asked()
        self.objective, self.w = objective, w
        self.linearization = objective.linearization.at(w)
        self._pass = self.linearization.forward(objective.data.X)
        self.outputs = self._pass.outputs.double()
        nll = objective.likelihood.negative_log_likelihood(self.outputs, objective.data.y)
        self.squares = float((objective.prior_precision * w) @ w)
        self.log_likelihood = -float(objective.data.sample_weight.double() @ nll)
        self.loss = 0.5 * self.squares - self.log_likelihood

    @cached_property
    def gradient(self) -> Tensor:
        """∇loss(w) = Jᵀr + δw."""
        objective = self.objective
        r = objective.likelihood.residual(self.outputs, objective.data.y)
        r = r * objective.data.sample_weight[:, None]
        return self._pass.pull(r) + objective.prior_precision * self.w

    def rows(self, C: Tensor) -> Tensor | None:
        """Cᵀ J (n_samples, n_rows, n_params) where the pass that gave the loss keeps them."""
        return self._pass.rows(C)

    @cached_property
    def _data_hessian(self) -> Callable[[Tensor], Tensor]:
        likelihood, data = self.objective.likelihood, self.objective.data
        return self._pass.hessian_products(
            _DataLoss(likelihood, data.y, data.sample_weight.double())
        )

    @cached_property
    def curvature(self) -> Point:
        """The same weights on the part whose curvature stands for all; or this very point."""
        objective = self.objective
        if objective.part is None:
            return self
        return replace(objective, data=objective.part, part=None).at(self.w)

    def hessian_product(self, v: Tensor) -> Tensor:
        """∇²loss(w) v, exactly: not the Gauss-Newton matrix."""
        return self._data_hessian(v) + self.objective.prior_precision * v

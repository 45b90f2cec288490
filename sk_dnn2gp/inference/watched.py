"""A search that tells of its steps, keeps them in a checkpoint, and ends where it is asked to.

``max_iter`` bounds it whole: rough minima may take three quarters of it, and the true ones what is
left then, half of it at most; a prior for each group, or a noise that varies, may take as much
again. Where it is spent, the search goes back to the best that it knows.

A step is a minimum of the loss at one θ. Its record holds what a Trial is made of, posteriors
apart, which are built anew from the weights: with one thread, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .._utils.checkpoint import Checkpoint
from .._utils.progress import Progress
from ..evidence.minima import Minima, Trial
from ..likelihoods import Gaussian
from ..training.minimum import ExactPosterior, Minimum
from ..training.objective import Objective, Point

__all__ = ["WatchedMinima"]

# Steps that one rough minimum may take, and a few more: they are kept back.
_KEPT = 200


class WatchedMinima(Minima):
    """As its base; ``progress`` hears of every step, and ``checkpoint`` keeps it."""

    def __init__(
        self,
        *settings: Any,
        progress: Progress,
        checkpoint: Checkpoint,
        **more: Any,
    ) -> None:
        super().__init__(*settings, **more)
        self.progress, self.checkpoint = progress, checkpoint
        self._make, self.factorise = self.factorise, self._remembered
        # Where factors were made: w, δ and σ.
        self._origins: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()
        # Steps that are left to rough minima, to all, and to groups: of all parts of the data.
        rough = max(1, min(3 * self.max_iter // 4, self.max_iter - _KEPT))
        self._left = {"rough": rough, "all": self.max_iter, "groups": self.max_iter}
        self._purse = "all"
        self._last: Trial | None = None

    def _remembered(self, point: Point) -> ExactPosterior | None:
        factor = self._make(point)
        if factor is not None:
            self._origins[factor] = [point.w, _under(point.objective)]
        return factor

    # ------------------------------------------------------------------------------------- steps

    def first(self, w: Tensor, theta: float) -> Trial:
        trial = self._step(super().first, w, theta)
        self._spend(trial.minimum.n_iter, "rough", "all")
        return trial

    def trained(self, w: Tensor) -> Trial:
        return self._step(super().trained, w)

    def at(self, objective: Objective, before: Trial) -> Trial:
        if self.progress.current.stopped or self._left["groups"] <= 0:
            return replace(before, evidence=-math.inf)
        self._purse, self.left = "groups", min(self.left, self._left["groups"])
        trial = self._step(super().at, objective, before)
        self._spend(_tried(trial, before), "groups")
        return trial

    def moved(self, before: Trial, step: float, exact: bool = False) -> Trial:
        if self.is_spent and not exact:  # no evidence: the search goes back to the best one
            return replace(before, evidence=-math.inf)
        if exact:
            self.left = min(self.left, max(1, self._left[self._purse]))
        trial = self._step(super().moved, before, step, exact)
        trial.guess = before.derivative
        self._spend(_tried(trial, before), *([self._purse] if exact else ["rough", "all"]))
        return trial

    @property
    def is_stopped(self) -> bool:
        return self.progress.current.stopped or self.progress.stopped

    @property
    def is_spent(self) -> bool:
        return self.progress.current.stopped or self._left["rough"] <= 0

    def stage(self, name: str) -> AbstractContextManager[Any]:
        return self.progress.stage(name)

    def _spend(self, steps: int, *purses: str) -> None:
        for purse in purses:
            self._left[purse] -= max(1, steps)

    def _step(self, make: Callable[..., Trial], *given: Any) -> Trial:
        stage, record = self.progress.current, self.checkpoint.recall()
        stage.begin_step()
        if record is None:
            trial = make(*given)
            self.checkpoint.keep(self._recorded(trial))
        else:
            trial = self._recalled(record)
        if trial.posterior is not None:
            self._origins[trial.posterior] = [trial.w, _under(trial.objective)]
        self._last = trial
        if stage.end_step():
            self.left = 1  # of a search for the best θ: what ends it
        return trial

    def derivative(self, trial: Trial) -> Tensor:
        if trial.derivative is None:
            trial.derivative = self.checkpoint.recall()
            if trial.derivative is None:
                self.checkpoint.keep(super().derivative(trial))
        assert trial.derivative is not None
        return trial.derivative

    # ----------------------------------------------------------------------------------- records

    def _recorded(self, trial: Trial) -> dict[str, Any]:
        minimum = trial.minimum
        own = minimum.factor is not trial.posterior or trial.posterior is None
        return {
            "theta": trial.theta,
            "evidence": trial.evidence,
            "w": trial.w,
            "under": _under(trial.objective),
            "found under": _under(minimum.point.objective),
            "factor": self._origin(minimum.factor) if own else "posterior",
            "posterior": trial.posterior is not None,
            "converged": minimum.converged,
            "n_iter": minimum.n_iter,
            "n_rejected": minimum.n_rejected,
            "losses": torch.tensor(minimum.losses, dtype=torch.float64),
            "left": self.left,
        }

    def _origin(self, factor: ExactPosterior | None) -> Any:
        return None if factor is None else self._origins.get(factor)

    def _recalled(self, record: dict[str, Any]) -> Trial:
        objective = self._objective(record["under"])
        posterior = None
        if record["posterior"]:
            posterior = self.specification.build(self.model(objective, record["w"]))
        factor: Any = posterior if record["factor"] == "posterior" else None
        if isinstance(record["factor"], list):
            w, under = record["factor"]
            factor = self.factorise(self._objective(under).at(w))
        point = self._objective(record["found under"]).at(record["w"])
        losses = record["losses"].tolist()
        counts = record["n_iter"], losses, record["n_rejected"]
        minimum = Minimum(point, factor, record["converged"], *counts)
        self.left = record["left"]
        return Trial(record["theta"], minimum, objective, posterior, record["evidence"])

    def _objective(self, under: list[Any]) -> Objective:
        delta, sigma = under
        likelihood = self.objective.likelihood
        return self.objective.under(likelihood if sigma is None else Gaussian(sigma), delta)


def _tried(trial: Trial, before: Trial) -> int:
    """Steps of the one minimum, those of the way to it left out."""
    return trial.minimum.n_tried - before.minimum.n_iter


def _under(objective: Objective) -> list[Any]:
    """δ and σ."""
    return [objective.prior_precision, objective.likelihood.sigma]

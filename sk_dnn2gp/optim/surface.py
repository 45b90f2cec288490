"""The loss at one point of weight space, as Gauss-Newton asks for it.

A point knows its loss at once; its gradient and its curvature cost more and are made when asked
for, at the latest before the weights move on. Two surfaces give points:

    ClosureSurface     from a torch closure, by autograd, whatever the closure does
    RecordedSurface    from the targets: one forward pass gives the loss; its own graph then gives
                       the rows Φ, the gradient Φᵀu + δw and the curvature ΦᵀΦ
                       (:ref:`math-objective`, :ref:`math-likelihoods`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..linearize import Linearization, Recording
from .curvature import FEW, Curvature, check_size, curvature_at, curvature_of

__all__ = ["ClosureSurface", "Point", "RecordedSurface", "flat"]


class Point(Protocol):
    """What a step needs of the loss at the module's present weights."""

    loss: float
    weights: Tensor

    @property
    def gradient(self) -> Tensor:
        """∇loss, of shape (n_params,), float64."""

    def curvature(self) -> Curvature:
        """ΦᵀΦ or ΦΦᵀ."""


class ClosureSurface:
    """The closure as a function of the weights; it remembers X that the module was given.

    Parameters
    ----------
    closure : callable
    linearization : Linearization
        Of the module that the closure calls.
    module : nn.Module
    params : list of Tensor
    loss_scale : float
    factor : callable
        f to L, with the weights of the examples in it.
    memory_limit : float, optional
        MiB for the curvature.
    """

    def __init__(
        self,
        closure: Callable[[], Tensor],
        linearization: Linearization,
        module: nn.Module,
        params: list[Tensor],
        loss_scale: float,
        factor: Callable[[Tensor], Tensor],
        memory_limit: float | None = None,
    ) -> None:
        self.memory_limit = memory_limit
        self.closure, self.module = closure, module
        self.linearization = linearization
        self.params, self.loss_scale, self.factor = params, loss_scale, factor
        self.X: Tensor = torch.empty(0)
        self.outputs: Tensor | None = None

    def __call__(self) -> ClosurePoint:
        """Call the closure.

        Raises
        ------
        ValueError
            If it does not call the module.
        """
        handle = self.module.register_forward_hook(self._remember)
        try:
            with torch.enable_grad():
                raw = self.closure()
        finally:
            handle.remove()
        if self.outputs is None:
            raise ValueError("The closure must call the module given to GaussNewton.")
        gradient = flat([cast(Tensor, p.grad) for p in self.params]) * self.loss_scale
        return ClosurePoint(self, raw, self.outputs, gradient)

    def _remember(self, _: nn.Module, args: tuple, f: Tensor) -> None:
        self.X, self.outputs = args[0], f.detach()


class ClosurePoint:
    """The closure's own loss ``raw``, and the whole loss with its gradient in float64."""

    def __init__(
        self, surface: ClosureSurface, raw: Tensor, outputs: Tensor, gradient: Tensor
    ) -> None:
        self.raw, self.gradient = raw, gradient
        self.loss = float(raw.detach().double()) * surface.loss_scale
        self.weights = flat(surface.params)
        self._surface, self._outputs = surface, outputs

    def curvature(self) -> Curvature:
        """Curvature at the module's present weights, by further passes."""
        surface = self._surface
        L = surface.factor(self._outputs)
        return curvature_at(surface.linearization, surface.X, L, surface.memory_limit)


class RecordedSurface:
    """The loss from X, y and the likelihood themselves, everything of a point from one pass.

    Parameters
    ----------
    linearization : Linearization
    X, y : Tensor
    likelihood : Likelihood
    prior_precision : float
    sample_weight : Tensor of shape (n_samples,), optional
    params : list of Tensor
        All weights of ``linearization``, in its order.
    """

    def __init__(
        self,
        linearization: Linearization,
        X: Tensor,
        y: Tensor,
        likelihood: Likelihood,
        prior_precision: float,
        sample_weight: Tensor | None,
        params: list[Tensor],
    ) -> None:
        self.linearization, self.X, self.y = linearization, X, y
        self.params = params
        self.likelihood, self.prior_precision = likelihood, prior_precision
        self.sample_weight = None if sample_weight is None else sample_weight.double()
        if self.sample_weight is not None and bool((self.sample_weight == 1.0).all()):
            self.sample_weight = None

    @property
    def fits(self) -> bool:
        """Whether explicit rows are the cheapest way, and fit in memory."""
        if self.linearization.recording(self.X) is None:
            return False
        n_rows, P = len(self.X) * self.linearization.n_outputs, self.linearization.n_params
        check_size(n_rows, P, self.linearization.memory_limit)
        return FEW * n_rows >= P

    def __call__(self) -> RecordedPoint:
        """Evaluate at the present weights."""
        return RecordedPoint(self, cast(Recording, self.linearization.recording(self.X)))

    def weigh(self, t: Tensor, power: float = 1.0) -> Tensor:
        """``t`` times the examples' weights to a power."""
        s = self.sample_weight
        return t if s is None else t * s.pow(power).view(-1, *[1] * (t.ndim - 1))


class RecordedPoint:
    """The loss of one forward pass, whose graph gives the rest before the weights move on."""

    def __init__(self, surface: RecordedSurface, recording: Recording) -> None:
        self._surface, self._recording = surface, recording
        self._outputs = recording.outputs.double()
        self.weights = flat(surface.params)
        nll = surface.likelihood.negative_log_likelihood(self._outputs, surface.y)
        penalty = 0.5 * surface.prior_precision * float(self.weights @ self.weights)
        self.loss = float(surface.weigh(nll).sum()) + penalty

    @cached_property
    def _rows(self) -> Tensor:
        """Φ, of shape (n_rows, n_params)."""
        surface = self._surface
        L = surface.weigh(surface.likelihood.noise_precision_factor(self._outputs), 0.5)
        return self._recording.rows(L).flatten(0, 1).double()

    @cached_property
    def gradient(self) -> Tensor:
        """Φᵀu + δw; Jᵀr + δw where Λ may vanish, and u with it."""
        surface, likelihood, rows = self._surface, self._surface.likelihood, self._rows
        if likelihood.is_definite:
            u = likelihood.whitened_residual(self._outputs, surface.y)
            of_data = rows.mT @ surface.weigh(u, 0.5).flatten()
        else:
            r = surface.weigh(likelihood.residual(self._outputs, surface.y))
            of_data = surface.linearization.vjp(surface.X, r)
        return of_data + surface.prior_precision * self.weights

    def curvature(self) -> Curvature:
        """ΦᵀΦ or ΦΦᵀ, from the rows that the gradient was made of."""
        return curvature_of(self._rows)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One float64 vector of all entries."""
    return torch.cat([t.detach().reshape(-1) for t in tensors]).double()

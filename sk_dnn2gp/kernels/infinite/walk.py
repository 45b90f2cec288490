"""A covariance on its way through an infinitely wide network (MATH 7).

A network is a list of steps; a `State` is what they carry: the covariance ``k``, its tangents
``dk`` in (log σ_b², log σ_w²) when gradients are asked for, the tangent kernel ``T`` and its
tangents ``dT`` when that is. Between an activation and the next weights the same slots hold F and
Ḟ Θ. Shapes: (positions..., n) for the marginals of n samples, (positions..., n, m) for pairs,
with no positions (dense), (h, w), or (h, w, h', w') where positions must be told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .activations import Dual, Side

__all__ = ["Activation", "Affine", "Mean", "Residual", "State", "Tape", "Walk"]


@dataclass
class State:
    """The covariance with what belongs to it; sums and views act on all of it."""

    k: Tensor
    dk: tuple[Tensor, ...] = ()
    T: Any = None
    dT: tuple[Tensor, ...] = ()

    def map(self, f: Callable[[Tensor], Tensor]) -> State:
        """The state of f of every tensor."""
        T = None if self.T is None else f(self.T)
        return State(f(self.k), tuple(map(f, self.dk)), T, tuple(map(f, self.dT)))

    def __add__(self, other: State) -> State:
        T = None if self.T is None else self.T + other.T
        dk, dT = (
            tuple(a + b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in ((self.dk, other.dk), (self.dT, other.dT))
        )
        return State(self.k + other.k, dk, T, dT)


@dataclass(frozen=True)
class Affine:
    """Weights: a filter of ``size`` (with stride and (before, after) padding), or a dense layer."""

    size: int = 1
    stride: int = 1
    padding: Any = "valid"  # "same", "valid" or a number


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity."""

    dual: Dual


@dataclass(frozen=True)
class Mean:
    """Mean over positions: a dense layer, or global pooling, before its weights."""


@dataclass(frozen=True)
class Residual:
    """The body's outcome plus the shortcut's (nothing in it: what came in)."""

    body: tuple
    shortcut: tuple = ()


@dataclass
class Tape:
    """The marginals of n samples at every activation, in the order they are met."""

    sides: list[Side] = field(default_factory=list)
    tangents: list[tuple[Tensor, ...]] = field(default_factory=list)
    after: list[State] = field(default_factory=list)
    last: State | None = None

    def at(self, view: Callable[[Tensor], Tensor]) -> Tape:
        """The same with a view taken of each tensor's last axes."""
        return Tape(
            [side.at(view) for side in self.sides],
            [tuple(map(view, t)) for t in self.tangents],
            self.after,
            self.last,
        )


@dataclass
class Walk:
    """Takes a state through steps: variances, what to carry, and how positions are laid out."""

    sigma_w2: float
    sigma_b2: float
    gradient: bool
    tangent: bool
    divide: bool = True  # by the number of positions in a filter
    position_axes: tuple[tuple[int, ...], ...] = ()  # (0,), (1,) or (0, 2), (1, 3)

    def start(self, raw: Tensor) -> State:
        """The products of the inputs as a state before the first weights."""
        zero = (torch.zeros_like(raw),) * 2 if self.gradient else ()
        return State(raw, zero, torch.zeros_like(raw) if self.tangent else None, zero[: self._n])

    @property
    def _n(self) -> int:
        return 2 if self.gradient and self.tangent else 0

    def marginals(self, steps: Any, raw: Tensor) -> Tape:
        """The marginals of samples alone; ends at a `Mean` that they cannot take."""
        tape = Tape()
        tape.last = self._run(steps, self.start(raw), lambda dual, s: self._record(dual, s, tape))
        return tape

    def pairs(self, steps: Any, raw: Tensor, left: Tape, right: Tape, fix: bool = False) -> State:
        """The covariance of pairs; ``fix`` sets what pairs a position of a sample with itself."""
        sides = zip(left.sides, right.sides, strict=True)
        slopes = zip(left.tangents, right.tangents, strict=True)
        tape: Iterator = zip(sides, slopes, left.after, strict=True)

        def meet(dual: Dual, state: State) -> State:
            pair, tangents, after = next(tape)
            state = self._activate(dual, state, *pair, *tangents)
            return _with_diagonal(state, after) if fix else state

        return self._run(steps, self.start(raw), meet)

    def _run(self, steps: Any, state: State, meet: Callable[[Dual, State], State]) -> State:
        for step in steps:
            if isinstance(step, Affine):
                state = self._affine(state, step)
            elif isinstance(step, Activation):
                state = meet(step.dual, state)
            elif isinstance(step, Mean):
                axes = tuple(a for pair in self.position_axes for a in pair)
                state = state.map(partial(torch.mean, dim=axes)) if axes else state
            else:
                short = self._run(step.shortcut, state, meet)
                state = self._run(step.body, state, meet) + short
        return state

    def _affine(self, s: State, step: Affine) -> State:
        w, b = self.sigma_w2, self.sigma_b2
        if self.position_axes and s.k.ndim > 2:
            scale = 1.0 / step.size**2 if self.divide else 1.0
            s = s.map(lambda t: self._patches(t, step, scale))
        if not self.gradient:
            k = s.k.mul(w).add_(b)
            return State(k, T=None if s.T is None else torch.add(k, s.T, alpha=w))
        k, dk = b + w * s.k, (b + w * s.dk[0], w * (s.k + s.dk[1]))
        if s.T is None:
            return State(k, dk)
        return State(k, dk, k + w * s.T, (dk[0] + w * s.dT[0], dk[1] + w * (s.T + s.dT[1])))

    def _patches(self, t: Tensor, step: Affine, scale: float) -> Tensor:
        """Sum over the filter: a box, so one axis after the other."""
        for axes in self.position_axes:
            t = box_sum(t, axes, step)
        return t * scale if scale != 1.0 else t

    def _activate(
        self, dual: Dual, s: State, left: Side, right: Side, dl: tuple, dr: tuple
    ) -> State:
        if not self.gradient:
            if s.T is None:
                return State(dual.value(s.k, left, right))
            F, D = dual.pair(s.k, left, right)
            return State(F, T=D.mul_(s.T))
        m = dual.moments(s.k, left, right, second=self.tangent)
        both = list(zip(s.dk, dl, dr, strict=True))
        dF = tuple(m.D * d + m.F11 * a + m.F22 * c for d, a, c in both)
        if s.T is None:
            return State(m.F, dF)
        dD = (m.D12 * d + m.D11 * a + m.D22 * c for d, a, c in both)
        dT = tuple(e * s.T + m.D * t for e, t in zip(dD, s.dT, strict=True))
        return State(m.F, dF, m.D * s.T, dT)

    def _record(self, dual: Dual, s: State, tape: Tape) -> State:
        tape.sides.append(dual.side(s.k))
        tape.tangents.append(s.dk)
        F, D, F_k, D_k = dual.diagonal(s.k)
        dF = tuple(F_k * d for d in s.dk)
        if s.T is None:
            tape.after.append(State(F, dF))
        else:
            dT = tuple(D_k * d * s.T + D * t for d, t in zip(s.dk, s.dT, strict=True))
            tape.after.append(State(F, dF, D * s.T, dT))
        return tape.after[-1]


def box_sum(t: Tensor, axes: tuple[int, ...], step: Affine) -> Tensor:
    """Sum over a window moved along the axes together (zeros outside)."""
    n = t.shape[axes[0]]
    n_out, before = window(n, step)
    shape = list(t.shape)
    for axis in axes:
        shape[axis] = n_out
    out = t.new_zeros(shape)
    for offset in range(-before, step.size - before):
        low = max(0, -(offset // step.stride))  # first window whose cell lies inside
        high = min(n_out, (n - 1 - offset) // step.stride + 1)
        if high <= low:
            continue
        source, target = t, out
        for axis in axes:
            stop = (high - 1) * step.stride + offset + 1
            cells = (slice(None),) * axis + (slice(low * step.stride + offset, stop, step.stride),)
            source, target = source[cells], target.narrow(axis, low, high - low)
        target += source
    return out


def window(n: int, step: Affine) -> tuple[int, int]:
    """Positions after the filter and zeros before the first: "same" keeps ceil(n / stride)."""
    if step.padding == "same":
        n_out = -(-n // step.stride)
        return n_out, max(0, (n_out - 1) * step.stride + step.size - n) // 2
    before = 0 if step.padding == "valid" else int(step.padding)
    return (n + 2 * before - step.size) // step.stride + 1, before


def _with_diagonal(pairs: State, alone: State) -> State:
    """Set (h, w, h, w) of (h, w, h', w', n) to what is known of (h, w, n)."""

    def put(t: Tensor, d: Tensor) -> Tensor:
        h, w = (torch.arange(size, device=t.device) for size in d.shape[:2])
        t[h[:, None], w, h[:, None], w] = d
        return t

    T = None if pairs.T is None else put(pairs.T, alone.T)
    dk, dT = (
        tuple(put(t, d) for t, d in zip(mine, theirs, strict=True))
        for mine, theirs in ((pairs.dk, alone.dk), (pairs.dT, alone.dT))
    )
    return State(put(pairs.k, alone.k), dk, T, dT)

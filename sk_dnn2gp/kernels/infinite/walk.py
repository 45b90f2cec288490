"""A covariance on its way through an infinitely wide network (:ref:`math-infinite`).

A network is a `Plan` of nodes, each a step with the nodes that it reads; a `State` is what they
hand on: the covariance ``k``, its tangents ``dk`` in the log variances by their number, the tangent
kernel ``T`` and its tangents ``dT`` when that is asked for. Between an activation and the next
weights the same slots hold F and Ḟ Θ. Shapes: (positions..., n) for n samples each with itself,
(positions..., n, m) for pairs; positions are none (dense), (h, w), or, where pooling mixes them,
(h, w, h', w').
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .activations import Side
from .steps import (
    Activation,
    Dropout,
    Input,
    Mean,
    Node,
    Normal,
    Pad,
    Pool,
    Shape,
    Sum,
    Times,
    Weights,
    Window,
    taps,
)

__all__ = ["Plan", "State", "Tape", "Walk"]

Tangents = dict[int, Tensor]


@dataclass
class State:
    """The covariance with what belongs to it; sums and views act on all of it."""

    k: Tensor
    dk: Tangents = field(default_factory=dict)
    T: Any = None
    dT: Tangents = field(default_factory=dict)

    def map(self, f: Callable[[Tensor], Tensor]) -> State:
        """The state of f of every tensor."""
        dk, dT = ({j: f(t) for j, t in d.items()} for d in (self.dk, self.dT))
        return State(f(self.k), dk, None if self.T is None else f(self.T), dT)

    def __add__(self, other: State) -> State:
        T = None if self.T is None else self.T + other.T
        dk, dT = dict(self.dk), dict(self.dT)
        for mine, theirs in ((dk, other.dk), (dT, other.dT)):
            for j, t in theirs.items():
                _add(mine, j, t)
        return State(self.k + other.k, dk, T, dT)


def _add(tangents: Tangents, j: int | None, t: Tensor) -> None:
    if j is not None:
        tangents[j] = tangents[j] + t if j in tangents else t


@dataclass(frozen=True)
class Variances:
    """σ_w² and σ_b² of one layer, with the numbers of their tangents (None: held fixed)."""

    w: float
    b: float
    iw: int | None = None
    ib: int | None = None


class Plan:
    """Nodes laid out for inputs of positions ``shape``, () or (h, w): where these must be told
    apart.

    The first node is the input, the last the outcome; ``variances`` are those of every `Weights`,
    in order. ValueError if the steps do not fit the shape.
    """

    def __init__(self, nodes: Sequence[Node], variances: Sequence[Variances], shape: Shape) -> None:
        self.nodes = tuple(nodes)
        given = iter(variances)
        self.variances = [next(given) if _is(n, Weights) else None for n in self.nodes]
        self.shapes: list[Shape] = []
        for node in self.nodes:
            shapes = [self.shapes[a] for a in node.args] or [shape]
            self.shapes.append(node.step.shape(*shapes))
        self.joint = self._joint()
        self.last_use = {a: i for i, node in enumerate(self.nodes) for a in node.args}

    def _joint(self) -> list[bool]:
        """Whether a later pooling needs a node's positions told apart."""
        joint = [False] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            for a in self.nodes[i].args:
                wanted = joint[i] or _is(self.nodes[i], Pool)
                joint[a] = joint[a] or (wanted and bool(self.shapes[a]))
        return joint

    def positions(self, i: int) -> int:
        """Numbers for a pair of samples at a node."""
        count = 1
        for size in self.shapes[i]:
            count *= size
        return count**2 if self.joint[i] else count

    @property
    def n_positions(self) -> int:
        """At the widest node."""
        return max(map(self.positions, range(len(self.nodes))))

    @property
    def met(self) -> list[int]:
        """The nodes that need what is known of each sample alone."""
        return [i for i, n in enumerate(self.nodes) if isinstance(n.step, Activation | Normal)]


def _is(node: Node, kind: type) -> bool:
    return isinstance(node.step, kind)


@dataclass
class Tape:
    """What is known of each of n samples alone: variances at the nodes that need them, K(x, x)."""

    sides: dict[int, Side] = field(default_factory=dict)
    tangents: dict[int, Tangents] = field(default_factory=dict)
    last: Any = None

    @staticmethod
    def cat(tapes: Sequence[Tape]) -> Tape:
        """Of samples one after the other."""
        if len(tapes) == 1:
            return tapes[0]
        sides = {i: Side.cat([t.sides[i] for t in tapes]) for i in tapes[0].sides}
        tangents = {i: _cat([t.tangents[i] for t in tapes]) for i in tapes[0].tangents}
        k, T = ([getattr(t.last, name) for t in tapes] for name in ("k", "T"))
        dk, dT = (_cat([getattr(t.last, name) for t in tapes]) for name in ("dk", "dT"))
        return Tape(sides, tangents, State(torch.cat(k), dk, T[0] if T[0] is None else torch.cat(T),
                                           dT))  # fmt: skip


def _cat(parts: Sequence[Tangents]) -> Tangents:
    return {j: torch.cat([p[j] for p in parts], dim=-1) for j in parts[0]}


Meet = Callable[[int, State], State]


@dataclass
class Walk:
    """Takes states through a plan, with gradients and the tangent kernel where asked for."""

    plan: Plan
    gradient: bool
    tangent: bool

    def alone(self, x: Tensor) -> Tape:
        """Each of the samples x (positions..., n, channels) with itself."""
        tape = Tape()
        if self.plan.joint[0]:
            raw = torch.einsum("hwnc,xync->hwxyn", x, x) / x.shape[-1]
        else:
            raw = (x * x).mean(-1)
        tape.last = self._run(raw, partial(self._record, tape), own=True)
        return tape

    def pairs(
        self, x: Tensor, y: Tensor, left: Tape, right: Tape, r: slice, c: slice
    ) -> tuple[Tensor, Tangents]:
        """The kernel of the samples x[r] with y[c], and its tangents."""
        raw = _products(x[..., r, :], y[..., c, :], self.plan.joint[0])

        def meet(i: int, state: State) -> State:
            mine, theirs = partial(_left, r=r, joint=self.plan.joint[i]), partial(_right, c=c)
            return self._met(i, state, _view(left, i, mine), _view(right, i, theirs))

        return self.value(self._run(raw, meet))

    def value(self, state: State) -> tuple[Tensor, Tangents]:
        """What was asked for at the end."""
        return (state.T, state.dT) if self.tangent else (state.k, state.dk)

    def _run(self, raw: Tensor, meet: Meet, own: bool = False) -> State:
        states: dict[int, State] = {}
        for i, node in enumerate(self.plan.nodes):
            args = [self._layout(states[a], i, a) for a in node.args]
            for a in set(node.args):
                if self.plan.last_use[a] == i:
                    del states[a]
            states[i] = self._step(i, node.step, args, raw, meet, own)
        return states[i]

    def _layout(self, state: State, i: int, a: int) -> State:
        """What node i reads of node a: positions with themselves, unless it needs pairs of them."""
        plan = self.plan
        if plan.joint[a] and not plan.joint[i] and not _is(plan.nodes[i], Pool):
            return state.map(_diagonal)
        return state

    def _step(
        self, i: int, step: Any, args: list[State], raw: Tensor, meet: Meet, own: bool
    ) -> State:
        if isinstance(step, Input):
            return State(raw, T=torch.zeros_like(raw) if self.tangent else None)
        if isinstance(step, Weights):
            return self._weights(i, step, args[0])
        if isinstance(step, Activation | Normal):
            return meet(i, args[0])
        if isinstance(step, Sum):
            return sum(args[1:], args[0])
        if isinstance(step, Dropout):
            noisy = partial(_noisy, step=step, joint=self.plan.joint[i])
            return args[0].map(noisy) if own else args[0]
        return args[0].map(partial(self._linear, i, step))

    def _linear(self, i: int, step: Any, t: Tensor) -> Tensor:
        """Steps without weights that act on k and T alike."""
        shape = self.plan.shapes[self.plan.nodes[i].args[0]]
        if isinstance(step, Mean):
            return t.mean((0, 1)) if shape else t
        if isinstance(step, Times):
            return t * step.factor**2
        axes = ((0, 2), (1, 3)) if self.plan.joint[i] or isinstance(step, Pool) else ((0,), (1,))
        if isinstance(step, Pad):
            for side in (0, 1):
                for axis in axes[side]:
                    t = step.along(t, axis, side)
            return t
        windows = step.windows(shape)
        if all(w == Window(n, n) for w, n in zip(windows, shape, strict=True)):
            t = t.mean((0, 1, 2, 3))[None, None]
            return t[None, None] if self.plan.joint[i] else t
        for side, window in enumerate(windows):
            for axis in axes[side]:
                t = t if window.trivial else box_sum(t, (axis,), window).div_(window.size)
        return t if self.plan.joint[i] else _diagonal(t)

    def _weights(self, i: int, step: Weights, s: State) -> State:
        v: Any = self.plan.variances[i]
        b, w = v.b, v.w / step.cells if step.divide else v.w
        axes = ((0, 2), (1, 3)) if self.plan.joint[i] else ((0,), (1,))
        p = s.map(lambda t: _patches(t, axes, step.windows))
        if not self.gradient:
            k = (p.k.mul(w) if p.k is s.k else p.k.mul_(w)).add_(b)
            return State(k, T=None if p.T is None else torch.add(k, p.T, alpha=w))
        p = p.map(lambda t: w * t)
        k, dk, dT = p.k + b, p.dk, p.dT
        _add(dk, v.iw, p.k)
        _add(dk, v.ib, torch.full_like(k, b))
        if p.T is not None:
            _add(dT, v.iw, p.T)
            for j, d in dk.items():
                _add(dT, j, d)
        return State(k, dk, None if p.T is None else k + p.T, dT)

    def _met(self, i: int, s: State, left: tuple, right: tuple) -> State:
        """An activation, or a normalisation, between samples of known variances."""
        step, (l, dl), (r, dr) = self.plan.nodes[i].step, left, right
        if not s.dk:
            if s.T is None:
                return State(step.dual.value(s.k, l, r))
            F, D = step.dual.pair(s.k, l, r)
            return State(F, T=D.mul_(s.T))
        m = step.dual.moments(s.k, l, r, second=self.tangent)
        dF = {j: m.D * d + m.F11 * dl[j] + m.F22 * dr[j] for j, d in s.dk.items()}
        if s.T is None:
            return State(m.F, dF)
        dD = {j: m.D12 * d + m.D11 * dl[j] + m.D22 * dr[j] for j, d in s.dk.items()}
        dT = {j: d * s.T + m.D * s.dT[j] for j, d in dD.items()}
        return State(m.F, dF, m.D * s.T, dT)

    def _record(self, tape: Tape, i: int, s: State) -> State:
        step, joint = self.plan.nodes[i].step, self.plan.joint[i]
        own = s.map(_diagonal) if joint else s
        if isinstance(step, Normal):
            keep = own.map(lambda t: t.mean((0, 1), keepdim=True)) if own.k.ndim > 1 else own
            tape.sides[i], tape.tangents[i] = step.dual.side(keep.k), keep.dk
        else:
            tape.sides[i], tape.tangents[i] = step.dual.side(own.k), own.dk
        if not joint and isinstance(step, Activation):
            return self._alone(step, own)
        mine = _view(tape, i, partial(_apart, joint=joint))
        state = self._met(i, s, mine, (tape.sides[i], tape.tangents[i]))
        if isinstance(step, Normal):
            return state
        return _with_diagonal(state, self._alone(step, own))

    def _alone(self, step: Activation, s: State) -> State:
        """An activation of samples each with itself."""
        F, D, F_k, D_k = step.dual.diagonal(s.k)
        dF = {j: F_k * d for j, d in s.dk.items()}
        if s.T is None:
            return State(F, dF)
        dT = {j: D_k * d * s.T + D * s.dT[j] for j, d in s.dk.items()}
        return State(F, dF, D * s.T, dT)


def _view(tape: Tape, i: int, view: Callable[[Tensor], Tensor]) -> tuple[Side, Tangents]:
    return tape.sides[i].at(view), {j: view(t) for j, t in tape.tangents[i].items()}


def _left(t: Tensor, r: slice, joint: bool) -> Tensor:
    return t[..., None, None, r, None] if joint else t[..., r, None]


def _right(t: Tensor, c: slice) -> Tensor:
    return t[..., None, c]


def _apart(t: Tensor, joint: bool) -> Tensor:
    return t[..., None, None, :] if joint else t


def _products(x: Tensor, y: Tensor, joint: bool) -> Tensor:
    """x·y/C at every position, or at every pair of them."""
    if joint:
        return torch.einsum("hwrc,xysc->hwxyrs", x, y) / x.shape[-1]
    if x.shape[-1] == 1:
        return x * y.mT
    return (x @ y.mT).div_(x.shape[-1])


def _patches(t: Tensor, axes: tuple[tuple[int, ...], ...], windows: Iterable[Window]) -> Tensor:
    """Sum over the filter: a box, so one axis after the other."""
    for together, window in zip(axes, windows, strict=False):
        t = t if window.trivial else box_sum(t, together, window)
    return t


def box_sum(t: Tensor, axes: tuple[int, ...], window: Window) -> Tensor:
    """Sum over a window moved along the axes together (zeros outside)."""
    n = t.shape[axes[0]]
    n_out, _ = window.fit(n)
    out = None
    for first, length, start in taps(window, n):
        source = t
        for axis in axes:
            stop = start + (length - 1) * window.stride + 1
            source = source[(slice(None),) * axis + (slice(start, stop, window.stride),)]
        if out is None and length == n_out:  # a copy costs less than zeros and a sum
            out = source.clone(memory_format=torch.contiguous_format)
            continue
        out = _zeros(t, axes, n_out) if out is None else out
        target = out
        for axis in axes:
            target = target.narrow(axis, first, length)
        target += source
    return _zeros(t, axes, n_out) if out is None else out


def _zeros(t: Tensor, axes: tuple[int, ...], n: int) -> Tensor:
    return t.new_zeros([n if axis in axes else size for axis, size in enumerate(t.shape)])


def _cells(t: Tensor) -> tuple[Tensor, ...]:
    """The index of every position with itself in (h, w, h', w', ...)."""
    h, w = (torch.arange(size, device=t.device) for size in t.shape[:2])
    return h[:, None], w, h[:, None], w


def _diagonal(t: Tensor) -> Tensor:
    return t[_cells(t)]


def _noisy(t: Tensor, step: Dropout, joint: bool) -> Tensor:
    """A sample with itself keeps 1/keep of its square; whole channels are dropped at once."""
    if not joint or step.channels:
        return t / step.keep
    t = t.clone()
    t[_cells(t)] /= step.keep
    return t


def _with_diagonal(pairs: State, alone: State) -> State:
    """Set (h, w, h, w) of (h, w, h', w', n) to what is known of (h, w, n)."""

    def put(t: Tensor, d: Tensor) -> Tensor:
        t[_cells(t)] = d
        return t

    T = None if pairs.T is None else put(pairs.T, alone.T)
    dk, dT = (
        {j: put(t, theirs[j]) for j, t in mine.items()}
        for mine, theirs in ((pairs.dk, alone.dk), (pairs.dT, alone.dT))
    )
    return State(put(pairs.k, alone.k), dk, T, dT)

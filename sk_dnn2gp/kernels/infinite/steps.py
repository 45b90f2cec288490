"""The steps of an infinitely wide network: what is done to a covariance (:ref:`math-infinite`).

Each is a frozen dataclass that knows how it changes the positions (h, w) of an image, or that there
are none (); `walk` carries the covariance through. A network is a list of `Node`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .activations import Dual, Normaliser, dual_activation

__all__ = [
    "Activation",
    "Dropout",
    "Input",
    "Mean",
    "Node",
    "Normal",
    "Pad",
    "Pool",
    "Sum",
    "Times",
    "Weights",
    "Window",
    "append",
    "chain",
    "taps",
]

Shape = tuple[int, ...]


class Step:
    """What is done to a covariance; most steps leave positions as they are."""

    def shape(self, *shapes: Shape) -> Shape:
        """Positions after it, from those of what it reads."""
        return shapes[0]


@dataclass(frozen=True)
class Node:
    """A step and the numbers of the nodes that it reads."""

    step: Any
    args: tuple[int, ...] = ()


def chain(steps: Sequence[Any]) -> list[Node]:
    """Nodes of steps that each read the one before, from an input on."""
    nodes: list[Node] = []
    for step in (Input(), *steps):
        append(nodes, step)
    return nodes


def append(nodes: list[Node], step: Any, *args: int) -> int:
    """Add a step that reads ``args`` (none: the last node) and return its number."""
    nodes.append(Node(step, args or tuple(range(len(nodes)))[-1:]))
    return len(nodes) - 1


@dataclass(frozen=True)
class Window:
    """A filter along one axis: "same" keeps ceil(n / stride) positions, else (before, after)."""

    size: int = 1
    stride: int = 1
    padding: Any = (0, 0)
    dilation: int = 1

    @property
    def trivial(self) -> bool:
        """Whether it leaves all as it is."""
        return self.size == self.stride == 1 and self.padding in ("same", (0, 0))

    def fit(self, n: int) -> tuple[int, int]:
        """Positions after the filter and zeros before the first."""
        if self.padding == "same":
            n_out = -(-n // self.stride)
            return n_out, max(0, (n_out - 1) * self.stride + self.size - n) // 2
        before, after = self.padding
        return (n + before + after - self.dilation * (self.size - 1) - 1) // self.stride + 1, before


@lru_cache(maxsize=256)
def taps(window: Window, n: int) -> list[tuple[int, int, int]]:
    """What each cell of a filter reads of n positions, the cell that reads most first.

    The first position after the filter that it serves, how many, and the first that it reads.
    """
    n_out, before = window.fit(n)
    found = []
    for j in range(window.size):
        offset = j * window.dilation - before
        low = max(0, -(offset // window.stride))
        high = min(n_out, (n - 1 - offset) // window.stride + 1)
        if high > low:
            found.append((low, high - low, low * window.stride + offset))
    return sorted(found, key=lambda tap: -tap[1])


def _fitted(windows: Sequence[Window], shape: Shape) -> Shape:
    if not shape:
        raise ValueError("A convolution or pooling needs positions, and its input has none.")
    after = tuple(window.fit(n)[0] for n, window in zip(shape, windows, strict=True))
    if min(after) < 1:
        sizes = " × ".join(str(w.size) for w in windows)
        raise ValueError(
            f"A filter (filter_size or kernel_size) of {sizes} does not fit a layer of "
            f"{shape[0]} × {shape[1]} positions: use padding, fewer layers or larger images."
        )
    return after


@dataclass(frozen=True)
class Input(Step):
    """The samples."""


@dataclass(frozen=True)
class Weights(Step):
    """Random weights and biases: a filter with ``windows``, or a dense layer without.

    ``divide``: the variance is shared by the filter's cells; ``fan_in`` is the finite layer's.
    """

    windows: tuple[Window, ...] = ()
    divide: bool = True
    bias: bool = True
    fan_in: int = field(default=0, compare=False)

    @property
    def cells(self) -> int:
        """Positions of a filter."""
        return self.windows[0].size * self.windows[1].size if self.windows else 1

    def shape(self, *shapes: Shape) -> Shape:
        if self.windows:
            return _fitted(self.windows, shapes[0])
        if shapes[0]:
            raise ValueError("A dense layer follows positions: put Flatten or pooling before it.")
        return ()


@dataclass(frozen=True)
class Activation(Step):
    """An elementwise nonlinearity, as `dual_activation` takes it."""

    phi: Any
    slope: float = 0.01
    terms: int = 300

    @property
    def dual(self) -> Dual:
        """Its moments."""
        return _dual(self.phi, self.slope, self.terms)


@lru_cache(maxsize=64)
def _dual(phi: Any, slope: float, terms: int) -> Dual:
    return dual_activation(phi, slope=slope, terms=terms)


@dataclass(frozen=True)
class Normal(Step):
    """Division by the standard deviation over channels and positions.

    ``gains``: whether it has weights of its own, 1 and 0 at first, which training moves.
    """

    eps: float = 1e-5
    gains: bool = False

    @property
    def dual(self) -> Dual:
        """Its moments."""
        return Normaliser(self.eps)


@dataclass(frozen=True)
class Mean(Step):
    """All positions in one: what a dense layer sees of them, with weights of its own for each."""

    flat: bool = True

    def shape(self, *shapes: Shape) -> Shape:
        if not self.flat and shapes[0] not in ((), (1, 1)):
            raise ValueError(
                f"The network ends with {shapes[0][0]} × {shapes[0][1]} positions: end it with "
                "pooling, or with Flatten and a Linear layer."
            )
        return ()


@dataclass(frozen=True)
class Pool(Step):
    """Mean over windows, or of windows that leave ``out`` positions of each axis (None: all)."""

    fixed: tuple[Window, ...] = ()
    out: tuple[int | None, ...] = (1, 1)

    def windows(self, shape: Shape) -> tuple[Window, ...]:
        """One for each axis."""
        if self.fixed:
            return self.fixed
        sizes = [n // (out or n) for n, out in zip(shape, self.out, strict=True)]
        return tuple(Window(size, size) for size in sizes)

    def shape(self, *shapes: Shape) -> Shape:
        for n, out in zip(shapes[0], () if self.fixed else self.out, strict=False):
            if n % (out or n):
                raise ValueError(f"Adaptive pooling to {out} of {n} positions has unequal windows.")
        return _fitted(self.windows(shapes[0]) if shapes[0] else (), shapes[0])


@dataclass(frozen=True)
class Pad(Step):
    """More positions (before, after) along each axis: zeros, circular, reflect or replicate."""

    sides: tuple[tuple[int, int], ...]
    mode: str = "zeros"

    def shape(self, *shapes: Shape) -> Shape:
        if not shapes[0]:
            raise ValueError("Padding needs positions, and its input has none.")
        return tuple(n + sum(side) for n, side in zip(shapes[0], self.sides, strict=True))

    def along(self, t: Tensor, axis: int, side: int) -> Tensor:
        """t padded along one of its axes as the image's axis ``side`` is."""
        before, after = self.sides[side]
        if before == after == 0:
            return t
        if self.mode == "zeros":
            room = [0, 0] * (t.ndim - 1 - axis) + [before, after]
            return torch.nn.functional.pad(t, room)
        n = t.shape[axis]
        i = torch.arange(-before, n + after, device=t.device)
        if self.mode == "reflect":
            i = i.abs()
            i = torch.where(i >= n, 2 * (n - 1) - i, i)
        return t.index_select(axis, i.clamp(0, n - 1) if self.mode != "circular" else i % n)


@dataclass(frozen=True)
class Dropout(Step):
    """Multiplicative noise that keeps a share, of every unit or of whole channels."""

    keep: float
    channels: bool = False


@dataclass(frozen=True)
class Times(Step):
    """A factor."""

    factor: float


@dataclass(frozen=True)
class Sum(Step):
    """Branches that are uncorrelated, added up."""

    def shape(self, *shapes: Shape) -> Shape:
        if len(set(shapes)) > 1:
            raise ValueError(f"Branches of shapes {list(shapes)} cannot be added.")
        return shapes[0]

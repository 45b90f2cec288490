"""Gram matrices tile by tile, from factors, under a memory limit (:ref:`math-ntk`).

Forward and backward passes give factors for as many examples at once as memory holds; tiles of
about a thousand rows are contracted and written, in float64, into the result. Of a symmetric
matrix only the tiles on and above the diagonal are computed. Where the factors of all examples do
not fit, those of the columns are computed anew for each block of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import Tensor

from .._utils.memory import limit_in_bytes
from .factors import Dense, Factor, joined, merge

__all__ = ["GramSide", "add_products", "gram_matrix", "mirrored", "symmetric_product"]

# Columns of ΦᵀΦ that one product makes.
_COLUMNS = 256
# Columns and rows of a tile: large enough for the speed of matrix products, small enough for
# caches; and the fewer the rows, the nearer a symmetric matrix comes to half the work.
_TILE, _STRIP = 1024, 160
# Bytes of one pass through the network that caches and allocator handle well, unless that makes
# less than a few examples: each pass has its cost.
_CACHE, _FEW = 2**26, 16


@dataclass(frozen=True)
class GramSide:
    """The rows of one side: how many examples, rows each, and their factors by slice.

    An example takes ``pass_bytes`` while its factors are made and ``held_bytes`` in them.
    """

    n: int
    n_rows: int
    factors: Callable[[slice], list[Factor]]
    pass_bytes: float
    held_bytes: float


@dataclass(frozen=True)
class _Tile:
    part: slice
    n_rows: int
    factors: list[Factor]

    def narrowed(self, start: int, stop: int) -> _Tile:
        """The tile of its examples ``start:stop``, without a copy."""
        where = slice(self.part.start + start, self.part.start + stop)
        members = [factor.part(slice(start, stop)) for factor in self.factors]
        return _Tile(where, self.n_rows, members)

    def cut(self, n_rows: int) -> Iterator[_Tile]:
        """Tiles of equal length of at most ``n_rows`` rows (and positions), or of one example."""
        n = self.part.stop - self.part.start
        positions = max(factor.n_positions for factor in self.factors)
        length = max(1, n_rows // (self.n_rows * positions))
        if n <= length:
            yield self
            return
        length = -(-n // -(-n // length))
        for piece in gen_batches(n, length):
            yield self.narrowed(piece.start, piece.stop)


def gram_matrix(
    left: GramSide,
    right: GramSide | None,
    scale: Sequence[float] | None,
    memory_limit: float | None,
    trace: bool = False,
) -> Tensor:
    """Rows of ``left`` times those of ``right`` (None: of ``left``), (n n_rows, n2 n_rows2),
    float64.

    ``scale``: one factor per parameter. ``trace``: sums over the rows of each pair of examples, (n,
    n2).
    """
    limit = limit_in_bytes(memory_limit)
    plan = _Layout(limit, trace, [None])
    sides = [left] if right is None else [left, right]
    held = sum(side.n * side.held_bytes for side in sides)
    if max(side.n * side.n_rows for side in sides) <= _STRIP:
        whole = sum(side.n * side.pass_bytes for side in sides)
        if held + 2 * whole <= min(limit, _CACHE):
            return _one_tile(left, right, plan, scale)
    writer = _Writer(left, right, scale)
    if held <= limit / 2:
        rows = list(plan.tiles(left, slice(0, left.n)))
        columns = rows if right is None else list(plan.tiles(right, slice(0, right.n)))
        writer.write(rows, columns, symmetric=right is None)
        return writer.result
    _recomputed(left, right, plan, writer)
    return writer.result


def _one_tile(
    left: GramSide, right: GramSide | None, layout: _Layout, scale: Sequence[float] | None
) -> Tensor:
    """A small matrix: one tile, and few operations, which are what it costs."""
    rows = layout.prepared(left, slice(0, left.n))
    columns = rows if right is None else layout.prepared(right, slice(0, right.n))
    tile = _contract(rows, columns, scale)
    n, R, n2, R2 = tile.shape
    K = tile.view(n * R, n2 * R2).double()
    return K if right is not None else torch.add(K, K.mT).mul_(0.5)


def _recomputed(left: GramSide, right: GramSide | None, layout: _Layout, writer: _Writer) -> None:
    """Hold one block of rows and one of columns at a time."""
    other = left if right is None else right
    row_blocks, column_blocks = layout.blocks(left), layout.blocks(other)
    for i, block in enumerate(row_blocks):
        rows = list(layout.tiles(left, block))
        if right is None:
            writer.write(rows, rows, symmetric=True)
        for column in column_blocks[i + 1 if right is None else 0 :]:
            columns = list(layout.tiles(other, column))
            writer.write(rows, columns, symmetric=False, mirror=right is None)


class _Layout:
    """How examples are cut, and which factors become rows: decided once for both sides."""

    def __init__(self, limit: float, trace: bool, as_rows: list) -> None:
        self.limit, self.trace, self.as_rows = limit, trace, as_rows

    def blocks(self, side: GramSide) -> list[slice]:
        length = max(1, int(self.limit / 4 / (side.held_bytes + 1)))
        return list(gen_batches(side.n, length))

    def tiles(self, side: GramSide, block: slice) -> Iterator[_Tile]:
        length = max(1, int(self.limit / 4 / (side.pass_bytes + 1)))
        for chunk in gen_batches(block.stop - block.start, length):
            part = slice(block.start + chunk.start, block.start + chunk.stop)
            yield from self._cut(part, self._in_cache(side, part))

    def _in_cache(self, side: GramSide, part: slice) -> list[Factor]:
        """Factors of a chunk, made by so few examples at a time that a pass stays in caches."""
        length = max(_FEW, int(_CACHE / (side.pass_bytes + 1)))
        pieces = [
            self.prepared(side, slice(part.start + piece.start, part.start + piece.stop))
            for piece in gen_batches(part.stop - part.start, length)
        ]
        return [joined(members) for members in zip(*pieces, strict=True)]

    def prepared(self, side: GramSide, part: slice) -> list[Factor]:
        factors = [factor.condensed() for factor in side.factors(part)]
        if self.trace:
            factors = [factor.folded() for factor in factors]
        if self.as_rows[0] is None:
            small = side.n * side.n_rows <= _STRIP  # forming rows costs more than it saves
            self.as_rows[0] = [
                f.prefers_rows(side.n) and not (small and isinstance(f, Dense)) for f in factors
            ]
        return merge(factors, self.as_rows[0])

    def _cut(self, part: slice, factors: list[Factor]) -> Iterator[_Tile]:
        yield from _Tile(part, factors[0].n_rows, factors).cut(_TILE)


class _Writer:
    """Contracts pairs of tiles into the result."""

    def __init__(
        self, left: GramSide, right: GramSide | None, scale: Sequence[float] | None
    ) -> None:
        self.shape = (left.n, left.n if right is None else right.n)
        self.scale = scale
        self._result: Any = None

    @property
    def result(self) -> Tensor:
        return self._result.flatten(2).flatten(0, 1)

    def write(
        self, rows: list[_Tile], columns: list[_Tile], symmetric: bool, mirror: bool = False
    ) -> None:
        for i, row in enumerate(rows):
            for column in columns[i if symmetric else 0 :]:
                self._write_pair(row, column, mirror or symmetric)

    def _write_pair(self, row: _Tile, column: _Tile, mirror: bool) -> None:
        """Strip by strip; of a tile with itself, what is on and above the diagonal."""
        diagonal = mirror and row is column
        for strip in row.cut(_STRIP):
            rest = column
            if diagonal and strip is not row:
                rest = column.narrowed(
                    strip.part.start - row.part.start, column.part.stop - column.part.start
                )
            tile = _contract(strip.factors, rest.factors, self.scale)
            if diagonal:
                _symmetrise(tile)
            self._write(strip, rest, tile, mirror)

    def _write(self, row: _Tile, column: _Tile, tile: Tensor, mirror: bool) -> None:
        if self._result is None:
            self._result = torch.empty(
                self.shape[0], tile.shape[1], self.shape[1], tile.shape[3],
                dtype=torch.float64, device=tile.device,
            )  # fmt: skip
        self._result[row.part, :, column.part] = tile
        if mirror and row.part != column.part:
            self._result[column.part, :, row.part] = tile.permute(2, 3, 0, 1)


def _symmetrise(tile: Tensor) -> None:
    """Make the leading square of a tile exactly symmetric: rounding does not."""
    n, R = tile.shape[:2]
    square = tile[:, :, :n].reshape(n * R, n * R)
    tile[:, :, :n] = square.add(square.mT).mul_(0.5).view(n, R, n, R)


def _contract(rows: list[Factor], columns: list[Factor], scale: Sequence[float] | None) -> Tensor:
    """The tile (n, R, n2, R2) of all factors."""
    tile: Tensor | None = None
    for left, right in zip(rows, columns, strict=True):
        tile = left.add_gram(right, tile, scale)
    assert tile is not None
    return tile


def add_products(rows: Tensor, total: Tensor) -> None:
    """Add rowsᵀ rows to ``total`` on and above its diagonal blocks: half the work."""
    P = total.shape[0]
    for part in gen_batches(P, _COLUMNS if P >= 2 * _COLUMNS else P):
        total[part.start : part.stop, part.start :].addmm_(rows[:, part].mT, rows[:, part.start :])


def symmetric_product(rows: Tensor) -> Tensor:
    """rowsᵀ rows, the symmetric work of a large one done once.

    Parameters
    ----------
    rows : Tensor of shape (n_rows, n_columns)

    Returns
    -------
    Tensor of shape (n_columns, n_columns)

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linearize import symmetric_product
    >>> symmetric_product(torch.tensor([[1.0, 2.0]])).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    if rows.shape[1] < 2 * _COLUMNS:
        return rows.mT @ rows
    total = rows.new_zeros(rows.shape[1], rows.shape[1])
    add_products(rows, total)
    return mirrored(total)


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix whose upper triangle is that of ``total``, in place."""
    P = total.shape[0]
    for part in gen_batches(P, _COLUMNS):
        square = total[part, part]
        square.copy_(square.triu() + square.triu(1).mT)
        total[part.stop :, part] = total[part, part.stop :].mT
    return total

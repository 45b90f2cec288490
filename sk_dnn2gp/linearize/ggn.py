"""ΦᵀΦ layer by layer, from factors where that takes fewer operations (:ref:`math-ntk`).

The rows of a dense layer are g_k aᵀ, so that the block of two such layers l, m is

    Σ_i (Σ_k g_ik g'_ikᵀ) ⊗ (a_i a'_iᵀ),

one matrix product of N examples' (O O') and (I I') products: K times fewer operations than explicit
rows with K rows an example, and half again of a layer with itself, whose products are symmetric
(triangles are kept). Every other pair of factors multiplies explicit rows.

Shapes: a (n, I) with a one for the bias, g (n, R, O); a block (O, I, O', I').
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.utils import gen_batches
from torch import Tensor

from .factors import Dense, Factor, Slot
from .gram import add_products, mirrored

__all__ = ["Products", "Size", "pairs_by_factors", "size_of"]

# One pass over an array costs about as much time as this many multiplications in a product.
_PASS = 30
# By how much fewer operations must win: there are more calls.
_GAIN = 2.0
# Examples whose products are made at a time: enough for a fast matrix product.
_FEW, _MANY = 16, 512


@dataclass(frozen=True)
class Size:
    """O and I of a dense layer, with one more input for a bias; of other factors, 1 and p."""

    n_outputs: int
    n_inputs: int
    is_dense: bool
    pieces: tuple[tuple[Slot, slice], ...]  # which inputs belong to which parameter


def size_of(factor: Factor) -> Size:
    """The size of a factor's part of the weights."""
    if isinstance(factor, Dense):
        I = 0 if factor.weight is None else factor.a.shape[1]
        pieces = [] if factor.weight is None else [(factor.weight, slice(0, I))]
        if factor.bias is not None:
            pieces.append((factor.bias, slice(I, I + 1)))
        return Size(factor.g.shape[2], I + (factor.bias is not None), True, tuple(pieces))
    pieces, start = [], 0
    for slot in factor.slots:
        pieces.append((slot, slice(start, start + slot.stop - slot.start)))
        start = pieces[-1][1].stop
    return Size(1, start, False, tuple(pieces))


def pairs_by_factors(sizes: Sequence[Size], n_rows: int) -> frozenset[tuple[int, int]]:
    """Pairs of factors whose block costs fewer operations without explicit rows."""
    return frozenset(
        (i, j)
        for i in range(len(sizes))
        for j in range(i, len(sizes))
        if sizes[i].is_dense
        and sizes[j].is_dense
        and _is_cheaper(i == j, sizes[i], sizes[j], n_rows)
    )


def _is_cheaper(same: bool, left: Size, right: Size, n_rows: int) -> bool:
    O, I = left.n_outputs * right.n_outputs, left.n_inputs * right.n_inputs
    explicit_cost = n_rows * O * I / (2 if same else 1)
    explicit_cost += _PASS * n_rows * (O * I) ** 0.5
    if same:
        O, I = O // 2 + left.n_outputs, I // 2 + left.n_inputs
    return _GAIN * (O * I + n_rows * O + _PASS * (O + I)) <= explicit_cost


class Products:
    """Sums the blocks of ΦᵀΦ over chunks of examples; ``sizes`` in the order of the factors."""

    def __init__(self, sizes: Sequence[Size], by_factors: frozenset[tuple[int, int]]) -> None:
        self.sizes, self.by_factors = sizes, by_factors
        numbers = range(len(sizes))
        self._by_rows = [(i, j) for i in numbers for j in numbers[i:] if (i, j) not in by_factors]
        self._sums: dict[tuple[int, int], Tensor] = {}

    def bytes_per_example(self, n_rows: int) -> float:
        """What an example takes beside its factors."""
        of_rows = {i for pair in self._by_rows for i in pair}
        rows = sum(self.sizes[i].n_outputs * self.sizes[i].n_inputs for i in of_rows)
        pairs = [(self.sizes[i], self.sizes[j]) for i, j in self.by_factors]
        most = max(a.n_outputs * b.n_outputs + a.n_inputs * b.n_inputs for a, b in pairs)
        return 24.0 * n_rows * rows + 24.0 * most

    def add(self, factors: Sequence[Factor], length: int) -> None:
        """Add a chunk's products, ``length`` examples at a time."""
        for part in gen_batches(factors[0].n_examples, max(_FEW, min(length, _MANY))):
            some = [factor.part(part) for factor in factors]
            dense = {i: _augmented(some[i]) for pair in self.by_factors for i in pair}
            for i, j in self.by_factors:
                self._add(i, j, *_pair_products(dense[i], dense[j], i == j))
            needed = {i for pair in self._by_rows for i in pair}
            rows = {i: _explicit_rows(some[i]) for i in needed}
            for i, j in self._by_rows:
                self._add(i, j, rows[i], rows[j], triangle=i == j)

    def _add(self, i: int, j: int, left: Tensor, right: Tensor, triangle: bool = False) -> None:
        total = self._sums.get((i, j))
        if total is None:
            total = self._sums[i, j] = left.new_zeros(left.shape[1], right.shape[1])
        if triangle:
            add_products(left, total)
        else:
            total.addmm_(left.mT, right)

    def result(self, n_params: int) -> Tensor:
        """ΦᵀΦ, of shape (n_params, n_params)."""
        some = next(iter(self._sums.values()))
        total = some.new_zeros(n_params, n_params)
        while self._sums:
            (i, j), sums = self._sums.popitem()
            self._write(self.sizes[i], self.sizes[j], self._block(i, j, sums), total)
        return total

    def _block(self, i: int, j: int, sums: Tensor) -> Tensor:
        """The block of two factors, as (O, I, O', I')."""
        left, right = self.sizes[i], self.sizes[j]
        shape = (left.n_outputs, left.n_inputs, right.n_outputs, right.n_inputs)
        if (i, j) not in self.by_factors:
            return (mirrored(sums) if i == j else sums).view(shape)
        if i == j:
            sums = sums[_places(left.n_outputs, sums)][:, _places(left.n_inputs, sums)]
        return sums.view(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)

    def _write(self, left: Size, right: Size, block: Tensor, total: Tensor) -> None:
        for slot, inputs in left.pieces:
            for slot2, inputs2 in right.pieces:
                part = block[:, inputs, :, inputs2].flatten(0, 1).flatten(1)
                total[slot.start : slot.stop, slot2.start : slot2.stop] = part
                if left is not right:
                    total[slot2.start : slot2.stop, slot.start : slot.stop] = part.mT


def _augmented(factor: Dense) -> tuple[Tensor, Tensor]:
    """a with a one for the bias, and g, in float64."""
    one = factor.a.new_ones(len(factor.a), 1)
    parts = [] if factor.weight is None else [factor.a]
    return torch.cat(parts if factor.bias is None else [*parts, one], 1).double(), factor.g.double()


def _explicit_rows(factor: Factor) -> Tensor:
    """Rows (n R, O I) in float64, in the order of the factor's size."""
    if isinstance(factor, Dense):
        a, g = _augmented(factor)
        return (g[..., None] * a[:, None, None]).flatten(2).flatten(0, 1)
    return torch.cat([part.values for part in factor.explicit()], dim=2).flatten(0, 1).double()


def _pair_products(
    left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], same: bool
) -> tuple[Tensor, Tensor]:
    """Σ_k g_k g'_kᵀ and a a'ᵀ of every example: (n, O O') and (n, I I'), or their triangles."""
    (a, g), (a2, g2) = left, right
    if not same:
        return (g.mT @ g2).flatten(1), (a[:, :, None] * a2[:, None]).flatten(1)
    if g.shape[1] == 1:
        return _triangles(g[:, 0]), _triangles(a)
    O = g.shape[2]
    places = torch.triu_indices(O, O, device=g.device)
    return (g.mT @ g).flatten(1).index_select(1, places[0] * O + places[1]), _triangles(a)


def _triangles(a: Tensor) -> Tensor:
    """The products of all pairs of columns, (n, I (I + 1) / 2)."""
    n, I = a.shape
    out, start = a.new_empty(n, I * (I + 1) // 2), 0
    for i in range(I):
        torch.mul(a[:, i:], a[:, i : i + 1], out=out[:, start : start + I - i])
        start += I - i
    return out


def _places(n: int, like: Tensor) -> Tensor:
    """Where the entries of a symmetric matrix stand in its triangle, row by row."""
    i, j = torch.triu_indices(n, n, device=like.device)
    where = torch.empty(n, n, dtype=torch.long, device=like.device)
    where[i, j] = where[j, i] = torch.arange(len(i), device=like.device)
    return where.flatten()

"""Parts of J kept as factors, and all that they give of J without it (:ref:`math-ntk`).

A factor holds the rows C_iᵀ J_i of a chunk of examples for some of the weights, as little as they
can be said with:

    Dense      one vector a per example           row = g aᵀ (weight), g (bias)
    Patches    T positions per example            row = Σ_t g_t a_tᵀ, in H groups of channels
    Tokens     T looked-up rows of a table        row = Σ_t g_t e_tᵀ
    Rows       the rows themselves
    Shared     one matrix M per example           row r = core_r M, an outer dimension at a time

Shapes: n examples, R rows each, example by example: g (n, R, O), (n, R, H, T, O) or (n, R, T, O);
a (n, I) or (n, H, T, I); values (n, R, p). A Gram tile is (n, R, n2, R2). A slot is the place of a
parameter in the flat weight vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Dense",
    "Factor",
    "Patches",
    "Rows",
    "Slot",
    "Tokens",
    "add_gram",
    "add_squares",
    "apply",
    "condensed",
    "covered",
    "diagonal_blocks",
    "explicit",
    "fold",
    "held_numbers",
    "joined",
    "merge",
    "n_rows_of",
    "part_of",
    "prefers_rows",
    "write_rows",
]

# Rows up to this wide are cheaper copied together than multiplied apart.
_NARROW = 256
# One pass over a tile costs about as much time as this many multiplications in a matrix product.
_PASS = 30


@dataclass(frozen=True)
class Slot:
    """Place ``start:stop`` of parameter number ``index`` in the flat weight vector."""

    start: int
    stop: int
    index: int


@dataclass(frozen=True)
class Dense:
    """A dense layer on one vector per example: a (n, I), g (n, R, O).

    ``core``, where known: the (R, O) that g is for every example.
    """

    a: Tensor
    g: Tensor
    weight: Slot | None
    bias: Slot | None
    core: Tensor | None = None


@dataclass(frozen=True)
class Patches:
    """Weights met at T positions: a (n, H, T, I), g (n, R, H, T, O); the weight is (H, O, I).

    ``outer``, where known and H = 1: (R, O) and (n, O, T) whose product g is.
    """

    a: Tensor
    g: Tensor
    weight: Slot
    outer: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Tokens:
    """A table of ``n_tokens`` rows, looked up: a (n, T) integers, g (n, R, T, O)."""

    a: Tensor
    g: Tensor
    weight: Slot
    n_tokens: int


@dataclass(frozen=True)
class Rows:
    """Explicit rows: values (n, R, p), whose columns are those of ``slots`` in turn."""

    values: Tensor
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Shared:
    """Rows that differ in one number per output of the layer: core[r, o] M[n, o, i].

    Only in Gram matrices: M (n, O, I), core (R, O).
    """

    M: Tensor
    core: Tensor
    weight: Slot


Factor = Dense | Patches | Tokens | Rows


def covered(factor: Factor) -> int:
    """How many weights the factor has the rows of."""
    if isinstance(factor, Rows):
        return sum(slot.stop - slot.start for slot in factor.slots)
    bias = getattr(factor, "bias", None)
    return sum(slot.stop - slot.start for slot in (factor.weight, bias) if slot is not None)


def explicit(factor: Factor) -> list[Rows]:
    """The factor's rows, formed."""
    if isinstance(factor, Rows):
        return [factor]
    a, g = factor.a, factor.g
    if isinstance(factor, Dense):
        parts = [] if factor.bias is None else [_rows(g, factor.bias)]
        if factor.weight is not None:
            parts.append(_rows((g[..., None] * a[:, None, None]).flatten(2), factor.weight))
        return parts
    if isinstance(factor, Patches):
        return [_rows(_patch_rows(a, g), factor.weight)]
    n, R, _, O = g.shape
    table = g.new_zeros(n, R, factor.n_tokens, O)
    table.scatter_add_(2, a[:, None, :, None].expand_as(g), g)
    return [_rows(table.flatten(2), factor.weight)]


def _rows(values: Tensor, slot: Slot) -> Rows:
    """Rows of one parameter, which a folded factor has several times over."""
    return Rows(values, (slot,) * (values.shape[2] // (slot.stop - slot.start)))


def _patch_rows(a: Tensor, g: Tensor) -> Tensor:
    """Σ_t g_t a_tᵀ as (n, R, H O I): one product per example and group for all its rows."""
    n, R, H, T, O = g.shape
    stacked = g.permute(0, 2, 1, 4, 3).reshape(n, H, R * O, T)
    return (stacked @ a).view(n, H, R, O, -1).transpose(1, 2).flatten(2)


def held_numbers(factor: Factor, n_rows: int) -> tuple[int, int]:
    """Numbers kept per example and per row for a large Gram matrix of ``n_rows`` an example."""
    if isinstance(factor, Rows):
        return 0, factor.values.shape[2]
    n = len(factor.a)
    many = replace(factor, g=factor.g[:, :1].expand(n, n_rows, *factor.g.shape[2:]))
    if isinstance(factor, Patches) and prefers_rows(many, 1000):
        return 0, covered(factor)
    return factor.a.numel() // n, factor.g[:, 0].numel() // n


def condensed(factor: Any) -> Any:
    """The factor as little as a Gram matrix needs of it."""
    if not isinstance(factor, Patches) or factor.outer is None:
        return factor
    core, slope = factor.outer
    return Shared(slope @ factor.a[:, 0], core, factor.weight)


def fold(factor: Any) -> Any:
    """The factor whose one-row Gram matrix is the trace over rows of this one's."""
    if isinstance(factor, Shared):
        return replace(factor, core=factor.core.square().sum(0, keepdim=True).sqrt())
    if isinstance(factor, Rows):
        values = factor.values
        return Rows(values.flatten(1)[:, None], factor.slots * values.shape[1])
    g = factor.g.movedim(1, -2).flatten(-2)[:, None]
    if isinstance(factor, Dense):
        return replace(factor, g=g, core=None)
    return replace(factor, g=g)


def merge(factors: Sequence[Factor], as_rows: Sequence[bool]) -> list[Factor]:
    """Form the rows of the marked factors, and join narrow ones into one for one product."""
    kept = [f for f, flag in zip(factors, as_rows, strict=True) if not flag]
    rows = [r for f, flag in zip(factors, as_rows, strict=True) if flag for r in explicit(f)]
    narrow = [r for r in rows if r.values.shape[2] <= _NARROW]
    wide = [r for r in rows if r.values.shape[2] > _NARROW]
    if len(narrow) > 1:
        slots = tuple(slot for r in narrow for slot in r.slots)
        narrow = [Rows(torch.cat([r.values for r in narrow], dim=2), slots)]
    return [*narrow, *wide, *kept]


def prefers_rows(factor: Any, n: int) -> bool:
    """Whether a Gram matrix over ``n`` examples costs fewer operations through explicit rows."""
    if not hasattr(factor, "g"):
        return isinstance(factor, Rows)
    R, pairs = factor.g.shape[1], n * n
    O = factor.g.shape[-1]
    if isinstance(factor, Dense):
        I = factor.a.shape[1] if factor.weight is not None else 0
        by_factors = pairs * (I + R * R * (O + _PASS))
        return pairs * R * R * (I + 1) * O + n * R * I * O <= by_factors
    H, T = factor.g.shape[2:4] if isinstance(factor, Patches) else (1, factor.g.shape[2])
    I = factor.a.shape[-1] if isinstance(factor, Patches) else 1
    n_weights = H * I * O if isinstance(factor, Patches) else factor.n_tokens * O
    by_factors = pairs * H * T * T * (I + R * R * (O + _PASS))
    return pairs * R * R * n_weights + n * R * T * n_weights <= by_factors


def part_of(factor: Any, part: slice) -> Any:
    """The factor of some of the examples, without a copy."""
    if isinstance(factor, Rows):
        return Rows(factor.values[part], factor.slots)
    if isinstance(factor, Shared):
        return replace(factor, M=factor.M[part])
    return replace(factor, a=factor.a[part], g=factor.g[part])


def joined(pieces: Sequence[Any]) -> Any:
    """One factor of the examples of several alike."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if isinstance(first, Rows):
        return Rows(torch.cat([piece.values for piece in pieces]), first.slots)
    if isinstance(first, Shared):
        return replace(first, M=torch.cat([piece.M for piece in pieces]))
    a, g = torch.cat([piece.a for piece in pieces]), torch.cat([piece.g for piece in pieces])
    return replace(first, a=a, g=g)


def n_rows_of(factor: Any) -> int:
    """R, the rows of an example."""
    if isinstance(factor, Shared):
        return factor.core.shape[0]
    return (factor.values if isinstance(factor, Rows) else factor.g).shape[1]


def add_gram(
    left: Any, right: Any, tile: Tensor | None, scale: Sequence[float] | None = None
) -> Tensor:
    """Add left diag(scale) rightᵀ to ``tile`` (n, R, n2, R2), or begin it where it is None.

    Both factors are of one kind; the tile is returned.
    """
    if isinstance(left, Rows):
        return _add_rows(left, right, tile, scale)
    if isinstance(left, Shared):
        return _add_shared(left, right, tile, scale)
    if isinstance(left, Dense):
        A, (n2, R2) = _dense_inputs(left, right, scale), right.g.shape[:2]
        if tile is not None and left.core is not None and right.core is not None:
            few = _few_pairs(left.core, right.core)
            if few is not None:
                for r, r2, w in few:
                    tile[:, r, :, r2].add_(A, alpha=w)
                return tile
        if R2 > 1:  # long inner loops
            A = A[..., None].expand(-1, -1, R2).flatten(1)
        G = (left.g.flatten(0, 1) @ right.g.flatten(0, 1).mT).view(*left.g.shape[:2], -1)
        if tile is None:
            return G.mul_(A[:, None]).unflatten(2, (n2, R2))
        tile.flatten(2).addcmul_(G, A[:, None])
        return tile
    s = 1.0 if scale is None else scale[left.weight.index]
    for h in range(left.a.shape[1] if isinstance(left, Patches) else 1):
        pairs = _position_pairs(left, right, h)
        tile = pairs.mul_(s) if tile is None else tile.add_(pairs, alpha=s)
    assert tile is not None
    return tile


def _few_pairs(core: Tensor, core2: Tensor) -> list[tuple[int, int, float]] | None:
    """The pairs of rows whose product is not zero, if few: the outputs themselves have R."""
    W = core @ core2.mT
    places = W.nonzero().tolist()
    if 4 * len(places) > W.numel():
        return None
    return [(r, r2, float(W[r, r2])) for r, r2 in places]


def _add_shared(
    left: Shared, right: Shared, tile: Tensor | None, scale: Sequence[float] | None
) -> Tensor:
    """Σ_o (core core')[o] (M[o]·M'[o]): the inner products are shared by all pairs of rows."""
    U = left.M.transpose(0, 1) @ right.M.permute(1, 2, 0)
    W = left.core[:, None] * right.core
    if scale is not None:
        W = W * scale[left.weight.index]
    pairs = (W.flatten(0, 1) @ U.flatten(1)).view(*W.shape[:2], *U.shape[1:]).permute(2, 0, 3, 1)
    return pairs.contiguous() if tile is None else tile.add_(pairs)


def _add_rows(
    left: Rows, right: Rows, tile: Tensor | None, scale: Sequence[float] | None
) -> Tensor:
    values, columns = left.values.flatten(0, 1), right.values.flatten(0, 1).mT
    if scale is not None:
        values = values * _column_scale(left, scale, values)
    if tile is None:
        return (values @ columns).view(*left.values.shape[:2], *right.values.shape[:2])
    tile.flatten(2).flatten(0, 1).addmm_(values, columns)
    return tile


def _dense_inputs(left: Dense, right: Dense, scale: Sequence[float] | None) -> Tensor:
    """s_w a·a' + s_b, of shape (n, n2)."""
    s_b = 0.0 if left.bias is None else 1.0 if scale is None else float(scale[left.bias.index])
    if left.weight is None:
        return left.a.new_full((len(left.a), len(right.a)), s_b)
    s_w = 1.0 if scale is None else float(scale[left.weight.index])
    one = left.a.new_full((1, 1), s_b)
    return torch.addmm(one, left.a, right.a.mT, alpha=s_w)


def _inputs_of(factor: Patches | Tokens, h: int) -> tuple[Tensor, Tensor]:
    """Inputs (n, T, I) or tokens (n, T), and g (n, R, T, O), of channel group h."""
    if isinstance(factor, Patches):
        return factor.a[:, h], factor.g[:, :, h]
    return factor.a, factor.g


def _position_pairs(left: Patches | Tokens, right: Patches | Tokens, h: int) -> Tensor:
    """Σ over pairs of positions of (a·a')(g·g'), (n, R, n2, R2)."""
    (a, g), (a2, g2) = _inputs_of(left, h), _inputs_of(right, h)
    n, R, T, _ = g.shape
    n2, R2, T2, _ = g2.shape
    if isinstance(left, Patches):
        A = (a.flatten(0, 1) @ a2.flatten(0, 1).mT).view(n, 1, T, n2, 1, T2)
    else:
        A = (a[:, None, :, None, None, None] == a2[:, None]).to(g.dtype)
    G = (g.flatten(0, 2) @ g2.flatten(0, 2).mT).view(n, R, T, n2, R2, T2)
    return G.mul_(A).sum((2, 5))


def _column_scale(factor: Rows, scale: Sequence[float], like: Tensor) -> Tensor:
    columns = [
        like.new_full((slot.stop - slot.start,), float(scale[slot.index])) for slot in factor.slots
    ]
    return torch.cat(columns)


def write_rows(factor: Factor, out: Tensor) -> None:
    """Write the rows into ``out`` (n, R, P), where they belong."""
    for part in explicit(factor) if isinstance(factor, Patches | Tokens) else [factor]:
        if isinstance(part, Dense):
            _write_dense(part, out)
            continue
        start = 0
        for slot in part.slots:
            size = slot.stop - slot.start
            out[:, :, slot.start : slot.stop] = part.values[..., start : start + size]
            start += size


def _write_dense(factor: Dense, out: Tensor) -> None:
    g = factor.g
    if factor.bias is not None:
        out[:, :, factor.bias.start : factor.bias.stop] = g
    if factor.weight is not None:
        part = out[:, :, factor.weight.start : factor.weight.stop]
        part = part.unflatten(2, (g.shape[2], factor.a.shape[1]))
        if out.dtype == g.dtype:
            torch.mul(g[..., None], factor.a[:, None, None], out=part)
        else:
            part.copy_(g[..., None] * factor.a[:, None, None])


def add_squares(factor: Factor, total: Tensor) -> None:
    """Add the sum over rows of their elementwise squares to ``total`` (P,)."""
    if isinstance(factor, Dense):
        squares = factor.g.double().square().sum(1)
        if factor.bias is not None:
            total[factor.bias.start : factor.bias.stop] += squares.sum(0)
        if factor.weight is not None:
            weight = squares.mT @ factor.a.double().square()
            total[factor.weight.start : factor.weight.stop] += weight.flatten()
        return
    for part in explicit(factor):
        squares, start = _squares(part.values.flatten(0, 1)).sum(0), 0
        for slot in part.slots:
            size = slot.stop - slot.start
            total[slot.start : slot.stop] += squares[start : start + size]
            start += size


def _squares(values: Tensor) -> Tensor:
    """Squares in float64, in one new array at most: the values are the largest in hand."""
    copy = values.double()
    return values.square() if copy is values else copy.square_()


def diagonal_blocks(factor: Factor, scale: Sequence[float] | None) -> Tensor:
    """Rows times rows of the same example, of shape (n, R, R), float64."""
    if isinstance(factor, Rows):
        values = factor.values.double()
        scaled = values if scale is None else values * _column_scale(factor, scale, values)
        return scaled @ values.mT
    g = factor.g.double()
    if isinstance(factor, Dense):
        s_w, s_b = (
            0.0 if slot is None else 1.0 if scale is None else float(scale[slot.index])
            for slot in (factor.weight, factor.bias)
        )
        return (s_w * factor.a.double().square().sum(1) + s_b)[:, None, None] * (g @ g.mT)
    if isinstance(factor, Patches):
        return diagonal_blocks(explicit(factor)[0], scale)
    same = (factor.a[:, :, None] == factor.a[:, None]).double()
    s = 1.0 if scale is None else float(scale[factor.weight.index])
    return s * torch.einsum("nrto,ntu,nquo->nrq", g, same, g)


def apply(factor: Factor, v: Tensor) -> Tensor:
    """Rows times v (P, Q), of shape (n, R, Q), in the dtype of v."""
    if isinstance(factor, Dense):
        g = factor.g.to(v)
        total = v.new_zeros(*g.shape[:2], v.shape[1])
        if factor.weight is not None:
            V = v[factor.weight.start : factor.weight.stop].view(g.shape[2], -1, v.shape[1])
            total = g @ torch.einsum("ni,oiq->noq", factor.a.to(v), V)
        if factor.bias is not None:
            total = total + g @ v[factor.bias.start : factor.bias.stop]
        return total
    if isinstance(factor, Tokens):
        V = v[factor.weight.start : factor.weight.stop].view(factor.n_tokens, -1, v.shape[1])
        return torch.einsum("nrto,ntoq->nrq", factor.g.to(v), V[factor.a])
    n, R = factor.values.shape[:2] if isinstance(factor, Rows) else factor.g.shape[:2]
    if isinstance(factor, Patches) and v.shape[1] <= R:  # fewer vectors than rows to form
        H, I, O = factor.a.shape[1], factor.a.shape[3], factor.g.shape[4]
        V = v[factor.weight.start : factor.weight.stop].view(H, O, I, -1)
        Va = torch.einsum("nhti,hoiq->nhtoq", factor.a.to(v), V)
        return torch.einsum("nrhto,nhtoq->nrq", factor.g.to(v), Va)
    total = v.new_zeros(n, R, v.shape[1])
    for part in explicit(factor):
        columns = torch.cat([v[slot.start : slot.stop] for slot in part.slots])
        total = total + part.values.to(v) @ columns
    return total

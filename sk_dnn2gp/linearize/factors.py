"""Parts of J kept as factors, and all that they give of J without it (:ref:`math-ntk`).

A factor holds the rows C_iᵀ J_i of a chunk of examples for some of the weights, as little as they
can be said with:

    Dense      one vector a per example           row = g aᵀ (weight), g (bias)
    Patches    T positions per example            row = Σ_t g_t a_tᵀ, in H groups of channels
    Tokens     T looked-up rows of a table        row = Σ_t g_t e_tᵀ
    Rows       the rows themselves
    Shared     one matrix M per example           row r = core_r M, an outer dimension at a time

Each contracts itself; what it knows no better way for goes by its explicit rows.

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

__all__ = ["Dense", "Factor", "Patches", "Rows", "Slot", "Tokens", "joined", "merge"]

# Rows up to this wide are cheaper copied together than multiplied apart.
_NARROW = 256
# One pass over a tile costs about as much time as this many multiplications in a matrix product.
_PASS = 30

_Scale = Sequence[float] | None


@dataclass(frozen=True)
class Slot:
    """Place ``start:stop`` of parameter number ``index`` in the flat weight vector."""

    start: int
    stop: int
    index: int

    @property
    def size(self) -> int:
        """How many weights."""
        return self.stop - self.start

    @property
    def place(self) -> slice:
        """Where they are."""
        return slice(self.start, self.stop)


def _scale_of(slot: Slot | None, scale: _Scale) -> float:
    """The factor of a parameter; 0 of one that is not asked for."""
    return 0.0 if slot is None else 1.0 if scale is None else float(scale[slot.index])


class Factor:
    """The rows of some weights; what is here goes by way of the explicit ones."""

    slots: tuple[Slot, ...]  # the parameters
    n_positions = 1  # that an example brings to a tile of pairs of positions

    @property
    def n_rows(self) -> int:
        """R, the rows of an example."""
        raise NotImplementedError

    @property
    def arrays(self) -> dict[str, Tensor]:
        """What has the examples on its first axis, by name."""
        raise NotImplementedError

    @property
    def n_examples(self) -> int:
        """n."""
        return len(next(iter(self.arrays.values())))

    @property
    def n_weights(self) -> int:
        """How many weights the factor has the rows of."""
        return sum(slot.size for slot in self.slots)

    @property
    def n_bytes(self) -> int:
        """What the factor takes."""
        return sum(t.numel() * t.element_size() for t in self.arrays.values())

    def explicit(self) -> list[Rows]:
        """The rows, formed."""
        raise NotImplementedError

    def part(self, part: slice) -> Any:
        """The factor of some of the examples, without a copy."""
        return replace(self, **{k: t[part] for k, t in self.arrays.items()})  # type: ignore[type-var]

    def split(self) -> list[Any]:
        """One factor per parameter."""
        return [self]

    def condensed(self) -> Factor:
        """The factor as little as a Gram matrix needs of it."""
        return self

    def folded(self) -> Factor:
        """The factor whose one-row Gram matrix is the trace over rows of this one's."""
        raise NotImplementedError

    def prefers_rows(self, n: int) -> bool:
        """Whether a Gram matrix over ``n`` examples costs fewer operations by explicit rows."""
        return False

    def held_numbers(self, n_rows: int) -> tuple[int, int]:
        """Numbers kept per example and per row for a Gram matrix of ``n_rows`` an example."""
        raise NotImplementedError

    def add_gram(self, right: Any, tile: Tensor | None, scale: _Scale = None) -> Tensor:
        """Add self diag(scale) rightᵀ, of one kind, to ``tile``, or begin it where it is None."""
        raise NotImplementedError

    def write_rows(self, out: Tensor) -> None:
        """Write the rows into ``out`` (n, R, P), where they belong."""
        for rows in self.explicit():
            rows.write_rows(out)

    def add_squares(self, total: Tensor) -> None:
        """Add the sum over rows of their elementwise squares to ``total`` (P,), in its dtype."""
        for rows in self.explicit():
            rows.add_squares(total)

    def diagonal_blocks(self, scale: _Scale) -> Tensor:
        """Rows diag(scale) rowsᵀ of the same example, of shape (n, R, R), float64."""
        return self.explicit()[0].diagonal_blocks(scale)

    def apply(self, v: Tensor) -> Tensor:
        """Rows times v (P, Q), of shape (n, R, Q), in the dtype of v."""
        return self.explicit()[0].apply(v)


@dataclass(frozen=True)
class Rows(Factor):
    """Explicit rows: values (n, R, p), whose columns are those of ``slots`` in turn."""

    values: Tensor
    slots: tuple[Slot, ...]

    @property
    def n_rows(self) -> int:
        return self.values.shape[1]

    @property
    def arrays(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def explicit(self) -> list[Rows]:
        return [self]

    def columns(self) -> list[tuple[Slot, slice]]:
        """Which columns belong to which parameter."""
        found, start = [], 0
        for slot in self.slots:
            found.append((slot, slice(start, start + slot.size)))
            start += slot.size
        return found

    def folded(self) -> Factor:
        return Rows(self.values.flatten(1)[:, None], self.slots * self.values.shape[1])

    def prefers_rows(self, n: int) -> bool:
        return True

    def held_numbers(self, n_rows: int) -> tuple[int, int]:
        return 0, self.values.shape[2]

    def add_gram(self, right: Any, tile: Tensor | None, scale: _Scale = None) -> Tensor:
        values, columns = self._scaled(self.values, scale), right.values.flatten(0, 1).mT
        values = values.flatten(0, 1)
        if tile is None:
            return (values @ columns).view(*self.values.shape[:2], *right.values.shape[:2])
        tile.flatten(2).flatten(0, 1).addmm_(values, columns)
        return tile

    def _scaled(self, values: Tensor, scale: _Scale) -> Tensor:
        if scale is None:
            return values
        sizes = [values.new_full((slot.size,), float(scale[slot.index])) for slot in self.slots]
        return values * torch.cat(sizes)

    def write_rows(self, out: Tensor) -> None:
        for slot, columns in self.columns():
            out[:, :, slot.place] = self.values[..., columns]

    def add_squares(self, total: Tensor) -> None:
        values = self.values.flatten(0, 1)
        copy = values.to(total)  # one new array at most: the values are the largest in hand
        squares = (values.square() if copy is values else copy.square_()).sum(0)
        for slot, columns in self.columns():
            total[slot.place] += squares[columns]

    def diagonal_blocks(self, scale: _Scale) -> Tensor:
        values = self.values.double()
        return self._scaled(values, scale) @ values.mT

    def apply(self, v: Tensor) -> Tensor:
        none = v.new_zeros(0, v.shape[1])
        return self.values.to(v) @ torch.cat([none, *(v[slot.place] for slot in self.slots)])


class _Layer(Factor):
    """A layer's weights, met by inputs a and derivatives g."""

    a: Tensor
    g: Tensor

    @property
    def n_rows(self) -> int:
        return self.g.shape[1]

    @property
    def arrays(self) -> dict[str, Tensor]:
        return {"a": self.a, "g": self.g}

    def held_numbers(self, n_rows: int) -> tuple[int, int]:
        return self.a[0].numel(), self.g[0, 0].numel()


@dataclass(frozen=True)
class Dense(_Layer):
    """A dense layer on one vector per example: a (n, I), g (n, R, O).

    ``core``, where known: the (R, O) that g is for every example.
    """

    a: Tensor
    g: Tensor
    weight: Slot | None
    bias: Slot | None
    core: Tensor | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:  # type: ignore[override]
        return tuple(slot for slot in (self.weight, self.bias) if slot is not None)

    def explicit(self) -> list[Rows]:
        parts = [] if self.bias is None else [_rows(self.g, self.bias)]
        if self.weight is not None:
            outer = self.g[..., None] * self.a[:, None, None]
            parts.append(_rows(outer.flatten(2), self.weight))
        return parts

    def split(self) -> list[Any]:
        parts: list[Factor] = [] if self.bias is None else [Rows(self.g, (self.bias,))]
        if self.weight is not None:
            parts.append(Patches(self.a[:, None, None], self.g[:, :, None, None], self.weight))
        return parts

    def folded(self) -> Factor:
        return replace(self, g=_one_row(self.g), core=None)

    def prefers_rows(self, n: int) -> bool:
        (_, R, O), pairs = self.g.shape, n * n
        I = self.a.shape[1] if self.weight is not None else 0
        by_factors = pairs * (I + R * R * (O + _PASS))
        return pairs * R * R * (I + 1) * O + n * R * I * O <= by_factors

    def add_gram(self, right: Any, tile: Tensor | None, scale: _Scale = None) -> Tensor:
        A, (n2, R2) = self._inputs(right, scale), right.g.shape[:2]
        if tile is not None and self.core is not None and right.core is not None:
            few = _few_pairs(self.core, right.core)
            if few is not None:
                for r, r2, w in few:
                    tile[:, r, :, r2].add_(A, alpha=w)
                return tile
        if R2 > 1:  # long inner loops
            A = A[..., None].expand(-1, -1, R2).flatten(1)
        G = (self.g.flatten(0, 1) @ right.g.flatten(0, 1).mT).view(*self.g.shape[:2], -1)
        if tile is None:
            return G.mul_(A[:, None]).unflatten(2, (n2, R2))
        tile.flatten(2).addcmul_(G, A[:, None])
        return tile

    def _inputs(self, right: Dense, scale: _Scale) -> Tensor:
        """s_w a·a' + s_b, of shape (n, n2)."""
        s_w, s_b = _scale_of(self.weight, scale), _scale_of(self.bias, scale)
        if self.weight is None:
            return self.a.new_full((len(self.a), len(right.a)), s_b)
        return torch.addmm(self.a.new_full((1, 1), s_b), self.a, right.a.mT, alpha=s_w)

    def write_rows(self, out: Tensor) -> None:
        a, g = self.a, self.g
        if self.bias is not None:
            out[:, :, self.bias.place] = g
        if self.weight is not None:
            part = out[:, :, self.weight.place].unflatten(2, (g.shape[2], a.shape[1]))
            if out.dtype == g.dtype:
                torch.mul(g[..., None], a[:, None, None], out=part)
            else:
                part.copy_(g[..., None] * a[:, None, None])

    def add_squares(self, total: Tensor) -> None:
        g = self.g.to(total).square()
        squares = g.sum(1) if g.shape[1] > 1 else g[:, 0]
        if self.bias is not None:
            total[self.bias.place] += squares.sum(0)
        if self.weight is not None:
            part = total[self.weight.place].view(squares.shape[1], -1)
            part.addmm_(squares.mT, self.a.to(total).square())

    def diagonal_blocks(self, scale: _Scale) -> Tensor:
        g, s_w, s_b = self.g.double(), _scale_of(self.weight, scale), _scale_of(self.bias, scale)
        norms = s_w * self.a.double().square().sum(1) + s_b
        return norms[:, None, None] * (g @ g.mT)

    def apply(self, v: Tensor) -> Tensor:
        g = self.g.to(v)
        total = v.new_zeros(*g.shape[:2], v.shape[1])
        if self.weight is not None:
            V = v[self.weight.place].view(g.shape[2], -1, v.shape[1])
            total = g @ torch.einsum("ni,oiq->noq", self.a.to(v), V)
        if self.bias is not None:
            total = total + g @ v[self.bias.place]
        return total


class _Positions(_Layer):
    """One weight met at T positions of an example."""

    weight: Slot

    @property
    def slots(self) -> tuple[Slot, ...]:  # type: ignore[override]
        return (self.weight,)

    @property
    def n_positions(self) -> int:  # type: ignore[override]
        return self.g.shape[-2]

    def folded(self) -> Factor:
        return replace(self, g=_one_row(self.g))  # type: ignore[type-var]

    def prefers_rows(self, n: int) -> bool:
        return self._prefers_rows(n, self.n_rows)

    def _prefers_rows(self, n: int, R: int) -> bool:
        (H, I), (T, O) = self._groups(), self.g.shape[-2:]
        by_factors = n * n * H * T * T * (I + R * R * (O + _PASS))
        width = O * self._n_inputs()
        return n * n * R * R * width + n * R * T * width <= by_factors

    def _groups(self) -> tuple[int, int]:
        """Groups of channels, and inputs in each that a pair of positions multiplies."""
        return 1, 1

    def _n_inputs(self) -> int:
        """Weights of an output."""
        raise NotImplementedError


@dataclass(frozen=True)
class Patches(_Positions):
    """Weights met at T positions: a (n, H, T, I), g (n, R, H, T, O); the weight is (H, O, I).

    ``outer``, where known and H = 1: (R, O) and (n, O, T) whose product g is.
    """

    a: Tensor
    g: Tensor
    weight: Slot
    outer: tuple[Tensor, Tensor] | None = None

    def explicit(self) -> list[Rows]:
        """Σ_t g_t a_tᵀ as (n, R, H O I): one product per example and group for all its rows."""
        n, R, H, T, O = self.g.shape
        stacked = self.g.permute(0, 2, 1, 4, 3).reshape(n, H, R * O, T)
        values = (stacked @ self.a).view(n, H, R, O, -1).transpose(1, 2).flatten(2)
        return [_rows(values, self.weight)]

    def _groups(self) -> tuple[int, int]:
        return self.a.shape[1], self.a.shape[3]

    def _n_inputs(self) -> int:
        return self.a.shape[1] * self.a.shape[3]

    def condensed(self) -> Factor:
        if self.outer is None:
            return self
        core, slope = self.outer
        return Shared(slope @ self.a[:, 0], core, self.weight)

    def held_numbers(self, n_rows: int) -> tuple[int, int]:
        if self._prefers_rows(1000, n_rows):
            return 0, self.n_weights
        return super().held_numbers(n_rows)

    def add_gram(self, right: Any, tile: Tensor | None, scale: _Scale = None) -> Tensor:
        s = _scale_of(self.weight, scale)
        for h in range(self.a.shape[1]):
            a, a2 = self.a[:, h], right.a[:, h]
            A = (a.flatten(0, 1) @ a2.flatten(0, 1).mT).view(len(a), 1, a.shape[1], *a2.shape[:2])
            pairs = _position_pairs(A[..., None, :], self.g[:, :, h], right.g[:, :, h])
            tile = pairs.mul_(s) if tile is None else tile.add_(pairs, alpha=s)
        assert tile is not None
        return tile

    def apply(self, v: Tensor) -> Tensor:
        if v.shape[1] > self.n_rows:  # more vectors than rows to form
            return super().apply(v)
        V = v[self.weight.place].view(self.a.shape[1], self.g.shape[4], self.a.shape[3], -1)
        Va = torch.einsum("nhti,hoiq->nhtoq", self.a.to(v), V)
        return torch.einsum("nrhto,nhtoq->nrq", self.g.to(v), Va)


@dataclass(frozen=True)
class Tokens(_Positions):
    """Rows of a table looked up: a (n, T) integers, g (n, R, T, O)."""

    a: Tensor
    g: Tensor
    weight: Slot
    n_tokens: int

    def explicit(self) -> list[Rows]:
        n, R, _, O = self.g.shape
        table = self.g.new_zeros(n, R, self.n_tokens, O)
        table.scatter_add_(2, self.a[:, None, :, None].expand_as(self.g), self.g)
        return [_rows(table.flatten(2), self.weight)]

    def _n_inputs(self) -> int:
        return self.n_tokens

    def add_gram(self, right: Any, tile: Tensor | None, scale: _Scale = None) -> Tensor:
        same = (self.a[:, None, :, None, None, None] == right.a[:, None]).to(self.g.dtype)
        pairs, s = _position_pairs(same, self.g, right.g), _scale_of(self.weight, scale)
        return pairs.mul_(s) if tile is None else tile.add_(pairs, alpha=s)

    def diagonal_blocks(self, scale: _Scale) -> Tensor:
        g, same = self.g.double(), (self.a[:, :, None] == self.a[:, None]).double()
        return _scale_of(self.weight, scale) * torch.einsum("nrto,ntu,nquo->nrq", g, same, g)

    def apply(self, v: Tensor) -> Tensor:
        V = v[self.weight.place].view(self.n_tokens, -1, v.shape[1])
        return torch.einsum("nrto,ntoq->nrq", self.g.to(v), V[self.a])


@dataclass(frozen=True)
class Shared(Factor):
    """Rows that differ in one number per output of the layer: core[r, o] M[n, o, i].

    Only in Gram matrices: M (n, O, I), core (R, O).
    """

    M: Tensor
    core: Tensor
    weight: Slot

    @property
    def n_rows(self) -> int:
        return self.core.shape[0]

    @property
    def arrays(self) -> dict[str, Tensor]:
        return {"M": self.M}

    def folded(self) -> Factor:
        return replace(self, core=self.core.square().sum(0, keepdim=True).sqrt())

    def add_gram(self, right: Any, tile: Tensor | None, scale: _Scale = None) -> Tensor:
        """Σ_o (core core')[o] (M[o]·M'[o]): the inner products are shared by all pairs of rows."""
        U = self.M.transpose(0, 1) @ right.M.permute(1, 2, 0)
        W = self.core[:, None] * right.core * _scale_of(self.weight, scale)
        pairs = (W.flatten(0, 1) @ U.flatten(1)).view(*W.shape[:2], *U.shape[1:])
        pairs = pairs.permute(2, 0, 3, 1)
        return pairs.contiguous() if tile is None else tile.add_(pairs)


def joined(pieces: Sequence[Any]) -> Any:
    """One factor of the examples of several alike."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    return replace(
        first, **{k: torch.cat([piece.arrays[k] for piece in pieces]) for k in first.arrays}
    )


def merge(factors: Sequence[Factor], as_rows: Sequence[bool]) -> list[Factor]:
    """Form the rows of the marked factors, and join narrow ones into one for one product."""
    kept = [f for f, flag in zip(factors, as_rows, strict=True) if not flag]
    rows = [r for f, flag in zip(factors, as_rows, strict=True) if flag for r in f.explicit()]
    narrow = [r for r in rows if r.values.shape[2] <= _NARROW]
    wide = [r for r in rows if r.values.shape[2] > _NARROW]
    if len(narrow) > 1:
        slots = tuple(slot for r in narrow for slot in r.slots)
        narrow = [Rows(torch.cat([r.values for r in narrow], dim=2), slots)]
    return [*narrow, *wide, *kept]


def _rows(values: Tensor, slot: Slot) -> Rows:
    """Rows of one parameter, which a folded factor has several times over."""
    return Rows(values, (slot,) * (values.shape[2] // slot.size))


def _one_row(g: Tensor) -> Tensor:
    """The rows of an example side by side, as outputs of one."""
    return g.movedim(1, -2).flatten(-2)[:, None]


def _few_pairs(core: Tensor, core2: Tensor) -> list[tuple[int, int, float]] | None:
    """The pairs of rows whose product is not zero, if few: the outputs themselves have R."""
    W = core @ core2.mT
    places = W.nonzero().tolist()
    if 4 * len(places) > W.numel():
        return None
    return [(r, r2, float(W[r, r2])) for r, r2 in places]


def _position_pairs(A: Tensor, g: Tensor, g2: Tensor) -> Tensor:
    """Σ over pairs of positions of A (n, 1, T, n2, 1, T2) times (g·g'), (n, R, n2, R2)."""
    G = (g.flatten(0, 2) @ g2.flatten(0, 2).mT).view(*g.shape[:3], *g2.shape[:3])
    return G.mul_(A).sum((2, 5))

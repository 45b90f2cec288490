"""Products with the whitened features, a chunk of examples at a time and mostly without rows.

Scaled by the prior (:ref:`math-groups`), Ψ = Φ D^(-1/2) and A = D^(1/2) (I + ΨᵀΨ) D^(1/2), so that
what holds for δ = 1 holds for any δ. What is large here is both NK and P: neither Ψ nor ΨᵀΨ is
formed. A product with V of q columns costs, for a dense layer with I inputs and O outputs,

    by factors  I O q + R O q  an example     (V a first, which the R rows of an example share)
    by rows     R I O q        an example     (the rows formed, one matrix product)

and takes the cheaper; the same for Ψᵀ U. Positions (convolutions) take rows, tables a look-up.

Shapes: V (n_params, q); rows of n examples (n, R, q), R = n_outputs.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import Tensor

from .._utils.memory import chunk_length, limit_in_bytes
from .._utils.parallel import Kept, shards, state
from ..linear_model import LinearModel
from ..linearize import Linearization
from ..linearize.factors import Dense, Factor, Rows, Tokens, joined, merge
from ..linearize.shared import add, on_rows, workers_of

__all__ = ["ScaledFeatures", "iter_factors"]

# One pass over an array costs about as much time as this many multiplications in a product.
_PASS = 30
# Rows of other examples below which they are formed: laying V out by layers passes over it twice.
_FEW = 2 * _PASS
# Examples of a chunk: enough for the speed of matrix products, few enough for caches.
_CHUNK = 256


def iter_factors(
    linearization: Linearization, X: Tensor, cotangents: Tensor | None, length: int = _CHUNK
) -> Iterator[tuple[slice, list[Factor]]]:
    """Yield (slice, the layers' factors of the rows of that slice), ``length`` examples at a time.

    MemoryError if not even one example fits the linearisation's memory limit.
    """
    for part in gen_batches(len(X), length):
        C = None if cotangents is None else cotangents[part]
        yield part, _factors(linearization, X[part], C)


def _factors(linearization: Linearization, X: Tensor, C: Tensor | None) -> list[Factor]:
    recording = linearization.recording(X)
    if recording is not None:
        return recording.factors(C)
    n = len(X)
    if n == 1:
        raise MemoryError(
            f"The rows of one example ({linearization.n_params} weights) do not fit the memory "
            "limit: raise memory_limit, or linearise in fewer weights (parameters=[...])."
        )
    halves = [
        _factors(linearization, X[part], None if C is None else C[part])
        for part in (slice(0, n // 2), slice(n // 2, n))
    ]
    return [joined(pair) for pair in zip(*halves, strict=True)]


class ScaledFeatures:
    """Ψ = Φ D^(-1/2) as a linear map: products with it, with its transpose, and with ΨᵀΨ.

    The layers' factors of all examples are kept where they fit a quarter of ``memory_limit`` (MiB).
    Where joblib offers workers, each has a part of the examples and keeps theirs.
    """

    def __init__(self, model: LinearModel, memory_limit: float | None = None) -> None:
        self.model, self.memory_limit = model, memory_limit
        self.n_params, self.n_rows = model.n_params, model.n_rows
        delta = model.prior_precision.expand(model.n_params)
        self.inverse_root = delta.rsqrt()
        self._kept: list[tuple[slice, list[Factor]]] | None = None
        self._shards: list[Kept] = []

    @cached_property
    def _stamp(self) -> str:
        """What workers know it by."""
        return uuid.uuid4().hex

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_shards": []}

    def release(self) -> None:
        """Give up the factors that are kept; the next product makes them anew."""
        self._kept = None

    def _by_workers(self, name: str, n_columns: int, V: Any = None, U: Any = None) -> list | None:
        """What the shards of the rows give: of V as it is, of U by its rows; None by oneself."""
        model = self.model
        n = workers_of(model.linearization, model.X, n_columns)
        if n < 2:
            return None
        parts = shards(len(model.X), n)
        if len(self._shards) != len(parts):
            self._shards = [Kept(_without_rows(model, part)) for part in parts]
        values = [V] * len(parts)
        if U is not None:
            values = [block.flatten(0, 1) for block in (self._by_example(U)[p] for p in parts)]
        said = (self._stamp, name, self.memory_limit)
        tasks = [[said] * len(parts), [*range(len(parts))], self._shards, values]
        return on_rows(_of_shard, model.linearization, model.X, n, *tasks)

    def _by_example(self, U: Tensor) -> Tensor:
        return U.view(len(self.model.X), -1, U.shape[1])

    @property
    def squared_norm(self) -> float:
        """‖Ψ‖_F² = tr ΨᵀΨ, from the factors that the products use."""
        found = self._by_workers("squared_norm", 1)
        if found is not None:
            return add(found)
        squares = torch.zeros_like(self.inverse_root)
        for _, factors in self._training():
            for factor in factors:
                factor.add_squares(squares)
        return float((squares * self.inverse_root**2).sum())

    def gram_times(self, V: Tensor) -> Tensor:
        """ΨᵀΨ V, of shape (n_params, q)."""
        found = self._by_workers("gram_times", V.shape[1], V)
        if found is not None:
            return add(found)
        scaled = _Columns(V * self.inverse_root[:, None])
        total = _Sum(scaled)
        for _, factors in self._training():
            factors = [_widened(factor, V) for factor in factors]
            U = scaled.product(factors)
            for factor in factors:
                total.add(factor, U)
        return total.result() * self.inverse_root[:, None]

    def times(self, V: Tensor) -> Tensor:
        """Ψ V, of shape (n_rows, q)."""
        found = self._by_workers("times", V.shape[1], V)
        if found is not None:
            return torch.cat(found)
        scaled = _Columns(V * self.inverse_root[:, None])
        parts = [scaled.product(factors).flatten(0, 1) for _, factors in self._training()]
        return torch.cat(parts)

    def squared_columns(self, V: Tensor) -> Tensor:
        """‖Ψ v‖² for every column v, of shape (q,): the products themselves are not kept."""
        found = self._by_workers("squared_columns", V.shape[1], V)
        if found is not None:
            return add(found)
        scaled = _Columns(V * self.inverse_root[:, None])
        total = V.new_zeros(V.shape[1])
        for _, factors in self._training():
            total += scaled.product(factors).square_().sum((0, 1))
        return total

    def transpose_times(self, U: Tensor) -> Tensor:
        """Ψᵀ U, of shape (n_params, q), for U (n_rows, q)."""
        found = self._by_workers("transpose_times", U.shape[1], U=U)
        if found is not None:
            return add(found)
        blocks = self._by_example(U)
        total = _Sum(_Columns(U.new_zeros(self.n_params, U.shape[1])))
        for part, factors in self._training():
            for factor in factors:
                total.add(factor, blocks[part])
        return total.result() * self.inverse_root[:, None]

    def rows(self, X: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (slice, J_* D^(-1/2) of it, of shape (n, n_outputs, n_params))."""
        for part, rows in self.model.linearization.iter_rows(X):
            yield part, rows * self.inverse_root

    def contractions(self, X: Tensor, V: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (slice, J_* D⁻¹ J_*ᵀ (n, K, K), J_* D^(-1/2) V (n, K, q)) of other examples."""
        if len(X) * self.model.noise_factor.shape[1] <= _FEW:
            for part, rows in self.rows(X):
                yield part, rows @ rows.mT, rows @ V
            return
        scaled = _Columns(V * self.inverse_root[:, None])
        length = self._length(V.shape[1])
        for part, factors in iter_factors(self.model.linearization, X, None, length):
            factors = _prepared(factors)
            prior = torch.stack([self._own_block(factor) for factor in factors]).sum(0)
            yield part, prior, scaled.product(factors)

    def _own_block(self, factor: Any) -> Tensor:
        """Rows D⁻¹ rowsᵀ of the same example, (n, K, K)."""
        delta = self.model.prior_precision
        if delta.ndim == 0:
            return factor.diagonal_blocks(None) / delta
        if isinstance(factor, Rows):
            values = factor.values.double() * self._columns_of(factor.slots)
            return values @ values.mT
        if isinstance(factor, Tokens):
            return self._table_block(factor)
        g = factor.g.double()
        weight = g.new_zeros(len(g), g.shape[2])  # Σ_i a_i² / δ_oi of every output o
        if factor.weight is not None:
            variance = self._columns_of((factor.weight,)).square().view(g.shape[2], -1)
            weight = factor.a.double().square() @ variance.mT
        if factor.bias is not None:
            weight = weight + self._columns_of((factor.bias,)).square()
        return (g * weight[:, None]) @ g.mT

    def _table_block(self, factor: Tokens) -> Tensor:
        """Of a table: pairs of positions that look up the same row."""
        g = factor.g.double()
        variance = self._columns_of((factor.weight,)).square().view(factor.n_tokens, -1)
        same = (factor.a[:, :, None] == factor.a[:, None]).double()
        summed = torch.einsum("nrto,ntu->nruo", g * variance[factor.a][:, None], same)
        return torch.einsum("nruo,nquo->nrq", summed, g)

    def _columns_of(self, slots: Sequence[Any]) -> Tensor:
        return torch.cat([self.inverse_root[slot.place] for slot in slots])

    def _length(self, n_columns: int) -> int:
        """Examples of a chunk whose products with ``n_columns`` fit a part of the memory."""
        widest = max(self.model.linearization.parameter_sizes) ** 0.5
        numbers = (widest + 2 * self.model.noise_factor.shape[1]) * n_columns
        return min(_CHUNK, chunk_length(8 * 16 * numbers, self.memory_limit))

    def _training(self) -> Iterator[tuple[slice, list[Factor]]]:
        """Factors of the whitened training rows: kept where they fit, else made anew."""
        if self._kept is not None:
            yield from self._kept
            return
        model, budget = self.model, limit_in_bytes(self.memory_limit) / 4
        kept: list[tuple[slice, list[Factor]]] | None = []
        for part, factors in iter_factors(model.linearization, model.X, model.noise_factor):
            factors = _prepared(factors)
            budget -= sum(factor.n_bytes for factor in factors)
            if budget < 0:
                kept = None
            if kept is not None:
                kept.append((part, factors))
            yield part, factors
        self._kept = kept


def _without_rows(model: LinearModel, part: slice) -> LinearModel:
    """What a worker needs of a shard, the rows and the network aside."""
    nothing: Any = None
    L, u = model.noise_factor[part].clone(), model.whitened_residual[part].clone()
    return replace(
        model,
        linearization=nothing, X=nothing, noise_factor=L, whitened_residual=u, residual=None,
    )  # fmt: skip


def _of_shard(
    X: Any, family: Any, w: Tensor, said: tuple, k: int, model: LinearModel, value: Any
) -> Any:
    """A product with a shard's features, which its worker keeps."""
    stamp, name, limit = said

    def make() -> ScaledFeatures:
        return ScaledFeatures(replace(model, linearization=family.at(w), X=X), limit)

    found = getattr(state(("features", k), stamp, make), name)
    return found if value is None else found(value)


def _widened(factor: Any, like: Tensor) -> Factor:
    """Rows in the precision of the products, once for both of a chunk."""
    return replace(factor, values=factor.values.to(like)) if isinstance(factor, Rows) else factor


def _prepared(factors: Sequence[Any]) -> list[Factor]:
    """Factors for products: rows where those cost less, narrow ones joined into one."""
    return merge(factors, [_prefers_rows(factor) for factor in factors])


def _prefers_rows(factor: Any) -> bool:
    if isinstance(factor, Tokens):
        return False
    if isinstance(factor, Dense):
        I, R = factor.a.shape[1] if factor.weight is not None else 0, factor.g.shape[1]
        return R * (I + 1) <= I + R + _PASS
    return True


class _Columns:
    """V (P, q), each layer's part laid out once for its products."""

    def __init__(self, V: Tensor) -> None:
        self.V = V
        self._laid_out: dict[Any, Tensor] = {}

    def product(self, factors: Sequence[Factor]) -> Tensor:
        """Rows times V, of shape (n, R, q), summed over the factors."""
        first = self._times(factors[0])
        for factor in factors[1:]:
            first += self._times(factor)
        return first

    def _times(self, factor: Any) -> Tensor:
        if isinstance(factor, Rows):
            return factor.values.to(self.V) @ self._of_rows(factor)
        g = factor.g.to(self.V)
        if isinstance(factor, Tokens):
            table = self.V[factor.weight.place]
            table = table.view(factor.n_tokens, g.shape[-1], -1)
            return torch.einsum("nrto,ntoq->nrq", g, table[factor.a])
        inner = g.new_zeros(1, g.shape[2], self.V.shape[1])
        if factor.weight is not None:
            product = factor.a.to(self.V) @ self._of_dense(factor)
            inner = product.view(len(g), g.shape[2], -1)
        if factor.bias is not None:
            inner = inner + self.V[factor.bias.place]
        return g @ inner

    def _of_rows(self, factor: Rows) -> Tensor:
        if factor.slots not in self._laid_out:
            pieces = [self.V[slot.place] for slot in factor.slots]
            empty = self.V.new_zeros(0, self.V.shape[1])
            self._laid_out[factor.slots] = torch.cat([empty, *pieces])
        return self._laid_out[factor.slots]

    def _of_dense(self, factor: Any) -> Tensor:
        """The part (O, I, q) of a dense weight as (I, O q)."""
        slot = factor.weight
        if slot not in self._laid_out:
            part = self.V[slot.place].view(factor.g.shape[2], -1, self.V.shape[1])
            self._laid_out[slot] = part.transpose(0, 1).flatten(1)
        return self._laid_out[slot]


class _Sum:
    """Σ rowsᵀ U over chunks, each layer's part in the layout of its products until the end."""

    def __init__(self, like: _Columns) -> None:
        self.total = torch.zeros_like(like.V)
        self._dense: dict[Any, Tensor] = {}

    def add(self, factor: Any, U: Tensor) -> None:
        """Add rowsᵀ U of a chunk, U (n, R, q)."""
        if isinstance(factor, Rows):
            self._add_rows(factor, U)
            return
        g = factor.g.to(U)
        if isinstance(factor, Tokens):
            part = torch.einsum("nrto,nrq->ntoq", g, U)
            table = self.total[factor.weight.place]
            table.view(factor.n_tokens, *part.shape[2:]).index_add_(
                0, factor.a.flatten(), part.flatten(0, 1)
            )
            return
        pulled = g.mT @ U
        if factor.bias is not None:
            self.total[factor.bias.place] += pulled.sum(0)
        if factor.weight is not None:
            self._add_dense(factor, pulled.flatten(1))

    def _add_rows(self, factor: Rows, U: Tensor) -> None:
        product = factor.values.to(U).flatten(0, 1).mT @ U.flatten(0, 1)
        for slot, columns in factor.columns():
            self.total[slot.place] += product[columns]

    def _add_dense(self, factor: Any, pulled: Tensor) -> None:
        slot, a = factor.weight, factor.a.to(pulled)
        if slot in self._dense:
            self._dense[slot].addmm_(a.mT, pulled)
        else:
            self._dense[slot] = a.mT @ pulled

    def result(self) -> Tensor:
        """The sum, of shape (n_params, q)."""
        for slot, part in self._dense.items():
            q = self.total.shape[1]
            turned = part.view(len(part), -1, q).transpose(0, 1)
            self.total[slot.place] += turned.reshape(-1, q)
        self._dense = {}
        return self.total

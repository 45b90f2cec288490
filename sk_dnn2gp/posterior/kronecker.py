"""The Kronecker-factored posterior: an approximation without a bound (:ref:`math-groups`).

Per layer with inputs a and whitened output derivatives g (K rows an example),

    G_l = Σ_i Σ_r (g_r g_rᵀ) ⊗ (a aᵀ)  ≈  B ⊗ A,      A = Σ_i a aᵀ / N,    B = Σ_i Σ_r g_r g_rᵀ,

which is exact for one example, or where a and g are independent (K-FAC of Martens and Grosse 2015
with exact output derivatives: KFLR of Botev, Ritter and Barber 2017); between layers nothing is
kept. Convolutions sum a aᵀ over positions and average g gᵀ over them (Grosse and Martens 2016).
With A = Q_A α Q_Aᵀ and B = Q_B β Q_Bᵀ, once, everything is elementwise in the eigenbases:

    log|I + B⊗A/δ| = Σ_ij log(1 + β_i α_j/δ),      v = Σ_ij (Q_Bᵀ G Q_A)²_ij / (β_i α_j + δ)

for a row G (O, I) of J, which for a dense layer is g aᵀ and is never formed. The bias of a dense
layer is an input that is one. What is no product of the two kinds, the scale and shift of a norm,
the bias of a convolution, weights without a layer rule, takes its own exact block up to 512
weights, and its diagonal beyond; tables (embeddings) take their diagonal.

Shapes: a (n, I) or (n, T, I); g (n, R, O) or (n, R, T, O); α (I,); β (O,); weights (O, I).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from numpy.linalg import LinAlgError
from torch import Generator, Tensor

from .._utils.memory import require_memory
from ..linear_model import LinearModel
from ..linearize.factors import Dense, Patches, Rows
from .contract import Posterior
from .products import iter_factors

__all__ = ["KroneckerPosterior"]

# Weights of an exact block, for what is no Kronecker product.
_EXACT = 512
_CHUNK = 256


@dataclass(frozen=True)
class _View:
    """One layer's rows as products: a (n, T, I), g (n, R, T, O), and where the weights lie."""

    index: Tensor  # (O, I), places in w
    a: Tensor
    g: Tensor


@dataclass(frozen=True)
class KroneckerBlock:
    """The posterior of one layer in the eigenbases of its two factors, in the prior's scale.

    ``index`` (O, I): places of the layer's weights in w; δ_oi = ``outer``_o ``inner``_i;
    ``products`` (O, I): β_o α_i, of the factors over the root of the prior precision.
    """

    index: Tensor
    outer: Tensor
    inner: Tensor
    Q_B: Tensor
    Q_A: Tensor
    products: Tensor

    @property
    def scale(self) -> Tensor:
        """1/√δ, of shape (O, I)."""
        return (self.outer[:, None] * self.inner).rsqrt()

    def rotated(self, view: _View) -> tuple[Tensor, Tensor]:
        """a and g in the eigenbases."""
        a = (view.a.double() * self.inner.rsqrt()) @ self.Q_A
        return a, (view.g.double() * self.outer.rsqrt()) @ self.Q_B

    def variance(self, view: _View) -> Tensor:
        """diag J A⁻¹ Jᵀ per example, of shape (n, R)."""
        (a, g), S = self.rotated(view), 1.0 / (1.0 + self.products)
        if a.shape[1] == 1:
            weight = a[:, 0].square_() @ S.mT
            return (g[:, :, 0].square_() @ weight[..., None])[..., 0]
        return _summed(a, g).square_().flatten(2) @ S.flatten()

    def covariance(self, view: _View) -> Tensor:
        """J A⁻¹ Jᵀ per example, of shape (n, R, R)."""
        (a, g), S = self.rotated(view), 1.0 / (1.0 + self.products)
        if a.shape[1] == 1:
            weight = a[:, 0].square_() @ S.mT
            return (g[:, :, 0] * weight[:, None]) @ g[:, :, 0].mT
        rows = _summed(a, g).flatten(2)
        return (rows * S.flatten()) @ rows.mT

    def half_rows(self, view: _View) -> Tensor:
        """H with H Hᵀ = J A⁻¹ Jᵀ, of shape (n R, O I)."""
        a, g = self.rotated(view)
        return (_summed(a, g) * (1.0 + self.products).rsqrt()).flatten(2).flatten(0, 1)

    def times(self, V: Tensor, power: float) -> Tensor:
        """A^power V for power -1, of V (..., O, I); for -1/2 a root: R V with R Rᵀ = A⁻¹."""
        if power == -1:
            V = self.Q_B.mT @ (V * self.scale) @ self.Q_A
        turned = self.Q_B @ (V * (1.0 + self.products) ** power) @ self.Q_A.mT
        return turned * self.scale

    @property
    def inverse_diagonal(self) -> Tensor:
        """diag A⁻¹, of shape (O, I)."""
        S = 1.0 / (1.0 + self.products)
        return (self.Q_B.square() @ S @ self.Q_A.square().mT) * self.scale.square()

    def with_precision(self, delta: Tensor) -> KroneckerBlock:
        """The block under ρδ, ρ one number."""
        before = self.outer[:, None] * self.inner
        ratio = delta[self.index] / before
        if not torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-12, atol=0.0):
            raise ValueError(
                "with_prior_precision changes δ by one factor a layer; for another pattern make "
                "a new KroneckerPosterior."
            )
        rho = ratio[0, 0]
        return replace(self, inner=self.inner * rho, products=self.products / rho)


class KroneckerPosterior(Posterior):
    """N(w*, A⁻¹), A Kronecker-factored layer by layer: an approximation (:ref:`math-groups`).

    Parameters
    ----------
    model : LinearModel
        Its δ: one number, one a layer, or any δ_oi = d_o e_i within a layer.
    memory_limit : float, optional
        MiB; None is scikit-learn's ``working_memory``.

    Attributes
    ----------
    is_exact : bool
        False.
    error_bound : None
        Nothing is certified; :class:`LowRankPosterior` is.
    blocks : list of KroneckerBlock

    Raises
    ------
    MemoryError
        If the layers' factors do not fit.
    ValueError
        If δ varies within a layer in another way.
    numpy.linalg.LinAlgError
        If a layer's factor has no eigendecomposition.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior.kronecker import KroneckerPosterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> round(KroneckerPosterior(model).variance(X[:1]).item(), 6)  # 1 / (3 + 1)
    0.25
    """

    is_exact = False
    error_bound = None

    def __init__(self, model: LinearModel, memory_limit: float | None = None) -> None:
        self.model, self.memory_limit = model, memory_limit
        delta = model.prior_precision.expand(model.n_params)
        self.blocks: list[KroneckerBlock] = []
        self._diagonal = torch.zeros_like(delta, dtype=torch.float64)
        self._in_blocks = torch.zeros_like(delta, dtype=torch.bool)
        for index, A, B in self._statistics():
            self.blocks.append(_decomposed(index, A, B, delta[index]))
            self._in_blocks[index] = True

    def _statistics(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(index, A, B) of every layer, in one pass over the training data."""
        model = self.model
        sums: list[tuple[Tensor, Tensor, Tensor]] = []
        for _, factors in iter_factors(model.linearization, model.X, model.noise_factor, _CHUNK):
            views = [view for factor in factors for view in _views(factor)]
            if not sums:
                self._check_memory(views)
                sums = [_zeros(view) for view in views]
            for (_, A, B), view in zip(sums, views, strict=True):
                _add_products(A, B, view)
            for factor in factors:
                for rest in _rest(factor):
                    rest.add_squares(self._diagonal)
        return [(index, A / len(model.X), B) for index, A, B in sums]

    def _check_memory(self, views: list[_View]) -> None:
        squares = sum(sum(side**2 for side in view.index.shape) for view in views)
        require_memory(
            3 * 8 * squares,
            self.memory_limit,
            f"The Kronecker posterior (P={self.model.n_params} weights)",
            "Raise memory_limit, or use posterior='diag' or 'last_layer'.",
        )

    def with_prior_precision(self, prior_precision: float | Tensor) -> KroneckerPosterior:
        """The posterior under another δ, one factor a layer; nothing is decomposed again.

        ValueError if δ changes by several factors within a layer.
        """
        changed = object.__new__(KroneckerPosterior)
        changed.__dict__.update(
            {name: self.__dict__[name] for name in ("memory_limit", "_diagonal", "_in_blocks")}
        )
        changed.model = self.model.with_prior_precision(prior_precision)
        delta = changed.model.prior_precision.expand(changed.model.n_params)
        changed.blocks = [block.with_precision(delta) for block in self.blocks]
        return changed

    @cached_property
    def _diagonal_ratio(self) -> Tensor:
        """diag(ΦᵀΦ)/δ of the weights that no block has; 0 elsewhere."""
        ratio = self._diagonal / self.model.prior_precision
        return torch.where(self._in_blocks, 0.0, ratio)

    @property
    def eigenvalues(self) -> Tensor:
        """β α/δ of every direction of the weights, of shape (n_params,)."""
        rest = self._diagonal_ratio[~self._in_blocks]
        return torch.cat([rest, *(block.products.flatten() for block in self.blocks)])

    def in_eigenbasis(self, V: Tensor) -> Tensor:
        """V (..., n_params), in the prior's scale, along the directions of ``eigenvalues``."""
        turned = (block.Q_B.mT @ V[..., block.index] @ block.Q_A for block in self.blocks)
        return torch.cat([V[..., ~self._in_blocks], *(part.flatten(-2) for part in turned)], -1)

    @cached_property
    def log_determinant(self) -> float:
        """Σ log(1 + β α/δ) over the layers."""
        return float(torch.log1p(self.eigenvalues).sum())

    @cached_property
    def effective_dimension(self) -> float:
        """γ = Σ β α/(β α + δ)."""
        return float((self.eigenvalues / (1.0 + self.eigenvalues)).sum())

    @property
    def inverse_diagonal(self) -> Tensor:
        out = 1.0 / (self.model.prior_precision * (1.0 + self._diagonal_ratio))
        for block in self.blocks:
            out[block.index] = block.inverse_diagonal
        return out

    def solve(self, v: Tensor) -> Tensor:
        return self._times(v, -1)

    def _times(self, v: Tensor, power: float) -> Tensor:
        """A^power v over the last axis, for -1; for -1/2 a root of A⁻¹."""
        precision = self.model.prior_precision * (1.0 + self._diagonal_ratio)
        out = v * precision**power
        for block in self.blocks:
            out[..., block.index] = block.times(v[..., block.index], power)
        return out

    def variance(self, X: Tensor) -> Tensor:
        return self._over_blocks(
            X,
            KroneckerBlock.variance,
            lambda rows: self._weighted(rows).square().sum(-1),
        )

    def covariance(self, X: Tensor) -> Tensor:
        def of_rest(rows: Rows) -> Tensor:
            half = self._weighted(rows)
            return half @ half.mT

        return self._over_blocks(X, KroneckerBlock.covariance, of_rest)

    def _over_blocks(self, X: Tensor, of_block: Callable, of_rest: Callable) -> Tensor:
        """What independent parts of the weights add to f(X), summed over them."""
        parts = []
        for views, rest in self._views(X):
            found = [of_block(*pair) for pair in zip(self.blocks, views, strict=True)]
            found += [of_rest(rows) for rows in rest]
            parts.append(torch.stack(found).sum(0))
        return torch.cat(parts)

    def joint_covariance(self, X: Tensor) -> Tensor:
        halves: list[list[Tensor]] = []
        for views, rest in self._views(X):
            pairs = zip(self.blocks, views, strict=True)
            half = [block.half_rows(view) for block, view in pairs]
            half += [self._weighted(rows).flatten(0, 1) for rows in rest]
            halves.append(half)
        columns = [torch.cat(pieces) for pieces in zip(*halves, strict=True)]
        return sum((half @ half.mT for half in columns[1:]), columns[0] @ columns[0].mT)

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        z = torch.randn(n_samples, self.model.n_params, dtype=torch.float64, generator=generator)
        return self._times(z.to(self._diagonal.device), -0.5)

    def _views(self, X: Tensor) -> Iterator[tuple[list[_View], list[Rows]]]:
        """Of every chunk of X, the blocks' views and the rows of the diagonal."""
        for _, factors in iter_factors(self.model.linearization, X, None, _CHUNK):
            views = [view for factor in factors for view in _views(factor)]
            rest = [
                rows for factor in factors for part in _rest(factor) for rows in part.explicit()
            ]
            yield views, [rows for rows in rest if rows.slots]

    def _weighted(self, rows: Rows) -> Tensor:
        """Rows over the root of the diagonal precision."""
        precision = self.model.prior_precision * (1.0 + self._diagonal_ratio)
        kept = torch.cat([precision[slot.place] for slot in rows.slots])
        return rows.values.double() * kept.rsqrt()


def _summed(a: Tensor, g: Tensor) -> Tensor:
    """Σ_t g_t a_tᵀ, of shape (n, R, O, I): one product per example for all its rows."""
    n, R, T, O = g.shape
    return (g.mT.reshape(n, R * O, T) @ a).view(n, R, O, -1)


def _views(factor: Any) -> list[_View]:
    """The factor as products of a and g; none where it has no such form."""
    if isinstance(factor, Dense):
        return [_dense_view(factor)]
    if isinstance(factor, Patches):
        H, O = factor.g.shape[2], factor.g.shape[-1]
        index = _range(factor.weight, factor.a).view(H, O, -1)
        return [_View(index[h], factor.a[:, h], factor.g[:, :, h]) for h in range(H)]
    if isinstance(factor, Rows):
        return [view for view, small in _row_views(factor) if small]
    return []


def _range(slot: Any, like: Tensor) -> Tensor:
    return torch.arange(slot.start, slot.stop, device=like.device)


def _dense_view(factor: Dense) -> _View:
    """A dense layer; the bias is the weight of an input that is one."""
    g, a, index = factor.g, factor.a, []
    if factor.weight is not None:
        index.append(_range(factor.weight, a).view(g.shape[2], -1))
    else:
        a = a[:, :0]
    if factor.bias is not None:
        index.append(_range(factor.bias, a)[:, None])
        a = torch.cat([a, a.new_ones(len(a), 1)], 1)
    return _View(torch.cat(index, 1), a[:, None], g[:, :, None])


def _row_views(factor: Rows) -> Iterator[tuple[_View, bool]]:
    """Every parameter of explicit rows as one block, and whether it is small enough for one."""
    for slot, columns in factor.columns():
        g = factor.values[:, :, None, columns]
        one = g.new_ones(len(g), 1, 1)
        yield _View(_range(slot, g)[:, None], one, g), slot.size <= _EXACT


def _rest(factor: Any) -> list[Any]:
    """What of a factor has no block: its diagonal is kept."""
    if isinstance(factor, Dense | Patches):
        return []
    if not isinstance(factor, Rows):
        return [factor]
    return [
        Rows(factor.values[..., columns], (slot,))
        for slot, columns in factor.columns()
        if slot.size > _EXACT
    ]


def _zeros(view: _View) -> tuple[Tensor, Tensor, Tensor]:
    O, I = view.index.shape
    new = view.a.new_zeros
    return view.index, new(I, I, dtype=torch.float64), new(O, O, dtype=torch.float64)


def _add_products(A: Tensor, B: Tensor, view: _View) -> None:
    """Add Σ a aᵀ over examples and positions to A, and Σ g gᵀ, averaged over them, to B."""
    a, g = view.a.double().flatten(0, 1), view.g.double().flatten(0, 2)
    A.addmm_(a.mT, a)
    B.addmm_(g.mT, g, alpha=1.0 / view.a.shape[1])


def _decomposed(index: Tensor, A: Tensor, B: Tensor, delta: Tensor) -> KroneckerBlock:
    """Eigenbases of the two factors over the root of δ_oi = d_o e_i.

    ValueError if δ has no such form, LinAlgError if a factor is not finite.
    """
    outer, inner = delta[:, 0] / delta[0, 0], delta[0]
    if not torch.allclose(outer[:, None] * inner, delta, rtol=1e-10, atol=0.0):
        raise ValueError(
            "prior_precision varies within a layer in a way that the Kronecker posterior cannot "
            "hold: it must be one number a layer, one an input, one an output, or their product."
        )
    if not bool(torch.isfinite(A).all() and torch.isfinite(B).all()):
        raise LinAlgError(
            "The Kronecker factors hold NaN or infinite entries: check the inputs and the "
            "network's weights."
        )
    alpha, Q_A = torch.linalg.eigh(A * inner.rsqrt()[:, None] * inner.rsqrt())
    beta, Q_B = torch.linalg.eigh(B * outer.rsqrt()[:, None] * outer.rsqrt())
    products = beta.clamp_min(0.0)[:, None] * alpha.clamp_min(0.0)
    return KroneckerBlock(index, outer, inner, Q_B, Q_A, products)

"""One forward pass, kept for products: f(X), Jᵀu, and exact Hessian products of a loss of f.

For a loss Σ_i ℓ_i(f_i) with r = ∂ℓ/∂f the Hessian in the weights is

    H v = Jᵀ Λ J v + Σ_ik r_ik ∇²f_k(x_i) v          (:ref:`math-newton`)

Dense layers in a row take it by hand: tangents forward, and the tangent of the backward pass
(Pearlmutter 1994, "Fast exact multiplication by the Hessian"). Every other network takes autograd
twice, with the graph of the gradient kept for as long as the pass is.

Shapes: X (n, ...); f, r, u (n, K); v, products (P,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._utils.memory import joined_parts, sum_parts
from .ggn import pairs_by_factors
from .plan import TOLERANCE, RulePlan, plain_attention
from .recording import Recording

__all__ = ["ChainPass", "GraphPass", "Pass"]

# Σ ℓ as a function of f, twice differentiable.
_Loss = Callable[[Tensor], Tensor]


class ChainPass:
    """A pass over dense layers and activations in turn, as a recording has it."""

    def __init__(self, recording: Recording, plan: RulePlan) -> None:
        assert plan.chain is not None
        self.outputs, self._plan = recording.outputs, plan
        first, kept = plan.chain.first, recording.kept
        self._a, self._slopes = kept[first::2], kept[first + 1 :: 2]
        self._W = [pair[0] for pair in recording.weights[first::2]]

    def pull(self, u: Tensor) -> Tensor:
        """Jᵀu summed over the examples."""
        found, g = [], u.to(self.outputs)
        for layer in reversed(range(len(self._W))):
            found.append((g.mT @ self._a[layer], g))
            if layer:
                g = (g @ self._W[layer]).mul_(self._slopes[layer - 1])
        return self._flat(found[::-1])

    def rows(self, C: Tensor) -> Tensor | None:
        """Cᵀ J, of shape (n, n_rows, n_params); None where w is more than W and b in turn."""
        if not self._plan.is_whole:
            return None
        g = C.to(self.outputs).mT
        found: list[Tensor] = []
        for layer in reversed(range(len(self._W))):
            found = [(g[..., None] * self._a[layer][:, None, None]).flatten(2), g, *found]
            if layer:
                g = (g @ self._W[layer]) * self._slopes[layer - 1][:, None]
        return torch.cat(found, 2)

    def hessian_products(self, loss: _Loss) -> Callable[[Tensor], Tensor]:
        """v -> H v of a loss of f."""
        r, Lambda = _derivatives(loss, self.outputs)
        gs, pulled = self._derivatives(r)
        assert self._plan.chain is not None
        bends = self._plan.chain.bends(self._a[1:], self._slopes)
        bends = [g * bend for g, bend in zip(pulled, bends, strict=True)]

        def product(v: Tensor) -> Tensor:
            tangents, df = self._push(v)
            dg = (Lambda @ df[..., None])[..., 0] if df.shape[1] > 1 else Lambda[..., 0] * df
            return self._pull_tangent(v, gs, bends, tangents, dg)

        return product

    def _derivatives(self, g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """g at the output of every dense layer, and g W at its input."""
        gs, pulled = [g], []
        for layer in reversed(range(1, len(self._W))):
            pulled.append(g @ self._W[layer])
            g = pulled[-1] * self._slopes[layer - 1]
            gs.append(g)
        return gs[::-1], pulled[::-1]

    def _push(self, v: Tensor) -> tuple[list[Any], Tensor]:
        """(da, dz) of every layer along v, and df."""
        da: Any = None
        tangents = []
        for layer, W in enumerate(self._W):
            dW, db = self._of(v, layer)
            dz = F.linear(self._a[layer], dW, db)
            if da is not None:
                dz.addmm_(da, W.mT)
            tangents.append((da, dz))
            if layer < len(self._slopes):
                da = dz * self._slopes[layer]
        return tangents, tangents[-1][1]

    def _pull_tangent(
        self, v: Tensor, gs: list[Tensor], bends: list[Tensor], tangents: list, dg: Tensor
    ) -> Tensor:
        found = []
        for layer in reversed(range(len(self._W))):
            da = tangents[layer][0]
            dW = dg.mT @ self._a[layer]
            if da is not None:
                dW.addmm_(gs[layer].mT, da)
            found.append((dW, dg))
            if layer:
                back = (dg @ self._W[layer]).addmm_(gs[layer], self._of(v, layer)[0])
                back *= self._slopes[layer - 1]
                dg = back.addcmul_(bends[layer - 1], tangents[layer - 1][1])
        return self._flat(found[::-1])

    def _of(self, v: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        """A layer's part of v: zeros where its weights are no part of w."""
        W, (w, b) = self._W[layer], self._plan.places[layer]
        dW = v[w.start : w.stop].view_as(W) if w is not None else torch.zeros_like(W)
        return dW, None if b is None else v[b.start : b.stop]

    def _flat(self, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        """w's vector (P,), float64, of every layer's dW and of dz, whose sum is db."""
        if self._plan.is_whole:  # small networks are ruled by how many operations there are
            parts = [part for dW, dz in found for part in (dW.view(-1), dz.sum(0))]
            return torch.cat(parts).double()
        out = self.outputs.new_zeros(self._plan.n_params, dtype=torch.float64)
        for (dW, dz), (w, b) in zip(found, self._plan.places, strict=True):
            if w is not None:
                out[w.place] += dW.reshape(-1)
            if b is not None:
                out[b.place] += dz.sum(0)
        return out


def _derivatives(loss: _Loss, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """r = ∂ℓ/∂f (n, K) and ∂r/∂f (n, K, K)."""
    with torch.enable_grad():
        f = outputs.detach().requires_grad_()
        r = pulled(loss(f), [f], create_graph=True)[0]
        rows = [pulled(r[:, k].sum(), [f])[0] for k in range(r.shape[1])]
    return r.detach(), torch.stack(rows, 1).detach()


def pulled(total: Tensor, leaves: Sequence[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """Gradient of one number, kept differentiable again; zeros where it does not depend."""
    # A sum, and not cotangents: with those torch imports a computer algebra system.
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(
        total,
        leaves,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


class GraphPass:
    """A pass over any network with autograd's graph: ``run`` takes the named ``leaves`` to f(X)."""

    def __init__(self, run: Callable[[dict[str, Tensor]], Tensor], leaves: dict[str, Tensor]):
        self._leaves = list(leaves.values())
        with torch.enable_grad(), plain_attention():  # fused kernels bend no second time
            self._f = run(leaves)
        self.outputs = self._f.detach()

    def pull(self, u: Tensor) -> Tensor:
        """Jᵀu summed over the examples."""
        with torch.enable_grad():
            return self._flat(pulled((self._f * u.to(self._f)).sum(), self._leaves))

    def hessian_products(self, loss: _Loss) -> Callable[[Tensor], Tensor]:
        """v -> H v of a loss of f."""
        with torch.enable_grad():
            gradient = pulled(loss(self._f), self._leaves, create_graph=True)
            used = [i for i, g in enumerate(gradient) if g.requires_grad]

        def product(v: Tensor) -> Tensor:
            pieces = v.split([p.numel() for p in self._leaves])
            with torch.enable_grad():
                along = [(gradient[i] * pieces[i].view_as(gradient[i])).sum() for i in used]
                total = torch.stack(along).sum() if along else v.new_zeros(())
            try:
                return self._flat(pulled(total, self._leaves))
            except (NotImplementedError, RuntimeError) as error:
                if "derivative for" not in str(error):
                    raise
                raise ValueError(
                    "torch does not differentiate an operation of this module twice, which "
                    f"solver='newton-cg' needs ({error}). Use solver='gauss-newton' or 'adam'."
                ) from error

        return product

    @staticmethod
    def _flat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.detach().reshape(-1) for t in tensors]).double()


def _of_part(loss: Callable[[Tensor, slice], Tensor], part: slice, f: Tensor) -> Tensor:
    return loss(f, part)


class Pass:
    """One pass over all rows, in chunks where they do not fit at once; ``outputs`` (n, K) is f(X).

    One chunk keeps what its products need; several are run anew for each product. ``plan``
    remembers whether the network's second derivatives have been found right.
    """

    def __init__(
        self, make: Callable[[slice], ChainPass | GraphPass], parts: list[slice], plan: RulePlan
    ) -> None:
        self._make, self._parts, self._plan = make, parts, plan
        self._only = make(parts[0]) if len(parts) == 1 else None
        if self._only is not None:
            self.outputs = self._only.outputs
        else:
            n = parts[-1].stop
            self.outputs = joined_parts((make(part).outputs for part in parts), n)

    def rows(self, C: Tensor) -> Tensor | None:
        """Cᵀ J, of shape (n, n_rows, n_params), from what this very pass keeps.

        None where a chunk alone is kept, or a graph, or layers' factors give ΦᵀΦ sooner.
        """
        if not isinstance(self._only, ChainPass) or pairs_by_factors(self._plan.sizes, C.shape[2]):
            return None
        return self._only.rows(C)

    def pull(self, u: Tensor) -> Tensor:
        """Σ_i J_iᵀ u_i, of shape (n_params,), float64, for u (n, K)."""
        if self._only is not None:
            return self._only.pull(u)
        return sum_parts(self._make(part).pull(u[part]) for part in self._parts)

    def hessian_products(
        self, loss: Callable[[Tensor, slice], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """v -> H v, exact, (P,) float64, of a loss Σ ℓ(f): f (n_part, K) and the slice of its rows
        -> Σ ℓ.

        ValueError if torch's second derivatives of the module are not symmetric, and so are wrong.
        """
        self._check_symmetric(loss)
        if self._only is not None:
            return self._only.hessian_products(lambda f: loss(f, self._parts[0]))

        def product(v: Tensor) -> Tensor:
            total = torch.zeros_like(v)
            for part in self._parts:
                total += self._make(part).hessian_products(partial(_of_part, loss, part))(v)
            return total

        return product

    def _check_symmetric(self, loss: Callable[[Tensor, slice], Tensor]) -> None:
        """Refuse second derivatives that cannot be right, once for each network and kind of data.

        torch 2.13's of ``weight_norm`` are such.
        """
        if self._plan.is_twice_differentiable:
            return
        few = slice(0, min(4, len(self.outputs)))
        one = self._make(few)
        product = one.hessian_products(partial(_of_part, loss, few))
        P = len(one.pull(torch.ones_like(one.outputs)))
        generator = torch.Generator().manual_seed(0)
        u, v = (torch.randn(P, generator=generator).to(one.outputs) for _ in range(2))
        Hu, Hv = product(u), product(v)
        scale = max(float(u.norm() * Hv.norm()), float(v.norm() * Hu.norm()))
        if abs(float(u.double() @ Hv - v.double() @ Hu)) > TOLERANCE.get(u.dtype, 2e-2) * scale:
            raise ValueError(
                "The second derivatives that torch gives for this module are not symmetric: an "
                "operation of it is not rightly differentiated twice (weight_norm is none). Take "
                "a solver that needs first derivatives only, such as 'gauss-newton'."
            )
        self._plan.is_twice_differentiable = True

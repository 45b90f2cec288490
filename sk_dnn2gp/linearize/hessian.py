"""Products with the exact Hessian of a sum over examples (:ref:`math-newton`).

With r = ∂ℓ/∂f and Λ = ∂r/∂f the Hessian of Σ_i ℓ_i(f(x_i)) is H = Σ_i (Jᵀ Λ J + Σ_k r_k ∇² f_k).
One pass per chunk keeps the graph of the gradient Jᵀr; a product is one way back through it.

Shapes: X (n, ...), f, r (n, K), v, H v (P,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import Tensor

from .._utils.memory import chunk_length
from .plan import TOLERANCE, Plan, plain_attention

__all__ = ["HessianProducts", "Residual"]

Residual = Callable[[Tensor, slice], Tensor]

# Times the graph of one pass that the graph of a gradient takes, and what is made of it.
_DOUBLE = 6
# Bytes of a chunk that caches handle well, unless that makes few examples: each has its cost.
_CACHE, _FEW = 2**24, 256


class HessianProducts:
    """v -> H v for the Hessian of Σ_i ℓ_i(f(x_i)) at the weights of a linearisation.

    Made by :meth:`Linearization.hessian_products`. What the products need is kept where it fits
    the memory limit; where not, every product computes it anew, chunk by chunk.

    Parameters
    ----------
    linearization : Linearization
        At given weights.
    X : Tensor of shape (n_samples, ...)
    plan : Plan
    residual : callable

    Attributes
    ----------
    gradient : Tensor of shape (n_params,), float64
        Σ_i J_iᵀ r_i.
    outputs : Tensor of shape (n_samples, n_outputs)
        f(X).
    """

    def __init__(self, linearization: Any, X: Tensor, plan: Plan, residual: Residual) -> None:
        self._of, self._X, self._plan, self._residual = linearization, X, plan, residual
        per_example, limit = _DOUBLE * plan.graph_bytes, linearization.memory_limit
        fitting = chunk_length(2 * per_example, limit)
        length = min(fitting, max(_FEW, int(_CACHE / (per_example + 1))))
        self._parts = list(gen_batches(len(X), length))
        self._check_symmetric()
        self._kept: list[_Pass] = []
        outputs, self.gradient = [], X.new_zeros(())
        for part in self._parts:
            one = self._pass(part)
            outputs.append(one.outputs)
            self.gradient = self.gradient + one.gradient.double()
            if len(X) <= fitting:
                self._kept.append(one)
        self.outputs = torch.cat(outputs)

    def _pass(self, part: slice) -> _Pass:
        return _Pass(self._of, self._X[part], self._plan, lambda f: self._residual(f, part))

    def _check_symmetric(self) -> None:
        """Refuse second derivatives that cannot be right, once for each kind of network and data.

        torch 2.13's of ``weight_norm`` are such.
        """
        if self._plan.is_twice_differentiable:
            return
        one, P = self._pass(slice(0, min(4, len(self._X)))), self._of.n_params
        generator = torch.Generator().manual_seed(0)
        u, v = (torch.randn(P, generator=generator).to(one.gradient) for _ in range(2))
        Hu, Hv = one.product(u), one.product(v)
        scale = max(float(u.norm() * Hv.norm()), float(v.norm() * Hu.norm()))
        if abs(float(u @ Hv - v @ Hu)) > TOLERANCE.get(self._of.dtype, 2e-2) * scale:
            raise ValueError(
                "The second derivatives that torch gives for this module are not symmetric: an "
                "operation of it is not rightly differentiated twice (weight_norm is none). Take "
                "a solver that needs first derivatives only, such as 'gauss-newton'."
            )
        self._plan.is_twice_differentiable = True

    def __call__(self, v: Tensor) -> Tensor:
        """H v.

        Parameters
        ----------
        v : Tensor of shape (n_params,) or (n_params, n_vectors)

        Returns
        -------
        Tensor of the shape of v, float64

        Raises
        ------
        ValueError
            If v is not of that shape.
        """
        if v.shape[:1] != (self._of.n_params,) or v.ndim > 2:
            raise ValueError(f"v must have {self._of.n_params} rows, got {tuple(v.shape)}.")
        if v.ndim == 2:
            return torch.stack([self(column) for column in v.mT], dim=1)
        v = v.to(self._of.device, self._of.dtype)
        passes = self._kept or (self._pass(part) for part in self._parts)
        return sum((one.product(v).double() for one in passes), v.new_zeros(len(v)).double())


class _Pass:
    """The gradient of one chunk with its graph."""

    def __init__(self, of: Any, X: Tensor, plan: Plan, residual: Callable) -> None:
        leaves = of.leaves()
        self._leaves = list(leaves.values())
        with torch.enable_grad(), plain_attention(), of.running(plan, leaves) as run:
            f = run(X)
            self._gs = self._gradients(f, residual(f)) if f.requires_grad else []
        self.outputs = f.detach()
        self.gradient = _flat([g.detach() for g in self._gs], self._leaves)

    def _gradients(self, f: Tensor, r: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(
            f, self._leaves, r.to(f), create_graph=True, allow_unused=True, materialize_grads=True
        )

    def product(self, v: Tensor) -> Tensor:
        parts = v.split([leaf.numel() for leaf in self._leaves])
        pairs = [(g, u.view_as(g)) for g, u in zip(self._gs, parts) if g.requires_grad]  # noqa: B905
        if not pairs:
            return torch.zeros_like(v)
        gs, us = zip(*pairs, strict=True)
        found = torch.autograd.grad(
            gs, self._leaves, us, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return _flat(found, self._leaves)


def _flat(parts: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.flatten() for p in parts or [torch.zeros_like(t) for t in leaves]])

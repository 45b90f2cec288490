"""Run the user's module without touching it, and keep what its layers saw.

The module is copied once in structure only: parameters and buffers are shared by reference, so
weights changed in place are seen, while hooks and eval mode stay on the copy. Other weights stand
in the copy for the length of a forward pass, one thread at a time. A forward pass records (layer,
input, edge of the output in the graph) for every call of a layer with a rule.

Shapes: X (n, ...), f (n, K), cotangents C (n, K, R), recorded derivatives g (n, R, ...).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .._utils.copies import copied
from .chain import Chain, chain_of
from .reverse import reverse

__all__ = ["Call", "Cotangents", "Twin", "backward", "evaluated", "run_chain", "whole_copy"]

Cotangents = Tensor | Callable[[Tensor], Tensor] | None


@dataclass
class Call:
    """One call of a hooked layer: its number, its input, where its output stands in the graph."""

    layer: int
    x: Tensor
    edge: Any


class Twin:
    """A copy of a module that shares its weights and buffers, in eval mode, with its own hooks.

    TypeError if the module cannot be copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self.sources = _tensors_with_owners(module)
        self.net = _copied(module, {id(t): t for t in _all_tensors(module)}).eval()
        self.layers: list[nn.Module] = []
        self.chain = chain_of(self.net)
        self._local = threading.local()
        self._lock = threading.RLock()
        self._places = _places(self.net)

    def is_current(self) -> bool:
        """Whether the module still owns the very tensors that the copy shares."""
        return all(owner.get(name) is tensor for owner, name, tensor in self.sources)

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor] | None) -> Iterator[nn.Module]:
        """The copy with these tensors as its weights of these names; None leaves its own.

        One thread at a time; what a graph keeps of the weights outlives this.
        """
        with self._lock:
            places = [
                (owner, key, owner[key], tensor)
                for name, tensor in (weights or {}).items()
                for owner, key in self._places[name]
            ]
            try:
                for owner, key, _, tensor in places:
                    owner[key] = tensor
                yield self.net
            finally:
                for owner, key, own, _ in places:
                    owner[key] = own

    def watch(self, has_rule: Callable[[nn.Module], bool]) -> None:
        """Record the calls of the layers with a rule from now on."""
        self.layers = [layer for layer in self.net.modules() if has_rule(layer)]
        for number, layer in enumerate(self.layers):
            layer.register_forward_hook(self._keeper(number))
        for module in self.net.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                # Up to torch 2.3 at least, its fused way past weights that need no gradient calls
                # no hooks; the copy has no fused way.
                module.activation_relu_or_gelu = 0

    def _keeper(self, number: int) -> Callable[..., Tensor | None]:
        def keep(layer: nn.Module, args: tuple, z: Any) -> Tensor | None:
            calls = getattr(self._local, "calls", None)
            if calls is None or not args or not isinstance(z, Tensor):
                return None
            replaced = None
            if not z.requires_grad:  # nothing before this layer needs a gradient: start here
                z = replaced = z.detach().requires_grad_().clone()
            calls.append(Call(number, args[0].detach(), get_gradient_edge(z)))
            return replaced

        return keep

    def record(self, run: Callable[[], Tensor]) -> tuple[Tensor, list[Call]]:
        """Call ``run`` with a graph and return its value and the calls that were recorded."""
        calls: list[Call] = []
        self._local.calls = calls
        try:
            with torch.enable_grad():
                return run(), calls
        finally:
            self._local.calls = None


def run_chain(chain: Chain, X: Tensor, weights: Sequence) -> tuple[Tensor, list, list]:
    """f(X), what :meth:`Chain.backward` needs, and the calls of the chain's dense layers."""
    f, kept = chain.forward(X, weights)
    inputs = chain.inputs(kept)
    return f, kept, [Call(i, a, None) for i, a in zip(chain.numbers, inputs, strict=True)]


def whole_copy(module: nn.Module) -> nn.Module:
    """A copy that shares nothing with the module, not even a graph; TypeError without one."""
    tensors = {id(t): t for t in _all_tensors(module)}
    return _copied(module, {key: _own(t) for key, t in tensors.items()})


def _own(t: Tensor) -> Tensor:
    own = t.detach().clone()
    return nn.Parameter(own, t.requires_grad) if isinstance(t, nn.Parameter) else own


def _copied(module: nn.Module, memo: dict[int, Tensor]) -> nn.Module:
    try:
        return copied(module, dict(memo))
    except Exception as error:
        raise TypeError(
            f"module of type {type(module).__name__} cannot be copied ({error}); keep what "
            "cannot be deep-copied out of its attributes."
        ) from error


def _all_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers and tensors that are plain attributes."""
    plain = [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    return [tensor for _, _, tensor in _tensors_with_owners(module)] + plain


def _places(net: nn.Module) -> dict[str, list[tuple[dict, str]]]:
    """Where each parameter stands: shared ones stand in several places."""
    names = {id(p): name for name, p in net.named_parameters()}
    found: dict[str, list[tuple[dict, str]]] = {name: [] for name in names.values()}
    for m in net.modules():
        for key, p in m._parameters.items():
            if p is not None:
                found[names[id(p)]].append((m._parameters, key))
    return found


def _tensors_with_owners(module: nn.Module) -> list[tuple[dict, str, Tensor]]:
    return [
        (owner, name, tensor)
        for m in module.modules()
        for owner in (m._parameters, m._buffers)
        for name, tensor in owner.items()
        if tensor is not None
    ]


def evaluated(cotangents: Cotangents, f: Tensor) -> Tensor:
    """C for the outputs f; ValueError if it is not of shape (n_samples, n_outputs, n_rows)."""
    if cotangents is None:
        return torch.eye(f.shape[1], dtype=f.dtype, device=f.device).expand(len(f), -1, -1)
    C = cotangents if isinstance(cotangents, Tensor) else cotangents(f)
    if C.ndim != 3 or C.shape[:2] != f.shape:
        raise ValueError(
            f"cotangents must have shape (n_samples, n_outputs, n_rows) = {tuple(f.shape)} + "
            f"(n_rows,), got {tuple(C.shape)}."
        )
    return C.to(f)


def backward(
    f: Tensor,
    calls: Sequence[Call],
    C: Tensor,
    keep_graph: bool = False,
    by_example: bool = False,
    same: bool = False,
) -> list[Tensor | None]:
    """Derivatives of the R scalars c_rᵀf of each example: one (n, R, ...) for each call.

    With ``by_example`` all rows go backward at once, which the graph must allow (``reverse``);
    with ``same``, C is that of the first example for all.
    """
    edges = [call.edge for call in calls]
    R = C.shape[2]
    if not edges or not f.requires_grad:
        return [None] * len(edges)
    if by_example and R > 1:
        with torch.no_grad():
            return reverse(f, edges, C, same)
    # Sums, and not cotangents: with those torch imports a computer algebra system.
    with torch.enable_grad():
        sums = [(f * C[:, :, r]).sum() for r in range(R)]
    per_row = [
        torch.autograd.grad(total, edges, retain_graph=keep_graph or r + 1 < R, allow_unused=True)
        for r, total in enumerate(sums)
    ]
    if R == 1:
        return [None if g is None else g[:, None] for g in per_row[0]]
    return [None if gs[0] is None else torch.stack(gs, dim=1) for gs in zip(*per_row, strict=True)]

"""Dense layers and activations in a row, run by hand: no graph, no hooks, all rows at once.

The commonest network of all, and the one whose small cases are ruled by what a graph costs. The
forward pass keeps each layer's input a and each activation's slope; the backward pass is
g <- (g W) ∘ slope. A module class that is affine in every entry by itself, with fixed numbers, says
so by a method ``constant_slope()``, which gives its slope (n_features,) or (1,): it is an
activation here, and nothing to differentiate where it comes first.

Shapes: X (n, D), a (n, I), slopes (n, O), C (n, K, R), g (n, R, O).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .reverse import spread

__all__ = ["Chain", "chain_of"]

aten = torch.ops.aten

# An activation: its slope, from the layer, its input z and its output h.
_Slope = Callable[[Any, Tensor, Tensor], Tensor]
_SLOPES: dict[type, _Slope] = {
    nn.Tanh: lambda layer, z, h: torch.addcmul(h.new_ones(()), h, h, value=-1.0),
    nn.ReLU: lambda layer, z, h: (h > 0).to(h.dtype),
    nn.Sigmoid: lambda layer, z, h: h * (1 - h),
    nn.GELU: lambda layer, z, h: aten.gelu_backward(
        torch.ones_like(z), z, approximate=layer.approximate
    ),
    nn.SiLU: lambda layer, z, h: aten.silu_backward(torch.ones_like(z), z),
    nn.Softplus: lambda layer, z, h: aten.softplus_backward(
        torch.ones_like(z), z, layer.beta, layer.threshold
    ),
    nn.LeakyReLU: lambda layer, z, h: aten.leaky_relu_backward(
        torch.ones_like(z), z, layer.negative_slope, False
    ),
}
# How that slope changes, ∂²h/∂z², from h and the slope.
_BENDS: dict[type, Callable[[Tensor, Tensor], Tensor]] = {
    nn.Tanh: lambda h, slope: -2.0 * h * slope,
    nn.Sigmoid: lambda h, slope: (1.0 - 2.0 * h) * slope,
    nn.ReLU: lambda h, slope: torch.zeros_like(slope),
}
_NOTHING_IN_EVAL_MODE = (nn.Identity, nn.Dropout)


# Weight and bias of a dense layer; None for an activation.
_Weights = Sequence[tuple[Tensor, Tensor | None] | None]


@dataclass
class Chain:
    """Layers in the order of their calls; ``numbers`` are those of the dense ones on the tape.

    It holds no weights: they are given to every pass, as :meth:`weights` finds them.
    """

    steps: list[tuple[Any, _Slope | None]]
    numbers: list[int] = field(default_factory=list)

    @cached_property
    def first(self) -> int:
        """The number of the first dense step: what comes before holds no weights."""
        return next(k for k, (_, slope) in enumerate(self.steps) if slope is None)

    @cached_property
    def can_bend(self) -> bool:
        """Whether dense layers alternate with activations whose second derivative is known."""
        steps = self.steps[self.first :]
        dense = [slope is None for _, slope in steps]
        alternate = all(a != b for a, b in zip(dense, dense[1:], strict=False))
        known = all(slope is None or type(layer) in _BENDS for layer, slope in steps)
        return alternate and known and dense[-1]

    def bends(self, h: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
        """The second derivatives of the activations after the first dense layer."""
        kinds = [type(layer) for layer, _ in self.steps[self.first + 1 :: 2]]
        return [_BENDS[kind](*each) for kind, *each in zip(kinds, h, slopes, strict=True)]

    def inputs(self, kept: list[Tensor]) -> list[Tensor]:
        """The inputs of the dense layers among what the steps left."""
        return [a for (_, slope), a in zip(self.steps, kept, strict=True) if slope is None]

    def weights(self, given: Sequence[Tensor] = (), places: Sequence = ()) -> list:
        """Weight and bias of every dense layer, None for an activation: the layers' present ones.

        Or those ``given`` (one for each parameter), where the layers' ``places`` say so: a Slot or
        None for weight and bias each.
        """
        own = [(a.weight, a.bias) if slope is None else None for a, slope in self.steps]
        each = iter(places)
        return [p if p is None or not places else _given(given, next(each), p) for p in own]

    def outputs(self, X: Tensor, weights: _Weights) -> Tensor:
        """f(X), with whatever graph X and the weights ask for."""
        for (layer, _), pair in zip(self.steps, weights, strict=True):
            if pair is not None:
                X = F.linear(X, *pair)
            else:
                X = layer.forward(X.clone() if getattr(layer, "inplace", False) else X)
        return X

    def forward(self, X: Tensor, weights: _Weights) -> tuple[Tensor, list[Any]]:
        """f(X), and what each step leaves for the way back: inputs and slopes."""
        kept: list[Any] = []
        with torch.no_grad():
            for (layer, slope), pair in zip(self.steps, weights, strict=True):
                if pair is not None:
                    kept.append(X)
                    X = F.linear(X, *pair)
                elif slope is not None:
                    h = layer.forward(X.clone() if getattr(layer, "inplace", False) else X)
                    # Before the first dense layer there is nothing to come back to.
                    kept.append(slope(layer, X, h) if kept and kept[-1] is not None else None)
                    X = h
        return X, kept

    def backward(
        self, C: Tensor, kept: list[Tensor], weights: _Weights, same: bool = False
    ) -> list[Tensor]:
        """Derivatives (n, R, O) at the outputs of the dense layers, in the order of their calls.

        With ``same``, C is that of the first example for all.
        """
        found: list[Tensor] = []
        n, _, R = C.shape
        g = C[:1].mT if same else C.mT
        with torch.no_grad():
            for place in range(len(self.steps) - 1, self.first - 1, -1):
                pair = weights[place]
                if pair is None:
                    g, same = g * kept[place][:, None], False
                    continue
                found.append(spread(g, n) if same else g)
                if place == self.first:
                    break
                g = (g.flatten(0, 1) @ pair[0]).view(g.shape[0], R, -1)
        return found[::-1]


def _given(given: Sequence[Tensor], slots: Sequence[Any], own: Sequence[Any]) -> tuple:
    """Weight and bias that are given; the layer's own where they are not."""
    return tuple(
        mine if slot is None or mine is None else given[slot.index]
        for slot, mine in zip(slots, own, strict=True)
    )


def chain_of(net: nn.Module) -> Chain | None:
    """The network as a chain, or None where it is another one, or has hooks."""
    steps = _steps(net)
    if not steps or not any(slope is None for _, slope in steps):
        return None
    return Chain(steps)


def _steps(net: nn.Module) -> list[tuple[Any, _Slope | None]] | None:
    if _is_hooked(net) or "forward" in vars(net):
        return None
    if type(net) is nn.Linear:
        return [(net, None)]
    if type(net) in _SLOPES:
        return [(net, _SLOPES[type(net)])]
    if hasattr(type(net), "constant_slope"):
        return [(net, _constant_slope)]
    if type(net) in _NOTHING_IN_EVAL_MODE:
        return []
    if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward:
        return None
    if type(net).__call__ is not nn.Module.__call__:
        return None
    parts = [_steps(child) for child in net]
    return None if any(p is None for p in parts) else [step for p in parts for step in p or []]


def _constant_slope(layer: Any, z: Tensor, h: Tensor) -> Tensor:
    return layer.constant_slope().to(z).expand_as(z)


def _is_hooked(net: nn.Module) -> bool:
    return bool(
        net._forward_hooks
        or net._forward_pre_hooks
        or net._backward_hooks
        or net._backward_pre_hooks
    )

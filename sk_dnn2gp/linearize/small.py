"""Small Gram matrices of dense layers in a row, in numpy.

A hundred examples through twenty units are a few microseconds of arithmetic, and a call of torch
costs as much: numpy's calls cost less, and its product of a matrix with its own transpose is
exactly symmetric. The work is in float64 whatever the weights' precision.

Shapes: X (n, D), a (n, I), slopes (n, O), g (n, R, O), result (n R, n2 R).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from .chain import Chain
from .factors import Slot

__all__ = ["SmallChain", "small_chain"]

# Multiplications of a whole matrix below which the calls are what it costs.
_FEW = 2_000_000

_PLAIN = {("cpu", torch.float32), ("cpu", torch.float64)}

_ACTIVATIONS: dict[type, tuple[Callable[[NDArray], NDArray], Callable[[NDArray], NDArray]]] = {
    nn.Tanh: (np.tanh, lambda h: 1.0 - h * h),
    nn.ReLU: (lambda z: np.maximum(z, 0.0), lambda h: (h > 0.0).astype(np.float64)),
    nn.Sigmoid: (expit, lambda h: h * (1.0 - h)),
}


class SmallChain:
    """A chain as numpy runs it, with the slots of its layers' weights and biases."""

    def __init__(self, chain: Chain, slots: Sequence[tuple[Slot | None, Slot | None]]) -> None:
        self.steps = [(layer, _activation(layer)) for layer, _ in chain.steps]
        self.first, self.slots = chain.first, list(slots)
        dense = [layer for layer, activation in self.steps if activation is None]
        self.n_outputs = dense[-1].out_features
        self._per_pair = sum(layer.in_features for layer in dense)
        self._per_row_pair = sum(layer.out_features for layer in dense)
        self._per_row = sum(layer.weight.numel() for layer in dense)

    def is_small(self, n: int, n2: int) -> bool:
        """Whether numpy is the faster."""
        R = self.n_outputs
        pairs = n * n2 * (self._per_pair + R * R * self._per_row_pair)
        return pairs + (n + n2) * R * self._per_row <= _FEW

    def gram(
        self,
        X: Tensor,
        X2: Tensor | None,
        weights: Sequence,
        scale: Sequence[float] | None,
        trace: bool,
    ) -> Tensor:
        """The Gram matrix of all outputs, or its trace over them, float64."""
        left = self._run(X, weights)
        right = left if X2 is None else self._run(X2, weights)
        total: Any = None
        for slots, (a, g), (a2, g2) in zip(self.slots, left, right, strict=True):
            s_w, s_b = (_factor(slot, scale) for slot in slots)
            if s_w or s_b:
                A = a @ a2.T
                if s_w != 1.0:
                    A *= s_w
                if s_b:
                    A += s_b
                term = _times(A, g, g2, trace, self.n_outputs)
                total = term if total is None else np.add(total, term, out=total)
        return torch.from_numpy(total)

    def _run(self, X: Tensor, weights: Sequence) -> list[tuple[NDArray, NDArray | None]]:
        """Inputs a (n, I) and derivatives g (n, R, O) of every dense layer; None is identity."""
        x, kept = _double(X), []
        for (_, activation), pair in zip(self.steps, weights, strict=True):
            if activation is None:
                kept.append(x)
                x = x @ _double(pair[0]).T
                if pair[1] is not None:
                    x += _double(pair[1])
            else:
                x = activation[0](x)
                kept.append(activation[1](x))
        return self._back(kept, weights)

    def _back(self, kept: list[NDArray], weights: Sequence) -> list[tuple[NDArray, NDArray | None]]:
        found: list[tuple[NDArray, NDArray | None]] = []
        g: Any = None
        first = self.first
        for place in range(len(self.steps) - 1, first - 1, -1):
            activation = self.steps[place][1]
            if activation is not None:
                g = np.eye(self.n_outputs) if g is None else g
                g = g * kept[place][:, None]  # (R, O) or (n, R, O) times (n, 1, O)
                continue
            found.append((kept[place], g))
            if place > first:
                W = _double(weights[place][0])
                g = W if g is None else g @ W
        return found[::-1]


def small_chain(
    chain: Chain | None, slots: Sequence[tuple[Slot | None, Slot | None]]
) -> SmallChain | None:
    """The chain for numpy, or None where numpy cannot run it."""
    if chain is None or len(set(chain.numbers)) < len(chain.numbers):
        return None
    for layer, slope in chain.steps:
        weight = getattr(layer, "weight", None)
        if weight is None and (slope is None or _activation(layer) is None):
            return None
        if weight is not None and (weight.device.type, weight.dtype) not in _PLAIN:
            return None
    return SmallChain(chain, [slots[number] for number in chain.numbers])


def _activation(layer: Any) -> tuple[Callable, Callable] | None:
    """What numpy does in the place of a layer, and its slope from what comes out."""
    if not hasattr(type(layer), "constant_slope"):
        return _ACTIVATIONS.get(type(layer))
    return (
        lambda z: _double(layer.forward(torch.from_numpy(z))),
        lambda h: np.broadcast_to(_double(layer.constant_slope()), h.shape),
    )


def _double(t: Tensor) -> NDArray:
    a = t.detach().numpy()
    return a if a.dtype == np.float64 else a.astype(np.float64)


def _factor(slot: Slot | None, scale: Sequence[float] | None) -> float:
    return 0.0 if slot is None else 1.0 if scale is None else scale[slot.index]


def _times(A: NDArray, g: NDArray | None, g2: NDArray | None, trace: bool, R: int) -> NDArray:
    """A ∘ g g2ᵀ: (n R, n2 R), or its trace over rows (n, n2)."""
    n, n2 = A.shape
    if g is None or g2 is None:  # the outputs themselves: the identity
        if trace:
            return R * A
        return A if R == 1 else _on_diagonals(A, R)
    left = _flat(g, n, trace)
    right = left if g2 is g else _flat(g2, n2, trace)
    G = left @ right.T
    if trace or R == 1:
        G *= A
        return G
    blocks = G.reshape(n, R, n2, R)
    blocks *= A[:, None, :, None]
    return G


def _on_diagonals(A: NDArray, R: int) -> NDArray:
    """The Kronecker product of A with the identity."""
    n, n2 = A.shape
    K = np.zeros((n, R, n2, R))
    for r in range(R):
        K[:, r, :, r] = A
    return K.reshape(n * R, n2 * R)


def _flat(g: NDArray, n: int, trace: bool) -> NDArray:
    """Rows of a product: (n R, O), or (n, R O); g is (n, R, O), or (R, O) for all examples."""
    if g.ndim == 2:
        g = np.broadcast_to(g, (n, *g.shape))
    return g.reshape(n, -1) if trace else g.reshape(-1, g.shape[2])

"""One rule per layer type: from input and output derivative to factors (:ref:`math-ntk`).

A rule turns the input x (n, ...) of one call of a layer and the derivatives of its output
g (n, R, ...) into factors (see ``factors``) of its weight and its bias. A layer type without a
rule, and a subclass of one with a rule (it may compute anything), takes the explicit way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .factors import Dense, Factor, Patches, Rows, Slot, Tokens
from .reverse import core_of, outer_of

__all__ = ["combine", "factors_of", "has_rule"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RULED = frozenset(
    (nn.Linear, nn.Embedding, nn.LayerNorm, nn.GroupNorm, *_CONVOLUTIONS, *_BATCH_NORMS)
)


def has_rule(layer: nn.Module) -> bool:
    """Whether the layer has a rule, which it may lose when it is checked on data."""
    if type(layer) is nn.Embedding:
        return not layer.scale_grad_by_freq and not layer.sparse and layer.max_norm is None
    return type(layer) in _RULED


def factors_of(
    layer: Any, x: Tensor, g: Tensor, weight: Slot | None, bias: Slot | None
) -> list[Factor]:
    """Factors of one call of a layer; a slot of None is a parameter that is not asked for.

    ``x`` (n, ...) is the layer's input, ``g`` (n, R, ...) the derivatives of R scalars of each
    example with respect to its output.
    """
    if isinstance(layer, nn.Linear):
        return _linear(x, g, weight, bias)
    if isinstance(layer, _CONVOLUTIONS):
        return _convolution(layer, x, g, weight, bias)
    if isinstance(layer, nn.Embedding):
        return _embedding(layer, x, g, weight)
    return _scale_and_shift(layer, x, g, weight, bias)


def _linear(x: Tensor, g: Tensor, weight: Slot | None, bias: Slot | None) -> list[Factor]:
    if x.ndim == 2:
        core = core_of(g)
        return [Dense(x, g, weight, bias, None if core is None else core[0])]
    a = x.reshape(len(x), 1, -1, x.shape[-1])
    g = g.reshape(*g.shape[:2], 1, -1, g.shape[-1])
    return _positions(a, g, weight, bias)


def _positions(a: Tensor, g: Tensor, weight: Slot | None, bias: Slot | None) -> list[Factor]:
    """Factors from a (n, H, T, I) and g (n, R, H, T, O)."""
    if a.shape[1] == a.shape[2] == 1:
        return [Dense(a[:, 0, 0], g[:, :, 0, 0], weight, bias)]
    found: list[Factor] = [] if weight is None else [Patches(a, g, weight)]
    if bias is not None:
        found.append(Rows(g.sum(3).flatten(2), (bias,)))
    return found


def _convolution(
    layer: Any, x: Tensor, g: Tensor, weight: Slot | None, bias: Slot | None
) -> list[Factor]:
    a, outer = _unfold(layer, x), outer_of(g) if layer.groups == 1 else None
    g = g.flatten(3).unflatten(2, (layer.groups, -1)).mT
    found = _positions(a, g, weight, bias)
    if outer is not None and isinstance(found[0], Patches) and _same_everywhere(outer[0]):
        core, slope = outer
        found[0] = replace(found[0], outer=(core[0].flatten(2)[:, :, 0], slope[:, 0].flatten(2)))
    return found


def _same_everywhere(core: Tensor) -> bool:
    """Whether a core (1, R, O, *positions) is one number for all positions, as a mean gives."""
    return all(core.shape[d] == 1 or core.stride(d) == 0 for d in range(3, core.ndim))


def _unfold(layer: Any, x: Tensor) -> Tensor:
    """Patches that the convolution sees: (n, groups, T, channels per group × kernel size)."""
    n, spatial = len(x), len(layer.kernel_size)
    # What torch's own padding code uses: pairs for F.pad, last axis first, whatever the mode.
    pad = layer._reversed_padding_repeated_twice
    if any(pad):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, pad, mode=mode)
    for axis, (k, s, d) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    # (n, channels, *positions, *kernel) -> (n, groups, channels per group * kernel, positions):
    # positions lie together in the input, so that this copy runs along them.
    x = x.unflatten(1, (layer.groups, -1))
    order = [0, 1, 2, *range(3 + spatial, 3 + 2 * spatial), *range(3, 3 + spatial)]
    return x.permute(order).reshape(n, layer.groups, layer.weight[0].numel(), -1).mT


def _embedding(layer: nn.Embedding, x: Tensor, g: Tensor, weight: Slot | None) -> list[Factor]:
    if weight is None:
        return []
    tokens = x.reshape(len(x), -1)
    g = g.reshape(*g.shape[:2], -1, g.shape[-1])
    if layer.padding_idx is not None:  # its row is constant: torch gives it no gradient
        g = g * (tokens != layer.padding_idx)[:, None, :, None]
    return [Tokens(tokens, g, weight, layer.num_embeddings)]


def _scale_and_shift(
    layer: Any, x: Tensor, g: Tensor, weight: Slot | None, bias: Slot | None
) -> list[Factor]:
    axes = _summed_axes(layer, x)
    found: list[Factor] = []
    if weight is not None:
        product = g * _normalised(layer, x)[:, None]
        found.append(Rows(_sum(product, axes), (weight,)))
    if bias is not None:
        found.append(Rows(_sum(g, axes), (bias,)))
    return found


def _sum(g: Tensor, axes: list[int]) -> Tensor:
    return (g.sum(axes) if axes else g).flatten(2)


def _summed_axes(layer: Any, x: Tensor) -> list[int]:
    """Axes of g (n, R, ...) that share one scale: all but the layer's own."""
    if isinstance(layer, nn.LayerNorm):
        return list(range(2, 1 + x.ndim - len(layer.normalized_shape)))
    return list(range(3, 1 + x.ndim))


def _normalised(layer: Any, x: Tensor) -> Tensor:
    """The layer's output before scale and shift."""
    with torch.no_grad():
        if isinstance(layer, nn.LayerNorm):
            return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        if isinstance(layer, nn.GroupNorm):
            return F.group_norm(x, layer.num_groups, eps=layer.eps)
        return F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)


def combine(factors: list[Factor]) -> list[Factor]:
    """Sum factors of the same parameter: layers called more than once, weights shared.

    Two calls are two positions; where the two ways to use a weight differ (a table and the
    matrix of a dense layer), rows are formed and added.
    """
    indices = [slot.index for f in factors for slot in f.slots]
    if len(indices) == len(set(indices)):
        return factors
    slots = [slot for f in factors for slot in f.slots]
    repeated = {slot for slot in slots if slots.count(slot) > 1}
    kept = [f for f in factors if not repeated & set(f.slots)]
    shared: dict[Slot, list[Factor]] = {}
    for f in factors:
        if repeated & set(f.slots):
            for part in f.split():
                shared.setdefault(part.slots[0], []).append(part)
    return kept + [_added(parts) for parts in shared.values()]


def _added(parts: list[Any]) -> Factor:
    first = parts[0]
    if len(parts) == 1:
        return first
    if all(isinstance(f, Patches) and _alike(f, first) for f in parts):
        a, g = torch.cat([f.a for f in parts], dim=2), torch.cat([f.g for f in parts], dim=3)
        return Patches(a, g, first.weight)
    if all(isinstance(f, Tokens) for f in parts):
        a, g = torch.cat([f.a for f in parts], dim=1), torch.cat([f.g for f in parts], dim=2)
        return Tokens(a, g, first.weight, first.n_tokens)
    rows = [f.explicit()[0] for f in parts]
    return Rows(sum(r.values for r in rows[1:]) + rows[0].values, rows[0].slots)


def _alike(f: Patches, other: Factor) -> bool:
    return (
        isinstance(other, Patches)
        and f.a.shape[1] == other.a.shape[1]
        and f.a.shape[3] == other.a.shape[3]
        and f.g.shape[4] == other.g.shape[4]
    )

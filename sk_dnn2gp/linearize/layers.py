"""One small rule per layer type: the input patches whose outer products with g make a row (MATH 6).

A rule turns a layer's input into positions a (n_samples, T, d_in) and the derivative of its
output into g (n_samples, n_rows, T, d_out), so that the layer's weight part of a row is
Σ_t g_t a_tᵀ and its bias part Σ_t g_t. A layer type without a rule takes the explicit way.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["has_rule", "output_positions", "patches"]


def has_rule(layer: nn.Module) -> bool:
    """Whether the layer type has a rule; subclasses may compute anything, so they have none."""
    if type(layer) is nn.Linear:
        return True
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's input as positions, of shape (n_samples, T, d_in)."""
    if isinstance(layer, nn.Conv2d):
        unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return unfolded.mT
    return x.reshape(len(x), -1, x.shape[-1])


def output_positions(layer: nn.Module, g: Tensor) -> Tensor:
    """Derivative of the output (n_rows, n_samples, ...) as (n_samples, n_rows, T, d_out)."""
    if isinstance(layer, nn.Conv2d):
        return g.flatten(3).permute(1, 0, 3, 2)
    return g.reshape(*g.shape[:2], -1, g.shape[-1]).transpose(0, 1)

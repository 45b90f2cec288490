"""Which weights are w: all, the last layer's, or those named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .tape import Twin

__all__ = ["chosen_names", "last_layer"]


def chosen_names(
    module: nn.Module, parameters: str | Sequence[str] | None
) -> tuple[str, ...] | None:
    """Names of the chosen parameters, or None where only data can tell.

    ValueError if there are none, unknown ones, or several precisions or devices among the weights.
    """
    named = dict(module.named_parameters())
    if isinstance(parameters, str) and parameters != "last_layer":
        raise ValueError(
            f"parameters must be None, 'last_layer' or a sequence of names, got {parameters!r}."
        )
    names = [name for name, p in named.items() if p.requires_grad]
    if parameters is not None and not isinstance(parameters, str):
        unknown = [name for name in parameters if name not in named]
        if unknown:
            raise ValueError(
                f"parameters names {unknown}, which the module does not have; it has {list(named)}."
            )
        names = [name for name in named if name in set(parameters)]
    if not names:
        raise ValueError(
            "module has no weights to linearise in: no parameter"
            + (" requires a gradient." if named else " at all.")
        )
    _check_alike(named)
    if parameters == "last_layer":
        return _last_of_sequence(module)
    return tuple(names)


def _check_alike(named: Mapping[str, Tensor]) -> None:
    is_complex = [name for name, p in named.items() if p.is_complex()]
    if is_complex:
        raise ValueError(
            f"module's weights {is_complex} are complex, and f is a function of real ones: hold "
            "their real and imaginary parts, and put them together in forward (view_as_complex)."
        )
    kinds = {(p.dtype, p.device) for p in named.values() if p.is_floating_point()}
    if len(kinds) != 1:
        raise ValueError(
            "module's weights must have one precision and one device, got "
            f"{sorted(map(str, kinds))}. Convert it with module.to(...)."
        )


def _last_of_sequence(module: nn.Module) -> tuple[str, ...] | None:
    """The last layer's names where the order of calls is plain: nested Sequentials."""
    if not isinstance(module, nn.Sequential):
        if any(True for _ in module.children()):
            return None
        return tuple(n for n, p in module.named_parameters() if p.requires_grad)
    if type(module).forward is not nn.Sequential.forward:
        return None
    for name, child in reversed(list(module.named_children())):
        if any(p.requires_grad for p in child.parameters()):
            inner = _last_of_sequence(child)
            return None if inner is None else tuple(f"{name}.{n}" for n in inner)
    return None


def last_layer(twin: Twin, X: Tensor) -> tuple[str, ...]:
    """Names of the weights of the layer whose call starts last; ValueError if there is none."""
    called: list[nn.Module] = []
    owners = [
        m for m in twin.net.modules() if any(p.requires_grad for p in m.parameters(recurse=False))
    ]
    handles = [m.register_forward_pre_hook(lambda m, _: called.append(m)) for m in owners]
    try:
        with torch.no_grad():
            twin.net(X[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise ValueError("module calls no layer with weights, so it has no last layer.")
    mine = {id(p) for p in called[-1].parameters() if p.requires_grad}
    return tuple(n for n, p in twin.net.named_parameters() if id(p) in mine)

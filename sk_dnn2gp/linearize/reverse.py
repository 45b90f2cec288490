"""All rows of all examples backward through a graph at once.

Autograd takes one cotangent at a time; ``vmap`` over it knows nothing of examples. Here the graph
that autograd recorded is walked once, with the R rows of each example side by side, so that a
dense layer is one matrix product and a convolution one call, on n R examples. The slope of an
activation is found once for all rows. An operation without a rule is called row by row.

Where all examples have the same cotangents, derivatives are the same for all of them, a core, up
to the last activation, and the core times its slope right before it. Derivatives say so of
themselves (``core_of``, ``outer_of``): the layers there cost less.

Shapes: C (n, K, R); derivatives of an operation's output of shape (n, ...) are (n, R, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = ["NotByExample", "core_of", "outer_of", "reverse", "spread"]

aten = torch.ops.aten


class NotByExample(Exception):
    """An operation of the graph does not keep examples apart along the first axis."""


def core_of(g: Tensor) -> Tensor | None:
    """The (1, R, ...) that g is for every example, if it is known to be."""
    return getattr(g, "_core", None)


def outer_of(g: Tensor) -> tuple[Tensor, Tensor] | None:
    """A core (1, R, ...) and a slope (n, 1, ...) whose product g is known to be."""
    return getattr(g, "_outer", None)


def spread(core: Tensor, n: int) -> Tensor:
    """A core (1, R, ...) for n examples, which :func:`core_of` then knows."""
    g = core.expand(n, *core.shape[1:])
    setattr(g, "_core", core)  # noqa: B010
    return g


def reverse(
    f: Tensor, edges: Sequence[GradientEdge], C: Tensor, same: bool = False
) -> list[Tensor | None]:
    """Derivatives of the R scalars c_rᵀf of each example at each edge, (n, R, ...), C of (n, K, R).

    None where f does not depend on the edge. ``same``: C is the same for all examples. NotByExample
    if the graph cannot be walked so; autograd can.
    """
    root: Any = f.grad_fn
    wanted = {edge.node for edge in edges}
    order = _order(root, wanted)
    inbox: dict[Any, dict[int, Tensor]] = {
        root: {f.output_nr: spread(C[:1].mT, len(f)) if same else C.mT}
    }
    found: dict[Any, dict[int, Tensor]] = {}
    ours: set = set()  # nodes whose derivative nobody else holds: it may be overwritten
    for node in order:
        gs = inbox.pop(node, None)
        if gs is None:
            continue
        if node in wanted:
            found[node] = gs
        targets = [fn in order for fn, _ in node.next_functions]
        if any(targets):
            back = _through(node, gs, targets, node in ours and node not in wanted)
            _deliver(node, targets, back, len(f), inbox)
            if node.name() in _FRESH or (node in ours and node.name() in _PASSED_ON):
                ours.update(fn for fn, _ in node.next_functions if sum(targets) == 1)
    return [found.get(edge.node, {}).get(edge.output_nr) for edge in edges]


def _deliver(
    node: Any, targets: list[bool], back: Sequence[Tensor | None], n: int, inbox: dict
) -> None:
    """Add the derivatives at the inputs of an operation to those of the operations before it."""
    for (fn, number), target, g in zip(node.next_functions, targets, back, strict=True):
        if target and g is not None:
            _check_shape(fn, number, g, n)
            box = inbox.setdefault(fn, {})
            box[number] = box[number] + g if number in box else g


def _order(root: Any, wanted: set) -> dict[Any, bool]:
    """The nodes on a way to a wanted one, each after all that lead to it."""
    leads: dict[Any, bool] = {}
    stack = [(root, False)]
    while stack:
        node, left = stack.pop()
        if left:
            below = any(leads.get(fn, False) for fn, _ in node.next_functions)
            leads[node] = leads.pop(node) or below  # to the end: after everything below it
        elif node not in leads:
            leads[node] = node in wanted
            stack.append((node, True))
            stack += [(fn, False) for fn, _ in node.next_functions if fn is not None]
    return {node: True for node in reversed(leads) if leads[node]}


def _check_shape(fn: Any, number: int, g: Tensor, n: int) -> None:
    shape = tuple(fn._input_metadata[number].shape)
    if shape[:1] != (n,) or tuple(g.shape) != (n, g.shape[1], *shape[1:]):
        raise NotByExample(f"{fn.name()} expects {shape}, the rows are {tuple(g.shape)}")


def _through(
    node: Any, gs: dict[int, Tensor], targets: list[bool], ours: bool
) -> Sequence[Tensor | None]:
    """Derivatives at the inputs of an operation from those at its output."""
    name = node.name()
    if len(gs) == 1:
        (g,) = gs.values()
        core = core_of(g)
        if name in _SLOPES:
            slope = _SLOPES[name](node)[:, None]
            if core is None:
                return (g.mul_(slope) if ours and outer_of(g) is None else g * slope,)
            product = core * slope
            setattr(product, "_outer", (core, slope))  # noqa: B010
            return (product,)
        if core is not None and name in _SAME_FOR_ALL:
            back = _RULES[name](node, core)
            return [None if b is None else spread(b, len(g)) for b in back]
        if name in _RULES:
            return _RULES[name](node, g)
    if not callable(node) or not hasattr(node, "_input_metadata"):
        raise NotByExample(node.name())
    return _row_by_row(node, gs, targets)


def _row_by_row(node: Any, gs: dict[int, Tensor], targets: list[bool]) -> list[Tensor | None]:
    R = next(iter(gs.values())).shape[1]
    numbers = range(len(node._input_metadata))
    rows = []
    for r in range(R):
        out = node(*(gs[k][:, r].contiguous() if k in gs else None for k in numbers))
        rows.append(out if isinstance(out, tuple) else (out,))
    return [
        torch.stack(list(column), dim=1) if target and column[0] is not None else None
        for target, column in zip(targets, zip(*rows, strict=True), strict=True)
    ]


# ------------------------------------------------------------------------------------- rules


def _flat(g: Tensor) -> Tensor:
    return g.flatten(0, 1)


def _like(g: Tensor, x: Tensor) -> Tensor:
    """Something of the shape of x for every row: operations look at its shape only."""
    return x.new_empty(1).expand(g.shape[0] * g.shape[1], *x.shape[1:])


def _addmm(node: Any, g: Tensor) -> tuple:
    return None, _matrix(node, g, node._saved_alpha), None


def _mm(node: Any, g: Tensor) -> tuple:
    return _matrix(node, g, 1), None


def _matrix(node: Any, g: Tensor, alpha: Any) -> Tensor:
    if g.ndim != 3 or alpha != 1:
        raise NotByExample(node.name())
    back = _flat(g) @ node._saved_mat2.mT
    return back.view(*g.shape[:2], -1)


def _convolution(node: Any, g: Tensor) -> tuple:
    x = node._saved_input
    back = aten.convolution_backward(
        _flat(g), _like(g, x), node._saved_weight, None, node._saved_stride, node._saved_padding,
        node._saved_dilation, node._saved_transposed, node._saved_output_padding,
        node._saved_groups, [True, False, False],
    )[0]  # fmt: skip
    return back.view(*g.shape[:2], *x.shape[1:]), None, None


def _avg_pool(node: Any, g: Tensor) -> tuple:
    x = node._saved_self
    back = aten.avg_pool2d_backward(
        _flat(g), _like(g, x), node._saved_kernel_size, node._saved_stride, node._saved_padding,
        node._saved_ceil_mode, node._saved_count_include_pad, node._saved_divisor_override,
    )  # fmt: skip
    return (back.view(*g.shape[:2], *x.shape[1:]),)


def _max_pool(node: Any, g: Tensor) -> tuple:
    x, places = node._saved_self, node._saved_result1
    if x.ndim != 4:
        raise NotByExample(node.name())
    back = g.new_zeros(*g.shape[:3], x.shape[2] * x.shape[3])
    places = places.flatten(2)[:, None].expand(*g.shape[:3], -1)
    back.scatter_add_(3, places, g.flatten(3))
    return (back.view(*g.shape[:2], *x.shape[1:]),)


def _tanh(node: Any) -> Tensor:
    h = node._saved_result
    return torch.addcmul(torch.ones((), dtype=h.dtype, device=h.device), h, h, value=-1)


def _sigmoid(node: Any) -> Tensor:
    h = node._saved_result
    return h * (1 - h)


def _relu(node: Any) -> Tensor:
    h = node._saved_result
    return (h > 0).to(h.dtype)


def _gelu(node: Any) -> Tensor:
    z = node._saved_self
    return aten.gelu_backward(torch.ones_like(z), z, approximate=node._saved_approximate)


def _silu(node: Any) -> Tensor:
    z = node._saved_self
    return aten.silu_backward(torch.ones_like(z), z)


def _softplus(node: Any) -> Tensor:
    z = node._saved_self
    return aten.softplus_backward(torch.ones_like(z), z, node._saved_beta, node._saved_threshold)


def _leaky_relu(node: Any) -> Tensor:
    z = node._saved_self
    return aten.leaky_relu_backward(torch.ones_like(z), z, node._saved_negative_slope, False)


def _view(node: Any, g: Tensor) -> tuple:
    sizes = node._saved_self_sym_sizes
    if math.prod(sizes[1:]) != math.prod(g.shape[2:]):
        raise NotByExample(node.name())
    return (g.reshape(*g.shape[:2], *sizes[1:]),)


def _reduced(node: Any, g: Tensor) -> Tensor:
    """g spread over the axes that a mean or a sum took away, without a copy."""
    sizes, dims = node._saved_self_sym_sizes, node._saved_dim
    ndim = len(sizes)
    axes = sorted(_signed(d) % ndim for d in dims)
    if not axes or axes[0] == 0:
        raise NotByExample(node.name())
    for axis in axes:
        if not node._saved_keepdim:
            g = g.unsqueeze(axis + 1)
    return g.expand(*g.shape[:2], *sizes[1:])


def _signed(d: int) -> int:
    """Axes are stored as unsigned numbers of 64 bits."""
    return d - 2**64 if d >= 2**63 else d


def _mean(node: Any, g: Tensor) -> tuple:
    count = math.prod(node._saved_self_sym_sizes[_signed(d)] for d in node._saved_dim)
    return (_reduced(node, g / count),)


def _sum(node: Any, g: Tensor) -> tuple:
    return (_reduced(node, g),)


def _permute(node: Any, g: Tensor) -> tuple:
    dims = [_signed(d) % (g.ndim - 1) for d in node._saved_dims]
    if dims[0] != 0:
        raise NotByExample(node.name())
    inverse = sorted(range(len(dims)), key=dims.__getitem__)
    return (g.permute(0, 1, *(d + 1 for d in inverse[1:])).contiguous(),)


def _transpose(node: Any, g: Tensor) -> tuple:
    a, b = (_signed(d) % (g.ndim - 1) for d in (node._saved_dim0, node._saved_dim1))
    if a == 0 or b == 0:
        raise NotByExample(node.name())
    return (g.transpose(a + 1, b + 1).contiguous(),)


def _add(node: Any, g: Tensor) -> tuple:
    alpha = node._saved_alpha
    return g, g if alpha == 1 else g * alpha


def _sub(node: Any, g: Tensor) -> tuple:
    return g, g * -node._saved_alpha


def _same(node: Any, g: Tensor) -> tuple:
    return (g,)


# The slope of an activation at every entry of its input.
_SLOPES: dict[str, Callable[[Any], Tensor]] = {
    "TanhBackward0": _tanh,
    "SigmoidBackward0": _sigmoid,
    "ReluBackward0": _relu,
    "GeluBackward0": _gelu,
    "SiluBackward0": _silu,
    "SoftplusBackward0": _softplus,
    "LeakyReluBackward0": _leaky_relu,
}
_RULES: dict[str, Callable[[Any, Tensor], Sequence[Tensor | None]]] = {
    "AddmmBackward0": _addmm,
    "MmBackward0": _mm,
    "ConvolutionBackward0": _convolution,
    "AvgPool2DBackward0": _avg_pool,
    "MaxPool2DWithIndicesBackward0": _max_pool,
    "ViewBackward0": _view,
    "UnsafeViewBackward0": _view,
    "ReshapeAliasBackward0": _view,
    "MeanBackward1": _mean,
    "SumBackward1": _sum,
    "PermuteBackward0": _permute,
    "TransposeBackward0": _transpose,
    "AddBackward0": _add,
    "SubBackward0": _sub,
    "CloneBackward0": _same,
    "AliasBackward0": _same,
}
# What makes a new array of derivatives, and what hands on the one it was given.
_FRESH = frozenset(
    name
    for name in (*_SLOPES, *_RULES)
    if _RULES.get(name) not in (_view, _permute, _transpose, _add, _sub, _same, _sum, _mean)
)
# What may be asked of a core: it does not look at examples.
_SAME_FOR_ALL = frozenset(
    name
    for name, rule in _RULES.items()
    if rule in (_addmm, _mm, _view, _mean, _sum, _permute, _transpose, _add, _sub, _same)
)
_PASSED_ON = frozenset(name for name, rule in _RULES.items() if rule in (_view, _same))

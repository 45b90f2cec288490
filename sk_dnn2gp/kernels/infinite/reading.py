"""A torch module read as the steps of its infinitely wide limit (:ref:`math-infinite`).

``torch.fx`` traces the module to calls of torch's own layers, functions and sums; each has an entry
in one of the tables below. What the limit needs is checked on the way: an activation acts on
Gaussians (so follows weights), the branches of a sum are uncorrelated, no weights are used twice.
What has no limit, or none here, is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn import functional as F

from .steps import (
    Activation,
    Dropout,
    Input,
    Mean,
    Node,
    Normal,
    Pad,
    Pool,
    Sum,
    Times,
    Weights,
    Window,
    append,
)

__all__ = ["Reading", "read"]

_ADVICE = {
    "BatchNorm": "Its statistics tie samples together: use LayerNorm or GroupNorm, or leave it out "
    "and choose the initial variances",
    "InstanceNorm": "Its statistics are of single channels: use LayerNorm or GroupNorm",
    "MaxPool": "A maximum over positions has no closed form: use AvgPool or a stride",
    "Attention": "Attention is not implemented: use convolutions and pooling",
    "Transformer": "Attention is not implemented: use convolutions and pooling",
    "LSTM": "Weights are shared over time: use Conv1d",
    "GRU": "Weights are shared over time: use Conv1d",
    "RNN": "Weights are shared over time: use Conv1d",
    "Softmax": "It couples the units: let the network return what it takes",
    "PReLU": "Use LeakyReLU with the slope of its initialisation, 0.25",
    "ConvTranspose": "Use Conv1d and Conv2d",
    "Conv3d": "Use Conv1d and Conv2d",
    "Linear": "Call layers, not functions of weights: nn.Linear",
    "Conv": "Call layers, not functions of weights: nn.Conv2d",
    "Embedding": "Encode the tokens before, one-hot for instance",
}


@dataclass(frozen=True)
class Reading:
    """Nodes, the positions' dimensions that the layers expect, and a shape given to the input."""

    nodes: tuple[Node, ...]
    dims: int
    input_shape: Any = None


@dataclass(frozen=True)
class Elementwise:
    """A torch function of one tensor on arrays; equal where it prints alike."""

    name: str
    function: Callable = field(compare=False)

    def __call__(self, u: NDArray) -> NDArray:
        with torch.no_grad():
            return self.function(torch.from_numpy(np.array(u, dtype=np.float64))).numpy()


@dataclass
class _Place:
    """What is known of a node: flattened, its positions (None: the input's), Gaussian or not."""

    number: int
    flat: bool = False
    spatial: bool | None = None
    gaussian: bool = False


def read(module: nn.Module) -> Reading:
    """The steps of a module: only its architecture matters, and it is left as it is.

    Dropout is noise in training mode and nothing in evaluation mode. ValueError, by name, where the
    module cannot be traced, or holds what has no limit here.
    """
    return _Reader(module).reading()


class _Reader:
    def __init__(self, module: nn.Module) -> None:
        self.nodes: list[Node] = []
        self.before: list[set[int]] = []  # what each node comes from, by whatever way
        self.sources: list[set[int]] = []  # and by linear steps without weights
        self.dims: set[int] = set()
        self.used: set[int] = set()
        self.input_shape: Any = None
        tracer = fx.Tracer()
        try:
            # A root that is a layer itself would be traced into its own forward.
            root = nn.Sequential(module)
            self.graph = tracer.trace(root)
        except Exception as error:
            raise ValueError(
                f"torch.fx cannot trace {type(module).__name__} ({error}). Its forward must not "
                "branch on data; a Sequential of layers and Residual always can be."
            ) from error
        self.root = root

    def reading(self) -> Reading:
        places: dict[Any, Any] = {}
        for node in self.graph.nodes:
            if node.op == "output":
                last = places.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                if last is None:
                    raise ValueError("The module must return one tensor.")
                self.add(last, Mean(flat=last.flat))
                break
            places[node] = self._read(node, places)
        if len(self.dims) > 1:
            raise ValueError("The module mixes layers of one and of two dimensions.")
        return Reading(tuple(self.nodes), max(self.dims, default=0), self.input_shape)

    def _read(self, node: Any, places: dict) -> Any:
        if node.op == "placeholder":
            if self.nodes:
                raise ValueError("The module takes more than one input, which has no kernel here.")
            return _Place(self._append(Input()))
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.root)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda a: places[a])
        if node.op == "call_module":
            layer: Any = self.root.get_submodule(node.target)
            return self._layer(layer, args[0])
        if not any(isinstance(a, _Place) for a in _flat(args)):
            return None if node.op == "call_method" else _constant(node, args)
        name = node.target if node.op == "call_method" else node.target.__name__
        if name in ("size", "dim", "getattr"):
            return None
        if name not in _CALLS:
            raise _refusal(name)
        return _CALLS[name](self, *args, **kwargs)

    def _layer(self, layer: Any, place: _Place) -> _Place:
        kind = type(layer)
        if kind in _NAMED:
            return self.activation(place, _NAMED[kind])
        if kind in _ELEMENTWISE:
            return self.activation(place, Elementwise(repr(layer), layer))
        if kind not in _LAYERS:
            raise _refusal(kind.__name__)
        return _LAYERS[kind](self, place, layer)

    def add(self, place: _Place, step: Any, *others: _Place, **changes: Any) -> _Place:
        """A node after a place, of which all but the changes is known."""
        number = self._append(step, place.number, *(other.number for other in others))
        known = {"flat": place.flat, "spatial": place.spatial, "gaussian": place.gaussian}
        return _Place(number, **{**known, **changes})

    def _append(self, step: Any, *args: int) -> int:
        number = append(self.nodes, step, *args)
        ends = isinstance(step, Input | Weights | Activation | Normal)
        self.before.append({*args}.union(*(self.before[a] for a in args)))
        self.sources.append({number} if ends else set().union(*(self.sources[a] for a in args)))
        return number

    def weights(self, place: _Place, layer: Any, step: Weights) -> _Place:
        """A layer with weights, of its own."""
        if id(layer.weight) in self.used:
            raise ValueError(
                f"{type(layer).__name__} is used twice: shared weights correlate what they give, "
                "which has no limit here. Give each place a layer of its own."
            )
        self.used.add(id(layer.weight))
        return self.add(place, step, flat=False, spatial=bool(step.windows), gaussian=True)

    def activation(self, place: _Place, phi: Any, slope: float = 0.01) -> _Place:
        """A nonlinearity of Gaussian arguments."""
        if not place.gaussian:
            raise ValueError(
                f"The activation {phi} takes what is not Gaussian (the input, another activation, "
                "dropout, or a sum with one of them), which has no closed form: put a layer with "
                "weights between, and in residual networks the activation into the branch."
            )
        return self.add(place, Activation(phi, slope), gaussian=False)

    def spatial(self, place: _Place, dims: int) -> None:
        """Note a layer of positions."""
        self.dims.add(dims)
        if place.flat or place.spatial is False:
            raise ValueError("A layer of positions follows Flatten, Linear or a mean over them.")

    def sum(self, one: Any, other: Any, alpha: float = 1) -> _Place:
        """Two branches, of which one at least ends in weights that the other does not follow."""
        if not isinstance(one, _Place):
            one, other = other, one
        if not isinstance(other, _Place):
            if isinstance(other, int | float) and other == 0:
                return one
            raise ValueError("Adding a constant has no limit here: leave it out.")
        other = self.times(other, alpha) if alpha != 1 else other
        for s in self.sources[one.number]:
            for t in self.sources[other.number]:
                if not self._uncorrelated(s, t):
                    raise ValueError(
                        "The branches of a sum are correlated: one of them must end in a layer "
                        "with weights (Linear, Conv) from which the other does not come."
                    )
        gaussian, flat = one.gaussian and other.gaussian, one.flat
        spatial = one.spatial or other.spatial
        return self.add(one, Sum(), other, gaussian=gaussian, flat=flat, spatial=spatial)

    def _uncorrelated(self, s: int, t: int) -> bool:
        """Whether one of two nodes ends in fresh weights that the other does not come from."""

        def fresh(a: int, b: int) -> bool:
            return isinstance(self.nodes[a].step, Weights) and a not in self.before[b]

        return s != t and (fresh(s, t) or fresh(t, s))

    def times(self, place: Any, factor: Any) -> _Place:
        """A number times a node."""
        if not isinstance(place, _Place):
            place, factor = factor, place
        one = isinstance(factor, torch.Tensor) and factor.numel() == 1
        number = factor.item() if one else factor
        if not isinstance(number, int | float):
            raise _refusal("A product of tensors")
        return self.add(place, Times(float(number)))

    def over(self, place: Any, factor: Any) -> _Place:
        """A node divided by a number."""
        if isinstance(factor, _Place) or not isinstance(place, _Place):
            raise _refusal("A quotient of tensors")
        return self.times(place, 1 / factor)

    def flatten(self, place: _Place, start_dim: int = 0, end_dim: int = -1) -> _Place:
        """All positions and channels side by side, told apart by the weights that follow."""
        if start_dim != 1 or end_dim != -1:
            raise ValueError("Flatten must keep the samples apart and nothing else: start_dim=1.")
        return _Place(place.number, True, place.spatial, place.gaussian)

    def reshape(self, place: _Place, *sizes: Any) -> _Place:
        """A shape for the input, or (n, -1)."""
        nested = len(sizes) == 1 and isinstance(sizes[0], tuple | list)
        shape: tuple = tuple(sizes[0]) if nested else sizes
        if place.number == 0 and len(shape) > 2:
            self.input_shape = tuple(shape[1:])
            return place
        if len(shape) != 2:
            raise _refusal("A reshape of hidden layers")
        return self.flatten(place, 1)

    def mean(self, place: _Place, dim: Any, keepdim: bool = False) -> _Place:
        """Over all positions: global pooling."""
        axes = dim if isinstance(dim, tuple | list) else (dim,)
        dims = len(axes)
        if sorted(d % (dims + 2) for d in axes) != list(range(2, dims + 2)):
            raise ValueError(f"A mean must be over all positions, not over the axes {dim}.")
        self.spatial(place, dims)
        return self.add(place, Pool(), flat=not keepdim)


def _flat(args: Any) -> list[Any]:
    return [b for a in args for b in (_flat(a) if isinstance(a, tuple | list) else [a])]


def _constant(node: Any, args: Any) -> Any:
    """A computation on numbers and sizes alone."""
    return None if any(a is None for a in _flat(args)) else node.target(*args, **node.kwargs)


def _refusal(name: str) -> ValueError:
    found = [text for key, text in _ADVICE.items() if key.lower() in name.lower().replace("_", "")]
    advice = found[0] if found else "Leave it out, or write it with layers that have one"
    return ValueError(f"{name} has no infinitely wide limit here. {advice}.")


def _pair(value: Any, dims: int, other: Any) -> tuple[Any, Any]:
    """(h, w) of a setting of one or two dimensions; the height of sequences is 1."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * dims
    return (other, values[0]) if dims == 1 else (values[0], values[1])


def _linear(reader: _Reader, place: _Place, layer: Any) -> _Place:
    place = reader.add(place, Mean()) if place.flat else place
    return reader.weights(place, layer, Weights((), True, layer.bias is not None,
                                                layer.in_features))  # fmt: skip


def _conv(reader: _Reader, place: _Place, layer: Any) -> _Place:
    dims = len(layer.kernel_size)
    reader.spatial(place, dims)
    if layer.groups != 1:
        raise ValueError("A convolution of groups has no limit here: use groups=1.")
    ends = layer._reversed_padding_repeated_twice
    pairs = [(ends[i], ends[i + 1]) for i in reversed(range(0, 2 * dims, 2))]
    sides = (pairs[0], pairs[1]) if dims == 2 else ((0, 0), pairs[0])
    if layer.padding_mode != "zeros":
        place = reader.add(place, Pad(sides, layer.padding_mode))
        sides = ((0, 0), (0, 0))
    settings = [_pair(v, dims, 1) for v in (layer.kernel_size, layer.stride, layer.dilation)]
    windows = tuple(
        Window(size, stride, side, dilation)
        for size, stride, dilation, side in zip(*settings, sides, strict=True)
    )
    fan_in = layer.in_channels * settings[0][0] * settings[0][1]
    return reader.weights(place, layer, Weights(windows, True, layer.bias is not None, fan_in))


def _pool(dims: int) -> Callable:
    def layer(reader: _Reader, place: _Place, layer: Any) -> _Place:
        names = "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
        options: dict[str, Any] = {name: getattr(layer, name, None) for name in names}
        return pool(reader, place, layer.kernel_size, **options)

    def pool(reader: _Reader, place: _Place, kernel_size: Any, stride: Any = None,
             padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
             divisor_override: Any = None) -> _Place:  # fmt: skip
        reader.spatial(place, dims)
        pads = _pair(padding, dims, 0)
        if ceil_mode or divisor_override or (any(pads) and not count_include_pad):
            raise ValueError(
                "Average pooling must divide by its whole window: ceil_mode=False, "
                "divisor_override=None, count_include_pad=True (or no padding)."
            )
        sizes = _pair(kernel_size, dims, 1)
        strides = _pair(kernel_size if stride in (None, ()) else stride, dims, 1)
        windows = zip(sizes, strides, ((p, p) for p in pads), strict=True)
        return reader.add(place, Pool(tuple(Window(*w) for w in windows)))

    layer.call = pool  # type: ignore[attr-defined]
    return layer


def _adaptive(dims: int) -> Callable:
    def pool(reader: _Reader, place: _Place, size: Any) -> _Place:
        reader.spatial(place, dims)
        return reader.add(place, Pool((), _pair(size, dims, None)))

    return pool


def _pad(reader: _Reader, place: _Place, room: Any, mode: str = "zeros", value: Any = 0) -> _Place:
    dims = len(room) // 2
    reader.spatial(place, dims)
    if mode in ("constant", "zeros") and value not in (None, 0):
        raise ValueError("Padding with a value other than zero has no limit here.")
    side = (room[-2], room[-1])
    sides = (side, (room[0], room[1])) if dims == 2 else ((0, 0), side)
    return reader.add(place, Pad(sides, "zeros" if mode == "constant" else mode))


def _layer_norm(reader: _Reader, place: _Place, layer: Any) -> _Place:
    expected = 1
    if place.spatial and not place.flat:
        expected = 1 + max(reader.dims)
    if len(layer.normalized_shape) != expected:
        raise ValueError("LayerNorm must be over all of a sample (channels, height, width).")
    return _normal(reader, place, layer, layer.elementwise_affine)


def _normal(reader: _Reader, place: _Place, layer: Any, gains: bool) -> _Place:
    if not place.gaussian:
        raise ValueError(
            f"{type(layer).__name__} must follow weights, where the mean over channels is zero: "
            "put it before the activation, and scale inputs beforehand."
        )
    return reader.add(place, Normal(layer.eps, gains))


def _group_norm(reader: _Reader, place: _Place, layer: Any) -> _Place:
    return _normal(reader, place, layer, layer.affine)


def _dropout(reader: _Reader, place: _Place, p: float = 0.5, training: bool = True,
             inplace: bool = False, channels: bool = False) -> _Place:  # fmt: skip
    if not training or p == 0:
        return place
    if p >= 1:
        raise ValueError("Dropout of everything (p=1) leaves no network.")
    return reader.add(place, Dropout(1.0 - p, channels), gaussian=False)


def _unflatten(reader: _Reader, place: _Place, layer: Any) -> _Place:
    if place.number or layer.dim != 1:
        raise _refusal("Unflatten of hidden layers")
    reader.input_shape = tuple(layer.unflattened_size)
    return place


def _phi(phi: str) -> Callable:
    return lambda reader, place, inplace=False: reader.activation(place, phi)


def _elementwise(function: Callable) -> Callable:
    def call(reader: _Reader, place: _Place, *args: Any, **kwargs: Any) -> _Place:
        kwargs.pop("inplace", None)
        name = f"{function.__name__}{args}{kwargs}"
        return reader.activation(place, Elementwise(name, _Bound(function, args, kwargs)))

    return call


@dataclass(frozen=True)
class _Bound:
    function: Callable
    args: tuple
    kwargs: dict

    def __call__(self, u: Any) -> Any:
        return self.function(u, *self.args, **self.kwargs)


def _gelu(reader: _Reader, place: _Place, approximate: str = "none") -> _Place:
    if approximate == "none":
        return reader.activation(place, "gelu")
    return _elementwise(F.gelu)(reader, place, approximate=approximate)


def _leaky(reader: _Reader, place: _Place, slope: float = 0.01, inplace: bool = False) -> _Place:
    return reader.activation(place, "leaky_relu", float(slope))


def _same(reader: _Reader, place: _Place, *_: Any, **__: Any) -> _Place:
    return place


_NAMED = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "swish"}
_ELEMENTWISE = {
    nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.Mish, nn.Hardtanh, nn.ReLU6,
    nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink,
}  # fmt: skip
_LAYERS: dict[Any, Callable] = {
    nn.Linear: _linear, nn.LazyLinear: _linear,
    nn.Conv1d: _conv, nn.Conv2d: _conv, nn.LazyConv1d: _conv, nn.LazyConv2d: _conv,
    nn.AvgPool1d: _pool(1), nn.AvgPool2d: _pool(2),
    nn.AdaptiveAvgPool1d: lambda r, p, m: _adaptive(1)(r, p, m.output_size),
    nn.AdaptiveAvgPool2d: lambda r, p, m: _adaptive(2)(r, p, m.output_size),
    nn.Identity: _same, nn.Unflatten: _unflatten,
    nn.Flatten: lambda r, p, m: r.flatten(p, m.start_dim, m.end_dim),
    nn.LayerNorm: _layer_norm, nn.GroupNorm: _group_norm,
    nn.Dropout: lambda r, p, m: _dropout(r, p, m.p, m.training),
    nn.Dropout1d: lambda r, p, m: _dropout(r, p, m.p, m.training, channels=True),
    nn.Dropout2d: lambda r, p, m: _dropout(r, p, m.p, m.training, channels=True),
    nn.LeakyReLU: lambda r, p, m: _leaky(r, p, m.negative_slope),
    nn.GELU: lambda r, p, m: _gelu(r, p, m.approximate),
    nn.ZeroPad1d: lambda r, p, m: _pad(r, p, m.padding),
    nn.ZeroPad2d: lambda r, p, m: _pad(r, p, m.padding),
    nn.ConstantPad1d: lambda r, p, m: _pad(r, p, m.padding, "zeros", m.value),
    nn.ConstantPad2d: lambda r, p, m: _pad(r, p, m.padding, "zeros", m.value),
    nn.CircularPad1d: lambda r, p, m: _pad(r, p, m.padding, "circular"),
    nn.CircularPad2d: lambda r, p, m: _pad(r, p, m.padding, "circular"),
    nn.ReflectionPad1d: lambda r, p, m: _pad(r, p, m.padding, "reflect"),
    nn.ReflectionPad2d: lambda r, p, m: _pad(r, p, m.padding, "reflect"),
    nn.ReplicationPad1d: lambda r, p, m: _pad(r, p, m.padding, "replicate"),
    nn.ReplicationPad2d: lambda r, p, m: _pad(r, p, m.padding, "replicate"),
}  # fmt: skip
# Functions and methods, by name.
_CALLS: dict[str, Callable] = {
    **{name: _phi(name) for name in ("relu", "tanh", "sigmoid", "erf", "sin", "cos")},
    **{name: _phi(name[:-1]) for name in ("relu_", "tanh_", "sigmoid_")},
    **{f.__name__: _elementwise(f) for f in (F.elu, F.selu, F.celu, F.softplus, F.softsign, F.mish,
                                             F.hardtanh, F.relu6, F.logsigmoid)},
    "silu": _phi("swish"), "gelu": _gelu, "leaky_relu": _leaky,
    "add": _Reader.sum, "iadd": _Reader.sum, "add_": _Reader.sum,
    "mul": _Reader.times, "truediv": _Reader.over, "div": _Reader.over,
    "flatten": _Reader.flatten, "view": _Reader.reshape, "reshape": _Reader.reshape,
    "mean": _Reader.mean, "dropout": _dropout, "contiguous": _same,
    "avg_pool1d": _pool(1).call, "avg_pool2d": _pool(2).call,  # type: ignore[attr-defined]
    "adaptive_avg_pool1d": _adaptive(1), "adaptive_avg_pool2d": _adaptive(2), "pad": _pad,
}  # fmt: skip

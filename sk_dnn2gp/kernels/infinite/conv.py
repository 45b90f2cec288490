"""Infinitely wide convolutional networks as scikit-learn kernels (:ref:`math-infinite`).

After Garriga-Alonso et al. 2019: one number for every pair of images and position, v_g; with S(g)
the patch of position g,

    v⁰_g = σ_b² + σ_w²/C Σ_{c, h in S(g)} X_{c,h} X'_{c,h}
    v^{l+1}_g = σ_b² + σ_w² Σ_{h in S(g)} F_φ(v^l_h(X, X'), v^l_h(X, X), v^l_h(X', X'))

the sums divided by the filter's size unless ``divide_by_filter_size=False`` (the paper's form), so
that σ_w² is the weight variance times the whole fan-in. A dense end sees the mean of F_φ over
positions. Images are (n, c, h, w), or flattened with ``image_shape=(c, h, w)``.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .base import InfiniteKernel, checked, laid_out, shaped
from .steps import Activation, Mean, Node, Pool, Sum, Weights, Window, append, chain

__all__ = ["ConvNetKernel", "ResNetKernel"]


class _ImageKernel(InfiniteKernel):
    """Images in, checked against ``image_shape``, and laid out as (h, w, n, c)."""

    def __repr__(self) -> str:
        options = f"sigma_w2={self.sigma_w2:.3g}, sigma_b2={self.sigma_b2:.3g}"
        return f"{type(self).__name__}({self._size()}, {options})"

    def _input(self, X: ArrayLike, name: str) -> Tensor:
        shape = self.image_shape
        if shape is not None and len(shape) != 3:
            raise ValueError(f"image_shape must be (channels, height, width), got {shape}.")
        x = shaped(checked(X, name, self.dtype, self.device), shape, name, "image_shape")
        if x.ndim != 4:
            raise ValueError(
                f"{name} must be images (n_samples, channels, height, width), got shape "
                f"{tuple(x.shape)}: name the shape of flattened ones in image_shape."
            )
        return laid_out(x, name)

    def _filter(self, size: int, stride: int, padding: Any) -> Weights:
        window = Window(size, stride, padding)
        return Weights((window, window), self.divide_by_filter_size)


class ConvNetKernel(_ImageKernel):
    """Prior covariance of a convolutional network of infinitely many channels.

    Garriga-Alonso et al. 2019, eqs. 7 to 9 (the module's docstring has them).

    Parameters
    ----------
    layers : int, default=7
        Convolutions, each followed by its activation.
    filter_size, stride : int or sequence of int, default=3 and 1
        Of every layer, or one for each.
    padding : {"same", "valid"}, int or sequence of these, default="same"
        Zeros around the image: "same" keeps ceil(size / stride) positions (with the larger share
        at the end, where it is odd); a number is that many on each side, as in torch.
    activation : str or callable or sequence of these, default="relu"
        See `dual_activation`.
    end : {"dense", "average_pool"}, default="dense"
        A dense layer over all positions, or over their global average. The average needs the
        covariance of every position with every other: (h·w)² numbers for a pair of images instead
        of h·w, and as many times the work: for images of up to some 10 × 10 positions.
    image_shape : tuple (channels, height, width), default=None
        Of flattened images; None takes images of four dimensions.
    sigma_w2, sigma_b2 : float
        Weight variance (times fan-in) and bias variance.
    sigma_w2_bounds, sigma_b2_bounds : pair of float or "fixed", default=(1e-5, 1e5)
        For an optimiser. ``sigma_b2=0`` must be "fixed".
    divide_by_filter_size : bool, default=True
        Whether fan-in counts the positions of a filter (as initialisations of networks do) or
        channels alone (as the paper's formulas do, so that the same σ_w² means larger weights).
    slope, terms : float, default=0.01, and int, default=300
        Of the leaky ReLU; highest degree of the Hermite series, where there is no closed form.
    dtype, device : torch.dtype, default=torch.float64, and str or torch.device, default="cpu"
        Of the work; the result is float64.
    memory_limit : float, default=None
        MiB of temporary work beyond the result; None is scikit-learn's ``working_memory``.
    n_jobs, verbose : int, default=None and 0
        Processes for joblib; whether to show a progress bar.
    kind : {"nngp", "ntk"}, default="nngp"
        The prior covariance, or the tangent kernel.

    Raises
    ------
    ValueError
        If a parameter is out of its range, the images do not fit, or X is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.kernels import ConvNetKernel
    >>> kernel = ConvNetKernel(1, filter_size=1, image_shape=(1, 2, 2), sigma_b2=1.0)
    >>> kernel.diag(np.ones((1, 4))).tolist()
    [4.0]
    """

    def __init__(
        self,
        layers: int = 7,
        *,
        filter_size: Any = 3,
        stride: Any = 1,
        padding: Any = "same",
        activation: Any = "relu",
        end: str = "dense",
        image_shape: Any = None,
        sigma_w2: float = 2.0,
        sigma_b2: float = 0.1,
        sigma_w2_bounds: Any = (1e-5, 1e5),
        sigma_b2_bounds: Any = (1e-5, 1e5),
        divide_by_filter_size: bool = True,
        slope: float = 0.01,
        terms: int = 300,
        dtype: torch.dtype = torch.float64,
        device: Any = "cpu",
        memory_limit: float | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        kind: str = "nngp",
    ) -> None:
        self._keep(locals())

    def _size(self) -> str:
        return f"layers={self.layers}, filter_size={self.filter_size}"

    def _nodes(self) -> list[Node]:
        n = _whole(self.layers, "layers", 1)
        sizes = [_whole(s, "filter_size", 1) for s in _each(self.filter_size, n, "filter_size")]
        strides = [_whole(s, "stride", 1) for s in _each(self.stride, n, "stride")]
        paddings = [_padding(p) for p in _each(self.padding, n, "padding")]
        phis = _each(self.activation, n, "activation")
        if self.end not in ("dense", "average_pool"):
            raise ValueError(f"end must be 'dense' or 'average_pool', got {self.end!r}.")
        steps: list[Any] = []
        for size, stride, padding, phi in zip(sizes, strides, paddings, phis, strict=True):
            steps += [self._filter(size, stride, padding), Activation(phi, self.slope, self.terms)]
        pool = [Pool()] if self.end == "average_pool" else []
        return chain([*steps, *pool, Mean(), Weights()])


class ResNetKernel(_ImageKernel):
    """Prior covariance of a residual network of infinitely many channels.

    The basic architecture of Garriga-Alonso et al. 2019 (He et al. 2016, without normalisation): a
    3 × 3 convolution, no pooling, stages of blocks with a skip over ``skip`` pairs of activation
    and convolution, each stage after the first halving height and width, a last activation and a
    dense end. Where a block strides, its shortcut is a 1 × 1 convolution of its first activation.
    Defaults: 32 layers.

    Parameters
    ----------
    blocks : int, default=5
        Blocks of a stage.
    stages : int, default=3
        Stages; the depth is 2 + stages · blocks · skip.
    skip : int, default=2
        Convolutions in a block.
    filter_size : int, default=3
        Of every convolution but shortcuts.
    padding : {"same"} or int, default="same"
        Zeros around the image, as in `ConvNetKernel`; a number must keep the size at stride 1.
    activation : str or callable, default="relu"
        See `dual_activation`.
    image_shape : tuple (channels, height, width), default=None
        Of flattened images; None takes images of four dimensions.
    sigma_w2, sigma_b2 : float
        Weight variance (times fan-in) and bias variance.
    sigma_w2_bounds, sigma_b2_bounds : pair of float or "fixed", default=(1e-5, 1e5)
        For an optimiser. ``sigma_b2=0`` must be "fixed".
    divide_by_filter_size : bool, default=True
        See `ConvNetKernel`.
    slope, terms : float, default=0.01, and int, default=300
        Of the leaky ReLU; highest degree of the Hermite series, where there is no closed form.
    dtype, device : torch.dtype, default=torch.float64, and str or torch.device, default="cpu"
        Of the work; the result is float64.
    memory_limit : float, default=None
        MiB of temporary work beyond the result; None is scikit-learn's ``working_memory``.
    n_jobs, verbose : int, default=None and 0
        Processes for joblib; whether to show a progress bar.
    kind : {"nngp", "ntk"}, default="nngp"
        The prior covariance, or the tangent kernel.

    Raises
    ------
    ValueError
        If a parameter is out of its range, the images do not fit, or X is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.kernels import ResNetKernel
    >>> kernel = ResNetKernel(blocks=1, stages=1, image_shape=(1, 4, 4))
    >>> kernel(np.ones((2, 16))).shape
    (2, 2)
    """

    def __init__(
        self,
        blocks: int = 5,
        *,
        stages: int = 3,
        skip: int = 2,
        filter_size: int = 3,
        padding: Any = "same",
        activation: Any = "relu",
        image_shape: Any = None,
        sigma_w2: float = 2.0,
        sigma_b2: float = 0.1,
        sigma_w2_bounds: Any = (1e-5, 1e5),
        sigma_b2_bounds: Any = (1e-5, 1e5),
        divide_by_filter_size: bool = True,
        slope: float = 0.01,
        terms: int = 300,
        dtype: torch.dtype = torch.float64,
        device: Any = "cpu",
        memory_limit: float | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        kind: str = "nngp",
    ) -> None:
        self._keep(locals())

    def _size(self) -> str:
        return f"blocks={self.blocks}, stages={self.stages}, skip={self.skip}"

    def _nodes(self) -> list[Node]:
        counts = {n: _whole(getattr(self, n), n, 1) for n in ("blocks", "stages", "skip")}
        size, padding = _whole(self.filter_size, "filter_size", 1), _padding(self.padding)
        if padding != "same" and 2 * padding[0] != size - 1:
            raise ValueError(
                "padding must be 'same' or (filter_size - 1)/2 for sums to fit, got "
                f"{self.padding!r}."
            )
        phi = Activation(self.activation, self.slope, self.terms)
        keep = self._filter(size, 1, padding)
        nodes = chain([keep])
        for stage in range(counts["stages"]):
            for block in range(counts["blocks"]):
                stride = 2 if stage and not block else 1
                first = self._filter(size, stride, padding)
                steps = [phi, first, *(phi, keep) * (counts["skip"] - 1)]
                self._block(nodes, steps, stride, "same" if padding == "same" else (0, 0))
        for step in (phi, Mean(), Weights()):
            append(nodes, step)
        return nodes

    def _block(self, nodes: list[Node], steps: list[Any], stride: int, padding: Any) -> None:
        """A skip over the steps: of what came in, or where it strides of its first activation."""
        short, last = len(nodes) - 1, append(nodes, steps[0])
        if stride > 1:
            short = append(nodes, self._filter(1, stride, padding), last)
        for step in steps[1:]:
            last = append(nodes, step, last)
        append(nodes, Sum(), short, last)


def _each(value: Any, n: int, name: str) -> list[Any]:
    """One value for each of n layers."""
    if isinstance(value, list | tuple):
        if len(value) != n:
            raise ValueError(f"{name} must be one value or {n}, one for each layer: {value!r}.")
        return list(value)
    return [value] * n


def _whole(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}.")
    return int(value)


def _padding(value: Any) -> Any:
    """As `Window` takes it."""
    if isinstance(value, str) and value in ("same", "valid"):
        return value if value == "same" else (0, 0)
    if isinstance(value, str):
        raise ValueError(f"padding must be 'same', 'valid' or a number, got {value!r}.")
    return (_whole(value, "padding", 0),) * 2

"""The infinitely wide limit of a torch module as a scikit-learn kernel (:ref:`math-infinite`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.gaussian_process.kernels import Hyperparameter
from torch import Tensor

from ..ntk import network_module
from .base import InfiniteKernel, checked, laid_out, shaped
from .reading import Reading, read
from .steps import Activation, Node, Weights

__all__ = ["InfiniteNetworkKernel"]


class InfiniteNetworkKernel(InfiniteKernel):
    """The Gaussian process that an untrained network becomes as its layers widen.

    Read off a torch module: its layers, not its widths and weights. Layers: Linear, Conv1d and
    Conv2d (stride, padding of every mode, dilation), average and global pooling, Flatten, padding,
    LayerNorm and GroupNorm before activations (without gains for the tangent kernel), sums of
    uncorrelated branches (`sk_dnn2gp.networks.Residual`, or any forward that torch.fx traces), and
    every elementwise activation. In training mode Dropout is noise, which adds to the variance of
    each sample of X with itself (as scikit-learn's WhiteKernel does, not to ``kernel(X, Y)``); in
    evaluation mode it is nothing. What has no limit is refused by name.

    Parameters
    ----------
    module : torch.nn.Module, or fitted skorch net or estimator with ``module_``
        Never modified.
    kind : {"nngp", "ntk"}, default="nngp"
        The prior covariance of the network's outputs (Lee et al. 2018), or its tangent kernel under
        training of all weights (Jacot et al. 2018), both with weights N(0, σ_w²/fan-in).
    sigma_w2 : float, sequence of float or "torch", default=2.0
        Weight variance times fan-in (a filter's cells count): one for all layers, or one for each
        in the order of their calls; "torch" is 1/3, that of torch's own initialisation.
    sigma_b2 : float, sequence of float or "torch", default=0.1
        Bias variance of the layers that have a bias: one for all, or one for each; "torch" is
        1/(3 fan-in) of the module as it stands.
    sigma_w2_bounds, sigma_b2_bounds : pair of float or "fixed", default=(1e-5, 1e5)
        For an optimiser; "torch" is fixed. ``sigma_b2=0`` must be "fixed".
    input_shape : tuple of int, default=None
        Shape of one sample, (channels, height, width) or (channels, length), where the module does
        not take rows of features.
    terms : int, default=300
        Highest degree of the Hermite series of activations without a closed form. Its relative
        error is known; above 1e-6 it is warned of.
    dtype, device : torch.dtype, default=torch.float64, and str or torch.device, default="cpu"
        Of the work; the result is float64.
    memory_limit : float, default=None
        MiB of temporary work beyond the result; None is scikit-learn's ``working_memory``. Pooling
        needs covariances between positions, (h·w)² numbers for a pair of samples instead of h·w.
    n_jobs, verbose : int, default=None and 0
        Processes for joblib; whether to show a progress bar.

    Raises
    ------
    ValueError
        If the module holds what has no limit here, a parameter is out of its range, or X does not
        fit.
    TypeError
        If ``module`` holds no torch module.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from sk_dnn2gp.kernels import InfiniteNetworkKernel
    >>> net = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 1))
    >>> kernel = InfiniteNetworkKernel(net, sigma_w2=2.0, sigma_b2=1.0)
    >>> kernel(np.eye(2)).diagonal().tolist()
    [3.0, 3.0]
    """

    def __init__(
        self,
        module: Any,
        *,
        kind: str = "nngp",
        sigma_w2: float | Sequence[float] | str = 2.0,
        sigma_b2: float | Sequence[float] | str = 0.1,
        sigma_w2_bounds: Any = (1e-5, 1e5),
        sigma_b2_bounds: Any = (1e-5, 1e5),
        input_shape: Sequence[int] | None = None,
        terms: int = 300,
        dtype: torch.dtype = torch.float64,
        device: Any = "cpu",
        memory_limit: float | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self._keep(locals())
        self._read: Any = (None, None)  # not a parameter: the module as it was last read

    @property
    def hyperparameter_sigma_b2(self) -> Hyperparameter:
        """σ_b² as scikit-learn's optimiser sees it: fixed where no layer has a bias."""
        found = super().hyperparameter_sigma_b2
        if any(layer.bias for layer in self._weights(self._reading().nodes)):
            return found
        return Hyperparameter("sigma_b2", "numeric", "fixed")

    def __sklearn_clone__(self) -> InfiniteNetworkKernel:
        """A kernel of the same module (not of a copy)."""
        twin = type(self)(**self.get_params(deep=False))
        twin._read = self._read
        return twin

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; those of the module are its own affair."""
        return super().get_params(deep=False)

    def __eq__(self, other: Any) -> bool:
        if type(self) is not type(other):
            return False
        mine, theirs = self.get_params(), other.get_params()
        same = all(np.array_equal(mine[n], theirs[n]) for n in mine if n != "module")
        nodes, others = self._reading().nodes, other._reading().nodes
        return same and nodes == others and self._variances(nodes) == other._variances(others)

    def __hash__(self) -> int:
        return hash((type(self), self.kind, self._reading().nodes))

    def __repr__(self) -> str:
        values = ", ".join(f"{n}={_short(getattr(self, n))}" for n in ("sigma_w2", "sigma_b2"))
        name = type(network_module(self.module)).__name__
        return f"{type(self).__name__}({name}, kind={self.kind!r}, {values})"

    def _reading(self) -> Reading:
        """The module read, again only where it has changed."""
        module = network_module(self.module)
        key = id(module), repr(module), tuple(m.training for m in module.modules())
        if self._read[0] != key:
            self._read = key, read(module)
        return self._read[1]

    def _nodes(self) -> list[Node]:
        def with_terms(node: Node) -> Node:
            step = node.step
            if not isinstance(step, Activation) or step.terms == self.terms:
                return node
            return Node(Activation(step.phi, step.slope, self.terms), node.args)

        return [with_terms(node) for node in self._reading().nodes]

    @staticmethod
    def _weights(nodes: Sequence[Node]) -> list[Weights]:
        return [node.step for node in nodes if isinstance(node.step, Weights)]

    def _layers(self, nodes: Sequence[Node]) -> tuple[Any, Any]:
        w: Any = self.sigma_w2
        b: Any = self.sigma_b2
        layers = self._weights(nodes)
        for name, value in (("sigma_w2", w), ("sigma_b2", b)):
            if isinstance(value, str) and value != "torch":
                raise ValueError(f"{name} must be a number, one a layer or 'torch', got {value!r}.")
        if isinstance(b, str):
            fans = [layer.fan_in for layer in layers if layer.bias]
            if 0 in fans:
                raise ValueError("sigma_b2='torch' needs the fan-in of every layer: run it once.")
            b = [1 / (3 * fan) for fan in fans]
        w = 1 / 3 if isinstance(w, str) else w
        return w, b

    def _input(self, X: ArrayLike, name: str) -> Tensor:
        reading = self._reading()
        shape = reading.input_shape if self.input_shape is None else self.input_shape
        x = shaped(checked(X, name, self.dtype, self.device), shape, name, "input_shape")
        if reading.dims and x.ndim != reading.dims + 2:
            layout = "(channels, height, width)" if reading.dims == 2 else "(channels, length)"
            raise ValueError(
                f"{name} has samples of shape {tuple(x.shape[1:])}, the module takes {layout}: "
                "name the shape of flattened ones in input_shape."
            )
        return laid_out(x, name)


def _short(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    return f"{value:.3g}" if np.ndim(value) == 0 else f"[{', '.join(f'{v:.3g}' for v in value)}]"

"""Plain torch modules: MLP, a residual branch, and LeNet5 (Khan et al. 2019, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "MLP", "Erf", "LeNet5", "Residual", "Standardize"]


class Erf(nn.Module):
    """The error function as an activation, whose infinite-width kernel is Williams' closed form.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.networks import Erf
    >>> Erf()(torch.zeros(1)).item()
    0.0
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return erf(x), elementwise."""
        return torch.erf(x)


class Standardize(nn.Module):
    """Inputs less a fixed mean, over a fixed scale: the first layer of the default network.

    Parameters
    ----------
    mean, scale : Tensor of shape (n_features,)

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.networks import Standardize
    >>> Standardize(torch.tensor([1.0]), torch.tensor([2.0]))(torch.tensor([[5.0]])).item()
    2.0
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / scale."""
        return (x - self.mean) / self.scale

    def constant_slope(self) -> Tensor:
        """∂/∂x of every entry: what tells a linearisation that the layer is affine in each."""
        return 1.0 / self.scale


class Residual(nn.Module):
    """A branch added to what came in, or to a shortcut of it (He et al. 2016).

    Parameters
    ----------
    body : torch.nn.Module
    shortcut : torch.nn.Module, default=None
        None is the identity.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.networks import Residual
    >>> Residual(torch.nn.ReLU())(torch.tensor([-1.0, 1.0])).tolist()
    [-1.0, 2.0]
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut(x) + body(x)."""
        return self.shortcut(x) + self.body(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "logistic": nn.Sigmoid,
    "erf": Erf,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


class MLP(nn.Sequential):
    """Dense network: n_features, hidden layers with an activation, a linear output layer.

    Parameters
    ----------
    n_features : int
        Inputs D.
    hidden_layer_sizes : sequence of int
        Width of each hidden layer; empty for a linear model.
    n_outputs : int, default=1
        Outputs K.
    activation : {"tanh", "relu", "sigmoid", "logistic", "erf", "gelu", "identity"}
        Activation of every hidden layer.
    dtype : torch.dtype, default=torch.float64
        Precision of the weights.
    standardize : pair of Tensor of shape (n_features,), optional
        Mean and scale of the inputs, for a first layer that takes them out.

    Raises
    ------
    ValueError
        If ``activation`` is unknown or a width is not a positive integer.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.networks import MLP
    >>> MLP(2, (5,), 1)(torch.zeros(3, 2, dtype=torch.float64)).shape
    torch.Size([3, 1])
    """

    def __init__(
        self,
        n_features: int,
        hidden_layer_sizes: Sequence[int] = (50,),
        n_outputs: int = 1,
        activation: str = "tanh",
        dtype: torch.dtype = torch.float64,
        standardize: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}."
            )
        sizes = [n_features, *hidden_layer_sizes, n_outputs]
        if any(int(size) != size or size < 1 for size in sizes):
            raise ValueError(f"Layer sizes must be positive integers, got {sizes!r}.")
        layers: list[nn.Module] = [] if standardize is None else [Standardize(*standardize)]
        for fan_in, fan_out in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(fan_in, fan_out, dtype=dtype), ACTIVATIONS[activation]()]
        layers.append(nn.Linear(sizes[-2], sizes[-1], dtype=dtype))
        super().__init__(*layers)


class LeNet5(nn.Sequential):
    """LeNet5 for 28×28 images with one channel: 44,426 weights for ten classes.

    Two 5×5 convolutions with 6 and 16 channels, each followed by the activation and 2×2 max
    pooling, then dense layers of 120, 84 and ``n_outputs``.

    Parameters
    ----------
    n_outputs : int, default=10
    activation : str, default="relu"
        As for :class:`MLP`.
    n_channels : int, default=1
    dtype : torch.dtype, default=torch.float32

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.networks import LeNet5
    >>> sum(p.numel() for p in LeNet5().parameters())
    44426
    """

    def __init__(
        self,
        n_outputs: int = 10,
        activation: str = "relu",
        n_channels: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        act = ACTIVATIONS[activation]
        super().__init__(
            nn.Conv2d(n_channels, 6, 5, dtype=dtype),
            act(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, dtype=dtype),
            act(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 120, dtype=dtype),
            act(),
            nn.Linear(120, 84, dtype=dtype),
            act(),
            nn.Linear(84, n_outputs, dtype=dtype),
        )

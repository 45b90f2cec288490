"""Forty networks: a maker of each, and inputs of its kind. Two outputs, float64, weights drawn."""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

Maker = Callable[[], nn.Module]


class Of(nn.Module):
    """A network whose forward is a function of itself, its layers attributes."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.rule = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, x)


class Scalars(nn.Module):
    """Weights of no dimensions: a gain and an offset."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.tensor(1.3)), nn.Parameter(torch.tensor(0.2))
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * torch.tanh(self.layer(x)) + self.offset


class LoRA(nn.Module):
    """A held layer with a low-rank correction that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 4).requires_grad_(False)
        self.down = nn.Parameter(0.5 * torch.randn(2, 3))
        self.up = nn.Parameter(0.5 * torch.randn(4, 2))
        self.last = nn.Linear(4, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.base(x) + x @ self.down.mT @ self.up.mT))


class Mixture(nn.Module):
    """Experts weighed by a gate of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 3)
        self.experts = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.gate(x).softmax(-1)[..., None] * outputs).sum(1)


class UNet(nn.Module):
    """Down, up, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 2, 3, padding=1)
        self.deep = nn.Conv2d(2, 2, 3, padding=1)
        self.up = nn.ConvTranspose2d(2, 2, 2, stride=2)
        self.join = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.down(x))
        b = torch.tanh(self.deep(F.avg_pool2d(a, 2)))
        return self.join(torch.cat([a, self.up(b)], 1)).mean((2, 3))


class Attention(nn.Module):
    """Self-attention over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    """A recurrent layer, read out at its end."""

    def __init__(self, kind: type[nn.Module], **options: bool) -> None:
        super().__init__()
        self.body = kind(4, 3, batch_first=True, **options)
        self.last = nn.Linear(6 if options.get("bidirectional") else 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x)[0][:, -1])


class Tied(nn.Module):
    """One layer called twice, and one weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.twice = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.twice.weight
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.twice(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.other(torch.tanh(self.twice(h)))))


class Doubled(nn.Module):
    """A parametrisation: the weight is a function of another."""

    def forward(self, W: Tensor) -> Tensor:
        return torch.sinh(W)


class Buffers(nn.Module):
    """Constants that move with the network and are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("scale", torch.rand(3) + 0.5, persistent=False)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.sin((x - self.mean) / self.scale))


class Polynomial(nn.Module):
    """Weights of the user's own, without any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.5 * torch.randn(3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,ijk,nj->nk", x, self.w, x[:, :2]).tanh()


def hooked() -> nn.Module:
    """A forward hook that changes a layer's output."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].register_forward_hook(halved)
    return net


def halved(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return 0.5 * output


def parametrised() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    parametrize.register_parametrization(net[0], "weight", Doubled())
    return net


def held() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


def residual(net: nn.Module, x: Tensor) -> Tensor:
    h = net.first(x)
    return net.last(h + net.body(h))


def pooled(net: nn.Module, x: Tensor) -> Tensor:
    return net.last(net.body(x).mean(1))


def bag(net: nn.Module, x: Tensor) -> Tensor:
    return net.last(torch.tanh(net.bag(x)))


def gated(net: nn.Module, x: Tensor) -> Tensor:
    return net.last(torch.sigmoid(net.gate(x)) * net.value(x))


def dense(activation: nn.Module) -> Maker:
    return lambda: nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))


def images(*layers: Callable[[], nn.Module], width: int) -> Maker:
    return lambda: nn.Sequential(*[make() for make in layers], nn.Flatten(), nn.Linear(width, 2))


_conv = lambda: nn.Conv2d(1, 4, 3)  # noqa: E731
NETWORKS: dict[str, tuple[str, Maker]] = {
    "linear": ("row", lambda: nn.Linear(3, 2)),
    "no bias": ("row", lambda: nn.Linear(3, 2, bias=False)),
    "tanh": ("row", dense(nn.Tanh())),
    "relu": ("row", dense(nn.ReLU())),
    "gelu": ("row", dense(nn.GELU())),
    "silu": ("row", dense(nn.SiLU())),
    "softplus": ("row", dense(nn.Softplus())),
    "leaky relu": ("row", dense(nn.LeakyReLU())),
    "prelu": ("row", lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2))),
    "prelu of channels": ("row", lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2))),
    "glu": ("row", lambda: nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 2))),
    "gated": ("row", lambda: Of(gated, gate=nn.Linear(3, 4), value=nn.Linear(3, 4), last=nn.Linear(4, 2))),
    "bilinear": ("row", lambda: Of(bilinear, body=nn.Bilinear(3, 3, 4), last=nn.Linear(4, 2))),
    "layer norm": ("row", lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))),
    "rms norm": ("row", lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, 2))),
    "dropout at rest": ("row", lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.0), nn.Linear(4, 2))),
    "scalars": ("row", Scalars),
    "lora": ("row", LoRA),
    "held": ("row", held),
    "tied": ("row", Tied),
    "mixture of experts": ("row", Mixture),
    "residual": ("row", lambda: Of(
        residual, first=nn.Linear(3, 4), last=nn.Linear(4, 2),
        body=nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)),
    )),
    "buffers": ("row", Buffers),
    "hook": ("row", hooked),
    "parametrised": ("row", parametrised),
    "own weights": ("row", Polynomial),
    "conv1d": ("sequence", lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))),
    "conv1d, dilated": ("sequence", lambda: nn.Sequential(
        nn.Conv1d(3, 4, 2, dilation=2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)
    )),
    "conv2d": ("image", images(_conv, nn.Tanh, width=64)),
    "conv2d, strides and groups": ("image", images(
        _conv, nn.Tanh, lambda: nn.Conv2d(4, 4, 2, stride=2, groups=2), nn.SiLU, width=16
    )),
    "max pool": ("image", images(_conv, nn.ReLU, lambda: nn.MaxPool2d(2), width=16)),
    "group norm": ("image", images(_conv, lambda: nn.GroupNorm(2, 4), nn.Tanh, width=64)),
    "instance norm": ("image", images(_conv, lambda: nn.InstanceNorm2d(4, affine=True), nn.Tanh, width=64)),
    "transposed conv": ("image", images(lambda: nn.ConvTranspose2d(1, 2, 2), nn.Tanh, width=98)),
    "u-net": ("image", UNet),
    "embedding": ("tokens", lambda: Of(pooled, body=nn.Embedding(7, 4), last=nn.Linear(4, 2))),
    "embedding bag": ("tokens", lambda: Of(bag, bag=nn.EmbeddingBag(7, 4), last=nn.Linear(4, 2))),
    "embedding, norm and layers": ("tokens", lambda: nn.Sequential(
        nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
    )),
    "rnn": ("steps", lambda: Recurrent(nn.RNN)),
    "lstm": ("steps", lambda: Recurrent(nn.LSTM)),
    "gru, both ways": ("steps", lambda: Recurrent(nn.GRU, bidirectional=True)),
    "attention": ("steps", Attention),
    "transformer": ("steps", lambda: Of(
        pooled, last=nn.Linear(4, 2),
        body=nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, activation="gelu"),
    )),
    "transformer, norm first": ("steps", lambda: Of(
        pooled, last=nn.Linear(4, 2),
        body=nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, norm_first=True),
    )),
}  # fmt: skip
if not hasattr(nn, "RMSNorm"):  # torch 2.3
    del NETWORKS["rms norm"]


def bilinear(net: nn.Module, x: Tensor) -> Tensor:
    return net.last(torch.tanh(net.body(x, x)))


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network of that name, in float64 and eval mode, and inputs for five examples."""
    kind, make = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, name)))
        net = make().double().eval()
        if kind == "tokens":
            return net, torch.randint(0, 7, (5, 4))
        shape = {"row": (3,), "sequence": (3, 4), "image": (1, 6, 6), "steps": (4, 4)}[kind]
        return net, torch.randn(5, *shape, dtype=torch.float64)

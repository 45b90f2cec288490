"""The walk through the graph with all rows at once, against autograd one cotangent at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.linearize.reverse import (
    _RULES,
    _SLOPES,
    NotByExample,
    core_of,
    outer_of,
    reverse,
)

from .test_linearize import Attention, check_all

# With torch 2.3, whose graph does not tell the shapes in it, autograd goes through it.
pytestmark = pytest.mark.skipif(
    not hasattr(torch.ones(1, requires_grad=True).exp().grad_fn, "_input_metadata"),
    reason="this torch's graph does not tell its shapes",
)


class Act(nn.Module):
    """One layer, an operation, one layer: images (2, 6, 6) to 3 outputs."""

    def __init__(self, operation, channels: int = 4):
        super().__init__()
        self.conv, self.operation = nn.Conv2d(2, channels, 3, padding=1), operation
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        return self.head(self.operation(self.conv(x)).flatten(2).mean(2))


def residual(z: Tensor) -> Tensor:
    h = torch.tanh(z)
    return z + h - torch.add(h, z, alpha=0.5)


def dense_inside(z: Tensor) -> Tensor:
    rows = z.flatten(1)
    W = torch.linspace(-1, 1, rows.shape[1] * 4, dtype=z.dtype).view(-1, 4)
    return (rows @ W).view(-1, 4, 1, 1)


OPERATIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "gelu of tanh": lambda z: nn.functional.gelu(z, approximate="tanh"),
    "silu": nn.functional.silu,
    "softplus": lambda z: nn.functional.softplus(z, beta=3.0, threshold=2.0),
    "leaky relu": lambda z: nn.functional.leaky_relu(z, 0.2),
    "average pool": lambda z: nn.functional.avg_pool2d(z, 3, 2, 1, count_include_pad=False),
    "max pool": lambda z: nn.functional.max_pool2d(z, 3, 2, 1),
    "mean, dims kept": lambda z: z.mean((2, -1), keepdim=True),
    "sum": lambda z: z.sum(3),
    "permute": lambda z: z.permute(0, 2, 1, 3).permute(0, 2, 3, 1) * 1.0,
    "transpose": lambda z: z.transpose(2, -1).tanh().transpose(-1, 2),
    "add and subtract": residual,
    "product of itself": lambda z: z * torch.tanh(z),  # no rule: row by row
    "softmax": lambda z: z.softmax(1),
    "clone and view": lambda z: z.clone().view(-1, 4, 36).reshape(-1, 4, 6, 6),
    "matrix": dense_inside,
    "layer norm": lambda z: nn.functional.layer_norm(z, z.shape[1:]),
    "concatenation": lambda z: torch.cat([z, z.tanh()], dim=2),
    "an activation twice": lambda z: torch.relu(z) + torch.relu(z).tanh(),
}


def graph_of(net: nn.Module, X: Tensor) -> tuple[Tensor, list]:
    edges: list = []
    handles = [
        m.register_forward_hook(lambda m, a, z: edges.append(get_gradient_edge(z)))
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    f = net(X)
    for handle in handles:
        handle.remove()
    return f, edges


def names_in(f: Tensor) -> set[str]:
    found, stack = set(), [f.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None:
            found.add(node.name())
            stack += [fn for fn, _ in node.next_functions]
    return found


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("n", [1, 3])
def test_every_rule_against_autograd(name, n):
    torch.manual_seed(0)
    net = Act(OPERATIONS[name], 6 if name == "permute" else 4).double()
    X = torch.randn(n, 2, 6, 6, dtype=torch.float64)
    f, edges = graph_of(net, X)
    C = torch.randn(n, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        found = reverse(f, edges, C)
    before = [g.clone() for g in found]
    for r in range(2):
        true = torch.autograd.grad(f, edges, C[:, :, r], retain_graph=True)
        for g, t in zip(found, true, strict=True):
            torch.testing.assert_close(g[:, r], t, rtol=1e-12, atol=1e-14)
    same = C[:1].expand_as(C)
    with torch.no_grad():
        found_same = reverse(f, edges, C[:1], same=True)
    for r in range(2):
        true = torch.autograd.grad(f, edges, same[:, :, r], retain_graph=True)
        for g, t in zip(found_same, true, strict=True):
            torch.testing.assert_close(g[:, r], t, rtol=1e-12, atol=1e-14)
            check_what_is_said_of(g)
    with torch.no_grad():  # the graph is left whole, and nothing of the first walk is overwritten
        reverse(f, edges, 2 * C)
    assert all(torch.equal(a, b) for a, b in zip(before, found, strict=True))
    check_all(net, X)


def check_what_is_said_of(g: Tensor) -> None:
    core, outer = core_of(g), outer_of(g)
    if core is not None:
        assert torch.equal(core.expand_as(g), g)
    if outer is not None:
        assert torch.equal(outer[0] * outer[1], g)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_layers_before_a_mean(dtype, n_outputs):
    """Their rows differ in one number per channel, in full kernels and traces."""
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.head, self.last = nn.Linear(4, 5), nn.Linear(5, n_outputs)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            h = torch.relu(h + self.second(h)).mean((2, 3))
            return self.last(self.head(h))

    lin = check_all(Net().to(dtype), torch.randn(7, 2, 5, 5, dtype=dtype))
    factors = lin.recording(torch.randn(5, 2, 5, 5, dtype=dtype)).factors()
    outer = [f.outer is not None for f in factors if hasattr(f, "outer")]
    assert sum(outer) == (1 if n_outputs > 1 else 0)


def test_no_rule_is_left_untried():
    seen = set()
    for name in OPERATIONS:
        net = Act(OPERATIONS[name], 6 if name == "permute" else 4)
        seen |= names_in(net(torch.randn(2, 2, 6, 6)))
    conditional = {"ReshapeAliasBackward0", "AliasBackward0"}  # as torch's version has it
    assert {*_RULES, *_SLOPES} - conditional <= seen


def test_what_joins_examples_is_left_to_autograd():
    net = Act(lambda z: z.flatten(0, 1).tanh().view(z.shape)).double()
    X = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    f, edges = graph_of(net, X)
    with pytest.raises(NotByExample), torch.no_grad():
        reverse(f, edges, torch.ones(3, 3, 2, dtype=torch.float64))
    lin = check_all(net, X)
    (plan,) = lin._plans.values()
    assert not plan.by_example
    check_all(Attention().double(), torch.randn(3, 5, 4, dtype=torch.float64))


def test_an_edge_that_does_not_reach_the_outputs():
    x = torch.ones(2, 3, requires_grad=True)
    used, idle = x.tanh(), x.exp()
    (found, none) = reverse(
        used, [get_gradient_edge(used), get_gradient_edge(idle)], torch.ones(2, 3, 2)
    )
    assert none is None and torch.equal(found, torch.ones(2, 2, 3))


def test_a_hook_on_a_tensor_is_seen():
    """A gradient changed on its way is not what the operations' rules say."""

    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x):
            z = torch.tanh(self.first(x))
            if z.requires_grad:
                z.register_hook(lambda g: 2.0 * g)
            return self.last(z)

    X = torch.randn(3, 2)
    lin = Linearization(Hooked())
    lin.gram(X)
    (plan,) = lin._plans.values()
    assert not plan.by_example

"""Dense layers in a row, run by hand, against the dense Jacobian; and what is no such chain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import Linear, Sequential, Tanh

from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.linearize.chain import _SLOPES, chain_of

from .test_linearize import assert_close, check_all, dense_jacobian

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def plan_of(lin: Linearization):
    (plan,) = lin._plans.values()
    return plan


@FEW
@given(data=st.data())
def test_chains(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**31)))
    widths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers.append(nn.Linear(a, b, bias=draw(st.booleans())))
        layers += [draw(st.sampled_from(list(_SLOPES)))() for _ in range(draw(st.integers(0, 2)))]
        layers += [nn.Dropout(0.5)] if draw(st.booleans()) else []
    nested = nn.Sequential(nn.Identity(), nn.Sequential(*layers[:1]), *layers[1:]).double()
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    X = torch.randn(draw(st.integers(1, 5)), widths[0], dtype=dtype)
    plan = plan_of(check_all(nested.to(dtype), X))
    assert plan.chain is not None and not plan.explicit


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.LeakyReLU])
def test_activations_in_place_leave_what_is_kept(activation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), activation(inplace=True), nn.Linear(4, 2)).double()
    X = torch.randn(5, 3, dtype=torch.float64)
    assert plan_of(check_all(net, X)).chain is not None


def test_layers_called_twice_and_frozen_parameters():
    torch.manual_seed(1)
    twice = nn.Linear(3, 3)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), twice, nn.ReLU(), twice).double()
    net[0].weight.requires_grad_(False)
    X = torch.randn(4, 3, dtype=torch.float64)
    assert plan_of(check_all(net, X)).chain is not None
    last = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    check_all(last, X, parameters="last_layer")


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2.0 * super().forward(x)


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    net[1].register_forward_hook(lambda layer, args, h: 3.0 * h)
    return net


def patched() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    net[1].forward = lambda z: z * z
    return net


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubled(nn.Linear(3, 2)),
        lambda: nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        hooked,
        patched,
    ],
)
def test_what_is_no_chain_is_right_all_the_same(make):
    torch.manual_seed(2)
    net = make().double()
    assert chain_of(net) is None
    check_all(net, torch.randn(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("memory_limit", [0.001, 1.0])
def test_many_outputs_and_examples_one_at_a_time(memory_limit):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 5), nn.Linear(5, 5)).double()
    check_all(net, torch.randn(40, 3, dtype=torch.float64), memory_limit=memory_limit)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_numpy_and_torch_agree(activation, n_outputs, n_layers, monkeypatch):
    torch.manual_seed(4)
    widths = [3, 5, 4][:n_layers] + [n_outputs]
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b, bias=b != 4), activation()]
    net = nn.Sequential(*layers[: -1 if n_outputs == 1 else None]).double()
    X, X2 = (torch.randn(n, 3, dtype=torch.float64) for n in (9, 4))
    lin = check_all(net, X)
    assert plan_of(lin).small.is_small(9, 4) and not plan_of(lin).small.is_small(4000, 4000)
    scale = torch.rand(len(lin.parameter_names)) + 0.5
    calls = [
        lambda: lin.gram(X),
        lambda: lin.gram(X, X2, parameter_scale=scale),
        lambda: lin.gram_trace(X, parameter_scale=scale),
        lambda: lin.gram_trace(X, X2),
    ]
    quick = [call() for call in calls]
    monkeypatch.setattr(plan_of(lin), "small", None)
    for found, call in zip(quick, calls, strict=True):
        torch.testing.assert_close(found, call(), rtol=1e-12, atol=1e-14)
    assert torch.equal(quick[0], quick[0].mT) and torch.equal(quick[2], quick[2].mT)


@pytest.mark.parametrize("widths", [(2, 1), (3, 5, 1), (2, 4, 3, 2), (1, 4, 6)], ids=str)
def test_rows_of_a_pass_are_those_of_the_jacobian(widths):
    torch.manual_seed(0)
    layers = [m for a, b in zip(widths, widths[1:], strict=False) for m in (Linear(a, b), Tanh())]
    lin = Linearization(Sequential(*layers[:-1]).double())
    X = torch.randn(6, widths[0], dtype=torch.float64)
    C = torch.randn(6, widths[-1], 2, dtype=torch.float64)
    assert_close(lin.forward(X).rows(C), C.mT @ dense_jacobian(lin.module, X, lin.parameter_names))


def test_passes_that_keep_no_rows_say_so():
    torch.manual_seed(0)
    X, C = torch.randn(6, 3, dtype=torch.float64), torch.ones(6, 4, 1, dtype=torch.float64)
    net = Sequential(Linear(3, 5), Tanh(), Linear(5, 4)).double()
    assert Linearization(net).forward(X).rows(C) is not None
    assert Linearization(net, parameters="last_layer").forward(X).rows(C) is None
    assert Linearization(net, memory_limit=1e-4).forward(X).rows(C) is None  # several chunks
    assert Linearization(Sequential(net, nn.GELU())).forward(X).rows(C) is None  # a graph
    many = Sequential(Linear(3, 40), Tanh(), Linear(40, 40)).double()
    rows = Linearization(many).forward(X).rows(torch.eye(40).double().expand(6, -1, -1))
    assert rows is None  # its layers' factors give the matrix in fewer operations


def test_sequences_of_vectors_take_the_graph():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Flatten()).double()
    assert chain_of(net) is None
    lin = check_all(net, torch.randn(4, 5, 3, dtype=torch.float64))
    assert plan_of(lin).chain is None


class Affine(nn.Module):
    """(x - mean) / scale, and says so."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([1.0, -2.0, 0.5]))
        self.register_buffer("scale", torch.tensor([2.0, 0.1, 30.0]))

    def forward(self, x):
        return (x - self.mean) / self.scale

    def constant_slope(self):
        return 1.0 / self.scale


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("places", [(0,), (1,), (0, 3), (3,)])
def test_elementwise_affine_layers_run_in_a_chain(places, dtype, monkeypatch):
    torch.manual_seed(6)
    layers = [nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)]
    for place in places:
        layers.insert(place, Affine())
    net = nn.Sequential(*layers).to(dtype)
    X = torch.randn(5, 3, dtype=dtype)
    lin = check_all(net, X)
    plan = plan_of(lin)
    assert plan.chain is not None and plan.small is not None
    small = lin.gram(X)
    monkeypatch.setattr(plan, "small", None)
    assert_close(small, lin.gram(X), dtype)
    at = lin.at(lin.weights())
    expected = at.gram(X)
    with torch.no_grad():  # the buffers of given weights are those of then
        for place in places:
            net[place].mean.add_(1.0)
            net[place].scale.mul_(2.0)
    assert torch.equal(at.gram(X), expected)
    assert_close(Linearization(net).gram(X), lin.gram(X), dtype)

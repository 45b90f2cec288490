"""Every contraction of the Jacobian against the dense Jacobian, over random architectures.

The reference is reverse-mode differentiation of one output of one example at a time in float64:
no vectorisation and no layer rule. Tolerance 1e-10 relative to the largest entry in float64 (a few
hundred roundings of 1e-16 with cancellation to spare), 1e-5 in float32.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sk_dnn2gp.linearize import Linearization

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def dense_jacobian(net: nn.Module, X: Tensor, names: tuple[str, ...] | None = None) -> Tensor:
    """(n, K, P) in float64, one backward pass per example and output."""
    net = copy.deepcopy(net).double().eval()
    X = X.double() if X.is_floating_point() else X
    own = dict(net.named_parameters())
    names = [n for n, p in own.items() if p.requires_grad] if names is None else list(names)
    rows = []
    for x in X:
        leaves = [own[n].detach().clone().requires_grad_() for n in names]
        f = functional_call(net, dict(zip(names, leaves, strict=True)), (x[None],))[0]
        grads = [
            torch.autograd.grad(
                fk, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for fk in f
        ]
        rows.append(torch.stack([torch.cat([g.flatten() for g in gs]) for gs in grads]))
    return torch.stack(rows)


def assert_close(found: Tensor, true: Tensor, dtype: torch.dtype = torch.float64) -> None:
    assert found.shape == true.shape
    error = float((found.double() - true).abs().max() / true.abs().max().clamp_min(1e-300))
    assert error < TOLERANCE[dtype], error


def check_all(net: nn.Module, X: Tensor, seed: int = 0, **options) -> Linearization:
    """Every method of the interface against the dense Jacobian."""
    lin = Linearization(net, **options)
    f = lin.outputs(X)
    J = dense_jacobian(net, X, lin.parameter_names)
    n, K, P = J.shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    C, u, v, V = normal(n, K, 2), normal(n, K), normal(P), normal(P, 3)
    s = normal(len(lin.parameter_names)).exp()
    S = s.repeat_interleave(torch.tensor(lin.parameter_sizes))
    Phi, flat = C.mT @ J, J.flatten(0, 1)
    Phi_flat, m = Phi.flatten(0, 1), max(1, n - 1)
    close = lambda a, b: assert_close(a, b, lin.dtype)  # noqa: E731
    assert (lin.n_outputs, lin.n_params, sum(lin.parameter_sizes)) == (K, P, P)
    close(lin.rows(X), J)
    close(lin.rows(X, C), Phi)
    close(lin.outputs_and_rows(X, lambda f: C.to(f))[1], Phi)
    close(lin.outputs_and_rows(X)[0].double(), f.double())
    close(lin.gram(X), flat @ flat.mT)
    close(lin.gram(X, cotangents=C), Phi_flat @ Phi_flat.mT)
    close(lin.gram(X, X[:m], parameter_scale=s), (flat * S) @ flat[: m * K].mT)
    close(
        lin.gram(X, X[:m], cotangents=C, cotangents2=C[:m, :, :1]),
        Phi_flat @ Phi[:m, :1].flatten(0, 1).mT,
    )
    close(lin.gram_trace(X, parameter_scale=s), torch.einsum("nkp,mkp->nm", J * S, J))
    close(lin.gram_trace(X, X[:m]), torch.einsum("nkp,mkp->nm", J, J[:m]))
    close(lin.gram_output(X, X[:m], K - 1), J[:, -1] @ J[:m, -1].mT)
    close(lin.diagonal_blocks(X, cotangents=C, parameter_scale=s), (Phi * S) @ Phi.mT)
    close(lin.ggn(X, cotangents=C), Phi_flat.mT @ Phi_flat)
    close(lin.ggn_diagonal(X, cotangents=C), Phi_flat.square().sum(0))
    close(lin.squared_gradients(X, u), (J.mT @ u[..., None])[..., 0].square().sum(0))
    close(lin.jvp(X, v), J @ v)
    close(lin.jvp(X, V), J @ V)
    close(lin.vjp(X, u), torch.einsum("nkp,nk->p", J, u))
    close(lin.vjp(X, C), torch.einsum("nkp,nkm->pm", J, C))
    K_ = lin.gram(X)
    assert torch.equal(K_, K_.mT)
    eigenvalues = torch.linalg.eigvalsh(K_)
    assert eigenvalues.min() >= -TOLERANCE[lin.dtype] * eigenvalues.max()
    return lin


def explicit_names(lin: Linearization) -> set[str]:
    (plan,) = lin._plans.values()
    return set(plan.explicit)


ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Softplus)


@FEW
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    n=st.integers(1, 6),
    positions=st.sampled_from([(), (3,), (2, 2)]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_dense_networks(widths, activation, bias, n, positions, dtype, seed):
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    layers += [nn.Flatten(2), MeanOverPositions()] if len(positions) == 2 else []
    layers += [Middle()] if len(positions) == 1 else []
    net = nn.Sequential(*layers).to(dtype)
    lin = check_all(net, torch.randn(n, *positions, widths[0], dtype=dtype), seed)
    assert explicit_names(lin) == set()


class Middle(nn.Module):
    def forward(self, x):
        return x.mean(1)


class MeanOverPositions(nn.Module):
    def forward(self, x):
        return x.sum(1)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@FEW
@given(data=st.data())
def test_convolutional_networks(data):
    draw = data.draw
    spatial = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2]))
    same = draw(st.booleans())
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(spatial))  # noqa: E731
    torch.manual_seed(draw(st.integers(0, 2**31)))
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1](
        2 * groups,
        draw(st.integers(1, 2)) * groups,
        each(1, 3),
        stride=1 if same else each(1, 2),
        dilation=each(1, 2),
        padding="same" if same else each(0, 1),
        padding_mode=draw(st.sampled_from(["zeros", "circular", "replicate"])),
        groups=groups,
        bias=draw(st.booleans()),
    )
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    X = torch.randn(draw(st.integers(1, 3)), 2 * groups, *each(5, 6), dtype=torch.float32)
    net = nn.Sequential(conv, nn.Tanh(), nn.Flatten())
    net.append(nn.Linear(net(X).shape[1], draw(st.integers(1, 3))))
    lin = check_all(net.to(dtype), X.to(dtype))
    assert explicit_names(lin) == set()


class Residual(nn.Module):
    """Shared layers, a tied table, a parameter outside any layer, norms, a nested block."""

    def __init__(self, width: int, twice: bool, gain: bool):
        super().__init__()
        self.table = nn.Embedding(6, width, padding_idx=0)
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 6, bias=False)
        self.out.weight = self.table.weight
        self.gain = nn.Parameter(torch.randn(width)) if gain else None
        self.twice = twice

    def forward(self, tokens):
        h = self.table(tokens)
        h = self.norm(h + self.inner(h))
        if self.twice:
            h = h - self.inner(h)
        if self.gain is not None:
            h = h * self.gain
        return self.out(h).mean(1)


@FEW
@given(width=st.integers(1, 5), twice=st.booleans(), gain=st.booleans(), seed=st.integers(0, 2**31))
def test_shared_tied_and_bare_parameters(width, twice, gain, seed):
    torch.manual_seed(seed)
    net = Residual(width, twice, gain).double()
    lin = check_all(net, torch.randint(0, 6, (4, 3)), seed)
    if (
        width > 1
    ):  # one feature normalises to zero: its gradient is rounding, and no rule is trusted
        assert explicit_names(lin) == ({"gain"} if gain else set())


class Encoder(nn.Module):
    def __init__(self, heads, size, norm_first, activation):
        super().__init__()
        self.body = nn.TransformerEncoderLayer(
            heads * size, heads, 3, activation=activation, norm_first=norm_first, batch_first=True
        )
        self.out = nn.Linear(heads * size, 2)

    def forward(self, x):
        return self.out(self.body(x).mean(1))


# LayerNorm over one or two numbers gives constants, whose derivative is rounding alone.
@settings(FEW, max_examples=10)
@given(
    heads=st.integers(1, 3),
    size=st.integers(3, 4),
    length=st.integers(1, 4),
    norm_first=st.booleans(),
    activation=st.sampled_from(["relu", "gelu"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_attention(heads, size, length, norm_first, activation, dtype, seed):
    torch.manual_seed(seed)
    net = Encoder(heads, size, norm_first, activation).to(dtype)
    lin = check_all(net, torch.randn(3, length, heads * size, dtype=dtype), seed)
    assert "body.self_attn.in_proj_weight" in explicit_names(lin)


class Block(nn.Module):
    def __init__(self, channels, kernel, groups, activation):
        super().__init__()
        make = lambda: nn.Conv2d(channels, channels, kernel, padding="same", groups=groups)  # noqa: E731
        self.first, self.second, self.activation = make(), make(), activation()

    def forward(self, x):
        return self.activation(x + self.second(self.activation(self.first(x))))


@FEW
@given(
    channels=st.sampled_from([2, 4]),
    kernel=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2]),
    depth=st.integers(1, 2),
    activation=st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU]),
    pool=st.sampled_from([nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_residual_networks(channels, kernel, groups, depth, activation, pool, dtype, seed):
    torch.manual_seed(seed)
    blocks = [Block(channels, kernel, groups, activation) for _ in range(depth)]
    net = nn.Sequential(nn.Conv2d(1, channels, 3), *blocks, pool, nn.Flatten())
    X = torch.randn(3, 1, 6, 6)
    net.append(nn.Linear(net(X).shape[1], 2))
    lin = check_all(net.to(dtype), X.to(dtype), seed)
    assert explicit_names(lin) == set()


def norms() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.GroupNorm(2, 4),
        nn.LayerNorm((4, 3, 3)),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.BatchNorm1d(5),
        nn.Dropout(0.5),
        nn.Linear(5, 2),
    )
    for layer in net:
        if hasattr(layer, "running_mean"):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d | nn.GroupNorm | nn.LayerNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return net.double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_norms_take_layer_rules(dtype):
    torch.manual_seed(0)
    lin = check_all(norms().to(dtype), torch.randn(5, 2, 5, 5, dtype=dtype))
    assert explicit_names(lin) == set()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.body(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body = kind(3, 4, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.body(x)[0][:, -1])


class Functional(nn.Module):
    """A layer's weight used once more by hand, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.first, self.idle = nn.Linear(3, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.first(x) + torch.tanh(nn.functional.linear(x, self.first.weight))


def test_networks_without_rules():
    torch.manual_seed(1)
    lin = check_all(Attention().double(), torch.randn(3, 5, 4, dtype=torch.float64))
    assert "body.self_attn.in_proj_weight" in explicit_names(lin)
    for kind in (nn.GRU, nn.LSTM, nn.RNN):
        lin = check_all(Recurrent(kind).double(), torch.randn(3, 4, 3, dtype=torch.float64))
        assert "out.weight" not in explicit_names(lin)
    lin = check_all(Functional().double(), torch.randn(3, 3, dtype=torch.float64))
    assert explicit_names(lin) == {"first.weight"}
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    check_all(weight_norm.double(), torch.randn(3, 3, dtype=torch.float64))


def test_networks_of_weights_that_do_not_reach_the_outputs():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x):
            return x[:, :1] * 2.0

    X = torch.randn(3, 2)
    lin = Linearization(Constant())
    assert not lin.gram(X).any() and not lin.rows(X).any() and not lin.vjp(X, X[:, :1]).any()


def test_frozen_parameters_and_choices():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net, X = net.double(), torch.randn(5, 3, dtype=torch.float64)
    for p in net[0].parameters():
        p.requires_grad_(False)
    assert check_all(net, X).parameter_names == ("2.weight", "2.bias", "4.weight", "4.bias")
    last = check_all(net, X, parameters="last_layer")
    assert last.parameter_names == ("4.weight", "4.bias")
    named = check_all(net, X, parameters=["4.weight", "0.bias"])
    assert named.parameter_names == ("0.bias", "4.weight")
    assert not net[0].weight.requires_grad


def test_last_layer_by_order_of_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.body = nn.Linear(4, 1), nn.Linear(2, 4)

        def forward(self, x):
            return self.out(self.body(x))

    lin = Linearization(Backwards(), parameters="last_layer")
    with pytest.raises(AttributeError, match="known after the first call"):
        _ = lin.n_params
    lin.outputs(torch.randn(2, 2))
    assert lin.parameter_names == ("out.weight", "out.bias")


def test_float64_work_follows_a_float32_module():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    X = torch.randn(5, 3, dtype=torch.float64)
    lin = check_all(net, X, dtype=torch.float64)
    with torch.no_grad():
        net[0].weight.mul_(2.0)
    assert_close(lin.rows(X), dense_jacobian(net, X))
    assert net[0].weight.dtype == torch.float32


def test_sees_weights_changed_and_replaced():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    X = torch.randn(5, 3, dtype=torch.float64)
    lin = Linearization(net)
    lin.gram(X)
    nn.utils.vector_to_parameters(torch.randn(21, dtype=torch.float64), net.parameters())
    assert_close(lin.rows(X), dense_jacobian(net, X))
    net[0].weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    assert_close(lin.rows(X), dense_jacobian(net, X))
    assert_close(lin.weights(), nn.utils.parameters_to_vector(net.parameters()).detach())


def test_module_comes_back_as_it_was():
    torch.manual_seed(4)
    net = norms()
    net.train()
    net[0].weight.requires_grad_(False)
    net[7].register_forward_hook(lambda *_: None)
    net[7].weight.grad = torch.ones_like(net[7].weight)
    X = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    state = copy.deepcopy(net.state_dict())
    before = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    identity = [(id(p), p.requires_grad, p.grad is None, p._version) for p in net.parameters()]
    generator = torch.get_rng_state()
    lin = Linearization(net)
    for result in (lin.gram(X), lin.ggn(X), lin.jvp(X, lin.weights()), lin.vjp(X, X[:, 0, 0, :2])):
        assert torch.isfinite(result).all()
    after = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    assert before == after
    assert identity == [
        (id(p), p.requires_grad, p.grad is None, p._version) for p in net.parameters()
    ]
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values(), strict=True)
    )
    assert torch.equal(net[7].weight.grad, torch.ones_like(net[7].weight))
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32


def test_works_without_gradients_enabled_and_pickles():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    X = torch.randn(4, 2, dtype=torch.float64)
    lin = Linearization(net)
    expected = lin.gram(X)
    with torch.no_grad():
        assert torch.equal(Linearization(net).gram(X), expected)
    assert torch.equal(pickle.loads(pickle.dumps(lin)).gram(X), expected)
    assert torch.equal(copy.deepcopy(lin).gram(X), expected)


@pytest.mark.parametrize("limit", [0.002, 0.05, 1.0])
def test_any_memory_limit_gives_the_same(limit):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()
    check_all(net, torch.randn(23, 1, 6, 6, dtype=torch.float64), memory_limit=limit)


_STATE = torch.get_rng_state()
torch.manual_seed(0)  # the cases below are the same in every run


class MixesExamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Random(MixesExamples):
    def forward(self, x):
        return self.layer(nn.functional.dropout(x, 0.5))


class Pair(MixesExamples):
    def forward(self, x):
        return self.layer(x), x


BAD = [
    (MixesExamples(), torch.randn(3, 2), "mixes examples"),
    (MixesExamples(), torch.randn(1, 2), "mixes examples"),
    (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)),
     torch.randn(4, 2), "mixes|does not take"),
    (Random(), torch.ones(4, 2), "random"),
    (Pair(), torch.randn(3, 2), "one tensor"),
    (nn.Linear(2, 1), torch.randn(3, 5), "does not take X"),
    (nn.Linear(2, 1), torch.ones(3, 2, dtype=torch.int64), "does not take X"),
    (nn.Linear(2, 1), torch.randn(0, 2), "at least one example"),
    (nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), torch.randn(3, 2), "n_outputs"),
]  # fmt: skip


torch.set_rng_state(_STATE)


@pytest.mark.parametrize(("net", "X", "message"), BAD)
def test_bad_data_is_refused(net, X, message):
    with pytest.raises(ValueError, match=message):
        Linearization(net).gram(X)


def test_bad_arguments_are_refused():
    net, X = nn.Linear(2, 2), torch.randn(3, 2)
    with pytest.raises(TypeError, match="Module"):
        Linearization(lambda x: x)
    with pytest.raises(TypeError, match="Tensor"):
        Linearization(net).gram(X.numpy())
    for module, options, message in (
        (nn.Sequential(), {}, "no weights"),
        (nn.Linear(2, 1).requires_grad_(False), {}, "requires a gradient"),
        (net, {"parameters": ["w"]}, "does not have"),
        (net, {"parameters": "first"}, "last_layer"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), {}, "one precision"),
    ):
        with pytest.raises(ValueError, match=message):
            Linearization(module, **options)
    lin = Linearization(net)
    with pytest.raises(ValueError, match="parameter_scale"):
        lin.gram(X, parameter_scale=[1.0])
    with pytest.raises(ValueError, match="parameter_scale"):
        lin.gram(X, parameter_scale=[1.0, 0.0])
    with pytest.raises(ValueError, match="cotangents"):
        lin.gram(X, cotangents=torch.ones(3, 1, 1))
    with pytest.raises(ValueError, match="2 outputs"):
        lin.gram_output(X, k=2)
    with pytest.raises(ValueError, match="v must have"):
        lin.jvp(X, torch.ones(3))
    with pytest.raises(AttributeError, match="first call"):
        _ = Linearization(net).n_outputs
    with pytest.raises(AttributeError, match="nothing"):
        _ = lin.nothing


def test_one_hidden_layer_in_closed_form():
    """P = 1.6e6 weights and 40 rows, against the closed form of a single hidden layer."""
    net = nn.Sequential(nn.Linear(1000, 1500), nn.ReLU(), nn.Linear(1500, 1))
    X = torch.randn(40, 1000)
    K = Linearization(net, memory_limit=64).gram(X)
    h = torch.relu(net[0](X)).double().detach()
    active = (h > 0).double() * net[2].weight.detach().double()
    expected = (X.double() @ X.double().mT + 1) * (active @ active.mT) + h @ h.mT + 1
    assert_close(K, expected, torch.float32)


def loaded(net: nn.Module, w: Tensor, names: tuple[str, ...]) -> nn.Module:
    """A fresh copy of a network with w in the place of the named weights."""
    fresh = copy.deepcopy(net)
    own = dict(fresh.named_parameters())
    parts = w.split([own[name].numel() for name in names])
    with torch.no_grad():
        for name, part in zip(names, parts, strict=True):
            own[name].copy_(part.view_as(own[name]))
    return fresh


class Tied(nn.Module):
    """A table used twice, a weight by hand, and a buffer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.table.weight
        self.gain = nn.Parameter(torch.randn(3))
        self.register_buffer("shift", torch.randn(3))

    def forward(self, tokens):
        return self.out(self.table(tokens).mean(1) * self.gain + self.shift)


AT = {
    "chain": lambda: (
        nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
        torch.randn(6, 3),
    ),
    "norms": lambda: (norms(), torch.randn(4, 2, 5, 5)),
    "recurrent": lambda: (Recurrent(nn.GRU), torch.randn(3, 4, 3)),
    "tied": lambda: (Tied(), torch.randint(0, 5, (4, 3))),
    "attention": lambda: (Attention(), torch.randn(3, 5, 4)),
    "weight norm": lambda: (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)),
        torch.randn(5, 3),
    ),
}


def float64_case(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(6)
    net, X = AT[name]()
    return net.double().eval(), X.double() if X.is_floating_point() else X


def check_at(lin: Linearization, net: nn.Module, X: Tensor, w: Tensor) -> None:
    """Everything but the Gram matrix's variants, against a fresh module that holds w."""
    fresh = loaded(net, w, lin.parameter_names)
    J = dense_jacobian(fresh, X, lin.parameter_names)
    with torch.no_grad():
        assert_close(lin.outputs(X), fresh(X))
        assert_close(lin.module(X), fresh(X))
    assert torch.equal(lin.weights(), w)
    u = torch.linspace(-1, 1, J[..., 0].numel()).double().view(J.shape[:2])
    assert_close(lin.rows(X), J)
    assert_close(lin.gram(X), J.flatten(0, 1) @ J.flatten(0, 1).mT)
    assert_close(lin.ggn(X), J.flatten(0, 1).mT @ J.flatten(0, 1))
    assert_close(lin.ggn_diagonal(X), J.square().sum((0, 1)))
    assert_close(lin.jvp(X, w), J @ w)
    assert_close(lin.vjp(X, u), torch.einsum("nkp,nk->p", J, u))
    assert_close(lin.recording(X).rows(), J)


@pytest.mark.parametrize("parameters", [None, "last_layer", "some"])
@pytest.mark.parametrize("name", AT)
def test_at_given_weights(name, parameters):
    net, X = float64_case(name)
    if parameters == "some":
        parameters = [n for n, _ in net.named_parameters()][1:3]
    state = copy.deepcopy(net.state_dict())
    following = Linearization(net, parameters=parameters)
    following.outputs(X)
    here = following.weights()
    generator = torch.Generator().manual_seed(0)
    w, w2 = (here + 0.3 * torch.randn(len(here), generator=generator).double() for _ in range(2))
    first = following.at(w)
    second = first.at(w2)
    assert second.parameter_names == following.parameter_names
    recording = first.recording(X)  # a graph kept while the other one is at work
    check_at(second, net, X, w2)
    check_at(first, net, X, w)
    check_at(second, net, X, w2)
    assert_close(recording.rows(), first.rows(X))
    check_at(following.at(here), net, X, here)
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    check_at(copy.deepcopy(second), net, X, w2)
    if name != "weight norm":  # torch refuses to pickle parametrized modules
        check_at(pickle.loads(pickle.dumps(second)), net, X, w2)


def test_at_is_frozen():
    net, X = float64_case("norms")
    lin = Linearization(net, parameters=["0.weight", "10.bias"])
    w = lin.weights()
    at = lin.at(w)
    expected, same = at.outputs(X), Linearization(copy.deepcopy(net)).outputs(X)
    with torch.no_grad():
        net[0].weight.mul_(2.0)  # w, which is given
        net[0].bias.add_(1.0)  # not w: as the module has it when the weights are given
        net[1].running_mean.add_(1.0)
    at.weights().zero_()
    at.module[0].weight.data.zero_()
    w.zero_()
    assert torch.equal(at.outputs(X), expected)
    assert_close(expected, same)
    fresh = loaded(net, at.weights(), lin.parameter_names)  # with the other weights as they are now
    assert_close(lin.at(at.weights()).outputs(X), fresh(X).detach())
    with pytest.raises(ValueError, match="w must have shape"):
        lin.at(w[:-1])


def test_at_in_another_precision():
    net, X = float64_case("chain")
    net, w = net.float(), torch.linspace(-1, 1, 32, dtype=torch.float64)
    double = Linearization(net, dtype=torch.float64).at(w)
    check_at(double, copy.deepcopy(net).double(), X, w)
    single = Linearization(net).at(w)
    assert single.outputs(X).dtype == torch.float32
    assert_close(single.outputs(X), double.outputs(X), torch.float32)
    assert_close(single.weights(), w, torch.float32)


@pytest.mark.parametrize("name", ["chain", "norms", "recurrent", "tied"])
def test_threads_share_a_family(name):
    net, X = float64_case(name)
    lin = Linearization(net)
    lin.outputs(X)
    w = lin.weights()
    family = [lin.at((1.0 + 0.1 * i) * w) for i in range(4)]
    work = lambda at: (at.outputs(X), at.rows(X), at.gram(X), at.vjp(X, at.outputs(X)))  # noqa: E731
    fresh = [work(Linearization(loaded(net, at.weights(), lin.parameter_names))) for at in family]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, family * 16))
    for i, results in enumerate(found):
        for a, b in zip(results, fresh[i % 4], strict=True):
            assert_close(a, b)


def dense_hessian(net: nn.Module, names: tuple[str, ...], loss: Callable[[nn.Module], Tensor]):
    """Gradient and Hessian by differentiating twice, one weight at a time."""
    own = dict(net.named_parameters())
    leaves = [own[name].requires_grad_() for name in names]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        value = loss(net)
    grads = torch.autograd.grad(
        value, leaves, create_graph=True, allow_unused=True, materialize_grads=True
    )
    gradient = torch.cat([g.flatten() for g in grads])
    rows = [
        torch.autograd.grad(g, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        for g in gradient
        if g.requires_grad
    ]
    zero = [torch.zeros_like(p) for p in leaves]
    found = iter(rows)
    rows = [next(found) if g.requires_grad else zero for g in gradient]
    return gradient.detach(), torch.stack([torch.cat([g.flatten() for g in gs]) for gs in rows])


def losses(K: int, n: int) -> dict[str, Callable]:
    """Σ ℓ(f, part) of each likelihood, every example with a weight of its own."""
    generator = torch.Generator().manual_seed(1)
    s = torch.rand(n, 1, generator=generator, dtype=torch.float64) + 0.5
    y = torch.randn(n, K, generator=generator, dtype=torch.float64)
    b = (y > 0).double()
    e = nn.functional.one_hot(torch.arange(n) % K, K).double()
    softplus = nn.functional.softplus

    def categorical(f: Tensor, part: slice) -> Tensor:
        nll = f.logsumexp(1, keepdim=True) - (e[part] * f).sum(1, keepdim=True)
        return (s[part] * nll).sum()

    return {
        "gaussian": lambda f, part: (s[part] * (f - y[part]) ** 2).sum() / 0.18,
        "bernoulli": lambda f, part: (s[part] * (softplus(f) - b[part] * f)).sum(),
        "categorical": categorical,
        "poisson": lambda f, part: (s[part] * (f.exp() - b[part] * f)).sum(),
        "constant": lambda f, part: (s[part] * f).sum(),
    }


WHOLE = slice(None)


@pytest.mark.parametrize("memory_limit", [None, 0.001])
@pytest.mark.parametrize("loss", ["gaussian", "bernoulli", "categorical", "poisson", "constant"])
@pytest.mark.parametrize("name", sorted(set(AT) - {"weight norm"}))
def test_hessian_products(name, loss, memory_limit):
    """Against double autograd; with chunks kept, and with one example after another made anew."""
    net, X = float64_case(name)
    K, n = net(X).shape[1], len(X)
    value = losses(K, n)[loss]
    lin = Linearization(net, memory_limit=memory_limit)
    lin.outputs(X)
    w = 1.1 * lin.weights()
    at = lin.at(w)
    there = loaded(net, w, lin.parameter_names)
    gradient, H = dense_hessian(there, lin.parameter_names, lambda net: value(net(X), WHOLE))
    one = at.forward(X)
    product = one.hessian_products(value)
    assert_close(one.outputs, at.outputs(X))
    f = at.outputs(X).requires_grad_()
    assert_close(one.pull(torch.autograd.grad(value(f, WHOLE), f)[0]), gradient)
    generator = torch.Generator().manual_seed(2)
    for _ in range(2):  # the graph is kept for the next product
        v = torch.randn(len(w), generator=generator, dtype=torch.float64)
        assert float((product(v) - H @ v).abs().max()) <= 1e-10 * float(H.abs().max())


def test_hessian_products_of_some_weights_and_of_a_module_that_moves():
    net, X = float64_case("chain")
    names = ("0.bias", "2.weight")
    value = losses(2, len(X))["categorical"]
    _, H = dense_hessian(copy.deepcopy(net), names, lambda net: value(net(X), WHOLE))
    product = Linearization(net, parameters=names).forward(X).hessian_products(value)
    with torch.no_grad():
        net[0].weight.zero_()
    v = torch.arange(len(H), dtype=torch.float64)
    assert_close(product(v), H @ v)
    assert H.abs().max() > 0


def test_hessian_products_of_a_linear_function_are_zero():
    one = Linearization(nn.Linear(2, 1)).forward(torch.ones(3, 2))
    product = one.hessian_products(lambda f, part: f.sum())
    assert torch.equal(product(torch.ones(3)), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(one.pull(torch.ones(3, 1)), torch.full((3,), 3.0, dtype=torch.float64))


def test_second_derivatives_that_are_wrong_are_refused():
    """torch 2.13 differentiates weight_norm wrongly the second time: finite differences differ."""
    net, X = float64_case("weight norm")
    value = losses(2, len(X))["gaussian"]
    with pytest.raises(ValueError, match="not symmetric"):
        Linearization(net).forward(X).hessian_products(value)

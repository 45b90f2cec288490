"""How many operations a Gram matrix takes, as torch counts those of its matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sk_dnn2gp.linearize import Linearization, linearization
from sk_dnn2gp.linearize.factors import Dense, Patches, Rows, Slot
from sk_dnn2gp.linearize.ggn import Products, pairs_by_factors
from sk_dnn2gp.networks import MLP, LeNet5

from .test_linearize import assert_close, dense_jacobian


def operations(work: Callable[[], Any]) -> int:
    """Multiplications and additions of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def of_contraction(lin: Linearization, *X: torch.Tensor) -> int:
    """Operations of the Gram matrix less those of the passes that make its factors."""
    passes = sum(operations(lambda x=x: lin._side(x, None).factors(slice(0, len(x)))) for x in X)
    return operations(lambda: lin.gram(*X)) - passes


def test_dense_layers_cost_what_is_counted():
    """N² d_in + (NK)² d_out for a layer, half of it where the matrix is symmetric."""
    n, K, widths = 120, 10, (50, 64, 64)
    lin = Linearization(MLP(widths[0], widths[1:], K))
    X, X2 = torch.randn(n, 50), torch.randn(n, 50)
    lin.gram(X)
    whole = 2 * (n * n * sum(widths) + (n * K) ** 2 * sum(widths[1:]))
    dense = 2 * (n * K) ** 2 * lin.n_params
    assert 0.99 * whole < of_contraction(lin, X, X2) <= 1.01 * whole < dense / 10
    assert of_contraction(lin, X) <= 0.6 * whole  # strips reach over the diagonal


def test_convolutions_take_rows_at_half_the_work():
    """Rows of a convolution are formed once, and multiplied on and above the diagonal."""
    n, K = 100, 10
    lin = Linearization(LeNet5(K))
    X, X2 = torch.randn(n, 1, 28, 28), torch.randn(n, 1, 28, 28)
    lin.gram(X, X2)
    forming = 2 * n * K * (24 * 24 * 150 + 8 * 8 * 2400)
    dense = 2 * (n * K) ** 2 * lin.n_params
    cross, symmetric = of_contraction(lin, X, X2) - 2 * forming, of_contraction(lin, X) - forming
    assert symmetric <= 0.6 * cross and cross < dense / 4


@pytest.mark.parametrize("rows", [True, False])
def test_both_ways_give_the_same(rows, monkeypatch):
    """The choice by counted operations is one of cost only."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Flatten(1, 2), nn.Linear(3, 3), nn.ELU(),
        nn.Flatten(), nn.Linear(36, 30), nn.ELU(), nn.Linear(30, 7),
    ).double()  # fmt: skip
    X = torch.randn(40, 2, 5, 5, dtype=torch.float64)
    for kind in (Dense, Patches, Rows):
        monkeypatch.setattr(kind, "prefers_rows", lambda factor, n: rows)
    J = dense_jacobian(net, X)
    lin = Linearization(net)
    assert_close(lin.gram(X), J.flatten(0, 1) @ J.flatten(0, 1).mT)
    assert_close(lin.gram(X, X[:9]), J.flatten(0, 1) @ J[:9].flatten(0, 1).mT)
    assert_close(lin.gram_trace(X), torch.einsum("nkp,mkp->nm", J, J))


def test_the_cheaper_way_is_taken():
    """Wide layers of one vector by pairs, convolutions with many positions by rows."""
    slot = Slot(0, 1, 0)
    wide = Dense(torch.ones(9, 500), torch.ones(9, 10, 500), slot, None)
    narrow = Dense(torch.ones(9, 2), torch.ones(9, 10, 2), slot, None)
    images = Patches(torch.ones(9, 1, 100, 25), torch.ones(9, 10, 1, 100, 6), slot)
    pairs = Patches(torch.ones(9, 1, 2, 800), torch.ones(9, 10, 1, 2, 800), slot)
    assert [f.prefers_rows(200) for f in (wide, narrow, images, pairs)] == [
        False, True, True, False,
    ]  # fmt: skip


PAIRS = {
    "all": lambda i, j: True,
    "of a layer with itself": lambda i, j: i == j,
    "of different layers": lambda i, j: i != j,
    "of the first": lambda i, j: i == 0,
}


@pytest.mark.parametrize("memory_limit", [None, 0.005])
@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("which", PAIRS)
def test_ggn_by_factors_and_by_rows(which, n_rows, memory_limit, monkeypatch):
    """Whichever pairs of dense layers take factors; with a norm between, and one bias missing."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 5, bias=False), nn.Tanh(),
        nn.Linear(5, 3),
    ).double()  # fmt: skip
    X, C = torch.randn(60, 4, dtype=torch.float64), torch.randn(60, 3, n_rows).double()
    net[0].weight.requires_grad_(False)  # of the first layer the bias alone
    Phi = (C.mT @ dense_jacobian(net, X)).flatten(0, 1)

    def chosen(sizes, _):
        numbers = [i for i, size in enumerate(sizes) if size.is_dense]
        assert len(numbers) == 3
        places = [(i, j) for i in range(3) for j in range(i, 3) if PAIRS[which](i, j)]
        return frozenset((numbers[i], numbers[j]) for i, j in places)

    monkeypatch.setattr(linearization, "pairs_by_factors", chosen)
    lin = Linearization(net, memory_limit=memory_limit)
    f, H = lin.outputs_and_ggn(X, cotangents=C)
    assert_close(H, Phi.mT @ Phi)
    assert_close(f, net(X).detach())
    assert torch.equal(H, H.mT)
    assert_close(lin.ggn(X, cotangents=lambda f: C[:1].expand(len(f), -1, -1)), by_first(lin, X, C))


def by_first(lin: Linearization, X: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    rows = (C[:1].mT @ dense_jacobian(lin.module, X, lin.parameter_names)).flatten(0, 1)
    return rows.mT @ rows


def test_ggn_of_many_outputs_takes_fewer_operations():
    """N O O' I I' for N K (O I)(O' I'), and a quarter of it for a layer with itself."""
    n, K, I, H = 300, 10, 64, 20
    lin = Linearization(MLP(I, (H,), K))
    X = torch.randn(n, I, dtype=torch.float64)
    lin.ggn(X)
    _, plan = lin._prepared(X)
    assert len(pairs_by_factors(plan.sizes, K)) == 3 and not pairs_by_factors(plan.sizes, 0)
    products = [
        H * (H + 1) // 2 * (I + 1) * (I + 2) // 2,
        H * K * (I + 1) * (H + 1),
        K * (K + 1) // 2 * (H + 1) * (H + 2) // 2,
    ]
    passes = n * K * ((H + K) ** 2 + K * H)  # Σ_k g gᵀ, and g's way back
    assert operations(lambda: lin.ggn(X)) <= 2.05 * n * sum(products) + 2 * passes
    assert n * sum(products) < n * K * lin.n_params**2 / 2 / 8
    small = Linearization(MLP(8, (50,), 1))
    small.outputs(X[:, :8])
    assert not pairs_by_factors(small._prepared(X[:, :8])[1].sizes, 1)


def test_products_take_the_memory_they_state():
    lin = Linearization(MLP(64, (20,), 10))
    lin.outputs(torch.randn(5, 64, dtype=torch.float64))
    sizes = next(iter(lin._plans.values())).sizes
    whole = frozenset({(0, 0), (0, 1), (1, 1)})
    assert Products(sizes, whole).bytes_per_example(10) == 24 * (20 * 20 + 65 * 65)
    without = Products(sizes, whole - {(1, 1)}).bytes_per_example(10)
    assert without == 24 * (20 * 20 + 65 * 65 + 10 * 10 * 21)

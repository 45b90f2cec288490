"""How many operations a Gram matrix takes, as torch counts those of its matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sk_dnn2gp.linearize import Linearization, gram
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
    monkeypatch.setattr(gram, "prefers_rows", lambda factor, n: rows)
    J = dense_jacobian(net, X)
    lin = Linearization(net)
    assert_close(lin.gram(X), J.flatten(0, 1) @ J.flatten(0, 1).mT)
    assert_close(lin.gram(X, X[:9]), J.flatten(0, 1) @ J[:9].flatten(0, 1).mT)
    assert_close(lin.gram_trace(X), torch.einsum("nkp,mkp->nm", J, J))


def test_the_cheaper_way_is_taken():
    """Wide layers of one vector by pairs, convolutions with many positions by rows."""
    from sk_dnn2gp.linearize.factors import Dense, Patches, Slot, prefers_rows

    slot = Slot(0, 1, 0)
    wide = Dense(torch.ones(9, 500), torch.ones(9, 10, 500), slot, None)
    narrow = Dense(torch.ones(9, 2), torch.ones(9, 10, 2), slot, None)
    images = Patches(torch.ones(9, 1, 100, 25), torch.ones(9, 10, 1, 100, 6), slot)
    pairs = Patches(torch.ones(9, 1, 2, 800), torch.ones(9, 10, 1, 2, 800), slot)
    assert [prefers_rows(f, 200) for f in (wide, narrow, images, pairs)] == [
        False, True, True, False,
    ]  # fmt: skip

"""Gram matrix, GGN, its diagonal, Hessian products, a fit, a pickle and a file of each network.

Against one backward pass for each example and output (``tests.reference``) and, for H v, against
central differences of the gradient, whose error at steps of 1e-5 is about 1e-10 and of rounding
1e-11; 1e-6 of the greatest entry leaves room for networks that bend sharply.
"""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sk_dnn2gp import DNN2GPRegressor, load, save
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.linearize.plan import plain_attention
from sk_dnn2gp.training import NewtonCG

from ..reference import jacobian, weights
from .networks import NETWORKS, network

# Kinks make the gradient jump: central differences say nothing about them.
KINKED = {"relu", "leaky relu", "prelu", "prelu of channels", "max pool", "transformer, norm first"}


def close(found, true, tolerance=1e-10):
    assert found.shape == true.shape
    size = max(1e-300, float(true.abs().max()))
    assert float((found.double() - true).abs().max()) <= tolerance * size


@pytest.mark.parametrize("name", NETWORKS)
def test_jacobian_products(name):
    net, X = network(name)
    before = copy.deepcopy(net.state_dict())
    J = jacobian(net, X)
    lin = Linearization(net)
    close(lin.gram(X), J @ J.mT)
    close(lin.gram(X, X[:2]), J @ J[: 2 * len(J) // len(X)].mT)
    C = torch.randn(len(X), 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Phi = (C.mT @ J.view(len(X), 2, -1)).flatten(0, 1)
    close(lin.ggn(X, cotangents=C), Phi.mT @ Phi)
    close(lin.ggn_diagonal(X, cotangents=C), Phi.square().sum(0))
    close(lin.outputs(X), net(X).detach())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def gradient(net, X, y):
    loss = 0.5 * (torch.tanh(net(X)) - y).square().sum()
    parameters = [p for p in net.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def moved(net, step):
    """The network with its weights moved."""
    other = copy.deepcopy(net)
    parameters = [p for p in other.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, d in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
            p.add_(d.view_as(p))
    return other


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - KINKED))
def test_hessian_products(name):
    net, X = network(name)
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(len(X), 2, dtype=torch.float64, generator=generator)
    v = torch.randn(len(weights(net)), dtype=torch.float64, generator=generator)
    h = 1e-5
    numeric = (gradient(moved(net, h * v), X, y) - gradient(moved(net, -h * v), X, y)) / (2 * h)
    lin = Linearization(net)
    lin.outputs(X)
    lin = lin.at(weights(net))  # as solvers do

    def loss(f, part):
        return 0.5 * (torch.tanh(f) - y[part]).square().sum()

    if name == "embedding bag":
        with pytest.raises(ValueError, match="Use solver='gauss-newton'"):
            lin.forward(X).hessian_products(loss)
        return
    close(lin.forward(X).hessian_products(loss)(v), numeric, 1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fit_its_pickle_and_its_file(name, tmp_path):
    """The posterior of a short fit by brute force at the weights where it ended."""
    net, X = network(name)
    X = X.numpy()
    y = np.random.default_rng(0).standard_normal((len(X), 2))
    held = {n: p.clone() for n, p in net.named_parameters() if not p.requires_grad}
    model = DNN2GPRegressor(
        net, prior_precision=1.0, noise_std=0.5, n_restarts=1, random_state=0,
        solver=NewtonCG(max_iter=5),
    ).fit(X, y)  # fmt: skip
    inputs = torch.tensor(X)
    J = jacobian(model.module_, inputs)
    A = J.mT @ J / 0.5**2 + torch.eye(J.shape[1], dtype=torch.float64)
    variance = (J * torch.linalg.solve(A, J.mT).mT).sum(1).view(len(X), 2)
    found = (model.predict_std(X, "latent") / model.y_scale_) ** 2
    np.testing.assert_allclose(found, variance, rtol=1e-8)
    assert all(torch.equal(held[n], p) for n, p in model.module_.named_parameters() if n in held)
    mean, std = model.predict(X, return_std=True)
    save(model, tmp_path / "model")
    stored = load(tmp_path / "model", module=net)
    for other in (stored, *pickled(model, name)):
        for one, two in zip((mean, std), other.predict(X, return_std=True), strict=True):
            np.testing.assert_array_equal(one, two)


def pickled(model, name):
    """Itself after a pickle; torch does not pickle parametrised modules."""
    return [] if name == "parametrised" else [pickle.loads(pickle.dumps(model))]


ATTENTION = ["attention", "transformer", "transformer, norm first"]


def attention_flags():
    cuda = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(),
    )  # fmt: skip


def test_flags_of_attention_go_back_when_the_last_is_done():
    """They are the process's: two that overlap must neither lose nor keep the other's."""
    before, first, second = attention_flags(), plain_attention(), plain_attention()
    first.__enter__()
    plain = attention_flags()
    assert plain != before
    second.__enter__()
    first.__exit__(None, None, None)
    assert attention_flags() == plain
    with pytest.raises(RuntimeError, match="on purpose"), plain_attention():
        raise RuntimeError("on purpose")
    assert attention_flags() == plain
    second.__exit__(None, None, None)
    assert attention_flags() == before


@pytest.mark.parametrize("name", ATTENTION)
def test_threads_of_attention_agree_with_one(name):
    net, X = network(name)
    before = attention_flags()
    alone = Linearization(net).gram(X)

    def gram(_):
        return Linearization(copy.deepcopy(net)).gram(X)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(gram, range(12)):
            close(found, alone)
    assert attention_flags() == before

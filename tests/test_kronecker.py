"""The Kronecker posterior against explicit Kronecker products, and where it is exact."""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.evidence import log_marginal_likelihood
from sk_dnn2gp.likelihoods import Categorical
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import Kronecker, KroneckerPosterior

from .reference import jacobian

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def model_of(module, X, seed=0, delta=0.7):
    """Any noise: the whitening only scales rows."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.tensor(rng.normal(size=p.shape)))
        n, K = module(X).shape
    linearization = Linearization(module)
    linearization.outputs(X)
    w = linearization.weights()
    L, u = torch.tensor(rng.normal(size=(n, K, K))), torch.tensor(rng.normal(size=(n, K)))
    delta = torch.as_tensor(delta, dtype=torch.float64)
    return LinearModel(linearization, X, L, u, w, delta, -1.0, 0.0)


def features(module, model):
    n, K = model.whitened_residual.shape
    J = jacobian(module, model.X).view(n, K, -1)
    return (model.noise_factor.mT @ J).flatten(0, 1)


def explicit_precision(module, model):
    """A of a perceptron by torch.kron, layer by layer, from a and g of one example at a time."""
    Phi = features(module, model).view(*model.whitened_residual.shape, -1)
    P, n = Phi.shape[2], len(model.X)
    A, start, h = torch.diag(model.prior_precision.expand(P).clone()), 0, model.X
    for layer in module:
        if isinstance(layer, nn.Linear):
            O, I = layer.weight.shape
            a = torch.cat([h, torch.ones(n, 1).double()], 1)
            bias = Phi[:, :, start + O * I : start + O * I + O]  # its rows are g
            kron = torch.kron(torch.einsum("nro,nrq->oq", bias, bias), a.T @ a / n)
            places = torch.cat(
                [torch.arange(O * I).view(O, I), O * I + torch.arange(O)[:, None]], 1
            ).flatten()
            A[(start + places)[:, None], start + places] += kron
            start += O * I + O
        with torch.no_grad():
            h = layer(h)
    return A


def perceptron(seed, n=7, delta=0.7, K=2):
    module = MLP(3, (4, 3), K)
    X = torch.tensor(np.random.default_rng(seed).normal(size=(n, 3)))
    return module, model_of(module, X, seed, delta)


def deltas(seed, sizes):
    """One δ a layer: weight and bias of each alike."""
    values = 10.0 ** np.random.default_rng(seed).uniform(-1, 1, len(sizes) // 2)
    pieces = [torch.full((size,), values[i // 2]) for i, size in enumerate(sizes)]
    return torch.cat(pieces).double()


@pytest.mark.parametrize("seed", range(8))
def test_every_answer_is_that_of_the_explicit_kronecker_products(seed):
    module, model = perceptron(seed)
    if seed % 2:
        model = model.with_prior_precision(deltas(seed, model.linearization.parameter_sizes))
    A = explicit_precision(module, model)
    Sigma = torch.linalg.inv(A)
    posterior = KroneckerPosterior(model)
    X_new = model.X[:3] + 0.3
    J = jacobian(module, X_new)
    V = J @ Sigma @ J.T
    blocks = torch.stack([V[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(3)])
    assert torch.allclose(posterior.joint_covariance(X_new), V, **CLOSE)
    assert torch.allclose(posterior.covariance(X_new), blocks, **CLOSE)
    assert torch.allclose(posterior.variance(X_new), V.diagonal().view(3, 2), **CLOSE)
    delta = model.prior_precision.expand(model.n_params)
    log_B = torch.linalg.slogdet(A)[1] - delta.log().sum()
    assert posterior.log_determinant == pytest.approx(float(log_B), rel=1e-10)
    gamma = model.n_params - (delta * Sigma.diagonal()).sum()
    assert posterior.effective_dimension == pytest.approx(float(gamma), rel=1e-10)
    v = torch.tensor(np.random.default_rng(seed).normal(size=model.n_params))
    assert torch.allclose(posterior.solve(v), Sigma @ v, **CLOSE)
    g = features(module, model).T @ model.whitened_residual.flatten() + delta * model.weights
    assert posterior.newton_decrement == pytest.approx(float(g @ Sigma @ g), rel=1e-9)


def exact_precision(module, model):
    Phi = features(module, model)
    return Phi.T @ Phi + torch.diag(model.prior_precision.expand(Phi.shape[1]))


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_and_one_example_is_exact(K, bias):
    module = nn.Linear(4, K, bias=bias).double()
    X = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = model_of(module, X)
    Sigma = torch.linalg.inv(exact_precision(module, model))
    X_new = torch.cat([X, X + 1.0])
    J = jacobian(module, X_new)
    posterior = KroneckerPosterior(model)
    assert torch.allclose(posterior.joint_covariance(X_new), J @ Sigma @ J.T, **CLOSE)
    log_B = -torch.linalg.slogdet(Sigma)[1] - model.n_params * math.log(0.7)
    assert posterior.log_determinant == pytest.approx(float(log_B), rel=1e-10)


def test_independent_inputs_and_derivatives_are_exact():
    """Every input beside every noise factor: Σ (g gᵀ) ⊗ (a aᵀ) is then a product."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    L = torch.randn(5, 2, 2, dtype=torch.float64, generator=generator)
    module = nn.Linear(3, 2).double()
    model = model_of(module, a.repeat_interleave(5, 0))
    model = LinearModel(
        model.linearization, model.X, L.repeat(4, 1, 1), model.whitened_residual, model.weights,
        model.prior_precision, -1.0, 0.0,
    )  # fmt: skip
    Sigma = torch.linalg.inv(exact_precision(module, model))
    J = jacobian(module, a)
    posterior = KroneckerPosterior(model)
    assert torch.allclose(posterior.joint_covariance(a), J @ Sigma @ J.T, **CLOSE)


def test_a_convolution_by_its_definition():
    """A = Σ over positions a aᵀ / N, B = mean over positions g gᵀ; its bias an exact block."""
    conv = nn.Conv1d(2, 3, 2).double()
    module = nn.Sequential(conv, nn.Flatten(), nn.Linear(9, 2, bias=False).double())
    X = torch.tensor(np.random.default_rng(0).normal(size=(5, 2, 4)))
    model = model_of(module, X)
    Phi = features(module, model)
    n, P, last = 5, 18 - 6 + 3, 18
    patches = X.unfold(2, 2, 1).permute(0, 2, 1, 3).flatten(2)  # (n, T, I)
    W = module[2].weight.detach().view(2, 3, 3)  # g = ∂f/∂z is the last layer's weight
    g = torch.einsum("nkr,kot->nrto", model.noise_factor, W)
    A = torch.einsum("nti,ntj->ij", patches, patches) / n
    B = torch.einsum("nrto,nrtq->oq", g, g) / 3
    precision = 0.7 * torch.eye(P + last, dtype=torch.float64)
    precision[:12, :12] += torch.kron(B, A)
    bias = Phi[:, 12:15]
    precision[12:15, 12:15] += bias.T @ bias
    with torch.no_grad():
        h = module[:2](X)
    LL = torch.einsum("nkr,nqr->kq", model.noise_factor, model.noise_factor)
    precision[15:, 15:] += torch.kron(LL, h.T @ h / n)
    Sigma = torch.linalg.inv(precision)
    J = jacobian(module, X + 0.2)
    posterior = KroneckerPosterior(model)
    V = J @ Sigma @ J.T
    assert torch.allclose(posterior.joint_covariance(X + 0.2), V, **CLOSE)
    assert torch.allclose(posterior.variance(X + 0.2).flatten(), V.diagonal(), **CLOSE)
    covariance = posterior.covariance(X + 0.2)
    assert torch.allclose(covariance[1], V[2:4, 2:4], **CLOSE)
    assert posterior.log_determinant == pytest.approx(
        float(torch.linalg.slogdet(precision)[1]) - (P + last) * math.log(0.7), rel=1e-10
    )


class Words(nn.Module):
    """A table, a norm and a layer: three kinds of blocks."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.out = nn.Embedding(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.table(x).sum(1))))


def test_tables_take_their_diagonal_and_norms_their_own_block():
    module = Words().double()
    X = torch.tensor([[0, 1], [2, 2], [1, 3], [3, 0]])
    model = model_of(module, X)
    Phi = features(module, model)
    posterior = KroneckerPosterior(model)
    table = 0.7 + (Phi[:, :12] ** 2).sum(0)
    solved = posterior.solve(torch.ones(model.n_params, dtype=torch.float64))
    assert torch.allclose(solved[:12], 1 / table, **CLOSE)
    for part in (slice(12, 15), slice(15, 18)):  # scale and shift
        block = Phi[:, part].T @ Phi[:, part] + 0.7 * torch.eye(3).double()
        true = torch.linalg.solve(block, torch.ones(3).double())
        assert torch.allclose(solved[part], true, **CLOSE)
    Sigma = torch.stack([posterior.solve(e) for e in torch.eye(model.n_params).double()])
    J = jacobian(module, X)
    V = J @ Sigma @ J.T
    assert torch.allclose(posterior.joint_covariance(X), V, **CLOSE)
    assert torch.allclose(posterior.variance(X).flatten(), V.diagonal(), **CLOSE)


def test_a_prior_precision_that_is_a_product_of_inputs_and_outputs():
    """A change of units of inputs and outputs is exact: rescaled weights under δ = 1."""
    module = nn.Linear(3, 2, bias=False).double()
    X = torch.tensor(np.random.default_rng(1).normal(size=(1, 3)))
    outer, inner = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, 3.0, 0.2]).double()
    model = model_of(module, X, delta=(outer[:, None] * inner).flatten())
    Sigma = torch.linalg.inv(exact_precision(module, model))
    J = jacobian(module, X + 1)
    found = KroneckerPosterior(model).joint_covariance(X + 1)
    assert torch.allclose(found, J @ Sigma @ J.T, **CLOSE)
    model = model_of(module, X, delta=torch.tensor([1.0, 1, 1, 1, 1, 2]))
    with pytest.raises(ValueError, match="prior_precision varies within a layer"):
        KroneckerPosterior(model)


@pytest.mark.parametrize("seed", range(3))
def test_another_prior_precision_from_the_same_eigenbases(seed):
    module, model = perceptron(seed)
    changed = KroneckerPosterior(model).with_prior_precision(
        deltas(seed, model.linearization.parameter_sizes)
    )
    fresh = KroneckerPosterior(changed.model)
    assert changed.log_determinant == pytest.approx(fresh.log_determinant, rel=1e-10)
    assert torch.allclose(changed.variance(model.X), fresh.variance(model.X), **CLOSE)
    uneven = torch.linspace(1, 2, model.n_params).double()
    with pytest.raises(ValueError, match="one factor a layer"):
        changed.with_prior_precision(uneven)


def test_samples_have_the_covariance():
    """Whitened draws: every entry of ZᵀZ/S - I within 6 of its standard deviations, √(2/S)."""
    module, model = perceptron(0)
    posterior, S = KroneckerPosterior(model), 4000
    A = explicit_precision(module, model)
    draws = posterior.sample_weights(S, torch.Generator().manual_seed(0))
    Z = draws @ torch.linalg.cholesky(A)
    error = (Z.T @ Z / S - torch.eye(len(A)).double()).abs().max()
    assert float(error) < 6 * math.sqrt(2 / S)
    f = posterior.sample(model.X, 3, torch.Generator().manual_seed(0))
    few = posterior.sample_weights(3, torch.Generator().manual_seed(0))
    true = (few @ jacobian(module, model.X).T).view(3, 7, 2)
    assert torch.allclose(f, true, **CLOSE)


def test_it_is_named_an_approximation():
    _, model = perceptron(0)
    posterior = Kronecker().build(model)
    assert not posterior.is_exact and posterior.error_bound is None
    assert clone(Kronecker(5.0)).memory_limit == 5.0
    assert Kronecker().parameters is None and Kronecker().rows(3, 0) is None
    with pytest.raises(MemoryError, match="Kronecker posterior.*memory_limit"):
        Kronecker(1e-5).build(model)


def test_a_classifier_of_singular_noise():
    X = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = LinearModel.from_laplace(
        Linearization(MLP(3, (4,), 3)), X, torch.arange(20) % 3, Categorical(), 0.5
    )
    V = KroneckerPosterior(model).covariance(X)
    prior = model.linearization.diagonal_blocks(X) / 0.5
    assert bool((torch.linalg.eigvalsh(V) > 0).all())
    assert bool((torch.linalg.eigvalsh(prior - V) >= -1e-10).all())


@pytest.mark.parametrize("kind", ["laplace", "dual"])
def test_its_evidence_at_every_prior_and_noise_is_its_own(kind):
    """Not that of the exact ΦᵀΦ: a posterior made anew at each δ and σ gives the same."""
    X = np.linspace(-2, 2, 30)[:, None]
    model = DNN2GPRegressor(
        hidden_layer_sizes=(3,), prior_precision=0.5, noise_std=0.3, posterior="kronecker",
        random_state=0, normalize_y=False,
    ).fit(X, np.sin(2 * X[:, 0]))  # fmt: skip
    assert model.log_marginal_likelihood(np.log([0.5, 0.3])) == pytest.approx(
        model.log_marginal_likelihood_value_, abs=1e-9
    )
    for delta, sigma in ((0.5, 0.3), (2.0, 0.4)):
        own = model.linear_model_
        scale = 0.3 / sigma  # of 1/σ
        log_noise = -30 * math.log(2 * math.pi * sigma**2)
        there = LinearModel(
            own.linearization, own.X, own.noise_factor * scale, own.whitened_residual * scale,
            own.weights, torch.tensor(delta).double(),
            0.5 * (log_noise - float((own.whitened_residual * scale).square().sum())), log_noise,
        )  # fmt: skip
        expected = log_marginal_likelihood(KroneckerPosterior(there), kind)
        theta = np.log([delta, sigma])
        value, slope = model.log_marginal_likelihood(theta, True, kind=kind)
        assert value == pytest.approx(expected, abs=1e-8)
        steps = [
            [model.log_marginal_likelihood(theta + s * e, kind=kind) for s in (1e-5, -1e-5)]
            for e in np.eye(2)
        ]
        differences = [(ahead - behind) / 2e-5 for ahead, behind in steps]
        np.testing.assert_allclose(slope, differences, rtol=1e-5, atol=1e-5)

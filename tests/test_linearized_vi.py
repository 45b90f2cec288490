"""inference="linearized-vi": the best Gaussian of the linear model, against dense quadratures."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, logsumexp
from sklearn.datasets import load_iris, make_moons
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.evidence import log_marginal_likelihood
from sk_dnn2gp.inference import LinearizedVariational, linearized
from sk_dnn2gp.inference.linearized import maximise_linearized_elbo, standard_normal_nodes
from sk_dnn2gp.likelihoods import Bernoulli, Categorical, Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import IndependentOutputs, SubsetOfData, make_posterior
from sk_dnn2gp.training import FirstOrder


def moons(n=60):
    return make_moons(n, noise=0.3, random_state=0)


def fitted(**options):
    settings = {
        "hidden_layer_sizes": (4,), "prior_precision": 0.5, "random_state": 0,
        "inference": "linearized-vi",
    }  # fmt: skip
    X, y = moons()
    model = DNN2GPClassifier(**{**settings, **options})
    return model.fit(X, y), X, y


def linear_model(net, X, y, likelihood, delta, weight=None):
    return LinearModel.from_laplace(Linearization(net), X, y, likelihood, delta, weight)


@pytest.mark.parametrize("hidden", [(4,), (30,)], ids=["weight space", "function space"])
def test_its_fixed_point_by_dense_matrices(hidden, monkeypatch):
    """Σ⁻¹ = JᵀΛ̄J + δ with q's own Λ̄, and Jᵀr̄ + δμ = 0, by a quadrature of its own."""
    # Steps end where the bound gains 1e-4 nats, and not 0.01.
    monkeypatch.setattr(linearized, "_NATS", 1e-4)
    monkeypatch.setattr(linearized, "_PART", 0.0)
    inference = LinearizedVariational(max_iter=500)
    model, X, y = fitted(hidden_layer_sizes=hidden, inference=inference)
    laplace, delta = model.linear_model_, model.prior_precision_
    inputs = torch.tensor(X)
    J = laplace.linearization.rows(inputs)[:, 0].numpy()
    mu = model.posterior_.model.weights.numpy()
    f = laplace.linearization.outputs(inputs)[:, 0].numpy() + J @ (mu - laplace.weights.numpy())
    V = model.posterior_.covariance(inputs)[:, 0, 0].numpy()
    z, w = np.polynomial.hermite_e.hermegauss(100)
    p = expit(f[:, None] + np.sqrt(V)[:, None] * z)
    r = (p - y[:, None]) @ w / w.sum()
    A = J.T @ (J * ((p * (1 - p)) @ w / w.sum())[:, None]) + delta * np.eye(len(mu))
    # Half the squared Newton step that is left.
    step = np.linalg.solve(A, J.T @ r + delta * mu)
    assert 0.5 * step @ (J.T @ r + delta * mu) < 0.01
    # A deviation of Λ̄ costs as many nats, in second order: V to 5 %.
    np.testing.assert_allclose(V, np.einsum("np,np->n", J, np.linalg.solve(A, J.T).T), rtol=0.05)


def test_the_bound_and_the_moments_against_the_integral_over_two_weights():
    """A logistic regression with two weights, where evidence and posterior are sums over a grid."""
    generator = np.random.RandomState(0)
    X = generator.randn(12, 2)
    y = (X[:, 0] + 0.3 * generator.randn(12) > 0).astype(float)
    delta = 0.05
    net = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    axis = np.linspace(-25, 45, 1201)
    W = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    F = W @ X.T
    log_joint = (log_expit(F) * y + log_expit(-F) * (1 - y)).sum(1) - 0.5 * delta * (W**2).sum(1)
    log_joint += np.log(delta / (2 * np.pi)) + 2 * np.log(axis[1] - axis[0])
    evidence = logsumexp(log_joint)
    density = np.exp(log_joint - evidence)
    mode = W[log_joint.argmax()]
    with torch.no_grad():
        net.weight.copy_(torch.tensor(mode)[None])
    targets = torch.tensor(y)[:, None]
    laplace = linear_model(net, torch.tensor(X), targets, Bernoulli(), delta)
    best = maximise_linearized_elbo(laplace, targets, Bernoulli(), torch.ones(12))
    mean = (density[:, None] * W).sum(0)
    ours = best.posterior.model.weights.numpy()
    assert best.elbo_curve[-1] < evidence < best.elbo_curve[-1] + 0.3
    assert np.linalg.norm(ours - mean) < 0.25 * np.linalg.norm(mode - mean)


def test_a_step_that_swings_is_not_the_last():
    """Steps to 1e-4 nats end at -26.27; the fourth, which goes too far, gains nothing on -28.30."""
    X, y = load_iris(return_X_y=True)
    model = DNN2GPClassifier(
        hidden_layer_sizes=(40,), prior_precision=0.3, inference="linearized-vi", random_state=0,
        n_restarts=1,
    )  # fmt: skip
    assert model.fit(X, y).elbo_curve_[-1] > -26.5


def test_a_gaussian_likelihood_is_solved_by_laplace_already():
    torch.manual_seed(0)
    X, y = torch.randn(15, 2, dtype=torch.float64), torch.randn(15, 1, dtype=torch.float64)
    net = nn.Linear(2, 1, dtype=torch.float64)
    likelihood = Gaussian(0.7)
    design = torch.cat([X, torch.ones(15, 1)], 1)
    w = torch.linalg.solve(
        design.mT @ design + 0.49 * 2.0 * torch.eye(3, dtype=torch.float64), design.mT @ y
    )[:, 0]
    with torch.no_grad():
        net.weight.copy_(w[None, :2])
        net.bias.copy_(w[2:])
    laplace = linear_model(net, X, y, likelihood, 2.0)
    best = maximise_linearized_elbo(laplace, y, likelihood, torch.ones(15))
    assert float(best.shift.norm()) < 1e-10
    exact = log_marginal_likelihood(make_posterior(laplace))
    assert best.elbo_curve[-1] == pytest.approx(exact, abs=1e-10)


def test_two_logits_agree_with_one_where_the_priors_correspond():
    """f₁ - f₀ of two logits with prior variance 1/δ each is one logit with δ/2.

    Steps end at a gain of 0.01 nats; the mean may then be √0.02 of a standard deviation off.
    """
    X, y = moons(40)
    features = torch.tensor(np.c_[X, X**2])
    one = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    two = nn.Linear(4, 2, bias=False, dtype=torch.float64)
    for net in (one, two):
        nn.init.zeros_(net.weight)
    labels = torch.tensor(y)
    single = maximise_linearized_elbo(
        linear_model(one, features, labels[:, None].double(), Bernoulli(), 0.5),
        labels[:, None].double(), Bernoulli(), torch.ones(40),
    )  # fmt: skip
    double = maximise_linearized_elbo(
        linear_model(two, features, labels, Categorical(), 1.0),
        labels, Categorical(), torch.ones(40),
    )  # fmt: skip
    difference = double.posterior.model.weights.view(2, 4).diff(dim=0)[0]
    norm = float(single.posterior.model.weights.norm())
    assert float((difference - single.posterior.model.weights).norm()) < 0.02 * norm
    assert double.elbo_curve[-1] == pytest.approx(single.elbo_curve[-1], abs=0.01)


def test_the_mean_of_the_noise_precision_without_each_of_them():
    torch.manual_seed(0)
    f = 3.0 * torch.randn(5, 40, 4, dtype=torch.float64)
    f[0, :, 0] += 50.0  # a sure network keeps its digits
    nodes = torch.rand(40, dtype=torch.float64)
    mean = Categorical().mean_noise_precision(f, nodes)
    for ours, draws in zip(mean, f, strict=True):
        each = Categorical().noise_precision(draws)
        torch.testing.assert_close(ours, (nodes[:, None, None] * each).sum(0), rtol=1e-12, atol=0)


def test_the_bound_rises_step_by_step():
    X, y = load_iris(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    model = DNN2GPClassifier(
        hidden_layer_sizes=(3,), prior_precision=0.3, inference="linearized-vi", random_state=0
    ).fit(X, y)
    steps = np.diff(model.elbo_curve_)
    assert (steps > -0.01).all()
    assert model.elbo_curve_[-1] > model.elbo_curve_[0] + 1.0
    # The mean has moved to where the network is surer: the bound's own doing.
    assert model._result.shift.norm() > 0


def test_predictions_are_of_the_moved_process():
    model, X, y = fitted(link="mc")
    f = model.linear_model_.linearization.outputs(torch.tensor(X))[:, 0].numpy()
    J = model.linear_model_.linearization.rows(torch.tensor(X))[:, 0].numpy()
    mean = f + J @ model._result.shift.numpy()
    V = model.posterior_.covariance(torch.tensor(X))[:, 0, 0].numpy()
    p = expit(mean / np.sqrt(1 + np.pi / 8 * V))
    np.testing.assert_allclose(model.predict_proba(X, "probit")[:, 1], p, rtol=1e-9)
    np.testing.assert_allclose(model.predict_proba(X, "map")[:, 1], expit(f), rtol=1e-9)
    draws = model.sample_y(X, 4000, target="latent")[:, 0]
    # Five standard errors of a mean of 4,000 draws.
    assert (np.abs(draws.mean(1) - mean) < 5 * np.sqrt(V / 4000)).all()
    latent = model.to_gaussian_process().predict(X, return_std=True)
    np.testing.assert_allclose(latent[1], np.sqrt(V), rtol=1e-6)
    mu = model.posterior_.model.weights.numpy()
    # A process's mean is J μ where the fixed point holds, which the steps reach to 0.01 nats.
    assert np.abs(latent[0] - J @ mu).max() < 0.2 * np.sqrt(V).max()


def test_probabilities_are_sharper_than_laplace_and_no_worse():
    """Held-out log loss of the averaged probabilities, where Laplace is far too humble."""
    X, y = make_moons(400, noise=0.25, random_state=1)
    settings = {"hidden_layer_sizes": (10,), "prior_precision": 0.1, "random_state": 0}
    loss = {}
    for inference in ("laplace", "linearized-vi"):
        model = DNN2GPClassifier(**settings, inference=inference).fit(X[:100], y[:100])
        p = model.predict_proba(X[100:], "mc")
        loss[inference] = -np.log(p[np.arange(300), y[100:]]).mean()
    assert loss["linearized-vi"] < loss["laplace"]


def test_rows_weights_and_structures():
    model, X, _ = fitted(posterior=SubsetOfData(20))
    assert len(model.posterior_.model.X) == 20
    model, X, y = fitted(posterior="last_layer")
    assert model.posterior_.model.n_params == 5
    weighted = DNN2GPClassifier(
        hidden_layer_sizes=(4,), prior_precision=0.5, random_state=0, inference="linearized-vi"
    )
    twice = weighted.fit(X, y, sample_weight=np.full(len(X), 2.0)).predict_proba(X)
    repeated = weighted.fit(np.r_[X, X], np.r_[y, y]).predict_proba(X)
    np.testing.assert_allclose(twice, repeated, rtol=1e-6)


@pytest.mark.parametrize(
    "posterior",
    [
        "diag",
        "independent",
        IndependentOutputs(),
        "kronecker",
        SubsetOfData(20, posterior="kronecker"),
    ],
)
def test_what_it_cannot_be_is_refused(posterior):
    with pytest.raises(ValueError, match="linearized-vi"):
        fitted(posterior=posterior)


def test_a_regressor_needs_it_not():
    with pytest.raises(ValueError, match="linearized-vi' is for classifiers"):
        DNN2GPRegressor(inference="linearized-vi").fit(*moons())


@pytest.mark.parametrize("K", [1, 2, 3])
def test_nodes_have_the_moments_of_a_standard_normal(K):
    z, weights = standard_normal_nodes(K)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float((weights @ z).norm()) < 1e-12
    second = torch.einsum("s,si,sj->ij", weights, z, z)
    tolerance = 1e-10 if K < 3 else 0.1  # 128 quasi-random nodes
    assert float((second - torch.eye(K, dtype=torch.float64)).abs().max()) < tolerance


def test_networks_in_single_precision():
    torch.manual_seed(0)
    X, y = moons()
    model = DNN2GPClassifier(
        MLP(2, (5,), 1, dtype=torch.float32),
        prior_precision=0.5,
        inference="linearized-vi",
        solver=FirstOrder(max_iter=20),
    ).fit(X.astype(np.float32), y)
    p = model.predict_proba(X.astype(np.float32))
    np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-12)

"""Laplace(curvature="gradient"): eq. 5 with φ = ∇ℓ and D = 1 (math-gradients), against dense
gradients of each example's loss."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.inference import Laplace
from sk_dnn2gp.likelihoods import Bernoulli, Categorical, Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.optim import OGN
from sk_dnn2gp.posterior import LowRank, LowRankPosterior, SubsetOfData
from tests.reference import jacobian, weights

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (30, 2))
Y = np.sin(X.sum(1)) + 0.3 * RNG.standard_normal(30)
LABELS = np.digitize(Y, [-0.5, 0.5])
X_NEW = np.array([[0.0, 0.0], [1.5, -1.0], [5.0, 5.0]])
GRADIENT = Laplace(curvature="gradient")


def regressor(**options):
    defaults = {
        "hidden_layer_sizes": (4,), "prior_precision": 0.7, "noise_std": 0.4, "random_state": 0,
        "normalize_y": False, "inference": GRADIENT,
    }  # fmt: skip
    return DNN2GPRegressor(**{**defaults, **options})


def classifier(**options):
    defaults = {
        "hidden_layer_sizes": (4,), "prior_precision": 0.7, "random_state": 0,
        "inference": GRADIENT,
    }  # fmt: skip
    return DNN2GPClassifier(**{**defaults, **options})


def gradients(model, targets):
    """∇ℓ_i by autograd of each example's loss, of shape (n_samples, n_params)."""
    module, likelihood = model.module_, model._result.likelihood
    parameters = [p for p in module.parameters() if p.requires_grad]
    rows = []
    for x, y in zip(torch.tensor(X), targets, strict=True):
        loss = likelihood.negative_log_likelihood(module(x[None]), y[None]).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows).numpy()


CASES = {
    "weight space": (lambda: regressor().fit(X, Y), torch.tensor(Y)[:, None]),
    "function space": (
        lambda: regressor(hidden_layer_sizes=(12,)).fit(X, Y), torch.tensor(Y)[:, None],
    ),
    "two targets": (
        lambda: regressor().fit(X, np.c_[Y, -(Y**2)]), torch.tensor(np.c_[Y, -(Y**2)]),
    ),
    "one logit": (
        lambda: classifier().fit(X, LABELS == 0), torch.tensor(LABELS == 0)[:, None].double(),
    ),
    "three logits": (lambda: classifier().fit(X, LABELS), torch.tensor(LABELS)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("posterior", ["full", "diag"])
def test_covariances_are_those_of_dense_gradients(name, posterior):
    make, targets = CASES[name]
    model = make() if posterior == "full" else clone(make()).set_params(posterior="diag")
    model = model if posterior == "full" else model.fit(X, fitted_targets(name))
    G = gradients(model, targets)
    A = G.T @ G + 0.7 * np.eye(G.shape[1])
    A = A if posterior == "full" else np.diag(A.diagonal())
    assert model.posterior_.model.n_rows == 30  # one for each example, whatever K is
    J = jacobian(model.module_, torch.tensor(X_NEW)).numpy()
    V, K = J @ np.linalg.solve(A, J.T), len(J) // 3
    inputs = torch.tensor(X_NEW)
    np.testing.assert_allclose(model.posterior_.joint_covariance(inputs), V, rtol=1e-8, atol=1e-11)
    blocks = V.reshape(3, K, 3, K)[range(3), :, range(3)]
    np.testing.assert_allclose(model.posterior_.covariance(inputs), blocks, rtol=1e-8, atol=1e-11)
    if isinstance(model, DNN2GPRegressor):
        std = model.predict_std(X_NEW, "latent").reshape(3, K)
        np.testing.assert_allclose(std**2, V.diagonal().reshape(3, K), rtol=1e-8)
    assert model.posterior_.log_determinant == pytest.approx(
        np.linalg.slogdet(A / 0.7)[1], rel=1e-9
    )


def fitted_targets(name):
    return {"one logit": LABELS == 0, "three logits": LABELS, "two targets": np.c_[Y, -(Y**2)]}.get(
        name, Y
    )


def test_the_posterior_is_that_of_its_linear_model():
    """Mean w* at the minimum from the targets ∇ℓᵀw* - 1, and the process of one output."""
    model = regressor().fit(X, Y)
    G = gradients(model, torch.tensor(Y)[:, None])
    w = weights(model.module_).numpy()
    A = G.T @ G + 0.7 * np.eye(len(w))
    np.testing.assert_allclose(np.linalg.solve(A, G.T @ (G @ w - 1)), w, rtol=1e-6, atol=1e-8)
    own = model.posterior_.model
    np.testing.assert_allclose(own.whitened_targets[:, 0], G @ w - 1, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(own.gradient, model.linear_model_.gradient, rtol=0, atol=1e-9)
    for fitted, target in ((model, "latent"), (classifier().fit(X, LABELS == 0), "latent")):
        mean, std = fitted.to_gaussian_process().predict(X_NEW, return_std=True)
        V = fitted.posterior_.variance(torch.tensor(X_NEW))[:, 0]
        np.testing.assert_allclose(std, V.sqrt(), rtol=1e-5)
        J = jacobian(fitted.module_, torch.tensor(X_NEW)).numpy()
        np.testing.assert_allclose(mean, J @ weights(fitted.module_).numpy(), rtol=1e-5, atol=1e-6)
        assert np.isfinite(fitted.predict_std(X_NEW, target)).all()


@pytest.mark.parametrize("likelihood", [Gaussian(0.4), Bernoulli(), Categorical()], ids=repr)
def test_over_labels_of_the_model_gradients_are_the_gauss_newton_matrix(likelihood):
    """E[∇ℓ ∇ℓᵀ] = JᵀΛJ, the sum over labels; of normal noise by its two points f ± σ."""
    torch.manual_seed(0)
    K = 3 if isinstance(likelihood, Categorical) else 1
    net, inputs = nn.Linear(2, K).double(), torch.tensor(X)
    linearization = Linearization(net)
    f = linearization.outputs(inputs)
    if isinstance(likelihood, Categorical):
        cases = [(torch.full((30,), k), f.softmax(1)[:, k]) for k in range(3)]
    elif isinstance(likelihood, Bernoulli):
        cases = [(torch.full_like(f, k), (k - 1 + f.sigmoid()).abs()[:, 0]) for k in (0.0, 1.0)]
    else:
        cases = [(f + 0.4 * sign, torch.full((30,), 0.5)) for sign in (-1, 1)]
    total = 0.0
    for y, p in cases:
        p = p.double()
        model = LinearModel.from_laplace(linearization, inputs, y, likelihood, 1.0, p)
        model = model.with_gradients(p)
        total = total + linearization.ggn(inputs, cotangents=model.noise_factor)
    L = likelihood.noise_precision_factor(f)
    torch.testing.assert_close(total, linearization.ggn(inputs, cotangents=L), rtol=1e-9, atol=1e-9)


def test_the_diagonal_is_the_optimisers():
    """Σ (∇ℓ_i)² is OGN's curvature: one formula, whoever asks."""
    model = regressor(posterior="diag").fit(X, Y)
    inputs, targets = torch.tensor(X), torch.tensor(Y)[:, None]
    optimizer = OGN(
        model.module_.parameters(), lr=1e-12, beta=1.0, n_data=30, prior_precision=0.7,
        module=model.module_,
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = Gaussian(0.4).negative_log_likelihood(model.module_(inputs), targets).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = optimizer.corrected_curvature() + 0.7
    torch.testing.assert_close(1 / model.posterior_.inverse_diagonal, expected, rtol=1e-9, atol=0.0)


def test_weights_are_repetitions_and_parts_are_parts():
    weight = np.tile([1, 2, 3], 10)
    a = regressor().fit(X, Y, sample_weight=weight)
    b = regressor().fit(X.repeat(weight, axis=0), Y.repeat(weight))
    np.testing.assert_allclose(
        a.predict_std(X_NEW, "latent"), b.predict_std(X_NEW, "latent"), rtol=1e-6
    )
    part = regressor(posterior=SubsetOfData(10, random_state=0)).fit(X, Y)
    G = gradients(part, torch.tensor(Y)[:, None])[part.posterior_indices_]
    J = jacobian(part.module_, torch.tensor(X_NEW)).numpy()
    V = J @ np.linalg.solve(G.T @ G + 0.7 * np.eye(G.shape[1]), J.T)
    np.testing.assert_allclose(part.predict_std(X_NEW, "latent") ** 2, V.diagonal(), rtol=1e-8)


def test_other_posteriors_take_them_too():
    exact = classifier(posterior="full").fit(X, LABELS)
    inputs = torch.tensor(X_NEW)
    low = classifier(posterior=LowRank(tol=1e-6)).fit(X, LABELS)
    assert isinstance(low.posterior_, LowRankPosterior)
    V = exact.posterior_.variance(inputs)
    torch.testing.assert_close(low.posterior_.variance(inputs), V, rtol=1e-5, atol=0.0)
    last = classifier(posterior="last_layer").fit(X, LABELS)
    assert (last.posterior_.variance(inputs) < V).all()
    assert classifier(posterior="kronecker").fit(X, LABELS).predict_std(X_NEW, "latent").min() > 0
    with pytest.raises(ValueError, match="one gradient for all outputs"):
        classifier(posterior="independent").fit(X, LABELS)
    with pytest.raises(ValueError, match="curvature must be 'ggn' or 'gradient', got 'gradients'"):
        classifier(inference=Laplace("gradients")).fit(X, LABELS)
    varying = regressor(noise_std="heteroscedastic", prior_precision=20.0).fit(X, Y)
    with pytest.raises(ValueError, match="mean and noise of a row together"):
        varying.to_gaussian_process()


def test_training_and_evidence_are_the_gauss_newton_matrixs():
    free = {"prior_precision": "auto", "noise_std": "auto", "n_restarts": 1}
    model, laplace = (
        regressor(**free, inference=inference).fit(X, Y) for inference in (GRADIENT, "laplace")
    )
    assert model.prior_precision_ == laplace.prior_precision_
    assert model.noise_std_ == laplace.noise_std_
    assert model.log_marginal_likelihood() == laplace.log_marginal_likelihood()
    np.testing.assert_array_equal(model.predict(X_NEW), laplace.predict(X_NEW))
    theta = np.log([0.5, 0.3])
    assert model.log_marginal_likelihood(theta) == laplace.log_marginal_likelihood(theta)
    assert (model.predict_std(X_NEW) != laplace.predict_std(X_NEW)).all()
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.predict_std(X_NEW), model.predict_std(X_NEW))


def test_where_it_is_bad():
    """As the page of mathematics says: a row's part is (y-f)²/σ² times the Gauss-Newton one's."""
    model = regressor().fit(X, Y)
    by_heart = clone(model).fit(X, model.predict(X))  # next to no residual: the prior comes back
    prior = jacobian(by_heart.module_, torch.tensor(X_NEW)).square().sum(1) / 0.7
    ggn = clone(model).set_params(inference="laplace").fit(X, model.predict(X))
    assert (by_heart.predict_std(X_NEW, "latent") ** 2 > 0.5 * prior.numpy()).any()
    assert (by_heart.predict_std(X, "latent") > 2 * ggn.predict_std(X, "latent")).mean() > 0.9
    ratio = by_heart.posterior_.model.noise_factor / by_heart.linear_model_.noise_factor
    residual = torch.tensor(by_heart.predict(X) - model.predict(X))
    torch.testing.assert_close(ratio[:, 0, 0], residual / 0.4, rtol=1e-9, atol=1e-12)

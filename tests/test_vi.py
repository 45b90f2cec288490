"""inference="vi": the converged variational posterior as a Gaussian process (math-variational)."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest, norm
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.exceptions import ConvergenceError
from sk_dnn2gp.inference import Variational, variational
from sk_dnn2gp.posterior import Full
from sk_dnn2gp.training import FirstOrder
from tests.reference import jacobian

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (40, 2))
Y = np.sin(X.sum(1)) + 0.3 * RNG.standard_normal(40)
X_NEW = np.array([[0.0, 0.0], [1.5, -1.0], [5.0, 5.0]])


@pytest.fixture
def optimizers(monkeypatch):
    """The optimisers that fits make, whose own q a fit must show."""
    made = []
    for name in ("VOGGN", "VOGN"):
        own = getattr(variational, name)

        def make(*arguments, own=own, **options):
            made.append(own(*arguments, **options))
            return made[-1]

        monkeypatch.setattr(variational, name, make)
    return made


def covariance_of(module, inputs, A):
    """J_* A⁻¹ J_*ᵀ of each row, of shape (n, K, K)."""
    J = jacobian(module, inputs).unflatten(0, (len(inputs), -1))
    return J @ torch.linalg.solve(A, J.mT)


def regressor(**options):
    defaults = {
        "hidden_layer_sizes": (4,), "prior_precision": 1.0, "noise_std": 0.4, "random_state": 0,
        "normalize_y": False, "inference": "vi",
    }  # fmt: skip
    return DNN2GPRegressor(**{**defaults, **options})


def test_a_linear_model_keeps_its_exact_posterior():
    """There q is the posterior from the start: S never changes, and μ only shakes."""
    model = regressor(
        hidden_layer_sizes=(), activation="identity", inference=Variational(n_samples=8)
    ).fit(X, Y)
    exact = clone(model).set_params(inference="laplace").fit(X, Y)
    std = exact.predict_std(X_NEW, "latent")
    np.testing.assert_allclose(model.predict_std(X_NEW, "latent"), std, rtol=1e-9)
    # At rate α the mean shakes by √(α/2M) posterior standard deviations. The cosine's last rate
    # with a sum of one to come, enough to forget what was before, is about 0.1: four √(0.1/16).
    assert (np.abs(model.predict(X_NEW) - exact.predict(X_NEW)) < 4 * 0.08 * std).all()
    # The ELBO of the exact posterior is the evidence; its estimate has the noise of 8 draws.
    assert np.mean(model.elbo_curve_) == pytest.approx(exact.log_marginal_likelihood(), abs=0.5)


@pytest.mark.parametrize("posterior", ["full", "diag"])
def test_variational_training_raises_the_lower_bound(posterior):
    model = regressor(posterior=posterior).fit(X, Y)
    elbo = np.array(model.elbo_curve_)
    assert len(elbo) == 200 and np.isfinite(elbo).all()
    assert elbo[-40:].mean() > elbo[:5].mean()
    # The working net's history holds the same epochs, with the mean loss of the draws.
    np.testing.assert_array_equal(model.net_.history[:, "train_loss"], model.loss_curve_)
    assert len(model.loss_curve_) == len(elbo)
    assert model.solver_ == ("VOGGN" if posterior == "full" else "VOGN")


@pytest.mark.parametrize("posterior", ["full", "diag"])
def test_the_process_has_the_networks_mean_and_the_posteriors_covariance(posterior, optimizers):
    model = regressor(posterior=posterior).fit(X, Y)
    q = optimizers[-1].posterior()
    inputs = torch.tensor(X_NEW)
    with torch.no_grad():
        np.testing.assert_allclose(model.predict(X_NEW), model.module_(inputs)[:, 0], rtol=1e-12)
    A = q.precision if q.precision.ndim == 2 else torch.diag(q.precision)
    std = model.predict_std(X_NEW, "latent")
    expected = covariance_of(model.module_, inputs, A)[:, 0, 0].sqrt()
    np.testing.assert_allclose(std, expected, rtol=1e-9)


def test_its_evidence_is_that_of_the_process_at_the_mean():
    model = regressor().fit(X, Y)
    J = jacobian(model.module_, torch.tensor(X))
    with torch.no_grad():
        f = model.module_(torch.tensor(X))[:, 0]
    targets = J @ model.linear_model_.weights - (f - torch.tensor(Y))
    noisy = J @ J.T + 0.16 * torch.eye(40, dtype=torch.float64)  # δ = 1, σ = 0.4
    normal = torch.distributions.MultivariateNormal(torch.zeros(40).double(), noisy)
    expected = float(normal.log_prob(targets))
    assert model.log_marginal_likelihood() == pytest.approx(expected, rel=1e-9)
    theta = np.log([1.0, 0.4])
    assert model.log_marginal_likelihood(theta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_auto_goes_to_the_best_lower_bound(optimizers):
    auto = regressor(prior_precision="auto", noise_std="auto", n_restarts=1).fit(X, Y)
    q = optimizers[-1].posterior()
    best = len(q.mean) / float((q.mean**2).sum() + q.variances().sum())
    # Updated every fifth epoch of a mean and covariance that hardly move at the end.
    assert auto.prior_precision_ == pytest.approx(best, rel=0.02)
    residual = auto.sample_network(X, 4000)[:, 0] - Y[:, None]
    # A running mean over some ten epochs of four draws each: a tenth.
    assert auto.noise_std_ == pytest.approx(np.sqrt((residual**2).mean()), rel=0.1)


@pytest.mark.slow
def test_networks_are_drawn_from_q_in_the_units_of_y(optimizers):
    """Beside networks with weights of our own drawing, by Kolmogorov's and Smirnov's test."""
    model = regressor(normalize_y=True, noise_std=0.5).fit(X, 100 * Y + 7)
    q, n = optimizers[-1].posterior(), 20_000
    L = torch.linalg.cholesky(q.precision)
    z = torch.randn(len(L), n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = (q.mean[:, None] + torch.linalg.solve_triangular(L.mT, z, upper=True)).mT
    inputs, module = torch.tensor(X_NEW), copy.deepcopy(model.module_)
    own = np.empty((3, n))
    with torch.no_grad():
        for k, w in enumerate(weights):
            nn.utils.vector_to_parameters(w, module.parameters())
            own[:, k] = 100 * Y.std() * module(inputs)[:, 0] + 100 * Y.mean() + 7
    draws = model.sample_network(X_NEW, n)
    assert draws.shape == (3, 1, n)
    for ours, theirs in zip(draws[:, 0], own, strict=True):
        assert ks_2samp(ours, theirs).pvalue > 1e-3  # tells 0.03 standard deviations
    # Far from the data the network with drawn weights is another predictive than the process.
    process = norm(model.predict(X_NEW)[2], model.predict_std(X_NEW, "latent")[2])
    assert kstest(draws[2, 0], process.cdf).pvalue < 1e-12


def test_classifiers(optimizers):
    labels = np.digitize(Y, [-0.5, 0.5])
    model = DNN2GPClassifier(
        hidden_layer_sizes=(4,),
        prior_precision=0.1,
        random_state=0,
        inference=Variational(max_iter=60),
    ).fit(X, labels)
    assert model.score(X, labels) > 0.7
    assert np.mean(model.elbo_curve_[-10:]) > np.mean(model.elbo_curve_[:5])
    V = covariance_of(model.module_, torch.tensor(X_NEW), optimizers[-1].posterior().precision)
    p = torch.softmax(model.module_(torch.tensor(X_NEW)), 1).detach()
    Lambda = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    expected = (Lambda @ V @ Lambda).diagonal(dim1=1, dim2=2)
    np.testing.assert_allclose(model.predict_uncertainty(X_NEW).epistemic, expected, rtol=1e-8)
    np.testing.assert_array_equal(
        clone(model).fit(X, labels).predict_proba(X), model.predict_proba(X)
    )


def test_images_in_minibatches(optimizers):
    images = RNG.standard_normal((40, 1, 4, 4)).astype(np.float32)
    labels = (images.mean((1, 2, 3)) > 0).astype(int)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    model = DNN2GPClassifier(
        net, solver=FirstOrder(max_iter=30), prior_precision=1.0, posterior="diag",
        inference=Variational(batch_size=20, max_iter=40, n_samples=8), random_state=0,
    ).fit(images, labels)  # fmt: skip
    assert len(model.elbo_curve_) == 40
    S = torch.diag(optimizers[-1].posterior().precision)
    module = copy.deepcopy(model.module_).double()
    V = covariance_of(module, torch.tensor(images).double(), S)
    expected = V.diagonal(dim1=1, dim2=2).sqrt()
    np.testing.assert_allclose(model.predict_std(images, "latent"), expected, rtol=1e-5)


def test_integer_weights_are_repetitions():
    weight = np.tile([1, 2], 20)
    a = regressor(inference=Variational(max_iter=50)).fit(X, Y, sample_weight=weight)
    b = regressor(inference=Variational(max_iter=50)).fit(
        X.repeat(weight, axis=0), Y.repeat(weight)
    )
    std_a, std_b = (m.predict_std(X_NEW, "latent") for m in (a, b))
    np.testing.assert_allclose(std_a, std_b, rtol=1e-4)
    np.testing.assert_allclose(a.predict(X_NEW), b.predict(X_NEW), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fall", [-1e4, float("nan")])
def test_divergence_is_an_error(fall, monkeypatch):
    """A bound that ends far below its start, or is no number; the estimator stays unfitted."""
    own, asked = variational.VOGGN.elbo, []

    def falling(self, loss):
        asked.append(loss)
        return own(self, loss) if len(asked) < 5 else fall

    monkeypatch.setattr(variational.VOGGN, "elbo", falling)
    model = regressor(inference=Variational(max_iter=20))
    with pytest.raises(ConvergenceError, match=r"the lower bound went from .* inference__batch"):
        model.fit(X, Y)
    assert not hasattr(model, "module_")


def test_bad_calls():
    with pytest.raises(ValueError, match="posterior='full' or 'diag'"):
        regressor(posterior="last_layer").fit(X, Y)
    frozen = FrozenEstimator(regressor(inference="laplace").fit(X, Y).net_)
    with pytest.raises(ValueError, match="inference='vi' trains the network"):
        regressor(net=frozen).fit(X, Y)
    with pytest.raises(ValueError, match="whole data in a batch"):
        regressor(inference=Variational(batch_size=10)).fit(
            X, Y, sample_weight=np.tile([1.0, 2.0], 20)
        )
    with pytest.raises(MemoryError, match="full variational posterior"):
        regressor(hidden_layer_sizes=(300,), posterior=Full(memory_limit=2.0)).fit(X, Y)

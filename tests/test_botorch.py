"""The BoTorch model against the estimator's own answers, and its gradients against differences."""

import sys

import numpy as np
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement, qUpperConfidenceBound
from botorch.optim import optimize_acqf

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.integrations import BoTorchModel
from sk_dnn2gp.likelihoods import Poisson

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (30, 2))
Y = 5.0 + 3.0 * np.sin(X[:, 0]) * X[:, 1] + 0.1 * RNG.normal(size=30)
OPTIONS = {"prior_precision": 0.5, "noise_std": 0.2, "random_state": 0}
POSTERIORS = {"weights": ((4,), "full"), "functions": ((30,), "full"), "last": ((4,), "last_layer")}


def fitted(name):
    hidden, posterior = POSTERIORS[name]
    return DNN2GPRegressor(hidden_layer_sizes=hidden, posterior=posterior, **OPTIONS).fit(X, Y)


@pytest.mark.parametrize("name", list(POSTERIORS))
def test_the_law_is_the_estimators(name):
    estimator = fitted(name)
    new = torch.tensor(RNG.uniform(-2, 2, (3, 4, 2)))
    law = BoTorchModel(estimator).posterior(new)
    assert law.mean.shape == law.variance.shape == (3, 4, 1)
    for batch, inputs in enumerate(new.numpy()):
        mean, cov = estimator.predict(inputs, return_cov=True)
        noise = (estimator.noise_std_ * estimator.y_scale_[0]) ** 2
        # The same numbers by other passes: rounding, of entries up to the prior's.
        np.testing.assert_allclose(law.mean[batch, :, 0].detach(), mean, rtol=1e-10)
        found = law.distribution.covariance_matrix[batch].detach().numpy()
        np.testing.assert_allclose(found, cov - noise * np.eye(4), atol=1e-9 * np.abs(cov).max())
    noisy = BoTorchModel(estimator).posterior(new, observation_noise=True)
    extra = (noisy.variance - law.variance).detach().numpy()
    np.testing.assert_allclose(extra, noise, rtol=1e-8)
    given = torch.full((3, 4, 1), 0.7, dtype=torch.float64)
    extra = BoTorchModel(estimator).posterior(new, observation_noise=given).variance - law.variance
    np.testing.assert_allclose(extra.detach(), 0.7, rtol=1e-8)


@pytest.mark.parametrize("name", list(POSTERIORS))
def test_gradients_in_the_inputs_are_differences(name):
    model = BoTorchModel(fitted(name))
    new = torch.tensor([[0.3, -0.7], [1.1, 0.4]], dtype=torch.float64, requires_grad=True)

    def value(inputs):
        law = model.posterior(inputs)
        return law.mean.sum() + law.distribution.covariance_matrix.square().sum()

    assert torch.autograd.gradcheck(value, (new,), eps=1e-6, rtol=1e-5, atol=1e-6)


def test_botorchs_optimisers_run_on_it():
    model = BoTorchModel(fitted("weights"))
    bounds = torch.tensor([[-2.0, -2.0], [2.0, 2.0]], dtype=torch.float64)
    improvement = LogExpectedImprovement(model, best_f=float(Y.max()))
    found, value = optimize_acqf(improvement, bounds, q=1, num_restarts=3, raw_samples=16)
    grid = torch.cartesian_prod(*[torch.linspace(-2, 2, 21, dtype=torch.float64)] * 2)
    assert float(value) >= float(improvement(grid[:, None]).max()) - 1e-6  # no grid point is better
    pair, _ = optimize_acqf(qUpperConfidenceBound(model, 4.0), bounds, 2, 2, 8)
    assert pair.shape == (2, 2)


def test_what_it_cannot_be_is_refused():
    two = DNN2GPRegressor(hidden_layer_sizes=(3,), **OPTIONS).fit(X, np.c_[Y, -Y])
    with pytest.raises(ValueError, match="must have one target, got one of 2"):
        BoTorchModel(two)
    options = {"hidden_layer_sizes": (3,), "prior_precision": 1.0, "random_state": 0}
    counts = DNN2GPRegressor(likelihood=Poisson(), **options)
    with pytest.raises(ValueError, match="y must be f and noise, got the likelihood Poisson"):
        BoTorchModel(counts.fit(X, np.round(np.exp(0.1 * Y))))


def test_without_botorch_it_says_what_to_install(monkeypatch):
    estimator = fitted("weights")
    monkeypatch.setitem(sys.modules, "botorch.posteriors.gpytorch", None)
    with pytest.raises(ImportError, match=r"pip install sk_dnn2gp\[botorch\]"):
        BoTorchModel(estimator)

"""Theorem 1 of Khan et al. 2019 against brute force: the three equal models."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.evidence import EvidenceSpectrum, log_marginal_likelihood
from sk_dnn2gp.likelihoods import Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import (
    DiagonalPosterior,
    FunctionSpacePosterior,
    WeightSpacePosterior,
    make_posterior,
)
from sk_dnn2gp.training import NewtonCG
from tests.cases import CASES, data, trained
from tests.reference import GaussianReference, jacobian, weights

# Matrices of condition up to 1e5 in double precision: 1e-8 leaves three digits of room.
RTOL = 1e-8


def close(a, b, rtol=RTOL):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.fixture(scope="module", params=CASES, ids=str)
def fitted(request):
    case = request.param
    module, X, y = trained(case)
    likelihood = Gaussian(case.sigma)
    model = LinearModel.from_laplace(Linearization(module), X, y, likelihood, case.delta)
    reference = GaussianReference(module, X, y, case.delta, case.sigma)
    X_new = data(case, seed=1)[0][:5]
    return case, model, reference, X_new


def test_training_reached_a_minimum(fitted):
    _, _, reference, _ = fitted
    assert float(reference.gradient().norm()) < 1e-8 * (1 + abs(reference.log_evidence_laplace()))


def test_models_a_b_and_c_are_one(fitted):
    """The package's A beside B and C, which brute force solves from targets and noise."""
    _, model, reference, X_new = fitted
    mean_C, covariance_C = reference.process_C(X_new)
    close(model.weights, reference.mean_B(), rtol=1e-7)
    close(model.linearization.jvp(X_new, model.weights).flatten(), mean_C, rtol=1e-7)
    close(make_posterior(model).joint_covariance(X_new), covariance_C)
    close(model.transformed_targets().flatten(), reference.targets)


@pytest.mark.parametrize("space", [WeightSpacePosterior, FunctionSpacePosterior])
def test_both_spaces_have_the_posterior_of_brute_force(fitted, space):
    case, model, reference, X_new = fitted
    posterior = space(model)
    expected = reference.covariance_A(X_new)
    close(posterior.joint_covariance(X_new), expected)
    blocks = expected.reshape(5, case.n_outputs, 5, case.n_outputs)
    blocks = torch.stack([blocks[i, :, i] for i in range(5)])
    close(posterior.covariance(X_new), blocks)
    K, P = len(reference.f), reference.P
    B = torch.eye(K) + reference.J @ reference.J.T / (case.delta * case.sigma**2)
    close(posterior.log_determinant, torch.linalg.slogdet(B)[1])
    close(posterior.effective_dimension, P - case.delta * torch.trace(reference.Sigma))
    v = torch.linspace(-1, 1, P, dtype=torch.float64)
    close(posterior.solve(v), reference.Sigma @ v)


def test_the_cheaper_space_is_taken(fitted):
    case, model, _, _ = fitted
    expected = WeightSpacePosterior if model.n_params <= model.n_rows else FunctionSpacePosterior
    assert type(make_posterior(model)) is expected
    sizes = [case.n_features, *case.hidden, case.n_outputs]
    n_params = sum((a + 1) * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))
    assert (model.n_params, model.n_rows) == (n_params, case.n_samples * case.n_outputs)


def test_the_cases_lie_on_both_sides():
    """Of P = NK, so that every test above takes either space in turn."""
    taken = {
        case.n_samples * case.n_outputs
        >= len(weights(MLP(case.n_features, case.hidden, case.n_outputs)))
        for case in CASES
    }
    assert taken == {True, False}


def test_diagonal_posterior_keeps_the_diagonal(fitted):
    case, model, reference, X_new = fitted
    posterior = DiagonalPosterior(model)
    a = (reference.J**2).sum(0) / case.sigma**2 + case.delta
    J = jacobian(reference.module, X_new)
    close(posterior.joint_covariance(X_new), J @ torch.diag(1 / a) @ J.T)
    close(posterior.log_determinant, (a / case.delta).log().sum())


def test_dual_equals_laplace_at_the_minimum(fitted):
    _, model, reference, _ = fitted
    posterior = make_posterior(model)
    close(log_marginal_likelihood(posterior, "laplace"), reference.log_evidence_laplace())
    close(log_marginal_likelihood(posterior, "dual"), reference.log_evidence_dual())
    dual, laplace = (log_marginal_likelihood(posterior, kind) for kind in ("dual", "laplace"))
    close(dual, laplace)


def test_dual_and_laplace_differ_away_from_the_minimum():
    module, X, y = trained(CASES[0])
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    case = CASES[0]
    model = LinearModel.from_laplace(Linearization(module), X, y, Gaussian(case.sigma), case.delta)
    reference = GaussianReference(module, X, y, case.delta, case.sigma)
    close(model.gradient, reference.gradient())
    for make in (WeightSpacePosterior, FunctionSpacePosterior):
        posterior = make(model)
        close(log_marginal_likelihood(posterior, "laplace"), reference.log_evidence_laplace())
        close(log_marginal_likelihood(posterior, "dual"), reference.log_evidence_dual())
        close(model.weights - posterior.solve(model.gradient), reference.mean_B())
    assert reference.log_evidence_dual() - reference.log_evidence_laplace() > 1


@pytest.mark.parametrize("kind", ["laplace", "dual"])
def test_spectrum_gives_every_hyperparameter(fitted, kind):
    """At other (δ, σ) and the same w*: the value by brute force, the gradient by differences."""
    case, model, reference, _ = fitted
    spectrum = EvidenceSpectrum.from_posterior(
        make_posterior(model), case.sigma, float(model.n_rows)
    )
    for delta, sigma in ((case.delta, case.sigma), (3.0 * case.delta, 0.7 * case.sigma)):
        other = GaussianReference(
            reference.module, reference.X, reference.y, delta=delta, sigma=sigma
        )
        expected = getattr(other, f"log_evidence_{kind}")()
        close(spectrum.log_marginal_likelihood(delta, sigma, kind), expected)
        eps = 1e-5

        def value(a, b, delta=delta, sigma=sigma):
            return spectrum.log_marginal_likelihood(delta * np.exp(a), sigma * np.exp(b), kind)

        differences = [
            (value(eps, 0) - value(-eps, 0)) / (2 * eps),
            (value(0, eps) - value(0, -eps)) / (2 * eps),
        ]
        # Central differences of step 1e-5: truncation and rounding each about 1e-8 of the value.
        close(spectrum.gradient(delta, sigma, kind), differences, rtol=1e-5)


def test_maximise_finds_a_stationary_point(fitted):
    case, model, _, _ = fitted
    spectrum = EvidenceSpectrum.from_posterior(
        make_posterior(model), case.sigma, float(model.n_rows)
    )
    delta, sigma = spectrum.maximise(case.delta, case.sigma)
    best = spectrum.log_marginal_likelihood(delta, sigma)
    for a, b in ((1.1, 1), (0.9, 1), (1, 1.1), (1, 0.9)):
        assert spectrum.log_marginal_likelihood(delta * a, sigma * b) <= best + 1e-9
    assert best >= spectrum.log_marginal_likelihood(case.delta, case.sigma)


@pytest.fixture(scope="module")
def regressor():
    rng = np.random.default_rng(3)
    X = rng.uniform(-3, 3, (40, 2))
    y = 5 + 3 * np.sin(X[:, 0]) + 0.3 * rng.standard_normal(40)
    model = DNN2GPRegressor(
        hidden_layer_sizes=(6,),
        prior_precision=0.5,
        noise_std=0.2,
        solver=NewtonCG(max_iter=2000, tol=1e-12),
        random_state=0,
    )
    return model.fit(X, y), X, y


def test_to_gaussian_process_is_the_same_process(regressor):
    model, X, _ = regressor
    X_new = X[:7] + 0.5
    gp = model.to_gaussian_process()
    mean, std = gp.predict(X_new, return_std=True)
    reference = GaussianReference(
        model.module_, torch.tensor(X), torch.tensor(model.transformed_targets_), 0.5, 0.2
    )
    Jw = (jacobian(model.module_, torch.tensor(X_new)) @ reference.w).numpy()
    np.testing.assert_allclose(mean, Jw * model.y_scale_ + model.y_mean_, rtol=1e-8)
    np.testing.assert_allclose(std, model.predict_std(X_new, target="latent"), rtol=1e-8)
    np.testing.assert_allclose(
        gp.log_marginal_likelihood_value_, model.log_marginal_likelihood(kind="dual"), rtol=1e-9
    )


def test_process_built_by_hand_from_kernel_and_targets(regressor):
    model, X, _ = regressor
    gp = GaussianProcessRegressor(model.kernel_, alpha=model.noise_std_**2, optimizer=None)
    gp.fit(X, model.transformed_targets_)
    X_new = X[:7] + 0.5
    std = gp.predict(X_new, return_std=True)[1]
    np.testing.assert_allclose(
        std * model.y_scale_, model.predict_std(X_new, target="latent"), rtol=1e-8
    )

"""Theorem 2: one step of VOGGN is the posterior of a linear model, and of its process.

Against matrices formed by hand from the formulas, in float64. Tolerance 1e-10 relative to the
largest entry: the systems are conditioned to about 1e4, so rounding reaches 1e-12.
"""

import pytest
import torch

from sk_dnn2gp.likelihoods import Bernoulli, Categorical, Gaussian
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.optim import OGGN, VOGGN
from tests.reference import jacobian, weights

LIKELIHOODS = {
    "gaussian": (Gaussian(0.4), 1),
    "gaussian2": (Gaussian(0.7), 2),
    "bernoulli": (Bernoulli(), 1),
    "categorical": (Categorical(), 3),
}
TOLERANCE = 1e-10


def problem(name, seed=0, n=9):
    likelihood, K = LIKELIHOODS[name]
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    if name == "categorical":
        y = torch.randint(K, (n,), generator=generator)
    elif name == "bernoulli":
        y = torch.randint(2, (n, 1), generator=generator).double()
    else:
        y = torch.randn(n, K, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLP(2, (4,), K)
    return net, X, y, likelihood


def closure_of(net, optimizer, X, y, likelihood):
    def closure():
        optimizer.zero_grad()
        loss = likelihood.negative_log_likelihood(net(X), y).mean()
        loss.backward()
        return loss

    return closure


def run(cls, name, rate, steps, batch=None, **options):
    """Some steps on the (mini)batch; what was before the last, and the optimiser after it."""
    net, X, y, likelihood = problem(name)
    n_data = len(X)
    X, y = X[:batch], y[:batch]
    optimizer = cls(
        net.parameters(), lr=rate, n_data=n_data, likelihood=likelihood, prior_precision=0.7,
        initial_precision=20.0, keep_iteration=True, **options,
    )  # fmt: skip
    closure = closure_of(net, optimizer, X, y, likelihood)
    for _ in range(steps - 1):
        optimizer.step(closure)
    before = optimizer.posterior()
    optimizer.step(closure)
    return net, X, y, likelihood, optimizer, before


def close(a, b):
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= TOLERANCE * float(b.abs().max())


def brute_force(net, X, y, likelihood, optimizer, before, rate):
    """Prior, data and posterior of theorem 2's linear model, written out from the formulas."""
    gp = optimizer.dual_gp()
    P, delta = len(before.mean), 0.7
    eye = torch.eye(P, dtype=torch.float64)
    V_inverse = (1 - rate) * before.precision + rate * delta * eye
    V = torch.linalg.inv(V_inverse)
    m = (1 - rate) * V @ before.precision @ before.mean
    M, A, b = len(gp.linearizations), V_inverse.clone(), V_inverse @ m
    for linearization in gp.linearizations:
        module = linearization.module
        J = jacobian(module, X)
        f = module(X).detach()
        Lambda = torch.block_diag(*likelihood.noise_precision(f))
        r = likelihood.residual(f, y).flatten()
        scale = rate * optimizer.n_data / len(X) / M
        A += scale * J.T @ Lambda @ J
        # Jᵀ Λ ỹ with ỹ = J μ - Λ⁻¹ r
        b += scale * (J.T @ Lambda @ J @ before.mean - J.T @ r)
    return torch.linalg.solve(A, b), A, m, V


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize(
    ("rate", "mc_samples", "batch"), [(0.3, 1, None), (0.05, 3, None), (1.0, 2, None), (0.5, 2, 4)]
)
def test_a_step_of_voggn_is_the_posterior_of_the_linear_model(name, rate, mc_samples, batch):
    found = run(VOGGN, name, rate, 3, batch, mc_samples=mc_samples, random_state=1)
    net, *_, optimizer, _ = found
    mean, A, m, V = brute_force(*found, rate)
    after = optimizer.posterior()
    close(after.precision, A)
    close(after.mean, mean)
    close(weights(net), mean)
    model = optimizer.dual_gp()
    close(model.prior_mean, m)
    close(torch.linalg.inv(model.prior_precision), V)
    close(model.posterior()[0], mean)
    close(model.posterior()[1], A)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_a_step_of_oggn_is_the_posterior_of_the_linear_model(name, rate):
    found = run(OGGN, name, rate, 2)
    mean, A, _, _ = brute_force(*found, rate)
    after = found[4].posterior()
    close(after.precision, A)
    close(after.mean, mean)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_process_predicts_what_the_linear_model_predicts(name):
    net, X, y, likelihood, optimizer, before = run(VOGGN, name, 0.3, 2, mc_samples=2)
    model = optimizer.dual_gp()
    X_new = torch.linspace(-3, 3, 10, dtype=torch.float64).view(5, 2)
    mean, A = model.posterior()
    J = torch.cat([jacobian(lin.module, X_new) for lin in model.linearizations])
    found_mean, found_covariance = model.predict(X_new)
    close(found_mean, J @ mean)
    close(found_covariance, J @ torch.linalg.solve(A, J.T))
    prior_mean, prior_covariance = model.prior_process(X_new)
    close(prior_mean, J @ model.prior_mean)
    close(prior_covariance, J @ torch.linalg.inv(model.prior_precision) @ J.T)


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "gaussian2"])
def test_the_process_is_gaussian_regression_on_the_transformed_targets(name):
    """Where Λ has an inverse: textbook formulas with ỹ and the noise (βΛ/M)⁻¹."""
    net, X, y, likelihood, optimizer, before = run(VOGGN, name, 0.4, 2, mc_samples=2)
    model = optimizer.dual_gp()
    J, targets = model.jacobian, model.transformed_targets().flatten()
    noise = torch.block_diag(*torch.linalg.inv(model.noise_precision()).flatten(0, 1))
    V = torch.linalg.inv(model.prior_precision)
    K = J @ V @ J.T
    prior = J @ model.prior_mean
    mean = prior + K @ torch.linalg.solve(K + noise, targets - prior)
    covariance = K - K @ torch.linalg.solve(K + noise, K)
    found_mean, found_covariance = model.predict(X)
    # The textbook form cancels: K against noise spans 1e4 here.
    assert float((found_mean - mean).abs().max()) <= 1e-8 * float(mean.abs().max())
    assert float((found_covariance - covariance).abs().max()) <= 1e-8 * float(K.abs().max())


def test_oggn_lands_on_the_minimum_of_a_quadratic_loss_in_one_step():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    net = torch.nn.Linear(3, 1, dtype=torch.float64)
    likelihood = Gaussian(0.5)
    optimizer = OGGN(
        net.parameters(), lr=1.0, n_data=20, likelihood=likelihood, prior_precision=2.0
    )
    optimizer.step(closure_of(net, optimizer, X, y, likelihood))
    A = torch.cat([X, torch.ones(20, 1, dtype=torch.float64)], 1)
    exact = torch.linalg.solve(
        A.T @ A / 0.25 + 2.0 * torch.eye(4, dtype=torch.float64), A.T @ y / 0.25
    )
    close(weights(net)[:, None], exact)


def test_a_process_needs_a_kept_iteration():
    net, X, y, likelihood = problem("gaussian")
    optimizer = VOGGN(net.parameters(), n_data=9, likelihood=likelihood)
    optimizer.step(closure_of(net, optimizer, X, y, likelihood))
    with pytest.raises(RuntimeError, match="keep_iteration=True"):
        optimizer.dual_gp()

"""NNGPRegressor against the exact process: equal with all samples, else inside its bounds."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_dnn2gp import InfiniteNTKKernel, NNGPKernel, NNGPRegressor

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(60, 3)), 1.5 * RNG.normal(size=(25, 3))
Y = np.sin(X.sum(1)) + 0.2 * RNG.normal(size=60)
KERNELS = {"nngp": NNGPKernel(2), "ntk": InfiniteNTKKernel(1), "rbf": RBF(1.5)}


@parametrize_with_checks([NNGPRegressor(n_components=20)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def exact(kernel, sigma):
    return GaussianProcessRegressor(kernel, alpha=sigma**2, optimizer=None).fit(X, Y)


@pytest.mark.parametrize("name", KERNELS)
def test_with_all_samples_it_is_the_exact_process(name):
    model = NNGPRegressor(KERNELS[name], noise_std=0.3, n_components=60).fit(X, Y)
    gp = exact(KERNELS[name], 0.3)
    # Features of close samples differ by √rounding: 1e-8 of the kernel's size.
    for option in ("return_std", "return_cov"):
        found, want = (m.predict(NEW, **{option: True}) for m in (model, gp))
        for one, other in zip(found, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    value = gp.log_marginal_likelihood_value_
    assert model.log_marginal_likelihood() == pytest.approx(value, rel=1e-6)
    draws = model.sample_y(NEW, 20_000, random_state=1)
    mean, cov = gp.predict(NEW, return_cov=True)
    sizes = np.sqrt(cov.diagonal())
    assert np.abs(draws.mean(1) - mean).max() < 5 * sizes.max() / np.sqrt(20_000)
    # A sample covariance of S draws errs by at most √(2/S) of the sizes: 0.01.
    assert np.abs(np.cov(draws) - cov).max() < 5 * 0.01 * sizes.max() ** 2


@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize("name", KERNELS)
def test_the_exact_process_is_inside_the_bounds_which_narrow(name, sigma):
    gp, widths = exact(KERNELS[name], sigma), []
    variance = gp.predict(NEW, return_std=True)[1] ** 2
    for m in (5, 15, 30, 50):
        model = NNGPRegressor(KERNELS[name], noise_std=sigma, n_components=m, random_state=0)
        low, high = model.fit(X, Y).variance_bounds(NEW)
        slack = 1e-9 * KERNELS[name].diag(NEW)
        assert (low - slack <= variance).all() and (variance <= high + slack).all()
        lower, upper = model.log_marginal_likelihood_bounds_
        value = gp.log_marginal_likelihood_value_
        assert lower <= value + 1e-9 * abs(value) and value <= upper + 1e-9 * abs(value)
        assert lower <= model.log_marginal_likelihood_value_ <= upper
        widths.append([model.error_bound_, upper - lower, float((high - low).max())])
    # The draws of one random_state are nested.
    assert (np.diff(widths, axis=0) < 0).all()


def test_bounds_and_predictions_by_dense_matrices():
    """The process with K replaced by ΦΦᵀ among training samples, and the bounds' own formulas."""
    kernel, sigma = NNGPKernel(2), 0.3
    model = NNGPRegressor(kernel, noise_std=sigma, n_components=12, random_state=0).fit(X, Y)
    Phi, phi = model.features_.transform(X), model.features_.transform(NEW)
    K, cross, n = kernel(X), kernel(NEW, X), len(X)
    eta = np.trace(K - Phi @ Phi.T)
    assert model.error_bound_ == pytest.approx(eta / sigma**2, rel=1e-8)
    A = Phi @ Phi.T + sigma**2 * np.eye(n)
    more = A + eta * np.eye(n)
    mean, cov = model.predict(NEW, return_cov=True)
    half = phi @ Phi.T
    np.testing.assert_allclose(mean, half @ np.linalg.solve(A, Y), atol=1e-9)
    expected = kernel(NEW) - half @ np.linalg.solve(A, half.T)
    np.testing.assert_allclose(cov, expected, atol=1e-8)
    for found, matrix in zip(model.variance_bounds(NEW), (A, more), strict=True):
        known = np.einsum("ij,ji->i", cross, np.linalg.solve(matrix, cross.T))
        np.testing.assert_allclose(found, (kernel.diag(NEW) - known).clip(0), atol=1e-8)
    log_det = np.linalg.slogdet(A)[1] + n * np.log(2 * np.pi)
    lower = -0.5 * (Y @ np.linalg.solve(A, Y) + log_det + eta / sigma**2)
    upper = -0.5 * (Y @ np.linalg.solve(more, Y) + log_det)
    np.testing.assert_allclose(model.log_marginal_likelihood_bounds_, [lower, upper], rtol=1e-9)


@pytest.mark.parametrize("bad", [{"noise_std": 0.0}, {"noise_std": "a"}, {"n_components": 0}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        NNGPRegressor(**bad).fit(X, Y)
    with pytest.raises(RuntimeError, match="At most one"):
        NNGPRegressor().fit(X, Y).predict(X, return_std=True, return_cov=True)

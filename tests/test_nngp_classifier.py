"""NNGPClassifier against GaussianProcessRegressor on the same targets; scikit-learn's checks."""

import numpy as np
import pytest
import torch
from numpy.linalg import LinAlgError
from scipy.special import softmax
from sklearn.datasets import load_digits, load_iris
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_dnn2gp import NNGPClassifier
from sk_dnn2gp._utils.linalg import CholeskyJitterWarning
from sk_dnn2gp.estimators.categorical_laplace import latent
from sk_dnn2gp.kernels import ConvNetKernel, NNGPKernel


@pytest.mark.filterwarnings("ignore::sk_dnn2gp._utils.linalg.CholeskyJitterWarning")
@parametrize_with_checks([NNGPClassifier(), NNGPClassifier(likelihood="categorical")])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def _iris():
    X, y = load_iris(return_X_y=True)
    return X - X.mean(0), y


@pytest.mark.parametrize("kernel", [NNGPKernel(2), RBF(1.5)], ids=str)
def test_equals_regression_on_centred_labels(kernel):
    X, y = _iris()
    ours = NNGPClassifier(kernel, noise_std=0.1).fit(X[::2], y[::2])
    gp = GaussianProcessRegressor(kernel, alpha=0.01, optimizer=None)
    gp.fit(X[::2], np.eye(3)[y[::2]] - 1 / 3)
    mean, std = gp.predict(X, return_std=True)
    np.testing.assert_allclose(ours.decision_function(X), mean, atol=1e-9)
    np.testing.assert_allclose(ours.predict_std(X), std[:, 0], atol=1e-9)
    np.testing.assert_allclose(ours.predict_std(X, "y") ** 2, std[:, 0] ** 2 + 0.01, atol=1e-9)
    labels, again = ours.predict(X, return_std=True)
    np.testing.assert_array_equal(labels, mean.argmax(1))
    np.testing.assert_array_equal(again, ours.predict_std(X))
    assert ours.log_marginal_likelihood() == pytest.approx(gp.log_marginal_likelihood_value_)
    value, gradient = ours.log_marginal_likelihood(kernel.theta + 0.1, eval_gradient=True)
    want, slope = gp.log_marginal_likelihood(kernel.theta + 0.1, eval_gradient=True)
    np.testing.assert_allclose(value, want, rtol=1e-10)
    np.testing.assert_allclose(gradient, slope, rtol=1e-7)


def test_optimiser_raises_the_evidence():
    X, y = _iris()
    fixed = NNGPClassifier(NNGPKernel(2), noise_std=0.2).fit(X, y)
    free = NNGPClassifier(NNGPKernel(2), noise_std=0.2, optimizer="fmin_l_bfgs_b").fit(X, y)
    assert free.log_marginal_likelihood() > fixed.log_marginal_likelihood() + 1
    _, gradient = free.log_marginal_likelihood(free.kernel_.theta, eval_gradient=True)
    assert np.abs(gradient).max() < 1e-2
    assert fixed.kernel_ == NNGPKernel(2)


def test_memory_limit_changes_nothing():
    X, y = _iris()
    a, b = (NNGPClassifier(noise_std=0.1, memory_limit=m).fit(X, y) for m in (None, 0.01))
    np.testing.assert_allclose(a.decision_function(X), b.decision_function(X), atol=1e-12)


def test_growing_jitter_is_reported_and_bounded():
    X, y = _iris()
    X[1] = X[0]  # a repeated sample
    with pytest.warns(CholeskyJitterWarning, match="jitter"):
        NNGPClassifier(noise_std=0.0).fit(X, y)
    with pytest.raises(LinAlgError, match="noise_std"):
        NNGPClassifier(_Indefinite()).fit(X, y)


class _Indefinite(RBF):
    def __call__(self, X, Y=None, eval_gradient=False):
        return -super().__call__(X, Y)


def test_digits_and_grid_search():
    """Dense, and convolutional on images of 8 × 8, from 200 digits."""
    X, y = load_digits(return_X_y=True)
    X = X / 16 - (X / 16).mean()
    grid = {"kernel__depth": [1, 3], "noise_std": [1e-5, 0.1]}
    search = GridSearchCV(NNGPClassifier(NNGPKernel()), grid, cv=3).fit(X[:200], y[:200])
    conv = NNGPClassifier(ConvNetKernel(3, image_shape=(1, 8, 8))).fit(X[:200], y[:200])
    dense_score, conv_score = search.score(X[200:], y[200:]), conv.score(X[200:], y[200:])
    linear = LogisticRegression(max_iter=500).fit(X[:200], y[:200]).score(X[200:], y[200:])
    assert conv_score > dense_score > linear


@pytest.mark.parametrize(
    "bad",
    [{"noise_std": -1.0}, {"noise_std": "a"}, {"optimizer": "adam"}, {"likelihood": "poisson"}],
)
def test_bad_parameters(bad):
    X, y = _iris()
    with pytest.raises(ValueError, match=next(iter(bad))):
        NNGPClassifier(**bad).fit(X, y)


def _dense_mode(K, Y):
    """Newton on all C n values at once, with dense W: f, W, log p(y | f)."""
    n, C = Y.shape
    prior, f = np.kron(np.eye(C), K), np.zeros(n * C)
    for _ in range(50):
        p = softmax(f.reshape(C, n), axis=0)
        W = np.diag(p.ravel())
        for c, d in np.ndindex(C, C):
            W[c * n : (c + 1) * n, d * n : (d + 1) * n] -= np.diag(p[c] * p[d])
        b = W @ f + (Y.T - p).ravel()
        f = prior @ np.linalg.solve(np.eye(n * C) + W @ prior, b)
    likelihood = (Y.T * np.log(p)).sum()
    return f, W, prior, likelihood


def test_categorical_equals_dense_laplace():
    """Mode, evidence, and latent moments against (C n)² matrices."""
    X, y = _iris()
    X, y, new = X[::10], y[::10], X[5::30]
    kernel, Y = RBF(1.5), np.eye(3)[y]
    model = NNGPClassifier(kernel, likelihood="categorical").fit(X, y)
    f, W, prior, likelihood = _dense_mode(kernel(X), Y)
    B = np.eye(len(f)) + W @ prior
    fit = f @ np.linalg.lstsq(prior, f, rcond=1e-13)[0]
    want = likelihood - 0.5 * fit - 0.5 * np.linalg.slogdet(B)[1]
    np.testing.assert_allclose(model.log_marginal_likelihood(), want, rtol=1e-7)
    np.testing.assert_allclose(model.dual_coef_, Y - softmax(f.reshape(3, -1), axis=0).T, atol=1e-7)
    cross = np.kron(np.eye(3), kernel(new, X))
    V = np.kron(np.eye(3), kernel(new)) - cross @ np.linalg.solve(B, W) @ cross.T
    K = torch.tensor(kernel(new, X))
    mean, found = latent(model._mode, K, torch.ones(len(new), dtype=torch.float64))
    np.testing.assert_allclose(mean.numpy(), K.numpy() @ model.dual_coef_)
    for i in range(len(new)):
        rows = i + len(new) * np.arange(3)
        np.testing.assert_allclose(found[i], V[np.ix_(rows, rows)], atol=1e-7)


def test_two_classes_equal_scikit_learns_laplace():
    """The difference of two functions has twice the kernel; their sum is not seen."""
    X, y = _iris()
    X, y = X[50::3], y[50::3]
    model = NNGPClassifier(NNGPKernel(2), likelihood="categorical").fit(X, y)
    gpc = GaussianProcessClassifier(ConstantKernel(2.0) * NNGPKernel(2), optimizer=None).fit(X, y)
    np.testing.assert_allclose(
        model.log_marginal_likelihood(), gpc.log_marginal_likelihood_value_, rtol=1e-8
    )
    # Their links differ: probit against five error functions, by up to 0.02.
    np.testing.assert_allclose(model.predict_proba(X), gpc.predict_proba(X), atol=0.02)
    np.testing.assert_array_equal(model.predict(X), gpc.predict(X))


def test_probabilities_of_digits():
    """Far better than labels made probabilities by a softmax."""
    X, y = load_digits(return_X_y=True)
    X = X / 16 - (X / 16).mean()
    kernel = ConstantKernel(100.0) * NNGPKernel(3)  # functions large enough for sure classes
    model = NNGPClassifier(kernel, likelihood="categorical").fit(X[:300], y[:300])
    p = model.predict_proba(X[300:800])
    assert model.n_iter_ < 20 and model.score(X[300:800], y[300:800]) > 0.8
    labels = NNGPClassifier(NNGPKernel(3)).fit(X[:300], y[:300])
    of_labels = softmax(labels.decision_function(X[300:800]), axis=1)
    assert log_loss(y[300:800], p) < 0.6 * log_loss(y[300:800], of_labels)
    assert not hasattr(labels, "predict_proba")


def test_categorical_refusals():
    X, y = _iris()
    model = NNGPClassifier(likelihood="categorical").fit(X, y)
    with pytest.raises(ValueError, match="predict_proba"):
        model.predict_std(X)
    with pytest.raises(ValueError, match="theta"):
        model.log_marginal_likelihood(model.kernel_.theta)
    with pytest.raises(ValueError, match="optimizer"):
        NNGPClassifier(likelihood="categorical", optimizer="fmin_l_bfgs_b").fit(X, y)
    with pytest.raises(MemoryError, match="factors"):
        NNGPClassifier(likelihood="categorical", memory_limit=0.1).fit(X, y)


def test_bad_requests():
    X, y = _iris()
    model = NNGPClassifier(noise_std=0.1).fit(X, y)
    with pytest.raises(ValueError, match="target"):
        model.predict_std(X, target="f")
    with pytest.raises(ValueError, match="theta"):
        model.log_marginal_likelihood(eval_gradient=True)
    with pytest.raises(ValueError, match="two classes"):
        NNGPClassifier().fit(X, np.zeros(len(X)))

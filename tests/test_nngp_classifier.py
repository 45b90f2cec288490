"""NNGPClassifier against GaussianProcessRegressor on the same targets; scikit-learn's checks."""

import numpy as np
import pytest
from numpy.linalg import LinAlgError
from sklearn.datasets import load_digits, load_iris
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_dnn2gp import NNGPClassifier
from sk_dnn2gp._utils.linalg import CholeskyJitterWarning
from sk_dnn2gp.kernels import ConvNetKernel, NNGPKernel


@pytest.mark.filterwarnings("ignore::sk_dnn2gp._utils.linalg.CholeskyJitterWarning")
@parametrize_with_checks([NNGPClassifier()])
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


@pytest.mark.parametrize("bad", [{"noise_std": -1.0}, {"noise_std": "a"}, {"optimizer": "adam"}])
def test_bad_parameters(bad):
    X, y = _iris()
    with pytest.raises(ValueError, match=next(iter(bad))):
        NNGPClassifier(**bad).fit(X, y)


def test_bad_requests():
    X, y = _iris()
    model = NNGPClassifier(noise_std=0.1).fit(X, y)
    with pytest.raises(ValueError, match="target"):
        model.predict_std(X, target="f")
    with pytest.raises(ValueError, match="theta"):
        model.log_marginal_likelihood(eval_gradient=True)
    with pytest.raises(ValueError, match="two classes"):
        NNGPClassifier().fit(X, np.zeros(len(X)))

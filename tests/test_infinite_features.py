"""NNGPFeatures against scikit-learn's Nystroem, dense projections and the kernel itself."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_dnn2gp.kernels import ConvNetKernel, InfiniteNTKKernel, NNGPFeatures, NNGPKernel


@parametrize_with_checks([NNGPFeatures(n_components=5)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def _X(n=40, d=3):
    return np.random.RandomState(0).randn(n, d)


def test_equals_scikit_learns_nystroem():
    X = _X()
    ours = NNGPFeatures(RBF(1.3), n_components=12, random_state=3).fit(X)
    theirs = Nystroem(gamma=0.5 / 1.3**2, n_components=12, random_state=3).fit(X)
    np.testing.assert_array_equal(ours.component_indices_, theirs.component_indices_)
    Z, Z2 = ours.transform(X), theirs.transform(X)
    np.testing.assert_allclose(Z @ Z.T, Z2 @ Z2.T, atol=1e-9)  # condition 1e4, rounding above it


@pytest.mark.parametrize("kernel", [NNGPKernel(2), InfiniteNTKKernel(1), ConvNetKernel(
    1, image_shape=(1, 2, 2))], ids=["nngp", "ntk", "conv"])  # fmt: skip
def test_projection_and_its_certificate(kernel):
    X = _X(d=4)
    features = NNGPFeatures(kernel, n_components=10, random_state=0, memory_limit=1e-3).fit(X)
    K, i = kernel(X), features.component_indices_
    want = K[:, i] @ np.linalg.solve(K[np.ix_(i, i)], K[i])
    Z = features.transform(X)
    np.testing.assert_allclose(Z @ Z.T, want, atol=1e-9 * K.max())
    lacking = np.linalg.eigvalsh(K - Z @ Z.T)
    assert lacking.min() > -1e-9 * K.max()
    np.testing.assert_allclose(features.relative_error_, lacking.sum() / np.trace(K), rtol=1e-6)
    whole = NNGPFeatures(kernel, n_components=len(X)).fit(X)
    # Between two sets the angle of a sample with itself is known to √rounding, 1e-8: it enters Θ.
    Z = whole.transform(X)
    np.testing.assert_allclose(Z @ Z.T, K, rtol=1e-9, atol=3e-8 * K.max())
    assert 0 <= whole.relative_error_ < 3e-8 < features.relative_error_


def test_ridge_behind_it_is_the_gaussian_process():
    X, Y = _X(), _X(7) + 0.1
    y = np.sin(X.sum(1))
    model = make_pipeline(NNGPFeatures(n_components=40), Ridge(0.1, fit_intercept=False)).fit(X, y)
    gp = GaussianProcessRegressor(NNGPKernel(), alpha=0.1, optimizer=None).fit(X, y)
    np.testing.assert_allclose(model.predict(Y), gp.predict(Y), rtol=1e-7)
    assert list(model[:-1].get_feature_names_out()[:2]) == ["nngpfeatures0", "nngpfeatures1"]


@pytest.mark.parametrize("bad", [0, 2.5, True])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match="n_components"):
        NNGPFeatures(n_components=bad).fit(_X())

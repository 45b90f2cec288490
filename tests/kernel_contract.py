"""What every scikit-learn kernel here must honour: one check, called by each kernel's tests.

``check_kernel(kernel, X, Y)`` runs the protocol of ``sklearn.gaussian_process.kernels.Kernel``:
values, diagonal, gradients in theta against central differences, cloning, composition, equality,
pickling, and the estimators that take a kernel.
"""

from __future__ import annotations

import pickle

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    Exponentiation,
    Kernel,
    WhiteKernel,
)
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC

# A central difference of step 1e-5 in theta errs by 1e-10 relative and rounds at 1e-11.
_STEP, _GRADIENT_TOLERANCE = 1e-5, 1e-6


def check_kernel(kernel: Kernel, X: NDArray, Y: NDArray) -> None:
    """Assert the whole contract; X (n, d) with n even and Y (m, d) are float64 arrays."""
    _check_values(kernel, X, Y)
    _check_theta(kernel, X)
    _check_copies(kernel, X)
    for composed in (
        kernel + WhiteKernel(0.5),
        ConstantKernel(2.0) * kernel,
        Exponentiation(kernel, 2.0),
        0.5 * kernel + WhiteKernel(0.1),
    ):
        _check_values(composed, X, Y)
        _check_theta(composed, X)
        _check_copies(composed, X)
    _check_estimators(kernel, X, Y)


def _check_values(kernel: Kernel, X: NDArray, Y: NDArray) -> None:
    K = kernel(X)
    scale = np.abs(K).max()
    assert K.shape == (len(X), len(X)) and K.dtype == np.float64
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_allclose(kernel.diag(X), np.diag(K), rtol=1e-10, atol=1e-12 * scale)
    assert np.linalg.eigvalsh(K).min() > -1e-10 * scale * len(X)
    assert kernel(X, Y).shape == (len(X), len(Y))
    np.testing.assert_allclose(kernel(X, Y).T, kernel(Y, X), rtol=1e-10, atol=1e-12 * scale)
    before = K.copy()
    K += 1.0  # what GaussianProcessRegressor does with alpha
    np.testing.assert_array_equal(kernel(X), before)


def _check_theta(kernel: Kernel, X: NDArray) -> None:
    theta = kernel.theta
    assert theta.shape == (kernel.n_dims,) and kernel.bounds.size == 2 * kernel.n_dims
    K, gradient = kernel(X, eval_gradient=True)
    assert gradient.shape == (len(X), len(X), kernel.n_dims)
    for d in range(kernel.n_dims):
        ends = []
        for sign in (1.0, -1.0):
            moved = theta.copy()
            moved[d] += sign * _STEP
            ends.append(kernel.clone_with_theta(moved)(X))
        difference = (ends[0] - ends[1]) / (2 * _STEP)
        np.testing.assert_allclose(
            gradient[:, :, d], difference, rtol=0, atol=_GRADIENT_TOLERANCE * np.abs(K).max()
        )
    assert np.array_equal(kernel.theta, theta)


def _check_copies(kernel: Kernel, X: NDArray) -> None:
    twin = clone(kernel)
    assert twin is not kernel and twin == kernel
    np.testing.assert_array_equal(twin(X), kernel(X))
    loaded = pickle.loads(pickle.dumps(kernel))
    assert loaded == kernel
    np.testing.assert_allclose(loaded(X), kernel(X), rtol=1e-12)
    if kernel.n_dims:
        moved = kernel.clone_with_theta(kernel.theta + 0.3)
        assert moved != kernel and np.allclose(moved.theta, kernel.theta + 0.3)
    assert clone(kernel).set_params(**kernel.get_params(deep=False)) == kernel


def _check_estimators(kernel: Kernel, X: NDArray, Y: NDArray) -> None:
    y = np.sin(X.sum(1))
    labels = (y > np.median(y)).astype(int)
    gp = GaussianProcessRegressor(
        kernel + WhiteKernel(0.1, "fixed"), n_restarts_optimizer=1, random_state=0, normalize_y=True
    ).fit(X, y)
    mean, std = gp.predict(Y, return_std=True)
    assert mean.shape == std.shape == (len(Y),) and np.isfinite(mean).all() and (std > 0).all()
    K, K_ = kernel(X), kernel(Y, X)
    for estimator, fit_y in ((KernelRidge(), y), (SVC(), labels)):
        ours = clone(estimator).set_params(kernel=kernel).fit(X, fit_y).predict(Y)
        theirs = clone(estimator).set_params(kernel="precomputed").fit(K, fit_y).predict(K_)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    ours = KernelPCA(2, kernel=kernel).fit_transform(X)
    theirs = KernelPCA(2, kernel="precomputed").fit_transform(K)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-6 * np.abs(theirs).max())
    positive = Exponentiation(kernel, 2.0)  # affinities must not be negative
    clusters = SpectralClustering(2, affinity=positive, random_state=0).fit_predict(X)
    precomputed = SpectralClustering(2, affinity="precomputed", random_state=0)
    np.testing.assert_array_equal(clusters, precomputed.fit_predict(positive(X)))
    classifier = GaussianProcessClassifier(kernel, optimizer=None).fit(X, labels)
    assert classifier.predict_proba(Y).shape == (len(Y), 2)

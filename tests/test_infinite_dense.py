"""Infinite dense kernels against quadrature, finite differences and their contract (MATH 7)."""

import numpy as np
import pytest

from sk_dnn2gp.kernels import InfiniteNTKKernel, NNGPKernel
from sk_dnn2gp.kernels.activations import _SERIES, Hermite, dual_activation

from .kernel_contract import check_kernel

SMOOTH = ["linear", "erf", "sin", "cos", "tanh", "sigmoid", "gelu", "swish"]
ALL = ["relu", "leaky_relu", *SMOOTH]
CLASSES = [NNGPKernel, InfiniteNTKKernel]


def _X(n=6, d=3):
    return np.random.RandomState(0).randn(n, d)


def _arrays():
    k11, k22 = np.array([[0.7], [1.3]]), np.array([[0.9, 2.0]])
    return 0.6 * np.sqrt(k11 * k22), k11, k22


@pytest.mark.parametrize("name", SMOOTH)
def test_dual_equals_product_quadrature(name):
    """Independent of the series: a tensor rule in two dimensions."""
    from scipy.special import erf

    phi = {"linear": lambda x: x, "erf": erf, "sin": np.sin, "cos": np.cos, **_SERIES}[name]
    z, w = np.polynomial.hermite_e.hermegauss(160)
    w = w / w.sum()
    k12, k11, k22 = _arrays()
    F = dual_activation(name).value(k12, k11, k22)[0]
    for i, j in np.ndindex(F.shape):
        u = np.sqrt(k11[i, 0]) * z[:, None]
        c = k12[i, j] / np.sqrt(k11[i, 0] * k22[0, j])
        v = np.sqrt(k22[0, j]) * (c * z[:, None] + np.sqrt(1 - c**2) * z)
        np.testing.assert_allclose(F[i, j], w @ (phi(u) * phi(v)) @ w, atol=1e-10)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_relu_equals_quadrature_in_the_angle(slope):
    """In polar coordinates the integrand is smooth between kinks: Gauss-Legendre per piece."""
    c, dual = 0.6, dual_activation("leaky_relu", slope=slope)
    theta = np.arccos(c)
    phi = lambda x: np.maximum(x, slope * x)  # noqa: E731
    cuts = np.sort(np.mod([np.pi / 2, -np.pi / 2, theta + np.pi / 2, theta - np.pi / 2], 2 * np.pi))
    cuts = np.append(cuts, cuts[0] + 2 * np.pi)
    z, w = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        t = (b - a) / 2 * z + (a + b) / 2
        total += (b - a) / 2 * w @ (phi(np.cos(t)) * phi(np.cos(t - theta)))
    F = dual.value(np.array([[c]]), np.ones((1, 1)), np.ones((1, 1)))[0]
    np.testing.assert_allclose(F[0, 0], total / np.pi, rtol=1e-12)  # E[r²] = 2, over 2π


def test_stated_error_of_the_series():
    k = np.array([[4.0]])
    got = Hermite(np.tanh, 120).value(0.99 * k, k, k)
    far = Hermite(np.tanh, 160).value(0.99 * k, k, k)
    assert abs(got[0] - far[0]).max() < 1e-7 and abs(got[1] - far[1]).max() < 1e-6


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cls", CLASSES)
def test_gradient_against_finite_differences(cls, name):
    kernel = cls(3, activation=name, sigma_w2=1.4, sigma_b2=0.3)
    X, h = _X(), 1e-5
    X = X / 3 if name == "tanh" else X  # the series' own error, 2e-6, shows at larger k
    K, G = kernel(X, eval_gradient=True)
    for j in range(2):
        e = h * np.eye(2)[j]
        up, down = (kernel.clone_with_theta(kernel.theta + s * e)(X) for s in (1, -1))
        np.testing.assert_allclose(G[..., j], (up - down) / (2 * h), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cls", CLASSES)
def test_blocks_diagonal_and_symmetry(cls, name):
    X = _X(9)
    kernel, small = cls(2, activation=name), cls(2, activation=name, memory_limit=0.001)
    K = kernel(X)
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_allclose(K, small(X), rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(K.diagonal(), kernel.diag(X))
    np.testing.assert_allclose(K[:4, 4:], kernel(X[:4], X[4:]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cls", CLASSES)
def test_zero_rows_are_finite(cls, name):
    X = _X()
    X[2] = 0
    kernel = cls(3, activation=name, sigma_b2=0.0, sigma_b2_bounds="fixed")
    K, G = kernel(X, eval_gradient=True)
    assert np.isfinite(K).all() and np.isfinite(G).all() and G.shape == (6, 6, 1)


def test_huge_inputs():
    K = NNGPKernel(2)(1e120 * _X())
    assert np.isfinite(K).all()
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ValueError, match="overflow"):
        NNGPKernel(2)(1e200 * _X())


BAD = [{"sigma_w2": -1}, {"sigma_b2": -1}, {"activation": "nope"}, {"depth": -1}]


@pytest.mark.parametrize("bad", [*BAD, {"activation": lambda x: x - x.mean()}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        NNGPKernel(**bad)(_X())


@pytest.mark.parametrize("name", ["relu", "erf", "tanh"])
@pytest.mark.parametrize("cls", CLASSES)
def test_contract(cls, name):
    size = 1 / 3 if name == "tanh" else 1.0  # the series' own error shows at larger k
    kernel = cls(2, activation=name, sigma_w2=1.5)
    check_kernel(kernel, size * _X(8), size * (_X(5) + 1))

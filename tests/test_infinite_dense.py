"""Infinite dense kernels against quadrature, finite differences, and their contract."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf, ndtr
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel

from sk_dnn2gp.kernels import InfiniteNTKKernel, NNGPKernel, NTKKernel
from sk_dnn2gp.kernels.infinite.activations import _SERIES, Hermite, dual_activation

from .kernel_contract import check_kernel

SMOOTH = ["linear", "erf", "sin", "cos", "tanh", "sigmoid", "gelu", "swish"]
ALL = ["relu", "leaky_relu", *SMOOTH]
CLASSES = [NNGPKernel, InfiniteNTKKernel]
PHI = {"linear": lambda x: x, "erf": erf, "sin": np.sin, "cos": np.cos, **_SERIES}
PHI["gelu"] = lambda x: x * ndtr(x)


def _X(n=6, d=3):
    return np.random.RandomState(0).randn(n, d)


def _sides(dual, k11, k22):
    return tuple(dual.side(torch.tensor(k)).at(v) for k, v in ((k11, _column), (k22, _row)))


def _column(t):
    return t[..., :, None]


def _row(t):
    return t[..., None, :]


def _quadrature(phi, k12, k1, k2):
    """E[φ(u)φ(v)] by a trapezoidal rule in two dimensions, to rounding for these φ and k."""
    z = np.linspace(-10, 10, 401)
    w = np.exp(-(z**2) / 2) * (z[1] - z[0]) / np.sqrt(2 * np.pi)
    c = k12 / np.sqrt(k1 * k2)
    v = np.sqrt(k2) * (c * z[:, None] + np.sqrt(1 - c**2) * z)
    return w @ (phi(np.sqrt(k1) * z[:, None]) * phi(v)) @ w


@pytest.mark.parametrize("c", [-0.8, 0.6, 0.95])
@pytest.mark.parametrize("name", SMOOTH)
def test_dual_equals_product_quadrature(name, c):
    """Independent of series and closed forms; k up to 4, and to 1e-10."""
    k11, k22 = np.array([0.7, 1.3, 4.0]), np.array([0.9, 4.0])
    k12 = c * np.sqrt(np.outer(k11, k22))
    dual = dual_activation(name)
    F = dual.value(torch.tensor(k12), *_sides(dual, k11, k22))
    for i, j in np.ndindex(k12.shape):
        want = _quadrature(PHI[name], k12[i, j], k11[i], k22[j])
        np.testing.assert_allclose(F[i, j].item(), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["erf", "tanh", "gelu", "swish", "sin"])
def test_derivative_equals_quadrature_of_slopes(name):
    """D = E[φ'φ'], with φ' by complex-free differences of fourth order (1e-11)."""
    dual, h = dual_activation(name), 1e-3
    phi = PHI[name]

    def slope(x):
        return (8 * (phi(x + h) - phi(x - h)) - phi(x + 2 * h) + phi(x - 2 * h)) / (12 * h)

    k = np.array([2.0])
    _, D = dual.pair(torch.tensor([[1.7]], dtype=torch.float64), *_sides(dual, k, k))
    np.testing.assert_allclose(D.item(), _quadrature(slope, 1.7, 2.0, 2.0), rtol=1e-10)


@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("c", [0.6, -0.6, 1 - 1e-9])
def test_relu_equals_quadrature_in_the_angle(slope, c):
    """In polar coordinates the integrand is smooth between kinks: Gauss-Legendre per piece."""
    dual = dual_activation("leaky_relu", slope=slope)
    theta = np.arccos(c)
    phi = lambda x: np.maximum(x, slope * x)  # noqa: E731
    cuts = np.sort(np.mod([np.pi / 2, -np.pi / 2, theta + np.pi / 2, theta - np.pi / 2], 2 * np.pi))
    cuts = np.append(cuts, cuts[0] + 2 * np.pi)
    z, w = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        t = (b - a) / 2 * z + (a + b) / 2
        total += (b - a) / 2 * w @ (phi(np.cos(t)) * phi(np.cos(t - theta)))
    one = np.ones(1)
    F = dual.value(torch.tensor([[c]], dtype=torch.float64), *_sides(dual, one, one))
    np.testing.assert_allclose(F.item(), total / np.pi, rtol=1e-12)  # E[r²] = 2, over 2π


@pytest.mark.parametrize("k, stated", [(4.0, 1e-11), (10.0, 1e-7), (25.0, 1e-5)])
def test_stated_error_of_the_series(k, stated):
    """tanh at c = 1, where the series is worst, against quadrature in one dimension."""
    dual = Hermite(np.tanh)
    assert dual.error(k) < stated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        side = dual.side(torch.tensor([k], dtype=torch.float64))
    F = dual.value(side.k, side, side).item()
    want = dual.diagonal(side.k)[0].item()
    assert abs(F - want) / want < max(2 * dual.error(k), 1e-13)
    assert abs(F - want) / want < stated


def test_series_warns_of_its_error():
    with pytest.warns(UserWarning, match="relative error"):
        NNGPKernel(1, activation="tanh", sigma_w2=100.0)(_X())
    with pytest.warns(UserWarning, match="relative error"):
        NNGPKernel(1, activation=np.abs)(_X())


def test_callable_is_what_its_name_gives():
    named, called = (NNGPKernel(3, activation=a)(_X()) for a in ("gelu", PHI["gelu"]))
    np.testing.assert_allclose(named, called, rtol=1e-11)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cls", CLASSES)
def test_gradient_against_finite_differences(cls, name):
    kernel = cls(3, activation=name, sigma_w2=1.9, sigma_b2=0.3)
    X, h = _X(), 1e-5
    K, G = kernel(X, eval_gradient=True)
    np.testing.assert_allclose(K, kernel(X), rtol=1e-12)
    for j in range(2):
        e = h * np.eye(2)[j]
        up, down = (kernel.clone_with_theta(kernel.theta + s * e)(X) for s in (1, -1))
        # h² of the difference, and rounding of K over h: 1e-10 and 1e-11 of the entries' size.
        np.testing.assert_allclose(G[..., j], (up - down) / (2 * h), atol=2e-9 * np.abs(K).max())


class _Layer(torch.nn.Module):
    """A dense layer with standard normal weights that carries the variances itself."""

    def __init__(self, fan_in, fan_out, w, b, phi):
        super().__init__()
        self.linear = torch.nn.Linear(fan_in + 1, fan_out, bias=False, dtype=torch.float64)
        torch.nn.init.normal_(self.linear.weight)
        self.scale, self.b, self.phi = (w / fan_in) ** 0.5, b**0.5, phi

    def forward(self, x):
        x = self.scale * self.phi(x)
        return self.linear(torch.cat([x, x.new_full((len(x), 1), self.b)], 1))


def _wide(depth, width, seed, w=1.8, b=0.2, n_in=4, phi=torch.relu):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = [n_in, *[width] * depth, 1]
        phis = [lambda x: x, *[phi] * depth]
        pairs = zip(sizes[:-1], sizes[1:], phis, strict=True)
        return torch.nn.Sequential(*[_Layer(i, o, w, b, p) for i, o, p in pairs])


def _distance(depth, width, seed):
    X = _X(4, 4)
    want = InfiniteNTKKernel(depth, sigma_w2=1.8, sigma_b2=0.2)(X)
    got = NTKKernel(_wide(depth, width, seed))(X)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("depth", [1, 3])
def test_tangent_kernel_of_wide_networks(depth):
    """The empirical kernel approaches the infinite one at the rate 1/√width."""
    widths, seeds = [64, 256, 1024, 4096][: 4 if depth == 1 else 3], 12
    rms = [np.sqrt(np.mean([_distance(depth, n, s) ** 2 for s in range(seeds)])) for n in widths]
    rate = np.polyfit(np.log(widths), np.log(rms), 1)[0]
    assert -0.65 < rate < -0.4, rms  # an rms of 12 seeds spreads by 20 %, so the rate by 0.1
    assert rms[-1] * np.sqrt(widths[-1]) < 2.5 * np.sqrt(depth), rms


def test_tangent_kernel_of_a_deep_network():
    assert _distance(20, 512, 0) < 0.35  # relative fluctuations are √(depth / width) in size


@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.parametrize("depth", [1, 3, 20])
def test_covariance_of_wide_networks(name, depth):
    """Products of last hidden layers, per layer errors 1/√width, seeds averaged."""
    X, width, phi = _X(4, 4), 1024, {"relu": torch.relu, "tanh": torch.tanh}[name]
    want = NNGPKernel(depth, activation=name, sigma_w2=1.8, sigma_b2=0.2)(X)
    total = np.zeros_like(want)
    for seed in range(4):
        with torch.no_grad():
            h = phi(_wide(depth, width, seed, phi=phi)[:-1](torch.tensor(X)))
        total += (0.2 + 1.8 / width * h @ h.T).numpy() / 4
    error = np.linalg.norm(total - want) / np.linalg.norm(want)
    assert error < 4 * np.sqrt(depth / (4 * width)), error


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


BAD = [{"sigma_w2": -1}, {"sigma_b2": -1}, {"activation": "nope"}, {"depth": -1}, {"terms": 0}]
BAD += [{"dtype": torch.int64}, {"sigma_b2": 0}]


@pytest.mark.parametrize("bad", [*BAD, {"activation": lambda x: x - x.mean()}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        NNGPKernel(**bad)(_X())


# The optimiser tries variances up to its bound, 1e5, where the series says that it is short.
@pytest.mark.filterwarnings("ignore:The Hermite series:UserWarning")
@pytest.mark.parametrize("name", ["relu", "erf", "tanh"])
@pytest.mark.parametrize("cls", CLASSES)
def test_contract(cls, name):
    kernel = cls(2, activation=name)
    check_kernel(kernel, _X(8), _X(5) + 1)


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_float32_work_and_processes(name):
    X = _X(30)
    K, G = NNGPKernel(3, activation=name)(X, eval_gradient=True)
    for options, rtol in (({"dtype": torch.float32}, 1e-5), ({"n_jobs": 2}, 1e-12)):
        k, g = NNGPKernel(3, activation=name, **options)(X, eval_gradient=True)
        assert k.dtype == np.float64
        np.testing.assert_allclose(k, K, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(g, G, rtol=20 * rtol, atol=20 * rtol)


def test_progress_bar(capsys):
    NNGPKernel(1, verbose=1)(_X())
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize("cls", CLASSES)
def test_regressor_optimises_both_variances(cls):
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:120] / X.std(), (y[:120] - y.mean()) / y.std()
    kernel = cls(2) + WhiteKernel(0.5)
    gp = GaussianProcessRegressor(kernel).fit(X, y)
    start = gp.log_marginal_likelihood(kernel.theta)
    assert gp.log_marginal_likelihood_value_ > start + 1
    _, gradient = gp.log_marginal_likelihood(gp.kernel_.theta, eval_gradient=True)
    low, high = gp.kernel_.bounds.T
    inside = (gp.kernel_.theta > low + 1e-6) & (gp.kernel_.theta < high - 1e-6)
    assert np.abs(gradient[inside]).max() < 1e-2 and inside.any()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing_and_are_left_as_found(threads):
    X, before = np.random.RandomState(0).randn(1100, 3), torch.get_num_threads()
    want = NNGPKernel(2)(X)
    try:
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(NNGPKernel(2)(X), want)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_regressor_on_red_wine():
    folder = os.environ.get("SK_DNN2GP_DATA")
    if not folder:
        pytest.skip("Red Wine: SK_DNN2GP_DATA names no folder of data")
    with np.load(Path(folder) / "uci_wine-quality-red.npz") as data:
        X, y, rows = data["X"].astype(float), data["y"].astype(float).ravel(), data["train"][0]
    X, y = X[rows[:200]], y[rows[:200]]
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    kernel = NNGPKernel(2) + WhiteKernel(0.5)
    gp = GaussianProcessRegressor(kernel).fit(X, y)
    assert gp.log_marginal_likelihood_value_ > gp.log_marginal_likelihood(kernel.theta) + 1

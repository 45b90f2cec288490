"""Convolutional and residual kernels against matrices, networks, torch, their contract.

The reference builds every layer as a matrix: a network of infinitely many channels is a Gaussian
vector over (image, position), an affine layer is C -> σ_b² + σ_w² Σ_δ P_δ C P_δᵀ with P_δ picking
the cell at offset δ of the patch. No box filter, no blocks, no shared code.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import erf
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import WhiteKernel

from sk_dnn2gp.kernels import ConvNetKernel, NNGPKernel, ResNetKernel
from sk_dnn2gp.kernels.infinite.steps import Weights

from .kernel_contract import check_kernel

SIDE, W, B = 4, 1.7, 0.3


def _images(n=3, c=2, side=SIDE, seed=0):
    return np.random.RandomState(seed).randn(n, c, side, side)


def _pick(side, size, stride, before, n_out):
    """P_δ for every offset of the filter: (n_out², side²) matrices of zeros and ones."""
    for di, dj in itertools.product(range(size), repeat=2):
        P = np.zeros((n_out**2, side**2))
        for i, j in itertools.product(range(n_out), repeat=2):
            a, b = i * stride + di - before, j * stride + dj - before
            if 0 <= a < side and 0 <= b < side:
                P[i * n_out + j, a * side + b] = 1
        yield P


def _affine(C, n, size, stride=1, padding="same", divide=True):
    """C is (n·side², n·side²)."""
    side = int(np.sqrt(len(C) // n))
    if padding == "same":
        n_out = -(-side // stride)
        before = max(0, (n_out - 1) * stride + size - side) // 2
    else:
        before = 0 if padding == "valid" else padding
        n_out = (side + 2 * before - size) // stride + 1
    total = 0.0
    for P in _pick(side, size, stride, before, n_out):
        P = np.kron(np.eye(n), P)
        total = total + P @ C @ P.T
    return B + W * total / (size**2 if divide else 1)


def _phi(C, name):
    s = np.sqrt(np.diag(C))
    if name == "erf":
        t = np.sqrt(1 + 2 * np.diag(C))
        return 2 / np.pi * np.arcsin(np.clip(2 * C / np.outer(t, t), -1, 1))
    cos = np.clip(C / np.outer(s, s), -1, 1)
    angle = np.arccos(cos)
    return np.outer(s, s) * (np.sin(angle) + (np.pi - angle) * cos) / (2 * np.pi)


def _inputs(X):
    n, c = X.shape[:2]
    flat = X.transpose(0, 2, 3, 1).reshape(-1, c)
    return flat @ flat.T / c, n


def _end(C, n, pool):
    F = C.reshape(n, -1, n, len(C) // n)
    mean = F.mean((1, 3)) if pool else np.einsum("ipjp->ij", F) / F.shape[1]
    return B + W * mean


LAYERS = [
    {"layers": 1},
    {"layers": 3, "activation": "erf"},
    {"layers": 2, "padding": "valid", "filter_size": 2},
    {"layers": 2, "padding": 1, "stride": [2, 1]},
    {"layers": 2, "padding": ["same", 1], "stride": 2, "filter_size": [3, 2]},
    {"layers": 2, "activation": ["relu", "erf"], "divide_by_filter_size": False},
]


@pytest.mark.parametrize("end", ["dense", "average_pool"])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_convnet_equals_dense_matrices(options, end):
    X = _images()
    kernel = ConvNetKernel(**options, end=end, sigma_w2=W, sigma_b2=B)
    C, n = _inputs(X)

    def one(name, default, layer):
        value = options.get(name, default)
        return value[layer] if isinstance(value, list) else value

    for layer in range(options["layers"]):
        args = [
            one(*pair, layer) for pair in (("filter_size", 3), ("stride", 1), ("padding", "same"))
        ]
        C = _affine(C, n, *args, divide=options.get("divide_by_filter_size", True))
        C = _phi(C, one("activation", "relu", layer))
    # arccos of the reference loses half the digits where images meet themselves: 1e-8 of an angle
    # there, which enters squared.
    np.testing.assert_allclose(kernel(X), _end(C, n, end == "average_pool"), rtol=1e-12)
    np.testing.assert_allclose(kernel.diag(X), np.diag(kernel(X)), rtol=1e-13)


@pytest.mark.parametrize("skip", [1, 2, 3])
@pytest.mark.parametrize("stages, padding", [(1, "same"), (2, "same"), (2, 1)])
def test_resnet_equals_dense_matrices(stages, padding, skip):
    X = _images()
    C, n = _inputs(X)
    C = _affine(C, n, 3, 1, padding)
    for stage in range(stages):
        for block in range(2):
            body = _phi(C, "relu")
            first = stage > 0 and block == 0
            if first:
                C = _affine(body, n, 1, 2, "same" if padding == "same" else "valid")
            for j in range(skip):
                body = _phi(body, "relu") if j else body
                body = _affine(body, n, 3, 2 if first and j == 0 else 1, padding)
            C = C + body
    want = _end(_phi(C, "relu"), n, False)
    kernel = ResNetKernel(2, stages=stages, skip=skip, padding=padding, sigma_w2=W, sigma_b2=B)
    np.testing.assert_allclose(kernel(X), want, rtol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh", "gelu"])
@pytest.mark.parametrize("depth", [1, 3, 20])
def test_dense_network_is_an_image_of_one_pixel(depth, activation):
    X = np.random.RandomState(0).randn(7, 5)
    options = {"activation": activation, "sigma_w2": 1.6, "sigma_b2": 0.2}
    for gradient in (False, True):
        dense = NNGPKernel(depth, **options)(X, eval_gradient=gradient)
        for size, padding in ((1, "valid"), (3, "same")):
            # Of a 3 × 3 patch around the one pixel, eight cells are zero.
            kernel = ConvNetKernel(
                depth, filter_size=size, padding=padding, image_shape=(5, 1, 1),
                divide_by_filter_size=False, **options,
            )  # fmt: skip
            conv = kernel(X, eval_gradient=gradient)
            for a, b in zip(dense, conv, strict=True) if gradient else [(dense, conv)]:
                np.testing.assert_allclose(a, b, rtol=1e-12)


def _wide(kind, channels, seed, w=1.6, b=0.2):
    """(features of the last layer, as a function) of a random network in torch."""
    rng = torch.Generator().manual_seed(seed)

    def conv(x, stride=1, size=3):
        shape = (channels, x.shape[1], size, size)
        weight = torch.randn(shape, generator=rng, dtype=x.dtype) * (w / x[0, 0].new_tensor(
            x.shape[1] * size**2)) ** 0.5  # fmt: skip
        bias = torch.randn(channels, generator=rng, dtype=x.dtype) * b**0.5
        return torch.nn.functional.conv2d(x, weight, bias, stride=stride, padding=size // 2)

    def convnet(x):
        for stride in (1, 2, 1):
            x = torch.relu(conv(x, stride))
        return x

    def resnet(x):
        x = conv(x)
        x = x + conv(torch.relu(conv(torch.relu(x))))
        a = torch.relu(x)
        x = conv(a, 2, 1) + conv(torch.relu(conv(a, 2)))
        return torch.relu(x)

    return {"convnet": convnet, "resnet": resnet}[kind]


@pytest.mark.parametrize("kind", ["convnet", "resnet", "pool"])
def test_sampled_covariance_of_wide_networks(kind):
    """Torch's own convolutions of many random channels; the error falls as 1/√channels."""
    X, options = _images(3, 2, 5), {"sigma_w2": 1.6, "sigma_b2": 0.2, "padding": 1}
    if kind == "resnet":
        kernel = ResNetKernel(1, stages=2, **options)
    else:
        end = "average_pool" if kind == "pool" else "dense"
        kernel = ConvNetKernel(3, stride=[1, 2, 1], end=end, **options)
    want, errors = kernel(X), []
    for channels in (16, 256):
        squares = []
        for seed in range(8):
            net = _wide("resnet" if kind == "resnet" else "convnet", channels, seed)
            h = net(torch.tensor(X)).flatten(2)
            if kind == "pool":
                h = h.mean(2, keepdim=True)
            h = h.flatten(1)
            K = 0.2 + 1.6 * (h @ h.T).numpy() / h.shape[1]
            squares.append(np.mean((K - want) ** 2) / np.mean(want**2))
        errors.append(np.sqrt(np.mean(squares)))
    assert errors[1] < 0.14 and 0.15 < errors[1] / errors[0] < 0.4, errors  # √(16/256) = 0.25


KERNELS = {
    "conv": ConvNetKernel(2, image_shape=(1, 4, 4)),
    "pool": ConvNetKernel(2, image_shape=(1, 4, 4), end="average_pool", stride=[2, 1]),
    "mixed": ConvNetKernel(2, image_shape=(1, 4, 4), activation=["erf", "relu"], padding="valid",
                           filter_size=2),
    "resnet": ResNetKernel(1, stages=2, image_shape=(1, 4, 4)),
}  # fmt: skip


# The likeliest bias variance of the contract's targets is none: scikit-learn names the bound.
@pytest.mark.filterwarnings("ignore:The optimal value found:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", KERNELS)
def test_contract(name):
    rng = np.random.RandomState(0)
    check_kernel(KERNELS[name], rng.randn(8, 16), rng.randn(5, 16) + 1)


@pytest.mark.parametrize("end", ["dense", "average_pool"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "sin"])
def test_gradient_against_finite_differences(activation, end):
    kernel = ConvNetKernel(2, activation=activation, end=end, sigma_w2=1.9, sigma_b2=0.3)
    X, h = _images(3, 2, 3), 1e-5
    K, G = kernel(X, eval_gradient=True)
    for j in range(2):
        e = h * np.eye(2)[j]
        up, down = (kernel.clone_with_theta(kernel.theta + s * e)(X) for s in (1, -1))
        np.testing.assert_allclose(G[..., j], (up - down) / (2 * h), atol=2e-9 * np.abs(K).max())


@pytest.mark.parametrize("name", KERNELS)
def test_blocks_memory_processes_and_float32(name):
    X = np.random.RandomState(0).randn(9, 16)
    K, G = KERNELS[name](X, eval_gradient=True)
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_allclose(KERNELS[name](X[:4], X[4:]), K[:4, 4:], rtol=1e-12)
    cases = [({"memory_limit": 0.02}, 1e-12), ({"n_jobs": 2}, 1e-12)]
    for options, rtol in [*cases, ({"dtype": torch.float32}, 1e-5)]:
        twin = type(KERNELS[name])(**{**KERNELS[name].get_params(), **options})
        k, g = twin(X, eval_gradient=True)
        assert k.dtype == np.float64
        np.testing.assert_allclose(k, K, rtol=rtol)
        np.testing.assert_allclose(g, G, rtol=10 * rtol, atol=rtol * np.abs(G).max())
        np.testing.assert_allclose(twin.diag(X), K.diagonal(), rtol=rtol)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("sigma_b2", [0.0, 0.1])
def test_zero_images_are_finite(name, sigma_b2):
    X = np.random.RandomState(0).randn(5, 16)
    X[2], X[3, :8] = 0, 0
    options = {"sigma_b2": sigma_b2, "sigma_b2_bounds": "fixed"}
    kernel = type(KERNELS[name])(**{**KERNELS[name].get_params(), **options})
    K, G = kernel(X, eval_gradient=True)
    assert np.isfinite(K).all() and np.isfinite(G).all() and G.shape == (5, 5, 1)


def test_huge_images():
    assert np.isfinite(ConvNetKernel(2)(1e120 * _images())).all()
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="overflow"):
        ConvNetKernel(2)(1e200 * _images())


BAD = [
    ({"image_shape": (1, 3, 5)}, "image_shape"), ({"image_shape": (16,)}, "image_shape"),
    ({}, "image_shape"), ({"sigma_w2": -1.0}, "sigma_w2"), ({"sigma_b2": -1.0}, "sigma_b2"),
    ({"layers": 0}, "layers"), ({"filter_size": [3]}, "filter_size"), ({"stride": 0}, "stride"),
    ({"padding": "full"}, "padding"), ({"padding": -1}, "padding"), ({"end": "max"}, "end"),
    ({"filter_size": 7, "padding": "valid"}, "filter_size"), ({"activation": "no"}, "activation"),
    ({"activation": np.sort}, "elementwise|every element"),
]  # fmt: skip


@pytest.mark.parametrize("options, words", BAD, ids=[words for _, words in BAD])
def test_bad_input_is_named(options, words):
    options = {"image_shape": (1, 4, 4), **options} if options else options
    with pytest.raises(ValueError, match=words):
        ConvNetKernel(**{"layers": 2, **options})(np.ones((2, 16)))


@pytest.mark.parametrize("options", [{"blocks": 0}, {"skip": 0}, {"padding": 0}, {"stages": 1.5}])
def test_bad_residual_parameters(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ResNetKernel(**options)(np.ones((2, 1, 4, 4)))


def test_features_of_two_sets_must_agree():
    with pytest.raises(ValueError, match="same features"):
        ConvNetKernel(1)(_images(c=2), _images(c=1))


def test_thirty_two_layers():
    layers = [node.step for node in ResNetKernel()._nodes() if isinstance(node.step, Weights)]
    shortcuts = [layer for layer in layers if layer.windows and layer.cells == 1]
    assert len(layers) - len(shortcuts) == 32 and len(shortcuts) == 2


def test_regressor_finds_variances():
    rng = np.random.RandomState(0)
    X = rng.randn(40, 16)
    y = erf(X.reshape(-1, 4, 4)[:, :2].sum((1, 2)))
    conv = ConvNetKernel(2, image_shape=(1, 4, 4), sigma_w2=0.1, sigma_b2_bounds="fixed")
    kernel = conv + WhiteKernel(0.1)
    gp = GaussianProcessRegressor(kernel).fit(X, y)
    assert gp.log_marginal_likelihood_value_ > gp.log_marginal_likelihood(kernel.theta) + 1

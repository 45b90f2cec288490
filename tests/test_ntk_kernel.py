"""NTKKernel and NTKFeatures: scikit-learn's protocol, values, the cache, bad input."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from joblib import parallel_config
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA, KernelPCA
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import CompoundKernel, WhiteKernel
from sklearn.linear_model import LinearRegression, Ridge
from skorch import NeuralNetRegressor
from torch import nn

from sk_dnn2gp.kernels import NTKFeatures, NTKKernel
from sk_dnn2gp.networks import MLP

from .kernel_contract import check_kernel
from .test_linearize import dense_jacobian


def network(n_features: int = 3, n_outputs: int = 1, width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MLP(n_features, (width,), n_outputs)


def arrays(n: int = 12, m: int = 5, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": 1, "prior_precision": 0.3},
        {"prior_precision_bounds": "fixed"},
        {"normalize": True},
        {"memory_limit": 0.01},
    ],
)
def test_contract(options):
    X, Y = arrays()
    check_kernel(NTKKernel(network(n_outputs=2), **options), X, Y)


def test_values_and_aggregations():
    net, (X, Y) = network(n_outputs=3), arrays()
    J, J2 = (dense_jacobian(net, torch.tensor(A)).numpy() for A in (X, Y))
    full = np.einsum("nkp,mlp->nkml", J, J2) / 0.7
    kernel = NTKKernel(net, prior_precision=0.7)
    np.testing.assert_allclose(kernel.full(X, Y), full, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(kernel(X, Y), np.einsum("nkmk->nm", full), rtol=1e-10)
    np.testing.assert_allclose(
        kernel.output_kernels(X, Y), np.einsum("nkmk->knm", full), rtol=1e-10, atol=1e-12
    )
    single = NTKKernel(net, prior_precision=0.7, output=2)
    np.testing.assert_allclose(single(X, Y), full[:, 2, :, 2], rtol=1e-10, atol=1e-12)
    K = kernel(X)
    d = np.sqrt(np.diag(K))
    correlation = NTKKernel(net, prior_precision=0.7, normalize=True)
    np.testing.assert_allclose(correlation(X), K / d[:, None] / d, rtol=1e-10)
    np.testing.assert_array_equal(correlation.diag(X), np.ones(len(X)))
    d2 = np.sqrt(np.einsum("mkp,mkp->m", J2, J2) / 0.7)
    np.testing.assert_allclose(correlation(X, Y), kernel(X, Y) / d[:, None] / d2, rtol=1e-10)
    assert correlation.theta.size == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_joblib_shares_the_work(symmetric):
    net, (X, Y) = network(n_outputs=2), arrays(23)
    other = None if symmetric else Y
    with parallel_config("threading"):
        K = NTKKernel(net, n_jobs=2)(X, other)
    np.testing.assert_allclose(K, NTKKernel(net)(X, other), rtol=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_ten_restarts_compute_one_gram():
    X, y = load_diabetes(return_X_y=True)
    X = X / X.std(0)
    kernel = NTKKernel(network(10)) + WhiteKernel()
    gp = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=10, random_state=0)
    gp.fit(X, y)
    assert gp.kernel_.k1._slot is kernel.k1._slot
    assert kernel.k1._slot.n_computed == 1
    kernel(X[:20])
    assert kernel.k1._slot.n_computed == 2


@pytest.mark.slow
def test_processes_share_the_work():
    net, (X, Y) = network(n_outputs=2), arrays(23)
    with parallel_config("loky"):
        kernel = NTKKernel(net, n_jobs=2)
        K, K_ = kernel(X), kernel(X, Y)
    np.testing.assert_allclose(K, NTKKernel(net)(X), rtol=1e-12)
    np.testing.assert_allclose(K_, NTKKernel(net)(X, Y), rtol=1e-12)
    np.testing.assert_array_equal(K, K.T)


def test_compound_kernels_stack():
    net, (X, _) = network(n_outputs=2), arrays()
    parts = [NTKKernel(net, output=0), NTKKernel(net, output=1, prior_precision=3.0)]
    stacked = CompoundKernel(parts)
    K, gradient = stacked(X, eval_gradient=True)
    np.testing.assert_array_equal(K, np.dstack([part(X) for part in parts]))
    np.testing.assert_array_equal(stacked.theta, np.log([1.0, 3.0]))
    assert gradient.shape == (len(X), len(X), 1, 2)
    np.testing.assert_allclose(gradient[:, :, 0], -K)


def test_the_kernel_follows_training():
    """Before, during and after training it is the same call."""
    net, (X, _) = network(), arrays()
    kernel, x = NTKKernel(net), torch.tensor(X)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    seen = []
    for _ in range(3):
        J = dense_jacobian(net, x)[:, 0].numpy()
        seen.append(kernel(X))
        np.testing.assert_allclose(seen[-1], J @ J.T, rtol=1e-10, atol=1e-12)
        optimizer.zero_grad()
        (net(x.to(next(net.parameters()).dtype)) - 1.0).square().sum().backward()
        optimizer.step()
    assert not np.allclose(seen[0], seen[1]) and not np.allclose(seen[1], seen[2])


def test_cache_sees_new_weights_and_new_data():
    net, (X, _) = network(), arrays()
    kernel = NTKKernel(net)
    first = kernel(X)
    with torch.no_grad():
        net[0].weight.mul_(1.5)
    J = dense_jacobian(net, torch.tensor(X))[:, 0].numpy()
    np.testing.assert_allclose(kernel(X), J @ J.T, rtol=1e-10, atol=1e-12)
    assert not np.allclose(kernel(X), first)
    X[0] += 1.0
    J = dense_jacobian(net, torch.tensor(X))[:, 0].numpy()
    np.testing.assert_allclose(kernel(X), J @ J.T, rtol=1e-10, atol=1e-12)


def test_clone_keeps_a_fitted_network_and_pickling_drops_the_cache():
    X, _ = arrays()
    net = NeuralNetRegressor(network(width=4).float(), max_epochs=1, train_split=None, verbose=0)
    net.fit(X.astype(np.float32), X[:, :1].astype(np.float32))
    kernel = NTKKernel(net)
    twin = clone(kernel)
    assert twin.network is net and twin == kernel and hash(twin) == hash(kernel)
    kernel(X)
    assert twin._slot.gram is not None
    assert pickle.loads(pickle.dumps(kernel))._slot.gram is None


def test_equality_is_of_weights():
    net = network()
    other = copy.deepcopy(net)
    assert NTKKernel(net) == NTKKernel(other)
    with torch.no_grad():
        other[0].bias.add_(1.0)
    assert NTKKernel(net) != NTKKernel(other)
    assert NTKKernel(net) != NTKKernel(net, output=0)
    assert NTKKernel(net) != WhiteKernel()
    assert "MLP" in repr(NTKKernel(net))


def test_images_and_tokens_from_flat_arrays():
    rng = np.random.default_rng(1)
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 2))
    X = rng.normal(size=(4, 25))
    J = dense_jacobian(conv, torch.tensor(X).view(4, 1, 5, 5)).flatten(1).numpy()
    np.testing.assert_allclose(NTKKernel(conv, input_shape=(1, 5, 5))(X), J @ J.T, rtol=1e-9)
    words = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1))
    tokens = rng.integers(0, 5, (4, 2))
    J = dense_jacobian(words, torch.tensor(tokens)).flatten(1).numpy()
    np.testing.assert_allclose(NTKKernel(words)(tokens.astype(float)), J @ J.T, rtol=1e-9)
    with pytest.raises(ValueError, match="whole numbers"):
        NTKKernel(words)(tokens + 0.5)


def test_gaussian_process_classifier_with_compound_kernel():
    X, Y = arrays(18)
    y = np.arange(18) % 3
    kernel = NTKKernel(network(), prior_precision_bounds=(1e-2, 1e2))
    gp = GaussianProcessClassifier(kernel).fit(X, y)
    assert isinstance(gp.kernel_, CompoundKernel)
    assert np.allclose(gp.predict_proba(Y).sum(1), 1.0)


def test_more_samples_than_weights_need_noise():
    """The rank is that of the weights, as documented; what is asked does not depend on who asks."""
    X = np.random.default_rng(2).normal(size=(20, 1))
    y, kernel = X[:, 0] ** 2, NTKKernel(nn.Linear(1, 1).double())
    assert np.linalg.matrix_rank(kernel(X)) == 2
    alone = GaussianProcessRegressor(kernel, optimizer=None).fit(X, y)
    noisy = GaussianProcessRegressor(kernel + WhiteKernel(), optimizer=None).fit(X, y)
    assert alone.log_marginal_likelihood_value_ < -1e6 < -1e3 < noisy.log_marginal_likelihood_value_
    np.testing.assert_array_equal(alone.kernel_(X), kernel(X))


def test_features_give_the_kernel():
    net, (X, Y) = network(n_outputs=2), arrays()
    features = NTKFeatures(net, prior_precision=0.5).fit(X)
    kernel = NTKKernel(net, prior_precision=0.5)
    K = features.transform(X) @ features.transform(Y).T
    np.testing.assert_allclose(K, kernel(X, Y), rtol=1e-10, atol=1e-12)
    assert features.transform(X).shape == (len(X), len(features.get_feature_names_out()))
    one = NTKFeatures(net, output=1).fit_transform(X)
    np.testing.assert_allclose(one @ one.T, NTKKernel(net, output=1)(X), rtol=1e-10, atol=1e-12)
    ridge = Ridge(alpha=0.5, fit_intercept=False).fit(one, X[:, 0])
    gp = GaussianProcessRegressor(NTKKernel(net, output=1), alpha=0.5, optimizer=None)
    found, expected = ridge.predict(one), gp.fit(X, X[:, 0]).predict(X)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert LinearRegression().fit(one, X[:, 0]).score(one, X[:, 0]) > 0.99


def test_features_for_clusters_and_maps():
    """Principal components and cluster inertias of the features are those of the kernel."""
    net, (X, _) = network(n_outputs=2), arrays(20)
    Z, K = NTKFeatures(net).fit_transform(X), NTKKernel(net)(X)
    by_features = PCA(3, svd_solver="full").fit_transform(Z)
    by_kernel = KernelPCA(3, kernel="precomputed", eigen_solver="dense").fit_transform(K)
    atol = 1e-8 * np.abs(by_kernel).max()
    np.testing.assert_allclose(np.abs(by_features), np.abs(by_kernel), atol=atol)
    clusters = KMeans(3, n_init=1, random_state=0).fit(Z)
    labels = clusters.labels_
    inertia = np.trace(K) - sum(
        K[np.ix_(labels == c, labels == c)].sum() / (labels == c).sum() for c in range(3)
    )
    np.testing.assert_allclose(clusters.inertia_, inertia, rtol=1e-9)


@pytest.mark.parametrize("output", ["sum", 0])
def test_projected_features_err_as_stated(output):
    net, (X, _) = network(n_outputs=2), arrays(30)
    K = NTKKernel(net, output=output)(X)
    d = 4000
    features = NTKFeatures(net, output=output, n_components=d, random_state=0, memory_limit=5)
    Z = features.fit_transform(X)
    bound = features.relative_error_ * np.sqrt(np.outer(np.diag(K), np.diag(K)))
    ratio = (Z @ Z.T - K) / bound
    assert Z.shape[1] == d * (2 if output == "sum" else 1)
    assert np.sqrt(np.mean(ratio**2)) < 1.2  # stated: a standard deviation of at most one
    assert np.abs(ratio).max() < 6.0
    np.testing.assert_array_equal(Z, clone(features).fit_transform(X))


def test_bad_input():
    X, _ = arrays()
    kernel = NTKKernel(network())
    for bad, message in (
        (X[0], "n_samples, n_features"),
        (X[:0], "at least one sample"),
        (np.where(X > 1, np.nan, X), "NaN"),
        (X[:, :2], "does not take X"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel(bad)
    for options, message in (
        ({"prior_precision": -1.0}, "prior_precision"),
        ({"prior_precision": np.nan}, "prior_precision"),
        ({"output": "mean"}, "output"),
        ({"output": 4}, "1 outputs"),
        ({"input_shape": (2, 2)}, "input_shape"),
        ({"memory_limit": 0}, "memory_limit"),
    ):
        with pytest.raises(ValueError, match=message):
            NTKKernel(network(), **options)(X)
    with pytest.raises(ValueError, match="Y is None"):
        kernel(X, X.copy(), eval_gradient=True)
    with pytest.raises(TypeError, match="Fit it first"):
        NTKKernel(NeuralNetRegressor(MLP))(X)
    dead = nn.Sequential(nn.Linear(3, 1, bias=False), nn.ReLU())
    with pytest.raises(ValueError, match="normalize"):
        NTKKernel(dead, normalize=True)(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="n_components"):
        NTKFeatures(network(), n_components=0).fit(X)
    with pytest.raises(MemoryError, match="n_components"):
        NTKFeatures(network(), memory_limit=1e-3).fit(X).transform(X)

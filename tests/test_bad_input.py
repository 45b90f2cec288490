"""Every kind of bad input: an error or a warning that helps, and nothing half-changed."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNetRegressor
from torch import nn

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.exceptions import ApproximationWarning
from sk_dnn2gp.inference import Variational
from sk_dnn2gp.posterior import Full
from sk_dnn2gp.training import FirstOrder, NewtonCG

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 3))
Y = X[:, 0] + 0.1 * RNG.standard_normal(30)


def regressor(**options):
    defaults = {
        "hidden_layer_sizes": (4,),
        "random_state": 0,
        "n_restarts": 1,
        "prior_precision": 1.0,
        "noise_std": 0.3,
    }
    return DNN2GPRegressor(**{**defaults, **options})


def of_net(net, **options):
    return regressor(net=net, hidden_layer_sizes=(50,), **options)


def spoiled(value, where="X"):
    bad_X, bad_y = X.copy(), Y.copy()
    (bad_X if where == "X" else bad_y)[3] = value
    return bad_X, bad_y


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (spoiled(np.nan), ValueError, "Input X contains NaN"),
        (spoiled(np.inf), ValueError, "Input X contains infinity"),
        (spoiled(np.nan, "y"), ValueError, "Input y contains NaN"),
        (spoiled(np.inf, "y"), ValueError, "Input y contains infinity"),
        ((np.array([["a", "b"]] * 5), np.arange(5)), ValueError, "could not convert string"),
        ((scipy.sparse.csr_array(X), Y), TypeError, "Sparse data was passed"),
        ((np.empty((0, 3)), np.empty(0)), ValueError, r"0 sample\(s\)"),
        ((X[:1], Y[:1]), ValueError, "minimum of 2 is required"),
        ((X, Y[:-1]), ValueError, "inconsistent numbers of samples"),
        ((X, Y + 1j), ValueError, "Complex data not supported"),
    ],
)
def test_bad_arrays(bad, error, message):
    with pytest.raises(error, match=message):
        regressor().fit(*bad)


@pytest.mark.filterwarnings("ignore:prior_precision chosen:sklearn.exceptions.ConvergenceWarning")
def test_constant_y():
    auto = regressor(prior_precision="auto", noise_std="auto")
    with (
        pytest.warns(UserWarning, match="y is constant"),
        pytest.warns(ConvergenceWarning, match=r"noise_std chosen .* end of its range"),
    ):
        model = auto.fit(X, np.full(30, 7.0))
    np.testing.assert_allclose(model.predict(X), 7.0, atol=1e-6)
    assert np.isfinite(model.predict_std(X)).all()


def test_duplicated_rows_are_more_evidence():
    X2, y2 = np.repeat(X, 2, axis=0), np.repeat(Y, 2)
    # A linear model: one minimum, so that only the number of rows differs.
    linear = {"hidden_layer_sizes": (), "normalize_y": False}
    once, twice = (regressor(**linear).fit(a, b) for a, b in ((X, Y), (X2, y2)))
    # The network's first layer takes mean and scale out of the inputs.
    J = np.c_[(X - X.mean(0)) / X.std(0), np.ones(len(X))]
    for copies, model in ((1, once), (2, twice)):
        A = copies * J.T @ J / 0.3**2 + np.eye(4)
        variance = np.einsum("ip,pi->i", J, np.linalg.solve(A, J.T))
        np.testing.assert_allclose(model.predict_std(X, "latent") ** 2, variance, rtol=1e-10)


def is_between_nothing_and_the_prior(model, X):
    """0 < V_* ≤ J Jᵀ/δ: data never widen the process, and no finite number of them closes it."""
    latent, prior = model.predict_std(X, "latent") / model.y_scale_, np.sqrt(model.kernel_.diag(X))
    return bool(((latent > 0) & (latent <= (1 + 1e-9) * prior)).all())


def test_collinear_columns():
    collinear = np.hstack([X, X, 2 * X])
    model = regressor().fit(collinear, Y)
    assert is_between_nothing_and_the_prior(model, collinear)


@pytest.mark.parametrize("scale", [1e8, 1e-8])
def test_features_of_extreme_scale(scale):
    """The default network standardises them; for a given one there is a warning."""
    model, plain = regressor().fit(X * scale, Y), regressor().fit(X, Y)
    mean, std = model.predict(X * scale, return_std=True)
    # The same minimum, to the solver's tolerance.
    np.testing.assert_allclose(mean, plain.predict(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, plain.predict_std(X), rtol=1e-5)
    assert is_between_nothing_and_the_prior(model, X * scale)
    with (
        warnings.catch_warnings(),
        pytest.warns(UserWarning, match=r"extreme scale .* StandardScaler"),
    ):
        warnings.filterwarnings("ignore", "The Cholesky|Training stopped")
        given = of_net(nn.Linear(3, 1).double()).fit(X * scale, Y)
    assert np.isfinite(given.predict(X * scale, return_std=True)).all()
    assert is_between_nothing_and_the_prior(given, X * scale)


def test_features_far_from_zero_are_warned_of():
    with pytest.warns(UserWarning, match=r"extreme scale .* StandardScaler"):
        of_net(nn.Linear(3, 1).double(), solver=FirstOrder(max_iter=1)).fit(X + 1e6, Y)


@pytest.mark.filterwarnings("ignore:Training stopped:sklearn.exceptions.ConvergenceWarning")
def test_few_rows_and_many_weights():
    for n in (2, 3):
        assert is_between_nothing_and_the_prior(regressor().fit(X[:n], Y[:n]), X)
    model = regressor(hidden_layer_sizes=(2000,)).fit(X, Y)
    assert model.linear_model_.n_params > 10_000
    assert is_between_nothing_and_the_prior(model, X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_precision": 0.0}, "'prior_precision' parameter"),
        ({"prior_precision": -1.0}, "'prior_precision' parameter"),
        ({"prior_precision": "automatic"}, "'prior_precision' parameter"),
        ({"noise_std": 0.0}, "'noise_std' parameter"),
        ({"noise_std": -0.5}, "'noise_std' parameter"),
        ({"solver": "newton"}, "solver must be 'auto', one of .* got 'newton'"),
        ({"activation": "swish"}, "'activation' parameter"),
        ({"posterior": "kfac"}, "posterior must be one of .* got 'kfac'"),
        ({"inference": "hmc"}, "inference must be one of .* got 'hmc'"),
        ({"solver": NewtonCG(max_iter=0)}, "NewtonCG: max_iter must be .* got 0"),
        ({"solver": NewtonCG(tol=-1.0)}, "NewtonCG: tol must be .* got -1.0"),
        ({"posterior": Full(memory_limit=0)}, "Full: memory_limit must be .* got 0"),
        ({"solver": FirstOrder(batch_size=0)}, "FirstOrder: batch_size must be .* got 0"),
        ({"solver": FirstOrder(learning_rate=0.0)}, "FirstOrder: learning_rate must be .* got 0.0"),
        ({"solver": FirstOrder("rprop")}, "FirstOrder: optimizer must be .* got 'rprop'"),
        ({"inference": Variational(n_samples=0)}, "Variational: n_samples must be .* got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        regressor(**options).fit(X, Y)


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        ("mlp", TypeError, "net must be None, a torch Module"),
        (nn.Linear(3, 2), ValueError, r"shape \(n_samples, 1\).*returned \(2, 2\)"),
        (nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), ValueError, r"returned \(2,\)"),
        (nn.Linear(4, 1), ValueError, "net does not take X of shape"),
        (nn.Identity(), ValueError, "no weights to train"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
            ValueError,
            "mixes the examples",
        ),
        (FrozenEstimator(NeuralNetRegressor(nn.Linear)), ValueError, "Fit the skorch net before"),
        (FrozenEstimator(DNN2GPRegressor()), ValueError, "without a trained torch module"),
    ],
)
def test_bad_networks(net, error, message):
    with pytest.raises(error, match=message):
        of_net(net).fit(X, Y)


@pytest.mark.filterwarnings("ignore:Training ended")
def test_dropout_is_warned_of():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    with pytest.warns(ApproximationWarning, match="dropout layer"):
        solver = FirstOrder(max_iter=5, n_iter_no_change=100)
        of_net(net, solver=solver).fit(X, Y)


def test_fitted_net_that_is_not_frozen_is_warned_of():
    net = NeuralNetRegressor(nn.Linear, module__in_features=3, module__out_features=1, verbose=0)
    net.set_params(max_epochs=2).fit(X.astype(np.float32), Y[:, None].astype(np.float32))
    with pytest.warns(UserWarning, match="FrozenEstimator"):
        of_net(net).fit(X, Y)


def test_diverging_optimiser():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(ArithmeticError, match=r"Training diverged: the loss is (nan|inf)"):
        of_net(net, solver=FirstOrder("sgd", learning_rate=1e12)).fit(X, Y)
    with pytest.warns(ConvergenceWarning, match="higher loss"):
        regressor(solver=FirstOrder("sgd", learning_rate=50.0, max_iter=3)).fit(X, Y)


def test_stopped_early():
    with pytest.warns(ConvergenceWarning, match=r"not at a minimum .* Raise max_iter \(1\)"):
        model = regressor(solver=NewtonCG(max_iter=1)).fit(X, Y)
    assert not model.converged_ and model.n_iter_ == 1


def test_before_fit():
    for call in ("predict", "predict_std", "predict_uncertainty", "sample_y"):
        with pytest.raises(NotFittedError):
            getattr(regressor(), call)(X)
    for call in ("log_marginal_likelihood", "to_gaussian_process"):
        with pytest.raises(NotFittedError):
            getattr(regressor(), call)()


def test_wrong_feature_count_and_arguments_after_fit():
    model = regressor().fit(X, Y)
    for call in (model.predict, model.predict_std, model.sample_y):
        with pytest.raises(ValueError, match="X has 2 features"):
            call(X[:, :2])
    with pytest.raises(ValueError, match="At most one of return_std or return_cov"):
        model.predict(X, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match="target must be"):
        model.predict_std(X, target="f")
    with pytest.raises(ValueError, match="X and y must be given together"):
        model.log_marginal_likelihood(X=X)
    with pytest.raises(ValueError, match="theta must hold the logarithms of 2"):
        model.log_marginal_likelihood([0.0])
    with pytest.raises(ValueError, match="kind must be one of"):
        model.log_marginal_likelihood(kind="exact")


def test_nested_parameters_without_a_net():
    with pytest.raises(ValueError, match="needs net to be a skorch NeuralNet"):
        regressor().set_params(net__lr=0.1)


def test_sample_weight():
    with pytest.raises(ValueError, match="positive weight"):
        regressor().fit(X, Y, sample_weight=np.r_[1.0, np.zeros(29)])
    with pytest.raises(ValueError, match="Negative values"):
        regressor().fit(X, Y, sample_weight=-np.ones(30))


def test_memory_limit():
    with pytest.raises(MemoryError, match="raise memory_limit"):
        regressor(posterior=Full(memory_limit=1e-3)).fit(X, Y)
    big = NeuralNetRegressor(
        nn.Linear, module__in_features=3, module__out_features=1, max_epochs=1, verbose=0
    )
    with pytest.raises(MemoryError, match="use posterior='last_layer' or 'diag'"):
        of_net(big, posterior=Full(memory_limit=1e-4)).fit(X, Y)


def test_several_outputs_are_no_scikit_learn_process():
    model = regressor().fit(X, np.c_[Y, -Y])
    with pytest.raises(ValueError, match="2 targets that share weights"):
        model.to_gaussian_process()
    with pytest.raises(ValueError, match="posterior='diag'"):
        regressor(posterior="diag").fit(X, Y).to_gaussian_process()


def test_a_failed_fit_leaves_the_module_alone():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ArithmeticError):
        of_net(net, solver=FirstOrder("sgd", learning_rate=1e12)).fit(X, Y)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training
    assert all(p.grad is None for p in net.parameters())

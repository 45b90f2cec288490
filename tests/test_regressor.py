"""DNN2GPRegressor as its users meet it: units, outputs, weights, pipelines, persistence."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetRegressor
from skorch.callbacks import LRScheduler
from torch import nn

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.evidence import updates
from sk_dnn2gp.training import FirstOrder, NewtonCG
from tests.reference import jacobian

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (50, 2))
Y = 10 + 4 * np.sin(2 * X[:, 0]) + 0.4 * RNG.standard_normal(50)
FIXED = {"hidden_layer_sizes": (5,), "prior_precision": 0.5, "noise_std": 0.2, "random_state": 0}


class Net(nn.Module):
    """A module with an argument to tune."""

    def __init__(self, width=6):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def model():
    return DNN2GPRegressor(**FIXED).fit(X, Y)


def test_auto_explains_the_data_and_its_noise():
    auto = DNN2GPRegressor(hidden_layer_sizes=(8,), random_state=0).fit(X, Y)
    assert auto.score(X, Y) > 0.97
    # 50 rows tell σ to 1/√100; three of those.
    assert auto.noise_std_ * auto.y_scale_[0] == pytest.approx(0.4, rel=0.3)
    fixed = DNN2GPRegressor(**{**FIXED, "hidden_layer_sizes": (8,)}).fit(X, Y)
    assert auto.log_marginal_likelihood() > fixed.log_marginal_likelihood()
    by_delta = auto.log_marginal_likelihood(eval_gradient=True)[1]
    assert by_delta.shape == (2,)


def test_everything_comes_back_in_the_units_of_y(model):
    """A change of the units of y changes predictions with it, and the evidence by its Jacobian."""
    a, b = 250.0, -3.0
    other = DNN2GPRegressor(**FIXED).fit(X, a * Y + b)
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(other.predict(X), a * mean + b, rtol=1e-6)
    np.testing.assert_allclose(other.predict(X, return_std=True)[1], a * std, rtol=1e-6)
    np.testing.assert_allclose(
        other.predict(X[:4], return_cov=True)[1],
        a**2 * model.predict(X[:4], return_cov=True)[1],
        rtol=1e-5,
    )
    assert other.log_marginal_likelihood() == pytest.approx(
        model.log_marginal_likelihood() - len(Y) * np.log(a), rel=1e-6
    )


def test_normalize_y_is_a_change_of_variables(model):
    scaled = (Y - Y.mean()) / Y.std()
    plain = DNN2GPRegressor(**FIXED, normalize_y=False).fit(X, scaled)
    np.testing.assert_allclose(plain.predict(X) * Y.std() + Y.mean(), model.predict(X), rtol=1e-7)
    np.testing.assert_allclose(plain.predict_std(X) * Y.std(), model.predict_std(X), rtol=1e-7)
    assert plain.y_scale_ == 1


def test_parts_of_the_uncertainty(model):
    parts = model.predict_uncertainty(X)
    np.testing.assert_allclose(parts.total, parts.aleatoric + parts.epistemic)
    np.testing.assert_allclose(parts.aleatoric, (0.2 * Y.std()) ** 2)
    np.testing.assert_allclose(model.predict_std(X) ** 2, parts.total)
    np.testing.assert_allclose(model.predict_std(X, target="latent") ** 2, parts.epistemic)
    covariance = model.predict(X, return_cov=True)[1]
    np.testing.assert_allclose(np.diag(covariance), parts.total)
    far = model.predict_std([[9.0, -9.0]], target="latent")
    assert far > 3 * model.predict_std(X, target="latent").max()


def test_samples_have_the_predictive_moments(model):
    n = 20_000
    draws = model.sample_y(X[:3], n_samples=n, random_state=1)
    mean, covariance = model.predict(X[:3], return_cov=True)
    std = np.sqrt(np.diag(covariance))
    # Five standard errors of a mean and of a covariance of n draws.
    np.testing.assert_allclose(draws.mean(1), mean, atol=5 * std.max() / np.sqrt(n))
    bound = 5 * np.sqrt(2.0 / n) * std.max() ** 2
    np.testing.assert_allclose(np.cov(draws), covariance, atol=bound)
    again = model.sample_y(X[:3], n_samples=n, random_state=1)
    np.testing.assert_array_equal(draws, again)
    latent = model.sample_y(X[:3], n_samples=n, random_state=1, target="latent")
    latent_std = model.predict_std(X[:3], target="latent")
    np.testing.assert_allclose(latent.std(1), latent_std, rtol=0.05)


def test_several_outputs():
    Y2 = np.c_[Y, X[:, 1] ** 2]
    model = DNN2GPRegressor(**FIXED).fit(X, Y2)
    assert model.predict(X).shape == (50, 2)
    assert model.predict_std(X).shape == (50, 2)
    mean, covariance = model.predict(X[:4], return_cov=True)
    assert covariance.shape == (4, 4, 2)
    diagonal = np.einsum("iik->ik", covariance)
    np.testing.assert_allclose(np.sqrt(diagonal), model.predict_std(X[:4]), rtol=1e-9)
    assert model.sample_y(X[:4], 3).shape == (4, 2, 3)
    assert model.predict_uncertainty(X).total.shape == (50, 2)
    assert model.transformed_targets_.shape == (50, 2)
    assert model.score(X, Y2) > 0.9
    column = DNN2GPRegressor(**FIXED).fit(X, Y[:, None])
    assert column.predict(X).shape == (50, 1)


def test_a_weight_counts_an_example_that_often():
    weight = RNG.integers(0, 4, 50).astype(float)
    solver = NewtonCG(tol=1e-11, max_iter=2000)
    weighted = DNN2GPRegressor(**FIXED, solver=solver).fit(X, Y, weight)
    repeated = DNN2GPRegressor(**FIXED, solver=solver).fit(
        np.repeat(X, weight.astype(int), axis=0), np.repeat(Y, weight.astype(int))
    )
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-7)
    np.testing.assert_allclose(weighted.predict_std(X), repeated.predict_std(X), rtol=1e-7)
    for kind in ("laplace", "dual"):
        assert weighted.log_marginal_likelihood(kind=kind) == pytest.approx(
            repeated.log_marginal_likelihood(kind=kind), rel=1e-9
        )


def test_evidence_in_the_manner_of_gaussian_process_regressor(model):
    theta = np.log([model.prior_precision_, model.noise_std_])
    value = model.log_marginal_likelihood()
    assert value == model.log_marginal_likelihood_value_
    assert model.log_marginal_likelihood(theta) == pytest.approx(value, rel=1e-10)
    assert model.log_marginal_likelihood(X=X, y=Y) == pytest.approx(value, rel=1e-10)
    assert model.log_marginal_likelihood(kind="dual") == pytest.approx(value, rel=1e-8)
    _, gradient = model.log_marginal_likelihood(theta, eval_gradient=True)
    for i in range(2):
        step = 1e-5 * np.eye(2)[i]
        up, down = (model.log_marginal_likelihood(theta + s) for s in (step, -step))
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-5)
    half = model.log_marginal_likelihood(X=X[:25], y=Y[:25])
    assert half > value  # fewer data, less to explain


@pytest.mark.parametrize("posterior", ["full", "diag", "last_layer"])
def test_posteriors(posterior):
    model = DNN2GPRegressor(**FIXED, posterior=posterior).fit(X, Y)
    J, J_train = (jacobian(model.module_, torch.tensor(x)) for x in (X[:3] + 1.0, X))
    if posterior == "last_layer":
        assert model.linear_model_.n_params == 6
        J, J_train = J[:, -6:], J_train[:, -6:]
    A = J_train.T @ J_train / 0.2**2 + 0.5 * torch.eye(J.shape[1], dtype=torch.float64)
    A = torch.diag(A.diagonal()) if posterior == "diag" else A
    V = (J @ torch.linalg.solve(A, J.T)).diagonal().numpy()
    std = model.predict(X[:3] + 1.0, return_std=True)[1]
    np.testing.assert_allclose(std, Y.std() * np.sqrt(0.2**2 + V), rtol=1e-9)
    assert model.sample_y(X[:3], 2).shape == (3, 2)
    assert np.isfinite(model.log_marginal_likelihood())
    auto = DNN2GPRegressor(hidden_layer_sizes=(5,), posterior=posterior, random_state=0).fit(X, Y)
    assert auto.score(X, Y) > 0.9


def test_same_seed_same_bits_and_global_generators_untouched():
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(5)
    torch.manual_seed(5)
    fits = [
        DNN2GPRegressor(hidden_layer_sizes=(5,), n_restarts=2, random_state=3).fit(X, Y)
        for _ in range(2)
    ]
    assert (np.random.rand(), torch.rand(1)) == expected
    np.testing.assert_array_equal(fits[0].predict_std(X), fits[1].predict_std(X))
    for solver in (FirstOrder(max_iter=5), FirstOrder(max_iter=5, batch_size=16)):
        means = [DNN2GPRegressor(**FIXED, solver=solver).fit(X, Y).predict(X) for _ in range(2)]
        np.testing.assert_array_equal(*means)


@pytest.mark.parametrize("solver", ["adam", "lbfgs", "sgd", torch.optim.RMSprop, "gauss-newton"])
def test_other_solvers_reach_the_same_objective(solver):
    linear = {**FIXED, "hidden_layer_sizes": ()}
    expected = DNN2GPRegressor(**linear).fit(X, Y)
    if solver not in ("lbfgs", "gauss-newton"):
        solver = FirstOrder(
            solver, max_iter=3000, learning_rate=0.01, batch_size=50, tol=1e-10, n_iter_no_change=50
        )
    model = DNN2GPRegressor(**linear, solver=solver).fit(X, Y)
    # First-order solvers stop within a small part of a standard deviation of the minimum.
    np.testing.assert_allclose(model.predict(X), expected.predict(X), atol=0.05 * Y.std())
    assert model.loss_curve_[-1] == pytest.approx(expected.loss_curve_[-1], rel=1e-2)


def test_minibatches_estimate_the_same_objective():
    linear = {**FIXED, "hidden_layer_sizes": ()}
    full = DNN2GPRegressor(**linear).fit(X, Y)
    batches = DNN2GPRegressor(
        **linear,
        solver=FirstOrder(
            batch_size=10,
            max_iter=400,
            learning_rate=0.02,
            learning_rate_schedule="cosine",
            n_iter_no_change=400,
        ),
    ).fit(X, Y)
    np.testing.assert_allclose(batches.predict(X), full.predict(X), atol=0.05 * Y.std())


def test_auto_with_another_solver_and_a_schedule():
    model = DNN2GPRegressor(
        hidden_layer_sizes=(8,),
        solver=FirstOrder(max_iter=300, learning_rate_schedule="plateau"),
        random_state=0,
    ).fit(X, Y)
    assert model.prior_precision_ != 1.0
    assert model.score(X, Y) > 0.8


def test_adam_takes_the_evidence_s_updates_at_the_chosen_interval(monkeypatch):
    """Immer et al. 2021: the chosen δ and σ beat δ = σ = 1, in training more than after it."""
    made, updated = [], updates.updated_precision

    def counted(*arguments):
        made.append(updated(*arguments))
        return made[-1]

    monkeypatch.setattr(updates, "updated_precision", counted)

    def fitted(interval, **hyperparameters):
        solver = FirstOrder(max_iter=120, tol=0.0, n_iter_no_change=200, evidence_interval=interval)
        options = {"hidden_layer_sizes": (8,), "random_state": 0, "solver": solver}
        return DNN2GPRegressor(**options, **hyperparameters).fit(X, Y)

    fixed = fitted(30, prior_precision=1.0, noise_std=1.0)
    assert not made
    after = fitted(121)
    assert not made
    within = fitted(30)
    assert len(made) == 4 and len(set(made)) == 4
    evidences = [m.log_marginal_likelihood_value_ for m in (fixed, after, within)]
    assert evidences[0] < evidences[1] < evidences[2]
    with pytest.raises(ValueError, match="evidence_interval"):
        DNN2GPRegressor(solver=FirstOrder(evidence_interval=0)).fit(X, Y)


def test_module_class_and_instance():
    by_class = DNN2GPRegressor(Net, prior_precision=0.5, noise_std=0.3, random_state=0).fit(X, Y)
    assert by_class.score(X, Y) > 0.8
    instance = Net()
    before = copy.deepcopy(instance.state_dict())
    model = DNN2GPRegressor(instance, prior_precision=0.5, noise_std=0.3, random_state=0)
    first, second = (model.fit(X, Y).predict(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in instance.state_dict().items())


def test_skorch_net_is_cloned_and_trained_with_its_own_settings():
    net = NeuralNetRegressor(
        Net,
        module__width=7,
        optimizer=torch.optim.Adam,
        optimizer__weight_decay=0.0,
        lr=0.02,
        max_epochs=40,
        batch_size=16,
        callbacks=[LRScheduler("StepLR", step_size=20)],
        verbose=0,
    )
    model = DNN2GPRegressor(net, prior_precision=0.5, noise_std=0.3, random_state=0)
    model.fit(X, Y)
    assert len(model.net_.history) == 40
    # Two steps of the schedule, each a tenth.
    assert model.net_.optimizer_.param_groups[0]["lr"] == pytest.approx(2e-4, rel=1e-6)
    assert "get_loss" not in vars(model.net_)
    assert model.net_.train_split is None
    assert not hasattr(net, "module_")
    assert model.module_.layers[0].out_features == 7
    # The last steps are of a ten-thousandth: the epoch's mean loss is the objective where it ends.
    residual = (Y - model.predict(X)) / Y.std()
    w = torch.cat([p.detach().flatten() for p in model.module_.parameters()])
    loss = 0.5 * (residual**2).sum() / 0.3**2 + 50 * np.log(0.3 * np.sqrt(2 * np.pi))
    loss += 0.25 * float(w @ w)
    assert model.loss_curve_[-1] == pytest.approx(loss, rel=0.01)
    assert model.loss_curve_[-1] < model.loss_curve_[0]


def test_frozen_net_is_used_as_trained():
    net = NeuralNet(Net, nn.MSELoss, max_epochs=200, lr=0.1, batch_size=-1, verbose=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.fit(X.astype(np.float32), Y.astype(np.float32)[:, None])
    before = copy.deepcopy(net.module_.state_dict())
    for hyperparameters in ({"prior_precision": 0.5, "noise_std": 0.3}, {}):
        model = DNN2GPRegressor(FrozenEstimator(net), **hyperparameters).fit(X, Y)
        mean = net.predict(X.astype(np.float32))[:, 0]
        np.testing.assert_allclose(model.predict(X), mean, rtol=1e-4)
        assert all(torch.equal(before[k], v) for k, v in net.module_.state_dict().items())
        if not hyperparameters:  # chosen at fixed weights: the gradient of the evidence vanishes
            gradient = model.log_marginal_likelihood(eval_gradient=True)[1]
            np.testing.assert_allclose(gradient, 0.0, atol=1e-2)


def test_restarts_keep_the_best_evidence():
    one = [
        DNN2GPRegressor(**{**FIXED, "random_state": s}).fit(X, Y).log_marginal_likelihood()
        for s in range(3)
    ]
    several = DNN2GPRegressor(**FIXED, n_restarts=4).fit(X, Y)
    assert several.log_marginal_likelihood() >= one[0]


def test_warm_start_goes_on():
    model = DNN2GPRegressor(**FIXED, warm_start=True).fit(X, Y)
    first = model.predict(X)
    assert model.n_iter_ > 3
    model.fit(X, Y)
    assert model.n_iter_ <= 3
    np.testing.assert_allclose(model.predict(X), first, rtol=1e-5)


def test_pickle_and_clone(model):
    restored = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(restored.predict_std(X), model.predict_std(X))
    assert restored.log_marginal_likelihood() == model.log_marginal_likelihood()
    fresh = clone(model)
    assert not hasattr(fresh, "module_")
    assert fresh.get_params() == model.get_params()
    assert "DNN2GPRegressor" in model._repr_html_()


def test_single_rows_and_batches_agree(model):
    rows = np.array([model.predict(x[None])[0] for x in X])
    np.testing.assert_allclose(model.predict(X), rows, rtol=1e-12)
    stds = np.array([model.predict_std(x[None])[0] for x in X])
    np.testing.assert_allclose(model.predict_std(X), stds, rtol=1e-9)


def test_pandas_and_set_output():
    frame = pd.DataFrame(X, columns=["a", "b"])
    pipeline = make_pipeline(StandardScaler(), DNN2GPRegressor(**FIXED))
    pipeline.set_output(transform="pandas").fit(frame, pd.Series(Y))
    assert list(pipeline[-1].feature_names_in_) == ["a", "b"]
    mean, std = pipeline.predict(frame, return_std=True)
    assert mean.shape == std.shape == (50,)


def test_transformed_target_regressor():
    model = TransformedTargetRegressor(
        DNN2GPRegressor(**FIXED), func=np.log, inverse_func=np.exp
    ).fit(X, Y)
    inner = DNN2GPRegressor(**FIXED).fit(X, np.log(Y))
    np.testing.assert_allclose(model.predict(X), np.exp(inner.predict(X)), rtol=1e-12)


def test_grid_search_over_own_and_nested_parameters():
    search = GridSearchCV(
        DNN2GPRegressor(**FIXED), {"prior_precision": [0.1, 1e4], "noise_std": [0.2]}, cv=3
    ).fit(X, Y)
    assert search.best_params_["prior_precision"] == 0.1
    net = NeuralNetRegressor(Net, optimizer=torch.optim.Adam, lr=0.05, max_epochs=60, verbose=0)
    nested = GridSearchCV(
        DNN2GPRegressor(net, prior_precision=0.1, noise_std=0.3, random_state=0),
        {"net__module__width": [1, 8]},
        cv=3,
    ).fit(X, Y)
    scores = nested.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and scores[0] != scores[1]  # the width reached the network
    width = nested.best_params_["net__module__width"]
    assert width == [1, 8][scores.argmax()]
    assert nested.best_estimator_.module_.layers[0].out_features == width


def test_cross_validate_scores_each_fold():
    scores = cross_validate(
        DNN2GPRegressor(**FIXED), X, Y, cv=3, scoring=["r2", "neg_mean_squared_error"]
    )
    for k, (train, test) in enumerate(KFold(3).split(X)):
        squares = (DNN2GPRegressor(**FIXED).fit(X[train], Y[train]).predict(X[test]) - Y[test]) ** 2
        assert scores["test_neg_mean_squared_error"][k] == pytest.approx(-squares.mean(), rel=1e-9)
        r2 = 1.0 - squares.mean() / Y[test].var()
        assert scores["test_r2"][k] == pytest.approx(r2, rel=1e-9)


def test_images_go_through_a_convolution():
    images = RNG.standard_normal((20, 1, 6, 6))
    y = images.mean((1, 2, 3)) * 6
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1))
    model = DNN2GPRegressor(net, prior_precision=1.0, noise_std=0.3, random_state=0)
    model.fit(images, y)
    J = jacobian(copy.deepcopy(model.module_).double(), torch.tensor(images))
    A = J.T @ J / 0.3**2 + torch.eye(J.shape[1], dtype=torch.float64)
    V = (J @ torch.linalg.solve(A, J.T)).diagonal().numpy()
    std = np.std(y) * np.sqrt(0.3**2 + V)
    np.testing.assert_allclose(model.predict_std(images), std, rtol=1e-6)

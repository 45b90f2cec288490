"""Displays by their artists, data and axes; no comparison of images."""

import inspect
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import GridSearchCV
from sklearn.utils import Bunch

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor, plotting
from sk_dnn2gp.datasets import make_ring_and_core, make_sine_with_gap
from sk_dnn2gp.model_selection import TrainingSetSplit, marginal_likelihood_scorer
from sk_dnn2gp.plotting import (
    CoverageDisplay,
    DecisionMapDisplay,
    KernelDisplay,
    MarginalLikelihoodDisplay,
    PosteriorMeanDisplay,
    PredictiveDisplay,
    UncertaintyDisplay,
)
from sk_dnn2gp.training import FirstOrder


@pytest.fixture(autouse=True)
def closed_and_no_style():
    before = dict(plt.rcParams)
    yield
    plt.close("all")
    assert dict(plt.rcParams) == before


@pytest.fixture(scope="module")
def classifier():
    X, y = make_ring_and_core(30, random_state=0)
    names = np.where(y == 1, "ring", "core")
    model = DNN2GPClassifier(hidden_layer_sizes=(4,), prior_precision=1.0, random_state=0)
    return model.fit(X, names), X, names


@pytest.mark.parametrize("name", plotting.__all__)
def test_every_display_takes_an_estimator_X_and_y(name):
    parameters = inspect.signature(getattr(plotting, name).from_estimator).parameters
    assert list(parameters)[:3] == ["estimator", "X", "y"]


def band_at(band, x):
    vertices = band.get_paths()[0].vertices
    at = vertices[np.isclose(vertices[:, 0], x), 1]
    return at.min(), at.max()


def test_predictive_of_an_estimator():
    X, y = make_sine_with_gap(30, random_state=0)
    model = DNN2GPRegressor(
        hidden_layer_sizes=(4,), prior_precision=0.1, noise_std=0.2, random_state=0
    ).fit(X, y)
    grid = np.linspace(3, -3, 7)[:, None]
    _, ax = plt.subplots()
    display = PredictiveDisplay.from_estimator(model, X, y, grid=grid, ax=ax)
    assert display.ax_ is ax and display.figure_ is ax.figure
    order = np.argsort(grid[:, 0])
    np.testing.assert_array_equal(display.line_.get_ydata(), model.predict(grid)[order])
    np.testing.assert_array_equal(display.data_.get_offsets(), np.column_stack([X[:, 0], y]))
    for target, band in (("latent", display.epistemic_band_), ("y", display.total_band_)):
        std, mean = model.predict_std(grid[:1], target=target)[0], model.predict(grid[:1])[0]
        # The last digits differ with the number of rows predicted at once.
        np.testing.assert_allclose(band_at(band, 3.0), (mean - 2 * std, mean + 2 * std), rtol=1e-10)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    whole = PredictiveDisplay.from_estimator(model, X, margin=0.5)
    width = X.max() - X.min()
    np.testing.assert_allclose(
        whole.x[[0, -1]], [X.min() - width / 2, X.max() + width / 2], rtol=1e-15
    )
    assert whole.data_ is None
    for wrong in ({"X": np.ones((3, 2))}, {"X": X, "grid": np.ones(3)}):
        with pytest.raises(ValueError, match="one column"):
            PredictiveDisplay.from_estimator(model, **wrong)


def test_kernel_is_sorted_and_marked(classifier):
    X, y = np.array([[0.0], [1.0], [5.0]]), ["b", "a", "b"]
    display = KernelDisplay.from_estimator(RBF(), X, y)
    order = [1, 0, 2]
    np.testing.assert_array_equal(display.im_.get_array(), RBF()(X)[np.ix_(order, order)])
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["a", "b"]
    assert display.ax_.get_xticks().tolist() == [0, 1.5] and len(display.lines_) == 2
    assert display.lines_[0].get_ydata()[0] == 0.5 and display.colorbar_ is not None
    many = KernelDisplay.from_predictions(np.eye(21), np.arange(21.0))
    assert many.lines_ == [] and many.ax_.get_ylabel() == "examples, sorted by target"
    model, inputs, names = classifier
    fitted = KernelDisplay.from_estimator(model, inputs, names)
    by_name = np.argsort(names, kind="stable")
    K = model.kernel_(inputs)[np.ix_(by_name, by_name)]
    np.testing.assert_array_equal(fitted.im_.get_array(), K)
    with pytest.raises(ValueError, match="square"):
        KernelDisplay.from_predictions(np.ones((2, 3)), [0, 1])


def test_posterior_mean_of_a_classifier(classifier):
    model, X, y = classifier
    display = PosteriorMeanDisplay.from_estimator(model, X, y)
    expected = model.predict_proba(X)[np.argsort(y, kind="stable")]
    np.testing.assert_array_equal(display.im_.get_array(), expected)
    assert [t.get_text() for t in display.ax_.get_xticklabels()] == ["core", "ring"]
    with pytest.raises(ValueError, match="inconsistent"):
        PosteriorMeanDisplay.from_predictions(np.ones((3, 2)), [0, 1])


def test_uncertainty_bars_are_means_per_class(classifier):
    model, X, y = classifier
    display = UncertaintyDisplay.from_estimator(model, X, y)
    parts = model.predict_uncertainty(X)
    for k, name in enumerate(["core", "ring"]):
        noise = parts.aleatoric[y == name].sum(axis=1).mean()
        ignorance = parts.epistemic[y == name].sum(axis=1).mean()
        # Sums in another order: a few ulps of float64.
        np.testing.assert_allclose(display.aleatoric_bars_[k].get_height(), noise, rtol=1e-12)
        np.testing.assert_allclose(display.epistemic_bars_[k].get_height(), ignorance, rtol=1e-12)
        np.testing.assert_allclose(display.epistemic_bars_[k].get_y(), noise, rtol=1e-12)


def test_marginal_likelihood_stars_and_bands():
    values = [100.0, 1.0, 10.0]
    loss = np.array([[3.0, 5.0], [2.0, 2.0], [7.0, 9.0]])
    display = MarginalLikelihoodDisplay.from_predictions(values, [-7, -9, -5], test_loss=loss)
    assert display.lines_["evidence"].get_ydata().tolist() == [-9, -5, -7]
    assert display.stars_["evidence"].get_xdata().tolist() == [10]
    assert display.stars_["test loss"].get_xdata().tolist() == [1]
    # Standard error of the mean of 3 and 5: their sample deviation √2 over √2.
    assert band_at(display.bands_["test loss"], 100.0) == pytest.approx((3, 5), rel=1e-15)
    assert display.ax_.get_xscale() == "log" and display.loss_ax_.get_ylabel() == "loss"
    assert set(display.lines_) == {"evidence", "test loss"}


def test_marginal_likelihood_of_a_search():
    results = {
        "param_delta": np.ma.array([10.0, 1.0]),
        "mean_test_evidence": np.array([-1.0, -2.0]),
        "std_test_evidence": np.zeros(2),
        "mean_test_mse": np.array([-4.0, -3.0]),
        "std_test_mse": np.array([2.0, 0.0]),
        "mean_train_mse": np.array([-2.0, -1.0]),
        "std_train_mse": np.zeros(2),
    }
    search = Bunch(cv_results_=results, n_splits_=5)
    display = MarginalLikelihoodDisplay.from_search(
        search, "delta", evidence="evidence", loss="mse"
    )
    assert display.lines_["test loss"].get_ydata().tolist() == [3, 4]
    assert band_at(display.bands_["test loss"], 10.0) == pytest.approx((3, 5), rel=1e-15)
    assert display.stars_["evidence"].get_xdata().tolist() == [10]
    assert display.ax_.get_xlabel() == "delta" and "train loss" in display.lines_
    with pytest.raises(ValueError, match="no metric 'score'"):
        MarginalLikelihoodDisplay.from_search(search, "delta")
    with pytest.raises(ValueError, match="'sigma' alone"):
        MarginalLikelihoodDisplay.from_search(search, "sigma")


@pytest.mark.parametrize("split", [TrainingSetSplit(), 2])
def test_marginal_likelihood_of_a_grid_search_over_widths(split):
    X, y = make_sine_with_gap(30, random_state=0)
    model = DNN2GPRegressor(
        prior_precision=0.3, noise_std=0.5, solver=FirstOrder(max_iter=30), random_state=0
    )
    search = GridSearchCV(
        model,
        {"hidden_layer_sizes": [(4,), (1,), (2,)]},
        scoring={"evidence": marginal_likelihood_scorer, "mse": "neg_mean_squared_error"},
        refit="evidence",
        cv=split,
    ).fit(X, y)
    display = MarginalLikelihoodDisplay.from_search(
        search, "hidden_layer_sizes", evidence="evidence", loss="mse"
    )
    label = "test loss" if split == 2 else "train loss"
    assert set(display.lines_) == {"evidence", label}
    assert display.lines_[label].get_xdata().tolist() == [1, 2, 4]
    mean = search.cv_results_["mean_test_mse"]
    np.testing.assert_array_equal(display.lines_[label].get_ydata(), -mean[[1, 2, 0]])
    if split != 2:
        drawn = MarginalLikelihoodDisplay.from_estimator(
            model, X, y, param_name="hidden_layer_sizes", param_range=[(4,), (1,), (2,)],
            loss="neg_mean_squared_error",
        )  # fmt: skip
        for name in ("evidence", label):
            curves = [d.lines_[name].get_ydata() for d in (drawn, display)]
            np.testing.assert_array_equal(*curves)
    search.cv_results_["param_hidden_layer_sizes"][0] = (4, 4)
    with pytest.raises(ValueError, match=r"took the value \(4, 4\): only numbers"):
        MarginalLikelihoodDisplay.from_search(
            search, "hidden_layer_sizes", evidence="evidence", loss="mse"
        )


def test_a_hyperparameter_at_zero_is_drawn_on_a_linear_axis():
    display = MarginalLikelihoodDisplay.from_predictions([0, 1], [-7, -9])
    assert display.ax_.get_xscale() == "linear"


def test_without_matplotlib_the_extra_is_named():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from sk_dnn2gp.plotting import PredictiveDisplay as D\n"
        "try: D.from_predictions([0], [0], [1], [1])\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sk_dnn2gp[plot]" in out.stdout


def test_coverage_counts_the_targets_inside():
    y, std = np.array([0.0, 0.5, -1.5, 3.0]), np.ones(4)
    display = CoverageDisplay.from_predictions(y, np.zeros(4), std, name="mine")
    # 68 % intervals reach to 0.994, 50 % ones to 0.674, 10 % ones to 0.126.
    for level, inside in ((0.1, 1), (0.5, 2), (0.68, 2), (0.9, 3)):
        i = np.abs(display.nominal - level).argmin()
        assert display.empirical[i] == inside / 4
    np.testing.assert_array_equal(display.line_.get_ydata(), display.empirical)
    assert display.line_.get_label() == "mine"
    with pytest.raises(ValueError, match="std must be positive"):
        CoverageDisplay.from_predictions(y, y, 0 * std)


def test_coverage_of_an_estimator():
    X, y = make_sine_with_gap(60, random_state=0)
    model = DNN2GPRegressor(
        hidden_layer_sizes=(4,), prior_precision=0.1, noise_std=0.2, random_state=0
    ).fit(X, y)
    display = CoverageDisplay.from_estimator(model, X, y)
    mean, std = model.predict(X, return_std=True)
    i = np.abs(display.nominal - 0.9).argmin()
    assert display.empirical[i] == np.mean(np.abs(y - mean) <= 1.6448536 * std)
    assert display.line_.get_label() == "DNN2GPRegressor"


@pytest.mark.parametrize("response", ["probability", "aleatoric", "epistemic", "latent"])
def test_maps_hold_the_estimators_own_numbers(classifier, response):
    model, X, names = classifier
    display = DecisionMapDisplay.from_estimator(model, X, names, response=response, resolution=9)
    point = [[display.xx0[3, 5], display.xx1[3, 5]]]
    parts = model.predict_uncertainty(point)
    expected = {
        "probability": model.predict_proba(point),
        "aleatoric": parts.aleatoric,
        "epistemic": parts.epistemic,
        "latent": model.predict_std(point, "latent"),
    }[response][0, -1]
    assert display.values[3, 5] == pytest.approx(expected, rel=1e-9)
    assert display.xx0.min() == pytest.approx(X[:, 0].min() - 1)
    assert [s.get_label() for s in display.scatters_] == ["core", "ring"]
    assert display.colorbar_.ax.get_ylabel() == response


def test_maps_refuse_other_responses_and_planes(classifier):
    model, X, names = classifier
    with pytest.raises(ValueError, match="response must be"):
        DecisionMapDisplay.from_estimator(model, X, names, response="logit", resolution=3)
    with pytest.raises(ValueError, match="two columns"):
        DecisionMapDisplay.from_estimator(model, X[:, :1])

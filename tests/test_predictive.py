"""Predictive distributions: densities that integrate to one, quantiles that invert, units of y."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.compose import TransformedTargetRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.model_selection import log_predictive_density_scorer
from sk_dnn2gp.plotting import CoverageDisplay, QuantileCalibrationDisplay
from sk_dnn2gp.predictive import Affine, Normal, Predictive
from sk_dnn2gp.predictive.contract import inverted

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (50, 2))
Y = 10 + 4 * np.sin(2 * X[:, 0]) + 0.4 * RNG.standard_normal(50)
Y2 = np.c_[Y, X[:, 1] ** 2]
FIXED = {"hidden_layer_sizes": (5,), "prior_precision": 0.5, "noise_std": 0.2, "random_state": 0}
Q = np.array([1e-6, 0.025, 0.3, 0.5, 0.9, 1 - 1e-6])


@pytest.fixture(scope="module")
def model():
    return DNN2GPRegressor(**FIXED).fit(X, Y)


@pytest.fixture(scope="module")
def several():
    return DNN2GPRegressor(**FIXED).fit(X, Y2)


class Bimodal(Predictive):
    """Two normals of different width, far apart: the hardest distribution function to invert."""

    centres, widths = np.array([-30.0, 5.0]), np.array([0.01, 2.0])

    def __init__(self):
        super().__init__(*np.zeros((3, 1, 1)))

    def log_density(self, y):
        return np.log(norm.pdf(y[..., None], self.centres, self.widths).mean(-1))

    def cdf(self, y):
        return norm.cdf(y[..., None], self.centres, self.widths).mean(-1)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("q", [1e-4, 0.3, 0.499999, 0.500001, 0.75, 0.9999])
def test_inversion_between_modes(q):
    low, high = np.full((1, 1), -40.0), np.full((1, 1), 40.0)
    found = inverted(Bimodal(), q, low, high)
    # A last digit of y at -30 is 3.6e-15, and the density there up to 20: 7e-14 of the function.
    assert Bimodal().cdf(found).item() == pytest.approx(q, abs=1.5e-13)


def test_densities_integrate_to_one_and_to_their_distribution_function(model):
    distribution = model.predict_distribution(X[:1])
    mean, std = distribution.mean.item(), np.sqrt(distribution.variance.item())

    def density(y):
        return np.exp(distribution.log_density([[y]])).item()

    for end in (mean - std, mean, mean + 40 * std):
        area = quad(density, mean - 40 * std, end, points=[mean], epsabs=1e-13)[0]
        assert area == pytest.approx(distribution.cdf([[end]]).item(), abs=1e-12)
    moment = quad(lambda y: (y - mean) ** 2 * density(y), mean - 40 * std, mean + 40 * std,
                  points=[mean])[0]  # fmt: skip
    assert moment == pytest.approx(std**2, rel=1e-9)


@pytest.mark.parametrize("name", ["model", "several"])
def test_quantiles_invert_the_distribution_function(name, request):
    fitted = request.getfixturevalue(name)
    distribution = fitted.predict_distribution(X[:7])
    quantiles = fitted.predict_quantile(X[:7], Q)
    K = distribution.mean.shape[1]
    assert quantiles.shape == ((7, len(Q)) if K == 1 else (7, K, len(Q)))
    for i, q in enumerate(Q):
        y = quantiles[..., i].reshape(7, K)
        # Φ(Φ⁻¹(q)) at six standard deviations: a relative 1e-15 of z is 4e-14 of the tail.
        np.testing.assert_allclose(distribution.cdf(y), q, rtol=1e-9)
        np.testing.assert_array_equal(fitted.predict_quantile(X[:7], q), quantiles[..., i])
    assert (np.diff(quantiles, axis=-1) > 0).all()


def test_the_gaussian_is_that_of_mean_and_std(model, several):
    for fitted, targets in ((model, Y), (several, Y2)):
        mean, std = fitted.predict(X, return_std=True)
        np.testing.assert_allclose(
            fitted.log_predictive_density(X, targets), norm.logpdf(targets, mean, std), rtol=1e-10
        )
        interval = fitted.predict_interval(X, 0.9)
        assert interval.shape == (*mean.shape, 2)
        z = norm.ppf(0.95)
        np.testing.assert_allclose(interval[..., 0], mean - z * std, rtol=1e-12)
        np.testing.assert_allclose(interval[..., 1], mean + z * std, rtol=1e-12)
        both = fitted.predict_interval(X, [0.5, 0.9])
        assert both.shape == (*mean.shape, 2, 2)
        np.testing.assert_array_equal(both[..., 1], interval)
        np.testing.assert_array_equal(fitted.predict_interval(X), fitted.predict_interval(X, 0.95))


def test_units_of_y(model):
    a, b = 250.0, -3.0
    other = DNN2GPRegressor(**FIXED).fit(X, a * Y + b)
    np.testing.assert_allclose(
        other.predict_interval(X), a * model.predict_interval(X) + b, rtol=1e-6
    )
    np.testing.assert_allclose(
        other.log_predictive_density(X, a * Y + b),
        model.log_predictive_density(X, Y) - np.log(a),
        rtol=1e-6,
    )


def test_what_is_refused(model, several):
    for wrong in (0.0, 1.0, -0.1, np.nan, [0.5, 1.0], [[0.5]], []):
        with pytest.raises(ValueError, match="q must be a probability"):
            model.predict_quantile(X, wrong)
        with pytest.raises(ValueError, match="coverage must be a probability"):
            model.predict_interval(X, wrong)
    with pytest.raises(ValueError, match="inconsistent"):
        model.log_predictive_density(X, Y[:-1])
    with pytest.raises(ValueError, match=r"2 finite target\(s\)"):
        several.log_predictive_density(X, Y)
    with pytest.raises(ValueError, match="finite"):
        model.log_predictive_density(X[:1], [np.nan])
    classifier = DNN2GPClassifier(hidden_layer_sizes=(3,), prior_precision=1.0, random_state=0)
    classifier.fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match="not seen"):
        classifier.log_predictive_density(X[:1], ["left"])


def test_scorer_is_the_mean_density(model, several):
    weight = RNG.uniform(0.5, 2, 50)
    rows = model.log_predictive_density(X, Y)
    assert log_predictive_density_scorer(model, X, Y) == pytest.approx(rows.mean(), rel=1e-13)
    assert log_predictive_density_scorer(model, X, Y, sample_weight=weight) == pytest.approx(
        np.average(rows, weights=weight), rel=1e-13
    )
    total = several.log_predictive_density(X, Y2).sum(1).mean()
    assert log_predictive_density_scorer(several, X, Y2) == pytest.approx(total, rel=1e-13)
    with pytest.raises(TypeError, match="no marginal likelihood or density"):
        log_predictive_density_scorer(GaussianProcessRegressor(optimizer=None).fit(X, Y), X, Y)


def test_scorer_of_a_classifier_is_minus_the_log_loss():
    labels = np.where(X[:, 0] > 0, "right", "left")
    model = DNN2GPClassifier(hidden_layer_sizes=(3,), prior_precision=1.0, random_state=0)
    model.fit(X, labels)
    expected = -log_loss(labels, model.predict_proba(X))
    assert log_predictive_density_scorer(model, X, labels) == pytest.approx(expected, rel=1e-10)
    names = ["right"] * 50
    log_p = model.predict_log_proba(X, link="mc")[:, 1]
    np.testing.assert_array_equal(model.log_predictive_density(X, names, link="mc"), log_p)


def test_scorer_through_transformations_and_cross_validation():
    """log y as the target: the density of y has a factor 1/y more."""
    log = FunctionTransformer(np.log, np.exp)
    inner = make_pipeline(StandardScaler(), DNN2GPRegressor(**FIXED))
    outer = TransformedTargetRegressor(inner, transformer=log).fit(X, Y)
    bare = inner.fit(X, np.log(Y))
    expected = bare[-1].log_predictive_density(bare[0].transform(X), np.log(Y)) - np.log(Y)
    found = log_predictive_density_scorer(outer, X, Y)
    assert found == pytest.approx(expected.mean(), abs=1e-7)  # the derivative is a difference
    scores = cross_val_score(outer, X, Y, scoring=log_predictive_density_scorer, cv=2)
    assert np.isfinite(scores).all()


def test_displays_of_every_regressor_with_a_std(model, several):
    gp = GaussianProcessRegressor(alpha=0.1, normalize_y=True).fit(X, Y)
    mean, std = gp.predict(X, return_std=True)
    display = QuantileCalibrationDisplay.from_estimator(gp, X, Y)
    u = norm.cdf(Y, mean, std)  # uniform, where the distribution is right
    np.testing.assert_allclose(display.below, (u[:, None] <= display.levels).mean(0), atol=1e-12)
    own = QuantileCalibrationDisplay.from_estimator(several, X, Y2, name="two")
    assert own.n_targets == 100 and own.line_.get_label() == "two"
    u = several.predict_distribution(X).cdf(Y2).ravel()
    np.testing.assert_allclose(own.below, (u[:, None] <= own.levels).mean(0), atol=1e-12)
    np.testing.assert_array_equal(own.line_.get_ydata(), own.below)
    coverage = CoverageDisplay.from_estimator(several, X, Y2)
    inside = np.abs(2 * u - 1)[:, None] <= coverage.nominal
    np.testing.assert_allclose(coverage.empirical, inside.mean(0), atol=1e-12)
    with pytest.raises(ValueError, match="y has shape"):
        QuantileCalibrationDisplay.from_estimator(model, X, Y2)


def test_the_band_holds_calibrated_curves():
    """Of 400 calibrated sets of 200 targets, 0.95 of the points are inside at each level."""
    levels = np.array([0.1, 0.5, 0.9])
    u = np.random.default_rng(1).uniform(size=(400, 200))
    below = (u[..., None] <= levels).mean(1)
    display = QuantileCalibrationDisplay.from_predictions(u[0], np.tile(levels, (200, 1)), levels)
    vertices = display.band_.get_paths()[0].vertices
    for level, column in zip(levels, below.T, strict=True):
        at = vertices[np.isclose(vertices[:, 0], level), 1]
        inside = ((column >= at.min() - 1e-9) & (column <= at.max() + 1e-9)).mean()
        # Whole numbers make it a little more than 0.95; 400 draws are known to 0.011 of it.
        assert 0.92 < inside < 0.995


def test_affine_moves_every_part():
    inner = Normal(np.zeros((1, 2)), np.ones((1, 2)), np.ones((1, 2)))
    shift, scale = np.array([1.0, -2.0]), np.array([3.0, 0.5])
    moved, y = Affine(inner, shift, scale), np.array([[2.0, 0.3]])
    std = np.sqrt(2.0) * scale
    np.testing.assert_allclose(moved.log_density(y), norm.logpdf(y, shift, std), rtol=1e-13)
    np.testing.assert_allclose(moved.cdf(y), norm.cdf(y, shift, std), rtol=1e-13)
    np.testing.assert_allclose(moved.quantile(0.3), norm.ppf(0.3, shift, std)[None], rtol=1e-13)
    np.testing.assert_allclose(moved.variance, std[None] ** 2, rtol=1e-13)

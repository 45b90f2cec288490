"""Other likelihoods: the contract, and DNN2GPRegressor with counts, outliers, a user's own."""

import math
import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import poisson, t
from sklearn.base import clone
from sklearn.linear_model import PoissonRegressor
from sklearn.model_selection import GridSearchCV

import sk_dnn2gp
from sk_dnn2gp import DNN2GPRegressor, TrainingSetSplit, marginal_likelihood_scorer
from sk_dnn2gp.likelihoods import Bernoulli, Gaussian, Likelihood, Ordinal, Poisson, StudentT
from sk_dnn2gp.predictive import PoissonLognormal, StudentNormal
from sk_dnn2gp.training import NewtonCG

from .likelihood_contract import check

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (60, 1))
COUNTS = RNG.poisson(np.exp(1.5 + np.sin(2 * X[:, 0]))).astype(float)
CURVE = np.sin(2 * X[:, 0]) + 0.1 * RNG.standard_normal(60)
FIXED = {"hidden_layer_sizes": (5,), "prior_precision": 0.5, "random_state": 0}


@dataclass(frozen=True)
class Exponential(Likelihood):
    """A user's own: waiting times of mean e^f, with nothing more than the contract asks for."""

    is_definite: ClassVar[bool] = True

    def negative_log_likelihood(self, f, y):
        return (f + y * torch.exp(-f)).sum(-1)

    def residual(self, f, y):
        return 1.0 - y * torch.exp(-f)

    def noise_precision(self, f):
        return torch.eye(f.shape[-1]).to(f).expand(len(f), -1, -1)

    def noise_precision_factor(self, f):
        return self.noise_precision(f)

    def whitened_residual(self, f, y):
        return self.residual(f, y)

    def log_noise_determinant(self, f):
        return f.new_full((len(f),), -f.shape[-1] * math.log(2 * math.pi))

    def mean(self, f):
        return torch.exp(f)

    def aleatoric(self, f):
        return torch.diag_embed(torch.exp(2 * f))

    def epistemic(self, f, V):
        slope = torch.diag_embed(torch.exp(f))
        return slope @ V @ slope

    def cdf(self, f, y):
        return -torch.expm1(-y.clamp_min(0.0) * torch.exp(-f))

    def sample(self, f, generator=None):
        return -torch.exp(f) * torch.log1p(-torch.rand(f.shape, generator=generator).to(f))


CASES = [
    pytest.param(Gaussian(0.7), [-1.0, 0.5], (-12, 12), 1e-9, id="gaussian"),
    pytest.param(Poisson(), [-1.0, 0.0, 3.0], (0, 120), 1e-9, id="poisson"),
    pytest.param(Poisson(7.5), [-1.0, 0.0, 1.0], (0, 120), 1e-9, id="exposed"),
    pytest.param(StudentT(0.3, 20.0), [-1.0, 0.5], (-60, 60), 1e-8, id="student"),
    # ν = 6 leaves 1e-11 of its mass, and 1e-6 of its variance, beyond 400 scales.
    pytest.param(StudentT(0.5, 6.0), [-1.0, 0.5], (-200, 200), 1e-8, id="heavier"),
    pytest.param(Ordinal(0.7, (-1.0, 0.2, 1.5)), [-2.0, 0.0, 3.0], (0, 3), 1e-9, id="ordinal"),
    pytest.param(Exponential(), [0.0, 0.7], (0, 120), 2e-4, id="a user's"),
]


@pytest.mark.parametrize(("likelihood", "f", "ends", "tol"), CASES)
def test_contract(likelihood, f, ends, tol):
    check(likelihood, f, *ends, tol=tol)


def test_the_contract_finds_a_wrong_likelihood():
    class Wrong(Exponential):
        def noise_precision(self, f):
            return 2.0 * super().noise_precision(f)

    with pytest.raises(AssertionError):
        check(Wrong(), [0.0], 0, 120, tol=2e-4)


@pytest.mark.parametrize("df", [2.1, 4.0, 30.0])
def test_student_far_out_and_without_ignorance(df):
    law = StudentNormal(np.zeros((1, 1)), np.zeros((1, 1)), 0.7, df)
    for y in (0.0, 0.3, 2.0, 15.0):
        assert law.log_density([[y]]).item() == pytest.approx(t(df, scale=0.7).logpdf(y), abs=1e-9)
        assert law.cdf([[-y]]).item() == pytest.approx(t(df, scale=0.7).cdf(-y), rel=1e-9)
    many = StudentNormal(np.zeros((20_000, 2)), np.ones((20_000, 2)), 0.7, df)  # in chunks
    assert np.ptp(many.cdf(np.ones((20_000, 2)))) < 1e-15


@pytest.mark.parametrize("V", [1e-8, 1e-3, 0.3, 4.0, 30.0])
@pytest.mark.parametrize("m", [-3.0, 0.0, 3.0, 8.0])
def test_counts_of_any_size_and_spread(m, V):
    """Sums of the probabilities are the distribution function, taken another way; moments too."""
    most = 60_000 if m == 8.0 else 3000
    k = np.unique(np.r_[np.arange(min(most, 3000)), [most]])[:, None]
    law = PoissonLognormal(np.full(k.shape, m), np.full(k.shape, V))
    p, below = np.exp(law.log_density(k))[:3000, 0], law.cdf(k)[:3000, 0]
    np.testing.assert_allclose(np.cumsum(p), below, atol=1e-12)
    if V == 1e-8:
        np.testing.assert_allclose(p, poisson.pmf(k[:3000, 0], np.exp(m)), atol=2e-6)
    one = PoissonLognormal(np.full((1, 1), m), np.full((1, 1), V))
    assert one.cdf([[-1]]).item() == 0 and one.log_density([[0.5]]).item() == -np.inf


@pytest.mark.filterwarnings("error")
def test_counts_that_are_out_of_reach():
    """Of rates beyond 2^53 and beyond float64: a median, infinity or a density, and no NaN."""
    m, V = np.array([[40.0], [500.0], [800.0]]), np.array([[0.3], [300.0], [900.0]])
    law = PoissonLognormal(m, V)
    np.testing.assert_allclose(law.quantile(0.5)[:2, 0], np.exp([40.0, 500.0]), rtol=1e-9)
    assert law.quantile(0.5)[2] == law.mean[2] == law.variance[2] == np.inf
    covariance = law.joint_covariance(np.zeros((3, 3, 1)))[..., 0]
    assert (covariance[~np.eye(3, dtype=bool)] == 0).all()  # of an infinite mean too
    # By mpmath with 30 digits, over 40 widths of the peak on both sides.
    low, high = -14645.850815929689, -105437.31013225229
    law = PoissonLognormal(np.array([[300.0], [800.0]]), np.full((2, 1), 3.0))
    found = law.log_density(np.array([[0.0], [3.0]]))
    np.testing.assert_allclose(found[:, 0], [low, high], rtol=1e-13)


def test_counts_in_the_estimator():
    """E[y], its parts, intervals and draws all of one predictive distribution."""
    model = DNN2GPRegressor(likelihood=Poisson(), **FIXED).fit(X, COUNTS)
    assert model._result.likelihood.exposure == pytest.approx(COUNTS.mean())
    mean, std = model.predict(X, return_std=True)
    f = model.sample_y(X[:3], 40_000, target="latent")
    V = model.predict_std(X[:3], "latent") ** 2
    np.testing.assert_allclose(f.var(1), V, rtol=0.05)
    m = np.log(COUNTS.mean()) + f.mean(1)
    np.testing.assert_allclose(mean[:3], np.exp(m + V / 2), rtol=0.02)
    draws = model.sample_y(X[:3], 40_000)
    assert (draws == np.floor(draws)).all() and draws.min() >= 0
    np.testing.assert_allclose(draws.mean(1), mean[:3], rtol=0.02)
    np.testing.assert_allclose(draws.std(1), std[:3], rtol=0.04)
    covariance = model.predict(X[:3], return_cov=True)[1]
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), std[:3], rtol=1e-9)
    np.testing.assert_allclose(np.cov(draws), covariance, atol=0.05 * covariance.max())
    parts = model.predict_uncertainty(X)
    np.testing.assert_allclose(parts.aleatoric, mean, rtol=1e-12)  # Poisson's variance
    np.testing.assert_allclose(parts.total, std**2, rtol=1e-12)
    low, high = model.predict_interval(X, 0.9).T
    assert np.mean((low <= COUNTS) & (high >= COUNTS)) > 0.85
    p = np.exp([model.log_predictive_density(X[:2], [k, k]) for k in range(200)])
    np.testing.assert_allclose(p.sum(0), 1.0, rtol=1e-9)
    assert not hasattr(model, "noise_std_")
    assert model.log_marginal_likelihood(eval_gradient=True)[1].shape == (1,)


def test_a_linear_network_is_scikit_learns_poisson_regressor():
    """Without hidden layers and δ → 0 both are the maximum of the same likelihood."""
    Z = RNG.uniform(-1, 1, (200, 2))
    y = RNG.poisson(np.exp(0.5 + Z @ [1.0, -0.5])).astype(float)
    ours = DNN2GPRegressor(
        hidden_layer_sizes=(), prior_precision=1e-7, likelihood=Poisson(), random_state=0
    ).fit(Z, y)
    theirs = PoissonRegressor(alpha=0.0, tol=1e-10, max_iter=1000).fit(Z, y)
    median = np.exp(np.log(ours.predict(Z)) - ours.predict_std(Z, "latent") ** 2 / 2)
    np.testing.assert_allclose(median, theirs.predict(Z), rtol=1e-4)


def test_two_ordered_categories_are_a_logistic_network():
    """One threshold at zero is the Bernoulli; several are logistic at each of them."""
    f = torch.linspace(-30, 30, 13, dtype=torch.float64)[:, None]
    y = (torch.arange(13) % 2)[:, None].double()
    ordinal = Ordinal(thresholds=(0.0,))
    for name in ("negative_log_likelihood", "residual"):
        ours, theirs = (getattr(one, name)(f, y) for one in (ordinal, Bernoulli()))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-300)
    information = Bernoulli().noise_precision(f)
    torch.testing.assert_close(ordinal.noise_precision(f), information, rtol=1e-9, atol=0)
    several = Ordinal(0.5, (-1.0, 0.0, 2.0))
    at, k = f.expand(-1, 4).reshape(-1, 1), torch.arange(4).repeat(13)[:, None]
    p = several.negative_log_likelihood(at, k).neg().exp()
    below = torch.sigmoid((torch.tensor([-1.0, 0.0, 2.0]) - f) / 0.5)
    torch.testing.assert_close(p.view(13, 4).cumsum(1)[:, :3], below, rtol=1e-12, atol=1e-15)


def test_ordered_categories_in_the_estimator():
    """Of the probabilities of all categories: mean, variance, draws, and better than none."""
    y = np.digitize(CURVE, [-0.8, 0.0, 0.8]).astype(float)
    model = DNN2GPRegressor(likelihood=Ordinal(0.3), **FIXED).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    k = np.arange(4.0)
    p = np.exp([again.log_predictive_density(X, np.full(len(X), one)) for one in k]).T
    np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-9)
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(p @ k, mean, rtol=1e-9)
    np.testing.assert_allclose((p * (k - mean[:, None]) ** 2).sum(1), std**2, rtol=1e-6)
    draws = model.sample_y(X[:5], 20_000)
    # Five standard errors of a mean of 20,000 draws.
    assert (np.abs(draws.mean(1) - mean[:5]) < 5 * std[:5] / np.sqrt(20_000)).all()
    low, high = model.predict_interval(X, 0.9).T
    assert np.mean((low <= y) & (y <= high)) > 0.9
    frequency = np.bincount(y.astype(int)) / len(y)
    own = p[np.arange(len(y)), y.astype(int)]
    assert np.log(own).mean() > np.log(frequency[y.astype(int)]).mean() + 0.5


def test_what_is_no_ordered_category():
    for bad in ({"scale": 0.0}, {"thresholds": (1.0, 1.0)}, {"thresholds": (0.0, np.inf)}):
        with pytest.raises(ValueError, match="must be"):
            Ordinal(**bad)
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        DNN2GPRegressor(likelihood=Ordinal(thresholds=(0.0, 1.0))).fit(X, 3 + 0 * CURVE)
    with pytest.raises(ValueError, match="needs thresholds"):
        DNN2GPRegressor(likelihood=Ordinal(), normalize_y=False).fit(X, np.sign(CURVE) + 1)
    sure = Ordinal(1e-3, (0.0,)).predictive(torch.tensor([[-9.0], [9.0]]), torch.zeros(2, 1))
    assert sure.quantile(0.5).tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("scale", [1.0, 0.2, 0.03])
def test_categories_that_are_narrow_beside_what_is_known_of_f(scale):
    """Moments, probabilities and densities by steps of 1e-4 √V: s = √V/47 is no matter."""
    law, c = Ordinal(scale, (-1.0, 0.0, 1.0)), np.array([-1.0, 0.0, 1.0])
    m, V = np.array([0.3, -2.0]), np.array([2.0, 0.5])
    one = law.predictive(torch.tensor(m)[:, None], torch.tensor(V)[:, None])
    z = np.linspace(-10.0, 10.0, 200_001)
    weight = np.exp(-0.5 * z**2) / np.exp(-0.5 * z**2).sum()
    above = expit((m[:, None, None] + np.sqrt(V)[:, None, None] * z - c[:, None]) / scale)
    mean = above.sum(1)
    np.testing.assert_allclose(one.mean[:, 0], mean @ weight, atol=1e-12)
    centred = (mean - (mean @ weight)[:, None]) ** 2
    np.testing.assert_allclose(one.epistemic[:, 0], centred @ weight, atol=1e-11)
    squares = (above * np.array([1.0, 3.0, 5.0])[:, None]).sum(1)  # E[y²] = Σ (2k - 1) P(y ≥ k)
    np.testing.assert_allclose(one.aleatoric[:, 0], (squares - mean**2) @ weight, atol=1e-11)
    for k in range(3):
        cdf = (1.0 - above[:, k]) @ weight
        np.testing.assert_allclose(one.cdf(np.full((2, 1), k))[:, 0], cdf, atol=1e-12)
    p = np.exp([one.log_density(np.full((2, 1), k))[:, 0] for k in range(4)])
    np.testing.assert_allclose(p.cumsum(0)[:3].T, 1.0 - above @ weight, atol=1e-12)


def test_large_counts_are_gaussian():
    """At rate λ, log y is Gaussian of noise 1/√λ: f and its error bars agree as λ grows.

    The next order is 1/√λ: the difference falls as it does, from 1e4 to 1e8 by 100.
    """
    curve = 0.3 * X[:, 0]  # within what a linear network can say
    differences = []
    for rate in (1e4, 1e8):
        noise = 1 / np.sqrt(rate)
        y = np.round(rate * np.exp(curve + noise * RNG.standard_normal(60)))
        setting = {**FIXED, "hidden_layer_sizes": (), "prior_precision": 0.1 * rate**0.5}
        counts = DNN2GPRegressor(likelihood=Poisson(rate), normalize_y=False, **setting).fit(X, y)
        gauss = DNN2GPRegressor(noise_std=noise, normalize_y=False, **setting)
        # Poisson's noise is exp(-f/2)/√λ at each row: as weights, it is the Gaussian's too.
        gauss.fit(X, np.log(y / rate), sample_weight=counts.predict(X) / rate)
        ratio = counts.predict_std(X, "latent") / gauss.predict_std(X, "latent")
        shift = (np.log(counts.predict(X) / rate) - gauss.predict(X)) / noise
        differences.append((np.abs(ratio - 1).max(), np.abs(shift).max()))
    (ratio, shift), (next_ratio, next_shift) = differences
    assert ratio < 0.05 and next_ratio < 5e-4
    assert shift < 0.2 and next_shift < 2e-3


def test_outliers_do_not_bend_the_robust_curve():
    y = CURVE.copy()
    y[::10] += 8.0
    setting = {**FIXED, "solver": NewtonCG(max_iter=3000), "prior_precision": 0.1}
    truth = np.sin(2 * X[:, 0])
    with_outliers = DNN2GPRegressor(noise_std=0.5, normalize_y=False, **setting).fit(X, y)
    robust = DNN2GPRegressor(likelihood=StudentT(0.1), normalize_y=False, **setting).fit(X, y)
    error, other = (np.abs(m.predict(X) - truth).mean() for m in (robust, with_outliers))
    assert error < 0.1 < 0.3 < other
    assert robust.gradient_norm_ < 1e-5
    std = robust.predict_std(X)
    noise = 0.1 * np.sqrt(2.0)  # s √(ν/(ν-2)), ν = 4
    assert (std > noise).all()
    latent = robust.predict_std(X, "latent")
    np.testing.assert_allclose(std**2, latent**2 + noise**2, rtol=1e-10)


def test_many_degrees_of_freedom_are_gaussian():
    """Student's tends to the normal as 1/ν."""
    gauss = DNN2GPRegressor(noise_std=0.2, **FIXED).fit(X, CURVE)
    wide = DNN2GPRegressor(likelihood=StudentT(0.2, 1e8), **FIXED).fit(X, CURVE)
    np.testing.assert_allclose(wide.predict(X), gauss.predict(X), atol=1e-6)
    np.testing.assert_allclose(wide.predict_std(X), gauss.predict_std(X), rtol=1e-6)
    np.testing.assert_allclose(wide.predict_interval(X), gauss.predict_interval(X), atol=1e-5)
    assert wide.log_marginal_likelihood() == pytest.approx(
        gauss.log_marginal_likelihood(), abs=1e-4
    )


def test_the_evidence_chooses_the_prior_and_a_search_the_scale():
    model = DNN2GPRegressor(hidden_layer_sizes=(4,), likelihood=Poisson(), random_state=0)
    auto = model.fit(X, COUNTS)
    for factor in (0.5, 2.0):
        fixed = clone(model).set_params(prior_precision=auto.prior_precision_ * factor)
        value = fixed.fit(X, COUNTS).log_marginal_likelihood()
        assert value < auto.log_marginal_likelihood() + 1e-3
    y = CURVE + 0.1 * t(4).rvs(60, random_state=0)
    grid = {"likelihood": [StudentT(0.01), StudentT(0.2), StudentT(5.0)]}
    search = GridSearchCV(
        DNN2GPRegressor(**FIXED, solver=NewtonCG(max_iter=3000)), grid,
        scoring=marginal_likelihood_scorer, cv=TrainingSetSplit(),
    ).fit(X, y)  # fmt: skip
    assert search.best_params_["likelihood"] == StudentT(0.2)


def test_a_users_likelihood_goes_all_the_way():
    y = np.exp(np.sin(X[:, 0])) * RNG.exponential(size=60)
    model = DNN2GPRegressor(likelihood=Exponential(), **FIXED).fit(X, y)
    mean, std = model.predict(X, return_std=True)
    assert (std > mean).all()  # noise as large as the mean, and ignorance
    interval = model.predict_interval(X, 0.8)
    assert (interval[:, 0] > 0).all() and (interval[:, 1] > interval[:, 0]).all()
    scale = model.leave_one_out(X, y)
    assert np.isfinite(scale.log_density).all()
    with pytest.raises(NotImplementedError):
        model.predict(X, return_cov=True)
    with pytest.raises(ValueError, match="Exponential"):
        sk_dnn2gp.save(model, "unused")


@pytest.mark.parametrize("likelihood", [Poisson(), StudentT(0.3, 5.0)])
def test_pickled_cloned_and_saved(likelihood, tmp_path):
    y = COUNTS if likelihood.is_discrete else CURVE
    model = DNN2GPRegressor(likelihood=likelihood, **FIXED).fit(X, y)
    assert clone(model).likelihood == likelihood
    sk_dnn2gp.save(model, tmp_path / "model")
    for again in (pickle.loads(pickle.dumps(model)), sk_dnn2gp.load(tmp_path / "model")):
        np.testing.assert_array_equal(again.predict_interval(X), model.predict_interval(X))
        assert again.likelihood == likelihood


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"likelihood": Poisson(), "noise_std": 0.3}, "noise_std"),
        ({"likelihood": Gaussian(0.3)}, "leave likelihood=None"),
        ({"likelihood": Bernoulli()}, "DNN2GPClassifier"),
        ({"likelihood": Poisson(), "inference": "vi"}, "inference"),
        ({"likelihood": "poisson"}, "likelihood"),
    ],
)
def test_what_does_not_go_together(options, match):
    with pytest.raises(ValueError, match=match):
        DNN2GPRegressor(**{**FIXED, **options}).fit(X, COUNTS)


def test_what_is_no_count():
    for wrong in (-COUNTS - 1, COUNTS + 0.5):
        with pytest.raises(ValueError, match="whole numbers"):
            DNN2GPRegressor(likelihood=Poisson(), **FIXED).fit(X, wrong)
    model = DNN2GPRegressor(likelihood=Poisson(), **FIXED).fit(X, COUNTS)
    with pytest.raises(ValueError, match="whole numbers"):
        model.log_marginal_likelihood(X=X, y=COUNTS + 0.5)
    with pytest.raises(ValueError, match="Gaussian"):
        model.to_gaussian_process()
    for cls, wrong in ((Poisson, {"exposure": 0.0}), (StudentT, {"scale": -1.0}),
                       (StudentT, {"scale": 1.0, "df": 2.0})):  # fmt: skip
        with pytest.raises(ValueError, match="finite"):
            cls(**wrong)

"""Mixtures of processes: total mean and variance, densities, quantiles; one member is itself."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from joblib import parallel_config
from scipy.special import softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_dnn2gp import (
    DNN2GPClassifier,
    DNN2GPRegressor,
    MixtureClassifier,
    MixtureRegressor,
    TrainingSetSplit,
    evidence_path,
    log_predictive_density_scorer,
    marginal_likelihood_scorer,
)
from sk_dnn2gp.likelihoods import Poisson, StudentT
from sk_dnn2gp.plotting import CoverageDisplay, PredictiveDisplay
from sk_dnn2gp.posterior import SubsetOfData
from sk_dnn2gp.predictive import Mixture, Normal
from sk_dnn2gp.training import NewtonCG

RNG = np.random.default_rng(0)
X = np.r_[RNG.uniform(-3, -1, (20, 1)), RNG.uniform(1, 3, (20, 1))]
Y = 5 + 3 * np.sin(2 * X[:, 0]) + 0.2 * RNG.standard_normal(40)
Y2 = np.c_[Y, X[:, 0] ** 2]
LABELS = np.array(["a", "b", "c"])[np.digitize(X[:, 0] + 0.5 * RNG.standard_normal(40), [-1, 1])]
FIXED = {"hidden_layer_sizes": (3,), "prior_precision": 0.1, "noise_std": 0.1}
GAP = np.linspace(-4, 4, 9)[:, None]


@pytest.fixture(scope="module")
def mixture():
    # Of two units, starts end at minima of their own; of more, nearly all at the best.
    member = DNN2GPRegressor(**{**FIXED, "hidden_layer_sizes": (2,)})
    return MixtureRegressor(member, n_estimators=3, random_state=0).fit(X, Y)


@pytest.fixture(scope="module")
def classes():
    member = DNN2GPClassifier(hidden_layer_sizes=(5,), prior_precision=0.1)
    return MixtureClassifier(member, n_estimators=3, random_state=0).fit(X, LABELS)


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        (FIXED, Y),
        (FIXED, Y2),
        ({**FIXED, "noise_std": "auto", "likelihood": StudentT(0.1)}, Y),
        ({**FIXED, "noise_std": "auto", "likelihood": Poisson()}, np.floor(Y)),
    ],
    ids=["one", "two", "student", "counts"],
)
@pytest.mark.parametrize("weights", ["equal", "evidence"])
def test_a_mixture_of_one_is_the_one(options, targets, weights):
    mixture = MixtureRegressor(
        DNN2GPRegressor(**options), n_estimators=1, weights=weights, random_state=0
    ).fit(X, targets)
    one = mixture.estimators_[0]
    for given in ({}, {"return_std": True}, {"return_cov": True}):
        for a, b in zip(mixture.predict(GAP, **given), one.predict(GAP, **given), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    for name in ("predict_interval", "predict_quantile", "predict_std"):
        a, b = getattr(mixture, name)(GAP), getattr(one, name)(GAP)
        np.testing.assert_allclose(a, b, rtol=1e-10)
    density = mixture.log_predictive_density(X, targets)
    np.testing.assert_allclose(density, one.log_predictive_density(X, targets), rtol=1e-10)
    parts, own = mixture.predict_uncertainty(GAP), one.predict_uncertainty(GAP)
    for name in parts:
        np.testing.assert_allclose(parts[name], own[name], rtol=1e-10, atol=1e-12)


def test_members_know_the_noise_of_rows():
    member = DNN2GPRegressor(**{**FIXED, "noise_std": "auto"})
    sigma = np.linspace(0.1, 0.5, len(Y))
    mixture = MixtureRegressor(member, n_estimators=2, random_state=0).fit(X, Y, noise_std=sigma)
    for one in mixture.estimators_:
        level = one.noise_std_ * one.y_scale_[0]
        assert level == pytest.approx(1 / np.sqrt(np.mean(sigma**-2)), rel=1e-12)
        again = clone(member).set_params(random_state=one.random_state).fit(X, Y, noise_std=sigma)
        np.testing.assert_array_equal(one.predict(GAP), again.predict(GAP))


def min_std(law):
    """Of the narrowest part."""
    return min(np.sqrt(one.variance.item()) for one in law.components)


def test_total_mean_and_variance_against_integrals(mixture):
    for i in range(len(GAP)):
        law = mixture.predict_distribution(GAP[[i]])
        # The trapezoid rule is exact to rounding for sums of normal densities, at steps of σ/8.
        low, high = law.quantile(1e-15).item() - 1, law.quantile(1 - 1e-15).item() + 1
        y, h = np.linspace(low, high, int(8 * (high - low) / min_std(law)) + 2, retstep=True)
        density = np.exp([law.log_density([[value]]).item() for value in y])

        def moment(k, y=y, h=h, density=density):
            return h * float(y**k @ density)

        mean, std = (part.item() for part in mixture.predict(GAP[[i]], return_std=True))
        assert moment(0) == pytest.approx(1.0, abs=1e-10)
        assert moment(1) == pytest.approx(mean, abs=1e-8)
        assert moment(2) - mean**2 == pytest.approx(std**2, rel=1e-7)
        for q in (1e-3, 0.4, 0.975):
            assert law.cdf(law.quantile(q)).item() == pytest.approx(q, abs=1e-13)


def test_starts_differ_and_their_difference_is_ignorance(mixture):
    means = np.array([one.predict([[0.0]]).item() for one in mixture.estimators_])
    assert np.ptp(means) > 1e-2  # in the gap
    parts = mixture.predict_uncertainty([[0.0]])
    own = np.mean([one.predict_uncertainty([[0.0]]).epistemic for one in mixture.estimators_])
    assert parts.epistemic.item() == pytest.approx(own + means.var(), rel=1e-10)
    assert mixture.predict([[0.0]]).item() == pytest.approx(means.mean(), rel=1e-12)


def test_weights_by_the_evidence(mixture):
    evidence = np.array([one.log_marginal_likelihood_value_ for one in mixture.estimators_])
    assert mixture.best_index_ == evidence.argmax()
    assert mixture.best_estimator_ is mixture.estimators_[mixture.best_index_]
    weighted = clone(mixture).set_params(weights="evidence").fit(X, Y)
    np.testing.assert_allclose(weighted.weights_, softmax(evidence), rtol=1e-6)
    expected = weighted.weights_ @ np.array([one.predict(GAP) for one in mixture.estimators_])
    np.testing.assert_allclose(weighted.predict(GAP), expected, rtol=1e-9)


def test_draws_have_the_mixtures_moments(mixture):
    n = 40_000
    draws = mixture.sample_y(GAP[3:6], n, random_state=1)
    mean, covariance = mixture.predict(GAP[3:6], return_cov=True)
    bound = 6 / np.sqrt(n)  # a mixture's tails are not a normal's: six for five standard errors
    std = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(draws.mean(1), mean, atol=bound * std.max())
    np.testing.assert_allclose(np.cov(draws), covariance, atol=2 * bound * std.max() ** 2)
    np.testing.assert_array_equal(draws, mixture.sample_y(GAP[3:6], n, random_state=1))
    half = draws[1, : n // 2].mean()  # in random order
    assert half == pytest.approx(mean[1], abs=2 * bound * std[1])
    np.testing.assert_allclose(
        np.sqrt(np.diag(covariance)), mixture.predict_std(GAP[3:6]), rtol=1e-10
    )
    latent = mixture.sample_y(GAP[3:6], n, target="latent").std(1)
    np.testing.assert_allclose(latent, mixture.predict_std(GAP[3:6], "latent"), rtol=0.05)


def test_classes(classes):
    p = np.mean([one.predict_proba(GAP) for one in classes.estimators_], axis=0)
    np.testing.assert_allclose(classes.predict_proba(GAP), p, rtol=1e-12)
    np.testing.assert_array_equal(classes.predict(GAP), classes.classes_[p.argmax(1)])
    own = classes.predict_proba(X)[np.arange(40), np.searchsorted(classes.classes_, LABELS)]
    np.testing.assert_allclose(classes.log_predictive_density(X, LABELS), np.log(own), rtol=1e-10)
    # First order: noise and ignorance of p are p(1-p) but for the members' own V.
    parts = classes.predict_uncertainty(GAP)
    own = np.mean([one.predict_uncertainty(GAP).epistemic for one in classes.estimators_], axis=0)
    np.testing.assert_allclose(parts.total - own, p * (1 - p), rtol=1e-9, atol=1e-12)
    labels = classes.sample_y(GAP, 5000)
    frequency = (labels[..., None] == classes.classes_).mean(1)
    mc = classes.predict_proba(GAP, link="mc")
    np.testing.assert_allclose(frequency, mc, atol=5 * 0.5 / np.sqrt(5000))
    assert classes.score(X, LABELS) > 0.7


def test_at_home_in_scikit_learn(mixture, classes):
    """Cloned, pickled, searched, in a Pipeline, drawn; one process is the best one."""
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(mixture)).predict(GAP), mixture.predict(GAP)
    )
    piped = make_pipeline(StandardScaler(), clone(mixture))
    assert np.isfinite(
        cross_val_score(piped, X, Y, scoring=log_predictive_density_scorer, cv=2)
    ).all()
    search = GridSearchCV(
        clone(mixture), {"estimator__prior_precision": [0.1, 1e6]},
        scoring=marginal_likelihood_scorer, cv=TrainingSetSplit(),
    ).fit(X, Y)  # fmt: skip
    assert search.best_params_ == {"estimator__prior_precision": 0.1}
    best = mixture.best_estimator_
    assert marginal_likelihood_scorer(mixture, X, Y) == pytest.approx(
        best.log_marginal_likelihood(X=X, y=Y), rel=1e-12
    )
    held = log_predictive_density_scorer(mixture, X, Y)
    assert held == pytest.approx(mixture.log_predictive_density(X, Y).mean(), rel=1e-12)
    path = evidence_path(mixture, prior_precision=[0.1])
    value = best.log_marginal_likelihood()
    assert path.log_marginal_likelihood.item() == pytest.approx(value, rel=1e-9)
    np.testing.assert_array_equal(mixture.kernel_(GAP), best.kernel_(GAP))
    gp, own = mixture.to_gaussian_process(), best.to_gaussian_process()
    np.testing.assert_array_equal(gp.predict(GAP), own.predict(GAP))
    assert mixture.n_features_in_ == 1 and not hasattr(classes, "feature_names_in_")
    PredictiveDisplay.from_estimator(mixture, X, Y)
    CoverageDisplay.from_estimator(mixture, X, Y)
    with parallel_config(backend="threading"):
        by_two = clone(mixture).set_params(n_jobs=2).fit(X, Y)
    np.testing.assert_allclose(by_two.predict(GAP), mixture.predict(GAP), rtol=1e-12)


def test_what_is_refused(mixture):
    with pytest.raises(TypeError, match="mixes DNN2GPRegressors"):
        MixtureRegressor(make_pipeline(StandardScaler(), DNN2GPRegressor())).fit(X, Y)
    for net in (torch.nn.Linear(1, 1), FrozenEstimator(mixture.best_estimator_.net_)):
        with pytest.raises(ValueError, match="brings its weights"):
            MixtureRegressor(DNN2GPRegressor(net)).fit(X, Y)
    with pytest.raises(ValueError, match="At most one"):
        mixture.predict(X, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match="target must be"):
        mixture.sample_y(X, target="p")


AUTO = {"hidden_layer_sizes": (3,)}


@pytest.mark.parametrize(
    "options", [AUTO, FIXED, {**AUTO, "prior_groups": "layer"}], ids=["auto", "given", "layers"]
)
def test_a_shared_search_holds_what_the_restarts_find(options):
    shared = MixtureRegressor(
        DNN2GPRegressor(**options), n_estimators=3, search="shared", random_state=0
    ).fit(X, Y)
    members = shared.estimators_
    seed = members[0].random_state
    plain = DNN2GPRegressor(**options, n_restarts=3, random_state=seed).fit(X, Y)
    evidence = [one.log_marginal_likelihood_value_ for one in members]
    assert len(evidence) == 3 and shared.best_index_ == 0
    assert evidence == sorted(evidence, reverse=True)
    assert evidence[0] >= plain.log_marginal_likelihood_value_ - 1e-9
    for one in members:  # each is a whole estimator, at a minimum of its own loss
        assert one.converged_ and one.gradient_norm_ < 1e-5
        assert len({id(one.module_) for one in members}) == 3
        own = one.log_marginal_likelihood(X=X, y=Y)
        assert own == pytest.approx(one.log_marginal_likelihood_value_, rel=1e-9)
        np.testing.assert_array_equal(
            pickle.loads(pickle.dumps(one)).predict(GAP), one.predict(GAP)
        )
    weights = [one.linear_model_.weights for one in members]
    assert (weights[0] - weights[1]).norm() > 1.0 and (weights[1] - weights[2]).norm() > 1.0
    if options is FIXED:  # nothing to search for: the best start is the restarts' own
        np.testing.assert_array_equal(members[0].predict(GAP), plain.predict(GAP))


def test_each_start_of_a_shared_search_goes_to_its_own_best_prior():
    """At every member's weights, minima at a firmer and at a weaker prior have less evidence."""
    member = DNN2GPRegressor(**AUTO, random_state=1)
    with pytest.raises(ValueError, match="fit_starts keeps no checkpoint"):
        member.fit_starts(X, Y, 2, checkpoint="never.written")
    starts = member.fit_starts(X, Y, 2)
    assert not hasattr(member, "module_")
    evidence = [one.log_marginal_likelihood_value_ for one in starts]
    assert evidence == sorted(evidence, reverse=True)
    for one in starts:
        for factor in (0.8, 1.25):
            beside = DNN2GPRegressor(
                one.module_, prior_precision=factor * one.prior_precision_,
                noise_std=one.noise_std_,
            ).fit(X, Y)  # fmt: skip
            np.testing.assert_allclose(beside.predict(X), one.predict(X), atol=0.2)
            assert beside.log_marginal_likelihood_value_ < one.log_marginal_likelihood_value_


@pytest.mark.parametrize(
    "options", [{"noise_std": "heteroscedastic"}, {"posterior": SubsetOfData(25)}]
)
def test_a_shared_search_of_one_is_the_one(options):
    member = DNN2GPRegressor(**AUTO, **options)
    shared = MixtureRegressor(member, n_estimators=1, search="shared", random_state=0).fit(X, Y)
    one = shared.estimators_[0]
    plain = clone(one).fit(X, Y)
    assert plain.n_restarts == 1
    np.testing.assert_array_equal(one.predict_std(GAP), plain.predict_std(GAP))
    several = MixtureRegressor(member, n_estimators=2, search="shared", random_state=0).fit(X, Y)
    for one in several.estimators_:
        np.testing.assert_array_equal(one._fit_sample_weight, plain._fit_sample_weight)
    law = several.predict_distribution(GAP)
    np.testing.assert_allclose(law.cdf(law.quantile(0.9)), 0.9, atol=1e-9)


def test_a_shared_search_that_is_spent_says_how_many_it_gave():
    member = DNN2GPRegressor(**AUTO, solver=NewtonCG(max_iter=60))
    shared = MixtureRegressor(member, n_estimators=6, search="shared", random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shared.fit(X, Y)
    n = len(shared.estimators_)
    assert n < 6 and len(shared.weights_) == n
    told = [str(one.message) for one in caught if "starts were kept" in str(one.message)]
    assert len(told) == 1 and told[0].startswith(f"{n} of 6 starts") and "max_iter" in told[0]


def test_classes_of_a_shared_search():
    member = DNN2GPClassifier(hidden_layer_sizes=(4,))
    shared = MixtureClassifier(member, n_estimators=2, search="shared", random_state=0)
    p = shared.fit(X, LABELS).predict_proba(GAP)
    parts = [one.predict_proba(GAP) for one in shared.estimators_]
    np.testing.assert_allclose(p, np.mean(parts, axis=0), rtol=1e-12)
    a, b = (one.linear_model_.weights for one in shared.estimators_)
    assert (a - b).norm() > 1.0


def test_mixture_of_normals_with_weights():
    one = np.ones((1, 1))
    parts = [Normal(0 * one, one, 0 * one), Normal(4 * one, one, one)]
    law = Mixture(parts, np.array([0.25, 0.75]))
    assert law.mean.item() == 3.0
    assert law.aleatoric.item() == 1.0
    assert law.epistemic.item() == pytest.approx(0.75 + 0.25 * 9 + 0.75 * 1)


SMALL = {"hidden_layer_sizes": (5,), "prior_precision": 1.0, "n_restarts": 1}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        MixtureRegressor(DNN2GPRegressor(**SMALL, noise_std=0.3), n_estimators=2),
        MixtureClassifier(DNN2GPClassifier(**SMALL), n_estimators=2),
    ]
)
def test_estimator_checks(estimator, check):
    check(estimator)

"""Choosing by the evidence: the numbers against brute force, the searches of scikit-learn whole."""

import math
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import parallel_config
from numpy.linalg import LinAlgError
from scipy.stats import multivariate_normal
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)

from sk_dnn2gp import (
    DNN2GPClassifier,
    DNN2GPRegressor,
    TrainingSetSplit,
    evidence_path,
    marginal_likelihood_scorer,
    optimize_hyperparameters,
)
from sk_dnn2gp.exceptions import ApproximationWarning
from sk_dnn2gp.inference import Variational
from sk_dnn2gp.model_selection import MarginalLikelihoodScorer, undecided_candidates
from sk_dnn2gp.model_selection.paths import _group_index
from sk_dnn2gp.model_selection.target import log_jacobian as _log_jacobian
from sk_dnn2gp.posterior import Full, LowRank
from sk_dnn2gp.training import FirstOrder, NewtonCG

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (40, 2))
Y = np.exp(np.sin(X.sum(1)) + 0.2 * RNG.standard_normal(40))  # positive, for transformations
GRID = {"prior_precision": [0.1, 3.0, 1e6]}


def regressor(**options):
    defaults = {
        "hidden_layer_sizes": (4,), "random_state": 0, "prior_precision": 1.0, "noise_std": 0.4,
    }  # fmt: skip
    return DNN2GPRegressor(**{**defaults, **options})


def searched(model, grid, X=X, y=Y, search=GridSearchCV, fit=None, **options):
    options = {"scoring": marginal_likelihood_scorer, "cv": TrainingSetSplit(), **options}
    return search(model, grid, **options).fit(X, y, **(fit or {}))


def dense_evidence(model, X, y, weight=None):
    """log N(ỹ | 0, JJᵀ/δ + σ²/s) in the units of y, from autograd's Jacobian."""
    net = model.module_.double()
    inputs = torch.tensor(X)
    named = dict(net.named_parameters())

    def f(params):
        return torch.func.functional_call(net, params, (inputs,))[:, 0]

    J = torch.cat([j.flatten(1) for j in torch.func.jacrev(f)(named).values()], 1).detach().numpy()
    w = torch.cat([p.detach().flatten() for p in named.values()]).numpy()
    weight = np.ones(len(y)) if weight is None else weight
    scale, mean = model.y_scale_[0], model.y_mean_[0]
    residual = f(named).detach().numpy() - (y - mean) / scale
    noise = np.diag(model.noise_std_**2 / weight)
    kernel = J @ J.T / model.prior_precision_ + noise
    value = multivariate_normal.logpdf(J @ w - residual, np.zeros(len(y)), kernel)
    # A row of weight s is s rows: (σ²/s)^½ is one density where they are s.
    value += 0.5 * ((1 - weight) * np.log(2 * np.pi * model.noise_std_**2) - np.log(weight)).sum()
    return value - weight.sum() * np.log(scale)


# ---------------------------------------------------------------------- the number


@pytest.mark.parametrize("kind", ["laplace", "dual"])
def test_score_is_the_dense_gaussian_evidence(kind):
    model = regressor(solver=NewtonCG(tol=1e-12)).fit(X, Y)
    # Both kinds are this density at a minimum; the decrement there is below 1e-12.
    score = MarginalLikelihoodScorer(kind)(model, X, Y)
    assert score == pytest.approx(dense_evidence(model, X, Y), rel=1e-10)


def test_score_of_other_data_is_of_that_data():
    model = regressor().fit(X[:30], Y[:30])
    dual = MarginalLikelihoodScorer("dual")
    expected = dense_evidence(model, X[30:], Y[30:])
    assert dual(model, X[30:], Y[30:]) == pytest.approx(expected, rel=1e-10)


def test_sample_weight_counts_rows_again():
    weight = RNG.integers(1, 4, 40).astype(float)
    model = regressor(solver=NewtonCG(tol=1e-12)).fit(X, Y, sample_weight=weight)
    score = marginal_likelihood_scorer(model, X, Y, sample_weight=weight)
    rows = np.repeat(np.arange(40), weight.astype(int))
    assert score == pytest.approx(marginal_likelihood_scorer(model, X[rows], Y[rows]), rel=1e-10)
    assert score == pytest.approx(dense_evidence(model, X, Y, weight), rel=1e-10)


def test_units_of_y_do_not_order_candidates():
    """A y in other units is the same data: its log density moves by n log(scale) exactly."""
    # δ and σ are in units of the standardised y, so the fits are the same networks.
    ours, theirs = regressor().fit(X, Y), regressor().fit(X, 100.0 * Y + 7.0)
    moved = marginal_likelihood_scorer(theirs, X, 100.0 * Y + 7.0) + 40 * np.log(100.0)
    # equal to what training's tolerance of 1e-8 leaves in a quadratic minimum
    assert marginal_likelihood_scorer(ours, X, Y) == pytest.approx(moved, abs=1e-6)


def test_standardising_inside_and_outside_score_the_same():
    inside = regressor(normalize_y=True).fit(X, Y)
    outside = TransformedTargetRegressor(regressor(normalize_y=False), transformer=StandardScaler())
    score = marginal_likelihood_scorer(outside.fit(X, Y), X, Y)
    assert score == pytest.approx(marginal_likelihood_scorer(inside, X, Y), abs=1e-6)


@pytest.mark.parametrize(
    ("transformer", "log_slope"),
    [
        (FunctionTransformer(np.log, np.exp), -np.log(Y)),
        (FunctionTransformer(np.sqrt, np.square), np.log(0.5 / np.sqrt(Y))),
        (FunctionTransformer(lambda y: -3.0 * y, lambda z: z / -3.0), np.full(40, np.log(3.0))),
    ],
)
def test_change_of_variables(transformer, log_slope):
    model = TransformedTargetRegressor(regressor(), transformer=transformer).fit(X, Y)
    z = np.asarray(transformer.transform(Y[:, None]))[:, 0]
    weight = RNG.uniform(0.5, 2.0, 40)
    expected = marginal_likelihood_scorer(model.regressor_, X, z) + log_slope.sum()
    # fourth-order differences: about 1e-10 a row
    assert marginal_likelihood_scorer(model, X, Y) == pytest.approx(expected, abs=1e-7)
    expected = model.regressor_.log_marginal_likelihood(X=X, y=z, sample_weight=weight)
    expected += weight @ log_slope
    score = marginal_likelihood_scorer(model, X, Y, sample_weight=weight)
    assert score == pytest.approx(expected, abs=1e-7)


def test_log_jacobian_of_mixed_and_steep_transformations():
    y = np.column_stack([RNG.lognormal(0, 3, 50), RNG.standard_normal(50)])  # nine decades
    M = np.array([[2.0, 1.0], [0.5, -1.0]])

    def g(y):
        return np.column_stack([np.log(y[:, 0]), y[:, 1]]) @ M.T

    expected = np.log(abs(np.linalg.det(M))) - np.log(y[:, 0])
    np.testing.assert_allclose(_log_jacobian(g, y), expected, atol=1e-6)
    power = PowerTransformer("box-cox", standardize=False).fit(Y[:, None])
    expected = (power.lambdas_[0] - 1) * np.log(Y)  # d/dy (y^λ - 1)/λ = y^(λ-1)
    np.testing.assert_allclose(_log_jacobian(power.transform, Y[:, None]), expected, atol=1e-6)


@pytest.mark.parametrize(
    "transformer",
    [QuantileTransformer(n_quantiles=10), FunctionTransformer(np.round, check_inverse=False)],
)
def test_targets_without_a_density_are_refused(transformer):
    model = TransformedTargetRegressor(regressor(), transformer=transformer, check_inverse=False)
    model.fit(X, Y)
    with pytest.raises(ValueError, match="no smooth, non-zero derivative"):
        marginal_likelihood_scorer(model, X, Y)


def test_target_columns_that_are_lost_are_refused():
    lossy = FunctionTransformer(lambda y: y.sum(1, keepdims=True), check_inverse=False)
    model = TransformedTargetRegressor(regressor(), transformer=lossy, check_inverse=False)
    targets = np.column_stack([Y, Y**2])
    with pytest.raises(ValueError, match=r"2 target\(s\) into 1"):
        marginal_likelihood_scorer(model.fit(X, targets), X, targets)


def test_other_estimators_are_refused():
    gp = GaussianProcessRegressor(optimizer=None).fit(X, Y)
    with pytest.raises(TypeError, match="GaussianProcessRegressor has no marginal likelihood"):
        marginal_likelihood_scorer(gp, X, Y)


def test_pipeline_in_target_in_pipeline_and_inside_a_search():
    inner = make_pipeline(StandardScaler(), regressor(normalize_y=False))
    target = TransformedTargetRegressor(inner, func=np.log, inverse_func=np.exp)
    whole = make_pipeline(StandardScaler(), target)
    model = searched(whole, {"transformedtargetregressor__regressor__dnn2gpregressor__noise_std":
                             [0.2, 0.4]})  # fmt: skip
    final = model.best_estimator_[-1].regressor_[-1]
    Z = StandardScaler().fit_transform(StandardScaler().fit_transform(X))
    expected = final.log_marginal_likelihood(X=Z, y=np.log(Y)) - np.log(Y).sum()
    assert model.best_score_ == pytest.approx(expected, abs=1e-7)
    assert marginal_likelihood_scorer(model, X, Y) == pytest.approx(model.best_score_, abs=1e-9)


# ---------------------------------------------------------------------- the searches


@pytest.mark.parametrize(
    ("search", "options"),
    [
        (GridSearchCV, {}),
        (GridSearchCV, {"n_jobs": 2, "return_train_score": True}),
        (RandomizedSearchCV, {"n_iter": 3, "random_state": 0}),
        (HalvingGridSearchCV, {"min_resources": 20, "factor": 2, "random_state": 0}),
    ],
)
def test_search_finds_the_candidate_of_the_best_evidence(search, options):
    result = searched(regressor(), GRID, search=search, **options)
    by_hand = {}
    for delta in GRID["prior_precision"]:
        model = regressor(prior_precision=delta).fit(X, Y)
        by_hand[delta] = model.log_marginal_likelihood_value_
    assert result.best_params_["prior_precision"] == max(by_hand, key=by_hand.get)
    assert result.n_splits_ == 1
    if search is not HalvingGridSearchCV:  # whose early rounds see fewer rows
        for params, score in zip(
            result.cv_results_["params"], result.cv_results_["mean_test_score"], strict=True
        ):
            assert score == pytest.approx(by_hand[params["prior_precision"]], rel=1e-9)
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again.predict(X), result.predict(X))


def test_several_metrics_and_cross_validate():
    scoring = {"evidence": marginal_likelihood_scorer, "r2": "r2"}
    result = searched(regressor(), GRID, scoring=scoring, refit="evidence")
    assert {"mean_test_evidence", "mean_test_r2"} <= set(result.cv_results_)
    scores = cross_validate(regressor(), X, Y, scoring=scoring, cv=TrainingSetSplit(), groups=Y > 1)
    assert scores["test_evidence"].shape == (1,)
    model = regressor().fit(X, Y)
    assert scores["test_evidence"][0] == pytest.approx(model.log_marginal_likelihood_value_)


def test_held_out_folds_are_scored_as_given():
    scores = cross_validate(regressor(), X, Y, scoring=marginal_likelihood_scorer, cv=4)
    model = regressor().fit(X[10:], Y[10:])
    expected = model.log_marginal_likelihood(X=X[:10], y=Y[:10])
    assert scores["test_score"][0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("routing", [False, True])
def test_sample_weight_reaches_fit_and_score(routing):
    weight = np.where(X[:, 0] > 0, 2.0, 1.0)
    scorer = clone(marginal_likelihood_scorer)
    with config_context(enable_metadata_routing=routing):
        model = regressor()
        if routing:
            model.set_fit_request(sample_weight=True)
            scorer.set_score_request(sample_weight=True)
        result = searched(model, GRID, scoring=scorer, fit={"sample_weight": weight})
    best = regressor(**result.best_params_).fit(X, Y, sample_weight=weight)
    # Without routing, searches before scikit-learn 1.7 give the weights to fit alone.
    scored = routing or hasattr(GridSearchCV, "_check_scorers_accept_sample_weight")
    expected = best.log_marginal_likelihood(X=X, y=Y, sample_weight=weight if scored else None)
    assert result.best_score_ == pytest.approx(expected, rel=1e-9)
    if scored:
        assert expected == pytest.approx(best.log_marginal_likelihood_value_, rel=1e-9)


def test_pandas_with_a_column_transformer():
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "kind": np.where(X[:, 0] > 0, "u", "v")})
    columns = make_column_transformer(
        (StandardScaler(), ["a", "b"]), (OneHotEncoder(sparse_output=False), ["kind"])
    )
    model = make_pipeline(columns, regressor())
    grid = {"dnn2gpregressor__hidden_layer_sizes": [(2,), (4,)]}
    result = searched(model, grid, frame, pd.Series(Y, name="y"), n_jobs=2)
    assert np.isfinite(result.cv_results_["mean_test_score"]).all()
    assert result.predict(frame).shape == (40,)


def test_dask_backend():
    import distributed  # slow to import, and needed here alone

    with (
        distributed.Client(processes=False, n_workers=1, dashboard_address=None),
        parallel_config("dask"),
    ):
        result = searched(regressor(), GRID)
    assert result.best_score_ == pytest.approx(searched(regressor(), GRID).best_score_, rel=1e-12)


class Unfit(BaseEstimator):
    """Stands for a fitted estimator whose evidence is broken in a given way."""

    linear_model_ = None

    def __init__(self, broken):
        self.broken = broken

    def fit(self, X, y):
        self.n_features_in_ = X.shape[1]
        return self

    def log_marginal_likelihood_bounds(self, **_):
        if isinstance(self.broken, Exception):
            raise self.broken
        return self.broken, self.broken


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, LinAlgError("singular")])
def test_unusable_evidence_is_minus_infinity_with_a_warning(broken):
    with pytest.warns(UserWarning, match="marginal likelihood cannot be used"):
        assert marginal_likelihood_scorer(Unfit(broken).fit(X, Y), X, Y) == -math.inf
    with pytest.warns(UserWarning, match="marginal likelihood cannot be used"):
        ends = MarginalLikelihoodScorer(bounds=True)(Unfit(broken).fit(X, Y), X, Y)
    assert ends == {"lower": -math.inf, "upper": -math.inf}


def test_a_search_over_brackets_says_which_candidates_cannot_be_told_apart():
    """Sketches of rank 1: the exact evidence lies in every bracket, the best among those left."""
    model = regressor(hidden_layer_sizes=(8,), posterior=LowRank(max_rank=1), noise_std=0.3)
    grid = {"prior_precision": [0.05, 0.3, 0.35, 3000.0]}
    scorer = MarginalLikelihoodScorer(bounds=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        search = GridSearchCV(model, grid, scoring=scorer, refit="lower", cv=TrainingSetSplit())
        search.fit(X, Y)
    exact = searched(model.set_params(posterior="full"), grid).cv_results_["mean_test_score"]
    lower, upper = (search.cv_results_[f"mean_test_{end}"] for end in ("lower", "upper"))
    assert (lower <= exact + 1e-8).all() and (exact <= upper + 1e-8).all()
    left = undecided_candidates(search)
    assert search.best_index_ == left[0]
    assert int(exact.argmax()) in left and 1 < len(left) < 4
    assert undecided_candidates(search).tolist() == [
        k for k in np.argsort(-lower) if upper[k] >= lower.max()
    ]
    with pytest.raises(ValueError, match="bounds=True"):
        undecided_candidates(searched(regressor(), {"prior_precision": [1.0]}))


def test_the_lower_end_scores_and_a_wide_bracket_is_said():
    model = regressor(hidden_layer_sizes=(8,), posterior=LowRank(max_rank=1), noise_std=0.3)
    with pytest.warns(ApproximationWarning, match="certified"):
        model.fit(X, Y)
    with warnings.catch_warnings(record=True) as said:  # the posterior of it is certified again
        warnings.simplefilter("always", ApproximationWarning)
        score = marginal_likelihood_scorer(model, X, Y)
    assert any("scores the lower end" in str(one.message) for one in said)
    assert score == pytest.approx(model.log_marginal_likelihood_bounds()[0], abs=1e-8)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite:UserWarning")
@pytest.mark.filterwarnings("ignore:Training ended with:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
def test_diverged_candidates_do_not_end_the_search():
    model = regressor(solver=FirstOrder("sgd", max_iter=20, batch_size=40))
    grid = {"solver__learning_rate": [1e-4, 1e30]}
    with pytest.warns(FitFailedWarning, match="ConvergenceError"):
        result = searched(model, grid, error_score=-np.inf)
    assert result.best_params_ == {"solver__learning_rate": 1e-4}
    assert result.cv_results_["mean_test_score"][1] == -np.inf
    with pytest.raises(Exception, match="diverged"):
        searched(model, grid, error_score="raise")


def test_early_stopped_candidates_are_finite():
    with pytest.warns(ConvergenceWarning, match="not at a minimum"):
        model = regressor(solver=NewtonCG(max_iter=1)).fit(X, Y)
    assert math.isfinite(marginal_likelihood_scorer(model, X, Y))


# ---------------------------------------------------------------------- paths and optimisation


def test_variational_estimators_are_scored_by_their_own_evidence():
    """The dual evidence of the converged process: a laplace one is of a minimum it is not at."""
    model = DNN2GPRegressor(
        hidden_layer_sizes=(3,), prior_precision=1.0, noise_std=0.5, random_state=0,
        inference=Variational(max_iter=20),
    ).fit(X, Y)  # fmt: skip
    own = model.log_marginal_likelihood_value_
    assert marginal_likelihood_scorer(model, X, Y) == pytest.approx(own, rel=1e-10)
    assert MarginalLikelihoodScorer("laplace")(model, X, Y) != pytest.approx(own, rel=1e-3)
    assert optimize_hyperparameters(model).initial == pytest.approx(own, rel=1e-10)


@pytest.mark.parametrize("kind", ["laplace", "dual"])
def test_path_is_the_evidence_at_every_value(kind):
    model = regressor().fit(X, Y)
    deltas, stds = np.logspace(-2, 2, 5), np.array([0.1, 0.7])
    path = evidence_path(model, prior_precision=deltas, noise_std=stds, kind=kind)
    step = 1e-5
    for i, j in np.ndindex(5, 2):
        theta = np.log([deltas[i], stds[j]])
        expected = model.log_marginal_likelihood(theta, X=X, y=Y, kind=kind)
        assert path.log_marginal_likelihood[i, j] == pytest.approx(expected, rel=1e-10)
        for axis, name in enumerate(("gradient_log_prior_precision", "gradient_log_noise_std")):
            move = step * np.eye(2)[axis]
            ends = [model.log_marginal_likelihood(theta + s * move, kind=kind) for s in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * step)
            # a central difference of numbers of size 1e3 at 1e-5: 1e-7 of truncation and rounding
            assert path[name][i, j] == pytest.approx(slope, rel=1e-6, abs=1e-5)
    lam = model._training_spectrum().eigenvalues.numpy()
    gamma = (lam / (lam + deltas[:, None, None] * stds[:, None] ** 2)).sum(-1)
    np.testing.assert_allclose(path.effective_dimension, gamma, rtol=1e-8)


@pytest.mark.parametrize("bad", [[0.0], [-1.0], [np.nan], [[1.0]]])
def test_path_refuses_values(bad):
    model = regressor().fit(X, Y)
    with pytest.raises(ValueError, match="prior_precision must be positive"):
        evidence_path(model, prior_precision=bad)


@pytest.mark.parametrize("kind", ["laplace", "dual"])
@pytest.mark.parametrize("groups", ["all", "layer", "tensor"])
def test_optimum_is_stationary_and_above_every_point_of_a_grid(groups, kind):
    model = regressor(prior_precision=5.0, noise_std=0.5).fit(X, Y)
    found = optimize_hyperparameters(model, groups=groups, kind=kind)
    assert found.initial == pytest.approx(
        model.log_marginal_likelihood(np.log([5.0, 0.5]), kind=kind), rel=1e-10
    )
    path = evidence_path(
        model, prior_precision=np.logspace(-2, 3, 40), noise_std=np.logspace(-1.5, 0.3, 40),
        kind=kind,
    )  # fmt: skip
    assert found.log_marginal_likelihood >= path.log_marginal_likelihood.max() - 1e-6
    assert model.prior_precision_ == 5.0
    assert model.noise_std_ == 0.5
    assert found.prior_precision_vector.shape == (model.linear_model_.n_params,)


def test_one_prior_per_layer_is_the_dense_evidence_and_its_gradient():
    """Against log N(ỹ | 0, J D⁻¹ Jᵀ + σ²) and differences of it, in float64."""
    model = regressor(normalize_y=False, solver=NewtonCG(tol=1e-12)).fit(X, Y)
    from sk_dnn2gp.evidence import GroupedEvidence

    linear = model.linear_model_
    names, index = _group_index(linear.linearization, "layer")
    assert len(names) == 2
    assert np.bincount(index).tolist() == [12, 5]
    grouped = GroupedEvidence.from_model(linear, index, model.noise_std_)
    J = torch.cat([r.flatten(0, 1) for _, r in linear.linearization.iter_rows(linear.X)]).numpy()
    target = linear.transformed_targets().numpy()[:, 0]

    def dense(theta):
        delta = np.exp(theta[:2])[index]
        kernel = (J / delta) @ J.T + np.exp(2 * theta[2]) * np.eye(40)
        return multivariate_normal.logpdf(target, np.zeros(40), kernel)

    for theta in (np.log([1.0, 1.0, 0.4]), np.log([0.3, 4.0, 0.2])):
        value, gradient = grouped.value_and_gradient(theta, "dual")
        assert value == pytest.approx(dense(theta), rel=1e-9)
        for kind in ("laplace", "dual"):
            gradient = grouped.value_and_gradient(theta, kind)[1]
            for k, move in enumerate(1e-5 * np.eye(3)):
                ends = [grouped.value_and_gradient(theta + s * move, kind)[0] for s in (1, -1)]
                slope = (ends[0] - ends[1]) / 2e-5
                assert gradient[k] == pytest.approx(slope, rel=1e-6, abs=1e-5)


def test_more_freedom_is_never_worse_and_fixed_means_fixed():
    model = regressor().fit(X, Y)
    found = {
        g: optimize_hyperparameters(model, groups=g).log_marginal_likelihood
        for g in ("all", "layer", "tensor")
    }
    # each is nested in the next; L-BFGS-B ends within 1e-4 nats
    assert found["all"] <= found["layer"] + 1e-4 <= found["tensor"] + 2e-4
    fixed = optimize_hyperparameters(model, noise_std_bounds=None)
    assert fixed.noise_std == pytest.approx(0.4, rel=1e-12)
    both = optimize_hyperparameters(model, noise_std_bounds=None, prior_precision_bounds=None)
    assert both.log_marginal_likelihood == both.initial


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": "neuron"}, ValueError, "groups must be"),
        ({"kind": "bic"}, ValueError, "kind must be"),
        ({"n_starts": 0}, ValueError, "n_starts must be"),
    ],
)
def test_optimize_refuses(options, error, message):
    with pytest.raises(error, match=message):
        optimize_hyperparameters(regressor().fit(X, Y), **options)


def test_groups_need_the_full_posterior_and_its_memory():
    with pytest.raises(ValueError, match="posterior='diag'"):
        optimize_hyperparameters(regressor(posterior="diag").fit(X, Y), groups="layer")
    model = regressor().fit(X, Y).set_params(posterior=Full(memory_limit=1e-3))
    with pytest.raises(MemoryError, match="per group of weights"):
        optimize_hyperparameters(model, groups="layer")


def test_a_search_over_inference_has_one_kind_of_evidence():
    """Dual by default, which is Laplace's at a minimum; a kind that is given is everyone's."""
    inferences = ["laplace", Variational(max_iter=5)]
    fits = [regressor(inference=inference).fit(X, Y) for inference in inferences]
    for kind in ("laplace", "dual", None):
        scoring = MarginalLikelihoodScorer(kind)
        search = searched(regressor(), {"inference": inferences}, scoring=scoring)
        expected = [model.log_marginal_likelihood(kind=kind or "dual") for model in fits]
        np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected, rtol=1e-6)
    # Off the minimum the kinds differ.
    assert abs(fits[1].log_marginal_likelihood(kind="laplace") - expected[1]) > 1e-3


def test_a_search_over_a_classifiers_inference_has_one_kind_of_evidence():
    inferences = ["laplace", "linearized-vi", Variational(max_iter=5)]
    model = DNN2GPClassifier(hidden_layer_sizes=(4,), random_state=0, prior_precision=1.0)
    search = searched(model, {"inference": inferences}, y=Y > 1)
    expected = [
        clone(model).set_params(inference=inference).fit(X, Y > 1).log_marginal_likelihood(
            kind="laplace"
        )
        for inference in inferences
    ]  # fmt: skip
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected, rtol=1e-9)

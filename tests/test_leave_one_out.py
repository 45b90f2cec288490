"""Leave-one-out and conditional evidence against linear models that are refitted, dense."""

import numpy as np
import pytest
import torch
from numpy.linalg import LinAlgError
from scipy.stats import multivariate_normal, norm
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor, TrainingSetSplit, evidence_path
from sk_dnn2gp.evidence import leave_one_out
from sk_dnn2gp.inference import Laplace
from sk_dnn2gp.likelihoods import Bernoulli, Categorical, Gaussian, Poisson
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.model_selection import (
    ConditionalEvidenceScorer,
    conditional_evidence,
    conditional_evidence_scorer,
    leave_one_out_scorer,
)
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import make_posterior
from sk_dnn2gp.training import NewtonCG

from .reference import jacobian, weights

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (40, 2))
Y = 10 + 4 * np.sin(2 * X[:, 0]) + 0.4 * RNG.standard_normal(40)
Y2 = np.c_[Y, X[:, 1] ** 2]
LABELS = np.where(X.sum(1) + 0.5 * RNG.standard_normal(40) > 0, "up", "down")
FIXED = {"hidden_layer_sizes": (4,), "prior_precision": 0.5, "random_state": 0}


def refitted(model, Jacobians, f, i, y, likelihood, s):
    """Mean and covariance of f(x_i) by the linear model of all examples but i, A inverted whole."""
    P, w = model.n_params, model.weights
    A, b = torch.diag(model.prior_precision), torch.zeros(P, dtype=torch.float64)
    Lambda, r = likelihood.noise_precision(f), likelihood.residual(f, y)
    for j, J in enumerate(Jacobians):
        if j != i:  # Λ ỹ = Λ J w - r, so that Λ need not be inverted
            A = A + s[j] * J.T @ Lambda[j] @ J
            b = b + s[j] * J.T @ (Lambda[j] @ J @ w - r[j])
    J = Jacobians[i]
    return f[i] + J @ (torch.linalg.solve(A, b) - w), J @ torch.linalg.solve(A, J.T)


CASES = [
    (Gaussian(0.3), 2, torch.randn(7, 2, generator=torch.manual_seed(1)).double()),
    (Bernoulli(), 1, torch.tensor([0.0, 1, 1, 0, 1, 0, 1]).double()[:, None]),
    (Categorical(), 3, torch.tensor([0, 1, 2, 0, 1, 2, 1])),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("likelihood", "K", "y"), CASES, ids=["gaussian", "logistic", "softmax"])
@pytest.mark.parametrize("width", [1, 9])  # weight space and function space
def test_against_refitting_away_from_a_minimum(likelihood, K, y, width, weighted):
    """At random weights: nothing depends on the gradient being zero."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = MLP(2, (width,), K, "tanh").double()
        inputs = torch.randn(7, 2, dtype=torch.float64)
        s = torch.rand(7, dtype=torch.float64) + 0.5 if weighted else torch.ones(7).double()
    f = module(inputs).detach()
    model = LinearModel.from_laplace(Linearization(module), inputs, y, likelihood, 0.7, s)
    mean, covariance = leave_one_out(make_posterior(model))
    blocks = jacobian(module, inputs).reshape(7, K, -1)
    torch.testing.assert_close(weights(module), model.weights, rtol=0, atol=0)
    for i in range(7):
        expected = refitted(model, blocks, f, i, y, likelihood, s)
        torch.testing.assert_close(mean[i], expected[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(covariance[i], expected[1], rtol=1e-9, atol=1e-11)


def test_what_determines_itself_is_refused():
    net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    model = LinearModel.from_laplace(Linearization(net), one, one, Gaussian(1e-9), 1e-3)
    with pytest.raises(LinAlgError, match="leverage of one"):
        leave_one_out(make_posterior(model))
    with pytest.raises(ValueError, match="approximat"):
        leave_one_out(make_posterior(model, "diag"))


@pytest.mark.parametrize("targets", [Y, Y2], ids=["one", "two"])
def test_regressor_in_the_units_of_y(targets):
    """The textbook's formulas: residual/(1 - h), variance σ²/(1 - h), with h the leverage."""
    model = DNN2GPRegressor(**FIXED, noise_std=0.2).fit(X, targets)
    found = model.leave_one_out(X, targets)
    assert found.mean.shape == targets.shape
    np.testing.assert_allclose(found.residual, targets - found.mean, rtol=1e-12)
    expected = norm.logpdf(targets, found.mean, found.std)
    np.testing.assert_allclose(found.log_density, expected, rtol=1e-10)
    if targets is Y:
        h = model.predict_uncertainty(X).epistemic / (0.2 * Y.std()) ** 2
        # At a minimum to 1e-8 the linear model's mean is the network's own.
        plain = (Y - model.predict(X)) / (1 - h)
        np.testing.assert_allclose(found.residual, plain, atol=1e-5)
        np.testing.assert_allclose(found.std, 0.2 * Y.std() / np.sqrt(1 - h), rtol=1e-9)


def test_sum_rule_of_the_evidence():
    """E(all) - E(all but i) is the log density of example i given the others, exactly."""
    weight = RNG.uniform(0.5, 2.0, 40)
    model = DNN2GPRegressor(**FIXED, noise_std=0.2).fit(X, Y)
    density = model.leave_one_out(X, Y).log_density
    whole = model.log_marginal_likelihood(kind="dual")
    for i in range(5):
        rest = np.delete(np.arange(40), i)
        others = model.log_marginal_likelihood(X=X[rest], y=Y[rest], kind="dual")
        assert whole - others == pytest.approx(density[i], abs=1e-9)
    weighted = model.leave_one_out(X, Y, weight).log_density
    others = model.log_marginal_likelihood(X=X[1:], y=Y[1:], sample_weight=weight[1:], kind="dual")
    one = np.r_[1.0, weight[1:]]  # the first example once more, beside the others
    whole = model.log_marginal_likelihood(X=X, y=Y, sample_weight=one, kind="dual")
    assert whole - others == pytest.approx(weighted[0], abs=1e-9)


@pytest.mark.parametrize("labels", [LABELS, np.arange(40) % 3], ids=["two", "three"])
def test_classifier_by_its_links(labels):
    model = DNN2GPClassifier(**FIXED, class_weight="balanced").fit(X, labels)
    y = np.searchsorted(model.classes_, labels)
    for link in ("map", "contrast"):
        found = model.leave_one_out(X, labels, link=link)
        np.testing.assert_allclose(found.probability.sum(1), 1.0, rtol=1e-12)
        own = found.probability[np.arange(40), y]
        np.testing.assert_allclose(found.log_density, np.log(own), rtol=1e-9)
        with_them = model.log_predictive_density(X, labels, link="map")
        assert found.log_density.mean() < with_them.mean()  # without its row it knows less
    with pytest.raises(ValueError, match="link"):
        model.leave_one_out(X, labels, link="logit")


def test_conditional_evidence_against_dense_densities():
    """log N(ỹ_rest | mean, covariance given the part), each part by whole matrices."""
    model = DNN2GPRegressor(**FIXED, noise_std=0.2).fit(X, Y)
    linear, scale = model.linear_model_, Y.std()
    J = jacobian(linear.linearization.module, linear.X)
    targets = (J @ linear.weights).numpy() + (Y - model.predict(X)) / scale
    joint = (J @ J.T / 0.5).numpy() + 0.04 * np.eye(40)
    draws = np.random.RandomState(5)
    values = []
    for _ in range(3):
        rows, rest = np.split(draws.permutation(40), [12])
        gain = np.linalg.solve(joint[np.ix_(rows, rows)], joint[np.ix_(rows, rest)]).T
        covariance = joint[np.ix_(rest, rest)] - gain @ joint[np.ix_(rows, rest)]
        mean = gain @ targets[rows]
        covariance = 0.5 * (covariance + covariance.T)
        value = multivariate_normal(mean, covariance).logpdf(targets[rest])
        values.append(value / 28 - np.log(scale))
    found = conditional_evidence(model, X, Y, part=0.3, n_parts=3, random_state=5)
    assert found == pytest.approx(np.mean(values), abs=1e-7)


def test_no_part_is_the_evidence_and_the_path_holds_both():
    model = DNN2GPRegressor(**FIXED, noise_std=0.2).fit(X, Y)
    dual = model.log_marginal_likelihood(kind="dual")
    assert conditional_evidence(model, X, Y, part=0.0) == pytest.approx(dual / 40, rel=1e-9)
    path = evidence_path(
        model, prior_precision=[0.1, 0.5], noise_std=[0.2, 0.3, 0.4], X=X, y=Y, part=0.25
    )
    assert path.conditional_evidence.shape == path.log_marginal_likelihood.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        theta = np.log([path.prior_precision[i], path.noise_std[j]])
        one = conditional_evidence(model, X, Y, theta=theta, part=0.25)
        assert path.conditional_evidence[i, j] == pytest.approx(one, rel=1e-10)
        value, slope = model.log_marginal_likelihood(theta, True)
        assert path.log_marginal_likelihood[i, j] == pytest.approx(value, rel=1e-12)
        assert path.gradient_log_noise_std[i, j] == pytest.approx(slope[1], rel=1e-12)
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="part must be"):
            conditional_evidence(model, X, Y, part=wrong)
    with pytest.raises(ValueError, match="n_parts"):
        conditional_evidence(model, X, Y, n_parts=0)
    with pytest.raises(ValueError, match="together"):
        evidence_path(model, X=X)
    with pytest.raises(ValueError, match="theta must hold"):
        model.log_marginal_likelihood(np.zeros((2, 3)))


def test_scorers_in_pipelines_transformations_and_searches():
    """log y: every row's density has a factor 1/y more, the rows left alone in the conditional."""
    log = FunctionTransformer(np.log, np.exp)
    inner = make_pipeline(StandardScaler(), DNN2GPRegressor(**FIXED, noise_std=0.2))
    outer = TransformedTargetRegressor(inner, transformer=log).fit(X, Y)
    bare, inputs = outer.regressor_[-1], outer.regressor_[0].transform(X)
    rows = bare.leave_one_out(inputs, np.log(Y)).log_density - np.log(Y)
    assert leave_one_out_scorer(outer, X, Y) == pytest.approx(rows.mean(), abs=1e-7)
    weight = RNG.uniform(0.5, 2.0, 40)
    rows = bare.leave_one_out(inputs, np.log(Y), weight).log_density - np.log(Y)
    found = leave_one_out_scorer(outer, X, Y, sample_weight=weight)
    assert found == pytest.approx(np.average(rows, weights=weight), abs=1e-7)
    split = np.random.RandomState(0).permutation(40)
    plain = conditional_evidence(bare, inputs, np.log(Y), n_parts=1)
    found = ConditionalEvidenceScorer(n_parts=1)(outer, X, Y)
    assert found == pytest.approx(plain - np.log(Y[split[20:]]).mean(), abs=1e-7)
    scoring = {"left": leave_one_out_scorer, "conditional": conditional_evidence_scorer}
    search = GridSearchCV(
        bare, {"prior_precision": [0.5, 1e6]}, scoring=scoring, refit="conditional",
        cv=TrainingSetSplit(),
    ).fit(X, Y)  # fmt: skip
    assert search.best_params_["prior_precision"] == 0.5


@pytest.mark.parametrize("noise_std", ["auto", 0.4])
def test_the_conditional_evidence_as_what_fit_maximises(noise_std):
    """Its slope along the minima is zero where the search ends, by minima at priors beside it."""
    rng = np.random.default_rng(3)
    X = rng.uniform(-3, 3, (60, 1))
    y = 5 + np.sin(2 * X[:, 0]) + 0.3 * rng.standard_normal(60)
    settings = {"noise_std": noise_std, "n_restarts": 1, "random_state": 0}
    by_name = Laplace(criterion="conditional")
    model = DNN2GPRegressor(hidden_layer_sizes=(6,), inference=by_name, **settings).fit(X, y)
    usual = DNN2GPRegressor(hidden_layer_sizes=(6,), **settings).fit(X, y)
    assert model.converged_
    assert model.prior_precision_ < usual.prior_precision_  # the early terms are left out
    assert model.log_marginal_likelihood_value_ < usual.log_marginal_likelihood_value_
    value = conditional_evidence(model, X, y)
    assert value > conditional_evidence(usual, X, y)

    def beside(step):
        """At ρ e^step, of the minimum there, with σ² = S/N where it is free."""
        rho = model.prior_precision_ * model.noise_std_**2 * np.exp(step)
        sigma = model.noise_std_
        fixed = {"n_restarts": 1, "solver": NewtonCG(tol=1e-11)}
        if noise_std == "auto":
            there = DNN2GPRegressor(
                model.module_, prior_precision=rho / sigma**2, noise_std=sigma, **fixed
            ).fit(X, y)
            f = there.predict(X) / there.y_scale_
            squares = np.square(y / there.y_scale_ - f).sum()
            w = there.linear_model_.weights.numpy()
            sigma = np.sqrt((squares + rho * w @ w) / len(y))
        there = DNN2GPRegressor(
            model.module_, prior_precision=rho / sigma**2, noise_std=sigma, **fixed
        ).fit(X, y)
        return conditional_evidence(there, X, y)

    assert beside(0.0) == pytest.approx(value, abs=1e-8)
    h = 1e-2
    slope = (beside(h) - beside(-h)) / (2 * h)
    assert len(y) * abs(slope) < 2e-3  # nats, of which the search leaves 7e-4


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda i: DNN2GPClassifier(inference=i), "another likelihood"),
        (lambda i: DNN2GPRegressor(inference=i, noise_std="heteroscedastic"), "another likelihood"),
        (lambda i: DNN2GPRegressor(inference=i, likelihood=Poisson()), "another likelihood"),
        (lambda i: DNN2GPRegressor(inference=i, prior_precision=1.0), "leaves no δ"),
        (lambda i: DNN2GPRegressor(inference=i, prior_groups="layer"), "prior_groups='layer'"),
        (lambda i: DNN2GPRegressor(inference=i, posterior="diag"), "posterior='diag'"),
        (lambda i: DNN2GPRegressor(inference=i, solver="adam"), "minibatches"),
    ],
)
def test_where_the_conditional_evidence_chooses_nothing(make, reason):
    X, y = np.arange(8.0)[:, None], np.arange(8) % 2
    with pytest.raises(ValueError, match=reason):
        make(Laplace(criterion="conditional")).fit(X, y)
    with pytest.raises(ValueError, match="criterion must be"):
        DNN2GPRegressor(inference=Laplace(criterion="loo")).fit(X, y)

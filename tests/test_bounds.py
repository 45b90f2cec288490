"""The evidence as a bracket, against determinants of explicit matrices."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.evidence import EvidenceSpectrum, log_marginal_likelihood
from sk_dnn2gp.evidence.bounds import (
    BracketedChoice,
    SketchedEvidence,
    choose_prior_precision,
    fischer_bound,
    log_marginal_likelihood_bounds,
    undecided_prior_precisions,
    warn_of_starts,
)
from sk_dnn2gp.evidence.freedom import Freedom
from sk_dnn2gp.evidence.updates import maximise_at_fixed_weights
from sk_dnn2gp.exceptions import ApproximationWarning
from sk_dnn2gp.likelihoods import Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import Full, LowRank, LowRankPosterior, make_posterior
from sk_dnn2gp.posterior.kronecker import KroneckerPosterior
from sk_dnn2gp.training import LBFGS
from sk_dnn2gp.training.objective import TrainingData

from .test_low_rank import dense, posterior_of, random_model

ROUNDING = 1e-9


@pytest.mark.parametrize("kind", ["laplace", "dual"])
@pytest.mark.parametrize("seed", range(0, 20, 2))
def test_the_bracket_holds_the_evidence_of_the_exact_posterior(kind, seed):
    module, model, _, _ = random_model(seed)
    exact = dense(module, model)
    penalty = float((exact.delta * model.weights**2).sum())
    if kind == "laplace":
        fit = model.log_likelihood - 0.5 * penalty
    else:
        t = exact.Phi @ model.weights - model.whitened_residual.flatten()
        best = exact.Sigma @ exact.Phi.T @ t
        fit = -0.5 * float(((t - exact.Phi @ best) ** 2).sum() + (exact.delta * best**2).sum())
    true = fit - 0.5 * exact.log_B
    slack = ROUNDING * (abs(fit) + exact.log_B + penalty)
    for rank in (1, 4, 40):
        low, high = log_marginal_likelihood_bounds(posterior_of(model, max_rank=rank), kind)
        assert low - slack <= true <= high + slack


@pytest.mark.parametrize("seed", range(6))
def test_brackets_close_as_the_sketch_grows(seed):
    module, model, _, _ = random_model(seed)
    whole = posterior_of(model, tol=1e-12)
    low, high = log_marginal_likelihood_bounds(whole)
    assert high - low <= 1e-8 * (1 + float(dense(module, model).G.trace()))


def test_a_posterior_without_a_bracket_gives_one_value():
    _, model, _, _ = random_model(0)
    posterior = make_posterior(model)
    value = log_marginal_likelihood(posterior)
    assert log_marginal_likelihood_bounds(posterior) == (value, value)
    with pytest.raises(ValueError, match="kind"):
        log_marginal_likelihood_bounds(posterior, "bic")


@pytest.mark.parametrize("seed", range(24))
def test_fischer_bounds_the_determinant_for_any_partition(seed):
    module, model, _, rng = random_model(seed)
    exact, n = dense(module, model), len(model.X)
    slack = ROUNDING * (1 + exact.log_B)
    assert fischer_bound(model, n) == pytest.approx(exact.log_B, rel=1e-8, abs=slack)
    order = torch.tensor(rng.permutation(n))
    halves = [order[: n // 2], order[n // 2 :]]
    quarters = [piece for half in halves for piece in (half[::2], half[1::2]) if len(piece)]
    coarse, fine = fischer_bound(model, halves), fischer_bound(model, quarters)
    assert exact.log_B - slack <= coarse <= fine + slack  # and finer blocks bound less tightly
    assert fischer_bound(model, 1) >= exact.log_B - slack


def test_fischer_refuses_what_is_no_partition():
    _, model, _, _ = random_model(1)
    with pytest.raises(ValueError, match="partition"):
        fischer_bound(model, [torch.tensor([0, 0])])
    with pytest.raises(ValueError, match="block_size"):
        fischer_bound(model, 0)


@pytest.mark.parametrize("seed", [0, 3, 5, 10])
def test_the_choice_over_a_grid_never_leaves_out_the_best(seed):
    module, model, _, _ = random_model(seed)
    factors = np.geomspace(0.1, 10, 9)
    choice = choose_prior_precision(posterior_of(model, max_rank=3), factors)
    true = []
    for factor in factors:
        changed = model.with_prior_precision(model.prior_precision * factor)
        penalty = float((changed.prior_precision * model.weights**2).sum())
        true.append(-1.0 - 0.5 * penalty - 0.5 * dense(module, changed).log_B)
    slack = ROUNDING * (1 + np.abs(true))
    assert (choice.lower - slack <= true).all() and (true <= choice.upper + slack).all()
    assert int(np.argmax(true)) in choice.undecided
    assert choice.best in choice.undecided


def test_two_candidates_that_cannot_be_told_apart():
    choice = BracketedChoice(np.ones(3), np.array([0.0, 1.0, -9]), np.array([1.5, 2.0, 0.5]))
    assert choice.best == 1 and choice.undecided.tolist() == [0, 1]


def test_the_choice_with_kronecker_has_no_width():
    _, model, _, _ = random_model(2)
    choice = choose_prior_precision(
        KroneckerPosterior(model.with_prior_precision(1.0)), [0.5, 1.0, 2.0]
    )
    assert choice.lower.tolist() == choice.upper.tolist()


@pytest.mark.parametrize("bad", [[], [1.0, -1.0], [[1.0]], [math.nan]])
def test_factors_must_be_positive(bad):
    _, model, _, _ = random_model(0)
    with pytest.raises(ValueError, match="factors"):
        choose_prior_precision(make_posterior(model), bad)


def regression(seed, several=False):
    """A perceptron off its minimum with Gaussian noise, NK = 30 and P = 25; σ = 0.4."""
    rng = np.random.default_rng(seed)
    module = MLP(2, (6,), 1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.tensor(rng.normal(size=p.shape)))
    X = torch.tensor(rng.normal(size=(30, 2)))
    y = torch.tensor(rng.normal(size=(30, 1)))
    delta = torch.tensor(0.7).double()
    if several:
        delta = delta * torch.tensor(10.0 ** rng.uniform(-1, 1, 25))
    return LinearModel.from_laplace(Linearization(module), X, y, Gaussian(0.4), delta)


@pytest.mark.parametrize("several", [False, True], ids=["one prior", "several"])
@pytest.mark.parametrize("kind", ["laplace", "dual"])
def test_one_sketch_brackets_the_evidence_at_every_prior_and_noise(kind, several):
    model = regression(0, several)
    exact = EvidenceSpectrum.from_posterior(make_posterior(model), 0.4, 30.0)
    own = float(model.prior_precision.flatten()[-1])
    widths = []
    for rank in (1, 5, 12, 25):
        ours = SketchedEvidence.from_posterior(posterior_of(model, max_rank=rank), 0.4, 30.0)
        for ratio, sigma in ((1.0, 0.4), (0.03, 0.2), (40.0, 1.5)):
            delta = own * ratio
            true = exact.log_marginal_likelihood(delta, sigma, kind)
            low, high = ours.bounds(delta, sigma, kind)
            slack = 1e-8 * (1 + abs(true))
            assert low - slack <= true <= high + slack
            assert ours.log_marginal_likelihood(delta, sigma, kind) == low
            gamma = ours.effective_dimension(delta, sigma)
            ends = ours._at(delta, sigma**2).effective_dimension_bounds()
            assert ends[0] - 1e-9 <= gamma <= ends[1] + 1e-9
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 1e-6 < widths[0]


@pytest.mark.parametrize("kind", ["laplace", "dual"])
def test_the_slope_of_the_lower_end_is_its_own(kind):
    ours = SketchedEvidence.from_posterior(posterior_of(regression(1, True), max_rank=4), 0.4, 30.0)
    at = np.log([0.3, 0.6])
    steps = [
        [ours.log_marginal_likelihood(*np.exp(at + s * e), kind) for s in (1e-5, -1e-5)]
        for e in np.eye(2)
    ]
    differences = [(ahead - behind) / 2e-5 for ahead, behind in steps]
    np.testing.assert_allclose(ours.gradient(0.3, 0.6, kind), differences, rtol=1e-5, atol=1e-5)


def test_the_maximum_of_the_lower_end_nears_that_of_the_evidence():
    model = regression(2)
    exact = EvidenceSpectrum.from_posterior(make_posterior(model), 0.4, 30.0)
    best = exact.log_marginal_likelihood(*exact.maximise(1.0, 1.0))
    gaps = []
    for rank in (2, 6, 25):
        ours = SketchedEvidence.from_posterior(posterior_of(model, max_rank=rank), 0.4, 30.0)
        found = ours.maximise(1.0, 1.0)
        gaps.append(best - exact.log_marginal_likelihood(*found))
        assert ours.log_marginal_likelihood(*found) <= best + 1e-9
    assert gaps[0] > gaps[-1] and gaps[-1] < 1e-7


@pytest.mark.parametrize("seed", range(4))
def test_the_best_prior_lies_among_those_left_undecided(seed):
    """Of the priors better by more than a nat, and not known to be, none is left out."""
    model = regression(seed)
    model = model.with_prior_precision(0.005 * model.prior_precision)  # far from the best
    factors = np.exp(np.linspace(-5.0, 5.0, 400))
    true = []
    for factor in factors:
        there = model.with_prior_precision(model.prior_precision * factor)
        true.append(log_marginal_likelihood(make_posterior(there)))
    at_one = log_marginal_likelihood(make_posterior(model))
    better = factors[np.array(true) > at_one + 1.0 + 1e-6]
    posterior = posterior_of(model, max_rank=2)
    low, high = undecided_prior_precisions(posterior)
    assert low < high
    known = choose_prior_precision(posterior, better).lower > (
        log_marginal_likelihood_bounds(posterior)[0] + 1.0
    )
    # What is looked at is 16 % apart at most.
    left = better[~known]
    assert (low <= 1.2 * left).all() and (left <= 1.2 * high).all()
    # Of full rank every evidence is known, be it better or not.
    assert undecided_prior_precisions(posterior_of(model, max_rank=25, tol=1e-9)) == (1.0, 1.0)


def test_starts_that_cannot_be_told_apart():
    with pytest.warns(ApproximationWarning, match="2 of 4 starts"):
        warn_of_starts([(0.0, 0.5), (-3.0, 2.0), (-1.0, 1.1), (-9.0, 1.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_starts([(0.0, 5.0), (-1.0, 0.9), (-2.0, -2.0)])


def noisy(n=60):
    X = np.random.default_rng(0).uniform(-2, 2, (n, 2))
    return X, np.sin(X.sum(1)) + 0.3 * np.random.default_rng(1).standard_normal(n)


@pytest.mark.filterwarnings(
    "ignore:The low-rank posterior:sk_dnn2gp.exceptions.ApproximationWarning",
    "ignore::sklearn.exceptions.ConvergenceWarning",
)
@pytest.mark.parametrize("solver", ["lbfgs", "adam"])
def test_auto_chooses_by_the_lower_end_and_says_what_is_left_open(solver):
    X, y = noisy()
    model = DNN2GPRegressor(
        hidden_layer_sizes=(12,), posterior=LowRank(max_rank=1), solver=solver, random_state=0,
        n_restarts=1,
    )  # fmt: skip
    with pytest.warns(ApproximationWarning, match="cannot be told apart"):
        model.fit(X, y)
    low, high = model.log_marginal_likelihood_bounds()
    assert low == pytest.approx(model.log_marginal_likelihood_value_, abs=1e-9)
    own = log_marginal_likelihood(Full().build(model.linear_model_))
    offset = model._evidence_offset(np.ones(len(y)))
    assert low <= own + offset <= high and high > low + 1.0
    theta = np.log([[model.prior_precision_, model.noise_std_], [1.0, 0.5]])
    lower, upper = model.log_marginal_likelihood_bounds(theta)
    assert (lower[0], upper[0]) == pytest.approx((low, high), abs=1e-9)
    exact = EvidenceSpectrum.from_posterior(
        Full().build(model.linear_model_), model.noise_std_, float(len(y))
    )
    for k, point in enumerate(np.exp(theta)):
        assert lower[k] <= exact.log_marginal_likelihood(*point) + offset <= upper[k]


def test_an_exact_posterior_has_both_ends_in_one():
    X, y = noisy(30)
    model = DNN2GPRegressor(
        hidden_layer_sizes=(3,), prior_precision=1.0, noise_std=0.3, random_state=0
    ).fit(X, y)
    value = pytest.approx(model.log_marginal_likelihood_value_, abs=1e-9)
    assert model.log_marginal_likelihood_bounds() == (value, value)
    with pytest.raises(ValueError, match="together"):
        model.log_marginal_likelihood_bounds(X=X)


def test_at_fixed_weights_the_sketch_follows_the_prior_that_it_chooses():
    """From a prior far too strong, where the bracket at the best one is wide."""
    model = regression(3)
    module = MLP(2, (6,), 1)
    with torch.no_grad():
        for p, q in zip(module.parameters(), _pieces(model.weights, module), strict=True):
            p.copy_(q)
    f = module(model.X).detach()
    y = f + 0.1 * torch.tensor(np.random.default_rng(5).normal(size=f.shape))
    data = TrainingData(model.X, y, torch.ones(30).double())
    best = {}
    for name, specification in (("full", Full()), ("low rank", LowRank(tol=0.3))):
        best[name] = maximise_at_fixed_weights(
            module, data, Gaussian(1.0), 1e4, Freedom(True, True), specification
        )
    (delta, likelihood), (ours, other) = best["full"], best["low rank"]
    assert ours == pytest.approx(delta, rel=0.05)
    assert other.noise_std == pytest.approx(likelihood.noise_std, rel=0.02)


def _pieces(w, module):
    sizes = [p.numel() for p in module.parameters()]
    return [piece.view_as(p) for piece, p in zip(w.split(sizes), module.parameters(), strict=True)]


def test_the_prior_of_a_frozen_network_is_chosen_without_a_large_matrix(monkeypatch):
    torch.manual_seed(0)
    X, y = noisy(200)
    labels = (y > 0).astype(int)
    net = nn.Sequential(nn.Linear(2, 150), nn.Tanh(), nn.Linear(150, 1)).double()
    trained = DNN2GPClassifier(
        net, prior_precision=0.1, posterior="diag", solver="lbfgs", random_state=0
    ).fit(X, labels)
    frozen = FrozenEstimator(trained.net_)
    whole = DNN2GPClassifier(frozen, posterior="full", random_state=0).fit(X, labels)

    def refused(*_, **__):
        raise AssertionError("a matrix of the size of P or NK was formed")

    for name in ("ggn", "gram", "outputs_and_ggn"):
        monkeypatch.setattr(Linearization, name, refused)
    model = DNN2GPClassifier(frozen, posterior=LowRank(tol=0.5), random_state=0).fit(X, labels)
    assert isinstance(model._training_spectrum(), SketchedEvidence)
    model.log_marginal_likelihood(np.log([[0.1], [1.0]]), eval_gradient=True)
    assert model.prior_precision_ == pytest.approx(whole.prior_precision_, rel=0.05)


def test_standard_deviations_between_two_bounds():
    X, y = noisy()
    new = np.random.default_rng(2).uniform(-3, 3, (20, 2))
    options = {"hidden_layer_sizes": (12,), "prior_precision": 0.5, "noise_std": 0.3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        model = DNN2GPRegressor(**options, posterior=LowRank(max_rank=4), random_state=0).fit(X, y)
    V = Full().build(model.linear_model_).variance(torch.tensor(new))[:, 0].numpy()
    exact = np.sqrt(V) * model.y_scale_
    lower, upper = model.predict_std_bounds(new)
    assert (lower <= exact + 1e-12).all() and (exact <= upper + 1e-12).all()
    assert (upper <= model.posterior_.std_factor * lower * (1 + 1e-12)).all()
    np.testing.assert_array_equal(upper, model.predict_std(new, "latent"))
    near, far = model.predict_std_bounds(new, tol=0.01)
    assert (near <= exact + 1e-9).all() and (exact <= far + 1e-9).all()
    assert (far**2 <= 1.01 * near**2 * (1 + 1e-9)).all() and (far <= upper + 1e-9).all()
    model = DNN2GPRegressor(**options, random_state=0).fit(X, y)
    for end in model.predict_std_bounds(new):
        np.testing.assert_array_equal(end, model.predict_std(new, "latent"))
    model = DNN2GPRegressor(**options, posterior="diag", random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="without a bound"):
        model.predict_std_bounds(new)


def test_a_fit_in_a_low_rank_makes_no_solution_that_nobody_asked_for(monkeypatch):
    """A⁻¹ to seven digits takes passes over all rows, without end where η is large."""
    asked = []
    solve = LowRankPosterior.solve
    counted = lambda self, v: asked.append(v) or solve(self, v)  # noqa: E731
    monkeypatch.setattr(LowRankPosterior, "solve", counted)
    X = np.random.default_rng(0).standard_normal((30, 2))
    model = DNN2GPRegressor(
        hidden_layer_sizes=(4,), posterior=LowRank(max_rank=6, random_state=0), random_state=0,
        solver=LBFGS(max_iter=20), prior_precision=1.0, noise_std=0.5,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, X[:, 0])
    assert asked == []
    g = model._result.gradient
    linear = model.posterior_.model
    A = dense(model.module_, linear).G + linear.prior_precision.diag()
    # The solution's bracket is narrower than 1e-7 of it.
    assert model.newton_decrement_ == pytest.approx(float(g @ torch.linalg.solve(A, g)), rel=1e-6)
    assert len(asked) == 1

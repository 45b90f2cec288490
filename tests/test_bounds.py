"""The evidence as a bracket, against determinants of explicit matrices."""

import math

import numpy as np
import pytest
import torch

from sk_dnn2gp.evidence import log_marginal_likelihood
from sk_dnn2gp.evidence.bounds import (
    BracketedChoice,
    choose_prior_precision,
    fischer_bound,
    log_marginal_likelihood_bounds,
)
from sk_dnn2gp.posterior import make_posterior
from sk_dnn2gp.posterior.kronecker import KroneckerPosterior

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

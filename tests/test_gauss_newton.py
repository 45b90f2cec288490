"""Gauss-Newton: never uphill, the same step in both spaces, down to a stationary point."""

import math

import numpy as np
import pytest
import torch

from sk_dnn2gp.likelihoods import Categorical, Gaussian
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.optim import GaussNewton
from sk_dnn2gp.optim.curvature import FunctionSpaceCurvature, WeightSpaceCurvature
from tests.cases import CASES, data
from tests.reference import GaussianReference, jacobian


def problem(case, seed=0, **options):
    X, y = data(case)
    torch.manual_seed(seed)
    module = MLP(case.n_features, case.hidden, case.n_outputs, case.activation)
    optimizer = GaussNewton(
        module.parameters(),
        module=module,
        likelihood=Gaussian(case.sigma),
        prior_precision=case.delta,
        **options,
    )

    def closure():
        optimizer.zero_grad()
        nll = Gaussian(case.sigma).negative_log_likelihood(module(X), y).sum()
        squares = sum((p**2).sum() for p in module.parameters())
        loss = nll + 0.5 * case.delta * squares
        loss.backward()
        return loss

    return module, X, y, optimizer, closure


@pytest.fixture(autouse=True)
def _own_generator():
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("case", CASES, ids=str)
def test_never_uphill_and_stationary(case):
    module, X, y, optimizer, closure = problem(case, max_iter=3000, tol=1e-12)
    optimizer.step(closure)
    losses = np.array(optimizer.losses)
    # Near the end the change of the loss is below its rounding: a few units in the last place.
    assert (np.diff(losses) <= 1e-14 * np.abs(losses[1:]) * len(X)).all()
    assert optimizer.converged
    reference = GaussianReference(module, X, y, case.delta, case.sigma)
    assert float(reference.gradient().norm()) == pytest.approx(optimizer.gradient_norm, abs=1e-10)
    assert optimizer.gradient_norm < 1e-8 * (1 + abs(losses[-1]))


def test_a_linear_model_is_solved_in_one_undamped_step():
    case = next(c for c in CASES if c.activation == "identity")
    module, X, y, optimizer, closure = problem(case, max_iter=1, damping=1e-14)
    optimizer.step(closure)
    reference = GaussianReference(module, X, y, case.delta, case.sigma)
    torch.testing.assert_close(reference.mean_B(), reference.w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_spaces_solve_the_same_system(case):
    module, X, y, _, _ = problem(case)
    J = jacobian(module, X) / case.sigma
    L = Gaussian(case.sigma).noise_precision_factor(y)
    g = torch.linspace(-1, 1, J.shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(J.T @ J + 0.7 * torch.eye(len(g), dtype=g.dtype), g)
    linearization = Linearization(module)
    weight_space = WeightSpaceCurvature(linearization.ggn(X, cotangents=L))
    function_space = FunctionSpaceCurvature(linearization.gram(X, cotangents=L), J.mv, J.T.mv)
    for curvature in (weight_space, function_space):
        torch.testing.assert_close(curvature.solve(g, 0.7), expected, rtol=1e-9, atol=1e-10)


def test_secant_pairs_save_steps():
    case = CASES[0]
    counts = {}
    for size in (0, 8):
        *_, optimizer, closure = problem(case, max_iter=3000, tol=1e-11, history_size=size)
        optimizer.step(closure)
        counts[size] = optimizer.n_iter
    assert counts[8] < counts[0]


def test_single_precision_stops_at_its_own_rounding():
    X, y = (t.float() for t in data(CASES[0]))
    torch.manual_seed(0)
    module = MLP(2, (4,), dtype=torch.float32)
    optimizer = GaussNewton(
        module.parameters(), module=module, likelihood=Gaussian(0.3), max_iter=500
    )

    def closure():
        optimizer.zero_grad()
        nll = Gaussian(0.3).negative_log_likelihood(module(X), y).sum()
        loss = nll + 0.5 * sum((p**2).sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.converged
    # What is left to gain is at the rounding of the loss itself, a sum of 60 terms.
    reference = GaussianReference(module.double(), X.double(), y.double(), delta=1.0, sigma=0.3)
    g = reference.gradient()
    left = 0.5 * float(g @ reference.Sigma @ g)
    assert left < 60 * torch.finfo(torch.float32).eps * abs(optimizer.losses[-1])


def test_bad_calls():
    module, X, _, optimizer, closure = problem(CASES[0])
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step(None)
    with pytest.raises(ValueError, match="must call the module"):
        optimizer.step(lambda: torch.zeros((), requires_grad=True))
    with pytest.raises(ValueError, match="prior_precision must be positive"):
        GaussNewton(module.parameters(), module=module, likelihood=Gaussian(), prior_precision=0.0)
    with pytest.raises(ValueError, match="all weights of the network"):
        GaussNewton([module[0].weight], module=module, likelihood=Gaussian())
    with torch.no_grad():
        module[0].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        optimizer.step(closure)


def test_memory_limit_says_what_fits():
    *_, optimizer, closure = problem(CASES[0], memory_limit=1e-3)
    with pytest.raises(MemoryError, match=r"fits min\(P, NK\) <= 8"):
        optimizer.step(closure)


@pytest.mark.parametrize("likelihood", [Gaussian(0.4), Categorical()], ids=["gaussian", "classes"])
def test_weights_of_the_examples_count(likelihood):
    """A singular noise precision, and weights: a stationary point of the closure's own loss."""
    X = data(CASES[0])[0]
    y = (X[:, 0] > 0.3).long() + (X[:, 1] > 0).long()
    y = torch.stack([y, -y, y], 1).double() if isinstance(likelihood, Gaussian) else y
    s = torch.linspace(0.5, 2.0, len(X), dtype=torch.float64)
    torch.manual_seed(1)
    module = MLP(2, (5,), 3)
    optimizer = GaussNewton(
        module.parameters(), module=module, likelihood=likelihood, sample_weight=s, max_iter=3000
    )

    def closure():
        optimizer.zero_grad()
        nll = s @ likelihood.negative_log_likelihood(module(X), y)
        loss = nll + 0.5 * sum((p**2).sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.converged
    loss = float(closure().detach())
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
    assert float(gradient.norm()) < 1e-7 * (1 + abs(loss))

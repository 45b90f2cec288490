"""The evidence search against mathematics: slopes, profiles, stationary points, grids."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.evidence.freedom import Freedom
from sk_dnn2gp.evidence.minima import Minima
from sk_dnn2gp.likelihoods import Bernoulli, Categorical, Gaussian
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import Full
from sk_dnn2gp.training.objective import Objective, TrainingData
from tests.dense import Dense

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
Y = np.sin(1.5 * X[:, 0]) + 0.3 * RNG.normal(size=40)
KINDS = {
    "gaussian": (torch.tensor(Y)[:, None], 1),
    "bernoulli": (torch.tensor((Y > 0.2).astype(float))[:, None], 1),
    "categorical": (torch.tensor(np.digitize(Y, [-0.5, 0.5])), 3),
}
# A central difference of minima in θ: errors of h² of third derivatives, here of about 1e-7.
STEP = 1e-3


def factorise(point):
    return Full().build(point.objective.linear_model(point.w))


def problem(kind, freedom, vector=False, sigma=0.4):
    """Minima to rounding, and the same network and data for dense algebra."""
    y, K = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = MLP(2, (3,), K)
    inputs = torch.tensor(X)
    linearization = Linearization(module, dtype=torch.float64)
    linearization.outputs(inputs[:1])
    likelihood = {
        "gaussian": Gaussian(sigma), "bernoulli": Bernoulli(), "categorical": Categorical()
    }[kind]  # fmt: skip
    P = linearization.n_params
    spread = torch.linspace(-1, 1, P) if vector else torch.zeros(P)
    delta = 0.7 * spread.double().exp()
    data = TrainingData(inputs, y, torch.ones(len(X), dtype=torch.float64))
    objective = Objective(linearization, data, likelihood, delta)
    minima = Minima(objective, freedom, Full(), factorise, tol=1e-12, max_iter=2000)
    return minima, Dense(module, inputs, y, kind)


def moved(dense, freedom, w, delta, sigma, step):
    """The evidence at the minimum of θ + step, everything from its definition."""
    if not freedom.prior_precision:
        sigma = sigma * math.exp(0.5 * step)
        w = dense.minimum(w, delta, sigma)
        return dense.evidence(w, delta, sigma)
    delta = delta * math.exp(step)
    w = dense.minimum(w, delta, sigma)
    if freedom.noise_std:  # the minimum depends on δσ² alone; the best σ of all of them
        rho = delta * sigma**2
        best = minimize_scalar(
            lambda log: -dense.evidence(w, rho / math.exp(2 * log), math.exp(log)),
            bracket=(math.log(sigma) - 0.1, math.log(sigma) + 0.1), tol=1e-10,
        )  # fmt: skip
        return -best.fun
    return dense.evidence(w, delta, sigma)


def difference(dense, freedom, w, delta, sigma):
    ends = [moved(dense, freedom, w, delta, sigma, sign * STEP) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * STEP)


BOTH, DELTA, SIGMA = Freedom(True, True), Freedom(True, False), Freedom(False, True)


@pytest.mark.parametrize(
    ("kind", "freedom", "vector"),
    [
        ("gaussian", BOTH, False),
        ("gaussian", DELTA, False),
        ("gaussian", SIGMA, False),
        ("gaussian", BOTH, True),
        ("gaussian", DELTA, True),
        ("gaussian", SIGMA, True),
        ("bernoulli", DELTA, False),
        ("categorical", DELTA, False),
        ("categorical", DELTA, True),
    ],
)
def test_the_slope_is_that_of_the_evidence_at_retrained_minima(kind, freedom, vector):
    minima, dense = problem(kind, freedom, vector)
    trial = minima.trained(dense.start)
    sigma = getattr(trial.objective.likelihood, "noise_std", 1.0)
    delta = trial.objective.prior_precision
    assert trial.evidence == pytest.approx(dense.evidence(trial.w, delta, sigma), rel=1e-10)
    slope = minima.slope(trial)
    assert abs(slope) > 0.05  # not by chance a stationary point
    expected = difference(dense, freedom, trial.w, delta, sigma)
    assert slope == pytest.approx(expected, rel=1e-4, abs=1e-5)
    # ẇ is the motion of the minimum.
    h = 1e-4
    moves = [freedom.moved(trial.objective, sign * h) for sign in (1, -1)]
    ends = [
        dense.minimum(trial.w, o.prior_precision, getattr(o.likelihood, "noise_std", 1.0))
        for o in moves
    ]
    motion = (ends[0] - ends[1]) / (2 * h)
    found = minima.derivative(trial)
    torch.testing.assert_close(found, motion, rtol=1e-4, atol=1e-5 * float(motion.norm()))


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("sigma", [0.1, 0.4, 3.0])
def test_the_profiled_noise_is_the_best_of_all(vector, sigma):
    minima, dense = problem("gaussian", BOTH, vector, sigma)
    trial = minima.trained(dense.start)
    start, chosen = minima.objective, trial.objective
    rho = start.prior_precision * sigma**2
    best = minimize_scalar(
        lambda log: -dense.evidence(trial.w, rho / math.exp(2 * log), math.exp(log)),
        bounds=(math.log(1e-3), math.log(10.0)), options={"xatol": 1e-9},
    )  # fmt: skip
    assert chosen.likelihood.noise_std == pytest.approx(math.exp(best.x), rel=1e-6)
    product = chosen.prior_precision * chosen.likelihood.noise_std**2
    torch.testing.assert_close(product, rho, rtol=1e-12, atol=0.0)
    assert trial.evidence == pytest.approx(-best.fun, abs=1e-9)
    # The minimum is the same one: the loss of the other σ is a multiple, but for a constant.
    g = dense.gradient(trial.w, chosen.prior_precision, chosen.likelihood.noise_std)
    assert float(g.norm()) < 1e-8


SMALL = {"hidden_layer_sizes": (5,), "n_restarts": 1, "random_state": 0}
FITS = {
    "regressor": lambda **o: DNN2GPRegressor(**SMALL, normalize_y=False, **o).fit(X, Y),
    "wide": lambda **o: DNN2GPRegressor(
        hidden_layer_sizes=(20,), n_restarts=1, random_state=1, normalize_y=False, **o
    ).fit(X, Y),
    "sigma": lambda **o: DNN2GPRegressor(**SMALL, prior_precision=0.5, normalize_y=False, **o).fit(
        X, Y
    ),
    "delta": lambda **o: DNN2GPRegressor(**SMALL, noise_std=0.3, normalize_y=False, **o).fit(X, Y),
    "bernoulli": lambda **o: DNN2GPClassifier(**SMALL, **o).fit(X, Y > 0.2),
    "categorical": lambda **o: DNN2GPClassifier(**{**SMALL, "hidden_layer_sizes": (3,)}, **o).fit(
        X, np.digitize(Y, [-0.5, 0.5])
    ),
}


def test_evidence_that_rises_to_where_its_minimum_ends_is_taken_next_to_that_end():
    # Under weaker priors two hidden units part: the minimum turns a saddle, and the evidence falls.
    model, name = FITS["bernoulli"](), "bernoulli"
    dense = Dense(model.module_, torch.tensor(X), KINDS[name][0], name)
    start, delta = dense.start, torch.full_like(dense.start, model.prior_precision_)
    assert model.converged_
    assert float(dense.gradient(start, delta).norm()) < 1e-6
    assert float(torch.linalg.eigvalsh(dense.hessian(start, delta))[0]) > 0

    # A tenth of a nat is all that is left to gain on the way to that end.
    highest, w, step = dense.evidence(start, delta), start, 0
    with pytest.raises(RuntimeError):
        while step < 200:
            step += 1
            w = dense.minimum(w, delta * math.exp(-0.001 * step))
            highest = max(highest, dense.evidence(w, delta * math.exp(-0.001 * step)))
    assert highest < dense.evidence(start, delta) + 0.1


@pytest.mark.parametrize("name", [name for name in FITS if name != "bernoulli"])
def test_a_default_fit_ends_at_a_stationary_point(name):
    model = FITS[name]()
    kind = name if name in KINDS else "gaussian"
    dense = Dense(model.module_, torch.tensor(X), KINDS[kind][0], kind)
    freedom = {"sigma": SIGMA, "regressor": BOTH, "wide": BOTH}.get(name, DELTA)
    w, sigma = dense.start, getattr(model, "noise_std_", 1.0)
    assert model.converged_
    assert float(dense.gradient(w, model.prior_precision_, sigma).norm()) < 1e-6
    delta = torch.full_like(w, model.prior_precision_)
    assert abs(difference(dense, freedom, w, delta, sigma)) < 1e-3
    evidence = dense.evidence(w, delta, sigma)
    assert model.log_marginal_likelihood_value_ == pytest.approx(evidence, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regressor", "bernoulli"])
def test_no_fit_of_a_grid_has_more_evidence(name):
    """The same start at every δ of a grid, trained to its own minimum there.

    One path may lead to a fold, and a separate fit past it: a few starts find what one may miss.
    """
    targets = {"regressor": Y, "bernoulli": Y > 0.2}[name]
    ours = FITS[name]().set_params(n_restarts=4).fit(X, targets).log_marginal_likelihood_value_
    grid = [
        FITS[name](prior_precision=delta).log_marginal_likelihood_value_
        for delta in np.logspace(-2, 3, 21)
    ]
    # Stationary to 7e-4 nats per unit of log δ; a grid point within half a step of it is no higher.
    assert ours >= max(grid) - 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_an_idle_network_is_no_end(seed):
    """At a strong prior no weight may leave zero; the search has to begin again below it."""
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(-2, 2, (50, 2))
    y = 10 + 4 * np.sin(2 * inputs[:, 0]) + 0.4 * rng.standard_normal(50)
    options = {"hidden_layer_sizes": (5,), "random_state": 0, "n_restarts": 1}
    model = DNN2GPRegressor(**options).fit(inputs, y)
    known = DNN2GPRegressor(**options, prior_precision=1.0).fit(inputs, y)
    assert model.effective_dimension_ > 3
    assert model.log_marginal_likelihood_value_ > known.log_marginal_likelihood_value_ - 3.0
    assert 1e-5 < model.prior_precision_ < 1e8


def test_groups_end_where_no_group_alone_gains():
    model = DNN2GPRegressor(**SMALL, normalize_y=False, prior_groups="layer").fit(X, Y)
    dense = Dense(model.module_, torch.tensor(X), KINDS["gaussian"][0], "gaussian")
    index, named = [], model.prior_precisions_
    for number, layer in enumerate(m for m in model.module_ if isinstance(m, nn.Linear)):
        index += [number] * layer.weight.numel() + [2] * layer.bias.numel()
    deltas = torch.tensor([named["layer 0"], named["layer 1"], named["biases"]])
    delta = deltas.double()[index]
    evidence = dense.evidence(dense.start, delta, model.noise_std_)
    # δ's of many decades: a condition of 1e7.
    assert model.log_marginal_likelihood_value_ == pytest.approx(evidence, rel=1e-8)
    common = DNN2GPRegressor(**SMALL, normalize_y=False).fit(X, Y)
    assert evidence >= common.log_marginal_likelihood_value_ - 1e-6

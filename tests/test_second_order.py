"""Second-order training: minima, steps and products against scipy and dense algebra."""

from functools import cached_property

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from torch import nn

from sk_dnn2gp.exceptions import ConvergenceError
from sk_dnn2gp.likelihoods import Bernoulli, Categorical, Gaussian
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.linearize.chain import Chain
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import Full
from sk_dnn2gp.training.descent import descend
from sk_dnn2gp.training.newton import _steihaug, conjugate_gradients, newton
from sk_dnn2gp.training.objective import Objective, TrainingData
from sk_dnn2gp.training.second_order import gauss_newton, minimise
from tests.dense import Dense

SIGMA = 0.3


class Skip(nn.Module):
    """No chain of layers: two paths that meet."""

    def __init__(self, n_outputs):
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.skip = nn.Linear(2, n_outputs, bias=False)
        self.last = nn.Linear(4, n_outputs)
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.first(x))) + self.skip(x)


LIKELIHOODS = {
    "gaussian": (Gaussian(SIGMA), 2),
    "bernoulli": (Bernoulli(), 1),
    "categorical": (Categorical(), 3),
}


class Problem:
    """One network, data set and likelihood: the package's objective, and the dense one."""

    def __init__(self, kind, network, weighted=True):
        self.likelihood, K = LIKELIHOODS[kind]
        generator = torch.Generator().manual_seed(1)
        X = torch.randn(30, 2, dtype=torch.float64, generator=generator)
        noise = 0.3 * torch.randn(30, K, dtype=torch.float64, generator=generator)
        signal = torch.sin(X.sum(1, keepdim=True) + torch.arange(K)) + noise
        y = {
            "gaussian": signal, "bernoulli": (signal > 0).double(), "categorical": signal.argmax(1)
        }[kind]  # fmt: skip
        s = torch.linspace(0.5, 2.0, 30, dtype=torch.float64) if weighted else torch.ones(30)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = MLP(2, (4,), K) if network == "chain" else Skip(K)
        self.dense = Dense(module, X, y, kind, s.double())
        self.delta = torch.linspace(0.2, 1.0, len(self.dense.start), dtype=torch.float64)
        linearization = Linearization(module, dtype=torch.float64)
        linearization.outputs(X[:1])
        data = TrainingData(X, y, s.double())
        self.objective = Objective(linearization, data, self.likelihood, self.delta)

    @cached_property
    def scipy_minimum(self):
        """A minimum by quasi-Newton steps of scipy's, and the loss there."""

        def both(w):
            t = torch.tensor(w)
            loss = self.dense.loss(self.delta, SIGMA)(t)
            return float(loss), self.dense.gradient(t, self.delta, SIGMA).numpy()

        start = self.dense.start.numpy()
        found = scipy_minimize(both, start, jac=True, method="BFGS", options={"gtol": 1e-9})
        return torch.tensor(found.x), found.fun


def factorise(point):
    return Full().build(point.curvature.objective.linear_model(point.w))


PROBLEMS = [(k, n) for k in LIKELIHOODS for n in ("chain", "skip")]


@pytest.fixture(scope="module", params=PROBLEMS, ids="-".join)
def problem(request):
    return Problem(*request.param)


def test_loss_gradient_and_hessian_products_are_the_dense_ones(problem):
    dense, delta = problem.dense, problem.delta
    generator = torch.Generator().manual_seed(2)
    w = dense.start + 0.3 * torch.randn(len(delta), dtype=torch.float64, generator=generator)
    v = torch.randn(len(delta), dtype=torch.float64, generator=generator)
    point = problem.objective.at(w)
    assert point.loss == pytest.approx(float(dense.loss(delta, SIGMA)(w)), rel=1e-13)
    g = dense.gradient(w, delta, SIGMA)
    torch.testing.assert_close(point.gradient, g, rtol=1e-11, atol=1e-12 * float(g.norm()))
    Hv = dense.hessian(w, delta, SIGMA) @ v
    product = point.hessian_product(v)
    torch.testing.assert_close(product, Hv, rtol=1e-10, atol=1e-12 * float(Hv.norm()))
    # A central difference of the gradient: an error of h², here 1e-8 of third derivatives.
    h = 1e-4
    ends = [problem.objective.at(w + sign * h * v).gradient for sign in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-6 * float(Hv.norm()))


SOLVERS = {
    # Without a factor gᵀHg is of L-BFGS's own H, which may be a thousand times too small.
    "descend": lambda o, w: descend(o.at(w), factorise, gain=1e-10, max_iter=2000),
    "without a factor": lambda o, w: descend(o.at(w), lambda _: None, gain=1e-12, max_iter=5000),
    "newton": lambda o, w: newton(o.at(w), factorise),
    "minimise": lambda o, w: minimise(o.at(w), factorise),
    "gauss_newton": lambda o, w: gauss_newton(o.at(w)),
}


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_the_minimum_is_scipys(problem, solver):
    expected, loss = problem.scipy_minimum
    generator = torch.Generator().manual_seed(3)
    away = 0.05 * torch.randn(len(expected), dtype=torch.float64, generator=generator)
    found = SOLVERS[solver](problem.objective, expected + away)
    assert found.converged
    assert found.point.loss == pytest.approx(loss, abs=1e-8)
    assert found.n_iter == len(found.losses) - 1 > 0
    # Never uphill, but for the rounding of a sum of 30 terms.
    assert (np.diff(found.losses) <= 1e-14 * abs(loss) * 30).all()
    if solver not in ("descend", "without a factor"):
        norm = float(problem.dense.gradient(found.point.w, problem.delta, SIGMA).norm())
        assert norm <= 1.1e-8 * (1 + abs(loss))


@pytest.mark.parametrize("solver", ["minimise", "gauss_newton", "descend"])
def test_from_untrained_weights_to_a_minimum(problem, solver):
    found = SOLVERS[solver](problem.objective, problem.dense.start)
    assert found.converged
    assert found.point.loss < found.losses[0]
    w = problem.dense.minimum(found.point.w, problem.delta, SIGMA)  # checks that H is positive
    assert float((w - found.point.w).norm()) < 1e-3 * float(w.norm())


def test_a_gauss_newton_step_is_one_forward_pass(monkeypatch):
    """Loss, gradient and curvature of a chain are of one pass: as many passes as points tried."""
    X = torch.linspace(-2.0, 2.0, 40, dtype=torch.float64)[:, None]
    linearization = Linearization(MLP(1, (5,), 1), dtype=torch.float64)
    linearization = linearization.at(linearization.weights())
    linearization.outputs(X[:1])  # looks at the network, once for all
    ones = torch.ones(linearization.n_params, dtype=torch.float64)
    data = TrainingData(X, X.sin(), torch.ones(40, dtype=torch.float64))
    objective = Objective(linearization, data, Gaussian(SIGMA), ones)
    w = linearization.weights()
    passes, points, forward, at = [], [], Chain.forward, Objective.at
    monkeypatch.setattr(Chain, "forward", lambda *a: passes.append(1) or forward(*a))
    monkeypatch.setattr(Objective, "at", lambda *a: points.append(1) or at(*a))
    found = gauss_newton(objective.at(w))
    assert found.converged
    assert len(passes) == len(points) > found.n_iter > 5


def test_max_iter_bounds_the_steps_and_says_so(problem):
    start = problem.objective.at(problem.dense.start)
    for solve in (
        lambda: minimise(start, factorise, max_iter=2),
        lambda: gauss_newton(start, max_iter=2),
        lambda: descend(start, factorise, gain=1e-12, max_iter=2),
    ):
        found = solve()
        assert found.n_tried == 2 and not found.converged  # those that were rejected too


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_start_that_is_not_finite_is_an_error(problem, value):
    w = problem.dense.start
    w[-1] = value
    for solver in SOLVERS:
        with pytest.raises(ConvergenceError, match=r"loss is (nan|inf|-inf) at the starting"):
            SOLVERS[solver](problem.objective, w)


def test_steps_of_the_trust_region(problem):
    """z, its promise and its length in A's norm, against dense H and A."""
    expected, _ = problem.scipy_minimum
    generator = torch.Generator().manual_seed(4)
    w = expected + 5e-4 * torch.randn(len(expected), dtype=torch.float64, generator=generator)
    point, factor = problem.objective.at(w), factorise(problem.objective.at(w))
    g = problem.dense.gradient(w, problem.delta, SIGMA)
    H = problem.dense.hessian(w, problem.delta, SIGMA)
    A = problem.dense.ggn(w, SIGMA) + torch.diag(problem.delta)
    newtons = -torch.linalg.solve(H, g)
    whole = _steihaug(point, factor.solve, 1e6, 1e-10)
    assert not whole.at_boundary
    torch.testing.assert_close(whole.z, newtons, rtol=1e-6, atol=1e-8 * float(newtons.norm()))
    assert whole.predicted == pytest.approx(float(-0.5 * g @ newtons), rel=1e-9)
    for radius in (0.1, 0.5):
        radius *= float((newtons @ A @ newtons).sqrt())
        step = _steihaug(point, factor.solve, radius, 1e-10)
        assert step.at_boundary
        assert float((step.z @ A @ step.z).sqrt()) == pytest.approx(radius, rel=1e-8)
        assert step.length == pytest.approx(radius, rel=1e-12)
        promise = float(-(g @ step.z) - 0.5 * step.z @ H @ step.z)
        assert step.predicted == pytest.approx(promise, rel=1e-9)
        # At least Cauchy's decrease: that of the preconditioned gradient within the radius.
        d = -torch.linalg.solve(A, g)
        t = min(radius / float((d @ A @ d).sqrt()), float(-(g @ d) / (d @ H @ d)))
        assert promise >= -(t * float(g @ d) + 0.5 * t**2 * float(d @ H @ d)) * (1 - 1e-10)


@pytest.mark.parametrize("network", ["chain", "skip"])
def test_negative_curvature_is_left_downhill(network):
    """Next to the saddle at w = 0, where the bias alone is trained and H is indefinite."""
    problem = Problem("gaussian", network)
    dense, delta = problem.dense, problem.delta / 100
    objective = problem.objective.under(problem.likelihood, delta)
    generator = torch.Generator().manual_seed(5)
    w = 1e-3 * torch.randn(len(delta), dtype=torch.float64, generator=generator)
    H = dense.hessian(w, delta, SIGMA)
    assert float(torch.linalg.eigvalsh(H)[0]) < -1.0
    point = objective.at(w)
    step = _steihaug(point, factorise(point).solve, 1.0, 1e-8)
    assert step.predicted > 0
    assert step.at_boundary
    found = newton(objective.at(w), factorise, max_iter=300)
    assert found.converged
    assert float(torch.linalg.eigvalsh(dense.hessian(found.point.w, delta, SIGMA))[0]) > 0


def test_conjugate_gradients_are_a_dense_solution():
    generator = torch.Generator().manual_seed(0)
    R = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    H = R @ R.mT + 0.1 * torch.eye(12, dtype=torch.float64)
    b = torch.randn(12, dtype=torch.float64, generator=generator)
    M = H.diagonal()
    expected = torch.linalg.solve(H, b)
    found, flat = conjugate_gradients(lambda v: H @ v, b, lambda v: v / M, 1e-12, 200)
    assert flat is None
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    by_inverse, _ = conjugate_gradients(lambda v: H @ v, b, lambda v: torch.linalg.solve(H, v))
    torch.testing.assert_close(by_inverse, expected, rtol=1e-10, atol=1e-11)  # in one step
    zero = torch.zeros(12, dtype=torch.float64)
    assert torch.equal(conjugate_gradients(lambda v: H @ v, zero, lambda v: v)[0], zero)
    # The residual's norm is met: tol of b's, both in M⁻¹.
    rough, _ = conjugate_gradients(lambda v: H @ v, b, lambda v: v / M, 0.1)
    r = b - H @ rough
    assert float(r @ (r / M)) <= 0.01 * float(b @ (b / M))
    # Where the first direction has no curvature there is no step; later ones keep what was found.
    none, flat = conjugate_gradients(lambda v: -H @ v, b, lambda v: v)
    assert torch.equal(none, zero) and torch.equal(flat, b)
    indefinite = torch.diag(torch.tensor([4.0, 1.0, -1e-3], dtype=torch.float64))
    start = torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64)
    kept, flat = conjugate_gradients(lambda v: indefinite @ v, start, lambda v: v, 1e-12)
    assert float(kept.norm()) > 0 and float(start @ kept) > 0
    assert float(flat @ indefinite @ flat) <= 0


def test_curvature_of_a_part_leads_to_the_minimum_of_all():
    generator = torch.Generator().manual_seed(6)
    X = torch.randn(800, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(800, 1, dtype=torch.float64, generator=generator)
    y = torch.sin(X[:, :1] * X[:, 1:]) + SIGMA * noise
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = MLP(2, (5,), 1)
    linearization = Linearization(module, dtype=torch.float64)
    linearization.outputs(X[:1])
    delta = torch.full((linearization.n_params,), 2.0, dtype=torch.float64)
    s = torch.linspace(0.5, 1.5, 800, dtype=torch.float64)
    objective = Objective(linearization, TrainingData(X, y, s), Gaussian(SIGMA), delta)
    rows = torch.arange(0, 800, 4)
    w = linearization.weights() + 0.01
    point = objective.with_part(rows).at(w)
    # Its Hessian is that of the part with the weight of all.
    v = torch.randn(len(w), dtype=torch.float64, generator=generator)
    part = objective.of(rows).at(w)
    expected = float(s.sum() / s[rows].sum()) * (part.hessian_product(v) - delta * v) + delta * v
    torch.testing.assert_close(point.curvature.hessian_product(v), expected, rtol=1e-10, atol=1e-9)
    assert torch.equal(point.hessian_product(v), objective.at(w).hessian_product(v))
    whole = minimise(objective.at(w), factorise, tol=1e-10)
    near = whole.point.w + 1e-3 * v
    found = minimise(objective.with_part(rows).at(near), factorise, tol=1e-10)
    assert found.converged
    # Where rounding ends the way, a step promises 1e-15 of the loss, 307: over the smallest
    # curvature, 3.2, that is √(2 × 3e-13 / 3.2).
    torch.testing.assert_close(found.point.w, whole.point.w, rtol=0, atol=5e-7)


def test_a_minimum_on_a_kink_ends_the_way():
    """Steps across a kink of relu each gain a billionth of a nat, as long as they are taken."""
    generator = torch.Generator().manual_seed(27)
    X = torch.randn(12, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(12, 1, dtype=torch.float64, generator=generator)
    data = TrainingData(X, torch.sin(X.sum(1, keepdim=True)) + 0.3 * noise, torch.ones(12))
    with torch.random.fork_rng():
        torch.manual_seed(27)
        linearization = Linearization(MLP(2, (3,), 1, activation="relu"), dtype=torch.float64)
    linearization.outputs(X[:1])
    delta = torch.full((linearization.n_params,), 0.5, dtype=torch.float64)
    objective = Objective(linearization, data, Gaussian(0.3), delta)
    found = minimise(objective.at(linearization.weights()), factorise, max_iter=2000)
    assert not found.converged
    assert found.n_iter < 300
    # The loss has a slope there, and no step along it leads down.
    point, g = found.point, found.point.gradient
    assert float(g.norm()) > 1.0
    ends = [objective.at(point.w - t * g).loss for t in np.logspace(-8, 0, 50)]
    assert min(ends) > point.loss - 1e-6

"""The low-rank posterior against dense float64 matrices: exact values inside every bracket."""

import math
import pickle
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from numpy.linalg import LinAlgError
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from sk_dnn2gp.evidence.bounds import log_marginal_likelihood_bounds
from sk_dnn2gp.exceptions import ApproximationWarning
from sk_dnn2gp.likelihoods import Categorical, Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import LowRank, LowRankPosterior, low_rank, products
from sk_dnn2gp.posterior.kronecker import KroneckerPosterior
from sk_dnn2gp.posterior.products import ScaledFeatures
from sk_dnn2gp.posterior.refine import Preconditioner, conjugate_gradients
from sk_dnn2gp.posterior.sketch import allowance, frobenius_bound, grow_sketch

from . import reference

# A case is looked at several times, and a Jacobian is one backward pass an entry.
jacobian = lru_cache(maxsize=4)(reference.jacobian)
# Rounding of sums of a few hundred products, in relation to their size.
ROUNDING = 1e-10


@dataclass
class Dense:
    """G, A⁻¹ and what follows from them, as explicit matrices."""

    Phi: torch.Tensor
    delta: torch.Tensor

    def __post_init__(self):
        self.Psi = self.Phi / self.delta.sqrt()
        self.G = self.Psi.T @ self.Psi
        self.Sigma = torch.linalg.inv(self.Phi.T @ self.Phi + torch.diag(self.delta))
        self.log_B = float(torch.linalg.slogdet(torch.eye(len(self.G)).double() + self.G)[1])
        self.gamma = len(self.G) - float((self.delta * self.Sigma.diagonal()).sum())


def spectrum_module(rng, P, n_rows, n_outputs):
    """A linear network and inputs whose features have a random or a decaying spectrum."""
    D = max(1, P // n_outputs)
    X = rng.standard_normal((n_rows, D))
    if rng.random() < 0.6:
        U, s, Vt = np.linalg.svd(X, full_matrices=False)
        s = 10.0 ** (rng.uniform(0.5, 3) - rng.uniform(0.05, 1.5) * np.arange(len(s)))
        X = U * s @ Vt
    module = nn.Linear(D, n_outputs, bias=bool(rng.integers(2)), dtype=torch.float64)
    return module, torch.tensor(X)


def random_model(seed):
    """A linear model over a linear network, a perceptron or a convolution, NK < P or > P."""
    rng = np.random.default_rng(seed)
    K, n = int(rng.integers(1, 4)), int(rng.integers(2, 30))
    kind = rng.integers(4)
    if kind < 2:
        module, X = spectrum_module(rng, int(rng.integers(3, 45)), n, K)
    elif kind == 2:
        module, X = MLP(2, (int(rng.integers(2, 6)),), K), torch.tensor(rng.normal(size=(n, 2)))
    else:
        module = nn.Sequential(
            nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, K)
        ).double()
        X = torch.tensor(rng.normal(size=(n, 1, 4)))
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.tensor(rng.normal(size=p.shape)))
    linearization = Linearization(module)
    w = linearization.weights()
    delta = torch.tensor(10.0 ** rng.uniform(-2, 2), dtype=torch.float64)
    if rng.random() < 0.5:
        delta = delta * torch.tensor(10.0 ** rng.uniform(-1, 1, len(w)))
    L = torch.tensor(rng.normal(size=(n, K, K)))
    u = torch.tensor(rng.normal(size=(n, K)))
    model = LinearModel(linearization, X, L, u, w, delta, -1.0, 0.0)
    X_new = X[: min(3, n)] + 0.1 * torch.tensor(rng.normal(size=X[: min(3, n)].shape))
    return module, model, X_new, rng


def dense(module, model):
    n, K = model.whitened_residual.shape
    J = jacobian(module, model.X).view(n, K, -1)
    Phi = (model.noise_factor.mT @ J).flatten(0, 1)
    return Dense(Phi, model.prior_precision.expand(Phi.shape[1]))


def posterior_of(model, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        return LowRankPosterior(model, random_state=0, **settings)


def smallest(A):
    return float(torch.linalg.eigvalsh(0.5 * (A + A.mT)).min())


def blocks_of(module, X, Sigma):
    J = jacobian(module, X).view(len(X), -1, len(Sigma))
    return J @ Sigma @ J.mT


def check_brackets(posterior, module, model, X_new):
    """Exact covariances, determinant, γ and evidence inside their brackets."""
    exact = dense(module, model)
    V = blocks_of(module, X_new, exact.Sigma)
    prior = blocks_of(module, X_new, torch.diag(1 / exact.delta))
    slack = ROUNDING * float(prior.abs().max())
    bracket = posterior.covariance_bounds(X_new)
    assert smallest(V - bracket.lower) >= -slack
    assert smallest(bracket.upper - V) >= -slack
    factor = 1 + posterior.error_bound
    assert smallest(factor * bracket.lower - bracket.upper) >= -factor * slack
    low, high = posterior.log_determinant_bounds()
    slack = ROUNDING * (1 + exact.log_B) + ROUNDING * float(exact.G.trace())
    assert low - slack <= exact.log_B <= high + slack
    assert posterior.log_determinant == high
    low, high = posterior.effective_dimension_bounds()
    assert low - slack <= exact.gamma <= high + slack
    assert posterior.effective_dimension <= exact.gamma + slack
    log_Z = model.log_likelihood - 0.5 * float((exact.delta * model.weights**2).sum())
    log_Z -= 0.5 * exact.log_B
    low, high = log_marginal_likelihood_bounds(posterior)
    assert low - slack <= log_Z <= high + slack


# A thousand and more cases, of which a third in every run.
GROUPS = [*range(10), *(pytest.param(group, marks=pytest.mark.slow) for group in range(10, 32))]


@pytest.mark.parametrize("group", GROUPS)
def test_exact_values_lie_in_every_bracket(group, monkeypatch):
    """32 random cases a group, at the sketch's δ and at a multiple of it.

    Test rows are formed in half of the groups, and stay factors in the others.
    """
    monkeypatch.setattr(products, "_FEW", 1000 if group % 2 else 0)
    for seed in range(32 * group, 32 * (group + 1)):
        module, model, X_new, rng = random_model(seed)
        settings = {"max_rank": int(rng.integers(1, 20)), "tol": 10.0 ** rng.uniform(-3, 2)}
        posterior = posterior_of(model, **settings)
        assert posterior.rank <= settings["max_rank"]
        check_brackets(posterior, module, model, X_new)
        c = float(10.0 ** rng.uniform(-1, 1))
        changed = posterior.with_prior_precision(model.prior_precision * c)
        check_brackets(changed, module, changed.model, X_new)


@pytest.mark.parametrize("seed", range(40))
def test_the_sketch_is_below_G_and_every_certificate_is_true(seed):
    module, model, _, rng = random_model(seed)
    exact = dense(module, model)
    features = ScaledFeatures(model)
    norm = float(exact.G.trace())
    assert features.squared_norm == pytest.approx(norm, rel=1e-12)
    previous = math.inf
    generator = torch.Generator().manual_seed(seed)
    sketch = grow_sketch(features, 1e-9 * norm, int(rng.integers(1, 15)), generator)
    F = sketch.factor
    E = exact.G - F @ F.T
    values = torch.linalg.eigvalsh(E)
    assert float(values.min()) >= -1e-11 * norm
    last = sketch.certificate
    assert last.trace == pytest.approx(float(E.trace()), abs=1e-11 * norm)
    for bound in (last.trace, last.spectral):
        assert float(values.max()) <= bound + 1e-11 * norm
    assert float((E**2).sum()) <= last.frobenius + 1e-11 * norm**2
    assert torch.allclose(F.T @ F, torch.diag(sketch.eigenvalues), rtol=0, atol=1e-12 * norm)
    for certificate in sketch.history:
        assert certificate.bound <= previous
        previous = certificate.bound


@pytest.mark.parametrize("seed", [1, 4, 6, 9, 12, 15])
def test_brackets_narrow_with_rank(seed):
    """Sketches of one seed contain one another: v_up falls at every point, and so does η.

    v_lo rises where both bounds are the trace's: what Ĝ gains in one direction, η loses in all.
    (By the probes η may lose less than Ĝ gains.)
    """
    module, model, X_new, _ = random_model(seed)
    slack = 1e-9 * float(blocks_of(module, X_new, torch.diag(1 / dense(module, model).delta)).max())
    lower, upper, eta, rigorous = None, None, math.inf, False
    for rank in (1, 2, 3, 5, 8, 12, 20, 30):
        posterior = posterior_of(model, max_rank=rank, tol=1e-12)
        low, high = posterior.variance_bounds(X_new)
        assert posterior.error_bound <= eta
        if upper is not None:
            assert bool((high <= upper + slack).all())
        if rigorous and posterior.error_kind == "trace":
            assert bool((low >= lower - slack).all())
        lower, upper, eta = low, high, posterior.error_bound
        rigorous = posterior.error_kind == "trace"


@pytest.mark.parametrize("seed", range(0, 24, 2))
def test_full_rank_is_exact(seed):
    module, model, X_new, _ = random_model(seed)
    exact = dense(module, model)
    posterior = posterior_of(model, tol=1e-12)
    scale = 1e-8 * max(1.0, float(exact.G.trace()))
    V = blocks_of(module, X_new, exact.Sigma)
    prior = float(blocks_of(module, X_new, torch.diag(1 / exact.delta)).max())
    assert torch.allclose(posterior.covariance(X_new), V, rtol=1e-6, atol=scale * prior)
    assert posterior.log_determinant == pytest.approx(exact.log_B, rel=1e-6, abs=scale)
    J = jacobian(module, X_new)
    joint = posterior.joint_covariance(X_new)
    assert torch.allclose(joint, J @ exact.Sigma @ J.T, rtol=1e-6, atol=scale * prior)


@pytest.mark.parametrize("seed", range(20))
def test_conjugate_gradients_bracket_holds_at_every_step(seed):
    module, model, X_new, rng = random_model(seed)
    exact = dense(module, model)
    posterior = posterior_of(model, max_rank=int(rng.integers(1, 6)), tol=1e-12)
    M = Preconditioner(posterior._sketch.factor, posterior._sketch.eigenvalues)
    J = jacobian(module, X_new) / exact.delta.sqrt()
    A = exact.G + torch.eye(len(exact.G)).double()
    true = (J @ torch.linalg.inv(A) * J).sum(1)
    slack = ROUNDING * (J**2).sum(1)
    low = torch.zeros_like(true)
    for n_iter, step in enumerate(conjugate_gradients(lambda V: A @ V, M, J.T.contiguous())):
        assert bool((step.lower <= true + slack).all()), n_iter
        assert bool((step.upper >= true - slack).all()), n_iter
        assert bool((step.lower >= low - slack).all())  # the lower end only rises
        low = step.lower
        if n_iter == 12:
            break


@pytest.mark.parametrize("seed", range(20))
def test_refined_covariances_bracket_to_the_asked_width(seed):
    module, model, X_new, rng = random_model(seed)
    posterior = posterior_of(model, max_rank=int(rng.integers(1, 6)), tol=1e-12)
    exact = dense(module, model)
    V = blocks_of(module, X_new, exact.Sigma)
    slack = 1e-9 * float(blocks_of(module, X_new, torch.diag(1 / exact.delta)).max())
    for tol, most in ((1e-3, 300), (1e-12, 2)):  # stopped early, the bracket still holds
        bracket = posterior.refined_covariance(X_new, tol, most)
        assert smallest(V - bracket.lower) >= -slack
        assert smallest(bracket.upper - V) >= -slack
    assert bracket.n_iter <= 2
    bracket = posterior.refined_covariance(X_new, 1e-3, 300)
    low, high = (b.diagonal(dim1=-2, dim2=-1) for b in (bracket.lower, bracket.upper))
    assert bool((high <= (1 + 1e-3) * low + slack).all())


@pytest.mark.parametrize("seed", [0, 2, 3, 5, 7, 11])
def test_solve_and_newton_decrement(seed):
    module, model, _, rng = random_model(seed)
    exact = dense(module, model)
    posterior = posterior_of(model, max_rank=4)
    v = torch.tensor(rng.normal(size=model.n_params))
    true = exact.Sigma @ v
    # The error in A's norm is 1e-7 of the solution's; A's condition number bounds it in w's.
    condition = float(torch.linalg.cond(exact.Sigma)) ** 0.5
    assert float((posterior.solve(v) - true).norm()) <= 1e-6 * condition * float(true.norm())
    g = exact.Phi.T @ model.whitened_residual.flatten() + exact.delta * model.weights
    assert posterior.newton_decrement == pytest.approx(float(g @ exact.Sigma @ g), rel=1e-8)


@pytest.mark.parametrize("seed", [3, 8])
def test_samples_have_the_exact_covariance(seed):
    """Whitened by the exact A^(1/2), the draws' Gram matrix is that of standard normal ones.

    Each entry of ZᵀZ/S - I has a standard deviation below √(2/S); the largest of P² of them
    exceeds 6 of those with probability below P² 2e-9.
    """
    module, model, X_new, _ = random_model(seed)
    exact = dense(module, model)
    posterior = posterior_of(model, max_rank=2, tol=1e-12)
    S = 4000
    draws = posterior.sample_weights(S, torch.Generator().manual_seed(seed))
    values, vectors = torch.linalg.eigh(exact.Sigma)
    Z = draws @ (vectors / values.sqrt())
    assert float((Z.T @ Z / S - torch.eye(Z.shape[1]).double()).abs().max()) < 6 * math.sqrt(2 / S)
    assert float((Z.mean(0)).abs().max()) < 6 / math.sqrt(S)
    variance, error = posterior.sampled_variance(X_new, S, torch.Generator().manual_seed(1))
    true = blocks_of(module, X_new, exact.Sigma).diagonal(dim1=-2, dim2=-1)
    assert error == pytest.approx(math.sqrt(2 / S))
    assert float((variance / true - 1).abs().max()) < 6 * error
    f = posterior.sample(X_new, 3, torch.Generator().manual_seed(seed))
    assert f.shape == (3, *true.shape)


@pytest.mark.parametrize(("n", "s", "k"), [(50, 1, 4), (200, 3, 3), (1000, 8, 4)])
def test_the_certificate_fails_no_more_often_than_it_says(n, s, k):
    """500 Gaussian starts on a spectrum that hides its top, p = 0.3; then not vacuous either."""
    rng = np.random.default_rng(n)
    spectrum = np.concatenate([[1.0], np.linspace(0, 0.8, n - 1)])
    p, trials, failures = 0.3, 500, 0
    epsilon = allowance(n, s, k, p)
    assert 0.0 < epsilon < 1.0
    for _ in range(trials):
        blocks = [rng.standard_normal((n, s))]
        for _ in range(k - 1):
            blocks.append(spectrum[:, None] * blocks[-1])
        V = np.linalg.qr(np.hstack(blocks))[0]
        xi = np.linalg.eigvalsh(V.T @ (spectrum[:, None] * V))[-1]
        failures += xi / (1 - epsilon) < 1.0
    assert failures <= p * trials + 4 * math.sqrt(p * (1 - p) * trials)


def test_allowance_falls_with_steps_starts_and_probability():
    assert allowance(5000, 8, 6, 1e-6) > allowance(5000, 8, 9, 1e-6) > 0
    assert allowance(5000, 8, 6, 1e-6) > allowance(5000, 16, 6, 1e-6)
    assert allowance(5000, 8, 6, 1e-6) > allowance(5000, 8, 6, 1e-2)
    # One start: the order of Kuczyński and Woźniakowski's theorem 4.1.
    known = (math.log(1.648 * math.sqrt(5000) / 1e-3) / (2 * 20 - 1)) ** 2
    assert allowance(5000, 1, 20, 1e-3) == pytest.approx(known, rel=0.5)


def test_frobenius_bound_fails_no_more_often_than_it_says():
    rng = np.random.default_rng(0)
    spectrum = 1.0 / np.arange(1, 101)
    W, p, trials = float((spectrum**2).sum()), 0.2, 1000
    squares = ((spectrum[:, None, None] * rng.standard_normal((100, 5, trials))) ** 2).sum((0, 1))
    bounds = np.array([frobenius_bound(float(q), 5, 1.0, p) for q in squares])
    assert (bounds < W).mean() <= p
    # Concave in the squares, whose mean is 5 W: Jensen's inequality, and three standard errors.
    error = bounds.std() / math.sqrt(trials)
    assert bounds.mean() < frobenius_bound(5 * W, 5, 1.0, p) + 3 * error < 2.5 * W


def test_it_is_seeded_and_leaves_the_global_generator_alone():
    _, model, X_new, _ = random_model(7)
    before = torch.random.get_rng_state()
    a, b = (posterior_of(model, max_rank=3).variance(X_new) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(before, torch.random.get_rng_state())


def test_products_agree_with_rows_for_every_kind_of_layer(monkeypatch):
    """Dense by factors and by rows, patches, tables, shared weights, norms."""
    generator = torch.Generator().manual_seed(0)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 8)
            self.norm, self.inner = nn.LayerNorm(8), nn.Linear(8, 8)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            h = self.norm(self.table(x).mean(1))
            return self.out(torch.tanh(self.inner(torch.tanh(self.inner(h)))))

    module, X = Words().double(), torch.randint(0, 5, (6, 4), generator=generator)
    linearization = Linearization(module)
    L = torch.randn(6, 3, 3, dtype=torch.float64, generator=generator)
    P = linearization.weights().numel()
    delta = torch.rand(P, dtype=torch.float64, generator=generator) + 0.5
    u = torch.zeros(6, 3, dtype=torch.float64)
    model = LinearModel(linearization, X, L, u, linearization.weights(), delta, 0.0, 0.0)
    features = ScaledFeatures(model)
    Psi = (L.mT @ jacobian(module, X).view(6, 3, P)).flatten(0, 1) / delta.sqrt()
    V = torch.randn(P, 4, dtype=torch.float64, generator=generator)
    U = torch.randn(18, 4, dtype=torch.float64, generator=generator)
    close = {"rtol": 1e-11, "atol": 1e-11}
    for _ in range(2):  # the second time from the factors that were kept
        assert torch.allclose(features.times(V), Psi @ V, **close)
        assert torch.allclose(features.transpose_times(U), Psi.T @ U, **close)
        assert torch.allclose(features.gram_times(V), Psi.T @ (Psi @ V), **close)
        assert torch.allclose(features.squared_columns(V), ((Psi @ V) ** 2).sum(0), **close)
    J = jacobian(module, X).view(6, 3, P) / delta.sqrt()
    for few in (0, 1000):
        monkeypatch.setattr(products, "_FEW", few)
        (_, prior, along), *_ = features.contractions(X, V)
        assert torch.allclose(prior, J @ J.mT, **close) and torch.allclose(along, J @ V, **close)


def test_it_can_be_pickled():
    _, model, X_new, _ = random_model(2)
    posterior = posterior_of(model, max_rank=4)
    copy = pickle.loads(pickle.dumps(posterior))
    assert torch.equal(copy.variance(X_new), posterior.variance(X_new))
    assert copy.error_bound == posterior.error_bound


def test_a_small_memory_limit_gives_the_same_numbers():
    module, model, X_new, _ = random_model(2)
    small = replace(model, linearization=Linearization(module, memory_limit=0.01))
    a = posterior_of(model, max_rank=4).variance(X_new)
    features = ScaledFeatures(small, memory_limit=0.001)
    V = torch.eye(model.n_params, dtype=torch.float64)
    assert torch.allclose(features.gram_times(V), dense(module, model).G, rtol=1e-11, atol=1e-11)
    assert torch.allclose(posterior_of(small, max_rank=4).variance(X_new), a, rtol=1e-10)


def test_a_classifier_of_two_layers_whose_noise_is_singular():
    torch.manual_seed(0)
    X = torch.randn(40, 3, dtype=torch.float64)
    module = MLP(3, (6,), 3)
    model = LinearModel.from_laplace(
        Linearization(module), X, torch.arange(40) % 3, Categorical(), 0.5
    )
    posterior = LowRank(tol=0.05, random_state=0).build(model)
    assert posterior.error_bound <= 0.05 and posterior.std_factor <= 1.025
    assert posterior.error_kind in ("trace", "probabilistic") and not posterior.is_exact
    assert (posterior.failure_probability == 0) == (posterior.error_kind == "trace")
    check_brackets(posterior, module, model, X[:3])


def test_what_was_asked_and_cannot_be_reached_is_named():
    _, model, _, _ = random_model(6)
    with pytest.warns(ApproximationWarning, match="certified to η/δ = .*not to tol=1e-08"):
        LowRankPosterior(model, max_rank=1, tol=1e-8, random_state=0)
    with pytest.warns(ApproximationWarning, match="rank 0"):
        LowRankPosterior(model, max_seconds=1e-9, tol=1e-8, random_state=0)
    with pytest.raises(MemoryError, match="low-rank posterior.*memory_limit"):
        LowRankPosterior(model, memory_limit=1e-6, random_state=0)


@pytest.mark.parametrize("posterior", [LowRankPosterior, KroneckerPosterior])
def test_features_that_are_not_finite_are_named(posterior):
    _, model, _, _ = random_model(0)
    broken = replace(model.with_prior_precision(1.0), noise_factor=model.noise_factor * math.nan)
    with pytest.raises(LinAlgError, match="NaN"):
        posterior(broken)


def test_a_solve_that_does_not_converge_is_named(monkeypatch):
    _, model, _, _ = random_model(6)
    posterior = posterior_of(model, max_rank=1)
    monkeypatch.setattr(low_rank, "_MAX_STEPS", 1)
    with pytest.warns(ConvergenceWarning, match="stopped after 1 steps"):
        posterior.solve(model.weights)


@pytest.mark.parametrize(
    "bad", [{"tol": 0}, {"max_rank": 0}, {"max_rank": 1.5}, {"max_seconds": -1}]
)
def test_bad_settings_are_named(bad):
    _, model, _, _ = random_model(0)
    with pytest.raises(ValueError, match=next(iter(bad))):
        LowRank(**bad).build(model)


def test_another_pattern_of_prior_precision_is_refused():
    _, model, _, _ = random_model(0)
    posterior = posterior_of(model)
    delta = model.prior_precision.expand(model.n_params).clone()
    delta[0] *= 2
    with pytest.raises(ValueError, match="multiples"):
        posterior.with_prior_precision(delta)


def test_the_specification_is_an_estimator():
    spec = LowRank(0.3, max_rank=7, random_state=1)
    assert clone(spec).get_params() == spec.get_params()
    assert spec.parameters is None and spec.rows(10, 0) is None


def test_gaussian_noise_at_a_minimum():
    X = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
    module = MLP(1, (), 1)
    model = LinearModel.from_laplace(Linearization(module), X, X, Gaussian(0.1), 1.0)
    check_brackets(posterior_of(model), module, model, X[:3])

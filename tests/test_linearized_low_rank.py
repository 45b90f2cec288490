"""inference="linearized-vi" in low ranks, against dense Gaussians and the exact one's steps."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.exceptions import ApproximationWarning
from sk_dnn2gp.inference import linearized, linearized_low_rank
from sk_dnn2gp.inference.linearized import Points, maximise_linearized_elbo
from sk_dnn2gp.inference.linearized_low_rank import maximise_low_rank_elbo
from sk_dnn2gp.likelihoods import Bernoulli, Categorical
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import LowRank, LowRankPosterior


def problem(K=3, n=20, hidden=6):
    """A model with one δ for each weight, its targets, likelihood and sample weights."""
    torch.manual_seed(0)
    X = torch.randn(n, 2, dtype=torch.float64)
    net = MLP(2, (hidden,), K)
    y = torch.randint(K, (n,)) if K > 1 else torch.randint(2, (n, 1)).double()
    likelihood = Categorical() if K > 1 else Bernoulli()
    linearization = Linearization(net)
    delta = 0.1 + torch.rand(linearization.n_params, dtype=torch.float64)
    weight = 0.5 + torch.rand(n, dtype=torch.float64)
    model = LinearModel.from_laplace(linearization, X, y, likelihood, delta, weight)
    return model, y, likelihood, weight


def sketch(model, rank=None, tol=1e-9, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        return LowRankPosterior(model, tol=tol, max_rank=rank, random_state=0, **settings)


def restricted(model, y, likelihood, weight, rank=None, memory_limit=None):
    points = Points(y, weight, likelihood, memory_limit)
    outputs = model.linearization.outputs(model.X)
    posterior = sketch(model, rank)
    return linearized_low_rank._Restricted.of(posterior, points, outputs, model.weights)


def dense_bound(model, y, likelihood, weight, mean, Sigma):
    """E_q Σ s log p(y | f) - KL(q ‖ prior) of any Gaussian q, by dense matrices."""
    J = model.linearization.rows(model.X)
    f = model.linearization.outputs(model.X) + J @ (mean - model.weights)
    loss = Points(y, weight, likelihood, None).means(f, J @ Sigma @ J.mT)[0]
    normal = torch.distributions.MultivariateNormal
    prior = normal(torch.zeros_like(mean), precision_matrix=torch.diag(model.prior_precision))
    return -loss - float(torch.distributions.kl_divergence(normal(mean, Sigma), prior))


def everywhere(posterior):
    """M⁻¹ of a sketch, dense."""
    model = posterior.model
    F = posterior._sketch.factor * model.prior_precision.sqrt()[:, None]
    return torch.linalg.inv(torch.diag(model.prior_precision) + F @ F.mT)


@pytest.mark.parametrize("K", [1, 3])
def test_with_all_columns_its_steps_are_those_of_the_exact_posterior(K):
    model, y, likelihood, weight = problem(K)
    small = restricted(model, y, likelihood, weight)
    exact = linearized._Problem(model, model.linearization.outputs(model.X), small.points)
    Lambda = model.noise_factor @ model.noise_factor.mT
    ours = small.first(Lambda)
    theirs = exact.iterate(model.weights, exact.posterior(Lambda), Lambda)
    for rate in (0.3, 0.1):
        assert ours.elbo == pytest.approx(theirs.elbo, rel=1e-11)
        torch.testing.assert_close(ours.target, theirs.target, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(ours.residual, theirs.residual, rtol=1e-9, atol=1e-11)
        gradient = exact.gradient(theirs)
        # What of w* lies outside of the data's span (a shift of all logits) stays as it is here.
        scaled = small.posterior.basis.mT @ (gradient / model.prior_precision.sqrt())
        torch.testing.assert_close(small.gradient(ours), scaled, rtol=1e-9, atol=1e-10)
        ours = small.moved(ours, ours.gradient, rate)
        inside = small.weights(ours.mean)
        theirs = exact.moved(theirs, gradient, rate)
        moved = model.linearization.jvp(model.X, inside - theirs.mean)
        shift = moved.mean(1, keepdim=True) if K > 1 else 0.0
        assert float((moved - shift).abs().max()) < 1e-10
        penalty = float((model.prior_precision * (inside**2 - theirs.mean**2)).sum())
        ours_elbo = ours.elbo + 0.5 * penalty  # but for weights that no row sees
        assert ours_elbo == pytest.approx(theirs.elbo, rel=1e-11)
        theirs = exact.iterate(inside, theirs.posterior, theirs.noise_precision)


@pytest.mark.parametrize("rank", [3, 9])
@pytest.mark.parametrize("K", [1, 3])
def test_its_bound_is_that_of_a_dense_gaussian(K, rank):
    case = problem(K)
    model = case[0]
    small = restricted(*case, rank=rank)
    q = small.first(model.noise_factor @ model.noise_factor.mT)
    U, root = small.posterior.basis, model.prior_precision.rsqrt()
    identity = torch.eye(model.n_params, dtype=torch.float64)
    torch.testing.assert_close(U.mT @ U, identity[:rank, :rank], rtol=0, atol=1e-12)
    for rate in (0.0, 0.4, 0.2):
        q = small.moved(q, q.gradient, rate)
        inner = U @ torch.linalg.inv(q.S) @ U.mT + identity - U @ U.mT
        Sigma = root[:, None] * inner * root
        expected = dense_bound(*case, small.weights(q.mean), 0.5 * (Sigma + Sigma.mT))
        assert q.elbo == pytest.approx(expected, rel=1e-11)


def run(case, build, rank=None, **settings):
    return maximise_low_rank_elbo(sketch(case[0], rank), *case[1:], build, **settings)


@pytest.mark.parametrize("rank", [3, 9])
def test_what_it_ends_with(rank):
    """The bound and the brackets of the posterior that is returned, by dense matrices."""
    case = problem()
    model = case[0]
    best = run(case, lambda model: sketch(model, rank), rank)
    assert best.posterior.rank == rank
    mean = model.weights + best.shift
    torch.testing.assert_close(best.posterior.model.weights, mean)
    M_inverse = everywhere(best.posterior)
    own = dense_bound(*case, mean, 0.5 * (M_inverse + M_inverse.mT))
    assert best.elbo_curve[-1] == pytest.approx(own, rel=1e-10)
    J = model.linearization.rows(model.X)
    Phi = (best.posterior.model.noise_factor.mT @ J).flatten(0, 1)
    A = Phi.mT @ Phi + torch.diag(model.prior_precision)
    V, bracket = J @ torch.linalg.inv(A) @ J.mT, best.posterior.covariance_bounds(model.X)
    assert float(torch.linalg.eigvalsh(V - bracket.lower).min()) > -1e-11
    assert float(torch.linalg.eigvalsh(bracket.upper - V).min()) > -1e-11
    log_B = float(torch.logdet(A) - model.prior_precision.log().sum())
    low, high = best.posterior.log_determinant_bounds()
    assert low - 1e-9 <= log_B <= high + 1e-9
    exact = maximise_linearized_elbo(*case)
    assert best.elbo_curve[-1] < exact.elbo_curve[-1] + linearized.slack(exact.elbo_curve[-1])
    laplace = dense_bound(*case, model.weights, everywhere(sketch(model, rank)))
    assert best.elbo_curve[-1] > laplace + 0.1


def test_the_bound_rises_and_with_all_columns_reaches_the_exact_one(monkeypatch):
    monkeypatch.setattr(linearized, "_NATS", 1e-6)
    monkeypatch.setattr(linearized, "_PART", 0.0)
    case = problem()
    best = run(case, sketch, max_iter=300)
    exact = maximise_linearized_elbo(*case, max_iter=300)
    assert (np.diff(best.elbo_curve) > -1e-6).all()
    assert best.elbo_curve[-1] > best.elbo_curve[0] + 1.0
    assert best.elbo_curve[-1] == pytest.approx(exact.elbo_curve[-1], abs=1e-4)
    V, both = best.posterior.covariance(case[0].X), exact.posterior.covariance(case[0].X)
    # The bound is flat at its top: 1e-4 nats are a hundredth of a standard deviation.
    torch.testing.assert_close(V, both, rtol=0.02, atol=0.02 * float(both.abs().max()))


def test_rows_that_are_not_kept_give_the_same(monkeypatch):
    case = problem()
    kept, passes = restricted(*case, rank=5), []
    along = LowRankPosterior.along_basis
    monkeypatch.setattr(linearized_low_rank, "limit_in_bytes", lambda limit: 1)
    monkeypatch.setattr(
        LowRankPosterior, "along_basis", lambda self, X: passes.append(0) or along(self, X)
    )
    streamed = restricted(*case, rank=5)
    Lambda = case[0].noise_factor @ case[0].noise_factor.mT
    one, other = kept.first(Lambda), streamed.first(Lambda)
    assert len(passes) == 2  # S, then all the rest
    one, other = (p.moved(q, q.gradient, 0.5) for p, q in ((kept, one), (streamed, other)))
    assert one.elbo == pytest.approx(other.elbo, rel=1e-13)
    torch.testing.assert_close(one.target, other.target, rtol=1e-12, atol=1e-14)


def iris():
    X, y = load_iris(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y


@pytest.mark.parametrize("posterior", [LowRank(1e-6), LowRank(1e-6, max_rank=6)])
def test_the_classifier_has_it(posterior):
    X, y = iris()
    settings = {"hidden_layer_sizes": (5,), "prior_precision": 0.3, "random_state": 0}
    full = DNN2GPClassifier(**settings, inference="linearized-vi").fit(X, y)
    low = DNN2GPClassifier(**settings, inference="linearized-vi", posterior=posterior)
    if posterior.max_rank is None:
        low.fit(X, y)
        assert low.elbo_curve_[-1] == pytest.approx(full.elbo_curve_[-1], abs=0.5)
        assert np.abs(low.predict_proba(X) - full.predict_proba(X)).max() < 0.05
        return
    with pytest.warns(ApproximationWarning, match="rank 6 is certified") as raised:
        low.fit(X, y)
    # Of the Laplace posterior and of the one that is returned, not of those on the way.
    assert len([w for w in raised if w.category is ApproximationWarning]) == 2
    said = f"η/δ = {low.posterior_.error_bound:.3g}"
    assert said in str(raised[-1].message)
    assert low.posterior_.model.weights is not low.linear_model_.weights


def test_steps_that_run_out_are_told():
    with pytest.warns(UserWarning, match="still rises after 1 steps"):
        run(problem(), sketch, max_iter=1)

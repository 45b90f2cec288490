"""Noise that depends on x: the likelihood, its predictive, and DNN2GPRegressor with it."""

import pickle

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import lognorm, norm
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import sk_dnn2gp
from sk_dnn2gp import DNN2GPRegressor, MixtureRegressor, log_predictive_density_scorer
from sk_dnn2gp.likelihoods import DiagonalGaussian, Gaussian, HeteroscedasticGaussian
from sk_dnn2gp.posterior import SubsetOfData
from sk_dnn2gp.predictive import NormalLognormal
from sk_dnn2gp.training import NewtonCG

from .likelihood_contract import check
from .reference import jacobian

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (120, 1))
TRUTH = np.sin(2 * X[:, 0])
NOISE = np.exp(-2.0 + X[:, 0])  # from 0.02 to 1
Y = 5 + 3 * (TRUTH + NOISE * RNG.standard_normal(120))
Y2 = np.c_[Y, X[:, 0] ** 2 + 0.1 * RNG.standard_normal(120)]
VARYING = {
    "noise_std": "heteroscedastic",
    "hidden_layer_sizes": (5,),
    "n_restarts": 1,
    "random_state": 0,
}
CONSTANT = {**VARYING, "noise_std": "auto"}
FIXED = {**VARYING, "prior_precision": 0.5}


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_contract(scale):
    check(HeteroscedasticGaussian(scale), [[-1.0, 0.4], [0.5, -0.3], [0.0, 0.0]], -25, 25)


def test_contract_of_a_noise_for_each_target():
    check(DiagonalGaussian((0.7,)), [0.5], -12, 12)
    f, y = torch.randn(4, 2).double(), torch.randn(4, 2).double()
    both = DiagonalGaussian((0.3, 2.0))
    ones = [Gaussian(0.3), Gaussian(2.0)]
    for name in ("residual", "whitened_residual", "cdf"):
        columns = [getattr(ones[k], name)(f[:, [k]], y[:, [k]]) for k in range(2)]
        torch.testing.assert_close(getattr(both, name)(f, y), torch.cat(columns, 1))
    log_det = torch.logdet(both.noise_precision(f) / (2 * torch.pi))
    torch.testing.assert_close(both.log_noise_determinant(f), log_det)


def test_a_constant_head_is_the_gaussian():
    """Where g = 0: densities, curvature, and evidence and predictions of the whole linear model."""
    one, constant = Gaussian(0.3), HeteroscedasticGaussian(0.3)
    f, y = torch.randn(7, 1).double(), torch.randn(7, 1).double()
    both = torch.cat([f, torch.zeros(7, 1)], 1)
    for name in ("negative_log_likelihood", "cdf"):
        torch.testing.assert_close(
            getattr(constant, name)(both, y), getattr(one, name)(f, y), rtol=1e-13, atol=1e-13
        )
    V = torch.rand(7, 1).double()
    of_both = torch.diag_embed(torch.cat([V, torch.zeros(7, 1)], 1))
    laws = constant.predictive(both, of_both), one.predictive(f, V)
    for q in (0.01, 0.5, 0.9):
        np.testing.assert_allclose(laws[0].quantile(q), laws[1].quantile(q), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(laws[0].log_density(y), laws[1].log_density(y), rtol=1e-12)
    np.testing.assert_allclose(laws[0].variance, laws[1].variance, rtol=1e-12)


class Constant(nn.Module):
    """A mean, and a log s that no weight moves."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def forward(self, x):
        m = self.inner(x)
        return torch.cat([m, torch.zeros_like(m)], 1)


def test_a_constant_head_is_the_gaussian_process_of_constant_noise():
    """In the estimator, s = e^0 = 1 in the units of y as the network sees it."""
    exact = {"prior_precision": 0.3, "random_state": 0, "solver": NewtonCG(tol=1e-13)}
    varying = DNN2GPRegressor(Constant(), noise_std="heteroscedastic", **exact).fit(X, Y)
    constant = DNN2GPRegressor(Constant().inner, noise_std=1.0, **exact).fit(X, Y)
    Z = np.linspace(-3, 3, 9)[:, None]
    for name in ("predict", "predict_std", "predict_interval"):
        mine, theirs = (getattr(model, name)(Z) for model in (varying, constant))
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)
    for kind in ("laplace", "dual"):
        # The constant log s, of no consequence for w, has a term of its own in the dual evidence:
        # that of data ỹ = -(1-z²)/2 with noise 1/2 under a kernel of zero.
        extra = 0.0
        if kind == "dual":
            u = varying.linear_model_.whitened_residual[:, 1]
            extra = float((0.5 * np.log(1 / np.pi) - 0.5 * u**2).sum())
        assert varying.log_marginal_likelihood(kind=kind) - extra == pytest.approx(
            constant.log_marginal_likelihood(kind=kind), rel=1e-10
        )
    np.testing.assert_allclose(varying.kernel_(X), constant.kernel_(X), rtol=1e-12, atol=1e-12)
    mine, theirs = (
        m.to_gaussian_process().predict(Z, return_std=True) for m in (varying, constant)
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------- the predictive

# V of m, of log s, and their correlation; level of log s.
SPREADS = [
    (0.0, 0.3, 0.0, 0.0), (0.5, 1e-6, 0.0, -1.0), (0.3, 0.2, 0.9, -1.0), (2.0, 0.1, -0.7, -4.0),
    (1.0, 2.0, 0.5, 0.0), (0.1, 0.5, 1.0, -2.0), (0.1, 6.0, -0.3, -1.0),
]  # fmt: skip


def law_of(V, S, correlation, level, shape=(1, 1)):
    full = np.full(shape, 1.0)
    return NormalLognormal(
        0.5 * full, level * full, V * full, S * full, correlation * np.sqrt(V * S) * full
    )


def reference(V, S, correlation, level, y, of):
    """E of ``of(y, mean, std)`` over log s, by adaptive quadrature."""
    tau, rho = np.sqrt(S), correlation

    def integrand(t):
        std = np.sqrt(V * (1 - rho**2) + np.exp(2 * (level + tau * t)))
        return norm.pdf(t) * of(y, 0.5 + rho * np.sqrt(V) * t, std)

    points = np.linspace(-9, 9, 37)
    return quad(integrand, -12, 12, points=points, epsabs=1e-14, epsrel=1e-12, limit=400)[0]


@pytest.mark.parametrize("spread", SPREADS)
def test_density_and_distribution_function(spread):
    law = law_of(*spread)
    for y in (-8.0, -0.7, 0.45, 0.5, 1.3, 30.0):
        density = reference(*spread, y, norm.pdf)
        found = np.exp(law.log_density([[y]])).item()
        assert found == pytest.approx(density, rel=1e-9, abs=1e-13)
        below = reference(*spread, y, norm.cdf)
        assert law.cdf([[y]]).item() == pytest.approx(below, rel=1e-9, abs=1e-12)
    second = np.exp(2 * spread[3]) * lognorm(2 * np.sqrt(spread[1])).mean()
    np.testing.assert_allclose(law.aleatoric, second, rtol=1e-12)
    np.testing.assert_allclose(law.epistemic, spread[0])
    V = np.full((1, 1, 1), 0.2)
    np.testing.assert_allclose(law.joint_covariance(V).item(), 0.2 + law.aleatoric.item())


@pytest.mark.parametrize("spread", SPREADS)
def test_quantiles_invert_and_densities_integrate_to_one(spread):
    law = law_of(*spread)
    q = np.array([1e-6, 0.025, 0.5, 0.8, 1 - 1e-6])
    ends = np.array([law.quantile(one).item() for one in q])
    assert (np.diff(ends) > 0).all()
    np.testing.assert_allclose([law.cdf([[end]]).item() for end in ends], q, rtol=1e-9)
    inside = quad(
        lambda y: np.exp(law.log_density([[y]])).item(), ends[0], ends[-1], points=ends[1:-1],
        epsabs=1e-12, limit=500,
    )[0]  # fmt: skip
    assert inside == pytest.approx(1 - 2e-6, abs=1e-9)


def test_many_rows_in_chunks():
    law = law_of(0.3, 0.2, 0.9, -1.0, (30_000, 2))
    assert np.ptp(law.cdf(np.ones((30_000, 2)))) < 1e-15


# ------------------------------------------------------------------------------- the estimator


@pytest.fixture(scope="module")
def model():
    return DNN2GPRegressor(**VARYING).fit(X, Y)


def test_varying_noise_is_recovered(model):
    Z = np.linspace(-1.9, 1.9, 50)[:, None]
    noise = np.sqrt(model.predict_uncertainty(Z).aleatoric)
    truth = 3 * np.exp(-2.0 + Z[:, 0])
    # 120 rows tell log s to about √(γ/2N), a tenth; three of those at the ends.
    assert np.abs(np.log(noise / truth)).max() < 0.5
    assert np.abs(np.log(noise / truth)).mean() < 0.2
    constant = DNN2GPRegressor(**CONSTANT).fit(X, Y)
    gain = model.log_marginal_likelihood_value_ - constant.log_marginal_likelihood_value_
    assert gain > 20  # nats
    assert set(model.prior_precisions_) == {"noise", "all"}
    assert model.prior_precision_ == model.prior_precisions_["all"]
    assert model.converged_ and model.gradient_norm_ < 1e-5


def test_constant_noise_stays_constant():
    y = TRUTH + 0.2 * RNG.standard_normal(120)
    varying = DNN2GPRegressor(**VARYING).fit(X, y)
    noise = np.sqrt(varying.predict_uncertainty(X).aleatoric)
    assert noise.max() / noise.min() < 1.5
    constant = DNN2GPRegressor(**CONSTANT).fit(X, y)
    assert varying.log_marginal_likelihood_value_ > constant.log_marginal_likelihood_value_ - 1
    np.testing.assert_allclose(varying.predict(X), constant.predict(X), atol=0.1)


def dense(module, inputs):
    """J (n, 2, P) by autograd, one row after the other."""
    rows = []
    for x in inputs:
        for f in module(x[None])[0]:
            grads = torch.autograd.grad(f, list(module.parameters()), retain_graph=True,
                                        allow_unused=True)  # fmt: skip
            rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows).view(len(inputs), 2, -1)


@pytest.mark.parametrize("own", ["auto", 0.5])
def test_laplace_by_brute_force(own):
    """Posterior, evidence and both parts of the variance from dense matrices."""
    model = DNN2GPRegressor(**{**VARYING, "prior_precision": own}).fit(X, Y)
    module, inputs = model.module_, torch.tensor(X)
    w = torch.cat([p.detach().flatten() for p in module.parameters()])
    delta = torch.full_like(w, model.prior_precision_)
    if own == "auto":
        delta[[10 + 5, 10 + 6, 10 + 7, 10 + 8, 10 + 9, 10 + 10 + 1]] = model.prior_precisions_[
            "noise"
        ]
    scale = model._result.likelihood.scale
    f, J = module(inputs).detach(), dense(module, inputs)
    y = (torch.tensor(Y) - float(model.y_mean_[0])) / float(model.y_scale_[0])
    s = scale * f[:, 1].exp()
    z = (y - f[:, 0]) / s
    fisher = torch.diag_embed(torch.stack([s**-2, torch.full_like(s, 2.0)], 1))
    A = torch.einsum("nkp,nkl,nlq->pq", J, fisher, J) + torch.diag(delta)
    loss = float((0.5 * z**2 + s.log()).sum()) + 60 * np.log(2 * np.pi) + float(delta @ w**2) / 2
    evidence = -loss - 0.5 * float(torch.logdet(A) - delta.log().sum())
    expected = evidence - 120 * np.log(model.y_scale_[0])
    assert model.log_marginal_likelihood_value_ == pytest.approx(expected, abs=1e-8)
    Z = torch.linspace(-3, 3, 5, dtype=torch.float64)[:, None]
    J, f = dense(module, Z), module(Z).detach()
    V = (J @ torch.linalg.solve(A, J.mT)).numpy()
    parts = model.predict_uncertainty(Z.numpy())
    units = model.y_scale_[0] ** 2
    np.testing.assert_allclose(parts.epistemic, units * V[:, 0, 0], rtol=1e-8)
    noise = units * scale**2 * np.exp(2 * f[:, 1].numpy() + 2 * V[:, 1, 1])
    np.testing.assert_allclose(parts.aleatoric, noise, rtol=1e-8)
    latent = np.sqrt(units * V[:, 0, 0])
    np.testing.assert_allclose(model.predict_std(Z.numpy(), "latent"), latent, rtol=1e-8)


def test_the_gradient_is_that_of_the_loss(model):
    """∇loss by autograd at the trained weights is zero, to the solver's own measure."""
    y = (torch.tensor(Y) - float(model.y_mean_[0])) / float(model.y_scale_[0])
    likelihood = model._result.likelihood
    loss = likelihood.negative_log_likelihood(model.module_(torch.tensor(X)), y[:, None]).sum()
    for name, p in model.module_.named_parameters():
        delta = torch.full_like(p, model.prior_precisions_["all"])
        if name.startswith("3"):  # the last layer's second output
            delta[1] = model.prior_precisions_["noise"]
        loss = loss + 0.5 * (delta * p**2).sum()
    gradient = torch.autograd.grad(loss, list(model.module_.parameters()))
    norm_ = torch.cat([g.flatten() for g in gradient]).norm()
    assert float(norm_) == pytest.approx(model.gradient_norm_, rel=1e-3, abs=1e-8)


def test_the_parts_agree(model):
    Z = np.linspace(-2.5, 2.5, 4)[:, None]
    mean, std = model.predict(Z, return_std=True)
    np.testing.assert_allclose(model.predict(Z), mean, rtol=1e-13)
    parts = model.predict_uncertainty(Z)
    np.testing.assert_allclose(parts.total, std**2)
    covariance = model.predict(Z, return_cov=True)[1]
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), std)
    n = 200_000
    draws, latent = (model.sample_y(Z, n, target=target) for target in ("y", "latent"))
    # Five standard errors: of a mean, std/√n; of a variance, √(κ/n) with kurtosis below ten.
    np.testing.assert_allclose(draws.mean(1), mean, atol=5 * std.max() / n**0.5)
    np.testing.assert_allclose(draws.var(1), std**2, rtol=5 * (10 / n) ** 0.5)
    np.testing.assert_allclose(latent.var(1), parts.epistemic, rtol=5 * (2 / n) ** 0.5)
    for q in (0.05, 0.5, 0.95):
        found = (draws <= model.predict_quantile(Z, q)[:, None]).mean(1)
        assert np.abs(found - q).max() < 5 * (q * (1 - q) / n) ** 0.5
    low, high = model.predict_interval(X, 0.9).T
    assert 0.82 < np.mean((low <= Y) & (high >= Y)) < 0.97
    # The network's own draws: log s in the units of y, about the network's own.
    log_s = model.sample_network(Z[1:3], 400)[:, 1]
    own = model.module_(torch.tensor(Z[1:3]))[:, 1].detach().numpy()
    own += np.log(model._result.likelihood.scale * model.y_scale_[0])
    assert np.abs(np.median(log_s, axis=1) - own).max() < log_s.std(1).max()


def test_leave_one_out(model):
    """By conditioning the dense joint process of (m, log s) on all other rows."""
    found = model.leave_one_out(X, Y)
    linear = model.linear_model_
    lin, n = linear.linearization, len(X)
    J = torch.cat([rows for _, rows in lin.iter_rows(linear.X)]).view(n, 2, -1)
    Phi = linear.noise_factor.mT @ J
    t = linear.whitened_targets
    f0 = lin.outputs(linear.X) - (J @ linear.weights)
    D = torch.diag(linear.prior_precision)
    for i in (0, 17, 80):
        rest = torch.arange(n) != i
        P = Phi[rest].flatten(0, 1)
        A = D + P.mT @ P
        w = torch.linalg.solve(A, P.mT @ t[rest].flatten())
        f = f0[i] + J[i] @ w
        V = J[i] @ torch.linalg.solve(A, J[i].mT)
        law = model._distribution(f[None], V[None])
        assert found.mean[i] == pytest.approx(law.mean.item(), rel=1e-8)
        assert found.std[i] == pytest.approx(np.sqrt(law.variance).item(), rel=1e-7)
        density = law.log_density([[Y[i]]]).item()
        assert found.log_density[i] == pytest.approx(density, abs=1e-7)


class TwoNetworks(nn.Module):
    """Mean and noise that share no weights."""

    def __init__(self):
        super().__init__()
        sizes = [nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2)]
        self.mean, self.noise = (part.double() for part in sizes)

    def forward(self, x):
        return torch.cat([self.mean(x), self.noise(x)], 1)


def test_two_networks_and_theorem_1():
    """Where the heads share nothing, scikit-learn's process with the noise of each row is the same.

    And the noise's own network does not stay in the saddle that a strong prior takes it to.
    """
    model = DNN2GPRegressor(
        TwoNetworks, noise_std="heteroscedastic", random_state=0, solver=NewtonCG(tol=1e-12)
    ).fit(X, Y)
    noise = np.sqrt(model.predict_uncertainty(X).aleatoric)
    assert noise.max() / noise.min() > 5
    names = dict(model.module_.named_parameters())
    head = sum(p.numel() for name, p in names.items() if name.startswith("noise"))
    assert head == 13 and set(model.prior_precisions_) == {"noise", "all"}
    gp = model.to_gaussian_process()
    assert isinstance(gp, GaussianProcessRegressor) and np.ptp(gp.alpha) > 0
    Z = np.linspace(-3, 3, 7)[:, None]
    mean, std = gp.predict(Z, return_std=True)
    np.testing.assert_allclose(std, model.predict_std(Z, "latent"), rtol=1e-6)
    at_data = gp.predict(X)  # J w*, and the network where it is linear in its weights: not here
    J = model.linear_model_.linearization.jvp(torch.tensor(X), model.linear_model_.weights)[:, 0]
    units = model.y_scale_[0] * J.numpy() + model.y_mean_[0]
    np.testing.assert_allclose(at_data, units, atol=1e-5)


def test_shared_weights_and_theorem_1(model):
    """The process of the means alone, from dense matrices; it knows no more than the whole."""
    gp = model.to_gaussian_process()
    Z = np.linspace(-3, 3, 7)[:, None]
    K, cross, own = model.kernel_(X), model.kernel_(X, Z), model.kernel_.diag(Z)
    s2 = 1 / model.linear_model_.noise_factor[:, 0, 0].numpy() ** 2
    V = own - (cross * np.linalg.solve(K + np.diag(s2), cross)).sum(0)
    std = gp.predict(Z, return_std=True)[1]
    np.testing.assert_allclose(std, model.y_scale_[0] * np.sqrt(V), rtol=1e-6)
    assert (std >= model.predict_std(Z, "latent") * (1 - 1e-9)).all()


def test_several_targets():
    model = DNN2GPRegressor(**VARYING).fit(X, Y2)
    parts = model.predict_uncertainty(X)
    assert parts.total.shape == (120, 2) and model.module_(torch.tensor(X)).shape == (120, 4)
    noise = np.sqrt(parts.aleatoric)
    assert noise[:, 0].max() / noise[:, 0].min() > 5
    assert model.predict_interval(X).shape == (120, 2, 2)
    assert model.log_predictive_density(X, Y2).shape == (120, 2)
    assert model.sample_y(X[:3], 2).shape == (3, 2, 2)
    assert model.predict(X[:3], return_cov=True)[1].shape == (3, 3, 2)
    assert model.leave_one_out(X, Y2).std.shape == (120, 2)
    np.testing.assert_allclose(model.kernel_(X[:4]).shape, (4, 4))


@pytest.mark.parametrize("groups", ["layer", "feature"])
def test_with_groups(groups):
    model = DNN2GPRegressor(**VARYING, prior_groups=groups).fit(X, Y)
    own = {"layer": {"layer 0", "layer 1"}, "feature": {"x0", "layer 1"}}[groups]
    assert set(model.prior_precisions_) == {"noise", "biases"} | own
    with pytest.raises(AttributeError, match="prior_groups"):
        _ = model.kernel_


@pytest.mark.parametrize("posterior", ["diag", "last_layer", "independent", "low_rank"])
def test_other_posteriors(posterior):
    model = DNN2GPRegressor(**FIXED, posterior=posterior).fit(X, Y)
    noise = np.sqrt(model.predict_uncertainty(X).aleatoric)
    assert noise.max() / noise.min() > 3
    assert np.isfinite(model.log_predictive_density(X, Y)).all()


def test_other_ways_of_training():
    for solver in ("lbfgs", "gauss-newton"):
        model = DNN2GPRegressor(**FIXED, solver=solver).fit(X, Y)
        assert model.predict_uncertainty(X).aleatoric.max() > 1
    from sk_dnn2gp.training import FirstOrder

    adam = FirstOrder(max_iter=300, learning_rate=0.02)
    model = DNN2GPRegressor(**VARYING, solver=adam).fit(X, Y)
    assert set(model.prior_precisions_) == {"all"}
    noise = np.sqrt(model.predict_uncertainty(X).aleatoric)
    assert noise.max() / noise.min() > 3


def test_pickled_saved_mixed_and_scored(model, tmp_path):
    sk_dnn2gp.save(model, tmp_path / "model")
    for again in (pickle.loads(pickle.dumps(model)), sk_dnn2gp.load(tmp_path / "model")):
        np.testing.assert_array_equal(again.predict_interval(X), model.predict_interval(X))
        assert again.log_marginal_likelihood() == model.log_marginal_likelihood()
        np.testing.assert_array_equal(again.kernel_(X[:5]), model.kernel_(X[:5]))
    mixture = MixtureRegressor(clone(model), n_estimators=2, random_state=0).fit(X, Y)
    density = [one.log_predictive_density(X, Y) for one in mixture.estimators_]
    np.testing.assert_allclose(
        mixture.log_predictive_density(X, Y), np.logaddexp(*density) - np.log(2), rtol=1e-12
    )
    assert (mixture.predict_interval(X)[:, 0] < mixture.predict(X)).all()
    score = log_predictive_density_scorer(model, X, Y)
    assert score == pytest.approx(model.log_predictive_density(X, Y).mean())


def test_warm_start_goes_on():
    model = DNN2GPRegressor(**FIXED, warm_start=True).fit(X, Y)
    before = model.log_marginal_likelihood_value_
    model.fit(X, Y)
    assert model.log_marginal_likelihood_value_ == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"inference": "vi"}, "inference"),
        ({"posterior": "last_layer"}, "posterior"),
        ({"net": nn.Linear(1, 1).double(), "hidden_layer_sizes": (50,)}, r"shape \(n_samples, 2\)"),
        ({"likelihood": HeteroscedasticGaussian()}, "noise_std"),
        ({"noise_std": "auto", "likelihood": HeteroscedasticGaussian()}, "leave likelihood=None"),
        ({"noise_std": "varying"}, "heteroscedastic"),
    ],
)
def test_what_does_not_go_together(options, match):
    with pytest.raises(ValueError, match=match):
        DNN2GPRegressor(**{**VARYING, **options}).fit(X, Y)
    with pytest.raises(ValueError, match="finite"):
        HeteroscedasticGaussian(0.0)


# A strong prior: with a weak one the checks' fifteen rows are interpolated, s → 0, and which of the
# minima is found depends on the last digits.
@pytest.mark.filterwarnings("ignore")  # the checks fit odd data on purpose
@parametrize_with_checks([DNN2GPRegressor(**{**FIXED, "prior_precision": 20.0})])
def test_estimator_checks(estimator, check):
    check(estimator)


# ------------------------------------------------------------------------- known noise of each row

SIGMA = 3 * NOISE


def test_known_noise_is_scikit_learns():
    """The same process as GaussianProcessRegressor(kernel, alpha=σ²): theorem 1, and the evidence.

    A network without hidden layers is its own linear model, so that the evidences agree too.
    """
    options = {"hidden_layer_sizes": (), "prior_precision": 0.5, "normalize_y": False}
    model = DNN2GPRegressor(**options, random_state=0).fit(X, Y, noise_std=SIGMA)
    gp = GaussianProcessRegressor(model.kernel_, alpha=SIGMA**2, optimizer=None).fit(X, Y)
    Z = np.linspace(-3, 3, 7)[:, None]
    mean, std = gp.predict(Z, return_std=True)
    np.testing.assert_allclose(model.predict(Z), mean, rtol=1e-7)
    np.testing.assert_allclose(model.predict_std(Z, "latent"), std, rtol=1e-7)
    expected = gp.log_marginal_likelihood_value_
    for kind in ("laplace", "dual"):
        assert model.log_marginal_likelihood(kind=kind) == pytest.approx(expected, abs=1e-6)
    level = 1 / np.sqrt(np.mean(1 / SIGMA**2))
    assert model.noise_std_ == pytest.approx(level, rel=1e-12)
    np.testing.assert_allclose(model.to_gaussian_process().alpha, SIGMA**2)


def test_the_evidence_of_some_rows_of_known_noise():
    """Of the rows that were chosen, whose weights sum to another number than in all."""
    model = DNN2GPRegressor(
        hidden_layer_sizes=(4,), prior_precision=0.5, random_state=0,
        posterior=SubsetOfData(30, random_state=0),
    ).fit(X, Y, noise_std=SIGMA)  # fmt: skip
    rows = model.posterior_indices_
    J = jacobian(model.module_, torch.tensor(X[rows])).numpy()
    half = J * (model.y_scale_ / SIGMA[rows, None])
    log_det = np.linalg.slogdet(np.eye(30) + half @ half.T / 0.5)[1]
    w = model.linear_model_.weights
    log_p = norm.logpdf(Y[rows], model.predict(X[rows]), SIGMA[rows]).sum()
    expected = log_p - 0.25 * float(w @ w) - 0.5 * log_det
    assert model.log_marginal_likelihood() == pytest.approx(expected, rel=1e-10)


def test_known_noise_is_kept_and_its_factor_found(tmp_path):
    known = DNN2GPRegressor(**CONSTANT, prior_precision=0.3).fit(X, Y, noise_std=SIGMA)
    weight = 1 / SIGMA**2
    relative = DNN2GPRegressor(**CONSTANT, prior_precision=0.3)
    relative.fit(X, Y, sample_weight=weight / weight.mean())
    # 120 rows tell a factor to 1/√240 = 0.065; three of those.
    assert relative.noise_std_ == pytest.approx(known.noise_std_, rel=0.2)
    error, blind = (
        np.abs(m.predict(X) - 5 - 3 * TRUTH).mean()
        for m in (known, DNN2GPRegressor(**CONSTANT, prior_precision=0.3).fit(X, Y))
    )
    assert error < blind
    sk_dnn2gp.save(known, tmp_path / "model")
    again = sk_dnn2gp.load(tmp_path / "model")
    assert again.log_marginal_likelihood() == known.log_marginal_likelihood()


def test_rows_of_weight_zero_are_left_out_of_known_noise():
    # A linear model: one minimum, where rounding cannot choose between two.
    line = DNN2GPRegressor(**{**CONSTANT, "hidden_layer_sizes": ()}, prior_precision=0.3)
    first = np.r_[np.ones(60), np.zeros(60)]
    weighted = clone(line).fit(X, Y, sample_weight=first, noise_std=SIGMA)
    alone = clone(line).fit(X[:60], Y[:60], noise_std=SIGMA[:60])
    np.testing.assert_allclose(weighted.predict(X), alone.predict(X), rtol=1e-10)
    np.testing.assert_allclose(
        weighted.predict_std(X, "latent"), alone.predict_std(X, "latent"), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("options", "noise", "y"),
    [
        ({"noise_std": 0.1}, SIGMA, Y),
        ({}, SIGMA[:5], Y),
        ({}, -SIGMA, Y),
        ({}, SIGMA, Y2),
    ],
)
def test_known_noise_that_cannot_be(options, noise, y):
    with pytest.raises(ValueError, match="noise_std"):
        DNN2GPRegressor(hidden_layer_sizes=(5,), **options).fit(X, y, noise_std=noise)


# ---------------------------------------------------------------------- a noise for each target


def test_a_noise_for_each_target():
    """Without shared weights (a linear network) each target is the one of its own σ."""
    options = {"hidden_layer_sizes": (), "prior_precision": 0.5, "random_state": 0}
    both = DNN2GPRegressor(**options, noise_std=[0.1, 0.9]).fit(X, Y2)
    ones = [
        DNN2GPRegressor(**options, noise_std=s).fit(X, y)
        for s, y in zip((0.1, 0.9), Y2.T, strict=True)
    ]
    for name in ("predict", "predict_std"):
        columns = np.c_[tuple(getattr(one, name)(X) for one in ones)]
        np.testing.assert_allclose(getattr(both, name)(X), columns, rtol=1e-7)
    total = sum(one.log_marginal_likelihood() for one in ones)
    assert both.log_marginal_likelihood() == pytest.approx(total, rel=1e-9)
    assert not hasattr(both, "noise_std_")
    same, one = (DNN2GPRegressor(**options, noise_std=s).fit(X, Y2) for s in ([0.3, 0.3], 0.3))
    np.testing.assert_allclose(same.predict_std(X), one.predict_std(X), rtol=1e-10)
    auto = DNN2GPRegressor(hidden_layer_sizes=(4,), noise_std=(0.3, 0.1), random_state=0)
    auto.fit(X, Y2)
    for factor in (0.8, 1.25):
        fixed = {"prior_precision": factor * auto.prior_precision_, "noise_std": (0.3, 0.1)}
        beside = DNN2GPRegressor(auto.module_, **fixed).fit(X, Y2)
        assert beside.log_marginal_likelihood_value_ < auto.log_marginal_likelihood_value_
    grouped = clone(auto).set_params(prior_groups="layer").fit(X, Y2)
    assert grouped.log_marginal_likelihood_value_ > auto.log_marginal_likelihood_value_ - 0.05
    for wrong in ([0.1], [0.1, -1.0]):
        with pytest.raises(ValueError, match="noise_std"):
            DNN2GPRegressor(**options, noise_std=wrong).fit(X, Y2)

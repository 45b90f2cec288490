"""inference="swag": moments of weights along SGD as a Gaussian (math-swag), against the paper's
formulas from the recorded weights, dense."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor, MixtureRegressor, load, save
from sk_dnn2gp.inference import SWAG, Snapshots, swag
from sk_dnn2gp.model_selection import marginal_likelihood_scorer
from sk_dnn2gp.posterior.precision import DensePrecision, LowRankCovariance
from tests.reference import jacobian

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (40, 2))
Y = np.sin(X.sum(1)) + 0.3 * RNG.standard_normal(40)
X_NEW = np.array([[0.0, 0.0], [1.5, -1.0], [5.0, 5.0]])


def regressor(**options):
    defaults = {
        "hidden_layer_sizes": (4,), "prior_precision": 1.0, "noise_std": 0.4, "random_state": 0,
        "normalize_y": False, "inference": SWAG(rank=5, max_iter=12),
    }  # fmt: skip
    return DNN2GPRegressor(**{**defaults, **options})


class Recorder(Callback):
    """The weights after every epoch, kept whole."""

    def initialize(self):
        self.weights = []
        return self

    def on_epoch_end(self, net, **_):
        parts = [p.detach().flatten() for p in net.module_.parameters()]
        self.weights.append(torch.cat(parts).double().numpy().copy())


@pytest.fixture
def recorded(monkeypatch):
    """The weights after every epoch of SGD, seen by another callback."""
    recorder, own = Recorder(), swag.train
    monkeypatch.setattr(
        swag, "train", lambda net, data, loss, extra: own(net, data, loss, [*extra, recorder])
    )
    return recorder


def moments(weights, rank, diagonal=False):
    """The paper's mean and Σ, its sums taken as they are written."""
    W = np.array(weights)
    running = W.cumsum(0) / np.arange(1, len(W) + 1)[:, None]
    squares = (W**2).mean(0) - W.mean(0) ** 2
    if diagonal:
        return W.mean(0), np.diag(squares)
    D = (W - running)[-rank:].T
    return W.mean(0), 0.5 * (np.diag(squares) + D @ D.T / (D.shape[1] - 1))


def dense(model):
    """Σ by solving with every unit vector: A⁻¹ e."""
    P = model.linear_model_.n_params
    eye = torch.eye(P, dtype=torch.float64)
    return np.stack([model.posterior_.solve(e).numpy() for e in eye])


# Mean of the squares less the square of the mean loses what the weights are larger than their
# spread, squared: here some 1e4 of 1e-16.
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("posterior", ["auto", "diag"])
def test_mean_and_covariance_are_the_papers(posterior, recorded):
    model = regressor(posterior=posterior).fit(X, Y)
    assert len(recorded.weights) == 12 == model.n_iter_ == len(model.loss_curve_)
    mean, Sigma = moments(recorded.weights, 5, posterior == "diag")
    w = torch.cat([p.detach().flatten() for p in model.module_.parameters()])
    np.testing.assert_allclose(w.numpy(), mean, rtol=1e-13)
    np.testing.assert_allclose(dense(model), Sigma, **ROUNDING)
    np.testing.assert_allclose(model.posterior_.inverse_diagonal, Sigma.diagonal(), rtol=1e-9)
    assert np.linalg.matrix_rank(Sigma - np.diag(Sigma.diagonal())) > 4 or posterior == "diag"
    V = jacobian(model.module_, torch.tensor(X_NEW)).numpy()
    V = V @ Sigma @ V.T
    std, covariance = model.predict_std(X_NEW, "latent"), model.predict(X_NEW, return_cov=True)[1]
    np.testing.assert_allclose(std, np.sqrt(V.diagonal()), rtol=1e-9)
    np.testing.assert_allclose(covariance, V + 0.16 * np.eye(3), rtol=1e-9)
    with torch.no_grad():
        f = model.module_(torch.tensor(X_NEW))[:, 0]
    np.testing.assert_array_equal(model.predict(X_NEW), f)
    sign, log_det = np.linalg.slogdet(Sigma)
    assert sign == 1 and model.posterior_.log_determinant == pytest.approx(-log_det, rel=1e-9)
    assert model.effective_dimension_ == pytest.approx(len(w) - np.trace(Sigma), rel=1e-9)


def test_fewer_snapshots_than_the_rank_give_as_many_columns(recorded):
    model = regressor(inference=SWAG(rank=20, max_iter=6)).fit(X, Y)
    np.testing.assert_allclose(dense(model), moments(recorded.weights, 20)[1], **ROUNDING)
    assert model.posterior_.precision.factor.shape[1] == 6


def test_draws_have_the_covariance():
    model = regressor().fit(X, Y)
    n, Sigma = 200_000, dense(model)
    draws = model.posterior_.sample_weights(n, torch.Generator().manual_seed(0)).numpy()
    # An entry's standard error is √((Σ_pp Σ_qq + Σ_pq²)/n), of some 300 entries: five of them.
    scale = np.sqrt(np.outer(Sigma.diagonal(), Sigma.diagonal()) + Sigma**2)
    assert (np.abs(draws.T @ draws / n - Sigma) < 5 * scale / np.sqrt(n)).all()
    functions = model.sample_y(X_NEW, 50_000, target="latent")
    V = model.predict(X_NEW, return_cov=True)[1] - 0.16 * np.eye(3)
    np.testing.assert_allclose(np.cov(functions), V, rtol=0.05, atol=0.02 * V.max())
    assert model.sample_network(X_NEW, 7).shape == (3, 1, 7)


def test_its_half_solutions_are_those_of_a_dense_matrix():
    D, U = torch.rand(6, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    held, V = LowRankCovariance(D, U), torch.randn(6, 4, dtype=torch.float64)
    A = DensePrecision(torch.linalg.inv(torch.diag(D) + U @ U.mT))
    for own, other in (
        (held.solve(V), A.solve(V)),
        (held.half_solve(V).mT @ held.half_solve(V), A.half_solve(V).mT @ A.half_solve(V)),
        (held.inverse_diagonal, A.inverse_diagonal),
    ):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)
    assert held.log_determinant == pytest.approx(A.log_determinant, rel=1e-9)
    D[2] = U[2] = 0.0  # a weight that never moved
    assert LowRankCovariance(D, U).log_determinant == np.inf


@pytest.mark.slow
def test_the_automatic_rate_is_where_the_two_gaussians_are_nearest():
    """At ε*, tr(AΣ) = P (the derivative of KL(N(w*, Σ) ‖ N(w*, A⁻¹)) along Σ), A the posterior's
    precision: measured at ε*/5, where Σ is a fifth, on a linear network with its true noise."""
    inputs = RNG.standard_normal((64, 3))
    y = inputs @ [1.0, -1.0, 0.5] + 0.5 * RNG.standard_normal(64)
    options = {"hidden_layer_sizes": (), "activation": "identity", "noise_std": 0.5}
    laplace = regressor(**options, inference="laplace").fit(inputs, y)
    A = np.linalg.inv(dense(laplace))
    model = laplace.linear_model_
    g = jacobian(laplace.module_, torch.tensor(inputs)).numpy()
    g = g * ((laplace.predict(inputs) - y) / 0.25)[:, None]
    nearest = 2 * 4 * 4 / (g**2).sum()  # 2SP/(N tr C)
    stable = 64 / np.linalg.eigvalsh(A)[-1]
    assert swag._rate(model, 4) == pytest.approx(min(nearest, stable), rel=1e-6)
    small = regressor(
        **options, posterior="diag",
        inference=SWAG(max_iter=600, learning_rate=nearest / 5, batch_size=4),
    ).fit(inputs, y)  # fmt: skip
    Sigma = np.diag(dense(small).diagonal())
    # A step is a fortieth of the way: 600 epochs of 16 are some 240 independent draws, and four
    # directions' variances have a standard error of √(2/960) = 0.05 together.
    assert 5 * np.trace(A @ Sigma) == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_net_of_ones_own_brings_its_weights(frozen):
    torch.manual_seed(0)
    net = NeuralNetRegressor(
        nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4) if frozen else nn.Tanh(), nn.Linear(4, 1)),
        callbacks=[Snapshots(rank=3, start=4), Recorder()], max_epochs=10, lr=0.02, verbose=0,
        train_split=None,
    )  # fmt: skip
    inputs, y = X.astype(np.float32), Y.astype(np.float32)
    given = FrozenEstimator(net.fit(inputs, y[:, None])) if frozen else net
    before = {} if not frozen else {n: v.clone() for n, v in net.module_.state_dict().items()}
    model = DNN2GPRegressor(
        given, inference="swag", prior_precision=1.0, noise_std=0.4, normalize_y=False,
        random_state=0,
    ).fit(inputs, y)  # fmt: skip
    weights = dict(model.net_.callbacks_)["Recorder"].weights
    mean, Sigma = moments(weights[3:], 3)
    assert len(weights) == 10
    # The weights are single: so is the mean that they hold, and the squares' difference.
    w = torch.cat([p.detach().flatten() for p in model.module_.parameters()])
    np.testing.assert_allclose(w.numpy(), mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(dense(model), Sigma, rtol=1e-6, atol=1e-12)
    for name, value in before.items():  # the user's own stays
        torch.testing.assert_close(net.module_.state_dict()[name], value, rtol=0, atol=0)
    if frozen:  # the norm's statistics are those of the mean weights
        hidden = model.module_[0](torch.tensor(inputs)).detach()
        torch.testing.assert_close(model.module_[1].running_mean, hidden.mean(0))
        torch.testing.assert_close(model.module_[1].running_var, hidden.var(0))


def test_pickles_files_clones_and_searches(tmp_path):
    model = regressor().fit(X, Y)
    save(model, tmp_path / "model.safetensors")
    copies = pickle.loads(pickle.dumps(model)), load(tmp_path / "model.safetensors")
    for other in (*copies, clone(model).fit(X, Y)):
        np.testing.assert_array_equal(other.predict(X_NEW), model.predict(X_NEW))
        np.testing.assert_array_equal(other.predict_std(X_NEW), model.predict_std(X_NEW))
        assert np.isnan(other.log_marginal_likelihood_value_)
    grid = {"inference__rank": [2, 4], "inference__max_iter": [3, 8]}
    search = GridSearchCV(regressor(inference="swag"), grid, cv=2, error_score="raise").fit(X, Y)
    assert search.best_estimator_.posterior_.precision.factor.shape[1] in (2, 3, 4)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_classifiers_and_free_priors():
    labels = np.digitize(Y, [-0.5, 0.5])
    model = DNN2GPClassifier(
        hidden_layer_sizes=(4,), inference="swag", prior_precision=1.0, random_state=0, link="mc"
    ).fit(X, labels)
    assert model.score(X, labels) > 0.7 and model.solver_ == "SWAG" and not model.converged_
    assert (model.predict_uncertainty(X).epistemic > 0).all()
    free = {"prior_precision": "auto", "noise_std": "auto", "n_restarts": 1}
    auto, laplace = (
        regressor(**free, inference=inference).fit(X, Y)
        for inference in (SWAG(max_iter=3), "laplace")
    )
    assert auto.prior_precision_ == laplace.prior_precision_  # as the evidence chose it
    assert auto.noise_std_ == laplace.noise_std_


def test_what_it_has_no_meaning_for_is_refused():
    model = regressor().fit(X, Y)
    assert np.isnan(model.log_marginal_likelihood_value_)
    with pytest.raises(AttributeError, match="steps of SGD"):
        _ = model.kernel_
    for refused in (
        model.log_marginal_likelihood, lambda: model.log_marginal_likelihood([0.0, 0.0]),
        model.to_gaussian_process, lambda: model.leave_one_out(X, Y),
        lambda: marginal_likelihood_scorer(model, X, Y),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="inference='swag' is that of steps of SGD"):
            refused()
    with pytest.raises(ValueError, match="weights='evidence' needs the evidence of each member"):
        MixtureRegressor(regressor(), weights="evidence").fit(X, Y)
    with pytest.raises(ValueError, match="posterior='auto', or take 'diag'"):
        regressor(posterior="last_layer").fit(X, Y)
    with pytest.raises(ValueError, match="batch_size=40 holds all 40 rows"):
        regressor(inference=SWAG(batch_size=40)).fit(X, Y)
    frozen = FrozenEstimator(regressor(inference="laplace").fit(X, Y).net_)
    with pytest.raises(ValueError, match="Snapshots"):
        DNN2GPRegressor(frozen, inference="swag").fit(X, Y)
    for wrong in ({"rank": 1}, {"max_iter": 0}, {"learning_rate": -1.0}, {"batch_size": 0.5}):
        with pytest.raises(ValueError, match=f"SWAG: {next(iter(wrong))} must be"):
            regressor(inference=SWAG(**wrong)).fit(X, Y)
    late = NeuralNetRegressor(
        nn.Linear(2, 1), callbacks=[Snapshots(start=9)], max_epochs=2, verbose=0, train_split=None
    )
    with pytest.raises(ValueError, match="0 were kept: lower start=9"):
        regressor(net=late, hidden_layer_sizes=(50,)).fit(X.astype(np.float32), Y)

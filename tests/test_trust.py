"""Wrong answers of earlier versions, each with what it must be."""

import copy
import inspect
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, load_linnerud
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNet, NeuralNetRegressor
from torch import nn

from sk_dnn2gp import (
    DNN2GPClassifier,
    DNN2GPRegressor,
    MixtureClassifier,
    NNGPClassifier,
    marginal_likelihood_scorer,
)
from sk_dnn2gp.estimators import base
from sk_dnn2gp.inference import SWAG, LinearizedVariational, Variational
from sk_dnn2gp.kernels import NNGPFeatures, NTKFeatures
from sk_dnn2gp.model_selection import TrainingSetSplit
from sk_dnn2gp.posterior import (
    Automatic,
    Diagonal,
    Full,
    IndependentOutputs,
    LastLayer,
    SubsetOfData,
    SubsetOfWeights,
)
from sk_dnn2gp.training import LBFGS, FirstOrder, GaussNewtonLM, NewtonCG
from tests.reference import jacobian

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3))
Y = np.sin(X.sum(1)) + 0.2 * RNG.standard_normal(40)
LABELS = np.where(Y > 0, "up", "down")
SMALL = {"hidden_layer_sizes": (4,), "n_restarts": 1, "random_state": 0}
FIXED = {**SMALL, "prior_precision": 1.0}


def regressor(**options):
    return DNN2GPRegressor(**{**FIXED, "noise_std": 0.3, **options})


def classifier(**options):
    return DNN2GPClassifier(**{**FIXED, **options})


# --------------------------------------------------------------------- one posterior, one process


PARTS = [
    "last_layer", LastLayer(), "diag", "independent", SubsetOfWeights(("1.weight",)),
    SubsetOfData(10), SubsetOfData(10, "last_layer"),
]  # fmt: skip


@pytest.mark.parametrize("posterior", PARTS, ids=str)
def test_another_process_is_not_sold_as_the_networks(posterior):
    for model in (
        regressor(posterior=posterior).fit(X, Y), classifier(posterior=posterior).fit(X, LABELS)
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"to_gaussian_process\(\) .* Use posterior='full'"):
            model.to_gaussian_process()
        with pytest.raises(AttributeError, match=r"kernel_ .* Use posterior='full'"):
            _ = model.kernel_
        assert not hasattr(model, "kernel_")


def test_the_last_layers_variances_are_its_own():
    """Of the process whose features are the last layer's inputs, dense."""
    model = regressor(posterior="last_layer", normalize_y=False).fit(X, Y)
    with torch.no_grad():
        phi = nn.Sequential(*list(model.module_)[:-1])(torch.tensor(X)).numpy()
    phi = np.c_[phi, np.ones(len(phi))]
    A = phi.T @ phi / 0.3**2 + np.eye(phi.shape[1])
    V = np.einsum("ip,pi->i", phi, np.linalg.solve(A, phi.T))
    np.testing.assert_allclose(model.predict_std(X, "latent") ** 2, V, rtol=1e-10)


def test_drawn_networks_have_the_mean_of_q():
    """linearized-vi moves the mean: the draws' weights are around it, and not around w*."""
    model = classifier(inference="linearized-vi", prior_precision=0.3).fit(X, LABELS)
    shift = model._result.shift
    Sigma = torch.diag(model.posterior_.inverse_diagonal)
    assert float((shift / Sigma.diagonal().sqrt()).abs().max()) > 0.1  # it moved at all
    linearization, drawn = model.linear_model_.linearization, []
    original = type(linearization).at

    def recording(self, w):
        drawn.append(w)
        return original(self, w)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(linearization), "at", recording)
        model.sample_network(X[:1], 4000, random_state=1)
    W = torch.stack(drawn)
    assert len(W) == 4000
    error = (W.mean(0) - (model.linear_model_.weights + shift)) / W.std(0)
    # Five standard errors of a mean of 4,000 draws.
    assert float(error.abs().max()) < 5 / np.sqrt(4000)


@pytest.mark.parametrize("inference", ["laplace", "linearized-vi", Variational(max_iter=20)])
def test_the_effective_dimension_is_that_of_q(inference):
    """γ = P - tr(δΣ), with q's own Σ."""
    model = classifier(inference=inference).fit(X, LABELS)
    Sigma_diagonal = model.posterior_.inverse_diagonal
    P = len(Sigma_diagonal)
    expected = P - model.prior_precision_ * float(Sigma_diagonal.sum())
    assert model.effective_dimension_ == pytest.approx(expected, rel=1e-9)
    if inference == "linearized-vi":
        laplace = classifier().fit(X, LABELS)
        assert abs(model.effective_dimension_ - laplace.effective_dimension_) > 1e-3


def in_step(model):
    delta = model.posterior_.model.prior_precision
    assert torch.equal(delta, torch.full_like(delta, model.prior_precision_))
    L = model.posterior_.model.noise_factor
    if hasattr(model, "noise_std_"):
        scale = torch.eye(L.shape[1], dtype=L.dtype) / model.noise_std_
        torch.testing.assert_close(L, scale.expand_as(L), rtol=1e-13, atol=0.0)
    # and the evidence that is shown is that of those numbers
    theta = np.log(model._hyperparameters())
    found = model.log_marginal_likelihood(theta)
    assert model.log_marginal_likelihood_value_ == pytest.approx(found, rel=1e-7, abs=1e-7)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("seed", range(6))
def test_hyperparameters_are_those_of_the_posterior(seed):
    rng = np.random.default_rng(seed)
    n, d = [(10, 1), (30, 4), (15, 8), (50, 2), (8, 3), (25, 10)][seed]
    noise = rng.standard_normal(n)
    inputs = rng.standard_normal((n, d))
    in_step(DNN2GPRegressor(**SMALL).fit(inputs, noise))
    in_step(DNN2GPRegressor(**SMALL, solver=FirstOrder(max_iter=60)).fit(inputs, noise))
    in_step(DNN2GPClassifier(**SMALL).fit(inputs, noise > 0))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_hyperparameters_of_linnerud():
    inputs, targets = load_linnerud(return_X_y=True)
    in_step(DNN2GPRegressor(n_restarts=1, random_state=0).fit(inputs, targets))


# ------------------------------------------------------------------------------ all or nothing


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, ValueError, RuntimeError])
@pytest.mark.parametrize("where", ["fit_laplace", "fit_variational", "_show"])
@pytest.mark.parametrize("make", [regressor, classifier])
def test_a_failed_fit_changes_nothing(make, where, error, monkeypatch):
    y = Y if make is regressor else LABELS
    other = 1000 * Y[:30] + 5 if make is regressor else np.where(X[:30, 0] > 0, "a", "b")
    model = make(inference=Variational(max_iter=3)).fit(X, y)
    old, state = pickle.loads(pickle.dumps(model)), dict(model.__dict__)
    fresh = make(inference=Variational(max_iter=3))

    def fail(*_):
        raise error("on purpose")

    if where == "_show":  # after some attributes are set already
        whole = base.BaseDNN2GP._show

        def half(self, result, weight):
            whole(self, result, weight)
            fail()

        monkeypatch.setattr(base.BaseDNN2GP, "_show", half)
    else:
        monkeypatch.setattr(base, where, fail)
    with pytest.raises(error, match="on purpose"):
        model.fit(X[:30, :2], other)
    assert model.__dict__.keys() == state.keys()
    assert all(model.__dict__[name] is value for name, value in state.items())
    np.testing.assert_array_equal(model.predict(X), old.predict(X))
    np.testing.assert_array_equal(model.predict_std(X), old.predict_std(X))
    parameters = dict(fresh.__dict__)
    with pytest.raises(error, match="on purpose"):
        fresh.fit(X, y)
    assert fresh.__dict__ == parameters
    with pytest.raises(NotFittedError):
        fresh.predict(X)


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (NNGPClassifier(), "_solve"),
        (NNGPClassifier(likelihood="categorical"), "_fit_classes"),
        (MixtureClassifier(classifier(), n_estimators=2, random_state=0), "_of_own_searches"),
        (NNGPFeatures(n_components=5), "_rows"),
        (NTKFeatures(nn.Linear(3, 1).double()), "_kernel"),
    ],
    ids=["labels", "categorical", "mixture", "nngp features", "ntk features"],
)
def test_a_failed_refit_of_others_changes_nothing(model, where, monkeypatch):
    """As of new labels, or of other features."""
    ask = "predict" if hasattr(model, "predict") else "transform"
    before = getattr(model.fit(X, LABELS), ask)(X)

    def fail(*_):
        raise MemoryError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(type(model), where, fail)
        with pytest.raises(MemoryError):
            model.fit(X[:30, :2], np.where(X[:30, 0] > 0, "a", "b"))
    np.testing.assert_array_equal(getattr(model, ask)(X), before)


def test_a_refit_that_does_not_fit_the_memory_changes_nothing():
    model = regressor().fit(X, Y)
    mean, std = model.predict(X, return_std=True)
    model.set_params(posterior=Full(memory_limit=1e-3))
    with pytest.raises(MemoryError):
        model.fit(X, 1000 * Y)
    again = model.predict(X, return_std=True)
    np.testing.assert_array_equal(again, (mean, std))


# ------------------------------------------------------------------------ networks that are given


def test_a_frozen_net_speaks_in_its_own_units():
    inputs, targets = load_diabetes(return_X_y=True)
    inputs, targets = (20 * inputs).astype(np.float32), targets.astype(np.float32)[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NeuralNetRegressor(
            nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)),
            optimizer=torch.optim.Adam, lr=0.3, max_epochs=60, verbose=0, train_split=None,
        ).fit(inputs, targets)  # fmt: skip
    own = net.predict(inputs)[:, 0]
    r2 = r2_score(targets[:, 0], own)
    assert r2 > 0.4
    for normalize_y in (True, False):
        model = DNN2GPRegressor(FrozenEstimator(net), normalize_y=normalize_y)
        model.fit(inputs, targets[:, 0])
        np.testing.assert_allclose(model.predict(inputs), own, rtol=1e-5)
        assert model.score(inputs, targets[:, 0]) == pytest.approx(r2, abs=1e-5)
        # σ is in the units of y too: σ²(NK - γ) is the sum of squares.
        squares = np.sum((targets[:, 0] - own) ** 2)
        expected = np.sqrt(squares / (len(own) - model.effective_dimension_))
        assert model.noise_std_ == pytest.approx(expected, rel=1e-4)
        assert model.y_scale_ == 1 and model.y_mean_ == 0


class Frozen(nn.Module):
    """A body that is not to be trained, and a head that is."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 8).requires_grad_(False)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


@pytest.mark.parametrize("n_restarts", [1, 3, "auto"])
@pytest.mark.parametrize("solver", ["auto", "gauss-newton", FirstOrder(max_iter=5)], ids=str)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_weights_that_need_no_gradient_stay(solver, n_restarts):
    net = Frozen().double()
    before = copy.deepcopy(net.state_dict())
    model = regressor(
        net=net, hidden_layer_sizes=(50,), solver=solver, n_restarts=n_restarts
    ).fit(X, Y)  # fmt: skip
    for name in ("body.weight", "body.bias"):
        assert torch.equal(model.module_.state_dict()[name], before[name])
    assert not torch.equal(model.module_.head.weight, before["head.weight"])
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any(p.requires_grad for p in model.module_.body.parameters())


def test_an_instance_begins_at_its_own_weights():
    """At its own minimum there is nothing to do."""
    first = regressor(net=Frozen().double(), hidden_layer_sizes=(50,)).fit(X, Y)
    for options in ({}, {"n_restarts": "auto"}):
        again = regressor(net=first.module_, hidden_layer_sizes=(50,), **options).fit(X, Y)
        assert again.n_iter_ <= 1
        np.testing.assert_allclose(again.predict(X), first.predict(X), rtol=1e-6)


class Tokens(nn.Module):
    """Takes whole numbers alone."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.last = nn.Linear(12, 1)
        self.double()

    def forward(self, x):
        return self.last(self.embedding(x).flatten(1))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_whole_numbers_go_to_networks_as_they_take_them(dtype):
    whole = RNG.integers(0, 10, (40, 3)).astype(dtype)
    y = whole.sum(1) / 5.0
    for net in (nn.Linear(3, 1), nn.Linear(3, 1).double()):
        model = regressor(net=net, hidden_layer_sizes=(50,)).fit(whole, y)
        expected = regressor(net=net, hidden_layer_sizes=(50,)).fit(whole.astype(float), y)
        # In single precision the two see the same numbers.
        np.testing.assert_array_equal(model.predict(whole), expected.predict(whole.astype(float)))
        np.testing.assert_array_equal(expected.predict(whole), model.predict(whole))
        assert expected.predict_std(whole).shape == (40,)
    tokens = regressor(net=Tokens(), hidden_layer_sizes=(50,), normalize_y=False).fit(whole, y)
    with torch.no_grad():
        f = tokens.module_(torch.tensor(whole.astype(np.int64)))[:, 0]
    np.testing.assert_allclose(tokens.predict(whole), f, rtol=1e-12)
    labels = y > y.mean()
    images = classifier(net=nn.Linear(3, 1), hidden_layer_sizes=(50,)).fit(whole, labels)
    assert images.predict(whole).shape == (40,)
    assert np.isfinite(marginal_likelihood_scorer(images, whole, labels))


# ----------------------------------------------------------------------------------- training


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("shift", [0.0, 1e5])
@pytest.mark.filterwarnings("ignore:Training stopped:sklearn.exceptions.ConvergenceWarning")
def test_a_shift_of_the_inputs_changes_nothing(activation, shift):
    """The default network standardises its inputs: no saturation, no silence."""
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((60, 2))
    y = inputs[:, 0] + inputs[:, 1] > 0
    model = classifier(activation=activation).fit(inputs + shift, y)
    assert model.score(inputs + shift, y) > 0.95
    there = classifier(activation=activation).fit(inputs, y).predict_proba(inputs)
    close = {"relu": 1e-4, "tanh": 1e-6}[activation]  # relu's steps may end on a kink
    np.testing.assert_allclose(model.predict_proba(inputs + shift), there, atol=close)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auto = DNN2GPClassifier(**SMALL, activation=activation).fit(inputs + shift, y)
    assert auto.score(inputs + shift, y) > 0.95


def test_what_calls_itself_converged_is_at_a_minimum():
    """On a kink of relu no step lowers the loss, and that is no minimum: it is said."""
    ends = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        inputs = rng.standard_normal((40, 2))
        y = np.sin(inputs.sum(1)) + 0.3 * rng.standard_normal(40)
        model = regressor(activation="relu", hidden_layer_sizes=(1,), random_state=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(inputs, y)
        assert model.converged_ == (not any("not at a minimum" in str(w.message) for w in caught))
        ends.append((model.converged_, model.newton_decrement_))
    assert {True, False} == {converged for converged, _ in ends}
    assert max(decrement for converged, decrement in ends if converged) < 1e-6


def test_a_gradient_that_is_no_number_has_no_decrement():
    result = regressor().fit(X, Y)._result
    nowhere = torch.full_like(result.gradient, torch.nan)
    assert np.isnan(replace(result, gradient=nowhere).newton_decrement)
    assert result.newton_decrement >= 0


@pytest.mark.slow
@pytest.mark.parametrize("prior_precision", [1.0, "auto"])
def test_variational_training_keeps_what_laplace_has(prior_precision):
    inputs, y = load_iris(return_X_y=True)
    options = {**FIXED, "prior_precision": prior_precision}
    laplace = DNN2GPClassifier(**options).fit(inputs, y)
    model = DNN2GPClassifier(**options, inference="vi").fit(inputs, y)
    assert model.score(inputs, y) >= laplace.score(inputs, y) - 1 / 150
    curve = np.array(model.elbo_curve_)
    # Every epoch has draws of its own: means of 40, to three standard errors.
    means, error = curve.reshape(5, 40).mean(1), 3 * curve[-40:].std() / np.sqrt(40)
    assert (means[1:] >= np.maximum.accumulate(means)[:-1] - error).all()
    assert curve[-1] >= curve[0]
    assert 1e-4 < model.prior_precision_ < 1e4


def test_warm_start_needs_the_same_network():
    model = regressor(warm_start=True).fit(X, Y)
    with pytest.raises(ValueError, match="warm_start=True .* hidden_layer_sizes"):
        model.set_params(hidden_layer_sizes=(7,)).fit(X, Y)
    assert model.predict(X).shape == (40,)  # the old network still
    with pytest.raises(ValueError, match="the number of features"):
        clone(model).fit(X, Y).fit(X[:, :2], Y)
    with pytest.raises(ValueError, match="outputs"):
        clone(model).fit(X, Y).fit(X, np.c_[Y, Y])
    model.set_params(warm_start=False).fit(X, Y)
    assert model.module_[1].out_features == 7


# ---------------------------------------------------------------------------------- evidences


POSTERIORS = ["full", "diag", "last_layer", "independent", SubsetOfData(20, random_state=0)]
INFERENCES = ["laplace", "linearized-vi", Variational(max_iter=5)]


def allowed(inference, posterior, is_classifier):
    if isinstance(inference, Variational):
        return posterior in ("full", "diag")
    if inference == "linearized-vi":
        return is_classifier and posterior not in ("diag", "independent")
    return True


@pytest.mark.parametrize("posterior", POSTERIORS, ids=str)
@pytest.mark.parametrize("inference", INFERENCES, ids=str)
@pytest.mark.parametrize("class_weight", [None, {"up": 3.0, "down": 0.5}, "balanced"], ids=str)
def test_the_scorer_says_what_the_method_says(inference, posterior, class_weight):
    if not allowed(inference, posterior, True):
        pytest.skip("refused, as another test says")
    model = classifier(inference=inference, posterior=posterior, class_weight=class_weight)
    model.fit(X, LABELS)
    value = model.log_marginal_likelihood()
    rows = slice(None) if model.posterior_indices_ is None else model.posterior_indices_
    if class_weight == "balanced" and model.posterior_indices_ is not None:
        return  # whose weights are those of all rows
    score = marginal_likelihood_scorer(model, X[rows], LABELS[rows])
    assert score == pytest.approx(value, rel=1e-8)
    assert value == model.log_marginal_likelihood_value_


@pytest.mark.parametrize("posterior", POSTERIORS, ids=str)
@pytest.mark.parametrize("inference", ["laplace", Variational(max_iter=5)], ids=str)
def test_the_scorer_says_what_the_regressor_says(inference, posterior):
    if not allowed(inference, posterior, False):
        pytest.skip("refused, as another test says")
    weight = np.where(X[:, 0] > 0, 2.0, 1.0)
    model = regressor(inference=inference, posterior=posterior).fit(X, Y, weight)
    rows = slice(None) if model.posterior_indices_ is None else model.posterior_indices_
    score = marginal_likelihood_scorer(model, X[rows], Y[rows], sample_weight=weight[rows])
    assert score == pytest.approx(model.log_marginal_likelihood(), rel=1e-8)


def test_a_class_of_weight_zero_is_left_out():
    labels = np.digitize(Y, [-0.5, 0.5])
    model = classifier(class_weight={0: 0}).fit(X, labels)
    kept = labels > 0
    assert model.classes_.tolist() == [1, 2]
    alone = classifier().fit(X[kept], labels[kept])
    np.testing.assert_allclose(model.predict_proba(X), alone.predict_proba(X), rtol=1e-6)
    assert marginal_likelihood_scorer(model, X, labels) == pytest.approx(
        model.log_marginal_likelihood_value_, rel=1e-9
    )
    with pytest.raises(ValueError, match="one class only, 2"):
        classifier(class_weight={0: 0, 1: 0}).fit(X, labels)


# ----------------------------------------------------------------------------- a working skorch net


NETS = {
    "newton-cg": lambda: regressor(),
    "gauss-newton": lambda: regressor(solver="gauss-newton"),
    "lbfgs": lambda: regressor(solver=LBFGS(max_iter=3000)),
    "adam": lambda: regressor(solver=FirstOrder(max_iter=10)),
    "auto": lambda: DNN2GPRegressor(**SMALL),
    "vi": lambda: regressor(inference=Variational(max_iter=5)),
    "module": lambda: regressor(net=nn.Linear(3, 1), hidden_layer_sizes=(50,)),
    "skorch": lambda: regressor(
        net=NeuralNet(nn.Linear, nn.MSELoss, module__in_features=3, module__out_features=1,
                      max_epochs=3, verbose=0, train_split=None),
        hidden_layer_sizes=(50,),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", list(NETS))
def test_net_is_a_working_skorch_net(name, tmp_path):
    model = NETS[name]().fit(X, Y)
    net = model.net_
    assert isinstance(net, NeuralNet)
    assert net.module_ is model.module_
    losses = net.history[:, "train_loss"]
    assert len(losses) >= model.n_iter_ > 0 and np.isfinite(losses).all()
    dtype = np.float64 if next(net.module_.parameters()).dtype == torch.float64 else np.float32
    inputs = X.astype(dtype)
    with torch.no_grad():
        outputs = model.module_(torch.tensor(inputs)).numpy()
    np.testing.assert_array_equal(net.predict(inputs), outputs)
    net.save_params(tmp_path / "weights.pt")
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.module_.parameters():
            p.zero_()
    other.load_params(tmp_path / "weights.pt")
    np.testing.assert_array_equal(other.predict(inputs), outputs)
    targets = ((Y - Y.mean()) / Y.std())[:, None].astype(dtype)
    before = len(other.history)
    other.partial_fit(inputs, targets)
    assert len(other.history) > before
    assert not np.array_equal(other.predict(inputs), outputs)
    pickle.loads(pickle.dumps(net)).predict(inputs)


def test_a_default_fit_draws_in_no_symbolic_algebra():
    code = (
        "import sys, numpy as np\n"
        "from sk_dnn2gp import DNN2GPRegressor, DNN2GPClassifier\n"
        "X = np.random.default_rng(0).normal(size=(20, 2))\n"
        "o = dict(hidden_layer_sizes=(3,), n_restarts=1, random_state=0)\n"
        "DNN2GPRegressor(**o).fit(X, X[:, 0]**2 + X[:, 1]).predict(X, return_std=True)\n"
        "DNN2GPClassifier(**o).fit(X, X[:, 0] > 0).predict_proba(X)\n"
        "print('sympy' in sys.modules)\n"
    )
    run = [sys.executable, "-W", "ignore", "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False"]


# ---------------------------------------------------------------------------- arguments and objects


def test_constructors_are_short():
    for estimator, n_parameters in ((DNN2GPRegressor, 16), (DNN2GPClassifier, 15)):
        assert len(inspect.signature(estimator).parameters) == n_parameters


def test_a_search_reaches_into_what_a_string_stands_for():
    search = GridSearchCV(
        classifier(inference="vi", solver="newton-cg", posterior="full"),
        {
            "solver__max_iter": [200, 300],
            "inference__n_samples": [2],
            "inference__max_iter": [2],
            "posterior__memory_limit": [500.0],
        },
        scoring=marginal_likelihood_scorer,
        cv=TrainingSetSplit(),
        error_score="raise",
    ).fit(X, LABELS)
    best = search.best_estimator_
    assert isinstance(best.solver, NewtonCG) and best.solver.max_iter in (200, 300)
    assert isinstance(best.inference, Variational) and best.inference.n_samples == 2
    assert isinstance(best.posterior, Full) and best.posterior.memory_limit == 500.0
    assert len(best.elbo_curve_) <= 2
    assert search.estimator.solver == "newton-cg"  # what was given stays a string


def test_strings_are_shorthand_for_objects():
    pairs = [
        ("solver", "newton-cg", NewtonCG), ("solver", "gauss-newton", GaussNewtonLM),
        ("solver", "lbfgs", LBFGS), ("solver", "adam", FirstOrder), ("solver", "sgd", FirstOrder),
        ("posterior", "auto", Automatic), ("posterior", "full", Full),
        ("posterior", "diag", Diagonal),
        ("posterior", "last_layer", LastLayer), ("posterior", "independent", IndependentOutputs),
        ("inference", "vi", Variational), ("inference", "linearized-vi", LinearizedVariational),
        ("inference", "swag", SWAG),
    ]  # fmt: skip
    for name, text, kind in pairs:
        setting = {"posterior": "memory_limit"}.get(name, "max_iter")
        model = classifier(**{name: text}).set_params(**{f"{name}__{setting}": 7})
        assert type(getattr(model, name)) is kind
        assert model.get_params()[f"{name}__{setting}"] == 7
    together = classifier().set_params(solver="lbfgs", solver__max_iter=3)
    assert isinstance(together.solver, LBFGS) and together.solver.max_iter == 3
    with pytest.raises(ValueError, match="'auto' may become several: give solver by name"):
        classifier().set_params(solver__max_iter=3)


SKORCH = NeuralNet(nn.Linear, nn.MSELoss)
ICE = FrozenEstimator(NeuralNet(nn.Linear(3, 1), nn.MSELoss).initialize())
REFUSED = [
    (classifier, {"inference": "vi", "posterior": "last_layer"}, "inference='vi' .* 'last_layer'"),
    (classifier, {"inference": "vi", "posterior": "independent"}, "inference='vi'"),
    (regressor, {"inference": "vi", "posterior": SubsetOfData(9)}, "inference='vi' .*SubsetOfData"),
    (regressor, {"inference": "vi", "net": ICE}, "inference='vi' trains the network"),
    (regressor, {"inference": "vi", "prior_groups": "layer"}, "leave prior_groups='all'"),
    (regressor, {"inference": "linearized-vi"}, "'linearized-vi' is for classifiers"),
    (classifier, {"inference": "linearized-vi", "posterior": "diag"}, "got posterior='diag'"),
    (classifier, {"inference": "linearized-vi", "posterior": "independent"}, "got posterior="),
    (
        regressor,
        {"posterior": "independent", "prior_precision": "auto"},
        "posterior='independent' needs a number",
    ),
    (regressor, {"prior_groups": "layer"}, "prior_groups='layer' .* prior_precision=1.0"),
    (regressor, {"prior_groups": 3}, "prior_groups must be"),
    (regressor, {"net": nn.Linear(3, 1), "hidden_layer_sizes": (4,)}, "hidden_layer_sizes=.* net"),
    (regressor, {"net": nn.Linear(3, 1), "activation": "relu"}, "activation='relu' is for net="),
    (regressor, {"net": SKORCH, "solver": "adam"}, "solver='adam' .* net is a skorch net"),
    (regressor, {"net": ICE, "solver": "lbfgs"}, "solver='lbfgs' .* net is a FrozenEstimator"),
    (regressor, {"net": ICE, "n_restarts": 3}, "n_restarts=3, and a FrozenEstimator"),
]


@pytest.mark.parametrize(("make", "options", "message"), REFUSED)
def test_what_cannot_work_is_refused_by_name(make, options, message):
    """Before any work, and whatever the data."""
    if "net" in options and "hidden_layer_sizes" not in options:
        options = {"hidden_layer_sizes": (50,), **options}
    with pytest.raises(ValueError, match=message):
        make(**options).fit(X, Y if make is regressor else LABELS)


def test_the_mean_of_the_process_is_the_linear_models():
    """Jw*, which is not f; said where the process is converted."""
    model = regressor(normalize_y=False).fit(X, Y)
    J = jacobian(model.module_, torch.tensor(X)).numpy()
    mean = model.to_gaussian_process().predict(X)
    np.testing.assert_allclose(mean, J @ model.linear_model_.weights.numpy(), atol=1e-6)

"""What users bring that is out of the ordinary: it works, or a sentence says what to do."""

from __future__ import annotations

import inspect
import time
import warnings

import numpy as np
import pytest
import sklearn
import torch
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Checkpoint, EarlyStopping, EpochScoring
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import predefined_split
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor, NNGPClassifier, evidence_path
from sk_dnn2gp.evidence import minima
from sk_dnn2gp.training import FirstOrder, GaussNewtonLM, NewtonCG, newton, second_order
from sk_dnn2gp.training.objective import Point

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3))
Y = 5.0 + 2.0 * np.sin(X.sum(1))
LABELS = np.where(Y > 5, "up", "down")
FIXED = {"n_restarts": 1, "random_state": 0, "prior_precision": 1.0}
SMALL = {**FIXED, "hidden_layer_sizes": (4,)}


def regressor(**options):
    return DNN2GPRegressor(**{**FIXED, **options})


# ------------------------------------------------------------------------------ skorch's own ways


def single(*arrays):
    return [a.astype(np.float32) for a in arrays]


def net_of(kind=NeuralNetRegressor, n_outputs=1, **options):
    settings = {"max_epochs": 12, "lr": 0.05, "verbose": 0, **options}
    return kind(nn.Linear, module__in_features=3, module__out_features=n_outputs, **settings)


@pytest.mark.parametrize(
    "callback",
    [EarlyStopping(), EpochScoring("r2", lower_is_better=False), "checkpoint"],
    ids=["stopping", "scoring", "checkpoint"],
)
def test_callbacks_that_look_at_validation_keep_their_split(callback, tmp_path):
    """A fifth of the rows is held out, and is what they see; the posterior is of all."""
    if callback == "checkpoint":
        callback = Checkpoint(dirname=str(tmp_path))
    net = net_of(callbacks=[callback])
    model = regressor(net=net).fit(*single(X, Y))
    history = model.net_.history
    assert all(np.isfinite(epoch["valid_loss"]) for epoch in history)
    assert {epoch["batches"][0]["train_batch_size"] for epoch in history} == {32}
    assert model.linear_model_.n_rows == len(X)
    if isinstance(callback, EpochScoring):
        assert all(-50 < epoch["r2"] <= 1 for epoch in history)
    plain = regressor(net=net_of()).fit(*single(X, Y))
    assert plain.net_.history[0]["batches"][0]["train_batch_size"] == len(X)


def test_a_classifiers_split_is_stratified():
    net = net_of(NeuralNetClassifier, 2, callbacks=[EarlyStopping()], criterion=nn.CrossEntropyLoss)
    model = DNN2GPClassifier(net, **FIXED).fit(X.astype(np.float32), LABELS)
    assert all(0 <= epoch["valid_acc"] <= 1 for epoch in model.net_.history)


def test_a_validation_set_of_the_users_is_in_units_of_y():
    """The rows of training themselves, in their own units: the loss there is theirs."""
    inputs, targets = single(X, Y[:, None])
    split = predefined_split(Dataset(inputs, targets))
    net = net_of(train_split=split, lr=0.0)
    model = regressor(net=net, noise_std=0.3).fit(inputs, targets[:, 0])
    epoch = model.net_.history[0]
    w = sum(float(p.detach().square().sum()) for p in model.module_.parameters())
    penalty = 0.5 * w / len(X)
    assert epoch["valid_loss"] == pytest.approx(epoch["train_loss"], rel=1e-5)
    residual = (targets[:, 0] - model.predict(inputs)) / model.y_scale_
    expected = 0.5 * np.mean(residual**2) / 0.09 + 0.5 * np.log(2 * np.pi * 0.09) + penalty
    assert epoch["valid_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_split_of_the_users_is_kept():
    model = regressor(net=net_of(train_split=ValidSplit(4))).fit(*single(X, Y))
    assert model.net_.history[0]["batches"][0]["train_batch_size"] == 30


# --------------------------------------------------------------------------------- odd networks


@pytest.mark.parametrize("posterior", ["auto", "last_layer"])
def test_lazy_layers(posterior):
    net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1))
    options = {"posterior": posterior, "noise_std": 0.3}
    model = regressor(net=net, **options).fit(X, Y)
    built = regressor(net=model.module_, **options).fit(X, Y)  # begun at the minimum
    np.testing.assert_allclose(model.predict_std(X), built.predict_std(X), rtol=1e-4)
    assert isinstance(net[0].weight, nn.UninitializedParameter)  # the user's own as it was
    labels = DNN2GPClassifier(nn.Sequential(nn.LazyLinear(2)), posterior=posterior, **FIXED)
    assert labels.fit(X, LABELS).predict_proba(X).shape == (40, 2)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 1, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.w.dtype) @ self.w).abs()


def plain():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: torch.jit.script(plain()), "TorchScript.*give the module that it was made from"),
        (lambda: torch.jit.trace(plain(), torch.zeros(2, 3)), "TorchScript"),
        (Complex, r"weights \['w'\] are complex.*real and imaginary parts"),
    ],
    ids=["script", "trace", "complex"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")
def test_networks_that_cannot_be(net, message):
    with pytest.raises(ValueError, match=message):
        regressor(net=net()).fit(X, Y)


def test_dicts_of_inputs_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"X is a dict of \['a'\].*take them apart in the network"):
        regressor(net=plain()).fit({"a": X}, Y)
    with pytest.raises(ValueError, match="X is a dict"):
        regressor(hidden_layer_sizes=(2,)).fit(X, Y).predict({"a": X})


def test_inference_mode_and_no_grad():
    expected = DNN2GPRegressor(**SMALL).fit(X, Y).predict(X, return_std=True)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            found = DNN2GPRegressor(**SMALL).fit(X, Y).predict(X, return_std=True)
        np.testing.assert_array_equal(found, expected)
    with torch.inference_mode():
        net = nn.Linear(3, 1)
    assert regressor(net=net).fit(X, Y).predict(X).shape == (40,)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
@pytest.mark.parametrize("net", [None, "skorch", "frozen"])
def test_cuda_without_cuda(net):
    nets = {None: None, "skorch": net_of(), "frozen": FrozenEstimator(net_of().initialize())}
    with pytest.raises(ValueError, match="device='cuda' cannot be used here.*device='cpu'"):
        regressor(net=nets[net], device="cuda").fit(X, Y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_a_net_on_one_device_beside_another():
    frozen = FrozenEstimator(net_of(device="cuda").fit(*single(X, Y[:, None])))
    for net in (net_of(device="cuda"), net_of(), plain().cuda(), frozen):
        for device in ("cpu", "cuda"):
            model = regressor(net=net, device=device).fit(X, Y)
            assert np.isfinite(model.predict(X, return_std=True)).all()


def test_links_do_not_depend_on_the_default_dtype():
    model = DNN2GPClassifier(**SMALL, link="mc").fit(X, LABELS)
    p = model.predict_proba(X)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        np.testing.assert_allclose(model.predict_proba(X), p, atol=1e-12)
        again = DNN2GPClassifier(**SMALL, link="mc").fit(X, LABELS)
        np.testing.assert_allclose(again.predict_proba(X), p, atol=1e-6)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("posterior", ["full", "diag", "last_layer"])
def test_joint_covariances_and_draws_keep_to_the_memory_limit(posterior):
    model = DNN2GPRegressor(**SMALL, posterior=posterior).fit(X, Y)
    many = RNG.standard_normal((600, 3))
    assert model.predict(many, return_cov=True)[1].shape == (600, 600)
    with sklearn.config_context(working_memory=1):
        with pytest.raises(MemoryError, match="joint covariance of 600 rows needs 5.493 MiB"):
            model.predict(many, return_cov=True)
        with pytest.raises(MemoryError, match="A draw of 1000 functions at 600 rows"):
            model.sample_y(many, 1000)
        assert model.sample_y(many[:50], 2).shape == (50, 2)


def test_evidence_path_of_a_pipeline():
    pipe = make_pipeline(StandardScaler(), DNN2GPRegressor(**SMALL)).fit(X, Y)
    path = evidence_path(pipe)
    inner = evidence_path(pipe[-1])
    np.testing.assert_array_equal(path["log_marginal_likelihood"], inner["log_marginal_likelihood"])


def test_probabilities_of_label_regression_are_named():
    model = NNGPClassifier().fit(X, LABELS)
    with pytest.raises(AttributeError) as caught:
        model.predict_proba(X)
    assert "likelihood='categorical'" in str(caught.value.__cause__)


# ----------------------------------------------------------------------- few rows and many steps


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("make", [DNN2GPRegressor, DNN2GPClassifier])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_or_three_rows_take_little(make, n):
    """Processor time, so that a busy machine fails nothing; it was 15 s."""
    y = np.arange(n) % 2 if make is DNN2GPClassifier else np.arange(n) ** 2.0
    began = time.process_time()
    model = make(random_state=0).fit(X[:n], y)
    assert time.process_time() - began < 15.0
    assert np.isfinite(model.predict_std(X)).all()


@pytest.mark.parametrize("max_iter", [300, 500])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_max_iter_bounds_the_whole_of_an_automatic_fit(max_iter, monkeypatch):
    """Steps of every minimum on the way, rough and rejected ones too; it was 8,864 at 500."""
    taken = []
    for name in ("descend", "minimise"):
        method = getattr(minima, name)

        def counting(*given, _method=method, **more):
            found = _method(*given, **more)
            taken.append(found.n_tried)
            return found

        monkeypatch.setattr(minima, name, counting)
    inputs, labels = load_iris(return_X_y=True)
    model = DNN2GPClassifier(random_state=0, n_restarts=20, solver=NewtonCG(max_iter=max_iter))
    model.fit(inputs, labels)
    assert 0 < sum(taken) <= max_iter
    assert model.score(inputs, labels) > 0.95


def _kinked():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((40, 3))
    return inputs, np.sin(inputs.sum(1)) + 0.2 * rng.standard_normal(40)


KINKED = _kinked()


@pytest.mark.parametrize("solver", [NewtonCG, GaussNewtonLM])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_steps_that_are_rejected_count(solver, monkeypatch):
    """On kinks of relu most are: Newton tried 920 of them at 100."""
    tried = []
    for name in ("_steihaug", "_tried"):
        module = {"_steihaug": newton, "_tried": second_order}[name]
        method = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _m=method: tried.append(1) or _m(*a))
    options = {**FIXED, "prior_precision": 1e-6, "noise_std": 1e-3, "hidden_layer_sizes": (5, 5)}
    model = DNN2GPRegressor(**options, activation="relu", solver=solver(max_iter=100)).fit(*KINKED)
    assert 20 < len(tried) <= 101 and not model.converged_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_step_that_was_rejected_costs_no_product_again(monkeypatch):
    """The next has the same directions up to a nearer boundary: none is multiplied twice."""
    seen, again, method = set(), [], Point.hessian_product

    def product(self, v):
        key = self.w.numpy().tobytes(), v.numpy().tobytes()
        again.append(key in seen)
        seen.add(key)
        return method(self, v)

    monkeypatch.setattr(Point, "hessian_product", product)
    options = {**FIXED, "prior_precision": 1e-6, "noise_std": 1e-3, "hidden_layer_sizes": (5, 5)}
    DNN2GPRegressor(**options, activation="relu", solver=NewtonCG(max_iter=100)).fit(*KINKED)
    assert len(again) > 10 and not any(again)


# ------------------------------------------------------------------------------ the user's line


WARNED = {
    "not at a minimum": lambda: DNN2GPRegressor(
        **SMALL, noise_std=0.1, solver=NewtonCG(max_iter=1)
    ).fit(X, Y),
    "higher loss": lambda: DNN2GPRegressor(
        **SMALL, noise_std=0.1, solver=FirstOrder("sgd", learning_rate=50.0, max_iter=3)
    ).fit(X, Y),
    "y is constant": lambda: DNN2GPRegressor(**SMALL, noise_std=0.1).fit(X, np.ones(40)),
    "extreme scale": lambda: regressor(net=plain(), noise_std=1.0).fit(1e6 * X, Y),
    "a fitted skorch net": lambda: regressor(net=net_of().fit(*single(X, Y[:, None]))).fit(X, Y),
    "dropout layer": lambda: regressor(net=nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.1))).fit(
        X, Y
    ),
    "low-rank posterior": lambda: DNN2GPRegressor(**SMALL, posterior=_low_rank()).fit(X, Y),
}


def _low_rank():
    from sk_dnn2gp.posterior import LowRank

    return LowRank(max_rank=1, random_state=0)


@pytest.mark.parametrize("within", ["alone", "pipeline", "search"])
@pytest.mark.parametrize("message", ["not at a minimum", "y is constant", "low-rank posterior"])
def test_warnings_point_at_the_users_line(message, within):
    """Also where scikit-learn's own code lies between."""
    options = {
        "not at a minimum": {"noise_std": 0.1, "solver": NewtonCG(max_iter=1)},
        "y is constant": {"noise_std": 0.1},
        "low-rank posterior": {"noise_std": 0.1, "posterior": _low_rank()},
    }[message]
    model = DNN2GPRegressor(**SMALL, **options)
    if within == "pipeline":
        model = make_pipeline(StandardScaler(), model)
    if within == "search":
        model = GridSearchCV(model, {"noise_std": [0.1, 0.2]}, cv=2)
    y = np.ones(40) if message == "y is constant" else Y
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1
        model.fit(X, y)
    found = [one for one in caught if message in str(one.message)]
    assert found
    assert {(one.filename, one.lineno) for one in found} == {(__file__, line)}


@pytest.mark.parametrize("message", sorted(WARNED))
def test_every_warning_of_a_fit_points_here(message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WARNED[message]()
    found = [one for one in caught if message in str(one.message)]
    assert found, [str(one.message)[:60] for one in caught]
    assert {one.filename for one in found} == {__file__}

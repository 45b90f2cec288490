"""What a fit says while it runs: lines, and the tasks of scikit-learn's callbacks."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.inference import Variational
from sk_dnn2gp.training import FirstOrder

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 3))
Y = 3.0 * np.sin(X[:, 0]) * X[:, 1] + 0.3 * RNG.standard_normal(30)
SMALL = {"hidden_layer_sizes": (4,), "random_state": 0}
FIXED = {**SMALL, "prior_precision": 1.0, "noise_std": 0.2}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# Fits of every kind, with their stages and the number of steps where it is known.
FITS = {
    "search": (
        DNN2GPRegressor(**SMALL, n_restarts=2), {"start 1", "start 2", "best prior and noise"}, None
    ),
    "starts": (DNN2GPRegressor(**FIXED, n_restarts=2), {"start 1", "start 2"}, 2),
    "groups": (
        DNN2GPRegressor(**SMALL, n_restarts=1, prior_groups="layer"),
        {"start 1", "best prior and noise", "prior of each group"}, None,
    ),
    "epochs": (
        DNN2GPRegressor(**FIXED, n_restarts=2, solver=FirstOrder(max_iter=7)),
        {"start 1", "start 2"}, 14,
    ),
    "variational": (
        DNN2GPRegressor(**FIXED, inference=Variational(max_iter=6)), {"start 1", "variational"}, 7
    ),
    "linearized": (
        DNN2GPClassifier(**SMALL, prior_precision=1.0, inference="linearized-vi"),
        {"start 1", "linearized variational"}, 1,
    ),
}  # fmt: skip


def targets(model):
    return Y > 0 if isinstance(model, DNN2GPClassifier) else Y


@pytest.mark.parametrize("name", FITS)
def test_a_line_for_each_stage_with_time_and_evidence(name, capsys):
    model, stages, _ = FITS[name]
    model.set_params(verbose=1).fit(X, targets(model))
    lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r"\[sk_dnn2gp\] (.+): \d+\.\d s, evidence (-?[\d.]+)", x) for x in lines]
    assert all(found), lines
    assert {one[1] for one in found} == stages
    if name in ("search", "starts", "epochs"):  # evidences are in the units of y
        best = max(float(one[2]) for one in found)
        assert best == pytest.approx(model.log_marginal_likelihood_value_, abs=0.01)
    model.set_params(verbose=0).fit(X, targets(model))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("make", [DNN2GPRegressor, DNN2GPClassifier])
def test_a_bar_over_long_predictions(make, capsys):
    noise = {"noise_std": 0.2} if make is DNN2GPRegressor else {}
    model = make(**SMALL, prior_precision=1.0, **noise)
    model.fit(X, targets(model))
    many = RNG.standard_normal((2500, 3))
    plain = model.predict_std(many)
    assert capsys.readouterr().err == ""
    np.testing.assert_allclose(model.set_params(verbose=1).predict_std(many), plain, rtol=1e-9)
    assert "prediction [" in (shown := capsys.readouterr().err) and "100%" in shown
    model.predict_std(X)
    assert capsys.readouterr().err == ""


# -------------------------------------------------------------------------------- callbacks


class Recorder:
    """A callback of scikit-learn's protocol that keeps what it is told, and may ask for an end."""

    def __init__(self, stop_at=None, after=1):
        self.stop_at, self.after = stop_at, after
        self.log, self.fitted = [], None

    def setup(self, estimator, context):
        self.log.append(("setup", context.task_name))

    def on_fit_task_begin(self, estimator, context, *, X=None):
        self.log.append(("begin", path_of(context)))

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        self.log.append(("end", path_of(context)))
        if fitted_estimator is not None:
            self.fitted = fitted_estimator
        ended = [path for what, path in self.log if what == "end" and path[-1] == self.stop_at]
        return len(ended) >= self.after if context.task_name == self.stop_at else False

    def teardown(self, estimator, context):
        self.log.append(("teardown", context.task_name))

    def ends(self, depth):
        return [p for what, p in self.log if what == "end" and len(p) == depth]


def path_of(context):
    names = []
    while context is not None:
        names.append(context.task_name)
        context = context.parent
    return tuple(reversed(names))


needs_callbacks = pytest.mark.skipif(
    not hasattr(DNN2GPRegressor, "set_callbacks"), reason="scikit-learn before 1.9"
)


@needs_callbacks
@pytest.mark.parametrize("name", FITS)
def test_callbacks_hear_of_fit_stage_and_step(name):
    model, stages, n_steps = FITS[name]
    callback = Recorder()
    plain = model.fit(X, targets(model)).predict(X)
    found = model.set_callbacks(callback).fit(X, targets(model)).predict(X)
    model.set_callbacks()
    np.testing.assert_array_equal(plain, found)
    assert callback.log[0] == ("setup", "fit") and callback.log[-1] == ("teardown", "fit")
    begun = sorted(path for what, path in callback.log if what == "begin")
    assert begun == sorted(path for what, path in callback.log if what == "end")
    assert {path[1] for path in callback.ends(2)} <= stages
    assert {path[-1] for path in begun if len(path) > 2} <= {"step", *stages}
    if n_steps is not None:
        assert len(callback.ends(3)) == n_steps
    np.testing.assert_array_equal(callback.fitted.predict(X), found)


@needs_callbacks
@pytest.mark.parametrize(
    ("name", "after", "most"), [("search", 2, 8), ("epochs", 3, 4), ("variational", 3, 4)]
)
def test_callbacks_stop_a_stage_with_the_best_so_far(name, after, most):
    model, _, _ = FITS[name]
    everything = Recorder()
    model.set_callbacks(everything).fit(X, targets(model))
    callback = Recorder("step", after)
    model.set_callbacks(callback).fit(X, targets(model))
    model.set_callbacks()
    assert len(callback.ends(3)) <= most < len(everything.ends(3))
    assert np.isfinite(model.predict(X, return_std=True)).all()


@needs_callbacks
def test_callbacks_stop_the_fit_after_a_stage():
    callback = Recorder("start 1")
    model = DNN2GPRegressor(**FIXED, n_restarts=5).set_callbacks(callback).fit(X, Y)
    assert callback.ends(2) == [("fit", "start 1")]
    one = DNN2GPRegressor(**FIXED, n_restarts=1).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X), one.predict(X))
    callback = Recorder("start 1")
    model = DNN2GPRegressor(**SMALL, n_restarts=5).set_callbacks(callback).fit(X, Y)
    assert callback.ends(2) == [("fit", "start 1")]
    assert np.isfinite(model.predict(X, return_std=True)).all()


@needs_callbacks
def test_callbacks_are_torn_down_after_an_error():
    callback = Recorder()
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    solver = FirstOrder("sgd", learning_rate=1e12)
    model = DNN2GPRegressor(net, prior_precision=1.0, noise_std=0.2, solver=solver, random_state=0)
    with pytest.raises(ArithmeticError, match="diverged"):
        model.set_callbacks(callback).fit(X, Y)
    assert callback.log[-1] == ("teardown", "fit")
    assert not any(name.endswith("_") or "callback_fit" in name for name in vars(model))


@needs_callbacks
def test_a_bar_over_searches_and_pipelines():
    """No warning that an estimator inside does not take part."""
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    pipe = make_pipeline(StandardScaler(), DNN2GPRegressor(**FIXED))
    grid = {"dnn2gpregressor__noise_std": [0.1, 0.3]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = GridSearchCV(pipe, grid, cv=2).set_callbacks(ProgressBar(3)).fit(X, Y)
    assert np.isfinite(search.predict(X)).all()

"""Ctrl-C stops a fit at once, as KeyboardInterrupt, wherever it is."""

import contextlib
import random
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp._utils.copies import copied
from sk_dnn2gp.inference import Variational
from sk_dnn2gp.training import FirstOrder
from tests.moments import interrupted, moments
from tests.test_kill import as_before

PREAMBLE = """
import warnings; warnings.simplefilter("ignore")
import numpy as np
from sklearn.model_selection import GridSearchCV
from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.inference import Variational
from sk_dnn2gp.training import FirstOrder
rng = np.random.default_rng(0)
X = rng.normal(size=(300, 5)); y = np.sin(3 * X[:, 0]) * X[:, 1] + 0.1 * rng.normal(size=300)
def loop(fit):
    print("fitting", flush=True)
    try:
        while True:
            fit()
    except KeyboardInterrupt:
        print("stopped", flush=True)  # what follows is the interpreter's own end
        raise
"""
LONG = "FirstOrder(max_iter=10**6, tol=0.0, n_iter_no_change=10**6)"
FITS = {
    "default": "m = DNN2GPRegressor(hidden_layer_sizes=(20,), n_restarts=50)\n"
    "loop(lambda: m.fit(X, y))",
    "first order": f"m = DNN2GPRegressor(prior_precision=1., noise_std=.1, solver={LONG})\n"
    "loop(lambda: m.fit(X, y))",
    "variational": "m = DNN2GPRegressor(hidden_layer_sizes=(5,), prior_precision=1., noise_std=.1, "
    "inference=Variational(max_iter=10**5))\nloop(lambda: m.fit(X, y))",
    "grid search": "m = GridSearchCV(DNN2GPRegressor(hidden_layer_sizes=(5,)), "
    "{'noise_std': np.logspace(-2, 0, 50)}, cv=5)\nloop(lambda: m.fit(X, y))",
    "grid search of first order": f"m = GridSearchCV(DNN2GPRegressor(solver={LONG}), "
    "{'noise_std': np.logspace(-2, 0, 50)}, cv=5)\nloop(lambda: m.fit(X, y))",
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", list(FITS))
def test_an_interrupt_ends_the_fit(name):
    run = [sys.executable, "-c", PREAMBLE + FITS[name]]
    # As at a terminal: a child of a shell in the background ignores the signal.
    child = subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "fitting\n"
        time.sleep(1.5)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        began = time.perf_counter()
        assert child.stdout.readline() == "stopped\n"
        assert time.perf_counter() - began < 2.0
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert errors.rstrip().splitlines()[-1].startswith("KeyboardInterrupt")
    assert child.returncode == -signal.SIGINT


class Swallows:
    """Meets an interrupt as it is copied and loses it, as ``copyreg._slotnames`` does."""

    def __deepcopy__(self, memo):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return self


@pytest.fixture
def own_interrupt():
    """Python's own handler, whatever the tests were started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("own_interrupt")
def test_an_interrupt_in_a_copy_is_not_lost():
    net = nn.Linear(2, 1)
    net.swallows = Swallows()
    A = np.random.default_rng(0).standard_normal((20, 2))
    model = DNN2GPRegressor(net, prior_precision=1.0, noise_std=0.3)
    with pytest.raises(KeyboardInterrupt):
        model.fit(A, A[:, 0])
    assert not hasattr(model, "module_")


def test_copies_leave_the_handler_of_others(own_interrupt):
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    assert isinstance(copied(Swallows()), Swallows)
    assert heard == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert isinstance(copied([Swallows()])[0], Swallows)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ------------------------------------------------------------------------ what would keep it


def pressed():
    signal.raise_signal(signal.SIGINT)


def swallowed():
    with contextlib.suppress(KeyboardInterrupt):
        pressed()


def replaced():
    try:
        pressed()
    except KeyboardInterrupt:
        raise RuntimeError("something else") from None


def in_a_callback():
    thing = Swallows()
    reference = weakref.ref(thing, lambda _: pressed())
    del thing
    assert reference() is None


class Named:
    def __set_name__(self, owner, name):
        pressed()


def in_the_making_of_a_class():
    """RuntimeError before Python 3.12."""
    type("Made", (), {"named": Named()})


class Meets(nn.Module):
    """Meets an interrupt in its call number ``at``, counted over all copies."""

    calls = at = 0
    how = staticmethod(pressed)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        Meets.calls += 1
        if Meets.calls == Meets.at:
            Meets.how()
        return self.linear(x).sin()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("solver", ["newton-cg", FirstOrder(max_iter=500)], ids=["newton", "adam"])
@pytest.mark.parametrize(
    "how", [pressed, swallowed, replaced, in_a_callback, in_the_making_of_a_class]
)
def test_an_interrupt_is_not_kept(how, solver, own_interrupt, monkeypatch):
    """Nor is it put off by more than a step, nor something else in its place."""
    A = np.random.default_rng(0).standard_normal((20, 2))
    model = DNN2GPRegressor(
        Meets, prior_precision=1.0, noise_std=0.3, n_restarts=1, random_state=0, solver=solver
    )
    monkeypatch.setattr(Meets, "calls", 0)
    model.fit(A, A[:, 0])
    whole, before = Meets.calls, dict(vars(model))
    monkeypatch.setattr(Meets, "how", staticmethod(how))
    for at in (1, whole // 3, whole // 2):
        monkeypatch.setattr(Meets, "calls", 0)
        monkeypatch.setattr(Meets, "at", at)
        with pytest.raises(KeyboardInterrupt):
            model.fit(A, A[:, 0])
        assert Meets.calls <= at + 20
        assert vars(model).keys() == before.keys()
        assert all(vars(model)[name] is value for name, value in before.items())


def surroundings():
    return (
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), signal.getsignal(signal.SIGINT),
    )  # fmt: skip


SHORT = {
    "search": DNN2GPRegressor(hidden_layer_sizes=(2,), n_restarts=1, random_state=0),
    "labels": DNN2GPClassifier(hidden_layer_sizes=(2,), prior_precision=1.0, random_state=0),
    "minibatches": DNN2GPRegressor(
        hidden_layer_sizes=(2,), prior_precision=1.0, noise_std=0.3, random_state=0,
        solver=FirstOrder(max_iter=2, batch_size=8),
    ),
    "variational": DNN2GPRegressor(
        hidden_layer_sizes=(2,), prior_precision=1.0, noise_std=0.3, random_state=0,
        inference=Variational(max_iter=2),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("own_interrupt")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", SHORT)
def test_an_interrupt_at_any_moment(kind):
    model = SHORT[kind]
    A = np.random.default_rng(0).standard_normal((20, 2))
    y = A[:, 0] > 0 if kind == "labels" else np.sin(A[:, 0])

    def fit():
        model.fit(A, y)

    fit()
    all_moments = moments(fit)
    assert len(all_moments) > 500
    met = 0
    for moment in random.Random(0).sample(all_moments, 30):
        before, around = dict(vars(model)), surroundings()
        try:
            lost = interrupted(fit, moment)
        except KeyboardInterrupt:
            lost, met = False, met + 1
        assert not lost, moment
        assert as_before(model, before), moment
        assert surroundings() == around, moment
    assert met >= 25  # some moments are of the first fit alone

"""Ctrl-C stops a fit at once, as KeyboardInterrupt, wherever it is."""

import contextlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from torch import nn

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp._utils.copies import copied

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

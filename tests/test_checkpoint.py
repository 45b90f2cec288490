"""A fit that was ended goes on from its checkpoint to the same result, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from skorch import NeuralNet
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor, save
from sk_dnn2gp._utils import checkpoint as room
from sk_dnn2gp._utils.checkpoint import Checkpoint
from sk_dnn2gp.inference import Variational
from sk_dnn2gp.posterior import LowRank
from sk_dnn2gp.training import FirstOrder, NewtonCG

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 3))
Y = np.sin(X[:, 0]) * X[:, 1] + 0.1 * RNG.standard_normal(30)
SMALL = {"hidden_layer_sizes": (4,), "random_state": 0}
FIXED = {**SMALL, "prior_precision": 1.0, "noise_std": 0.2}

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sk_dnn2gp.exceptions.ApproximationWarning"),
]

# Estimators, and the records or epochs after which each is ended.
FITS = {
    "search": (lambda: DNN2GPRegressor(**SMALL, n_restarts=2), (1, 20)),
    "labels": (lambda: DNN2GPClassifier(**SMALL, n_restarts=2), (4, 15)),
    "starts": (lambda: DNN2GPRegressor(**FIXED, n_restarts=3), (2,)),
    "groups": (lambda: DNN2GPRegressor(**SMALL, n_restarts=1, prior_groups="layer"), (12, 25)),
    "diagonal": (lambda: DNN2GPRegressor(**SMALL, n_restarts=2, posterior="diag"), (9,)),
    "last layer": (lambda: DNN2GPRegressor(**SMALL, n_restarts=2, posterior="last_layer"), (9,)),
    "low rank": (
        lambda: DNN2GPRegressor(**SMALL, n_restarts=1, posterior=LowRank(random_state=0)), (6,)
    ),
    "gauss-newton": (lambda: DNN2GPRegressor(**SMALL, n_restarts=2, solver="gauss-newton"), (9,)),
    "no factor": (lambda: DNN2GPRegressor(**SMALL, n_restarts=2, solver="lbfgs"), (9,)),
    "own": (
        lambda: DNN2GPRegressor(own(), random_state=0, n_restarts=2, solver=NewtonCG()), (3,)
    ),
    "minibatches": (
        lambda: DNN2GPRegressor(
            **SMALL, n_restarts=2,
            solver=FirstOrder(
                max_iter=25, batch_size=7, learning_rate_schedule="plateau", evidence_interval=4
            ),
        ), (3, 19, 25, 40),
    ),
    "cosine": (
        lambda: DNN2GPRegressor(
            **FIXED, solver=FirstOrder("sgd", max_iter=20, learning_rate_schedule="cosine")
        ), (11,),
    ),
    "stops early": (
        lambda: DNN2GPRegressor(
            **FIXED, n_restarts=2, solver=FirstOrder(max_iter=60, tol=1.0, n_iter_no_change=4)
        ), (3, 9),
    ),
    "variational": (
        lambda: DNN2GPRegressor(**SMALL, n_restarts=1, inference=Variational(max_iter=12)), (30,)
    ),
    "variational, diagonal, minibatches": (
        lambda: DNN2GPClassifier(
            **SMALL, prior_precision=1.0, posterior="diag",
            inference=Variational(max_iter=9, batch_size=10),
        ), (5,),
    ),
}  # fmt: skip


def own() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()


def targets(model):
    return Y > 0 if isinstance(model, DNN2GPClassifier) else Y


class Ended(BaseException):
    """As a signal would."""


def counted(monkeypatch, most=10**9):
    """Write after every record; end after so many. The list grows with every one."""
    kept = []

    def end_after(method):
        def wrapped(self, *given):
            method(self, *given)
            kept.append(given)
            if len(kept) == most:
                raise Ended

        return wrapped

    monkeypatch.setattr(room, "_INTERVAL", 0.0)
    for name in ("keep", "keep_state"):
        monkeypatch.setattr(Checkpoint, name, end_after(getattr(Checkpoint, name)))
    return kept


def everything(model, folder):
    """The saved file: all that there is to a fit."""
    save(model, folder / "model")
    return (folder / "model").read_bytes()


QUICK = {"search", "minibatches", "variational"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FITS]
)
def test_the_same_to_the_bit(name, tmp_path, monkeypatch):
    make, moments = FITS[name]
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)  # what a sketch took is kept with it
    y, path = targets(make()), tmp_path / "fit.checkpoint"
    whole = everything(make().fit(X, y), tmp_path)
    with monkeypatch.context() as patch:
        kept = counted(patch)
        make().fit(X, y, checkpoint=path)
    for moment in moments:
        with monkeypatch.context() as patch:
            counted(patch, moment)
            with pytest.raises(Ended):
                make().fit(X, y, checkpoint=path)
        assert path.exists()
        with monkeypatch.context() as patch:
            more = counted(patch)
            again = make().fit(X, y, checkpoint=path)
        assert len(more) == len(kept) - moment > 0  # nothing that was recorded is done again
        assert everything(again, tmp_path) == whole
        assert not path.exists()
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.slow
def test_a_killed_process_goes_on(tmp_path):
    code = (
        "import sys, warnings, numpy as np, sk_dnn2gp; warnings.simplefilter('ignore')\n"
        "from sk_dnn2gp._utils import checkpoint; checkpoint._INTERVAL = 0.1\n"
        "rng = np.random.default_rng(0); X = rng.normal(size=(150, 4)); y = np.sin(3 * X[:, 0])\n"
        "model = sk_dnn2gp.DNN2GPRegressor(hidden_layer_sizes=(8,), n_restarts=8, random_state=1)\n"
        "print('fitting', flush=True)\n"
        "path = None if sys.argv[1] == 'none' else sys.argv[1]\n"
        "sk_dnn2gp.save(model.fit(X, y, checkpoint=path), sys.argv[2])\n"
    )
    run = [sys.executable, "-c", code]
    path, found, whole = (str(tmp_path / name) for name in ("checkpoint", "found", "whole"))
    for _ in range(2):
        with subprocess.Popen([*run, path, found], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            deadline = time.monotonic() + 60
            before = os.path.getmtime(path) if os.path.exists(path) else 0.0
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
                if os.path.exists(path) and os.path.getmtime(path) > before:
                    break
            process.send_signal(signal.SIGTERM)
    assert os.path.exists(path) and not os.path.exists(found)
    subprocess.run([*run, path, found], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*run, "none", whole], check=True, stdout=subprocess.DEVNULL)
    with open(found, "rb") as one, open(whole, "rb") as other:
        assert one.read() == other.read()
    assert not os.path.exists(path)


def test_other_files_are_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    with monkeypatch.context() as patch:
        counted(patch, 3)
        with pytest.raises(Ended):
            DNN2GPRegressor(**SMALL).fit(X, Y, checkpoint=path)

    def refused(match, model, *data):
        with pytest.raises(ValueError, match=f"checkpoint=.* of another fit: {match} differ"):
            model.fit(*data, checkpoint=path)

    refused("X", DNN2GPRegressor(**SMALL), X + 1e-9, Y)
    refused("y", DNN2GPRegressor(**SMALL), X, -Y)
    refused("y, sample_weight", DNN2GPRegressor(**SMALL), X, Y, np.linspace(1, 2, 30))
    refused("solver", DNN2GPRegressor(**SMALL, solver=NewtonCG(tol=1e-6)), X, Y)
    refused("random_state", DNN2GPRegressor(**{**SMALL, "random_state": 1}), X, Y)
    with monkeypatch.context() as patch:
        patch.setattr(room, "__version__", "0.2.0")
        refused("the version of sk_dnn2gp", DNN2GPRegressor(**SMALL), X, Y)
    stale = path.read_bytes()
    path.write_bytes(stale[: len(stale) // 2])
    with pytest.raises(ValueError, match="checkpoint=.* is none of a fit"):
        DNN2GPRegressor(**SMALL).fit(X, Y, checkpoint=path)
    assert path.read_bytes() == stale[: len(stale) // 2]  # nothing of the user's is deleted


def test_what_cannot_go_on_is_refused_before_any_work(tmp_path):
    for state in (None, np.random.RandomState(0)):
        with pytest.raises(ValueError, match="needs random_state to be a whole number"):
            DNN2GPRegressor(random_state=state).fit(X, Y, checkpoint=tmp_path / "c")
    net = NeuralNet(nn.Linear, nn.MSELoss, module__in_features=3, module__out_features=1)
    with pytest.raises(ValueError, match="net is a skorch net, whose own callbacks"):
        DNN2GPRegressor(net, random_state=0).fit(X, Y, checkpoint=tmp_path / "c")
    assert not os.listdir(tmp_path)

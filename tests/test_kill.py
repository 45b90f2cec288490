"""SIGINT and SIGTERM at random moments: all or nothing, at once, and no process left behind.

A process that has imported everything forks one child after the other, sends each a signal at a
random moment of its work, and tells what became of it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest

FITS = ("search of the prior", "minibatches", "variational")
KINDS = (*FITS, "grid", "grid of processes", "save")
# Seconds from the signal to the end, beyond the running matrix operation: those here are short.
PROMPT = 1.0


def told(kind: str, name: str, times: int, seed: int = 0) -> list[dict]:
    """What became of every child; what they said besides is printed, for a test that fails."""
    command = [sys.executable, __file__, kind, name, str(times), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kind: str, name: str, times: int) -> None:
    for one in told(kind, name, times):
        assert one["end"] == ("as before" if name == "SIGINT" else "SIGTERM"), one
        assert one["seconds"] < PROMPT, one
        assert one["orphans"] == 0, one
        assert one["file"] in ("none", "whole"), one


posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX")


@posix
@pytest.mark.parametrize("kind", ["search of the prior", "save"])
def test_a_signal_ends_it_at_once(kind):
    check(kind, "SIGINT", 2)
    check(kind, "SIGTERM", 2)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_moments(kind, name):
    """Fifty for every signal, over all kinds; workers of processes take seconds to begin."""
    check(kind, name, {"grid of processes": 4, "save": 10}.get(kind, 9))


# ---------------------------------------------------------------------------- the other process


def work(kind: str, path: Path):
    """A fitted estimator, and what goes on and on with it."""
    import numpy as np
    from sklearn.model_selection import GridSearchCV

    from sk_dnn2gp import DNN2GPRegressor, save
    from sk_dnn2gp.inference import Variational
    from sk_dnn2gp.training import FirstOrder

    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    y = np.sin(3 * X[:, 0]) * X[:, 1] + 0.1 * rng.normal(size=80)
    fixed = {"hidden_layer_sizes": (5,), "prior_precision": 1.0, "noise_std": 0.2}
    grid = {"noise_std": np.logspace(-2, 0, 20)}
    long = FirstOrder(max_iter=10**6, batch_size=20, tol=0.0, n_iter_no_change=10**6)
    estimators = {
        "search of the prior": DNN2GPRegressor(hidden_layer_sizes=(5,), n_restarts=50),
        "minibatches": DNN2GPRegressor(**fixed, solver=long),
        "variational": DNN2GPRegressor(**fixed, inference=Variational(max_iter=10**5)),
    }
    model = estimators.get(kind, DNN2GPRegressor(**fixed, random_state=0))
    settings = model.get_params()
    model.set_params(**fixed, n_restarts=1, inference="laplace", solver="auto").fit(X, y)
    if kind.startswith("grid"):
        model = GridSearchCV(model, grid, cv=3).fit(X, y)
        # Processes are the child's own: a pool that is forked with it is no one's.
        model.set_params(n_jobs=2 if kind == "grid of processes" else None)
        return model, lambda: model.fit(X, y)
    if kind == "save":
        return model, lambda: save(model, path)
    model.set_params(**settings)
    return model, lambda: model.fit(X, y)


def as_before(model, before: dict) -> bool:
    """Every attribute the same object, or every one of a fit that was done already."""
    now, plain = vars(model), bool | int | float | str | None
    fitted = [n for n, v in before.items() if n.endswith("_") and not isinstance(v, plain)]
    same = [now.get(name) is before[name] for name in fitted]
    return now.keys() == before.keys() and (all(same) or not any(same))


def pressed_again(unraisable) -> None:
    """Python drops an interrupt that it meets in a weak reference's callback or a destructor, and
    says so: whoever waits presses again. A fit needs no second one."""
    sys.__unraisablehook__(unraisable)
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)


def child(model, go_on, ready: int) -> None:
    """Work until a signal comes; the exit status tells whether the model is as before.

    A byte to ``ready`` says that signals may come: to workers when they are at work, which then
    hear of the end of a process that SIGTERM ends.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    faulthandler.register(signal.SIGUSR1)
    os.setsid()
    os.dup2(2, 1)  # what joblib's workers print when they are ended is no line of the telling
    status, before = 3, dict(vars(model))
    try:
        if getattr(model, "n_jobs", None):
            go_on()
        os.write(ready, b".")
        while True:
            before = dict(vars(model))
            go_on()
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0.0)  # one press was enough
        status = 0 if as_before(model, before) else 4
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def orphans(session: int) -> list[int]:
    """Processes of the child's session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def left_behind(session: int) -> list[int]:
    """Those that are still there after five seconds; they are ended."""
    deadline = time.perf_counter() + 5.0
    while (found := orphans(session)) and time.perf_counter() < deadline:
        time.sleep(0.05)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return found


def end_of(pid: int) -> str:
    """What ended the child; one that goes on for half a minute tells where it is, and is killed."""
    deadline = time.perf_counter() + 30.0
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.perf_counter() < deadline:
        time.sleep(0.001)
    if ended[0] == 0:
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "nothing"
    status = ended[1]
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return {0: "as before", 4: "changed"}.get(os.WEXITSTATUS(status), "an error")


def state_of(path: Path) -> str:
    from sk_dnn2gp import load

    if not path.exists():
        return "none"
    load(path)
    return "whole"


def main(kind: str, name: str, times: str, seed: str) -> None:
    warnings.simplefilter("ignore")
    draws = random.Random(f"{kind} {name} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model, go_on = work(kind, path)
        for _ in range(int(times)):
            heard, ready = os.pipe()
            pid = os.fork()
            if pid == 0:
                if kind not in FITS:
                    sys.unraisablehook = pressed_again
                child(model, go_on, ready)
            os.close(ready)
            os.read(heard, 1)
            os.close(heard)
            time.sleep(draws.uniform(0.0, 1.6))
            os.kill(pid, signal.Signals[name])
            began = time.perf_counter()
            end, seconds = end_of(pid), time.perf_counter() - began
            rest = len(left_behind(pid))
            line = {"end": end, "seconds": seconds, "orphans": rest, "file": state_of(path)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

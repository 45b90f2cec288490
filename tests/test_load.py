"""Many fits, many threads, memory that is only lent: nothing leaks and nothing is shared."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from sklearn.model_selection import GridSearchCV

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.posterior import Full
from sk_dnn2gp.training import FirstOrder

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 3))
Y = np.sin(X[:, 0]) + 0.1 * RNG.standard_normal(30)
NEW = RNG.standard_normal((40, 3))
OPTIONS = {"hidden_layer_sizes": (5,), "n_restarts": 1, "prior_precision": 1.0, "noise_std": 0.2}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def regressor(**options):
    return DNN2GPRegressor(**{**OPTIONS, "random_state": 0, **options})


def minibatches(seed):
    return regressor(solver=FirstOrder(max_iter=15, batch_size=8), random_state=seed)


def resident_kib():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1])


def number_of_tensors():
    """By type: asking torch's own lazy objects for their class warns."""
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["newton-cg", FirstOrder(max_iter=5)], ids=["newton", "adam"])
def test_a_hundred_fits_leak_nothing(solver):
    """Memory after 30 fits and after 130, in use and on loan from the system."""
    try:
        resident_kib()
    except OSError:
        pytest.skip("the system does not say how much memory is in use")

    def fit():
        regressor(solver=solver).fit(X, Y).predict(NEW, return_std=True)

    for _ in range(30):
        fit()
    gc.collect()
    before = resident_kib()
    tensors = number_of_tensors()
    for _ in range(100):
        fit()
    gc.collect()
    assert resident_kib() <= 1.05 * before
    assert number_of_tensors() <= tensors


@pytest.mark.parametrize(
    "model",
    [
        regressor(),
        regressor(posterior="diag"),
        regressor(hidden_layer_sizes=(30,)),
        regressor(net=torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        ), hidden_layer_sizes=(50,)),
    ],
    ids=["weight space", "diagonal", "function space", "own"],
)  # fmt: skip
def test_eight_threads_predict_as_one(model):
    model.fit(X, Y)
    parts = [NEW[i::8] for i in range(8)] * 4
    alone = [model.predict(part, return_std=True) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda part: model.predict(part, return_std=True), parts))
    for one, other in zip(alone, together, strict=True):
        # Matrix products of a thread are of another number of cores: rounding may differ.
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


def test_threads_that_fit_with_minibatches_do_not_meet():
    """Each has the draws that it has alone, and the global generators are as before."""
    seeds = range(6)
    alone = [minibatches(seed).fit(X, Y).predict(NEW) for seed in seeds]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with ThreadPoolExecutor(len(seeds)) as pool:
        together = list(pool.map(lambda seed: minibatches(seed).fit(X, Y).predict(NEW), seeds))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_a_failed_fit_in_a_thread_lets_others_go_on():
    def fit(seed):
        model = minibatches(seed)
        if seed == 1:
            model.set_params(posterior=Full(memory_limit=1e-6))
        try:
            return model.fit(X, Y).predict(NEW)
        except MemoryError:
            return None

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(fit, range(3)))
    assert found[1] is None
    np.testing.assert_array_equal(found[2], minibatches(2).fit(X, Y).predict(NEW))
    assert threading.active_count() < 50


def test_read_only_memory_maps(tmp_path):
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", Y)
    mapped, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "Xy")
    expected = regressor().fit(X, Y)
    model = regressor().fit(mapped, y, np.broadcast_to(1.0, len(y)))
    np.testing.assert_array_equal(model.predict(mapped), expected.predict(X))
    frozen = X.copy()
    frozen.setflags(write=False)
    labels = Y > 0
    labels.setflags(write=False)
    classifier = DNN2GPClassifier(hidden_layer_sizes=(3,), prior_precision=1.0)
    assert classifier.fit(frozen, labels).predict_proba(frozen).shape == (30, 2)


def test_arrays_that_joblib_shares():
    """Workers get X as a read-only memory map."""
    alone = [regressor(noise_std=s).fit(X, Y).predict(NEW) for s in (0.1, 0.5)]
    work = Parallel(n_jobs=2, max_nbytes=1)(
        delayed(_fitted_mean)(X, Y, NEW, sigma) for sigma in (0.1, 0.5)
    )
    for one, (other, writeable) in zip(alone, work, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
        assert not writeable
    search = GridSearchCV(regressor(), {"noise_std": [0.1, 0.5]}, n_jobs=2, cv=2).fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def _fitted_mean(X, y, new, sigma):
    return regressor(noise_std=sigma).fit(X, y).predict(new), X.flags.writeable

"""Sums over rows by several workers: the same numbers, and none lost when a worker dies."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from joblib import delayed, parallel_config
from numpy.testing import assert_allclose

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp._utils import parallel
from sk_dnn2gp._utils.parallel import Kept, n_workers, over_workers
from sk_dnn2gp._utils.rows import Streamed
from sk_dnn2gp.kernels import ConvNetKernel, InfiniteNTKKernel
from sk_dnn2gp.kernels.infinite import base
from sk_dnn2gp.likelihoods import Categorical
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.linearize.shared import SharedPass
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior.products import ScaledFeatures
from sk_dnn2gp.training import NewtonCG
from sk_dnn2gp.training.objective import Objective, TrainingData

N, K = 31, 3  # no multiple of the number of workers
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.standard_normal((N, 4)))
Y = torch.tensor(RNG.integers(0, K, N))
ROWS = np.random.default_rng(1).standard_normal((60, 3))
TARGETS = np.sin(ROWS[:, 0]) + 0.1 * RNG.standard_normal(60)
# Sums over 31 rows in another order: a few units in the last place of float64.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def dask():
    """Two processes of a local cluster, as joblib's backend."""
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster):
        yield cluster


@pytest.fixture(
    params=[
        "threading",
        "loky",
        pytest.param("dask", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]),
    ]
)
def workers(request, monkeypatch):
    """Two workers, for however little work."""
    if request.param == "dask":
        request.getfixturevalue("dask")
    monkeypatch.setattr(parallel, "_LEAST", 0.0)
    with parallel_config(request.param, n_jobs=2):
        assert n_workers(1.0) == 2
        yield request.param


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    lin = Linearization(MLP(4, (5,), K), dtype=torch.float64)
    lin.outputs(X[:1])
    lin = lin.at(lin.weights())
    return LinearModel.from_laplace(lin, X, Y, Categorical(), 0.7)


def operations(model, X):
    """Every sum over rows that is shared."""
    lin, L = model.linearization, model.noise_factor
    P = model.n_params
    V = torch.linspace(-1, 1, 2 * P, dtype=torch.float64).view(P, 2)
    U = torch.linspace(-1, 1, 2 * N * K, dtype=torch.float64).view(N * K, 2)
    features = ScaledFeatures(model)
    passed = lin.forward(X)
    data = TrainingData(X, Y, torch.ones(N, dtype=torch.float64))
    point = Objective(lin, data, Categorical(), model.prior_precision).at(model.weights)
    return {
        "outputs": lin.outputs(X),
        "ggn": lin.ggn(X, cotangents=L),
        "ggn of f": lin.ggn(X, cotangents=lambda f: f[..., None]),
        "ggn diagonal": lin.ggn_diagonal(X, cotangents=L),
        "squared gradients": lin.squared_gradients(X, L[..., 0]),
        "jvp": lin.jvp(X, V),
        "jvp of one": lin.jvp(X, V[:, 0]),
        "vjp": lin.vjp(X, L),
        "pass": passed.outputs,
        "pull": passed.pull(L[..., 0]),
        "gradient": point.gradient,
        "hessian": torch.stack([point.hessian_product(v) for v in V.mT]),
        "squared norm": torch.tensor(features.squared_norm),
        "gram times": features.gram_times(V),
        "times": features.times(V),
        "squared columns": features.squared_columns(V),
        "transpose times": features.transpose_times(U),
    }


@pytest.mark.parametrize("given", ["tensor", "rows"])
def test_every_sum_is_that_of_one_process(workers, model, given, monkeypatch):
    with parallel_config("sequential"):
        expected = operations(model, X)
    rows = X if given == "tensor" else Streamed.of(X.numpy())
    model = LinearModel(**{**vars_of(model), "X": rows})
    assert isinstance(model.linearization.forward(rows), SharedPass)
    for name, found in operations(model, rows).items():
        assert_allclose(found, expected[name], err_msg=name, **CLOSE)


def vars_of(model):
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def fitted(**options):
    """To a minimum whose weights are known to 1e-12, so that the order of sums does not show."""
    return DNN2GPRegressor(
        hidden_layer_sizes=(5,), prior_precision=1.0, noise_std=0.3, n_restarts=1, random_state=0,
        **{"solver": NewtonCG(tol=1e-13), **options},
    ).fit(ROWS, TARGETS)  # fmt: skip


def numbers(model):
    new = 1.1 * ROWS[::3]
    mean, std = model.predict(new, return_std=True)
    return np.concatenate([mean, std, [model.log_marginal_likelihood_value_]])


@pytest.mark.parametrize("posterior", ["full", "low_rank", "diag"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_fit_is_that_of_one_process(workers, posterior):
    with parallel_config("sequential"):
        expected = numbers(fitted(posterior=posterior))
    # A mean near zero is a difference of terms of size one.
    assert_allclose(numbers(fitted(posterior=posterior)), expected, rtol=1e-10, atol=1e-10)


def test_a_classifier_predicts_as_in_one_process(workers):
    with parallel_config("sequential"):
        model = DNN2GPClassifier(
            hidden_layer_sizes=(4,), prior_precision=1.0, n_restarts=1, random_state=0
        ).fit(X.numpy(), Y.numpy())
        expected = model.predict_proba(X.numpy())
    assert_allclose(model.predict_proba(X.numpy()), expected, **CLOSE)


@pytest.mark.parametrize(
    "kernel", [InfiniteNTKKernel(2), ConvNetKernel(1, filter_size=1, image_shape=(1, 2, 2))]
)
def test_panels_of_an_infinite_kernel(workers, kernel, monkeypatch):
    rows, sent = X.numpy(), []
    with parallel_config("sequential"):
        expected = kernel(rows, eval_gradient=True)
    monkeypatch.setattr(base, "delayed", lambda f: sent.append(1) or delayed(f))
    found = kernel(rows, eval_gradient=True)
    assert len(sent) > 2  # panels, one a task
    for one, other in zip(found, expected, strict=True):
        assert_allclose(one, other, **CLOSE)


def test_small_sums_are_not_handed_out():
    with parallel_config("loky", n_jobs=2):
        assert n_workers(1e6) == 1
        assert n_workers(1e12) == 2
    assert n_workers(1e12) == 1  # without a word of the user's


# -------------------------------------------------------------------------------- what is sent


def _sum(values, factor):
    return values.sum() * factor


def test_what_is_kept_is_sent_once(workers):
    values = [Kept(np.arange(5.0)), Kept(np.arange(7.0))]
    tasks = [(value, 2.0) for value in values]
    for _ in range(3):
        assert [float(v) for v in over_workers(_sum, tasks)] == [20.0, 42.0]
    assert not any(parallel._packed(task, whole=False)[1] for task in tasks)
    assert all(parallel._packed(task, whole=True)[1] for task in tasks)


def test_what_a_worker_has_forgotten_is_sent_again(workers):
    one = Kept(np.arange(5.0))
    one.was_sent = True  # and no worker has it
    assert [float(v) for v in over_workers(_sum, [(one, 1.0), (one, 2.0)])] == [10.0, 20.0]


def test_an_error_of_the_work_is_the_users(workers):
    with pytest.raises(TypeError, match="unsupported operand"):
        over_workers(_sum, [(np.ones(2), None), (np.ones(2), None)])


# ------------------------------------------------------------------------------- workers that die


def _dies_once(values, path):
    """Ends its process in the middle of the work, the first time that it is asked."""
    time.sleep(0.2)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return values.sum()
    os.kill(os.getpid(), signal.SIGKILL)


def _dies(values):
    os.kill(os.getpid(), signal.SIGKILL)


DEADLY = pytest.mark.filterwarnings("ignore")  # the backends' own words about the death


@DEADLY
@pytest.mark.slow
@pytest.mark.parametrize("workers", ["loky"], indirect=True)
def test_a_killed_process_loses_nothing(workers, tmp_path):
    tasks = [(Kept(np.arange(n)), str(tmp_path / "died")) for n in (5, 7, 9)]
    assert [float(v) for v in over_workers(_dies_once, tasks)] == [10.0, 21.0, 36.0]
    assert (tmp_path / "died").exists()


@DEADLY
@pytest.mark.slow
def test_a_killed_worker_of_a_cluster_loses_nothing(dask, tmp_path):
    with parallel_config("dask"):
        tasks = [(Kept(np.arange(n)), str(tmp_path / "died")) for n in (5, 7, 9)]
        assert [float(v) for v in over_workers(_dies_once, tasks)] == [10.0, 21.0, 36.0]
    assert (tmp_path / "died").exists()


@DEADLY
@pytest.mark.slow
@pytest.mark.parametrize("workers", ["loky"], indirect=True)
def test_workers_that_always_die_are_named(workers):
    with pytest.raises(RuntimeError, match=r"Workers died in 3 rounds.*working_memory"):
        over_workers(_dies, [(np.ones(2),), (np.ones(3),)])

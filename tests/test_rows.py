"""Rows from files and Datasets: read a part at a time, to the same numbers as arrays."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNetRegressor
from skorch.dataset import Dataset as SkorchDataset
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp._utils.rows import Streamed, is_mapped, moments
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.persistence import load, save
from sk_dnn2gp.training import FirstOrder

RNG = np.random.default_rng(0)
N = 120
A = RNG.standard_normal((N, 3)).astype(np.float32)
Y = np.sin(2 * A[:, 0]) + 0.1 * RNG.standard_normal(N)
NEW = RNG.standard_normal((11, 3)).astype(np.float32)
OPTIONS = {"hidden_layer_sizes": (6,), "n_restarts": 1, "random_state": 0}
PAIRS = TensorDataset(torch.tensor(A), torch.tensor(Y))


@pytest.fixture
def mapped(tmp_path):
    """The rows in a file, read-only."""
    A.tofile(tmp_path / "rows")
    return np.memmap(tmp_path / "rows", dtype=np.float32, mode="r", shape=A.shape)


def regressor(**options):
    return DNN2GPRegressor(**{**OPTIONS, "prior_precision": 1.0, "noise_std": 0.3, **options})


def numbers(model, X):
    mean, std = model.predict(X, return_std=True)
    return np.concatenate([mean, std, [model.log_marginal_likelihood_value_]])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prior_precision": "auto", "noise_std": "auto"},
        {"posterior": "low_rank"},
        {"posterior": "kronecker"},
        {"solver": FirstOrder(max_iter=5, batch_size=32)},
        {"inference": "vi"},
    ],
    ids=["fixed", "auto", "low rank", "kronecker", "minibatches", "vi"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_file_gives_what_an_array_gives(mapped, options):
    """To the last digits: float32 values are cast to the same float64 values, part by part."""
    expected = numbers(regressor(**options).fit(A, Y), NEW)
    model = regressor(**options).fit(mapped, Y)
    assert_allclose(numbers(model, NEW), expected, rtol=1e-9)
    assert model.linear_model_.X.dtype in (torch.float32, torch.float64)
    assert is_mapped(model.linear_model_.X._read.X)


def test_prediction_reads_a_file(mapped):
    model = regressor().fit(A, Y)
    assert_array_equal(numbers(model, mapped), numbers(model, np.array(mapped)))


@pytest.mark.parametrize(
    "given",
    [PAIRS, DataLoader(PAIRS, batch_size=7, shuffle=True, drop_last=True), SkorchDataset(A, Y)],
    ids=["torch", "loader", "skorch"],
)
def test_a_dataset_gives_what_an_array_gives(given):
    """With its own y, in its own order, whatever order and batches a loader would take."""
    model = regressor().fit(given)
    assert_allclose(numbers(model, NEW), numbers(regressor().fit(A, Y), NEW), rtol=1e-9)
    assert_array_equal(model.predict(given), model.predict(A))
    value = model.log_marginal_likelihood(X=given, y=Y)
    assert_allclose(value, model.log_marginal_likelihood_value_, rtol=1e-12)


def test_y_beside_a_dataset_of_inputs():
    inputs = [(x,) for x in torch.tensor(A)]

    class Inputs(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return inputs[i][0]

    model = regressor().fit(Inputs(), Y)
    assert_allclose(numbers(model, NEW), numbers(regressor().fit(A, Y), NEW), rtol=1e-9)
    with pytest.raises(ValueError, match="hold no y"):
        regressor().fit(Inputs())


def test_a_classifier_reads_files_and_datasets(mapped):
    labels = np.where(Y > 0, "up", "down")
    options = {**OPTIONS, "prior_precision": 1.0}
    expected = DNN2GPClassifier(**options).fit(A, labels).predict_proba(NEW)
    found = DNN2GPClassifier(**options).fit(mapped, labels).predict_proba(NEW)
    assert_allclose(found, expected, rtol=1e-9)
    codes = TensorDataset(torch.tensor(A), torch.tensor((Y > 0).astype(int)))
    assert_allclose(DNN2GPClassifier(**options).fit(codes).predict_proba(NEW), expected, rtol=1e-9)


def test_rows_of_weight_zero_in_a_file(mapped):
    weight = np.where(np.arange(N) % 3 == 0, 0.0, 1.5)
    expected = regressor().fit(A[weight > 0], Y[weight > 0], weight[weight > 0])
    found = regressor().fit(mapped, Y, weight)
    assert_allclose(numbers(found, NEW), numbers(expected, NEW), rtol=1e-9)
    assert isinstance(found.linear_model_.X, Streamed)


def test_whole_numbers_in_a_file(tmp_path):
    """Bytes, as images are stored, become the real numbers that a network takes."""
    pixels = np.random.default_rng(1).integers(0, 255, (40, 4)).astype(np.uint8)
    pixels.tofile(tmp_path / "bytes")
    file = np.memmap(tmp_path / "bytes", dtype=np.uint8, mode="r", shape=pixels.shape)
    expected = regressor().fit(pixels.astype(float), pixels[:, 0] / 255)
    found = regressor().fit(file, pixels[:, 0] / 255)
    assert_allclose(numbers(found, file), numbers(expected, pixels.astype(float)), rtol=1e-9)


# ------------------------------------------------------------------------- a skorch net's iterators


def halved(items):
    """A collate function that the network's inputs depend on."""
    x, y = default_collate(items)
    return 0.5 * x, y


def skorch_net(**options):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    return NeuralNetRegressor(
        module, max_epochs=3, lr=0.05, verbose=0, train_split=None, batch_size=16, **options
    )


def test_a_frozen_net_reads_by_its_own_iterator():
    net = skorch_net(iterator_train__collate_fn=halved, iterator_valid__collate_fn=halved)
    net.fit(A, Y[:, None].astype(np.float32))
    model = regressor(net=FrozenEstimator(net), hidden_layer_sizes=(50,)).fit(PAIRS)
    assert_allclose(model.predict(PAIRS), net.predict(PAIRS)[:, 0], rtol=1e-5)
    assert_allclose(model.predict(PAIRS), model.predict(0.5 * A), rtol=1e-6)


def test_a_net_of_ones_own_is_trained_from_a_dataset():
    expected = regressor(net=skorch_net(), hidden_layer_sizes=(50,)).fit(A, Y)
    found = regressor(net=skorch_net(), hidden_layer_sizes=(50,)).fit(PAIRS)
    assert_allclose(found.predict(NEW), expected.predict(NEW), rtol=1e-4)


def test_an_iterator_that_drops_rows_is_named():
    net = skorch_net(iterator_valid__drop_last=True)
    with pytest.raises(ValueError, match=r"has 120 rows.* 0 came.*no drop_last"):
        regressor(net=net, hidden_layer_sizes=(50,)).fit(PAIRS)


# ------------------------------------------------------------------------------------- bad datasets


class Short(Dataset):
    """Ends before its length."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        if i >= 80:
            raise IndexError(i)
        return A[i], Y[i]


class Endless(IterableDataset):
    def __iter__(self):
        yield from zip(A, Y, strict=True)


class Spoiled(TensorDataset):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return (x * float("nan"), y) if i == 70 else (x, y)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Short(), ValueError, r"Short says that it has 120 rows.*__len__"),
        (Endless(), TypeError, r"Endless has no length.*memmap"),
        (Spoiled(*PAIRS.tensors), ValueError, "Input X contains NaN"),
        (SkorchDataset(A, None), ValueError, "hold no y"),
    ],
    ids=["short", "endless", "nan", "no y"],
)
def test_a_bad_dataset_is_named(dataset, error, message):
    with pytest.raises(error, match=message):
        regressor().fit(dataset)


def test_y_of_another_length_is_named(mapped):
    for X in (mapped, PAIRS):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            regressor().fit(X, Y[:-1])


def test_other_features_are_named():
    model = regressor().fit(PAIRS)
    with pytest.raises(ValueError, match="features"):
        model.predict(TensorDataset(torch.tensor(A[:, :2])))


# ----------------------------------------------------------------------------- every sum over rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_operation_reads_parts(dtype):
    """Of a linearisation, at a memory limit of a few rows: rows read equal rows given."""
    torch.manual_seed(0)
    lin = Linearization(MLP(3, (6,), 2).to(dtype), dtype=torch.float64, memory_limit=0.01)
    X = torch.tensor(A[:30])
    rows, whole = Streamed.of(A[:30]), X.double()
    L = torch.eye(2, dtype=torch.float64).expand(30, 2, 2)
    u = torch.arange(60.0, dtype=torch.float64).view(30, 2)
    lin.outputs(whole[:1])
    v = torch.linspace(-1, 1, lin.n_params, dtype=torch.float64)
    for name, extra in {
        "outputs": (), "rows": (), "gram": (), "gram_trace": (), "diagonal_blocks": (),
        "ggn_diagonal": (), "ggn": (), "jvp": (v,), "vjp": (u,), "squared_gradients": (u,),
    }.items():  # fmt: skip
        expected = getattr(lin, name)(whole, *extra)
        assert torch.equal(getattr(lin, name)(rows, *extra), expected), name
    assert torch.equal(lin.gram(rows, whole[:5]), lin.gram(whole, whole[:5]))
    assert torch.equal(lin.ggn(rows, cotangents=L), lin.ggn(whole, cotangents=L))
    assert torch.equal(lin.forward(rows).pull(u), lin.forward(whole).pull(u))


def test_parts_of_rows():
    rows = Streamed.of(A).take(slice(10, 50))
    assert_array_equal(rows[:], A[10:50])
    assert_array_equal(rows[torch.tensor([3, 1])], A[[13, 11]])
    assert_array_equal(rows[2], A[12])
    assert_array_equal(rows.take(np.array([5, 0]))[:], A[[15, 10]])
    assert rows.to(torch.float64)[:2].dtype == torch.float64
    assert rows.shape == (40, 3) and rows.ndim == 2 and len(rows) == 40


def test_moments_are_those_of_the_features(mapped):
    weight = RNG.random(N)
    mean = (weight[:, None] * A.astype(float)).sum(0) / weight.sum()
    variance = (weight[:, None] * (A - mean) ** 2).sum(0) / weight.sum()
    for X in (A, mapped, Streamed.of(mapped)):
        found = moments(X, weight)
        assert_allclose(found[0], mean, rtol=1e-12)
        assert_allclose(found[1], np.sqrt(variance), rtol=1e-12)


def test_an_estimator_of_a_file_is_stored_whole(mapped, tmp_path):
    model = regressor().fit(mapped, Y)
    save(model, tmp_path / "model")
    for again in (load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        assert_array_equal(numbers(again, NEW), numbers(model, NEW))
        assert not is_mapped(again.linear_model_.X)


# ------------------------------------------------------------------------------------------- memory

MEASURE = """
import resource, sys, warnings
import numpy as np, sklearn, torch
from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.posterior import LowRank
path, n, d, working, bound, kind = sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6]
warnings.simplefilter("ignore")
torch.set_num_threads(1)
sklearn.set_config(working_memory=working)
posterior = LowRank(max_rank=20) if kind == "low_rank" else kind
model = DNN2GPRegressor(hidden_layer_sizes=(1,), prior_precision=1.0, noise_std=0.5, n_restarts=1,
                        posterior=posterior, solver=sys.argv[7], random_state=0)
model.set_params(solver__max_iter=3)
small = np.random.default_rng(0).standard_normal((50, d)).astype(np.float32)
model.fit(small, small[:, 0]).predict(small, return_std=True)
X = np.memmap(path, dtype=np.float32, mode="r", shape=(n, d))
y = np.array(X[:, 0], dtype=np.float64)
with open("/proc/self/status") as lines:
    held = next(int(line.split()[1]) for line in lines if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + bound * 2**20,) * 2)
model.fit(X, y)
model.predict(X, return_std=True)
print("done")
"""


def within(tmp_path, n, d, bound, kind="full", solver="lbfgs", working=12):
    """Whether a fit and a prediction need less than ``bound`` MiB beside what was held before."""
    rows = np.lib.format.open_memmap(tmp_path / "made.npy", "w+", np.float32, (n, d))
    generator = np.random.default_rng(0)
    for start in range(0, n, 10_000):
        rows[start : start + 10_000] = generator.standard_normal((len(rows[start:][:10_000]), d))
    rows.tofile(tmp_path / "rows")
    arguments = [tmp_path / "rows", n, d, working, bound, kind, solver]
    # Arrays that are freed go back to the system: what is measured is arrays, not holes between
    # them. A threshold that is given is one that glibc leaves alone.
    glibc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    return subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, **glibc},
    )  # fmt: skip


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")


@LINUX
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_memory_of_a_fit_is_less_than_its_rows(tmp_path, kind):
    """61 MiB of rows (twice that in float64) within 36 MiB, three times the working memory."""
    done = within(tmp_path, 20_000, 800, 36, kind)
    assert "done" in done.stdout, done.stderr[-2000:]


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "solver"),
    [("full", "lbfgs"), ("full", "adam"), ("low_rank", "lbfgs"), ("diag", "lbfgs")],
)
def test_memory_of_a_larger_fit(tmp_path, kind, solver):
    """488 MiB of rows within 100 MiB, four times the working memory."""
    done = within(tmp_path, 160_000, 800, 100, kind, solver, working=24)
    assert "done" in done.stdout, done.stderr[-2000:]


@LINUX
def test_the_limit_is_felt(tmp_path):
    """The measure itself: what does not fit fails."""
    done = within(tmp_path, 20_000, 800, 1)
    assert done.returncode != 0 and "done" not in done.stdout

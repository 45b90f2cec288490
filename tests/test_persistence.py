"""Files of fitted estimators: the same to the bit, whole or not at all, and no code in them."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from skorch import NeuralNet
from torch import nn

from sk_dnn2gp import (
    DNN2GPClassifier,
    DNN2GPRegressor,
    MixtureClassifier,
    MixtureRegressor,
    NNGPClassifier,
    load,
    save,
)
from sk_dnn2gp._utils.tensor_file import read
from sk_dnn2gp.inference import Laplace, LinearizedVariational, Variational
from sk_dnn2gp.likelihoods import Poisson, StudentT
from sk_dnn2gp.posterior import Full, Kronecker, LowRank, SubsetOfData, SubsetOfWeights
from sk_dnn2gp.training import FirstOrder, NewtonCG

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 2))
Y = np.sin(X[:, 0]) + 0.1 * RNG.standard_normal(24)
LABELS = np.array(["no", "perhaps", "yes"])[np.digitize(X[:, 0], [-0.4, 0.4])]
NEW = RNG.standard_normal((5, 2))
SMALL = {"hidden_layer_sizes": (3,), "random_state": 0, "n_restarts": 1}
FIXED = {**SMALL, "prior_precision": 0.7}

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sk_dnn2gp.exceptions.ApproximationWarning"),
]


class Net(nn.Module):
    """A network of the user's: a tied layer, a buffer, weights that are held, float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.second = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.second.weight
        self.held = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("shift", torch.tensor([0.3]))
        self.last = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x)) + self.shift
        h = h + self.tied(torch.tanh(self.second(h))) + self.held(h)
        return self.last(h)


def module() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def regressor(**options):
    return DNN2GPRegressor(**{**FIXED, "noise_std": 0.2, **options}).fit(X, Y)


def own(**options):
    defaults = {"random_state": 0, "n_restarts": 1, "prior_precision": 0.7, "noise_std": 0.2}
    return DNN2GPRegressor(**{**defaults, **options})


def classifier(y=LABELS, **options):
    return DNN2GPClassifier(**{**FIXED, **options}).fit(X, y)


def frozen():
    net = NeuralNet(module(), criterion=nn.MSELoss, verbose=0).initialize()
    return own(net=FrozenEstimator(net)).fit(X, Y)


MAKERS = {
    "auto": lambda: DNN2GPRegressor(**SMALL).fit(X, Y),
    "function space": lambda: regressor(hidden_layer_sizes=(20,)),
    "two outputs": lambda: DNN2GPRegressor(**FIXED, noise_std=0.1).fit(X, np.c_[Y, -Y]),
    "weights of rows": lambda: DNN2GPRegressor(**FIXED).fit(X, Y, np.linspace(0, 2, 24)),
    "diag": lambda: regressor(posterior="diag"),
    "low rank": lambda: regressor(posterior=LowRank(max_rank=4, random_state=0)),
    "kronecker": lambda: classifier(posterior=Kronecker()),
    "counts": lambda: DNN2GPRegressor(**SMALL, likelihood=Poisson()).fit(X, np.round(3 + Y)),
    "outliers": lambda: DNN2GPRegressor(**FIXED, likelihood=StudentT(0.3)).fit(X, Y),
    "last layer": lambda: regressor(posterior="last_layer"),
    "independent": lambda: classifier(posterior="independent"),
    "rows": lambda: regressor(posterior=SubsetOfData(7)),
    "some weights": lambda: regressor(posterior=SubsetOfWeights(("1.weight",))),
    "groups": lambda: DNN2GPRegressor(**SMALL, prior_groups="feature").fit(X, Y),
    "gradients": lambda: classifier(inference=Laplace(curvature="gradient")),
    "vi": lambda: regressor(inference=Variational(max_iter=4)),
    "vi, diag": lambda: classifier(inference=Variational(max_iter=4), posterior="diag"),
    "linearized": lambda: classifier(inference=LinearizedVariational(max_iter=5)),
    "three classes": classifier,
    "two classes": lambda: classifier(LABELS == "no", link="mc", class_weight={True: 2, False: 1}),
    "adam": lambda: regressor(solver=FirstOrder(max_iter=5, batch_size=7)),
    "optimizer": lambda: regressor(solver=FirstOrder(torch.optim.RMSprop, max_iter=3)),
    "settings": lambda: regressor(
        solver=NewtonCG(tol=1e-7), posterior=Full(100.0), hidden_layer_sizes=np.array([4, 3]),
        random_state=np.random.RandomState(3), device=torch.device("cpu"),
    ),
    "own class": lambda: own(net=Net).fit(X, Y),
    "own instance": lambda: own(net=module()).fit(X, Y),
    "frozen": frozen,
}  # fmt: skip


@functools.cache
def fitted(name):
    """Each is fitted once; no test changes one."""
    return MAKERS[name]()


def everything(model) -> dict[str, np.ndarray]:
    """What users read off an estimator, as arrays."""
    found = {
        "evidence": model.log_marginal_likelihood(),
        "other data": model.log_marginal_likelihood(X=X[3:20], y=model_targets(model)[3:20]),
        "decrement": model.newton_decrement_,
        "precisions": list(model.prior_precisions_.values()),
        "draws": model.sample_y(NEW, 3, target="latent"),
    }
    if isinstance(model.posterior, str) and model.posterior == "auto":
        found["kernel"] = model.kernel_(NEW) if len(model.prior_precisions_) == 1 else 0.0
    if isinstance(model, DNN2GPClassifier):
        found.update(p=model.predict_proba(NEW), std=model.predict_std(NEW))
        found.update(predicted=model.predict(NEW), labels=model.sample_y(NEW, 4))
    else:
        found["mean"], found["std"] = model.predict(NEW, return_std=True)
        found["covariance"] = model.predict(NEW, return_cov=True)[1]
        found["noise_std"] = getattr(model, "noise_std_", 0.0)
    return found


def model_targets(model):
    if isinstance(getattr(model, "likelihood", None), Poisson):
        return np.round(3 + Y)
    if isinstance(model, DNN2GPClassifier):
        return LABELS if len(model.classes_) == 3 else LABELS == "no"
    return np.c_[Y, -Y] if len(model.y_scale_) == 2 else Y


def assert_the_same(one, other):
    before, after = everything(one), everything(other)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    for name, p in one.module_.state_dict().items():
        assert torch.equal(p, other.module_.state_dict()[name]), name
        assert p.dtype == other.module_.state_dict()[name].dtype
    assert type(one.posterior_) is type(other.posterior_)
    for name, value in vars(one).items():
        if name.endswith("_") and isinstance(value, int | float | list | np.ndarray):
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_to_the_bit(name, tmp_path):
    model = fitted(name)
    save(model, tmp_path / "model")
    given = {"module": Net} if name.startswith(("own", "frozen")) else {}
    again = load(tmp_path / "model", **given)
    assert_the_same(model, again)
    assert os.listdir(tmp_path) == ["model"]
    mine, theirs = model.get_params(deep=False), again.get_params(deep=False)
    for key in mine.keys() - {"net", "random_state", "device", "hidden_layer_sizes"}:
        assert str(mine[key]) == str(theirs[key]), key
    trainable = [n for n, p in model.module_.named_parameters() if p.requires_grad]
    assert [n for n, p in again.module_.named_parameters() if p.requires_grad] == trainable


@pytest.mark.parametrize("name", MAKERS)
def test_pickles_are_the_same_to_the_bit(name):
    model = fitted(name)
    assert_the_same(model, pickle.loads(pickle.dumps(model)))


def test_pickle_of_the_label_regression():
    model = NNGPClassifier().fit(X, LABELS)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(model.predict(NEW), again.predict(NEW))


def test_what_is_loaded_saves_fits_and_goes_on(tmp_path):
    model = regressor(warm_start=True)
    save(model, tmp_path / "one")
    again = load(tmp_path / "one")
    save(again, tmp_path / "two")
    assert_the_same(again, load(tmp_path / "two"))
    again.fit(X, Y)
    assert again.n_iter_ <= model.n_iter_
    assert again.net_.partial_fit is not None
    tied = load_own(tmp_path)
    assert tied.module_.tied.weight is tied.module_.second.weight


def load_own(folder):
    save(own(net=module()).fit(X, Y), folder / "own")
    return load(folder / "own", module=module())


def test_a_module_is_asked_for_by_name_and_never_changed(tmp_path):
    save(own(net=module()).fit(X, Y), tmp_path / "own")
    with pytest.raises(ValueError, match=r"of the class .*test_persistence.Net, and no code"):
        load(tmp_path / "own")
    with pytest.raises(ValueError, match="does not take the stored weights"):
        load(tmp_path / "own", module=nn.Linear(2, 1))
    given = module()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    again = load(tmp_path / "own", module=given)
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert again.net is given and given.training
    save(regressor(), tmp_path / "default")
    with pytest.raises(ValueError, match="module was given, and the file holds a default network"):
        load(tmp_path / "default", module=Net)


def test_the_generators_are_left_alone(tmp_path):
    save(regressor(), tmp_path / "model")
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    load(tmp_path / "model")
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_what_cannot_be_saved():
    with pytest.raises(TypeError, match="save takes one of .* got Pipeline"):
        save(make_pipeline(DNN2GPRegressor()), "nowhere")
    with pytest.raises(NotFittedError):
        save(DNN2GPRegressor(), "nowhere")

    class Own(torch.optim.SGD):
        pass

    model = regressor(solver=FirstOrder(Own, max_iter=2))
    with pytest.raises(ValueError, match="the parameter solver.* is .*would be code in the file"):
        save(model, "nowhere")
    assert not os.path.exists("nowhere")


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_code_of_a_file_runs(tmp_path, monkeypatch):
    """A pickle in the place of the file, of a tensor, or a class that is no setting: refused."""
    monkeypatch.chdir(tmp_path)
    save(regressor(), "model")
    bomb = pickle.dumps(Explosive())
    Path("bomb").write_bytes(bomb)
    rewrite("model", "inside", lambda header: header, bomb)
    for name in ("bomb", "inside"):
        with pytest.raises(ValueError, match="is no file of sk_dnn2gp.save"):
            load(name)

    def with_solver(content):
        content["parameters"]["solver"] = {"setting": ["os.system", {}]}
        return content

    def with_part(content):
        content["result"]["posterior"]["part"][0] = "Popen"
        return content

    for change in (with_solver, with_part):
        rewrite("model", "other", change)
        with pytest.raises(ValueError, match="is no file of sk_dnn2gp.save"):
            load("other")
    assert not os.path.exists("exploded")


def rewrite(source, target, change, data=None):
    """A file with its JSON text changed, and its numbers where ``data`` is given."""
    whole = Path(source).read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    text = header["__metadata__"]["sk_dnn2gp"]
    header["__metadata__"]["sk_dnn2gp"] = json.dumps(change(json.loads(text)))
    new = json.dumps(header).encode()
    rest = whole[8 + length :] if data is None else data
    Path(target).write_bytes(struct.pack("<Q", len(new)) + new + rest)


def test_other_files_and_formats(tmp_path):
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(ValueError, match=r"text' is no file of sk_dnn2gp.save"):
        load(tmp_path / "text")
    save(regressor(), tmp_path / "model")
    rewrite(tmp_path / "model", tmp_path / "later", lambda content: {**content, "format": 2})
    with pytest.raises(ValueError, match="has format 2, written by .* reads format 1"):
        load(tmp_path / "later")
    data = (tmp_path / "model").read_bytes()
    for part in (0, 4, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "half").write_bytes(data[:part])
        with pytest.raises(ValueError, match="is no file of"):
            load(tmp_path / "half")


def test_any_reader_of_safetensors_opens_the_file(tmp_path):
    """The weights under their own names, as the network has them; and ours opens theirs."""
    reader = pytest.importorskip("safetensors.torch")
    net = module().to(torch.bfloat16)
    model = own(net=net.float()).fit(X, Y)
    model.module_.register_buffer("short", torch.arange(3).to(torch.bfloat16))
    save(model, tmp_path / "model.safetensors")
    theirs = reader.load_file(tmp_path / "model.safetensors")
    for name, value in model.module_.state_dict().items():
        assert torch.equal(theirs[name], value) and theirs[name].dtype == value.dtype
    assert torch.equal(theirs["model.X"].double(), torch.tensor(X))
    mine, content = theirs, json.dumps({"a": 1})
    reader.save_file(mine, tmp_path / "again", metadata={"sk_dnn2gp": content})
    with open(tmp_path / "again", "rb") as stream:
        found, tensors = read(stream)
    assert found == {"a": 1} and tensors.keys() == mine.keys()
    assert all(torch.equal(tensors[name], value) for name, value in mine.items())


STORED = Path(__file__).parent / "stored"


def test_a_file_of_0_1_0(tmp_path):
    """What that version predicted, to the rounding of another processor."""
    expected = np.load(STORED / "0.1.0.npz")
    model = load(STORED / "regressor-0.1.0.safetensors")
    mean, std = model.predict(expected["X"], return_std=True)
    np.testing.assert_allclose(mean, expected["mean"], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(std, expected["std"], rtol=1e-10)
    assert model.log_marginal_likelihood() == pytest.approx(float(expected["evidence"]), rel=1e-12)
    mixture = load(STORED / "mixture-0.1.0.safetensors")
    p = mixture.predict_proba(expected["X"])
    np.testing.assert_allclose(p, expected["p"], rtol=1e-9)
    assert mixture.classes_.tolist() == ["no", "perhaps", "yes"]


def mixture_of(kind, **options):
    member = DNN2GPRegressor if kind is MixtureRegressor else DNN2GPClassifier
    settings = {**FIXED, **({"noise_std": 0.2} if kind is MixtureRegressor else {}), **options}
    y = Y if kind is MixtureRegressor else LABELS
    return kind(member(**settings), n_estimators=2, random_state=0).fit(X, y)


@pytest.mark.parametrize("kind", [MixtureRegressor, MixtureClassifier])
def test_mixtures_are_the_same_to_the_bit(kind, tmp_path):
    def shown(model):
        if kind is MixtureRegressor:
            return [*model.predict(NEW, return_std=True), model.sample_y(NEW, 3)]
        return [model.predict_proba(NEW), model.sample_y(NEW, 3), model.predict(NEW)]

    model = mixture_of(kind)
    save(model, tmp_path / "model")
    for again in (load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        for one, other in zip(shown(model), shown(again), strict=True):
            np.testing.assert_array_equal(one, other)
        assert str(again.get_params()) == str(model.get_params())
        assert_the_same(model.best_estimator_, again.best_estimator_)
    again.fit(X, Y if kind is MixtureRegressor else LABELS)


def test_a_mixture_of_a_users_modules(tmp_path):
    settings = {"hidden_layer_sizes": (50,), "net": Net}
    model = mixture_of(MixtureRegressor, **settings)
    save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="and no code"):
        load(tmp_path / "model")
    again = load(tmp_path / "model", module=Net)
    np.testing.assert_array_equal(model.predict(NEW), again.predict(NEW))
    assert again.estimator.net is Net
    save(MixtureRegressor(n_estimators=2, random_state=0).fit(X, Y), tmp_path / "default")
    assert load(tmp_path / "default").estimator is None


def test_settings_that_changed_after_the_fit(tmp_path):
    """What is saved is the network of the fit."""
    model = copy.deepcopy(regressor()).set_params(hidden_layer_sizes=(9, 9), activation="relu")
    mean = model.predict(NEW)
    save(model, tmp_path / "model")
    for again in (load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again.predict(NEW), mean)
        assert again.hidden_layer_sizes == (9, 9)


class Own(StudentT):
    """A user's own: code, which a pickle names and a file of ours does not hold."""


def test_a_users_likelihood_pickles_and_save_refuses_it():
    model = DNN2GPRegressor(**FIXED, likelihood=Own(0.3)).fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(model.predict(NEW), again.predict(NEW))
    with pytest.raises(ValueError, match="likelihood is .*Own.* would be code in the file"):
        save(model, "nowhere")


SKOPS = ["auto", "function space", "two outputs", "groups", "three classes", "rows", "adam"]


@pytest.mark.parametrize("name", SKOPS)
def test_skops_with_its_trusted_list(name):
    """Nothing but classes of this package is to be trusted, and no tensor is among them."""
    io_ = pytest.importorskip("skops.io")
    model = fitted(name)
    data = io_.dumps(model)
    types = io_.get_untrusted_types(data=data)
    assert types and all(one.startswith("sk_dnn2gp.") for one in types), types
    again = io_.loads(data, trusted=types)
    assert_the_same(model, again)


def test_a_file_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model"
    save(regressor(), path)
    before = path.read_bytes()

    def full_disk(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(regressor(noise_std=0.3), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model"]


def test_another_process_reads_the_same(tmp_path):
    model = classifier()
    save(model, tmp_path / "model")
    np.save(tmp_path / "new.npy", NEW)
    code = (
        "import sys, numpy as np, sk_dnn2gp\n"
        "model = sk_dnn2gp.load(sys.argv[1]); X = np.load(sys.argv[2])\n"
        "sys.stdout.write(model.predict_proba(X).tobytes().hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "new.npy")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    np.testing.assert_array_equal(
        np.frombuffer(bytes.fromhex(out)).reshape(5, 3), model.predict_proba(NEW)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_from_one_device_to_another(tmp_path):
    model = regressor(device="cuda")
    save(model, tmp_path / "model")
    again = load(tmp_path / "model", device="cpu")
    np.testing.assert_allclose(again.predict_std(NEW), model.predict_std(NEW), rtol=1e-10)

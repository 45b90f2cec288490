"""Every room works on tensors of another device: without one, tensors that pose as such.

``Elsewhere`` watches every call of torch. Tensors that were moved to its device, and all that is
made from them, are on it; they compute as before, but meet no tensor of the CPU and become no
array without being moved back, as it is on a GPU. So a forgotten ``.numpy()`` or a constant made
without a device fails here.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.likelihoods import Categorical, Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.optim import GaussNewton
from sk_dnn2gp.posterior import (
    Diagonal,
    Full,
    IndependentOutputs,
    Kronecker,
    LastLayer,
    LowRank,
    SubsetOfData,
)
from sk_dnn2gp.training import FirstOrder

THERE = torch.device("privateuseone:0")
HERE = torch.device("cpu")
# Calls in which a GPU takes tensors of the CPU too: indices, copies, new contents of a parameter.
MIXING = {"__getitem__", "__setitem__", "copy_", "_foreach_copy_", "__set__", "_make_subclass",
          "_has_compatible_shallow_copy_type"}  # fmt: skip


def sees_indexing():
    """Whether this torch tells a mode of x[mask]; torch 2.3 does not."""
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.zeros(2)[torch.zeros(2, dtype=torch.bool)]
    return torch.Tensor.__getitem__ in seen


pytestmark = pytest.mark.skipif(not sees_indexing(), reason="this torch hides x[mask] from modes")


def tensors_in(value):
    """Tensors among the arguments or the results of a call."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


class Elsewhere(TorchFunctionMode):
    """While it is entered, tensors may be moved to ``THERE``; see the module."""

    def __init__(self):
        super().__init__()
        self.storages = {}  # kept alive, so that no other tensor takes their place

    def mark(self, value):
        for t in tensors_in(value):
            if t.numel():
                storage = t.untyped_storage()
                self.storages[storage.data_ptr()] = storage

    def is_there(self, t):
        try:
            return t.untyped_storage().data_ptr() in self.storages
        except (NotImplementedError, RuntimeError):  # inside vmap
            return False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        tensors = list(tensors_in((args, kwargs)))
        there = [t for t in tensors if self.is_there(t)]
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return THERE if there else HERE
        if there and name in ("numpy", "__array__"):
            raise TypeError("can't convert a tensor of another device to numpy: use .cpu() first")
        target = self.target(name, args, kwargs)
        if target is not None and name != "__set__":
            return self.moved(func, args, kwargs, target)
        indexed = name in ("__getitem__", "__setitem__") and not self.is_there(args[0])
        if indexed and any(self.is_there(t) for t in tensors_in(args[1])):
            raise RuntimeError("indices should be on the device of the indexed tensor, or here")
        if there and name not in MIXING:
            self.refuse_mixed(name, tensors, there)
        result = func(*args, **kwargs)
        if there:
            self.mark(result)
            if name == "__set__":
                self.mark(args[0])
        return result

    def target(self, name, args, kwargs):
        """The device that a call names; None where it names none."""
        if name == "cpu":
            return HERE
        found = [kwargs["device"]] if kwargs.get("device") is not None else []
        if name == "to":
            found += [a for a in args[1:] if isinstance(a, (str, torch.device))]
            found += [THERE if self.is_there(a) else HERE for a in args[1:] if torch.is_tensor(a)]
        return torch.device(found[0]) if found else None

    def moved(self, func, args, kwargs, target):
        generator = kwargs.get("generator")
        if target == THERE and generator is not None:
            raise RuntimeError("Expected a generator of the tensor's device")
        swap = [HERE if isinstance(a, torch.device) else a for a in args]
        if "device" in kwargs:
            kwargs["device"] = HERE
        result = func(*swap, **kwargs)
        if not isinstance(result, torch.Tensor) or self.is_there(result) == (target == THERE):
            return result
        result = result.clone() if result.requires_grad else result.detach().clone()
        if target == THERE:
            self.mark(result)
        return result

    def refuse_mixed(self, name, tensors, there):
        here = [t for t in tensors if not self.is_there(t) and t.ndim and t.numel()]
        if len(there) < len(tensors) and here:
            shapes = [tuple(t.shape) for t in here]
            raise RuntimeError(f"Expected all tensors to be on the same device: {name}, {shapes}")


RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
Y = np.sin(X[:, 0]) + 0.1 * RNG.standard_normal(20)
LABELS = np.digitize(Y, [-0.4, 0.4])
OPTIONS = {"hidden_layer_sizes": (3,), "n_restarts": 1, "random_state": 0}


def told(model):
    """Whatever a user may ask of a fitted model, as one vector."""
    parts = [[model.log_marginal_likelihood_value_, model.effective_dimension_]]
    if isinstance(model, DNN2GPClassifier):
        parts += [model.predict_proba(X).ravel(), model.predict_uncertainty(X).epistemic.ravel()]
    else:
        parts += [*model.predict(X, return_std=True), model.sample_y(X[:4], 3).ravel()]
    return np.concatenate([np.ravel(part) for part in parts])


def same_elsewhere(estimator, y):
    """Fit and predict here and there: the same numbers, and every tensor stayed where it was."""
    expected = told(estimator.fit(X, y))
    with Elsewhere():
        model = estimator.set_params(device=THERE).fit(X, y)
        assert model.posterior_.model.X.device == THERE
        assert next(model.module_.parameters()).device == THERE
        found = told(model)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"prior_precision": "auto", "noise_std": "auto"},
        {"prior_groups": "layer"},
        {"posterior": Full()},
        {"posterior": LastLayer()},
        {"posterior": Diagonal()},
        {"posterior": Kronecker()},
        {"posterior": LowRank()},
        {"posterior": IndependentOutputs(), "prior_precision": 1.0},
        {"posterior": SubsetOfData(6)},
        {"solver": "gauss-newton"},
        {"solver": "lbfgs"},
        {"solver": FirstOrder(max_iter=4, batch_size=10, evidence_interval=2)},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_regressor(options):
    same_elsewhere(DNN2GPRegressor(**OPTIONS, **options), Y)


@pytest.mark.parametrize(
    "options",
    [{}, {"posterior": LowRank()}, {"link": "mc"}, {"inference": "linearized-vi"}],
    ids=["auto", "low rank", "mc", "linearized vi"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_classifier(options):
    same_elsewhere(DNN2GPClassifier(**OPTIONS, **options), LABELS)


def linear_model(net, inputs, y, likelihood):
    lin = Linearization(net, dtype=torch.float64)
    lin.outputs(inputs[:1])
    return LinearModel.from_laplace(lin.at(lin.weights()), inputs, y, likelihood, 0.5)


def rooms(net, inputs, y, likelihood):
    """Linearisation and linear model of any network, every operation."""
    model = linear_model(net, inputs, y, likelihood)
    lin, L = model.linearization, model.noise_factor
    v = lin.weights()
    return [
        lin.gram(inputs), lin.gram_trace(inputs), lin.diagonal_blocks(inputs), lin.ggn(inputs),
        lin.ggn_diagonal(inputs, cotangents=L), lin.jvp(inputs, v), model.gradient,
        model.prior_gram(inputs), model.prior_blocks(inputs), model.transformed_targets(),
    ]  # fmt: skip


NETS = {
    "convolutions": lambda: (
        torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
            torch.nn.Linear(8, 3),
        ).double(),
        torch.randn(3, 1, 6, 6).double(),
    ),
    "tokens": lambda: (
        torch.nn.Sequential(
            torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Tanh(),
            torch.nn.Linear(12, 3),
        ).double(),
        torch.randint(0, 9, (5, 3)),
    ),
    "dense": lambda: (MLP(3, (5, 4), 3), torch.randn(6, 3).double()),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_linearisations(name):
    torch.manual_seed(0)
    net, inputs = NETS[name]()
    y = torch.arange(len(inputs)) % 3
    expected = rooms(net, inputs, y, Categorical())
    with Elsewhere():
        found = rooms(net.to(THERE), inputs.to(THERE), y.to(THERE), Categorical())
        assert all(t.device == THERE for t in found)
        found = [t.cpu() for t in found]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_optimiser():
    def run(device):
        torch.manual_seed(0)
        net = MLP(3, (5,), 1).to(device)
        inputs, y = torch.tensor(X).to(device), torch.tensor(Y)[:, None].to(device)
        optimizer = GaussNewton(
            net.parameters(), module=net, likelihood=Gaussian(0.3), max_iter=3, tol=0.0
        )

        def closure():
            optimizer.zero_grad()
            loss = Gaussian(0.3).negative_log_likelihood(net(inputs), y).sum()
            loss = loss + 0.5 * sum(p.square().sum() for p in net.parameters())
            loss.backward()
            return loss

        optimizer.step(closure)
        return optimizer.losses

    expected = run(HERE)
    with Elsewhere():
        assert run(THERE) == pytest.approx(expected, rel=1e-10)


# ------------------------------------------------------------------ what the tests above would see


def a_constant(lin, *args, **kwargs):
    return plain(lin, *args, **kwargs) + torch.zeros(lin.n_params, dtype=torch.float64)


def an_array(lin, *args, **kwargs):
    return torch.from_numpy(plain(lin, *args, **kwargs).numpy()).to(lin.device)


plain = Linearization.ggn_diagonal


@pytest.mark.parametrize(("mistake", "error"), [(a_constant, RuntimeError), (an_array, TypeError)])
def test_mistakes_are_seen(monkeypatch, mistake, error):
    """A constant without a device, and a tensor made an array, in one operation of one room."""
    monkeypatch.setattr(Linearization, "ggn_diagonal", mistake)
    with pytest.raises(error, match="device"):
        same_elsewhere(DNN2GPRegressor(**OPTIONS, posterior="diag", prior_precision=1.0), Y)

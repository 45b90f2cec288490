"""A fitted estimator as one JSON text and tensors by name, and back: what files and pickles hold.

Names of classes are looked up in tables here, and nothing that is read is run; a module of the
user's own comes from the user.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from skorch import NeuralNet
from torch import Tensor, nn

from .. import inference as _inference
from .. import likelihoods as _likelihoods
from .. import posterior as _posterior
from .. import training as _training
from .._utils.copies import copied
from .._utils.rows import Streamed
from .._utils.tensor_file import Reader, Writer
from ..inference import Result
from ..linear_model import LinearModel
from ..linearize import Linearization
from ..networks import ACTIVATIONS, MLP
from ..posterior.kronecker import KroneckerBlock
from ..posterior.precision import DensePrecision, DiagonalPrecision, LowRankCovariance
from ..posterior.products import ScaledFeatures
from ..posterior.sketch import Certificate, Sketch

__all__ = ["FitReader", "FitWriter", "content_of_fit", "fill", "module_class"]

# Settings that may stand in a parameter: the public classes of three rooms.
_SETTINGS: dict[str, Any] = {
    f"{room.__name__.rpartition('.')[2]}.{name}": cls
    for room in (_inference, _posterior, _training)
    for name, cls in vars(room).items()
    if isinstance(cls, type) and issubclass(cls, BaseEstimator)
}
_LIKELIHOODS: dict[str, Any] = {
    name: getattr(_likelihoods, name) for name in _likelihoods.__all__ if name != "Likelihood"
}
# What posteriors are made of: their attributes are all that there is to them.
_PARTS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        _posterior.WeightSpacePosterior, _posterior.FunctionSpacePosterior,
        _posterior.DiagonalPosterior, _posterior.IndependentPosterior,
        _posterior.LowRankPosterior, _posterior.KroneckerPosterior, _posterior.SWAGPosterior,
        DensePrecision, DiagonalPrecision, LowRankCovariance, KroneckerBlock, ScaledFeatures,
        Sketch, Certificate,
    )
}  # fmt: skip
# What a fit sets beside the result, where it does.
ATTRIBUTES = (
    "n_features_in_", "feature_names_in_", "classes_", "y_mean_", "y_scale_",
    "_one_dimensional", "_draw_seed", "_fit_sample_weight", "_noise_offset",
)  # fmt: skip
_RESULT = [f.name for f in fields(Result) if f.name not in ("module", "net")]
_MODEL = [f.name for f in fields(LinearModel) if f.name != "linearization"]


class FitWriter(Writer):
    """Values to JSON, with this package's settings, likelihoods, posteriors and linear models."""

    def __init__(self) -> None:
        super().__init__()
        self.models: list[LinearModel] = []  # of one fit

    def other(self, value: Any, where: str) -> Any:
        """What stands for an object of a class that the tables know."""
        for name, cls in _SETTINGS.items():
            if type(value) is cls:
                params = value.get_params(deep=False)
                return {"setting": [name, self._all(params, where)]}
        if _LIKELIHOODS.get(type(value).__name__) is type(value):
            return {"likelihood": [type(value).__name__, self._all(vars(value), where)]}
        if _PARTS.get(type(value).__name__) is type(value):
            return {"part": [type(value).__name__, self._all(_own_attributes(value), where)]}
        if isinstance(value, LinearModel):
            return {"model": self._model(value)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        name = getattr(value, "__name__", "")
        if isinstance(value, type) and getattr(torch.optim, name, None) is value:
            return {"optimizer": name}
        if isinstance(value, np.random.RandomState):
            return {"RandomState": self.value(value.get_state(), where)}
        return super().other(value, where)

    def _all(self, values: Any, where: str) -> dict[str, Any]:
        return {name: self.value(value, f"{where}.{name}") for name, value in values.items()}

    def _model(self, model: LinearModel) -> Any:
        """All of it, or the number of one that was written before."""
        for number, known in enumerate(self.models):
            if known is model:
                return number
        self.models.append(model)
        return {
            **{name: self.value(_whole(getattr(model, name)), f"model.{name}") for name in _MODEL},
            "at": self.value(model.linearization.weights(), "model.at"),
            "names": list(model.linearization.parameter_names),
            "limit": self.value(model.linearization.memory_limit, "memory_limit"),
        }


def _own_attributes(thing: Any) -> dict[str, Any]:
    """Its attributes, without what it keeps to be faster."""
    found = thing.__getstate__() if "__getstate__" in vars(type(thing)) else vars(thing)
    kind = type(thing)
    return {
        name: value
        for name, value in found.items()
        if not isinstance(getattr(kind, name, None), cached_property)
    }


def _whole(value: Any) -> Any:
    """All rows of a file or a Dataset; anything else as it is."""
    return value[:] if isinstance(value, Streamed) else value


def content_of_fit(estimator: Any, writer: FitWriter) -> dict[str, Any]:
    """All that a fit left, its parameters apart."""
    module = estimator._result.module
    writer.models = []
    return {
        "module": module_class(module),
        "network": _architecture(module) if estimator.net is None else None,
        "device": str(estimator._result.model.X.device),
        "state": {n: writer.value(t, n) for n, t in module.state_dict().items()},
        "trainable": [n for n, p in module.named_parameters() if p.requires_grad],
        "attributes": {
            name: writer.value(vars(estimator)[name], name)
            for name in ATTRIBUTES
            if name in vars(estimator)
        },
        "result": {name: writer.value(getattr(estimator._result, name), name) for name in _RESULT},
    }


def module_class(thing: Any) -> str:
    """Name of a class with its module, for messages."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _architecture(module: nn.Module) -> list[Any]:
    """Widths and activation of a default network."""
    layers = list(module.children())[1:]
    hidden = [type(layer) for layer in layers if not isinstance(layer, nn.Linear)]
    names = [name for name, cls in ACTIVATIONS.items() if hidden and cls is hidden[0]]
    widths = [int(layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    return [widths, names[0] if names else "identity"]


# --------------------------------------------------------------------------------- the way back


class FitReader(Reader):
    """JSON to values of one fit, its tensors on a device and its linear models of one module."""

    def __init__(self, tensors: Any, device: torch.device | None = None) -> None:
        super().__init__(tensors)
        self.module: Any = None
        self._models: list[LinearModel] = []
        self.kinds.update(
            tensor=lambda name: tensors[name] if device is None else tensors[name].to(device),
            setting=lambda pair: _SETTINGS[pair[0]](**self._all(pair[1])),
            likelihood=lambda pair: _LIKELIHOODS[pair[0]](**self._all(pair[1])),
            part=self._part,
            model=self._model,
            device=torch.device,
            optimizer=_optimizer,
            RandomState=self._random_state,
        )

    def _all(self, content: dict[str, Any]) -> dict[str, Any]:
        return {name: self.value(value) for name, value in content.items()}

    def _part(self, pair: Any) -> Any:
        """One of the table's classes with its stored attributes: nothing is computed anew."""
        name, attributes = pair
        part = object.__new__(_PARTS[name])
        part.__dict__.update(self._all(attributes))
        return part

    def _model(self, content: Any) -> LinearModel:
        if isinstance(content, int):
            return self._models[content]
        values = {name: self.value(content[name]) for name in _MODEL}
        linearization = Linearization(
            self.module,
            parameters=content["names"],
            dtype=torch.float64,
            memory_limit=self.value(content["limit"]),
        )
        linearization.outputs(values["X"][:1])
        linearization = linearization.at(self.value(content["at"]))
        self._models.append(LinearModel(linearization=linearization, **values))
        return self._models[-1]

    def _random_state(self, content: Any) -> np.random.RandomState:
        state = np.random.RandomState()
        state.set_state(self.value(content))
        return state


def _optimizer(name: str) -> Any:
    """One of torch's own optimisers."""
    found = getattr(torch.optim, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"torch.optim has no optimiser {name!r}.")
    return found


def fill(
    estimator: Any, content: dict, tensors: Any, module: Any = None, device: Any = None
) -> Any:
    """Give an estimator with its parameters all that its fit left; itself is returned."""
    device = _device_of(content["device"]) if device is None else torch.device(device)
    reader = FitReader(tensors, device)
    state = {name: reader.value(value) for name, value in content["state"].items()}
    reader.module = _network(content, state, module)
    for name, p in reader.module.named_parameters():
        p.requires_grad_(name in content["trainable"])
    reader.module = reader.module.to(device).eval()
    values = {name: reader.value(value) for name, value in content["result"].items()}
    attributes = {name: reader.value(value) for name, value in content["attributes"].items()}
    vars(estimator).update(attributes)
    result = Result(module=reader.module, net=None, **values)  # a net is made when asked for
    estimator._show(result, weights_of_all(result, attributes["_fit_sample_weight"]))


def weights_of_all(result: Result, weight: NDArray) -> NDArray:
    """Weights of the posterior's examples where it will look for them."""
    rows = result.posterior_indices
    if rows is None:
        return weight
    weights = np.zeros(int(rows.max()) + 1)
    weights[rows] = weight
    return weights


def _device_of(stored: str) -> torch.device:
    """The stored device if this computer has one, else the processor."""
    available = torch.cuda.is_available() and torch.device(stored).type == "cuda"
    return torch.device(stored if stored == "cpu" or available else "cpu")


def _network(content: dict, state: dict[str, Tensor], given: Any) -> nn.Module:
    """The module with the stored weights: the default network, or the caller's."""
    if content["network"] is not None:
        network: nn.Module = _default_network(state, *content["network"])
    else:
        network = _given_module(given, content["module"])
    with torch.no_grad():
        for name, p in [*network.named_parameters(), *network.named_buffers()]:
            if name in state and not nn.parameter.is_lazy(p):
                p.data = p.data.to(state[name].dtype)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"module does not take the stored weights of a {content['module']}: {error}"
        ) from error
    return network


def _given_module(given: Any, name: str) -> nn.Module:
    if isinstance(given, type) and issubclass(given, nn.Module):
        return given()
    if isinstance(given, NeuralNet):
        given = getattr(given, "module_", None)
    if isinstance(given, nn.Module):
        return copied(given)
    raise ValueError(
        f"The file holds weights of a module of the class {name}, and no code: give that class, or "
        "an instance of the same shape, as load(path, module=...)."
    )


def _default_network(state: dict[str, Tensor], widths: list[int], activation: str) -> nn.Module:
    """An MLP of the stored shapes; its weights are drawn without the global generator."""
    mean = state["0.mean"]
    pair = (torch.zeros_like(mean), torch.ones_like(mean))
    with torch.random.fork_rng(devices=[]):
        return MLP(len(mean), widths[:-1], widths[-1], activation, standardize=pair)

"""Fitted estimators in files that hold numbers and no code.

A file is a zip archive: ``estimator.json`` with everything that is no array, and one ``.npy`` for
each array. Reading it runs nothing from it: names of classes are looked up in a table here, arrays
are read with ``allow_pickle=False``, and the module of a network of your own comes from you.

Unpickling (``pickle.load``, ``joblib.load``, ``torch.load(weights_only=False)``) is another matter:
a pickle is a program, and loading one from a stranger lets them do on your computer whatever you
may do. Pickles of these estimators work, and are for what you wrote yourself; files of
:func:`save` are for what travels.
"""

from __future__ import annotations

import copy
import io
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from torch import Tensor, nn

from . import inference as _inference
from . import likelihoods as _likelihoods
from . import posterior as _posterior
from . import training as _training
from ._version import __version__
from .estimators.classifier import DNN2GPClassifier
from .estimators.regressor import DNN2GPRegressor
from .inference import Result
from .linear_model import LinearModel
from .linearize import Linearization
from .networks import MLP
from .posterior.precision import DensePrecision, DiagonalPrecision

__all__ = ["load", "save"]

_FORMAT, _JSON = 1, "estimator.json"
_ESTIMATORS: dict[str, Any] = {c.__name__: c for c in (DNN2GPRegressor, DNN2GPClassifier)}
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
_POSTERIORS: dict[str, Any] = {
    "WeightSpacePosterior": _posterior.WeightSpacePosterior,
    "FunctionSpacePosterior": _posterior.FunctionSpacePosterior,
    "DiagonalPosterior": _posterior.DiagonalPosterior,
    "IndependentPosterior": _posterior.IndependentPosterior,
}
_PRECISIONS: dict[str, Any] = {c.__name__: c for c in (DensePrecision, DiagonalPrecision)}
# What a fit sets beside the result, where it does.
_ATTRIBUTES = (
    "n_features_in_", "feature_names_in_", "classes_", "y_mean_", "y_scale_",
    "_one_dimensional", "_draw_seed", "_fit_sample_weight", "_noise_offset",
)  # fmt: skip
_PLAIN = (
    "prior_precision", "prior_precisions", "evidence", "evidence_kind", "gradient", "converged",
    "solver", "loss_curve", "n_iter", "elbo_curve", "shift", "posterior_indices",
)  # fmt: skip


def save(estimator: Any, path: str | os.PathLike) -> None:
    """Write a fitted estimator to a file that holds numbers and no code.

    The file appears whole or not at all: it is written beside ``path``, forced to the disk, and
    renamed. It holds the weights, the posterior, the settings and the training inputs, which the
    process needs.

    Parameters
    ----------
    estimator : DNN2GPRegressor or DNN2GPClassifier
        Fitted.
    path : str or path-like
        Replaced if it exists.

    Raises
    ------
    TypeError
        If it is another kind of estimator.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If a parameter or a label is an object of a class that this package does not know.

    See Also
    --------
    load : The way back.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import sk_dnn2gp
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> model = sk_dnn2gp.DNN2GPRegressor(
    ...     hidden_layer_sizes=(3,), prior_precision=1.0, noise_std=0.1, random_state=0
    ... ).fit(X, X[:, 0])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.dnn2gp")
    ...     sk_dnn2gp.save(model, path)
    ...     again = sk_dnn2gp.load(path)
    >>> bool((again.predict(X) == model.predict(X)).all())
    True
    """
    if type(estimator).__name__ not in _ESTIMATORS:
        raise TypeError(
            f"save takes one of {', '.join(_ESTIMATORS)}, got {type(estimator).__name__}. Of a "
            "Pipeline or a search, save its estimator (named_steps, best_estimator_)."
        )
    check_is_fitted(estimator)
    writer = _Writer()
    content = _content(estimator, writer)
    with _whole_or_not_at_all(Path(path)) as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(_JSON, json.dumps(content, allow_nan=False, indent=1))
        for name, array in writer.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)


def load(path: str | os.PathLike, module: Any = None, device: Any = None) -> Any:
    """Read a fitted estimator from a file of :func:`save`; nothing in the file is run.

    Predictions, standard deviations, evidence and kernel are those of the saved estimator, on the
    same device to the bit.

    Parameters
    ----------
    path : str or path-like
    module : torch Module (class or instance), optional
        Needed where the estimator had a ``net`` of its own: the class of its module, made without
        arguments, or an instance of the same shape, of which a copy takes the stored weights. It
        becomes ``net`` (frozen where the net was).
    device : str or torch.device, optional
        None is the device of the fit where there is one like it, and the processor elsewhere.

    Returns
    -------
    DNN2GPRegressor or DNN2GPClassifier
        Fitted; ``net_`` trains with Adam, whatever trained before.

    Raises
    ------
    ValueError
        If the file is of another kind or a later format, or ``module`` is missing, not needed, or
        of another shape.

    See Also
    --------
    save : How the file is made.

    Examples
    --------
    >>> import sk_dnn2gp
    >>> sk_dnn2gp.load("other.txt")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'other.txt'
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reader = _Reader(archive)
            content = json.loads(archive.read(_JSON))
            _check_format(content, path)
            return _estimator(content, reader, module, device)
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is no file of sk_dnn2gp.save: {error}") from error


def _check_format(content: Any, path: str | os.PathLike) -> None:
    if content["format"] != _FORMAT:
        raise ValueError(
            f"{os.fspath(path)!r} has format {content['format']!r}, written by sk_dnn2gp "
            f"{content['version']!r}; this is {__version__}, which reads format {_FORMAT}. Install "
            "that version or a later one."
        )


@contextmanager
def _whole_or_not_at_all(path: Path) -> Iterator[Any]:
    """A stream beside ``path`` that takes its place at the end, or vanishes."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with open(part, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# ------------------------------------------------------------------------------ what is written


def _content(estimator: Any, writer: _Writer) -> dict[str, Any]:
    """Everything of an estimator, as JSON; arrays by name."""
    result = estimator._result
    trained = [name for name, p in result.module.named_parameters() if p.requires_grad]
    return {
        "format": _FORMAT,
        "version": __version__,
        "estimator": type(estimator).__name__,
        "module": _class_name(result.module),
        "net": _kind_of_net(estimator.net),
        "device": str(result.model.X.device),
        "parameters": {
            name: writer.value(value, f"the parameter {name}")
            for name, value in estimator.get_params(deep=False).items()
            if name != "net"
        },
        "state": [[n, writer.value(t, n)] for n, t in result.module.state_dict().items()],
        "trainable": trained,
        "attributes": {
            name: writer.value(vars(estimator)[name], name)
            for name in _ATTRIBUTES
            if name in vars(estimator)
        },
        "result": _content_of_result(result, writer),
    }


def _content_of_result(result: Result, writer: _Writer) -> dict[str, Any]:
    likelihood, posterior = result.likelihood, result.posterior
    own = posterior.model is not result.model
    content = {name: writer.value(getattr(result, name), name) for name in _PLAIN}
    content["likelihood"] = [
        type(likelihood).__name__,
        {name: writer.value(v, name) for name, v in vars(likelihood).items()},
    ]
    content["model"] = _content_of_model(result.model, writer)
    content["posterior"] = {
        "kind": type(posterior).__name__,
        "factors": [
            [type(part).__name__, writer.value(part.factor, "a factor")]
            for part in _factors(posterior)
        ],
        "memory_limit": writer.value(getattr(posterior, "memory_limit", None), "memory_limit"),
        "is_exact": posterior.is_exact,
        "model": _content_of_model(posterior.model, writer) if own else None,
    }
    return content


def _factors(posterior: Any) -> list[Any]:
    """Its factors: of A, of B, or of the B of every output."""
    if hasattr(posterior, "precision"):
        return [posterior.precision]
    return posterior.B if isinstance(posterior.B, list) else [posterior.B]


def _content_of_model(model: LinearModel, writer: _Writer) -> dict[str, Any]:
    names = [f.name for f in fields(model) if f.name not in ("linearization", "X")]
    return {
        "X": writer.value(model.X[:], "X"),  # of a file or a Dataset too: all rows
        **{name: writer.value(getattr(model, name), name) for name in names},
        "names": list(model.linearization.parameter_names),
        "limit": writer.value(model.linearization.memory_limit, "memory_limit"),
    }


def _class_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _kind_of_net(net: Any) -> str:
    if net is None:
        return "default"
    return "frozen" if isinstance(net, FrozenEstimator) else "own"


class _Writer:
    """Values to JSON; the arrays that go into files of their own are collected."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray] = {}

    def value(self, value: Any, where: str) -> Any:
        """What stands for a value; ValueError if it is of a class that is not known here."""
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float | np.floating):
            return {"float": float(value).hex()}
        if isinstance(value, np.generic):
            return self.value(value.item(), where)
        if isinstance(value, Tensor | np.ndarray):
            return self._array(value, where)
        if isinstance(value, tuple | list):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.value(v, where) for v in value]}
        if isinstance(value, Mapping):
            pairs = [[self.value(k, where), self.value(v, where)] for k, v in value.items()]
            return {"dict": pairs}
        return self._object(value, where)

    def _array(self, value: Tensor | NDArray, where: str) -> Any:
        kind = "array"
        if isinstance(value, Tensor):
            value, kind = value.detach().cpu(), str(value.dtype)
            value = (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
        if value.dtype == object:
            return {"objects": [self.value(v, where) for v in value.tolist()]}
        name = f"{len(self.arrays):03d}"
        self.arrays[name] = value
        return {"npy": name, "kind": kind}

    def _object(self, value: Any, where: str) -> Any:
        for name, cls in _SETTINGS.items():
            if type(value) is cls:
                params = value.get_params(deep=False).items()
                return {"setting": name, "params": {k: self.value(v, where) for k, v in params}}
        if _LIKELIHOODS.get(type(value).__name__) is type(value):
            settings = {k: self.value(v, where) for k, v in vars(value).items()}
            return {"likelihood": type(value).__name__, "params": settings}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        name = getattr(value, "__name__", "")
        if isinstance(value, type) and getattr(torch.optim, name, None) is value:
            return {"optimizer": name}
        if isinstance(value, np.random.RandomState):
            return {"RandomState": self.value(value.get_state(), where)}
        raise ValueError(
            f"{where} is {value!r}: a {_class_name(value)} is no number, text, list or setting of "
            "this package, and would be code in the file. Replace it, or use pickle."
        )


# --------------------------------------------------------------------------------- what is read


class _Reader:
    """JSON to values."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def value(self, content: Any) -> Any:
        """The value that ``content`` stands for."""
        if not isinstance(content, dict):
            return content
        if "npy" in content:
            return self._npy(content)
        for kind, classes in (("setting", _SETTINGS), ("likelihood", _LIKELIHOODS)):
            if kind in content:
                params = {name: self.value(v) for name, v in content["params"].items()}
                return classes[content[kind]](**params)
        kinds: dict[str, Callable[[Any], Any]] = {
            "float": float.fromhex,
            "objects": self._objects,
            "tuple": lambda values: tuple(map(self.value, values)),
            "list": lambda values: list(map(self.value, values)),
            "dict": lambda pairs: {self.value(k): self.value(v) for k, v in pairs},
            "device": torch.device,
            "optimizer": _optimizer,
            "RandomState": self._random_state,
        }
        ((kind, inner),) = content.items()
        return kinds[kind](inner)

    def _npy(self, content: dict) -> Any:
        stream = io.BytesIO(self.archive.read(f"{content['npy']}.npy"))
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if content["kind"] == "array":
            return array
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if content["kind"] == "torch.bfloat16" else tensor

    def _objects(self, values: list) -> NDArray:
        array = np.empty(len(values), dtype=object)
        array[:] = [self.value(v) for v in values]
        return array

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


def _estimator(content: dict, reader: _Reader, module: Any, device: Any) -> Any:
    device = _device_of(content["device"]) if device is None else torch.device(device)
    attributes = {name: reader.value(v) for name, v in content["attributes"].items()}
    parameters = {name: reader.value(v) for name, v in content["parameters"].items()}
    state = {name: reader.value(v) for name, v in content["state"]}
    network = _network(content, parameters, state, module)
    for name, p in network.named_parameters():
        p.requires_grad_(name in content["trainable"])
    network = network.to(device).eval()
    result = _result(content["result"], reader, network, device)
    net = module if content["net"] == "own" else None
    estimator = _ESTIMATORS[content["estimator"]](net=net, **parameters)
    if str(device) != content["device"]:
        estimator.set_params(device=str(device))
    vars(estimator).update(attributes)
    estimator._show(result, _weights_of_all(result, attributes["_fit_sample_weight"]))
    if content["net"] == "frozen":
        estimator.net = FrozenEstimator(estimator.net_)
    return estimator


def _weights_of_all(result: Result, weight: NDArray) -> NDArray:
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


def _network(content: dict, parameters: dict, state: dict[str, Tensor], given: Any) -> nn.Module:
    """The module with the stored weights: the default network, or the caller's."""
    if content["net"] == "default":
        if given is not None:
            raise ValueError("module was given, and the file holds a default network (net=None).")
        network: nn.Module = _default_network(parameters, state)
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
        return copy.deepcopy(given)
    raise ValueError(
        f"The file holds weights of a module of the class {name}, and no code: give that class, or "
        "an instance of the same shape, as load(path, module=...)."
    )


def _default_network(parameters: dict, state: dict[str, Tensor]) -> nn.Module:
    """An MLP of the stored shapes; its weights are drawn without the global generator."""
    sizes = tuple(np.atleast_1d(parameters["hidden_layer_sizes"]).tolist())
    mean, last = state["0.mean"], list(state.values())[-1]
    with torch.random.fork_rng(devices=[]):
        return MLP(
            len(mean), sizes, len(last), parameters["activation"],
            standardize=(torch.zeros_like(mean), torch.ones_like(mean)),
        )  # fmt: skip


def _result(content: dict, reader: _Reader, module: nn.Module, device: torch.device) -> Result:
    plain = {name: _moved(reader.value(content[name]), device) for name in _PLAIN}
    name, settings = content["likelihood"]
    likelihood = _LIKELIHOODS[name](**{key: reader.value(v) for key, v in settings.items()})
    model = _model(content["model"], reader, module, device)
    return Result(
        module=module,
        net=None,  # made when it is asked for
        likelihood=likelihood,
        model=model,
        posterior=_posterior_of(content["posterior"], reader, model, device),
        **plain,
    )


def _model(content: dict, reader: _Reader, module: nn.Module, device: torch.device) -> LinearModel:
    names = [f.name for f in fields(LinearModel) if f.name != "linearization"]
    values = {name: _moved(reader.value(content[name]), device) for name in names}
    linearization = Linearization(
        module,
        parameters=content["names"],
        dtype=torch.float64,
        memory_limit=reader.value(content["limit"]),
    )
    linearization.outputs(values["X"][:1])
    return LinearModel(linearization=linearization.at(values["weights"]), **values)


def _posterior_of(content: dict, reader: _Reader, model: LinearModel, device: torch.device) -> Any:
    """The posterior with its stored factors: nothing is computed anew."""
    if content["model"] is not None:
        own = {f.name: content["model"][f.name] for f in fields(model) if f.name != "linearization"}
        values = {name: _moved(reader.value(v), device) for name, v in own.items()}
        model = LinearModel(linearization=model.linearization, **values)
    factors = []
    for name, factor in content["factors"]:
        part = object.__new__(_PRECISIONS[name])
        part.factor = _moved(reader.value(factor), device)
        factors.append(part)
    posterior = object.__new__(_POSTERIORS[content["kind"]])
    posterior.model = model
    if content["kind"] in ("WeightSpacePosterior", "DiagonalPosterior"):
        posterior.precision, posterior.is_exact = factors[0], content["is_exact"]
        return posterior
    posterior.memory_limit = reader.value(content["memory_limit"])
    posterior.B = factors if content["kind"] == "IndependentPosterior" else factors[0]
    return posterior


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value

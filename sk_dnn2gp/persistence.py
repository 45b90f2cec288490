"""Fitted estimators in files that hold numbers and no code.

A file is one of the format safetensors, and opens in any reader of it: the weights of the network
by their own names, and the other arrays. What is no array is a JSON text in its header. Reading it
runs nothing from it: names of classes are looked up in tables, and the module of a network of your
own comes from you.

Unpickling (``pickle.load``, ``joblib.load``, ``torch.load(weights_only=False)``) is another matter:
a pickle is a program, and loading one from a stranger lets them do on your computer whatever you
may do. Pickles of these estimators work, and are for what you wrote yourself; files of
:func:`save` are for what travels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ._utils.tensor_file import read, whole_or_not_at_all, write
from ._version import __version__
from .estimators.classifier import DNN2GPClassifier
from .estimators.mixture import MixtureClassifier, MixtureRegressor
from .estimators.regressor import DNN2GPRegressor
from .estimators.storage import FitReader, FitWriter, content_of_fit, fill

__all__ = ["load", "save"]

_FORMAT = 1
_ONE: dict[str, Any] = {c.__name__: c for c in (DNN2GPRegressor, DNN2GPClassifier)}
_MIXTURES: dict[str, Any] = {c.__name__: c for c in (MixtureRegressor, MixtureClassifier)}
# What a mixture's fit sets beside its members.
_ATTRIBUTES = ("weights_", "best_index_", "classes_", "_one_dimensional")


def save(estimator: Any, path: str | os.PathLike) -> None:
    """Write a fitted estimator to a file that holds numbers and no code.

    The file appears whole or not at all: it is written beside ``path``, forced to the disk, and
    renamed. It holds the weights, the posterior, the settings and the training inputs, which the
    process needs.

    Parameters
    ----------
    estimator : DNN2GPRegressor, DNN2GPClassifier, MixtureRegressor or MixtureClassifier
        Fitted.
    path : str or path-like
        Replaced if it exists. Readers of safetensors expect a name that ends so.

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
    ...     path = os.path.join(folder, "model.safetensors")
    ...     sk_dnn2gp.save(model, path)
    ...     again = sk_dnn2gp.load(path)
    >>> bool((again.predict(X) == model.predict(X)).all())
    True
    """
    kind = type(estimator).__name__
    if kind not in _ONE and kind not in _MIXTURES:
        raise TypeError(
            f"save takes one of {', '.join([*_ONE, *_MIXTURES])}, got {kind}. Of a Pipeline or a "
            "search, save its estimator (named_steps, best_estimator_)."
        )
    check_is_fitted(estimator)
    writer = FitWriter()
    content = {"format": _FORMAT, "version": __version__, **_content(estimator, writer)}
    with whole_or_not_at_all(Path(path)) as stream:
        write(stream, content, writer.tensors)


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
    DNN2GPRegressor, DNN2GPClassifier, MixtureRegressor or MixtureClassifier
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
    name = os.fspath(path)
    with open(path, "rb") as stream:
        try:
            content, tensors = read(stream)
            found = content["format"], content["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{name!r} is no file of sk_dnn2gp.save: {error}") from error
    if found[0] != _FORMAT:
        raise ValueError(
            f"{name!r} has format {found[0]!r}, written by sk_dnn2gp {found[1]!r}; this is "
            f"{__version__}, which reads format {_FORMAT}. Install that version or a later one."
        )
    try:
        return _estimator(content, tensors, module, device)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{name!r} is no file of sk_dnn2gp.save: {error!r}") from error


def _content(estimator: Any, writer: FitWriter) -> dict[str, Any]:
    """Everything of an estimator as JSON, but for the tensors that ``writer`` keeps."""
    content = _unfitted(estimator, writer)
    if content["estimator"] in _ONE:
        return {**content, **content_of_fit(estimator, writer)}
    attributes = {name: vars(estimator)[name] for name in _ATTRIBUTES if name in vars(estimator)}
    return {
        **content,
        "members": [_content(one, writer) for one in estimator.estimators_],
        "attributes": {name: writer.value(value, name) for name, value in attributes.items()},
    }


def _unfitted(estimator: Any, writer: FitWriter) -> dict[str, Any]:
    """Class, parameters, and what kind of network it has; of a mixture, its template too."""
    parameters = estimator.get_params(deep=False)
    net = parameters.pop("net", None)
    template = parameters.pop("estimator", None)
    kind = "frozen" if isinstance(net, FrozenEstimator) else "own"
    return {
        "estimator": type(estimator).__name__,
        "net": "default" if net is None else kind,
        "template": None if template is None else _unfitted(template, writer),
        "parameters": {
            name: writer.value(value, f"the parameter {name}") for name, value in parameters.items()
        },
    }


def _estimator(content: dict, tensors: Any, module: Any, device: Any) -> Any:
    """What :func:`_content` was made of."""
    estimator = _blank(content, tensors, module)
    if content["estimator"] in _ONE:
        if content["net"] == "default" and module is not None:
            raise ValueError("module was given, and the file holds a default network (net=None).")
        fill(estimator, content, tensors, module, device)
        used = str(estimator.linear_model_.X.device)
        if used != content["device"]:
            estimator.set_params(device=used)
        if content["net"] == "frozen":
            estimator.net = FrozenEstimator(estimator.net_)
        return estimator
    reader = FitReader(tensors)
    members = [_estimator(one, tensors, module, device) for one in content["members"]]
    attributes = {name: reader.value(value) for name, value in content["attributes"].items()}
    vars(estimator).update(estimators_=members, **attributes)
    return estimator


def _blank(content: dict, tensors: Any, module: Any) -> Any:
    """An estimator with its parameters, not fitted."""
    reader, kind = FitReader(tensors), content["estimator"]
    parameters = {name: reader.value(value) for name, value in content["parameters"].items()}
    if kind in _ONE:
        net = module if content["net"] == "own" else None
        return _ONE[kind](net=net, **parameters)
    template = content["template"]
    made = None if template is None else _blank(template, tensors, module)
    return _MIXTURES[kind](estimator=made, **parameters)

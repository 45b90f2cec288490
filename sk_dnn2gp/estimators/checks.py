"""What the estimators refuse or warn of before a fit: arguments that do not go together.

Each function names the argument, what was found, and what to do.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator

from ..evidence.search import Tuning

__all__ = [
    "check_labels",
    "check_outputs_option",
    "check_prior_groups",
    "check_target",
    "check_variational",
    "warn_of_scales",
]

# Beyond these a feature's spread makes tanh units constant or linear, whatever the weights.
_SCALE_RANGE = (1e-4, 1e4)


def check_target(target: str, allowed: tuple[str, ...]) -> None:
    """Refuse a prediction of an unknown quantity.

    Raises
    ------
    ValueError
    """
    if target not in allowed:
        names = ", ".join(map(repr, allowed[:-1]))
        raise ValueError(f"target must be {names} or {allowed[-1]!r}, got {target!r}.")


def check_labels(y: NDArray, classes: NDArray) -> None:
    """Refuse labels that ``fit`` did not see.

    Raises
    ------
    ValueError
    """
    unseen = np.setdiff1d(y, classes)
    if len(unseen):
        raise ValueError(
            f"y holds labels that fit has not seen: {unseen[:5].tolist()}; the classes are "
            f"{classes.tolist()[:10]}."
        )


def check_prior_groups(estimator: Any, tuning: Tuning) -> None:
    """Refuse groups of weights where one δ per group cannot be chosen.

    Raises
    ------
    ValueError
    """
    groups = estimator.prior_groups
    if groups == "all":
        return
    needed = {
        "net": None,
        "prior_precision": "auto",
        "solver": "gauss-newton",
        "posterior": "full",
        "warm_start": False,
    }
    for name, wanted in needed.items():
        found = getattr(estimator, name)
        if found is not wanted and found != wanted:
            raise ValueError(
                f"prior_groups={groups!r} needs {name}={wanted!r}, got {found!r}. "
                "optimize_hyperparameters(estimator, groups=...) serves other networks, at their "
                "trained weights."
            )
    if estimator.inference == "vi" or tuning.structure == "independent":
        raise ValueError(
            f"prior_groups={groups!r} is chosen by the Laplace evidence of all outputs together: "
            "leave inference='vi' and outputs='independent'."
        )


def check_variational(estimator: Any, tuning: Tuning) -> None:
    """Refuse what a variational posterior cannot be.

    Raises
    ------
    ValueError
    """
    if tuning.structure not in ("full", "diag"):
        raise ValueError(
            f"inference='vi' finds a posterior of all weights, posterior='full' or 'diag', not "
            f"{tuning.structure!r}."
        )
    if tuning.rows is not None:
        raise ValueError("inference='vi' conditions on all examples: leave posterior_samples.")
    if isinstance(estimator.net, FrozenEstimator):
        raise ValueError(
            "inference='vi' trains the network, and a FrozenEstimator is used as it is: give the "
            "net without it, or take inference='laplace'."
        )


def check_outputs_option(estimator: Any) -> None:
    """Refuse classifiers' outputs="independent" and inference="linearized-vi" where they fail.

    Raises
    ------
    ValueError
    """
    posterior, prior_precision = estimator.posterior, estimator.prior_precision
    if estimator.inference == "linearized-vi" and (
        posterior == "diag" or estimator.outputs == "independent"
    ):
        raise ValueError(
            "inference='linearized-vi' needs posterior='full' or 'last_layer' and "
            f"outputs='joint'; got {posterior=} and outputs={estimator.outputs!r}."
        )
    if estimator.outputs == "independent" and (posterior != "full" or prior_precision == "auto"):
        raise ValueError(
            "outputs='independent' needs posterior='full' and a number for prior_precision; "
            f"got {posterior=} and {prior_precision=}. outputs='joint' lets the evidence choose "
            "it, on posterior_samples if need be."
        )


def warn_of_scales(X: NDArray) -> None:
    """Warn of features whose spread saturates or starves the first layer."""
    if X.ndim != 2:
        return
    spread = X.std(axis=0)
    odd = np.flatnonzero((spread > _SCALE_RANGE[1]) | ((spread > 0) & (spread < _SCALE_RANGE[0])))
    if len(odd):
        warnings.warn(
            f"X has {len(odd)} feature(s) of extreme spread (feature {odd[0]}: standard deviation "
            f"{spread[odd[0]]:.1e}), too much for a network. Put StandardScaler before it.",
            UserWarning,
            stacklevel=4,
        )

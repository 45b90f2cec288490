"""How q(w) is found: small objects with their settings, for which a string is shorthand."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from sklearn.base import BaseEstimator

from .._utils.documentation import Documented
from .._utils.settings import require

__all__ = ["NAMES", "Laplace", "LinearizedVariational", "Variational", "resolve_inference"]


class Laplace(Documented, BaseEstimator):
    """At the minimum of the loss, by its Gauss-Newton curvature (:ref:`math-laplace`).

    Examples
    --------
    >>> from sk_dnn2gp.inference import Laplace
    >>> Laplace()
    Laplace()
    """

    def validate(self) -> None:
        """Nothing can be wrong."""


class Variational(Documented, BaseEstimator):
    """By variational training of the network from the Laplace posterior (:ref:`math-variational`).

    VOGGN for a full covariance, VOGN for a diagonal one; every step is a Gaussian process
    (theorem 2). Where δ or σ is free, it goes on to the best evidence lower bound.

    Parameters
    ----------
    max_iter : int, default=200
        Epochs.
    n_samples : int, default=4
        Draws of the weights in each step.
    batch_size : int or "auto", default="auto"
        Rows in a minibatch; "auto" is all rows.

    Examples
    --------
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.inference import Variational
    >>> DNN2GPRegressor(inference=Variational(n_samples=8)).get_params()["inference__max_iter"]
    200
    """

    def __init__(
        self, max_iter: int = 200, n_samples: int = 4, batch_size: int | str = "auto"
    ) -> None:
        self.max_iter = max_iter
        self.n_samples = n_samples
        self.batch_size = batch_size

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        for name in ("max_iter", "n_samples", "batch_size"):
            if name != "batch_size" or self.batch_size != "auto":
                require(self, name, Integral, 1, "a positive whole number")


class LinearizedVariational(Documented, BaseEstimator):
    """The best Gaussian of theorem 1's linear model by the evidence lower bound: for classifiers.

    In one to three times the time of Laplace; its mean moves with it. δ is the Laplace evidence's.

    Parameters
    ----------
    max_iter : int, default=60
        Newton steps on q's natural parameters, at most.

    Examples
    --------
    >>> from sk_dnn2gp.inference import LinearizedVariational
    >>> LinearizedVariational().max_iter
    60
    """

    def __init__(self, max_iter: int = 60) -> None:
        self.max_iter = max_iter

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        require(self, "max_iter", Integral, 1, "a positive whole number")


# What each string is shorthand for.
NAMES: dict[str, Any] = {
    "laplace": Laplace,
    "vi": Variational,
    "linearized-vi": LinearizedVariational,
}


def resolve_inference(inference: Any) -> Any:
    """Turn a string into the object that it is shorthand for.

    Parameters
    ----------
    inference : str, Laplace, Variational or LinearizedVariational

    Returns
    -------
    Laplace, Variational or LinearizedVariational

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> from sk_dnn2gp.inference import resolve_inference
    >>> resolve_inference("vi")
    Variational()
    """
    if isinstance(inference, str) and inference in NAMES:
        return NAMES[inference]()
    if not isinstance(inference, Laplace | Variational | LinearizedVariational):
        raise ValueError(
            f"inference must be one of {', '.join(map(repr, NAMES))}, or an object of "
            f"sk_dnn2gp.inference such as Variational(max_iter=500); got {inference!r}."
        )
    return inference

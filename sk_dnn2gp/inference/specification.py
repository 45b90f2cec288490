"""How q(w) is found: small objects with their settings, for which a string is shorthand."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from sklearn.base import BaseEstimator

from .._utils.documentation import Documented
from .._utils.settings import require

__all__ = [
    "NAMES",
    "SWAG",
    "Laplace",
    "LinearizedVariational",
    "Variational",
    "resolve_inference",
]


class Laplace(Documented, BaseEstimator):
    """At the minimum of the loss, by its curvature (:ref:`math-laplace`).

    Parameters
    ----------
    curvature : {"ggn", "gradient"}, default="ggn"
        The paper's eq. 5 with Jacobians, the generalised Gauss-Newton matrix Σ_i JᵀΛJ; or with
        gradients in their place, Σ_i ∇ℓ_i ∇ℓ_iᵀ, one row for an example and not one for each
        output (:ref:`math-gradients`). Weights, δ, σ and evidence are those of "ggn".
    criterion : {"evidence", "conditional"}, default="evidence"
        What ``prior_precision="auto"`` and ``noise_std="auto"`` maximise: the evidence of all rows,
        or that of half of them given the other half, averaged over four random halves
        (:ref:`math-leave-one-out`; :func:`~sk_dnn2gp.model_selection.conditional_evidence`, whose
        defaults these are), which asks less of a prior for what it says before any data. σ is the
        one of the highest evidence either way. Of one δ, for regression with Gaussian noise, and
        ``posterior="full"``.

    Examples
    --------
    >>> from sk_dnn2gp.inference import Laplace
    >>> Laplace(curvature="gradient")
    Laplace(curvature='gradient')
    """

    def __init__(self, curvature: str = "ggn", criterion: str = "evidence") -> None:
        self.curvature = curvature
        self.criterion = criterion

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        if self.curvature not in ("ggn", "gradient"):
            raise ValueError(
                f"Laplace: curvature must be 'ggn' or 'gradient', got {self.curvature!r}."
            )
        if self.criterion not in ("evidence", "conditional"):
            raise ValueError(
                f"Laplace: criterion must be 'evidence' or 'conditional', got {self.criterion!r}."
            )


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


class SWAG(Documented, BaseEstimator):
    """By the moments of the weights along SGD at a constant rate (:ref:`math-swag`).

    After training, epochs of plain SGD on the same loss begin at its end; the mean of the weights
    after each and their covariance, low rank plus diagonal, are q (Maddox et al. 2019;
    ``posterior="diag"``: the diagonal alone). A skorch net with a
    :class:`~sk_dnn2gp.inference.Snapshots` among its callbacks brings its own weights, inside
    FrozenEstimator too; the settings here are then left aside. There is no evidence of such a q.

    Parameters
    ----------
    rank : int, default=20
        The last weights whose deviations are kept.
    max_iter : int, default=100
        Epochs: one of the weights each.
    learning_rate : float or "auto", default="auto"
        Of loss/N. "auto" is where the stationary distribution is nearest to the posterior, or half
        of where SGD would diverge, whichever is less.
    batch_size : int or "auto", default="auto"
        Rows in a minibatch; "auto" is an eighth of all, 128 at most.

    Examples
    --------
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> DNN2GPRegressor(inference="swag").set_params(inference__rank=5).inference
    SWAG(rank=5)
    """

    def __init__(
        self,
        rank: int = 20,
        max_iter: int = 100,
        learning_rate: float | str = "auto",
        batch_size: int | str = "auto",
    ) -> None:
        self.rank = rank
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        for name in ("rank", "max_iter"):
            require(self, name, Integral, 2, "a whole number of at least 2")
        if self.batch_size != "auto":
            require(self, "batch_size", Integral, 1, "'auto' or a positive number of rows")
        if self.learning_rate != "auto":
            require(self, "learning_rate", Real, 0, "'auto' or a positive number", open_end=True)


# What each string is shorthand for.
NAMES: dict[str, Any] = {
    "laplace": Laplace,
    "vi": Variational,
    "linearized-vi": LinearizedVariational,
    "swag": SWAG,
}


def resolve_inference(inference: Any) -> Any:
    """Turn a string into the object that it is shorthand for.

    Parameters
    ----------
    inference : str, Laplace, Variational, LinearizedVariational or SWAG

    Returns
    -------
    Laplace, Variational, LinearizedVariational or SWAG

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
    if not isinstance(inference, tuple(NAMES.values())):
        raise ValueError(
            f"inference must be one of {', '.join(map(repr, NAMES))}, or an object of "
            f"sk_dnn2gp.inference such as Variational(max_iter=500); got {inference!r}."
        )
    return inference

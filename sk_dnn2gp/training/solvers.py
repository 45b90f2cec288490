"""How a network is trained: small objects with their settings, for which a string is shorthand.

    "auto"           by counted operations: NewtonCG where a factor of the posterior precision is
                     cheap enough, LBFGS where whole passes are, Adam in minibatches beyond
    "newton-cg"      NewtonCG       preconditioned L-BFGS, then Newton steps to a true minimum
    "gauss-newton"   GaussNewtonLM  damped Gauss-Newton steps (Levenberg-Marquardt)
    "lbfgs"          LBFGS          no factor: whole passes alone
    "adam", "sgd"    FirstOrder     minibatches by skorch; any torch optimiser class too

Second-order solvers see a loss as a function of weights (``second_order``); first-order ones train
a module (``first_order``).
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.base import BaseEstimator

from .._utils.documentation import Documented
from .._utils.settings import require

__all__ = [
    "LBFGS",
    "NAMES",
    "FirstOrder",
    "FullBatch",
    "GaussNewtonLM",
    "NewtonCG",
    "automatic_solver",
    "resolve_solver",
]

# Operations of one factor, and of one pass over all rows, that "auto" still spends.
_FACTOR, _PASS = 2e12, 5e11


class FullBatch(Documented, BaseEstimator):
    """A solver that sees all examples in every step, and reaches a true minimum.

    Parameters
    ----------
    max_iter : int, default=4000
        Steps at most, with those of second order that were tried and rejected; where δ or σ is
        chosen, of all minima on the way together (but for the first rough one), of which true
        minima have 1,000 (a half at most, a quarter at least; of more than 16,384 rows fewer in
        proportion), each rough one a fiftieth. A prior for each group, or a noise that varies, has
        as many again.
    tol : float, default=1e-8
        A minimum is where ‖∇loss‖ ≤ tol (1 + abs loss).
    memory_limit : float, default=None
        MiB for matrices and temporary work; None is scikit-learn's ``working_memory``.
    """

    def __init__(
        self, max_iter: int = 4000, tol: float = 1e-8, memory_limit: float | None = None
    ) -> None:
        self.max_iter = max_iter
        self.tol = tol
        self.memory_limit = memory_limit

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        require(self, "max_iter", Integral, 1, "a positive number of steps")
        require(self, "tol", Real, 0, "a number of at least 0")


class NewtonCG(FullBatch):
    """Preconditioned L-BFGS on the way down, Newton steps by conjugate gradients at the end.

    The preconditioner is a factor of the posterior precision, kept for many steps
    (:ref:`math-newton`). Settings are those of :class:`FullBatch`.

    Examples
    --------
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.training import NewtonCG
    >>> DNN2GPRegressor(solver=NewtonCG(tol=1e-10)).get_params()["solver__tol"]
    1e-10
    """


class GaussNewtonLM(FullBatch):
    """Damped Gauss-Newton steps (Levenberg-Marquardt), a factor in each.

    Settings are those of :class:`FullBatch`.

    Examples
    --------
    >>> from sk_dnn2gp.training import GaussNewtonLM
    >>> GaussNewtonLM(max_iter=50)
    GaussNewtonLM(max_iter=50)
    """


class LBFGS(FullBatch):
    """L-BFGS without a factor: memory for a few passes, whatever the number of weights.

    Parameters
    ----------
    max_iter : int, default=4000
        Steps at most.
    tol : float, default=1e-6
        A minimum is where ‖∇loss‖ ≤ tol (1 + abs loss).
    memory_limit : float, default=None
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Examples
    --------
    >>> from sk_dnn2gp.training import LBFGS
    >>> LBFGS().tol
    1e-06
    """

    def __init__(
        self, max_iter: int = 4000, tol: float = 1e-6, memory_limit: float | None = None
    ) -> None:
        super().__init__(max_iter, tol, memory_limit)


class FirstOrder(Documented, BaseEstimator):
    """A torch optimiser in minibatches, by skorch.

    Parameters
    ----------
    optimizer : {"adam", "sgd"} or torch.optim.Optimizer class, default="adam"
    max_iter : int, default=500
        Epochs.
    learning_rate : float, default=0.01
    learning_rate_schedule : {"constant", "cosine", "plateau"}, default="constant"
    batch_size : int or "auto", default="auto"
        Rows in a minibatch; "auto" is min(200, n_samples).
    tol : float, default=1e-8
        Training stops when the loss per example has not fallen by this much
    n_iter_no_change : int, default=10
        in so many epochs.
    evidence_interval : int, default=20
        Epochs between updates of δ and σ by the evidence, where they are free (Immer et al. 2021).

    Examples
    --------
    >>> from sk_dnn2gp import DNN2GPClassifier
    >>> from sk_dnn2gp.training import FirstOrder
    >>> model = DNN2GPClassifier(solver=FirstOrder("sgd", learning_rate=0.1))
    >>> model.get_params()["solver__batch_size"]
    'auto'
    """

    def __init__(
        self,
        optimizer: Any = "adam",
        max_iter: int = 500,
        learning_rate: float = 1e-2,
        learning_rate_schedule: str = "constant",
        batch_size: int | str = "auto",
        tol: float = 1e-8,
        n_iter_no_change: int = 10,
        evidence_interval: int = 20,
    ) -> None:
        self.optimizer = optimizer
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.batch_size = batch_size
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.evidence_interval = evidence_interval

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        for name in ("max_iter", "n_iter_no_change", "evidence_interval"):
            require(self, name, Integral, 1, "a positive whole number")
        if self.batch_size != "auto":
            require(self, "batch_size", Integral, 1, "'auto' or a positive number of rows")
        require(self, "tol", Real, 0, "a number of at least 0")
        require(self, "learning_rate", Real, 0, "a positive number", open_end=True)
        if self.learning_rate_schedule not in ("constant", "cosine", "plateau"):
            raise ValueError(
                "FirstOrder: learning_rate_schedule must be 'constant', 'cosine' or 'plateau', got "
                f"{self.learning_rate_schedule!r}."
            )
        if self.optimizer not in ("adam", "sgd") and not _is_optimizer(self.optimizer):
            raise ValueError(
                "FirstOrder: optimizer must be 'adam', 'sgd' or a torch.optim.Optimizer class, got "
                f"{self.optimizer!r}."
            )


# What each string is shorthand for.
NAMES: dict[str, Any] = {
    "newton-cg": NewtonCG,
    "gauss-newton": GaussNewtonLM,
    "lbfgs": LBFGS,
    "adam": FirstOrder,
    "sgd": lambda: FirstOrder("sgd"),
}


def resolve_solver(solver: Any) -> Any:
    """Turn a string or an optimiser class into the object that it is shorthand for.

    Parameters
    ----------
    solver : str, torch.optim.Optimizer class, FullBatch or FirstOrder

    Returns
    -------
    FullBatch, FirstOrder or None
        None for "auto", which needs the sizes: ``automatic_solver``.

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> from sk_dnn2gp.training import resolve_solver
    >>> resolve_solver("lbfgs")
    LBFGS()
    """
    if isinstance(solver, str) and solver == "auto":
        return None
    if isinstance(solver, str) and solver in NAMES:
        return NAMES[solver]()
    if isinstance(solver, type) and _is_optimizer(solver):
        return FirstOrder(solver)
    if not isinstance(solver, FullBatch | FirstOrder):
        raise ValueError(
            f"solver must be 'auto', one of {', '.join(map(repr, NAMES))}, a torch.optim.Optimizer "
            "class, or an object of sk_dnn2gp.training such as NewtonCG(tol=1e-10); got "
            f"{solver!r}."
        )
    return solver


def automatic_solver(n_rows: float, n_params: int, pass_operations: float, fits: bool) -> Any:
    """The solver that "auto" means, by counted operations.

    ``n_rows`` is NK, ``pass_operations`` the multiplications of one pass over all rows; ``fits``
    says whether a factor of the smaller of P×P and NK×NK fits the memory limit.
    """
    size = min(n_rows, n_params)
    factor = size**3 / 3.0 + n_rows * n_params * size
    if fits and factor <= _FACTOR:
        return NewtonCG()
    if pass_operations <= _PASS:
        return LBFGS()
    return FirstOrder(max_iter=max(10, math.ceil(2e6 / n_rows)), learning_rate_schedule="cosine")


def _is_optimizer(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, torch.optim.Optimizer)

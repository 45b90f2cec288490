"""Which posterior: small objects with their settings, for which a string is shorthand.

Each says which weights the linear model takes (``parameters``), which examples (``rows``), makes
the posterior of a linear model (``build``), and states whether that is the exact posterior of the
process whose kernel is the whole network's (``is_network_process``). A new posterior edits one
file, and ``NAMES`` where a string is to mean it.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state

from .._utils.documentation import Documented
from .._utils.memory import limit_in_bytes, require_memory
from .._utils.settings import require
from .._utils.warn import warn
from ..exceptions import ApproximationWarning
from ..linear_model import LinearModel
from .contract import Posterior
from .diagonal import DiagonalPosterior
from .function_space import FunctionSpacePosterior
from .independent import IndependentPosterior
from .kronecker import KroneckerPosterior
from .low_rank import LowRankPosterior
from .weight_space import WeightSpacePosterior

__all__ = [
    "NAMES",
    "Automatic",
    "Diagonal",
    "Full",
    "IndependentOutputs",
    "Kronecker",
    "LastLayer",
    "LowRank",
    "PosteriorSpecification",
    "SubsetOfData",
    "SubsetOfWeights",
    "make_posterior",
    "resolve_posterior",
]


class PosteriorSpecification(Documented, BaseEstimator):
    """What every specification offers; what is here holds unless a class says otherwise.

    Parameters
    ----------
    memory_limit : float, optional
        MiB for factors and temporary work; None is scikit-learn's ``working_memory``. It is the
        one setting of each specification here that names no others.

    Attributes
    ----------
    parameters : None, "last_layer" or tuple of str
        Which weights are w: what :class:`~sk_dnn2gp.linearize.Linearization` takes.
    is_network_process : bool
        Whether the posterior is, exactly, that of the Gaussian process whose kernel is the
        network's neural tangent kernel over all weights and whose data are all examples.
    has_common_precision : bool
        Whether the posterior is a Gaussian over weights, with one precision A: draws of the
        weights, the Newton decrement and the dual evidence need one.
    """

    is_network_process: bool = False
    has_common_precision: bool = True
    _posterior: Any = None  # what ``build`` makes

    def __init__(self, memory_limit: float | None = None) -> None:
        self.memory_limit = memory_limit

    @property
    def parameters(self) -> Any:
        """All weights."""
        return None

    def rows(self, n_samples: int, random_state: Any = None) -> NDArray | None:
        """Which examples the posterior is of: indices in order, (n_chosen,), or None for all.

        ``random_state`` counts where the specification has none of its own.
        """
        return None

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        if getattr(self, "memory_limit", None) is not None:
            what = "a positive number of MiB, or None for scikit-learn's working_memory"
            require(self, "memory_limit", Real, 0, what, open_end=True)

    def build(self, model: LinearModel) -> Posterior:
        """Make the posterior, of a model of the weights ``parameters`` and the examples ``rows``.

        MemoryError if a factor does not fit, saying what would; LinAlgError if a matrix has none in
        floating point.
        """
        return self._posterior(model, self.memory_limit)


class Full(PosteriorSpecification):
    """The exact posterior of all weights, in the space where it is cheaper.

    P×P where P ≤ NK, NK×NK otherwise (:ref:`math-laplace`).

    Examples
    --------
    >>> from sk_dnn2gp.posterior import Full
    >>> Full(memory_limit=200.0).is_network_process
    True
    """

    is_network_process = True

    def build(self, model: LinearModel) -> Posterior:
        """Make the posterior, in weight space or in function space."""
        size = min(model.n_params, model.n_rows)
        largest = int((limit_in_bytes(self.memory_limit) / 16) ** 0.5)
        require_memory(
            2 * 8 * size**2,
            self.memory_limit,
            f"The full posterior (P={model.n_params} weights, NK={model.n_rows} rows)",
            f"Within it fits min(P, NK) <= {largest}: use posterior='last_layer' or 'diag', a "
            f"smaller network, a subset of the data, or raise memory_limit.",
        )
        if model.n_params <= model.n_rows:
            return WeightSpacePosterior(model, self.memory_limit)
        return FunctionSpacePosterior(model, self.memory_limit)


class LastLayer(Full):
    """The exact posterior of the last layer's weights, the others held as they are.

    Examples
    --------
    >>> from sk_dnn2gp.posterior import LastLayer
    >>> LastLayer().parameters
    'last_layer'
    """

    is_network_process = False

    @property
    def parameters(self) -> str:
        """The layer with weights that is called last."""
        return "last_layer"


class SubsetOfWeights(Full):
    """The exact posterior of weights chosen by name, the others held as they are.

    Parameters
    ----------
    parameters : sequence of str
        Names as in the module's ``named_parameters()``.
    memory_limit : float, optional
        MiB for the factor and temporary work; None is scikit-learn's ``working_memory``.

    Examples
    --------
    >>> from sk_dnn2gp.posterior import SubsetOfWeights
    >>> SubsetOfWeights(("0.weight", "2.weight")).is_network_process
    False
    """

    is_network_process = False
    parameters: Any = None

    def __init__(self, parameters: Sequence[str] = (), memory_limit: float | None = None) -> None:
        super().__init__(memory_limit)
        self.parameters = parameters

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        super().validate()
        names = self.parameters
        sequence = isinstance(names, Sequence) and not isinstance(names, str)
        if not sequence or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(
                "SubsetOfWeights: parameters must be names of parameters of the module, such as "
                f"('0.weight', '0.bias'), at least one; got {names!r}."
            )
        if len(set(names)) < len(names):
            raise ValueError(f"SubsetOfWeights: parameters names some twice: {names!r}.")


class Diagonal(PosteriorSpecification):
    """The diagonal of the posterior precision alone: linear in the number of weights.

    Correlations between weights are dropped (:ref:`math-laplace`).

    Examples
    --------
    >>> from sk_dnn2gp.posterior import Diagonal
    >>> Diagonal().is_network_process
    False
    """

    _posterior = DiagonalPosterior


class IndependentOutputs(PosteriorSpecification):
    """One process per output, their correlations dropped: K factors of N×N.

    Examples
    --------
    >>> from sk_dnn2gp.posterior import IndependentOutputs
    >>> IndependentOutputs().has_common_precision
    False
    """

    has_common_precision = False

    _posterior = IndependentPosterior


class SubsetOfData(PosteriorSpecification):
    """The posterior given a random part of the examples, which never says too little variance.

    The network is trained on all of them; of the exact posterior, leaving examples out can only
    widen every variance.

    Parameters
    ----------
    n_samples : int
        How many examples; all of them where there are no more.
    posterior : str or PosteriorSpecification, default="full"
        Which posterior, given those.
    random_state : int, RandomState instance or None, default=None
        Of the choice; None takes the seed of the fit.

    Examples
    --------
    >>> from sk_dnn2gp.posterior import SubsetOfData
    >>> SubsetOfData(3, random_state=0).rows(100).tolist()
    [2, 26, 86]
    """

    def __init__(
        self,
        n_samples: int,
        posterior: str | PosteriorSpecification = "full",
        random_state: Any = None,
    ) -> None:
        self.n_samples = n_samples
        self.posterior = posterior
        self.random_state = random_state

    @property
    def parameters(self) -> Any:
        """Those of the inner posterior."""
        return self._inner().parameters

    @property
    def has_common_precision(self) -> bool:  # type: ignore[override]
        """As the inner posterior."""
        return self._inner().has_common_precision

    def rows(self, n_samples: int, random_state: Any = None) -> NDArray | None:
        """Which examples, in order; None where there are no more than asked for."""
        if self.n_samples >= n_samples:
            return None
        seed = random_state if self.random_state is None else self.random_state
        chosen = check_random_state(seed).choice(n_samples, self.n_samples, replace=False)
        return np.sort(chosen)

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        require(self, "n_samples", Integral, 1, "a positive number of examples")
        if isinstance(self.posterior, SubsetOfData):
            raise ValueError(
                "SubsetOfData: posterior must not be a SubsetOfData again: give the least "
                f"n_samples of the two; got {self.posterior!r}."
            )
        self._inner().validate()

    def build(self, model: LinearModel) -> Posterior:
        """Make the inner posterior, of a model of the chosen examples."""
        return self._inner().build(model)

    def _inner(self) -> PosteriorSpecification:
        return resolve_posterior(self.posterior)


class LowRank(PosteriorSpecification):
    """The posterior by a sketch of ΦᵀΦ that knows its own error (:ref:`math-low-rank`).

    Parameters
    ----------
    tol : float, default=0.1
        η/δ to reach: standard deviations are then at most √(1 + η/δ) times too wide.
    max_rank : int, optional
        The sketch stops there; None is what the memory allows.
    max_seconds : float, optional
        Seconds that it may take.
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.
    random_state : int, RandomState instance or None, default=0
        Of the sketch.

    Examples
    --------
    >>> from sk_dnn2gp.posterior import LowRank
    >>> LowRank(tol=0.5)
    LowRank(tol=0.5)
    """

    def __init__(
        self,
        tol: float = 0.1,
        *,
        max_rank: int | None = None,
        max_seconds: float | None = None,
        memory_limit: float | None = None,
        random_state: Any = 0,
    ) -> None:
        self.tol = tol
        self.max_rank = max_rank
        self.max_seconds = max_seconds
        self.memory_limit = memory_limit
        self.random_state = random_state

    def validate(self) -> None:
        """Raise ValueError where a setting cannot work, with its name and what to give."""
        super().validate()
        require(self, "tol", Real, 0, "a positive number", open_end=True)
        if self.max_rank is not None:
            require(self, "max_rank", Integral, 1, "a positive number or None")

    def build(self, model: LinearModel) -> Posterior:
        """Make the posterior."""
        return LowRankPosterior(model, **self.get_params(deep=False))


class Kronecker(PosteriorSpecification):
    """One Kronecker product for each layer's part of ΦᵀΦ (K-FAC): no bound of its error.

    Examples
    --------
    >>> from sk_dnn2gp.posterior import Kronecker
    >>> Kronecker().is_network_process
    False
    """

    _posterior = KroneckerPosterior


class Automatic(Full):
    """The exact posterior where it fits the memory, else a low-rank one with its certificate.

    Warns
    -----
    ApproximationWarning
        With the certificate, where the posterior is not the exact one.

    Examples
    --------
    >>> from sk_dnn2gp.posterior import resolve_posterior
    >>> resolve_posterior("auto")
    Automatic()
    """

    def build(self, model: LinearModel) -> Posterior:
        """Make the posterior, exact where it fits."""
        size = min(model.n_params, model.n_rows)
        if 2 * 8 * size**2 <= limit_in_bytes(self.memory_limit):
            return super().build(model)
        posterior = LowRankPosterior(model, memory_limit=self.memory_limit, random_state=0)
        warn(
            f"The exact posterior (P={model.n_params} weights, NK={model.n_rows} rows) does not "
            f"fit the memory: a low-rank one of rank {posterior.rank} takes its place, whose "
            f"standard deviations are at most {posterior.std_factor:.3g} times too wide. Ask for "
            "posterior=LowRank(tol=...) by name, or raise memory_limit.",
            ApproximationWarning,
        )
        return posterior


# What each string is shorthand for; another posterior adds its class here.
NAMES: dict[str, type[PosteriorSpecification]] = {
    "auto": Automatic,
    "full": Full,
    "diag": Diagonal,
    "last_layer": LastLayer,
    "independent": IndependentOutputs,
    "low_rank": LowRank,
    "kronecker": Kronecker,
}


def resolve_posterior(
    posterior: str | PosteriorSpecification, memory_limit: float | None = None
) -> PosteriorSpecification:
    """Turn a string into the object that it is shorthand for.

    Parameters
    ----------
    posterior : str or PosteriorSpecification
        An object is returned as it is, or as a copy where it takes ``memory_limit``.
    memory_limit : float, optional
        MiB, for objects that have none of their own.

    Returns
    -------
    PosteriorSpecification

    Raises
    ------
    ValueError
        If ``posterior`` is neither one of the names nor such an object.

    Examples
    --------
    >>> from sk_dnn2gp.posterior import resolve_posterior
    >>> resolve_posterior("diag")
    Diagonal()
    """
    if isinstance(posterior, str) and posterior in NAMES:
        posterior = NAMES[posterior]()
    if not isinstance(posterior, PosteriorSpecification):
        names = ", ".join(repr(name) for name in NAMES)
        raise ValueError(
            f"posterior must be one of {names}, or an object of sk_dnn2gp.posterior such as "
            f"Full(memory_limit=2000); got {posterior!r}."
        )
    if memory_limit is None or getattr(posterior, "memory_limit", 0.0) is not None:
        return posterior
    return clone(posterior).set_params(memory_limit=memory_limit)


def make_posterior(
    model: LinearModel,
    posterior: str | PosteriorSpecification = "full",
    memory_limit: float | None = None,
) -> Posterior:
    """Return the posterior of ``model``.

    Parameters
    ----------
    model : LinearModel
    posterior : str or PosteriorSpecification, default="full"
        "full" is exact, in weight space (P×P) where P ≤ NK and in function space (NK×NK)
        otherwise; "diag" keeps diag(ΦᵀΦ) + δ only; "independent" takes one process per output.
        Weights and examples are the model's, whatever the posterior would choose.
    memory_limit : float, optional
        MiB for the factor and temporary work, where ``posterior`` has none of its own; None is
        scikit-learn's ``working_memory``.

    Returns
    -------
    Posterior

    Raises
    ------
    MemoryError
        If a factor does not fit, saying what would.
    ValueError
        If ``posterior`` is unknown.
    """
    return resolve_posterior(posterior, memory_limit).build(model)

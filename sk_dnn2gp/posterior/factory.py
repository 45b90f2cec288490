"""Which posterior serves: the choice by cost, in one place (MATH 3)."""

from __future__ import annotations

from typing import Protocol

from torch import Generator, Tensor

from .._utils.memory import limit_in_bytes, require_memory
from ..linear_model import LinearModel
from .diagonal import DiagonalPosterior
from .function_space import FunctionSpacePosterior
from .independent import IndependentPosterior
from .weight_space import WeightSpacePosterior

__all__ = ["Posterior", "make_posterior"]


class Posterior(Protocol):
    """What every posterior offers (see the package docstring for the meaning of each)."""

    model: LinearModel

    @property
    def log_determinant(self) -> float:
        """log|B|."""
        ...

    @property
    def effective_dimension(self) -> float:
        """γ."""
        ...

    @property
    def newton_decrement(self) -> float:
        """gᵀ A⁻¹ g."""
        ...

    def solve(self, v: Tensor) -> Tensor:
        """A⁻¹ v, of shape (n_params,)."""
        ...

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* of f(x), of shape (n_samples, n_outputs, n_outputs)."""
        ...

    def joint_covariance(self, X: Tensor) -> Tensor:
        """Joint V_*, of shape (n_samples n_outputs, n_samples n_outputs)."""
        ...

    def sample(self, X: Tensor, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw zero-mean fluctuations of f(X), of shape (n_samples, len(X), n_outputs)."""
        ...


def make_posterior(
    model: LinearModel, structure: str = "full", memory_limit: float | None = None
) -> Posterior:
    """Return the posterior of ``model``, in the space where it is cheaper.

    Parameters
    ----------
    model : LinearModel
    structure : {"full", "diag", "independent"}, default="full"
        "full" is exact, in weight space (P×P) where P ≤ NK and in function space (NK×NK)
        otherwise; "diag" keeps diag(ΦᵀΦ) + δ only; "independent" takes one process per output.
    memory_limit : float, optional
        MiB for the factor and temporary work; None is scikit-learn's ``working_memory``.

    Returns
    -------
    Posterior

    Raises
    ------
    MemoryError
        If the exact factor does not fit, saying what would.
    ValueError
        If ``structure`` is unknown.
    """
    if structure == "diag":
        return DiagonalPosterior(model, memory_limit)
    if structure == "independent":
        return IndependentPosterior(model, memory_limit)
    if structure != "full":
        raise ValueError(f"structure must be 'full', 'diag' or 'independent', got {structure!r}.")
    size = min(model.n_params, model.n_rows)
    largest = int((limit_in_bytes(memory_limit) / 16) ** 0.5)
    require_memory(
        2 * 8 * size**2,
        memory_limit,
        f"The full posterior (P={model.n_params} weights, NK={model.n_rows} rows)",
        f"Within it fits min(P, NK) <= {largest}: use posterior='last_layer' or 'diag', a smaller "
        f"network, a subset of the data, or raise memory_limit.",
    )
    if model.n_params <= model.n_rows:
        return WeightSpacePosterior(model, memory_limit)
    return FunctionSpacePosterior(model, memory_limit)

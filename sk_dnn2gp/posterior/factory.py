"""The posterior of a linear model in one call."""

from __future__ import annotations

from ..linear_model import LinearModel
from .contract import Posterior
from .specification import PosteriorSpecification, resolve_posterior

__all__ = ["Posterior", "make_posterior"]


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

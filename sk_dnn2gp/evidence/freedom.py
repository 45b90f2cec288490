"""What an evidence search may move: δ and σ together (ρ = δσ²), or one of them.

Shapes: δ (n_params,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..likelihoods import Gaussian, Likelihood
from ..linear_model import LinearModel
from ..training.objective import Objective

__all__ = ["NOISE_STD_BOUNDS", "PRIOR_PRECISION_BOUNDS", "Freedom", "n_observations", "profiled"]

# Finite, wide bounds: the best δ grows with width (0.5 at 50, 220 at 20,000), and σ is in units of
# the standardised targets.
PRIOR_PRECISION_BOUNDS = (1e-5, 1e8)
NOISE_STD_BOUNDS = (1e-4, 1e2)


@dataclass(frozen=True)
class Freedom:
    """What θ moves: both δ and σ (ρ), δ alone, or σ alone.

    Parameters
    ----------
    prior_precision, noise_std : bool
        Whether δ and σ are free.
    """

    prior_precision: bool
    noise_std: bool

    @property
    def is_any(self) -> bool:
        """Whether anything is free."""
        return self.prior_precision or self.noise_std

    def moved(self, objective: Objective, step: float) -> Objective:
        """The objective with θ moved by ``step``; σ follows later where both are free."""
        if self.prior_precision:
            return objective.under(objective.likelihood, objective.prior_precision * math.exp(step))
        sigma = _sigma(objective.likelihood) * math.exp(0.5 * step)
        return objective.under(Gaussian(sigma), objective.prior_precision)

    def room(self, objective: Objective) -> tuple[float, float]:
        """How far θ may move down and up before δ or σ is at a bound."""
        if self.prior_precision:
            logs = objective.prior_precision.log()
            low, high = (math.log(b) for b in PRIOR_PRECISION_BOUNDS)
            return low - float(logs.min()), high - float(logs.max())
        log_sigma = math.log(_sigma(objective.likelihood))
        low, high = (math.log(b) for b in NOISE_STD_BOUNDS)
        return 2.0 * (low - log_sigma), 2.0 * (high - log_sigma)


def profiled(objective: Objective, model: LinearModel) -> Objective:
    """σ² = S/NK at the same ρ: w*, J and B stay as they are."""
    sigma = _sigma(objective.likelihood)
    S = float(model.whitened_residual.square().sum())
    S += float((model.prior_precision * model.weights**2).sum())
    best = sigma * math.sqrt(S / n_observations(model, objective.likelihood))
    best = min(max(best, NOISE_STD_BOUNDS[0]), NOISE_STD_BOUNDS[1])
    delta = objective.prior_precision * (sigma / best) ** 2
    return objective.under(Gaussian(best), delta)


def n_observations(model: LinearModel, likelihood: Likelihood) -> float:
    """K Σ s for the Gaussian, of L Lᵀ = s I/σ²; the number of rows otherwise."""
    if likelihood.sigma is None:
        return float(model.n_rows)
    return float(model.noise_factor.square().sum()) * likelihood.sigma**2


def _sigma(likelihood: Likelihood) -> float:
    if likelihood.sigma is None:
        raise TypeError(f"{type(likelihood).__name__} has no noise_std to choose.")
    return likelihood.sigma

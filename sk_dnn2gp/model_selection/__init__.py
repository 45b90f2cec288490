"""Choosing hyperparameters by the evidence, without validation data (:ref:`math-evidence`).

scorer   the log marginal likelihood, and the log density of held-out rows, for scikit-learn's tools
split    all rows for training and for scoring
paths    the evidence over δ and σ at the trained weights, and its maximum
inside   the estimator in a Pipeline, a TransformedTargetRegressor or a search
target   what a transformation of y does to a density
"""

from .paths import evidence_path, optimize_hyperparameters
from .scorer import (
    LogPredictiveDensityScorer,
    MarginalLikelihoodScorer,
    log_predictive_density_scorer,
    marginal_likelihood_scorer,
)
from .split import TrainingSetSplit

__all__ = [
    "LogPredictiveDensityScorer",
    "MarginalLikelihoodScorer",
    "TrainingSetSplit",
    "evidence_path",
    "log_predictive_density_scorer",
    "marginal_likelihood_scorer",
    "optimize_hyperparameters",
]

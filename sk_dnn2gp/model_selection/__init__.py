"""Choosing hyperparameters by the evidence, without validation data (:ref:`math-evidence`).

scorer   the log marginal likelihood, and densities of rows left out, for scikit-learn's tools
conditional  the evidence of some rows given the others
split    all rows for training and for scoring
paths    the evidence over δ and σ at the trained weights, and its maximum
inside   the estimator in a Pipeline, a TransformedTargetRegressor or a search
target   what a transformation of y does to a density
"""

from .conditional import conditional_evidence
from .paths import evidence_path, optimize_hyperparameters
from .scorer import (
    ConditionalEvidenceScorer,
    LeaveOneOutScorer,
    LogPredictiveDensityScorer,
    MarginalLikelihoodScorer,
    conditional_evidence_scorer,
    leave_one_out_scorer,
    log_predictive_density_scorer,
    marginal_likelihood_scorer,
    undecided_candidates,
)
from .split import TrainingSetSplit

__all__ = [
    "ConditionalEvidenceScorer",
    "LeaveOneOutScorer",
    "LogPredictiveDensityScorer",
    "MarginalLikelihoodScorer",
    "TrainingSetSplit",
    "conditional_evidence",
    "conditional_evidence_scorer",
    "evidence_path",
    "leave_one_out_scorer",
    "log_predictive_density_scorer",
    "marginal_likelihood_scorer",
    "optimize_hyperparameters",
    "undecided_candidates",
]

"""Choosing hyperparameters by the evidence, without validation data (MATH 8)."""

from .scorer import (
    MarginalLikelihoodScorer,
    TrainingSetSplit,
    evidence_path,
    marginal_likelihood_scorer,
    optimize_hyperparameters,
)

__all__ = [
    "MarginalLikelihoodScorer",
    "TrainingSetSplit",
    "evidence_path",
    "marginal_likelihood_scorer",
    "optimize_hyperparameters",
]

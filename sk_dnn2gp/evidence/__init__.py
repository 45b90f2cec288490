"""The log marginal likelihood: value, gradients and the search for its maximum (MATH 3, 8)."""

from .spectrum import (
    EvidenceSpectrum,
    GroupedEvidence,
    log_marginal_likelihood,
    updated_noise_std,
    updated_precision,
)

__all__ = [
    "EvidenceSpectrum",
    "GroupedEvidence",
    "log_marginal_likelihood",
    "updated_noise_std",
    "updated_precision",
]

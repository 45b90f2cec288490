"""The log marginal likelihood: value, gradients and the search for its maximum.

Mathematics: :ref:`math-evidence`, :ref:`math-choosing`.
"""

from .leave_one_out import leave_one_out
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
    "leave_one_out",
    "log_marginal_likelihood",
    "updated_noise_std",
    "updated_precision",
]

"""Posteriors of the linear model: twins behind one contract (:ref:`math-laplace`).

Each posterior class offers, for test inputs X of shape (n_samples, ...) and K outputs:

    variance(X)            (n_samples, K)         diag V_*: marginal variances of f(x)
    covariance(X)          (n_samples, K, K)      marginal V_* of f(x) per example
    joint_covariance(X)    (n K, n K)             V_* over all examples and outputs
    sample(X, n, generator)  (n, n_samples, K)    draws of f(X) - f_w*(X): zero-mean fluctuations
    sample_weights(n, generator)  (n, P)          draws of w - w*
    solve(v)               A⁻¹ v
    inverse_diagonal       diag A⁻¹: marginal variances of the weights
    log_determinant        log|B| = log|A| - Σ log δ
    effective_dimension    γ = P - Σ_p δ_p (A⁻¹)_pp
    newton_decrement       gᵀ A⁻¹ g with g = ∇loss(w*): twice what a Newton step would still gain
    is_exact               whether it is the linear model's own posterior, or an approximation

Independent outputs have no one A: what needs it raises ValueError there, and says so.

Which posterior is meant, with its settings, is an object of :mod:`.specification`; a string is
shorthand for one. ``make_posterior`` makes it of a linear model.
"""

from .contract import Posterior
from .diagonal import DiagonalPosterior
from .function_space import FunctionSpacePosterior
from .independent import IndependentPosterior, output_gram
from .kronecker import KroneckerPosterior
from .low_rank import LowRankPosterior
from .precision import GaussianWeights
from .specification import (
    Automatic,
    Diagonal,
    Full,
    IndependentOutputs,
    Kronecker,
    LastLayer,
    LowRank,
    PosteriorSpecification,
    SubsetOfData,
    SubsetOfWeights,
    make_posterior,
    resolve_posterior,
)
from .swag import SWAGPosterior
from .weight_space import PrecisionPosterior, WeightSpacePosterior

__all__ = [
    "Automatic",
    "Diagonal",
    "DiagonalPosterior",
    "Full",
    "FunctionSpacePosterior",
    "GaussianWeights",
    "IndependentOutputs",
    "IndependentPosterior",
    "Kronecker",
    "KroneckerPosterior",
    "LastLayer",
    "LowRank",
    "LowRankPosterior",
    "Posterior",
    "PosteriorSpecification",
    "PrecisionPosterior",
    "SWAGPosterior",
    "SubsetOfData",
    "SubsetOfWeights",
    "WeightSpacePosterior",
    "make_posterior",
    "output_gram",
    "resolve_posterior",
]

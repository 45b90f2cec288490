"""Posteriors of the linear model: twins behind one contract (MATH 3).

Each posterior class offers, for test inputs X of shape (n_samples, ...) and K outputs:

    covariance(X)          (n_samples, K, K)      marginal V_* of f(x) per example
    joint_covariance(X)    (n K, n K)             V_* over all examples and outputs
    sample(X, n, generator)  (n, n_samples, K)    draws of f(X) - f_w*(X): zero-mean fluctuations
    solve(v)               A⁻¹ v
    log_determinant        log|B| = log|A| - Σ log δ
    effective_dimension    γ = P - Σ_p δ_p (A⁻¹)_pp
    newton_decrement       gᵀ A⁻¹ g with g = ∇loss(w*): twice what a Newton step would still gain

``make_posterior`` takes the cheaper of weight space and function space, or an approximation: the
diagonal, or independent outputs.
"""

from .diagonal import DiagonalPosterior
from .factory import Posterior, make_posterior
from .function_space import FunctionSpacePosterior
from .independent import IndependentPosterior, output_gram
from .weight_space import WeightSpacePosterior

__all__ = [
    "DiagonalPosterior",
    "FunctionSpacePosterior",
    "IndependentPosterior",
    "Posterior",
    "WeightSpacePosterior",
    "make_posterior",
    "output_gram",
]

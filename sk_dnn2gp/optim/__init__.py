"""Torch optimisers that know the curvature of the likelihood (:ref:`math-variational`)."""

from .gauss_newton import GaussNewton
from .variational import OGGN, OGN, VOGGN, VOGN, GaussianWeights, VariationalOptimizer

__all__ = ["OGGN", "OGN", "VOGGN", "VOGN", "GaussNewton", "GaussianWeights", "VariationalOptimizer"]

"""Torch optimisers that know the curvature of the likelihood (MATH 5)."""

from .gauss_newton import GaussNewton
from .variational import OGGN, OGN, VOGGN, VOGN, GaussianWeights

__all__ = ["OGGN", "OGN", "VOGGN", "VOGN", "GaussNewton", "GaussianWeights"]

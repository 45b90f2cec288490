"""Torch optimisers that know the curvature of the likelihood (MATH 5)."""

from .gauss_newton import GaussNewton

__all__ = ["GaussNewton"]

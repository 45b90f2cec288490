"""Kernels of networks for scikit-learn's Gaussian processes."""

from .features import NTKFeatures
from .ntk import NTKKernel

__all__ = ["NTKFeatures", "NTKKernel"]

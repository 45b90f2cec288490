"""Kernels of networks for scikit-learn's Gaussian processes."""

from .dense import InfiniteNTKKernel, NNGPKernel
from .features import NTKFeatures
from .ntk import NTKKernel

__all__ = ["InfiniteNTKKernel", "NNGPKernel", "NTKFeatures", "NTKKernel"]

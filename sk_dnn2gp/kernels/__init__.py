"""Kernels of networks for scikit-learn's Gaussian processes."""

from .conv import ConvNetKernel, ResNetKernel
from .dense import InfiniteNTKKernel, NNGPKernel
from .features import NTKFeatures
from .ntk import NTKKernel

__all__ = [
    "ConvNetKernel",
    "InfiniteNTKKernel",
    "NNGPKernel",
    "NTKFeatures",
    "NTKKernel",
    "ResNetKernel",
]

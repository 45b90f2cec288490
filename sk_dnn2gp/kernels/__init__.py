"""Kernels of networks for scikit-learn's Gaussian processes."""

from .features import NNGPFeatures, NTKFeatures
from .infinite.conv import ConvNetKernel, ResNetKernel
from .infinite.dense import InfiniteNTKKernel, NNGPKernel
from .infinite.network import InfiniteNetworkKernel
from .norm import squared_rkhs_norm
from .ntk import NTKKernel

__all__ = [
    "ConvNetKernel",
    "InfiniteNTKKernel",
    "InfiniteNetworkKernel",
    "NNGPFeatures",
    "NNGPKernel",
    "NTKFeatures",
    "NTKKernel",
    "ResNetKernel",
    "squared_rkhs_norm",
]

"""Kernels of networks for scikit-learn's Gaussian processes."""

from .ntk import NTKKernel

__all__ = ["NTKKernel"]

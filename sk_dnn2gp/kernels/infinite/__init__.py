"""Kernels of networks of infinite width (MATH 7)."""

"""Trained deep networks as Gaussian processes, at home in scikit-learn."""

from ._version import __version__

__all__ = ["__version__"]

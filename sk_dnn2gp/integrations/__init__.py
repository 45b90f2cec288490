"""Fitted estimators in the terms of other libraries, which are imported when they are asked for."""

from .botorch import BoTorchModel

__all__ = ["BoTorchModel"]

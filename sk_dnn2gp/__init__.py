"""Trained deep networks as Gaussian processes, at home in scikit-learn."""

from ._classifier import DNN2GPClassifier
from ._nngp import NNGPClassifier
from ._regressor import DNN2GPRegressor
from ._version import __version__
from .kernels import (
    ConvNetKernel,
    InfiniteNTKKernel,
    NNGPKernel,
    NTKFeatures,
    NTKKernel,
    ResNetKernel,
)
from .model_selection import (
    TrainingSetSplit,
    evidence_path,
    marginal_likelihood_scorer,
    optimize_hyperparameters,
)

__all__ = [
    "ConvNetKernel",
    "DNN2GPClassifier",
    "DNN2GPRegressor",
    "InfiniteNTKKernel",
    "NNGPClassifier",
    "NNGPKernel",
    "NTKFeatures",
    "NTKKernel",
    "ResNetKernel",
    "TrainingSetSplit",
    "__version__",
    "evidence_path",
    "marginal_likelihood_scorer",
    "optimize_hyperparameters",
]

"""Trained deep networks as Gaussian processes, at home in scikit-learn."""

from ._version import __version__
from .estimators.classifier import DNN2GPClassifier
from .estimators.mixture import MixtureClassifier, MixtureRegressor
from .estimators.nngp_classifier import NNGPClassifier
from .estimators.nngp_regressor import NNGPRegressor
from .estimators.regressor import DNN2GPRegressor
from .kernels import (
    ConvNetKernel,
    InfiniteNetworkKernel,
    InfiniteNTKKernel,
    NNGPFeatures,
    NNGPKernel,
    NTKFeatures,
    NTKKernel,
    ResNetKernel,
)
from .model_selection import (
    TrainingSetSplit,
    evidence_path,
    log_predictive_density_scorer,
    marginal_likelihood_scorer,
    optimize_hyperparameters,
)
from .persistence import load, save

__all__ = [
    "ConvNetKernel",
    "DNN2GPClassifier",
    "DNN2GPRegressor",
    "InfiniteNTKKernel",
    "InfiniteNetworkKernel",
    "MixtureClassifier",
    "MixtureRegressor",
    "NNGPClassifier",
    "NNGPFeatures",
    "NNGPKernel",
    "NNGPRegressor",
    "NTKFeatures",
    "NTKKernel",
    "ResNetKernel",
    "TrainingSetSplit",
    "__version__",
    "evidence_path",
    "load",
    "log_predictive_density_scorer",
    "marginal_likelihood_scorer",
    "optimize_hyperparameters",
    "save",
]

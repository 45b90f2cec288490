"""The paper's figures as Displays, in scikit-learn's manner.

A Display computes in ``from_estimator`` (or takes numbers in ``from_predictions``), draws in
``plot(ax=...)`` and keeps its artists as attributes ending in ``_``. matplotlib is an extra
(``plot``), imported when something is drawn; no global style is touched. Colours are those of Okabe
and Ito, which the colour-blind tell apart.

Shapes: X (n_samples, n_features), means and variances (n_samples,) or (n_samples, n_classes).
"""

from .classification import DecisionMapDisplay, UncertaintyDisplay
from .matrices import KernelDisplay, PosteriorMeanDisplay
from .regression import CoverageDisplay, PredictiveDisplay, QuantileCalibrationDisplay
from .tuning import MarginalLikelihoodDisplay

__all__ = [
    "CoverageDisplay",
    "DecisionMapDisplay",
    "KernelDisplay",
    "MarginalLikelihoodDisplay",
    "PosteriorMeanDisplay",
    "PredictiveDisplay",
    "QuantileCalibrationDisplay",
    "UncertaintyDisplay",
]

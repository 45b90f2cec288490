"""The estimator inside a Pipeline, a TransformedTargetRegressor or a fitted search."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from .target import transformed_target

__all__ = ["estimator_inside", "unwrapped"]


def unwrapped(
    estimator: Any, X: Any, y: Any, weight: ArrayLike | None = None, wanted: str = "linear_model_"
) -> tuple[Any, Any, Any, float]:
    """The estimator inside, its X and y, and Σ s log|∂z/∂y| of what was done to y on the way.

    X is what the outermost estimator's ``predict`` would take; y of None leaves X and y aside.
    ``wanted`` is the attribute that is looked for. TypeError if the estimator inside has no
    marginal likelihood or density of given data, ValueError if y went through a transformation
    whose density cannot be followed.
    """
    check_is_fitted(estimator)
    offset = 0.0
    while not hasattr(estimator, wanted):
        if isinstance(estimator, Pipeline):
            if y is not None and len(estimator) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        elif isinstance(estimator, TransformedTargetRegressor):
            if y is not None:
                y, change = transformed_target(estimator, y, weight)
                offset += change
            estimator = estimator.regressor_
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            break
    if not hasattr(estimator, wanted):
        raise TypeError(
            f"{type(estimator).__name__} has no marginal likelihood or density of given data. It "
            "is of DNN2GPRegressor and DNN2GPClassifier, also as the last step of a Pipeline, "
            "inside a TransformedTargetRegressor, or chosen by a fitted search."
        )
    return estimator, X, y, offset


def estimator_inside(estimator: Any) -> Any:
    """The fitted DNN2GPRegressor or DNN2GPClassifier alone; TypeError if there is none inside."""
    return unwrapped(estimator, None, None)[0]

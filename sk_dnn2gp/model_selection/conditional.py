"""The evidence of some rows given the others (:ref:`math-leave-one-out`; Lotfi et al. 2022).

    E(rest | part) = E(all) - E(part)

both of the ``dual`` kind at the same weights, features, δ and σ. The evidence's early terms predict
from few rows; given a part, they are left out. Nothing here looks inside an estimator:
``log_marginal_likelihood`` of given data is all that is used.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import _safe_indexing

from ..evidence.minima import random_parts
from .inside import unwrapped

__all__ = ["conditional_evidence"]


def conditional_evidence(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    theta: ArrayLike | None = None,
    part: float = 0.5,
    n_parts: int = 4,
    random_state: Any = 0,
    sample_weight: ArrayLike | None = None,
) -> Any:
    """Evidence of the rows left, given a part of them, per row left (:ref:`math-leave-one-out`).

    Between the evidence (no part) and leave-one-out (all rows but one). Exact for the linear model
    at the trained weights, whose features were learned with every row; for a classifier it is that
    of the transformed targets.

    Parameters
    ----------
    estimator : DNN2GPRegressor or DNN2GPClassifier
        Fitted; also as the last step of a Pipeline, inside a TransformedTargetRegressor, or as the
        best estimator of a fitted search.
    X : array-like
        The rows that were trained on, as ``estimator`` takes them.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
    theta : array-like of shape (n_hyperparameters,) or (n_points, n_hyperparameters), default=None
        As ``log_marginal_likelihood`` takes it; None is the fitted one.
    part : float, default=0.5
        Of the rows, from 0 to below 1.
    n_parts : int, default=4
        Random parts, over which the mean is taken.
    random_state : int, RandomState or None, default=0
        Draws them.
    sample_weight : array-like of shape (n_samples,), default=None

    Returns
    -------
    float, or ndarray of shape (n_points,)
        Nats per row left, in the units of y.

    Raises
    ------
    TypeError
        If there is no DNN2GPRegressor or DNN2GPClassifier inside.
    ValueError
        If ``part`` or ``n_parts`` is out of range, or the posterior is of independent outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import conditional_evidence
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> y = np.sin(X[:, 0])
    >>> model = DNN2GPRegressor(
    ...     hidden_layer_sizes=(5,), prior_precision=0.1, noise_std=0.1, random_state=0
    ... ).fit(X, y)
    >>> given_half, given_none = (conditional_evidence(model, X, y, part=p) for p in (0.5, 0.0))
    >>> bool(given_half > given_none)  # predictions from half of the rows are better than from none
    True
    """
    n = len(y)
    if not 0 <= part < 1:
        raise ValueError(f"part must be at least 0 and below 1, got {part!r}.")
    if not isinstance(n_parts, Integral) or n_parts < 1:
        raise ValueError(f"n_parts must be a positive whole number, got {n_parts!r}.")
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    whole = _evidence(estimator, X, y, weight, theta)
    if not int(part * n):
        return whole / weight.sum()
    means = []
    for rows, rest in random_parts(n, part, n_parts, random_state):
        data = (_safe_indexing(a, rows) for a in (X, y))
        given = _evidence(estimator, *data, weight[rows], theta)
        means.append((whole - given) / weight[rest].sum())
    return sum(means) / n_parts


def _evidence(estimator: Any, X: Any, y: Any, weight: NDArray, theta: ArrayLike | None) -> Any:
    """The dual evidence of these rows in the units of y, at every θ."""
    final, X, y, offset = unwrapped(estimator, X, y, weight)
    value = final.log_marginal_likelihood(theta, X=X, y=y, sample_weight=weight, kind="dual")
    return value + offset

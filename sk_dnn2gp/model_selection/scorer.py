"""The log marginal likelihood as a scorer of scikit-learn (:ref:`math-evidence`).

Nothing here looks inside an estimator: ``log_marginal_likelihood`` is all that is used.

The recipe for a grid, random or halving search is three lines:

    search = GridSearchCV(
        DNN2GPRegressor(), grid, scoring=marginal_likelihood_scorer, cv=TrainingSetSplit()
    )

Every score is a log density of the same y in the same units, so candidates that standardise or
transform y differently are comparable: a change of variables z = g(y) adds Σ log|∂g/∂y|.
Shapes: y (n_samples,) or (n_samples, n_outputs).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from numpy.linalg import LinAlgError
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import MetadataRequest

from .._utils.documentation import Documented
from .inside import unwrapped

__all__ = ["MarginalLikelihoodScorer", "marginal_likelihood_scorer"]


class MarginalLikelihoodScorer(Documented, BaseEstimator):
    """A scorer that is the log marginal likelihood of the data it is given (:ref:`math-evidence`).

    For every search class of scikit-learn, ``cross_validate`` and multi-metric scoring; larger is
    better. With :class:`~sk_dnn2gp.TrainingSetSplit` no data is held back. The estimator may be the
    last step of a Pipeline (the steps before transform X), inside a TransformedTargetRegressor (the
    change of variables is counted), or the best estimator of a fitted search. scikit-learn keeps no
    open register of scorers, so it is passed as an object: ``scoring=marginal_likelihood_scorer``.

    An evidence that is not a number, or whose matrix cannot be factorised, scores -inf with a
    warning. A fit that fails is the search's own business (``error_score``).

    Parameters
    ----------
    kind : {"laplace", "dual"}, default=None
        Which evidence; "dual" is the paper's evidence of the transformed targets. None is the
        estimator's own, the kind of ``log_marginal_likelihood_value_``: "laplace", or "dual" for a
        regressor with ``inference="vi"``. Both are densities of y, and equal at a minimum of a
        Gaussian loss, so that a search over ``inference`` compares like with like.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import TrainingSetSplit, marginal_likelihood_scorer
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> y = np.sin(X[:, 0])
    >>> model = DNN2GPRegressor(hidden_layer_sizes=(5,), noise_std=0.1, random_state=0)
    >>> search = GridSearchCV(
    ...     model, {"prior_precision": [0.1, 1000.0]}, scoring=marginal_likelihood_scorer,
    ...     cv=TrainingSetSplit(),
    ... ).fit(X, y)
    >>> search.best_params_
    {'prior_precision': 0.1}
    """

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind

    def __call__(
        self, estimator: Any, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the log marginal likelihood of (X, y) under a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            Fitted; see the class.
        X : array-like
            What the estimator's ``predict`` would take.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each row counts.

        Returns
        -------
        float
            In the units of y.

        Raises
        ------
        TypeError
            If the estimator has no log marginal likelihood of given data.
        ValueError
            If y went through a transformation whose density cannot be followed.
        """
        final, X, y, offset = unwrapped(estimator, X, y, sample_weight)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        try:
            value = float(final.log_marginal_likelihood(X=X, y=y, kind=self.kind, **weights))
        except LinAlgError as error:
            return _unusable(str(error))
        value += offset
        return value if math.isfinite(value) else _unusable(f"it is {value}")

    def set_score_request(self, *, sample_weight: bool | str | None = None) -> Any:
        """Ask scikit-learn's metadata routing for sample weights, as its own scorers do.

        Parameters
        ----------
        sample_weight : bool, str or None, default=None
            Whether to take it, or the name that it has.

        Returns
        -------
        self : MarginalLikelihoodScorer
        """
        self._metadata_request = MetadataRequest(owner=type(self).__name__)
        self._metadata_request.score.add_request(param="sample_weight", alias=sample_weight)
        return self

    def _accept_sample_weight(self) -> bool:
        """Answer scikit-learn's search classes, which ask before they pass sample_weight on."""
        return True


marginal_likelihood_scorer = MarginalLikelihoodScorer()


def _unusable(reason: str) -> float:
    warnings.warn(
        f"The marginal likelihood cannot be used ({reason}); the candidate scores -inf.",
        UserWarning,
        stacklevel=3,
    )
    return -math.inf

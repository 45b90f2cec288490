"""Intervals, quantiles, densities and draws of y, for every regressor that predicts a distribution.

The methods' names are those that users of MAPIE, skpro and scikit-learn's discussions ask for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length

from ..predictive import Predictive
from .options import check_target

__all__ = ["DistributionMixin"]


class DistributionMixin:
    """What follows from ``predict_distribution``. Not for use on its own."""

    _one_dimensional: bool
    _drawn: Any  # (X, n_samples, random_state, target) -> draws on the last axis

    def predict_distribution(self, X: ArrayLike) -> Predictive:
        """The distribution of y; each regressor's own."""
        raise NotImplementedError

    def _shaped(self, values: NDArray) -> NDArray:
        """One column as a vector where y was one."""
        return values[:, 0] if self._one_dimensional else values

    def predict_uncertainty(self, X: ArrayLike) -> Bunch:
        """Variance of y split into noise and ignorance: Var[y] = σ² + V_* (:ref:`math-predicting`).

        With another likelihood, E Var[y | f] + Var E[y | f]. Where networks are mixed, their
        differences count as ignorance.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        Bunch
            ``aleatoric``, ``epistemic`` and ``total``, each an ndarray of variances of shape
            (n_samples,) or (n_samples, n_outputs), in the units of y squared.
        """
        distribution = self.predict_distribution(X)
        aleatoric = self._shaped(distribution.aleatoric)
        epistemic = self._shaped(distribution.epistemic)
        return Bunch(aleatoric=aleatoric, epistemic=epistemic, total=aleatoric + epistemic)

    def sample_y(
        self, X: ArrayLike, n_samples: int = 1, random_state: Any = 0, target: str = "y"
    ) -> NDArray:
        """Draw joint samples: whole functions, each of one network where several are mixed.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features) or (n_rows, ...)
        n_samples : int, default=1
        random_state : int, RandomState or None, default=0
        target : {"y", "latent"}, default="y"
            Whether the noise is drawn too.

        Returns
        -------
        ndarray of shape (n_rows, n_samples) or (n_rows, n_outputs, n_samples)

        Raises
        ------
        ValueError
            If ``target`` is unknown.
        """
        check_target(target, ("y", "latent"))
        return self._drawn(X, n_samples, random_state, target)

    def predict_quantile(self, X: ArrayLike, q: Any = 0.5) -> NDArray:
        """Quantiles of y: the least value that y stays at or below with probability q.

        Of each target by itself. Several q make a last axis, as the draws of ``sample_y`` do.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        q : float or array-like of shape (n_quantiles,), default=0.5
            Between 0 and 1.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs), (…, n_quantiles) for several q
            In the units of y.

        Raises
        ------
        ValueError
            If a q is not between 0 and 1.
        """
        levels = _levels("q", q)
        distribution = self.predict_distribution(X)
        values = np.stack([distribution.quantile(level) for level in levels.ravel()], axis=-1)
        values = self._shaped(values)
        return values if levels.ndim else values[..., 0]

    def predict_interval(self, X: ArrayLike, coverage: Any = 0.95) -> NDArray:
        """Central intervals that hold y with probability ``coverage``.

        From the (1 - coverage)/2 to the (1 + coverage)/2 quantile, of each target by itself. The
        argument is named as in skpro and sktime, the shape is MAPIE's: lower and upper ends on axis
        1 (after the targets), several coverages on a last axis.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        coverage : float or array-like of shape (n_coverages,), default=0.95
            Between 0 and 1.

        Returns
        -------
        ndarray of shape (n_samples, 2) or (n_samples, n_outputs, 2), (…, n_coverages) for several
            Lower and upper ends, in the units of y.

        Raises
        ------
        ValueError
            If a coverage is not between 0 and 1.
        """
        levels = _levels("coverage", coverage)
        tails = 0.5 * (1.0 - levels.ravel())
        ends = self.predict_quantile(X, np.concatenate([tails, 1.0 - tails]))
        ends = ends.reshape(*ends.shape[:-1], 2, -1)
        return ends if levels.ndim else ends[..., 0]

    def log_predictive_density(self, X: ArrayLike, y: ArrayLike) -> NDArray:
        """log p(y | x) of each row under the predictive distribution (:ref:`math-predicting`).

        Of each target by itself: targets of one row share the network's weights, so that the sum
        over them is no joint density. Its mean over held-out rows is the score that
        ``log_predictive_density_scorer`` gives; larger is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            In the units of y.

        Raises
        ------
        ValueError
            If y does not fit X, or the targets that were trained on.
        """
        distribution = self.predict_distribution(X)
        y = np.asarray(y, dtype=np.float64)
        check_consistent_length(distribution.mean, y)
        columns, K = y.reshape(len(y), -1), distribution.mean.shape[1]
        if columns.shape[1] != K or not np.isfinite(columns).all():
            raise ValueError(f"y must hold {K} finite target(s) a row, got shape {y.shape}.")
        values = distribution.log_density(columns)
        return self._shaped(values)


def _levels(name: str, given: Any) -> NDArray:
    """Probabilities as an array of no or one dimension."""
    levels = np.asarray(given, dtype=np.float64)
    if levels.ndim > 1 or not levels.size or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(
            f"{name} must be a probability between 0 and 1 (ends left out), or a list of them; got "
            f"{given!r}."
        )
    return levels

"""Several predictive distributions, each with a weight: the laws of total mean and variance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from .contract import Predictive, inverted

__all__ = ["Mixture"]


class Mixture(Predictive):
    """Σ_m π_m p_m(y), of each target by itself (:ref:`math-mixtures`).

    Its epistemic variance is the components' mean one and the variance of their means: what they do
    not agree on is not known.

    Parameters
    ----------
    components : sequence of Predictive
        Of the same targets, in the same units.
    weights : ndarray of shape (n_components,)
        π, positive, with sum 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.predictive import Mixture, Normal
    >>> one = np.ones((1, 1))
    >>> two = Mixture([Normal(-one, one, 0 * one), Normal(one, one, 0 * one)], np.full(2, 0.5))
    >>> two.variance.item(), abs(two.quantile(0.5).item()) < 1e-12
    (2.0, True)
    """

    def __init__(self, components: Sequence[Predictive], weights: NDArray) -> None:
        self.components, self.weights = list(components), weights
        self.is_discrete = all(one.is_discrete for one in components)
        means = np.stack([one.mean for one in components])
        mean = self._average(means)
        noise = self._average([one.aleatoric for one in components])
        ignorance = self._average([one.epistemic for one in components])
        super().__init__(mean, noise, ignorance + self._average((means - mean) ** 2))

    def log_density(self, y: ArrayLike) -> NDArray:
        """log Σ π_m p_m(y)."""
        terms = np.stack([one.log_density(y) for one in self.components], axis=-1)
        return logsumexp(terms, axis=-1, b=self.weights)

    def cdf(self, y: ArrayLike) -> NDArray:
        """Σ π_m P_m(target ≤ y)."""
        return self._average([one.cdf(y) for one in self.components])

    def quantile(self, q: float) -> NDArray:
        """The least y with P(target ≤ y) ≥ q: it lies between the components' own."""
        ends = np.stack([one.quantile(q) for one in self.components])
        return inverted(self, q, ends.min(0), ends.max(0))

    def _average(self, values: Sequence[NDArray] | NDArray) -> NDArray:
        return np.tensordot(self.weights, np.asarray(values), axes=1)

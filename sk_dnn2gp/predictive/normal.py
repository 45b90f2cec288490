"""Gaussian noise under a Gaussian f: y ~ N(m, σ² + V)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from .contract import Predictive, with_noise

__all__ = ["Normal"]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Normal(Predictive):
    """N(m, σ² + V), of each target by itself (:ref:`math-predicting`).

    Parameters
    ----------
    mean : ndarray of shape (n_samples, n_outputs)
        m.
    aleatoric, epistemic : ndarray of shape (n_samples, n_outputs)
        σ² and V.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.predictive import Normal
    >>> standard = Normal(np.zeros((1, 1)), np.full((1, 1), 0.5), np.full((1, 1), 0.5))
    >>> round(standard.quantile(0.975).item(), 2)
    1.96
    """

    def log_density(self, y: ArrayLike) -> NDArray:
        """log N(y | m, σ² + V)."""
        return -0.5 * self._standardised(y) ** 2 - 0.5 * np.log(self.variance) - _HALF_LOG_2PI

    def cdf(self, y: ArrayLike) -> NDArray:
        """Φ((y - m)/√(σ² + V))."""
        return ndtr(self._standardised(y))

    def quantile(self, q: float) -> NDArray:
        """m + √(σ² + V) Φ⁻¹(q)."""
        return self.mean + np.sqrt(self.variance) * ndtri(q)

    def joint_covariance(self, V: NDArray) -> NDArray:
        """V, and the noise of each row."""
        return with_noise(V, self.aleatoric)

    def _standardised(self, y: ArrayLike) -> NDArray:
        return (np.asarray(y) - self.mean) / np.sqrt(self.variance)

"""Student's noise under a Gaussian f: a mixture of normals of one mean.

Student's t is a normal whose precision is drawn, y = f + s z/√λ with λ ~ Gamma(ν/2, ν/2), so that
under f ~ N(m, V)

    p(y) = ∫ N(y | m, V + s²/λ) Gamma(λ | ν/2, ν/2) dλ

and the same for the distribution function. In t = log λ the integrand is analytic and falls off
exponentially at both ends: the trapezoidal rule reaches rounding with some hundred nodes, however
V and s² compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, logsumexp, ndtr, ndtri

from .contract import Predictive, inverted, with_noise

__all__ = ["StudentNormal"]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
# log of what is left out at either end (tails far out live at small λ), and the step, whose error
# is e^(-π²/h).
_LEFT_OUT, _STEP = 80.0, 0.25
# Numbers at a time, nodes times targets.
_CHUNK = 2**20


class StudentNormal(Predictive):
    """Student's noise around f ~ N(m, V), of each target by itself (:ref:`math-predicting`).

    Parameters
    ----------
    mean, variance : ndarray of shape (n_samples, n_outputs)
        m and V.
    scale : float
        s.
    df : float
        ν > 2.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.stats import t
    >>> from sk_dnn2gp.predictive import StudentNormal
    >>> nothing_unknown = StudentNormal(np.zeros((1, 1)), np.zeros((1, 1)), 2.0, 4.0)
    >>> bool(np.isclose(nothing_unknown.cdf([[3.0]]).item(), t(4, scale=2.0).cdf(3.0), rtol=1e-12))
    True
    """

    def __init__(self, mean: NDArray, variance: NDArray, scale: float, df: float) -> None:
        noise = np.full_like(mean, scale**2 * df / (df - 2.0))
        super().__init__(mean, noise, variance)
        log_weight, log_lambda = _nodes(df)
        self._log_weight = log_weight
        self._noise = scale**2 * np.exp(-log_lambda)

    def log_density(self, y: ArrayLike) -> NDArray:
        """log p(y)."""
        return self._over_nodes(np.asarray(y) - self.mean, _log_normal_sum)

    def cdf(self, y: ArrayLike) -> NDArray:
        """P(target ≤ y)."""
        return self._over_nodes(np.asarray(y) - self.mean, _normal_cdf_sum)

    def quantile(self, q: float) -> NDArray:
        """The y with P(target ≤ y) = q."""
        # The widest and the narrowest of the normals hold it between their quantiles.
        ends = [
            self.mean + np.sqrt(self.epistemic + noise) * ndtri(q)
            for noise in (self._noise.min(), self._noise.max())
        ]
        return inverted(self, q, np.minimum(*ends), np.maximum(*ends))

    def joint_covariance(self, V: NDArray) -> NDArray:
        """V, and the noise of each row."""
        return with_noise(V, self.aleatoric)

    def _over_nodes(self, z: NDArray, rule: Callable[..., NDArray]) -> NDArray:
        """A sum over the nodes for every target, so many at a time as fit."""
        z, V = np.broadcast_arrays(z, self.epistemic)
        n_parts = -(-z.size * len(self._noise) // _CHUNK)
        pairs = zip(*(np.array_split(a.ravel(), max(1, n_parts)) for a in (z, V)), strict=True)
        parts = [rule(a[:, None], b[:, None] + self._noise, self._log_weight) for a, b in pairs]
        return np.concatenate(parts).reshape(z.shape)


def _nodes(df: float) -> tuple[NDArray, NDArray]:
    """log weights and log λ of the trapezoidal rule for λ ~ Gamma(ν/2, ν/2)."""
    a = 0.5 * df
    # The density of t = log λ is ∝ exp(a (t - e^t)): a hump of width 1/√a with a slow left side.
    right = math.sqrt(2.0 * _LEFT_OUT / a)
    left = _LEFT_OUT / a + right
    step = _STEP * min(1.0, 1.0 / math.sqrt(a))
    t = np.arange(-left, min(right, math.log1p(_LEFT_OUT / a) + 1.0) + step, step)
    log_weight = a * (t - np.exp(t)) + a * math.log(a) - float(gammaln(a)) + math.log(step)
    return log_weight - logsumexp(log_weight), t


def _log_normal_sum(z: NDArray, variance: NDArray, log_weight: NDArray) -> NDArray:
    terms = log_weight - 0.5 * z**2 / variance - 0.5 * np.log(variance)
    return logsumexp(terms, axis=1) - _HALF_LOG_2PI


def _normal_cdf_sum(z: NDArray, variance: NDArray, log_weight: NDArray) -> NDArray:
    return ndtr(z / np.sqrt(variance)) @ np.exp(log_weight)

"""Normal noise whose scale is drawn, under a Gaussian f: mixtures of normals.

Student's t is a normal whose precision is drawn, y = f + s z/√λ with λ ~ Gamma(ν/2, ν/2), so that
under f ~ N(m, V)

    p(y) = ∫ N(y | m, V + s²/λ) Gamma(λ | ν/2, ν/2) dλ

and the same for the distribution function. In t = log λ the integrand is analytic and falls off
exponentially at both ends: the trapezoidal rule reaches rounding with some hundred nodes, however
V and s² compare. Noise whose log s is Gaussian, and correlated with m, is the same in another t:
log s = a + τ t, and f = m + c t + √(V - c²) z.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, logsumexp, ndtr, ndtri

from .contract import Predictive, inverted, with_noise

__all__ = ["NormalLognormal", "StudentNormal"]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
# log of what is left out at either end (tails far out live at small λ), and the step, whose error
# is e^(-π²/h).
_LEFT_OUT, _STEP = 80.0, 0.25
# Numbers at a time, nodes times targets.
_CHUNK = 2**20
# The rule for t ~ N(0, 1): its reach, its longest step, and what of a strip of analyticity and of
# the narrowest normal a step may be, for an error of 1e-14; the most nodes.
_REACH, _LONGEST, _OF_STRIP, _OF_WIDTH, _MOST = 12.0, 0.5, 0.125, 0.5, 4096
# log s² beyond which s² counts as this one: e^600.
_HUGE = 600.0


class _NormalMixture(Predictive):
    """Normals at the nodes of a rule for what scales them. Not for use on its own."""

    _nodes: NDArray
    _log_weight: NDArray
    _parameters: tuple[NDArray, ...]  # of each target, (n_samples, n_outputs)

    @staticmethod
    def _normals(node: NDArray, *parameters: NDArray) -> tuple[NDArray | float, NDArray]:
        """Their means less E[y], and variances: both rise or fall with the nodes."""
        raise NotImplementedError

    def log_density(self, y: ArrayLike) -> NDArray:
        """log p(y)."""
        return self._over_nodes(np.asarray(y) - self.mean, _log_normal_sum)

    def cdf(self, y: ArrayLike) -> NDArray:
        """P(target ≤ y)."""
        return self._over_nodes(np.asarray(y) - self.mean, _normal_cdf_sum)

    def quantile(self, q: float) -> NDArray:
        """The y with P(target ≤ y) = q."""
        # The normals hold it between their quantiles, and those of the ends hold all of them.
        parameters = (one[..., None] for one in self._parameters)
        shift, variance = self._normals(self._nodes[[0, -1]], *parameters)
        shift, reach = np.asarray(shift), np.sqrt(variance) * ndtri(q)
        low = self.mean + shift.min(-1) + reach.min(-1)
        return inverted(self, q, low, self.mean + shift.max(-1) + reach.max(-1))

    def joint_covariance(self, V: NDArray) -> NDArray:
        """V, and the noise of each row."""
        return with_noise(V, self.aleatoric)

    def _over_nodes(self, z: NDArray, rule: Callable[..., NDArray]) -> NDArray:
        """A sum over the nodes for every target, so many at a time as fit."""
        parts = np.broadcast_arrays(z, *self._parameters)
        n_parts = max(1, -(-z.size * len(self._nodes) // _CHUNK))
        columns = (np.array_split(one.ravel()[:, None], n_parts) for one in parts)
        sums = []
        for at, *parameters in zip(*columns, strict=True):
            shift, variance = self._normals(self._nodes, *parameters)
            sums.append(rule(at - shift, variance, self._log_weight))
        return np.concatenate(sums).reshape(z.shape)


class StudentNormal(_NormalMixture):
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
        self._log_weight, log_lambda = _gamma_rule(df)
        self._nodes, self._parameters = scale**2 * np.exp(-log_lambda), (variance,)

    @staticmethod
    def _normals(node: NDArray, *parameters: NDArray) -> tuple[NDArray | float, NDArray]:
        return 0.0, parameters[0] + node


class NormalLognormal(_NormalMixture):
    """N(m, s²) with m and log s Gaussian together, of each target (:ref:`math-heteroscedastic`).

    The density, to a part of 1e-12: a trapezoidal rule for log s, as fine as the widest log s asks
    for (at most 4,096 nodes, which a standard deviation of 20 takes).

    Parameters
    ----------
    mean, log_scale : ndarray of shape (n_samples, n_outputs)
        E[m] and E[log s].
    variance, log_scale_variance, covariance : ndarray of shape (n_samples, n_outputs)
        Of m, of log s, and between them.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.predictive import NormalLognormal
    >>> zero = np.zeros((1, 1))
    >>> known = NormalLognormal(zero, zero + np.log(2.0), zero, zero, zero)
    >>> round(known.quantile(0.975).item(), 2)
    3.92
    """

    def __init__(
        self,
        mean: NDArray,
        log_scale: NDArray,
        variance: NDArray,
        log_scale_variance: NDArray,
        covariance: NDArray,
    ) -> None:
        noise = np.exp(np.minimum(2.0 * (log_scale + log_scale_variance), _HUGE))
        super().__init__(mean, noise, variance)
        tau = np.sqrt(log_scale_variance)
        # |c| is at most √V: rounding may say more.
        c = np.divide(covariance, tau, out=np.zeros_like(tau), where=tau > 0)
        rest = np.maximum(variance - c**2, 0.0)
        self._parameters = c, rest, log_scale, tau
        self._nodes = _normal_rule(*self._parameters)
        self._log_weight = -0.5 * self._nodes**2
        self._log_weight -= logsumexp(self._log_weight)

    @staticmethod
    def _normals(node: NDArray, *parameters: NDArray) -> tuple[NDArray | float, NDArray]:
        c, rest, log_scale, tau = parameters
        return c * node, rest + np.exp(np.minimum(2.0 * (log_scale + tau * node), _HUGE))


def _normal_rule(c: NDArray, rest: NDArray, log_scale: NDArray, tau: NDArray) -> NDArray:
    """Nodes for t ~ N(0, 1), close enough for every target.

    s² is analytic in t, and bounded away from zero, within π/4τ of the real line; as a density in
    t, a normal is √(V - c² + s²)/c wide.
    """
    narrowest = np.sqrt(rest + np.exp(2.0 * (log_scale - 0.5 * _REACH * tau)))
    with np.errstate(divide="ignore"):
        steps = np.minimum(_OF_STRIP / tau, _OF_WIDTH * narrowest / np.abs(c))
    step = min(_LONGEST, float(steps.min()))
    return np.linspace(-_REACH, _REACH, min(_MOST, math.ceil(2.0 * _REACH / step) + 1))


def _gamma_rule(df: float) -> tuple[NDArray, NDArray]:
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

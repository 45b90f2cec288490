"""Counts whose log rate is Gaussian: y ~ Poisson(e^f), f ~ N(m, V).

The mean and the variance are closed forms; probabilities are integrals over f, of trapezoidal rules
(which reach rounding, where the integrand is analytic and falls off at both ends) laid around each
integrand's own peak, so that they hold for counts of any size and V of any size. Shapes:
(n_samples, n_outputs), with a last axis of nodes inside.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc, gammaln, logsumexp, ndtr, ndtri

from .contract import Predictive, inverted, with_noise

__all__ = ["PoissonLognormal"]

# Nodes of a rule, and how many widths of its peak it reaches: e^(-9²/2) is 2.6e-18.
_NODES, _REACH = 240, 9.0
# Newton steps to a peak; from above they descend by one or more in f, then square the error.
_MOST = 200
# Above it e^f is taken as e^700, which float64 holds.
_LARGEST = 700.0


class PoissonLognormal(Predictive):
    """Poisson(e^f) with f ~ N(m, V), of each target by itself (:ref:`math-predicting`).

    Parameters
    ----------
    log_rate, variance : ndarray of shape (n_samples, n_outputs)
        m and V > 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.predictive import PoissonLognormal
    >>> counts = PoissonLognormal(np.zeros((1, 1)), np.full((1, 1), 1e-12))
    >>> round(np.exp(counts.log_density([[0]])).item(), 6)  # Poisson(1): 1/e
    0.367879
    """

    is_discrete = True

    def __init__(self, log_rate: NDArray, variance: NDArray) -> None:
        self.log_rate, self.log_variance = log_rate, variance
        log_mean = log_rate + 0.5 * variance
        with np.errstate(over="ignore"):  # infinite where float64 ends
            mean = np.exp(log_mean)
        super().__init__(mean, mean, _exp_times_expm1(2.0 * log_mean, variance))

    def log_density(self, y: ArrayLike) -> NDArray:
        """log P(target = y); minus infinity where y is no count."""
        y = np.broadcast_to(np.asarray(y, dtype=np.float64), self.mean.shape)
        m, V = self.log_rate, self.log_variance
        count = np.where(y > 0, y, 0.0)
        peak = _peak(count, m, V)
        rate = _rate(peak)
        right = _REACH / np.sqrt(1.0 / V + rate)
        left = np.minimum(_REACH * np.sqrt(V), _left_reach(np.maximum(rate, 1e-300)))
        f, step = _rule(peak, left, right)
        k, m, V = count[..., None], m[..., None], V[..., None]
        terms = k * f - _rate(f) - 0.5 * (f - m) ** 2 / V
        total = logsumexp(terms, axis=-1) + np.log(step) - gammaln(count + 1.0)
        total -= 0.5 * np.log(2.0 * np.pi * self.log_variance)
        return np.where((y >= 0) & (y == np.floor(y)), total, -np.inf)

    def cdf(self, y: ArrayLike) -> NDArray:
        """P(target ≤ y).

        P(Poisson(λ) ≤ k) = P(G > λ) with G ~ Gamma(k + 1), so it is an expectation over f, of a
        step of width 1/√(k + 1), or over log G, of a step of width √V: the wider step is the one
        to be summed.
        """
        y = np.broadcast_to(np.asarray(y, dtype=np.float64), self.mean.shape)
        a = np.maximum(np.floor(y), 0.0) + 1.0
        over_f, total = self.log_variance < 1.0 / a, np.empty(y.shape)
        for chosen, rule in ((over_f, _cdf_over_f), (~over_f, _cdf_over_gamma)):
            total[chosen] = rule(a[chosen], self.log_rate[chosen], self.log_variance[chosen])
        return np.where(y >= 0, np.clip(total, 0.0, 1.0), 0.0)

    def quantile(self, q: float) -> NDArray:
        """The least count with P(target ≤ it) ≥ q; infinite where that is beyond e^700."""
        low, most = np.full_like(self.mean, -1.0), np.exp(_LARGEST)
        # Beyond the rate's own quantile, as many standard deviations of a Poisson; grown if short.
        with np.errstate(over="ignore"):
            high = np.exp(self.log_rate + np.sqrt(self.log_variance) * max(float(ndtri(q)), 0.0))
        high = np.minimum(np.ceil(high + 10.0 * np.sqrt(high) + 10.0), most)
        while ((short := self.cdf(high) < q) & (high < most)).any():
            high = np.where(short, np.minimum(2.0 * high, most), high)
        return np.where(short, np.inf, inverted(self, q, low, high))

    def joint_covariance(self, V: NDArray) -> NDArray:
        """Cov(e^f, e^f') = E E' (e^V - 1), and the mean as the noise of each row."""
        log_mean = self.log_rate + 0.5 * self.log_variance
        of_rates = _exp_times_expm1(log_mean[:, None] + log_mean[None], V)
        return with_noise(of_rates, self.aleatoric)


def _exp_times_expm1(a: NDArray, V: NDArray) -> NDArray:
    """e^a (e^V - 1); infinite where it is beyond float64, and 0 where V is 0, whatever a."""
    with np.errstate(over="ignore", divide="ignore"):
        small = np.log(np.abs(np.expm1(np.minimum(V, 1.0))))
        log = np.where(V > 1.0, V + np.log1p(-np.exp(-np.maximum(V, 1.0))), small)
        return np.sign(V) * np.exp(a + log)


def _cdf_over_f(a: NDArray, m: NDArray, V: NDArray) -> NDArray:
    """E P(Gamma(a) > e^f) over f; one dimension, as the next."""
    z = np.linspace(-_REACH, _REACH, _NODES)
    weight = np.exp(-0.5 * z**2)
    f = m[:, None] + np.sqrt(V)[:, None] * z
    return gammaincc(a[:, None], _rate(f)) @ (weight / weight.sum())


def _cdf_over_gamma(a: NDArray, m: NDArray, V: NDArray) -> NDArray:
    """E P(f < log G) over log G, which less log a has the density ∝ exp(a (z - e^z + 1))."""
    z, _ = _rule(np.zeros_like(a), _left_reach(a), _REACH / np.sqrt(a))
    weight = np.exp(a[:, None] * (z - np.expm1(z)))
    above = ndtr((np.log(a)[:, None] + z - m[:, None]) / np.sqrt(V)[:, None])
    return (weight * above).sum(-1) / weight.sum(-1)


def _peak(k: NDArray, m: NDArray, V: NDArray) -> NDArray:
    """Where k f - e^f - (f - m)²/2V is largest: Newton from above on a convex derivative."""
    log_k = np.log(np.maximum(k, 1e-300))
    # At the peak e^f = k + (m - f)/V, where f is no less than the lesser of m and log k.
    highest = np.log(np.maximum(k + (m - np.minimum(m, log_k)) / np.maximum(V, 1e-250), 1e-300))
    f = np.minimum(np.maximum(m, log_k), highest)
    for _ in range(_MOST):
        rate = _rate(f)
        step = ((f - m) / V + rate - k) / (1.0 / V + rate)
        f = f - step
        if (np.abs(step) <= 1e-9 * np.sqrt(V)).all():
            break
    return f


def _rate(f: NDArray) -> NDArray:
    return np.exp(np.minimum(f, _LARGEST))


def _left_reach(a: NDArray) -> NDArray:
    """Below its peak, exp(a (z - e^z + 1)) is at most e^(-40) from here on."""
    return 0.5 * _REACH**2 / a + _REACH / np.sqrt(a)


def _rule(peak: NDArray, left: NDArray, right: NDArray) -> tuple[NDArray, NDArray]:
    """Nodes (..., _NODES) from peak - left to peak + right, and their distance."""
    unit = np.linspace(0.0, 1.0, _NODES)
    length = left + right
    return (peak - left)[..., None] + length[..., None] * unit, length / (_NODES - 1)

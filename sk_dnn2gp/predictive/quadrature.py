"""Any likelihood under a Gaussian f: moments, densities and distribution function by quadrature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.utils import gen_batches

from .contract import Predictive, inverted

__all__ = ["Quadrature"]

Pointwise = Callable[[NDArray, NDArray], NDArray]

# Standard deviations of f on both sides; values of f at once.
_REACH, _CHUNK = 9.0, 2**16


class Quadrature(Predictive):
    """E over f ~ N(m, V) of p(y | f) by the trapezoidal rule (:ref:`math-predicting`).

    Of a function of f that is analytic up to a distance d from the real line the error falls as
    exp(-2πd/h), with h √V the distance of the nodes: to rounding where h √V < d/5.

    Parameters
    ----------
    mean, variance : ndarray of shape (n_samples, n_outputs)
        m and V.
    moments : callable
        f -> mean and variance of y given f, each of the shape of f.
    log_density, cdf : callable
        (f, y) -> log p(y | f) and P(target ≤ y | f), elementwise.
    is_discrete : bool, default=False
    n_nodes : int, default=97
        From nine standard deviations below m to nine above.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.stats import norm
    >>> from sk_dnn2gp.predictive import Quadrature
    >>> zero = np.zeros((1, 1))
    >>> q = Quadrature(
    ...     zero, zero + 1.0, lambda f: (f, np.ones_like(f)),
    ...     lambda f, y: norm.logpdf(y, f), lambda f, y: norm.cdf(y, f),
    ... )
    >>> bool(np.isclose(q.quantile(0.9).item(), norm(0, 2**0.5).ppf(0.9), rtol=1e-12))
    True
    """

    def __init__(
        self,
        mean: NDArray,
        variance: NDArray,
        moments: Callable[[NDArray], tuple[NDArray, NDArray]],
        log_density: Pointwise,
        cdf: Pointwise,
        is_discrete: bool = False,
        n_nodes: int = 97,
    ) -> None:
        self._z = np.linspace(-_REACH, _REACH, n_nodes)
        weight = np.exp(-0.5 * self._z**2)
        self._weight = weight / weight.sum()
        self._centre, self._spread = mean, np.sqrt(variance)
        self._log_density, self._cdf, self.is_discrete = log_density, cdf, is_discrete
        super().__init__(*np.moveaxis(self._over_nodes(self._moments, moments), -1, 0))

    def log_density(self, y: ArrayLike) -> NDArray:
        """log p(y)."""
        sums = partial(logsumexp, axis=0, b=self._weight[:, None, None])
        return self._over_nodes(sums, self._log_density, y)

    def cdf(self, y: ArrayLike) -> NDArray:
        """P(target ≤ y)."""
        return self._over_nodes(self._average, self._cdf, y)

    def quantile(self, q: float) -> NDArray:
        """The least y with P(target ≤ y) ≥ q."""
        reach = np.sqrt(self.variance) + self.is_discrete  # of a sure one there is no width
        low, high = self.mean - reach, self.mean + reach
        while (wide := self.cdf(low) >= q).any() and np.isfinite(low).all():
            low = np.where(wide, self.mean - 2.0 * (self.mean - low), low)
            if self.is_discrete and (low < -1).all():
                break
        while (short := self.cdf(high) < q).any():
            high = np.where(short, self.mean + 2.0 * (high - self.mean), high)
        return inverted(self, q, low, high)

    def _over_nodes(self, rule: Any, function: Any, *y: ArrayLike) -> NDArray:
        """``rule`` over the first axis of values at every node, some rows at a time."""
        n, K = self._centre.shape
        given = [np.broadcast_to(np.asarray(one, dtype=np.float64), (n, K)) for one in y]
        parts = []
        for rows in gen_batches(n, max(1, _CHUNK // (K * len(self._z)))):
            f = self._centre[rows] + self._spread[rows] * self._z[:, None, None]
            repeated = (np.broadcast_to(one[rows], f.shape).reshape(-1, K) for one in given)
            values = function(f.reshape(-1, K), *repeated)
            parts.append(rule(np.reshape(values, (*np.shape(values)[:-2], *f.shape))))
        return np.concatenate(parts)

    def _moments(self, values: NDArray) -> NDArray:
        """E[y], E Var[y | f] and Var E[y | f], on the last axis, of both moments at the nodes."""
        means, variances = values
        centre = self._average(means)
        spread = self._average((means - centre) ** 2)
        return np.stack([centre, self._average(variances), spread], axis=-1)

    def _average(self, values: NDArray) -> NDArray:
        return np.tensordot(self._weight, values, axes=1)

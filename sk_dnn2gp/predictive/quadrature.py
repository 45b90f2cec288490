"""Any likelihood under a Gaussian f: moments, densities and distribution function by quadrature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from .contract import Predictive, inverted

__all__ = ["Quadrature"]

Pointwise = Callable[[NDArray, NDArray], NDArray]


class Quadrature(Predictive):
    """E over f ~ N(m, V) of p(y | f) at the nodes of Gauss and Hermite (:ref:`math-predicting`).

    Exact to rounding where the noise is wide beside √V; where it is narrower than a tenth of √V,
    the nodes show: give the likelihood a ``predictive`` of its own.

    Parameters
    ----------
    mean, variance : ndarray of shape (n_samples, n_outputs)
        m and V.
    moments : callable
        f -> mean and variance of y given f, each of the shape of f.
    log_density, cdf : callable
        (f, y) -> log p(y | f) and P(target ≤ y | f), elementwise.
    is_discrete : bool, default=False
    n_nodes : int, default=64

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
        n_nodes: int = 64,
    ) -> None:
        z, weight = np.polynomial.hermite_e.hermegauss(n_nodes)
        self._weight = weight / weight.sum()
        self._f = [mean + np.sqrt(variance) * one for one in z]
        self._log_density, self._cdf, self.is_discrete = log_density, cdf, is_discrete
        means, variances = zip(*(moments(f) for f in self._f), strict=True)
        centre = self._average(means)
        spread = self._average([(one - centre) ** 2 for one in means])
        super().__init__(centre, self._average(variances), spread)

    def log_density(self, y: ArrayLike) -> NDArray:
        """log p(y)."""
        y = np.asarray(y, dtype=np.float64)
        terms = np.stack([self._log_density(f, y) for f in self._f], axis=-1)
        return logsumexp(terms, axis=-1, b=self._weight)

    def cdf(self, y: ArrayLike) -> NDArray:
        """P(target ≤ y)."""
        y = np.asarray(y, dtype=np.float64)
        return self._average([self._cdf(f, y) for f in self._f])

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

    def _average(self, values: object) -> NDArray:
        return np.tensordot(self._weight, np.stack(list(values)), axes=1)  # type: ignore[call-overload]

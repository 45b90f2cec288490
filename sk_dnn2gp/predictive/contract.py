"""What every predictive distribution offers, and how a distribution function is inverted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Affine", "Predictive", "inverted", "with_noise"]

# Newton steps, each a bisection where it would leave the bracket; ten are usual.
_MOST = 200


class Predictive:
    """The distribution of each target of each row by itself, of shape (n_samples, n_outputs).

    Parameters
    ----------
    mean : ndarray of shape (n_samples, n_outputs)
        E[y].
    aleatoric, epistemic : ndarray of shape (n_samples, n_outputs)
        Noise and ignorance; their sum is Var[y].

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.predictive import Normal
    >>> normal = Normal(np.zeros((1, 1)), np.full((1, 1), 0.75), np.full((1, 1), 0.25))
    >>> normal.variance.item(), normal.cdf([[0.0]]).item()
    (1.0, 0.5)
    """

    # Whether y is a whole number; ``log_density`` is then the logarithm of a probability.
    is_discrete: bool = False

    def __init__(self, mean: NDArray, aleatoric: NDArray, epistemic: NDArray) -> None:
        self.mean, self.aleatoric, self.epistemic = mean, aleatoric, epistemic

    @property
    def variance(self) -> NDArray:
        """Var[y]: noise and ignorance."""
        return self.aleatoric + self.epistemic

    def log_density(self, y: ArrayLike) -> NDArray:
        """log p(y) of each target."""
        raise NotImplementedError

    def cdf(self, y: ArrayLike) -> NDArray:
        """P(target ≤ y)."""
        raise NotImplementedError

    def quantile(self, q: float) -> NDArray:
        """The least y with P(target ≤ y) ≥ q, for 0 < q < 1."""
        raise NotImplementedError

    def joint_covariance(self, V: NDArray) -> NDArray:
        """Cov(y) over the rows, (n_samples, n_samples, n_outputs), of such a V of f."""
        raise NotImplementedError(f"{type(self).__name__} has no joint covariance: use sample_y.")


class Affine(Predictive):
    """The distribution of ``shift + scale * y``: from the network's units to the user's.

    Parameters
    ----------
    inner : Predictive
        Of y.
    shift, scale : ndarray of shape (n_outputs,)
        scale > 0.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.predictive import Affine, Normal
    >>> one = np.ones((1, 1))
    >>> Affine(Normal(one, one, 0 * one), np.array([5.0]), np.array([2.0])).quantile(0.5).item()
    7.0
    """

    def __init__(self, inner: Predictive, shift: NDArray, scale: NDArray) -> None:
        variances = (inner.aleatoric * scale**2, inner.epistemic * scale**2)
        super().__init__(inner.mean * scale + shift, *variances)
        self.inner, self.shift, self.scale = inner, shift, scale
        self.is_discrete = inner.is_discrete

    def log_density(self, y: ArrayLike) -> NDArray:
        """log p(y): that of the standardised y less log scale."""
        return self.inner.log_density(self._standardised(y)) - np.log(self.scale)

    def cdf(self, y: ArrayLike) -> NDArray:
        """P(target ≤ y)."""
        return self.inner.cdf(self._standardised(y))

    def quantile(self, q: float) -> NDArray:
        """The least y with P(target ≤ y) ≥ q."""
        return self.inner.quantile(q) * self.scale + self.shift

    def joint_covariance(self, V: NDArray) -> NDArray:
        """Cov(y) over the rows, of a covariance V of f in the inner units."""
        return self.inner.joint_covariance(V) * self.scale**2

    def _standardised(self, y: ArrayLike) -> NDArray:
        return (np.asarray(y) - self.shift) / self.scale


def with_noise(V: NDArray, noise: NDArray) -> NDArray:
    """V (n_samples, n_samples, n_outputs) with noise (n_samples, n_outputs) on the diagonal."""
    covariance, rows = V.copy(), np.arange(len(V))
    covariance[rows, rows] += noise
    return covariance


def inverted(distribution: Predictive, q: float, low: NDArray, high: NDArray) -> NDArray:
    """The q-quantile between two bounds, to rounding.

    Newton's steps on the distribution function inside a bracket that shrinks, bisections where one
    would leave it: between two modes the density is next to nothing. Whole numbers are bisected.

    Parameters
    ----------
    distribution : Predictive
    q : float
    low, high : ndarray of shape (n_samples, n_outputs)
        Neither above nor below the quantile.

    Returns
    -------
    ndarray of shape (n_samples, n_outputs)
    """
    if distribution.is_discrete:
        return _bisected(distribution, q, np.floor(low) - 1.0, np.ceil(high))
    x = 0.5 * (low + high)
    for _ in range(_MOST):
        excess = distribution.cdf(x) - q
        low, high = np.where(excess < 0, x, low), np.where(excess < 0, high, x)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            new = x - excess / np.exp(distribution.log_density(x))
        new = np.where((new > low) & (new < high), new, 0.5 * (low + high))
        done = np.abs(new - x) <= 2 * np.finfo(float).eps * np.abs(new)
        x = new
        if done.all():
            break
    return x


def _bisected(distribution: Predictive, q: float, low: NDArray, high: NDArray) -> NDArray:
    """The least whole number with P(y ≤ it) ≥ q, above ``low`` and up to ``high``."""
    # Beyond 2^53 float64 has not every whole number: until there is none between.
    while True:
        middle = np.floor(0.5 * (low + high))
        if not ((low < middle) & (middle < high)).any():
            return high
        enough = distribution.cdf(middle) >= q
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)

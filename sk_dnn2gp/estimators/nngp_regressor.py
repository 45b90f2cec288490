"""A Gaussian process of any kernel by Nyström features, with a certificate (:ref:`math-nystroem`).

Shapes: features of n samples Φ (n, m); in the eigenvectors V of ΦᵀΦ = V diag(λ) Vᵀ every
(ΦΦᵀ + τI)⁻¹ is diagonal beside a multiple of the identity.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data

from .._utils.documentation import Documented
from .._utils.memory import chunk_length
from ..kernels import NNGPFeatures

__all__ = ["NNGPRegressor"]


class NNGPRegressor(RegressorMixin, Documented, BaseEstimator):
    """Gaussian process regression of many samples by Nyström features, with a certificate.

    For a kernel that costs too much for scikit-learn's ``GaussianProcessRegressor``, whose
    predictions it has: n m values of the kernel and O(n m²) work instead of n² and O(n³). It knows
    how far it is from the exact process (:ref:`math-nystroem`).

    Parameters
    ----------
    kernel : Kernel, default=None
        Any of scikit-learn's; None is ``NNGPKernel()``.
    noise_std : float, default=0.1
        σ > 0, in units of y.
    n_components : int, default=500
        m, the samples that are drawn for the features.
    memory_limit : float, default=None
        MiB for rows of the kernel at a time; None is scikit-learn's ``working_memory``. The
        features, n m numbers, are kept.
    random_state : int, RandomState instance or None, default=None
        Of the draw.

    Attributes
    ----------
    kernel_ : Kernel
    features_ : NNGPFeatures
    error_bound_ : float
        η/σ²: K + σ²I lies between ΦΦᵀ + σ²I and ΦΦᵀ + (σ² + η)I.
    log_marginal_likelihood_value_ : float
        Evidence of the process with these features.
    log_marginal_likelihood_bounds_ : tuple of float
        Between which the exact process's evidence is.
    X_train_ : ndarray of shape (n_samples, n_features)
    n_features_in_ : int

    Raises
    ------
    ValueError
        If a parameter is out of its range, or X does not suit the kernel.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import NNGPKernel, NNGPRegressor
    >>> x = np.linspace(-2, 2, 200)[:, None]
    >>> model = NNGPRegressor(NNGPKernel(1), n_components=99, random_state=0).fit(x, x[:, 0] ** 2)
    >>> bool(model.error_bound_ < 0.1)
    True
    >>> low, high = model.variance_bounds([[0.5]])
    >>> bool(low[0] <= high[0])
    True
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        noise_std: float = 0.1,
        n_components: int = 500,
        memory_limit: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.noise_std = noise_std
        self.n_components = n_components
        self.memory_limit = memory_limit
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> NNGPRegressor:
        """Make the features, and what they say of the exact process.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)

        Returns
        -------
        NNGPRegressor

        Raises
        ------
        ValueError
            If a parameter is out of its range, or X does not suit the kernel.
        """
        self._check_noise()
        checked, target = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        X, y = np.asarray(checked), np.asarray(target, dtype=np.float64)
        self.X_train_ = X
        self.features_ = NNGPFeatures(
            self.kernel,
            n_components=self.n_components,
            memory_limit=self.memory_limit,
            random_state=self.random_state,
        ).fit(X)
        self.kernel_, Phi = self.features_.kernel_, self.features_.transform(X)
        values, self._V = np.linalg.eigh(Phi.T @ Phi)
        self._eigenvalues = values.clip(0.0)
        self._rows = Phi @ self._V
        self._y = self._rows.T @ y
        prior = float(self.kernel_.diag(X).sum())
        # What the trace lacks, and its rounding: a bound must not lie below what it bounds.
        self._eta = max(0.0, prior - float((Phi**2).sum())) + len(X) * np.finfo(float).eps * prior
        self.error_bound_ = self._eta / self._noise
        self._set_evidence(float(y @ y), len(y))
        return self

    def _check_noise(self) -> None:
        sigma = self.noise_std
        if isinstance(sigma, bool) or not isinstance(sigma, Real) or not 0 < sigma < math.inf:
            raise ValueError(f"noise_std must be positive and finite, got {sigma!r}.")

    def _set_evidence(self, squares: float, n: int) -> None:
        noise, more = self._noise, self._noise + self._eta
        fit, at_most = (float(self._form(np.array([squares]), self._y[:, None], tau)[0])
                        for tau in (noise, more))  # fmt: skip
        log_det = np.log(self._eigenvalues + noise).sum() + (n - len(self._y)) * math.log(noise)
        rest = -0.5 * float(log_det + n * math.log(2 * math.pi))
        self.log_marginal_likelihood_value_ = rest - 0.5 * fit
        self.log_marginal_likelihood_bounds_ = (
            rest - 0.5 * (fit + self.error_bound_),
            rest - 0.5 * at_most,
        )

    @property
    def _noise(self) -> float:
        return float(self.noise_std) ** 2

    def _form(self, squares: NDArray, b: NDArray, tau: float) -> NDArray:
        """aᵀ (ΦΦᵀ + τI)⁻¹ a for vectors a of ``squares`` aᵀa (q,), and b = (ΦV)ᵀ a (m, q)."""
        return (squares - (b**2 / (self._eigenvalues + tau)[:, None]).sum(0)) / tau

    def predict(self, X: ArrayLike, return_std: bool = False, return_cov: bool = False) -> Any:
        """Mean of the function, and on request its standard deviation or covariance, without noise.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        return_std, return_cov : bool
            At most one of them.

        Returns
        -------
        mean : ndarray of shape (n_samples,)
        std : ndarray of shape (n_samples,)
            If ``return_std``.
        cov : ndarray of shape (n_samples, n_samples)
            If ``return_cov``.

        Raises
        ------
        RuntimeError
            If both are asked for, as in scikit-learn.
        """
        check_is_fitted(self)
        if return_std and return_cov:
            raise RuntimeError("At most one of return_std or return_cov can be requested.")
        X = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        phi, noise = self.features_.transform(X) @ self._V, self._noise
        mean = phi @ (self._y / (self._eigenvalues + noise))
        known = phi * np.sqrt(self._eigenvalues / (self._eigenvalues + noise))
        if return_cov:
            return mean, self.kernel_(X) - known @ known.T
        if return_std:
            variance = self.kernel_.diag(X) - (known**2).sum(1)
            return mean, np.sqrt(variance.clip(0.0))
        return mean

    def variance_bounds(self, X: ArrayLike) -> tuple[NDArray, NDArray]:
        """Between which the exact process's variance of the function is, for every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        low, high : ndarray of shape (n_samples,)
            At the cost of the kernel of X with all training samples.
        """
        check_is_fitted(self)
        X = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        prior, known = self.kernel_.diag(X), np.empty((2, len(X)))
        for part in gen_batches(len(X), chunk_length(16 * len(self.X_train_), self.memory_limit)):
            a = self.kernel_(X[part], self.X_train_)
            squares, b = (a**2).sum(1), self._rows.T @ a.T
            for i, tau in enumerate((self._noise, self._noise + self._eta)):
                known[i, part] = self._form(squares, b, tau)
        return (prior - known[0]).clip(0.0), prior - known[1]

    def log_marginal_likelihood(self) -> float:
        """Evidence of the process with these features; its bracket is an attribute.

        Returns
        -------
        float
        """
        check_is_fitted(self)
        return self.log_marginal_likelihood_value_

    def sample_y(self, X: ArrayLike, n_samples: int = 1, random_state: Any = 0) -> NDArray:
        """Draw functions at X, of shape (n_X, n_samples), as scikit-learn's process does.

        Parameters
        ----------
        X : array-like of shape (n_X, n_features)
        n_samples : int
        random_state : int, RandomState instance or None

        Returns
        -------
        ndarray of shape (n_X, n_samples)
        """
        mean, cov = self.predict(X, return_cov=True)
        return check_random_state(random_state).multivariate_normal(mean, cov, n_samples).T

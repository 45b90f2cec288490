"""Classification by regression on labels, as with the kernels of infinitely wide networks.

Labels as numbers: 1 - 1/K for the class of a sample, -1/K for the others (Lee et al. 2018, section
3.1; Garriga-Alonso et al. 2019, section 4). K Gaussian processes with one kernel and one Cholesky
factor then give, at test inputs, the means M (n_test, K) and one variance v (n_test,):

    M = K_* (K + σ²I)⁻¹ Y        v = diag K_** - diag K_* (K + σ²I)⁻¹ K_*ᵀ
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._utils.linalg import cholesky, nonnegative_variance
from .._utils.memory import batches, chunk_length
from ..kernels import NNGPKernel

__all__ = ["NNGPClassifier"]


class NNGPClassifier(ClassifierMixin, BaseEstimator):
    """Gaussian process regression on centred one-hot labels, the largest mean being the class.

    Exact, with one Cholesky factorisation for all classes. The means are no probabilities; the
    variance says how far a sample is from what was seen (Lee et al. 2018, figure 2).

    Parameters
    ----------
    kernel : Kernel, default=None
        Any of scikit-learn's; None is ``NNGPKernel()``.
    noise_std : float, default=1e-5
        σ, in units of the targets (1 for a class): σ² = 1e-10, from where both papers start. Where
        the factorisation fails, growing jitter is added and its size warned of.
    optimizer : {None, "fmin_l_bfgs_b"}, default=None
        Whether to raise the evidence over the kernel's free hyperparameters.
    memory_limit : float, default=None
        MiB for the rows of K_* at prediction; None is scikit-learn's ``working_memory``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    kernel_ : Kernel
        With the hyperparameters used.
    log_marginal_likelihood_value_ : float
        Evidence of the centred labels, summed over classes.
    X_train_ : ndarray of shape (n_samples, n_features)
    dual_coef_ : ndarray of shape (n_samples, n_classes)
        (K + σ²I)⁻¹ Y.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import NNGPClassifier
    >>> X = np.array([[-1.0, 1.0], [1.0, 1.0]])
    >>> NNGPClassifier().fit(X, ["left", "right"]).predict([[-0.5, 1.0]]).tolist()
    ['left']
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        noise_std: float = 1e-5,
        optimizer: str | None = None,
        memory_limit: float | None = None,
    ) -> None:
        self.kernel = kernel
        self.noise_std = noise_std
        self.optimizer = optimizer
        self.memory_limit = memory_limit

    def fit(self, X: ArrayLike, y: ArrayLike) -> NNGPClassifier:
        """Factorise the kernel of the training samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Labels.

        Returns
        -------
        NNGPClassifier
            Itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, or there is only one class.
        numpy.linalg.LinAlgError
            If the matrix cannot be factorised, not even with jitter.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y must hold at least two classes, got 1 class.")
        self.X_train_ = X
        self._Y = np.eye(len(self.classes_))[index] - 1 / len(self.classes_)
        self.kernel_ = NNGPKernel() if self.kernel is None else clone(self.kernel)
        if self.optimizer is not None and self.kernel_.n_dims:
            self._optimise()
        L, A = self._solve(self.kernel_(X))
        self._L, self.dual_coef_ = L.numpy(), A.numpy()
        self.log_marginal_likelihood_value_ = self._evidence(L, A)
        return self

    def _check_parameters(self) -> None:
        sigma = self.noise_std
        if isinstance(sigma, bool) or not isinstance(sigma, Real) or not 0 <= sigma < math.inf:
            raise ValueError(f"noise_std must be a number >= 0, got {sigma!r}.")
        if self.optimizer not in (None, "fmin_l_bfgs_b"):
            raise ValueError(f"optimizer must be None or 'fmin_l_bfgs_b', got {self.optimizer!r}.")

    def _solve(self, K: NDArray) -> tuple[torch.Tensor, torch.Tensor]:
        """L of K + σ²I (K is overwritten), and (K + σ²I)⁻¹ Y."""
        K[np.diag_indices_from(K)] += float(self.noise_std) ** 2
        advice = "Raise noise_std, or take a shallower kernel."
        L = cholesky(torch.from_numpy(K), "the kernel matrix", advice)
        return L, torch.cholesky_solve(torch.from_numpy(self._Y), L)

    def _evidence(self, L: torch.Tensor, A: torch.Tensor) -> float:
        n, k = A.shape
        fit = float((torch.from_numpy(self._Y) * A).sum())
        return -0.5 * fit - k * (float(L.diagonal().log().sum()) + n / 2 * math.log(2 * math.pi))

    def _optimise(self) -> None:
        start = self.kernel_

        def objective(theta: NDArray) -> tuple[float, NDArray]:
            value, gradient = self._likelihood(start.clone_with_theta(theta), True)
            return -value, -gradient

        out = minimize(objective, start.theta, method="L-BFGS-B", jac=True, bounds=start.bounds)
        self.kernel_ = start.clone_with_theta(out.x)

    def _likelihood(self, kernel: Any, eval_gradient: bool) -> Any:
        if not eval_gradient:
            return self._evidence(*self._solve(kernel(self.X_train_)))
        K, dK = kernel(self.X_train_, eval_gradient=True)
        L, A = self._solve(K)
        inverse = torch.cholesky_inverse(L)
        inner = (A @ A.T - A.shape[1] * inverse).numpy()
        gradient = [0.5 * float((inner * dK[:, :, j]).sum()) for j in range(dK.shape[2])]
        return self._evidence(L, A), np.array(gradient)

    def log_marginal_likelihood(
        self, theta: ArrayLike | None = None, eval_gradient: bool = False
    ) -> Any:
        """Evidence of the centred labels at log hyperparameters of the kernel.

        Σ_k log N(Y_k | 0, K + σ²I) over the classes (R&W eq. 2.30).

        Parameters
        ----------
        theta : array-like of shape (n_dims,), optional
            None is where the fit ended.
        eval_gradient : bool
            Whether to return the gradient too; needs ``theta``.

        Returns
        -------
        value : float
        gradient : ndarray of shape (n_dims,)
            If ``eval_gradient``.

        Raises
        ------
        ValueError
            If the gradient is asked for without ``theta``.
        """
        check_is_fitted(self)
        if theta is None:
            if eval_gradient:
                raise ValueError("Gradient can only be evaluated for theta!=None.")
            return self.log_marginal_likelihood_value_
        return self._likelihood(self.kernel_.clone_with_theta(np.asarray(theta)), eval_gradient)

    def _means(self, X: ArrayLike, variance: bool) -> tuple[NDArray, NDArray]:
        """(n, K) means, and (n,) variances of f if asked for."""
        check_is_fitted(self)
        checked: Any = validate_data(self, X, dtype=np.float64, reset=False)
        M = np.empty((len(checked), len(self.classes_)))
        v = np.empty(len(M) if variance else 0)
        for r in batches(len(M), chunk_length(16 * len(self.dual_coef_), self.memory_limit)):
            K = self.kernel_(checked[r], self.X_train_)
            M[r] = K @ self.dual_coef_
            if variance:
                prior = torch.from_numpy(np.asarray(self.kernel_.diag(checked[r])))
                L = torch.from_numpy(self._L)
                half = torch.linalg.solve_triangular(L, torch.from_numpy(K).T, upper=False)
                v[r] = nonnegative_variance(prior - half.square().sum(0), prior).numpy()
        return M, v

    def decision_function(self, X: ArrayLike) -> NDArray:
        """Means of the classes' targets (for two classes, of the second; above 0 is that class).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        """
        M = self._means(X, False)[0]
        return M[:, 1] if M.shape[1] == 2 else M

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """The class of the largest mean.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        return_std : bool
            Whether to return the standard deviation of the latent means too.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        std : ndarray of shape (n_samples,)
            If ``return_std``.
        """
        M, v = self._means(X, return_std)
        labels = self.classes_[M.argmax(1)]
        return (labels, np.sqrt(v)) if return_std else labels

    def predict_std(self, X: ArrayLike, target: str = "latent") -> NDArray:
        """Standard deviation of the prediction, the same for every class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        target : {"latent", "y"}
            Of the mean, or of a label drawn about it (σ² more).

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        ValueError
            If ``target`` is another.
        """
        if target not in ("latent", "y"):
            raise ValueError(f"target must be 'latent' or 'y', got {target!r}.")
        v = self._means(X, True)[1]
        return np.sqrt(v + float(self.noise_std) ** 2 if target == "y" else v)

"""Classification with the kernels of infinitely wide networks: by regression on labels, or true.

Labels as numbers: 1 - 1/K for the class of a sample, -1/K for the others (Lee et al. 2018, section
3.1; Garriga-Alonso et al. 2019, section 4). K Gaussian processes with one kernel and one Cholesky
factor then give, at test inputs, the means M (n_test, K) and one variance v (n_test,):

    M = K_* (K + σ²I)⁻¹ Y        v = diag K_** - diag K_* (K + σ²I)⁻¹ K_*ᵀ

With a categorical likelihood the same K prior functions go through a softmax, and Laplace's
approximation gives probabilities (`categorical_laplace`).
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
from sklearn.utils import gen_batches
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._utils.documentation import Documented
from .._utils.interrupts import whole_fit
from .._utils.linalg import cholesky, nonnegative_variance
from .._utils.memory import chunk_length, require_memory
from ..kernels import NNGPKernel
from ..links import contrast_log_softmax
from .categorical_laplace import find_mode, latent

__all__ = ["NNGPClassifier"]


def _is_categorical(model: NNGPClassifier) -> bool:
    if model.likelihood == "categorical":
        return True
    raise AttributeError("The means of regression are no probabilities: likelihood='categorical'.")


class NNGPClassifier(ClassifierMixin, Documented, BaseEstimator):
    """A Gaussian process classifier of several classes with one kernel.

    By default regression on centred one-hot labels, the largest mean being the class: exact, with
    one Cholesky factorisation for all classes. The means are no probabilities; the variance says
    how far a sample is from what was seen (Lee et al. 2018, figure 2). ``likelihood="categorical"``
    has probabilities, by Laplace's approximation, at the cost of one factorisation for each class
    and Newton step (some ten steps), and C n² numbers of memory. They are cautious: Laplace's
    variance is too large where the classes are sure, the more so the larger the kernel.

    Parameters
    ----------
    kernel : Kernel, default=None
        Any of scikit-learn's; None is ``NNGPKernel()``.
    likelihood : {"labels", "categorical"}, default="labels"
        Regression on labels, or a softmax of the classes' functions.
    noise_std : float, default=1e-5
        σ, in units of the targets (1 for a class): σ² = 1e-10, from where both papers start. Where
        the factorisation fails, growing jitter is added and its size warned of. Labels have it,
        classes do not.
    optimizer : {None, "fmin_l_bfgs_b"}, default=None
        Whether to raise the evidence over the kernel's free hyperparameters; of labels only.
    memory_limit : float, default=None
        MiB for the rows of K_* at prediction and the classes' factors; None is scikit-learn's
        ``working_memory``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    kernel_ : Kernel
        With the hyperparameters used.
    log_marginal_likelihood_value_ : float
        Evidence of the centred labels, summed over classes, or Laplace's of the classes.
    X_train_ : ndarray of shape (n_samples, n_features)
    dual_coef_ : ndarray of shape (n_samples, n_classes)
        (K + σ²I)⁻¹ Y, or of classes Y - π at the mode.
    n_iter_ : int
        Newton steps; of classes only.

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
    >>> model = NNGPClassifier(likelihood="categorical").fit(X, ["left", "right"])
    >>> model.predict_proba([[0.0, 1.0]]).round(3).tolist()
    [[0.5, 0.5]]
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        likelihood: str = "labels",
        noise_std: float = 1e-5,
        optimizer: str | None = None,
        memory_limit: float | None = None,
    ) -> None:
        self.kernel = kernel
        self.likelihood = likelihood
        self.noise_std = noise_std
        self.optimizer = optimizer
        self.memory_limit = memory_limit

    @whole_fit
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
        MemoryError
            If the factors of all classes exceed the limit.
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
        if self.likelihood == "categorical":
            return self._fit_classes(index)
        L, A = self._solve(self.kernel_(X))
        self._L, self.dual_coef_ = L.numpy(), A.numpy()
        self.log_marginal_likelihood_value_ = self._evidence(L, A)
        return self

    def _fit_classes(self, index: NDArray) -> NNGPClassifier:
        n, C = self._Y.shape
        advice = "Use fewer samples, or raise memory_limit."
        require_memory(32.0 * C * n * n, self.memory_limit, f"{C} factors {n} × {n}", advice)
        K = torch.from_numpy(np.asarray(self.kernel_(self.X_train_)))
        self._mode = find_mode(K, torch.from_numpy(np.eye(C)[index]))
        self.dual_coef_, self.n_iter_ = self._mode.a.numpy(), self._mode.n_iter
        self.log_marginal_likelihood_value_ = self._mode.evidence
        return self

    def _check_parameters(self) -> None:
        if self.likelihood not in ("labels", "categorical"):
            raise ValueError(
                f"likelihood must be 'labels' or 'categorical', got {self.likelihood!r}."
            )
        if self.likelihood == "categorical" and self.optimizer is not None:
            raise ValueError("optimizer must be None with likelihood='categorical'.")
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
            If the gradient is asked for without ``theta``, or ``theta`` is given for classes.
        """
        check_is_fitted(self)
        if theta is not None and self.likelihood == "categorical":
            raise ValueError("theta must be None with likelihood='categorical'.")
        if theta is None:
            if eval_gradient:
                raise ValueError("Gradient can only be evaluated for theta!=None.")
            return self.log_marginal_likelihood_value_
        return self._likelihood(self.kernel_.clone_with_theta(np.asarray(theta)), eval_gradient)

    def _means(self, X: ArrayLike, variance: bool) -> tuple[NDArray, NDArray]:
        """(n, K) means, and (n,) variances of f if asked for."""
        check_is_fitted(self)
        if variance and self.likelihood == "categorical":
            raise ValueError("Classes have no standard deviation of labels: use predict_proba.")
        checked: Any = validate_data(self, X, dtype=np.float64, reset=False)
        M = np.empty((len(checked), len(self.classes_)))
        v = np.empty(len(M) if variance else 0)
        for r in gen_batches(len(M), chunk_length(16 * len(self.dual_coef_), self.memory_limit)):
            K = self.kernel_(checked[r], self.X_train_)
            M[r] = K @ self.dual_coef_
            if variance:
                prior = torch.from_numpy(np.asarray(self.kernel_.diag(checked[r])))
                L = torch.from_numpy(self._L)
                half = torch.linalg.solve_triangular(L, torch.from_numpy(K).T, upper=False)
                v[r] = nonnegative_variance(prior - half.square().sum(0), prior).numpy()
        return M, v

    @available_if(_is_categorical)
    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Probabilities of the classes, with what is not known of their functions.

        The latent distribution goes through the probit link of each class against the mean of
        the others. Only with ``likelihood="categorical"``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        checked: Any = validate_data(self, X, dtype=np.float64, reset=False)
        p = np.empty((len(checked), len(self.classes_)))
        row = 24 * p.shape[1] * len(self.dual_coef_)
        for r in gen_batches(len(p), chunk_length(row, self.memory_limit)):
            K = torch.from_numpy(np.asarray(self.kernel_(checked[r], self.X_train_)))
            prior = torch.from_numpy(np.asarray(self.kernel_.diag(checked[r])))
            p[r] = contrast_log_softmax(*latent(self._mode, K, prior)).exp().numpy()
        return p

    def decision_function(self, X: ArrayLike) -> NDArray:
        """Means of the classes' targets or functions (for two classes, above 0 is the second).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
        """
        M = self._means(X, False)[0]
        return (M[:, 1] - M[:, 0]) / 2 if M.shape[1] == 2 else M

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
            If ``target`` is another, or the likelihood is categorical.
        """
        if target not in ("latent", "y"):
            raise ValueError(f"target must be 'latent' or 'y', got {target!r}.")
        v = self._means(X, True)[1]
        return np.sqrt(v + float(self.noise_std) ** 2 if target == "y" else v)

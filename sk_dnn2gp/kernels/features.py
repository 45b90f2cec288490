"""Feature maps of kernels for scikit-learn (:ref:`math-laplace`, :ref:`math-low-rank`).

`NTKFeatures`: x -> J(x)/√δ, one block of n_params columns per output, whose inner products are the
tangent kernel; or J(x) Ω/√(δ d) with Gaussian Ω of d columns, whose inner products are it on
average.
`NNGPFeatures`: x -> K(x, Z) K(Z, Z)^(-1/2) of m samples Z (Nyström), for any kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    clone,
)
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from .._utils.documentation import Documented
from .._utils.interrupts import whole_fit
from .._utils.memory import chunk_length, require_memory
from ..linearize import Linearization
from .infinite.dense import NNGPKernel
from .ntk import NTKKernel

__all__ = ["NNGPFeatures", "NTKFeatures"]


class NTKFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Documented, BaseEstimator):
    """Jacobian features of a network, for linear models and plots (:ref:`math-laplace`).

    Parameters
    ----------
    network : torch.nn.Module, skorch net or fitted estimator with ``module_``
        Never modified, and not trained here.
    n_components : int, default=None
        Random directions d per output; None gives every weight its own column. An entry of the
        projected kernel has its exact value as its mean and a standard deviation of at most
        √(2/d) √(K(x, x) K(x', x')): ``relative_error_``.
    prior_precision : float, default=1.0
        δ: features are divided by √δ.
    output : "sum" or int, default="sum"
        All outputs, side by side (their inner products sum over outputs), or one.
    dtype : torch.dtype, default=torch.float64
        Precision of the work.
    input_shape : tuple of int, default=None
        Shape of one example, where the network does not take a vector of features.
    memory_limit : float, default=None
        MiB for temporary work, beside the features themselves.
    random_state : int, RandomState instance or None, default=None
        Of the projection.

    Attributes
    ----------
    n_features_out_ : int
        Columns of the features.
    relative_error_ : float
        √(2/d), or 0 without a projection.
    n_features_in_ : int
        Columns of X.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sk_dnn2gp.kernels import NTKFeatures
    >>> NTKFeatures(torch.nn.Linear(2, 1)).fit_transform(np.array([[3.0, 4.0]]))
    array([[3., 4., 1.]])
    """

    def __init__(
        self,
        network: Any,
        *,
        n_components: int | None = None,
        prior_precision: float = 1.0,
        output: str | int = "sum",
        dtype: torch.dtype | None = torch.float64,
        input_shape: Sequence[int] | None = None,
        memory_limit: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.network = network
        self.n_components = n_components
        self.prior_precision = prior_precision
        self.output = output
        self.dtype = dtype
        self.input_shape = input_shape
        self.memory_limit = memory_limit
        self.random_state = random_state

    @whole_fit
    def fit(self, X: ArrayLike, y: Any = None) -> NTKFeatures:
        """Draw the projection's seed and count the features.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        NTKFeatures

        Raises
        ------
        ValueError
            If a parameter is out of its range, or X does not fit the network.
        """
        X = np.asarray(validate_data(self, X))
        d = self.n_components
        if d is not None and (not isinstance(d, int | np.integer) or d < 1):
            raise ValueError(f"n_components must be None or a positive integer, got {d!r}.")
        kernel = self._kernel()
        lin = kernel._linearization()
        K = lin.outputs(kernel._tensor(X[:1])).shape[1] if self.output == "sum" else 1
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.n_features_out_ = K * (lin.n_params if d is None else int(d))
        self._n_features_out = self.n_features_out_
        self.relative_error_ = 0.0 if d is None else math.sqrt(2.0 / d)
        return self

    def transform(self, X: ArrayLike) -> NDArray:
        """Features of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, ``n_features_out_``)

        Raises
        ------
        MemoryError
            If the explicit features alone exceed the memory limit.
        """
        check_is_fitted(self)
        X = np.asarray(validate_data(self, X, reset=False))
        kernel = self._kernel()
        x, lin = kernel._tensor(X), kernel._linearization()
        found = self._explicit(lin, x) if self.n_components is None else self._projected(lin, x)
        return found / math.sqrt(kernel._delta())

    def _kernel(self) -> NTKKernel:
        return NTKKernel(
            self.network,
            prior_precision=self.prior_precision,
            output=self.output,
            dtype=self.dtype,
            input_shape=self.input_shape,
            memory_limit=self.memory_limit,
        )

    def _explicit(self, lin: Linearization, x: Tensor) -> NDArray:
        require_memory(
            8 * len(x) * self.n_features_out_,
            self.memory_limit,
            f"{len(x)} × {self.n_features_out_} explicit features",
            "Set n_components to project them, transform fewer samples at a time, or raise "
            "memory_limit.",
        )
        C = None if self.output == "sum" else lin.unit_cotangents(int(self.output))
        found = np.empty((len(x), self.n_features_out_))
        for part, rows in lin.iter_rows(x, C):
            found[part] = rows.flatten(1).cpu().numpy()
        return found

    def _projected(self, lin: Linearization, x: Tensor) -> NDArray:
        d = int(self.n_components or 0)
        generator = torch.Generator().manual_seed(self._seed)
        found = []
        for part in gen_batches(d, chunk_length(32 * lin.n_params, self.memory_limit)):
            shape = (part.stop - part.start, lin.n_params)
            Omega = torch.randn(shape, generator=generator, dtype=torch.float64).mT
            f = lin.jvp(x, Omega)
            found.append(f if self.output == "sum" else f[:, [int(self.output)]])
        return torch.cat(found, dim=2).flatten(1).cpu().numpy() / math.sqrt(d)


class NNGPFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Documented, BaseEstimator):
    """Nyström features of a kernel, as scikit-learn's ``Nystroem`` has them of its own kernels.

    m samples Z are drawn; the inner products of the features are K(X, Z) K(Z, Z)⁺ K(Z, X), the
    kernel's best approximation from them (Williams & Seeger 2001), never above it. With
    ``BayesianRidge`` or ``Ridge`` behind it, a Gaussian process costs O(n m²) instead of O(n³), and
    n · m values of the kernel.

    Parameters
    ----------
    kernel : Kernel, default=None
        Any of scikit-learn's, called on whole arrays; None is ``NNGPKernel()``.
    n_components : int, default=100
        m; at most the number of samples.
    memory_limit : float, default=None
        MiB for rows of the kernel at a time; None is scikit-learn's ``working_memory``.
    random_state : int, RandomState instance or None, default=None
        Of the draw of Z.

    Attributes
    ----------
    components_ : ndarray of shape (m, n_features)
        Z.
    component_indices_ : ndarray of shape (m,)
        Their rows in X.
    normalization_ : ndarray of shape (m, m)
        K(Z, Z)^(-1/2), without directions below rounding.
    kernel_ : Kernel
        The clone that is used.
    relative_error_ : float
        The certificate: the share of the training samples' variance, Σ K(x, x), that the features
        lack. The eigenvalues of what is lacking sum to that share of the trace.
    n_features_in_ : int
        Columns of X.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.kernels import NNGPFeatures, NNGPKernel
    >>> X = np.random.default_rng(0).normal(size=(5, 2))
    >>> Z = NNGPFeatures(NNGPKernel(2), n_components=5).fit_transform(X)
    >>> bool(np.allclose(Z @ Z.T, NNGPKernel(2)(X)))
    True
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        n_components: int = 100,
        memory_limit: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.n_components = n_components
        self.memory_limit = memory_limit
        self.random_state = random_state

    @whole_fit
    def fit(self, X: ArrayLike, y: Any = None) -> NNGPFeatures:
        """Draw Z, factorise its kernel and state the error.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        NNGPFeatures

        Raises
        ------
        ValueError
            If ``n_components`` is no positive integer, or X does not suit the kernel.
        """
        X = np.asarray(validate_data(self, X, dtype=np.float64))
        m = self.n_components
        if isinstance(m, bool) or not isinstance(m, int | np.integer) or m < 1:
            raise ValueError(f"n_components must be a positive integer, got {m!r}.")
        self.kernel_ = NNGPKernel() if self.kernel is None else clone(self.kernel)
        order = check_random_state(self.random_state).permutation(len(X))
        self.component_indices_ = order[: int(m)]
        self.components_ = X[self.component_indices_]
        self.normalization_ = _inverse_root(self.kernel_(self.components_))
        self._n_features_out = len(self.components_)
        prior = self.kernel_.diag(X)
        kept = sum(float((Z**2).sum()) for _, Z in self._rows(X))
        self.relative_error_ = max(0.0, 1.0 - kept / float(prior.sum()))
        return self

    def transform(self, X: ArrayLike) -> NDArray:
        """Features of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, m)
        """
        check_is_fitted(self)
        X = np.asarray(validate_data(self, X, dtype=np.float64, reset=False))
        out = np.empty((len(X), self._n_features_out))
        for part, Z in self._rows(X):
            out[part] = Z
        return out

    def _rows(self, X: NDArray) -> Iterator[tuple[slice, NDArray]]:
        length = chunk_length(16 * self._n_features_out, self.memory_limit)
        for part in gen_batches(len(X), length):
            yield part, self.kernel_(X[part], self.components_) @ self.normalization_


def _inverse_root(K: NDArray) -> NDArray:
    """K^(-1/2), zero in directions whose eigenvalue is rounding."""
    values, V = np.linalg.eigh(K)
    sure = values > len(K) * np.finfo(np.float64).eps * values[-1]
    return (V[:, sure] / np.sqrt(values[sure])) @ V[:, sure].T

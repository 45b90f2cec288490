"""Infinitely wide dense networks as scikit-learn kernels (MATH 7; Lee et al. 2018).

K⁰ = σ_b² + σ_w² x·x'/D, K^{l+1} = σ_b² + σ_w² F_φ; tangents in (log σ_w², log σ_b²) go forward with
it. Blocks of (rows, columns); X is (n_samples, n_features), all float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

from .._memory import batches, limit_in_bytes
from .activations import Dual, dual_activation

__all__ = ["InfiniteNTKKernel", "NNGPKernel"]

# A block of a quarter million entries stays in cache; its temporaries are about 20 such.
_BLOCK = 512
_TEMPORARIES = 40


class NNGPKernel(Kernel):
    """Prior covariance of an infinitely wide dense network (Lee et al. 2018, eq. 5).

    Parameters
    ----------
    depth : int, default=3
        Hidden layers.
    activation : str or callable, default="relu"
        See `dual_activation`; a callable must act on every element of an array by itself.
    sigma_w2, sigma_b2 : float
        Weight variance (times fan-in) and bias variance.
    sigma_w2_bounds, sigma_b2_bounds : pair of float or "fixed", default=(1e-5, 1e5)
        For an optimiser. ``sigma_b2=0`` must be "fixed".
    slope : float, default=0.01
        Of the leaky ReLU.
    terms : int, default=120
        Of the Hermite series, where there is no closed form.
    memory_limit : float, default=None
        MiB of temporary work beyond the result; None is scikit-learn's ``working_memory``.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or X is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.kernels import NNGPKernel
    >>> NNGPKernel(1, sigma_w2=2.0, sigma_b2=1.0).diag(np.eye(2)).tolist()
    [3.0, 3.0]
    """

    def __init__(
        self,
        depth: int = 3,
        *,
        activation: Any = "relu",
        sigma_w2: float = 2.0,
        sigma_b2: float = 0.1,
        sigma_w2_bounds: Any = (1e-5, 1e5),
        sigma_b2_bounds: Any = (1e-5, 1e5),
        slope: float = 0.01,
        terms: int = 120,
        memory_limit: float | None = None,
    ) -> None:
        self.depth = depth
        self.activation = activation
        self.sigma_w2 = sigma_w2
        self.sigma_b2 = sigma_b2
        self.sigma_w2_bounds = sigma_w2_bounds
        self.sigma_b2_bounds = sigma_b2_bounds
        self.slope = slope
        self.terms = terms
        self.memory_limit = memory_limit

    @property
    def hyperparameter_sigma_w2(self) -> Hyperparameter:
        """σ_w² as scikit-learn's optimiser sees it."""
        return Hyperparameter("sigma_w2", "numeric", self.sigma_w2_bounds)

    @property
    def hyperparameter_sigma_b2(self) -> Hyperparameter:
        """σ_b² as scikit-learn's optimiser sees it."""
        return Hyperparameter("sigma_b2", "numeric", self.sigma_b2_bounds)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(depth={self.depth}, activation={self.activation!r}, "
            f"sigma_w2={self.sigma_w2:.3g}, sigma_b2={self.sigma_b2:.3g})"
        )

    def __call__(
        self, X: ArrayLike, Y: ArrayLike | None = None, eval_gradient: bool = False
    ) -> Any:
        """Kernel matrix, and its exact gradient in the logs of the free variances on request.

        Parameters
        ----------
        X : array-like of shape (n_samples_X, n_features)
        Y : array-like of shape (n_samples_Y, n_features), optional
            None is X.
        eval_gradient : bool
            Only with ``Y=None``.

        Returns
        -------
        K : ndarray of shape (n_samples_X, n_samples_Y)
        K_gradient : ndarray of shape (n_samples_X, n_samples_X, n_free)

        Raises
        ------
        ValueError
            If ``eval_gradient`` is asked for with Y, or a value is out of its range.
        """
        if eval_gradient and Y is not None:
            raise ValueError("Gradient can only be evaluated when Y is None.")
        phi, symmetric = self._dual(), Y is None
        X = _checked(X, "X")
        Y = X if Y is None else _checked(Y, "Y")
        if X.shape[1] != Y.shape[1]:
            raise ValueError(f"X has {X.shape[1]} features and Y has {Y.shape[1]}.")
        return self._blocks(phi, X, Y, symmetric, eval_gradient)

    def _blocks(self, phi: Dual, X: NDArray, Y: NDArray, symmetric: bool, gradient: bool) -> Any:
        K = np.empty((len(X), len(Y)))
        G = np.empty((*K.shape, 2)) if gradient else None
        px, py = self._diagonals(phi, X), None
        py = px if symmetric else self._diagonals(phi, Y)
        side = int(math.sqrt(limit_in_bytes(self.memory_limit) / 8 / _TEMPORARIES))
        side = max(1, min(_BLOCK, side))
        for r in batches(len(X), side):
            for c in batches(len(Y), side):
                if symmetric and c.start < r.start:
                    continue
                k, g = self._block(phi, X[r] @ Y[c].T / X.shape[1], px, py, r, c, gradient)
                _store(K, G, k, g, r, c, symmetric)
        if symmetric:
            np.fill_diagonal(K, self._last(px)[0])
            for j in range(0 if G is None else 2):
                np.fill_diagonal(G[:, :, j], self._last(px)[1][j])  # type: ignore[index]
        return K if G is None else (K, G[:, :, self._free()])

    def _free(self) -> list[int]:
        # scikit-learn orders hyperparameters by name: sigma_b2 first; tangents here are (b, w).
        pair = (self.hyperparameter_sigma_b2, self.hyperparameter_sigma_w2)
        return [j for j, h in enumerate(pair) if not h.fixed]

    def diag(self, X: ArrayLike) -> NDArray:
        """Diagonal of ``self(X)``, of shape (n_samples,), without the matrix."""
        return self._last(self._diagonals(self._dual(), _checked(X, "X")))[0].copy()

    def is_stationary(self) -> bool:
        """Whether K(x, x') depends on x - x' alone: no."""
        return False

    def _dual(self) -> Dual:
        if isinstance(self.depth, bool) or int(self.depth) != self.depth or self.depth < 0:
            raise ValueError(f"depth must be a whole number >= 0, got {self.depth!r}.")
        if not 0 < self.sigma_w2 < math.inf:
            raise ValueError(f"sigma_w2 must be positive and finite, got {self.sigma_w2!r}.")
        if not 0 <= self.sigma_b2 < math.inf:
            raise ValueError(f"sigma_b2 must be >= 0 and finite, got {self.sigma_b2!r}.")
        return dual_activation(self.activation, slope=self.slope, terms=self.terms)

    def _affine(self, F: NDArray, dF: Any) -> tuple[NDArray, list[NDArray]]:
        w, b = self.sigma_w2, self.sigma_b2
        return b + w * F, [b + w * dF[0] + 0.0 * F, w * F + w * dF[1]]

    def _diagonals(self, phi: Dual, X: NDArray) -> list[tuple]:
        """(k, its tangents, Θ, its tangents) of every layer."""
        k, dk = self._affine(np.einsum("ij,ij->i", X, X) / X.shape[1], (0.0, 0.0))
        layers = [(k, dk, k, dk)]
        for _ in range(self.depth):
            T, dT = layers[-1][2:]
            F, D, F_k, D_k = phi.diagonal(k)
            DT, dDT = D * T, [D_k * a * T + D * t for a, t in zip(dk, dT, strict=True)]
            k, dk = self._affine(F, [F_k * a for a in dk])
            layers.append((k, dk, *self._tangent_kernel(k, dk, DT, dDT)))
        if not np.isfinite(layers[-1][0]).all():
            raise ValueError("The kernel overflows: X is too large in size. Scale the inputs.")
        return layers

    def _tangent_kernel(self, k: Any, dk: Any, DT: Any, dDT: Any) -> tuple[Any, Any]:
        w = self.sigma_w2
        return k + w * DT, [dk[0] + w * dDT[0], dk[1] + w * DT + w * dDT[1]]

    def _last(self, layers: list[tuple]) -> tuple:
        return layers[-1][:2]

    def _block(
        self, phi: Dual, xy: NDArray, px: Any, py: Any, r: slice, c: slice, gradient: bool
    ) -> tuple:
        k, dk = self._affine(xy, (0.0, 0.0))
        T, dT = k, dk
        for left, right in zip(px[:-1], py[:-1], strict=True):
            k1, k2 = left[0][r, None], right[0][None, c]
            if not gradient:
                F, D = phi.value(k, k1, k2)
                k = self.sigma_b2 + self.sigma_w2 * F
                T = k + self.sigma_w2 * D * T if self._tangent else k
                continue
            m = phi.moments(k, k1, k2)
            sides = [(a[r, None], b[None, c]) for a, b in zip(left[1], right[1], strict=True)]
            dF = [m.D * d + m.F11 * a + m.F22 * b for d, (a, b) in zip(dk, sides, strict=True)]
            dD = [m.D12 * d + m.D11 * a + m.D22 * b for d, (a, b) in zip(dk, sides, strict=True)]
            DT, dDT = m.D * T, [e * T + m.D * t for e, t in zip(dD, dT, strict=True)]
            k, dk = self._affine(m.F, dF)
            T, dT = self._tangent_kernel(k, dk, DT, dDT)
        return (T, dT) if self._tangent else (k, dk)

    _tangent = False


class InfiniteNTKKernel(NNGPKernel):
    """Neural tangent kernel of an infinitely wide dense network (Jacot et al. 2018).

    Θ⁰ = K⁰, Θ^{l+1} = K^{l+1} + σ_w² Ḟ_φ Θ^l, in the parametrisation of `NNGPKernel`, whose
    parameters it takes.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.kernels import InfiniteNTKKernel
    >>> InfiniteNTKKernel(0, sigma_w2=2.0, sigma_b2=1.0).diag(np.eye(2)).tolist()
    [2.0, 2.0]
    """

    _tangent = True

    def _last(self, layers: list[tuple]) -> tuple:
        return layers[-1][2:]


def _store(K: Any, G: Any, k: Any, g: Any, r: slice, c: slice, symmetric: bool) -> None:
    if symmetric and r == c:  # rounding may differ between the triangles
        k = np.triu(k) + np.triu(k, 1).T
        g = [np.triu(t) + np.triu(t, 1).T for t in g] if G is not None else g
    K[r, c] = k
    if symmetric and r != c:
        K[c, r] = k.T
    for j in range(0 if G is None else 2):
        G[r, c, j] = g[j]
        if symmetric and r != c:
            G[c, r, j] = g[j].T


def _checked(X: ArrayLike, name: str) -> NDArray:
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{name} must be (n_samples, n_features), non-empty; got {X.shape}.")
    if not np.isfinite(X).all():
        raise ValueError(f"{name} contains NaN or infinity.")
    return X

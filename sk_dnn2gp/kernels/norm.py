"""The norm of a function in the space of a kernel, by its values (:ref:`math-norm`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh

from .._utils.warn import warn
from ..exceptions import ApproximationWarning

__all__ = ["squared_rkhs_norm"]

# Part of the squares of the values beyond the kernel's range that is no rounding.
_LOST = 1e-10


def squared_rkhs_norm(K: ArrayLike, f: ArrayLike) -> float:
    """Squared norm fᵀ K⁺ f of the smoothest function with these values (:ref:`math-norm`).

    How rough a trained network is, as a kernel sees it: its own tangent kernel, or that of an
    infinitely wide network. Every function of the kernel's reproducing space with these values has
    this norm or a greater one.

    Parameters
    ----------
    K : array-like of shape (n_samples, n_samples) or (n_samples, n_outputs, n_samples, n_outputs)
        ``kernel(X)``, or ``NTKKernel.full(X)`` for outputs that are correlated.
    f : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Values at X. Outputs under one K (n_samples, n_samples) are summed.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If K is not symmetric, or f not as long, or one is not finite.

    Warns
    -----
    ApproximationWarning
        If no function of the space has these values (K is singular, and they are not in its range):
        the norm is then that of the nearest values, and the true one infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.kernels import NNGPKernel, squared_rkhs_norm
    >>> x = np.linspace(-1, 1, 20)[:, None]
    >>> kernel = NNGPKernel(depth=1, activation="relu")
    >>> smooth, rough = (squared_rkhs_norm(kernel(x), np.sin(k * x[:, 0])) for k in (1, 9))
    >>> smooth < rough
    True
    """
    K, f = np.asarray(K, dtype=np.float64), np.asarray(f, dtype=np.float64)
    whole = K.ndim == 4
    matrix = K.reshape(K.shape[0] * K.shape[1], -1) if whole else K
    fits = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not fits or not np.allclose(matrix, matrix.T):
        raise ValueError(f"K must be a finite symmetric matrix, got shape {K.shape}.")
    if f.shape[:1] != K.shape[:1] or (whole and f.size != len(matrix)):
        raise ValueError(f"f must have a value for each row of K {K.shape}, got shape {f.shape}.")
    if not np.isfinite(f).all():
        raise ValueError("f must be finite.")
    values, vectors = eigh(matrix)
    squares = ((vectors.T @ f.reshape(len(matrix), -1)) ** 2).sum(1)
    kept = values > len(values) * np.finfo(float).eps * np.abs(values).max()
    lost = float(squares[~kept].sum())
    if lost > _LOST * squares.sum():
        warn(
            f"No function of this kernel's space has these values: {lost / squares.sum():.1e} of "
            "their squares lies beyond its range. The norm is that of the nearest values.",
            ApproximationWarning,
        )
    return float((squares[kept] / values[kept]).sum())

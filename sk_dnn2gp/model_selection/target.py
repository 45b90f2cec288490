"""What a transformation of y does to a density: z = g(y) adds Σ log|∂g/∂y|.

Shapes: y (n_samples, n_outputs).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.compose import TransformedTargetRegressor

__all__ = ["log_jacobian", "transformed_target"]

# Steps of the difference quotients of g, in units of y's spread; see ``log_jacobian``.
_STEPS = (1e-3, 1e-5, 1e-7)
# Agreement asked of the quotients at two steps: fourth order at 1e-3 leaves about 1e-10.
_SMOOTH = 1e-5
# Change of slope over a step that is curvature and no kink, relative to the slope.
_STRAIGHT = 0.02


def transformed_target(
    estimator: TransformedTargetRegressor, y: Any, weight: ArrayLike | None
) -> tuple[NDArray, float]:
    """z = g(y) as the inner regressor sees it, and Σ s log|∂g/∂y|."""
    y = np.asarray(y, dtype=np.float64)
    columns = y.reshape(len(y), -1)
    transform = estimator.transformer_.transform
    z = np.asarray(transform(columns), dtype=np.float64).reshape(len(y), -1)
    if z.shape != columns.shape:
        raise ValueError(
            f"TransformedTargetRegressor turns {columns.shape[1]} target(s) into {z.shape[1]}; a "
            "density needs as many after as before. Score such candidates by cross-validation."
        )
    logs = log_jacobian(transform, columns)
    total = float(np.sum(logs if weight is None else np.asarray(weight) * logs))
    return (z[:, 0] if y.ndim == 1 else z), total


def log_jacobian(transform: Any, y: NDArray) -> NDArray:
    """log|det ∂g/∂y| of each row, by fourth-order differences.

    Each row takes the first step at which the quotients of h and h/2 agree: long steps lose no
    digits, short ones keep log y and √y inside their domain. ValueError if none does: g is not
    smooth there.
    """
    result = np.full(len(y), np.nan)
    spread = np.where(y.std(axis=0) > 0, y.std(axis=0), 1.0)
    sizes = [np.broadcast_to(step * spread, y.shape) for step in _STEPS]
    sizes.append(1e-3 * np.abs(y) + np.finfo(float).tiny)
    for h in sizes:
        coarse, fine = _jacobian(transform, y, h), _jacobian(transform, y, h / 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            size = np.abs(fine).max(axis=(1, 2))
            agree = np.abs(coarse - fine).max(axis=(1, 2)) <= _SMOOTH * size
            agree &= _bend(transform, y, h) <= _STRAIGHT * size
            logs = np.linalg.slogdet(np.where(agree[:, None, None], fine, np.nan))[1]
        use = np.isnan(result) & agree & np.isfinite(logs)
        result[use] = logs[use]
    if np.isnan(result).any():
        row = int(np.flatnonzero(np.isnan(result))[0])
        raise ValueError(
            f"The transformation of y has no smooth, non-zero derivative at row {row} (y = "
            f"{y[row].tolist()}), so the density of y is not defined and the evidence of this "
            "candidate is not comparable. Use a smooth transformer (a logarithm, PowerTransformer, "
            "StandardScaler), or score by cross-validation."
        )
    return result


def _jacobian(transform: Any, y: NDArray, h: NDArray) -> NDArray:
    """∂g_a/∂y_b of each row, (n_samples, n_outputs, n_outputs): Richardson on central quotients."""
    columns = []
    for b in range(y.shape[1]):
        move = np.zeros_like(y)
        move[:, b] = h[:, b]
        near, far = (_difference(transform, y, k * move) / (2 * k) for k in (1, 2))
        columns.append((4 * near - far) / 3 / h[:, [b]])
    return np.stack(columns, axis=2)


def _bend(transform: Any, y: NDArray, h: NDArray) -> NDArray:
    """Largest difference of the slopes before and after each row: central quotients miss a kink."""
    bends = []
    for b in range(y.shape[1]):
        move = np.zeros_like(y)
        move[:, b] = h[:, b] / 2
        after = _difference(transform, y + move, move)
        before = _difference(transform, y - move, move)
        bends.append(np.abs(after - before).max(axis=1) / h[:, b])
    return np.max(bends, axis=0)


def _difference(transform: Any, y: NDArray, move: NDArray) -> NDArray:
    """g(y + move) - g(y - move), NaN where a row leaves the domain of g."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            ends = [np.asarray(transform(y + s * move), dtype=np.float64) for s in (1.0, -1.0)]
        except ValueError:  # scikit-learn's transformers refuse a whole array for one row
            return np.full(y.shape, np.nan)
    return (ends[0] - ends[1]).reshape(y.shape)

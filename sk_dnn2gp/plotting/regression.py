"""A regression's bands along one input, and how often they hold what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf, ndtri
from scipy.stats import binom
from sklearn.utils.validation import check_consistent_length

from .axes import BLACK, BLUE, new_axes

__all__ = ["CoverageDisplay", "PredictiveDisplay", "QuantileCalibrationDisplay"]

# Probabilities at which calibration is drawn.
_LEVELS = np.linspace(0.02, 0.98, 49)


class PredictiveDisplay:
    """Mean of a one-dimensional regression with its epistemic and total bands (figure 3).

    Parameters
    ----------
    x : ndarray of shape (n_points,)
        Sorted inputs.
    mean, epistemic_std, total_std : ndarray of shape (n_points,)
        In the units of y.
    data : tuple of two ndarrays, default=None
        Inputs and targets to be scattered.

    Attributes
    ----------
    ax_, figure_ : Axes and Figure
    line_ : Line2D
        The mean.
    epistemic_band_, total_band_ : FillBetweenPolyCollection
    data_ : PathCollection or None

    Examples
    --------
    >>> from sk_dnn2gp.plotting import PredictiveDisplay
    >>> d = PredictiveDisplay.from_predictions([1, 0], [2, 3], [1, 1], [2, 2])
    >>> d.line_.get_xdata().tolist(), d.line_.get_ydata().tolist()
    ([0.0, 1.0], [3.0, 2.0])
    """

    def __init__(
        self,
        x: NDArray,
        mean: NDArray,
        epistemic_std: NDArray,
        total_std: NDArray,
        data: tuple[NDArray, NDArray] | None = None,
    ) -> None:
        self.x, self.mean = x, mean
        self.epistemic_std, self.total_std, self.data = epistemic_std, total_std, data

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: Any = None,
        *,
        grid: Any = None,
        margin: float = 0.1,
        ax: Any = None,
    ) -> PredictiveDisplay:
        """Draw a fitted DNN2GPRegressor of one feature and one output, and the data (X, y).

        Parameters
        ----------
        estimator : DNN2GPRegressor
            Fitted.
        X : array-like of shape (n_samples, 1)
            Inputs of the data, over whose range and a ``margin`` (a part of it) it is drawn.
        y : array-like of shape (n_samples,), default=None
            Targets to be scattered.
        grid : array-like of shape (n_points, 1), default=None
            Where it is drawn instead.
        margin : float, default=0.1
        ax : Axes, default=None

        Returns
        -------
        PredictiveDisplay

        Raises
        ------
        ValueError
            If X or the grid has not one column, or X and y are not of one length.
        """
        X = _one_column(X, "X")
        if grid is None:
            width = margin * (X.max() - X.min())
            grid = np.linspace(X.min() - width, X.max() + width, 300)[:, None].astype(X.dtype)
        grid = _one_column(grid, "grid")
        parts = estimator.predict_uncertainty(grid)
        stds = np.sqrt(parts.epistemic), np.sqrt(parts.total)
        data = None if y is None else (X, y)
        return cls.from_predictions(grid, estimator.predict(grid), *stds, data=data, ax=ax)

    @classmethod
    def from_predictions(
        cls,
        x: ArrayLike,
        mean: ArrayLike,
        epistemic_std: ArrayLike,
        total_std: ArrayLike,
        *,
        data: Any = None,
        ax: Any = None,
    ) -> PredictiveDisplay:
        """Draw given numbers, in any order of x; ValueError if they are not of one length."""
        columns = [np.asarray(a, dtype=float).ravel() for a in (x, mean, epistemic_std, total_std)]
        check_consistent_length(*columns)
        order = np.argsort(columns[0], kind="stable")
        if data is not None:
            data = tuple(np.asarray(part, dtype=float).ravel() for part in data)
            check_consistent_length(*data)
        x, mean, epistemic, total = (column[order] for column in columns)
        return cls(x, mean, epistemic, total, data).plot(ax=ax)

    def plot(self, ax: Any = None, *, n_std: float = 2.0) -> PredictiveDisplay:
        """Draw bands of ``n_std`` standard deviations."""
        self.ax_, self.figure_ = new_axes(ax)
        self.total_band_ = self._band(self.total_std, n_std, 0.2, "with noise")
        self.epistemic_band_ = self._band(self.epistemic_std, n_std, 0.45, "epistemic")
        (self.line_,) = self.ax_.plot(self.x, self.mean, color=BLUE, label="mean")
        self.data_ = None
        if self.data is not None:
            self.data_ = self.ax_.scatter(*self.data, s=8, color=BLACK, zorder=3, label="data")
        self.ax_.set(xlabel="x", ylabel="y")
        self.ax_.legend()
        return self

    def _band(self, std: NDArray, n_std: float, alpha: float, label: str) -> Any:
        low, high = self.mean - n_std * std, self.mean + n_std * std
        label = f"±{n_std:g} std, {label}"
        return self.ax_.fill_between(
            self.x, low, high, color=BLUE, alpha=alpha, linewidth=0, label=label
        )


def _one_column(X: Any, name: str) -> NDArray:
    X = np.asarray(X)
    X = X if np.issubdtype(X.dtype, np.floating) else X.astype(float)
    if X.ndim != 2 or X.shape[1] != 1:
        raise ValueError(f"{name} must have one column to be drawn along, got shape {X.shape}.")
    return X


class CoverageDisplay:
    """How often intervals hold what they promise: a calibration curve for regression.

    For each nominal probability α the central interval at every example, and the part of the
    targets inside it. On the diagonal, the error bars are trustworthy; above it too wide, below it
    too narrow.

    Parameters
    ----------
    nominal : ndarray of shape (n_levels,)
        α, between 0 and 1.
    empirical : ndarray of shape (n_levels,)
        Part of the targets inside.
    name : str, default=None

    Attributes
    ----------
    ax_ : Axes
    figure_ : Figure
    line_ : Line2D
    diagonal_ : Line2D

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.plotting import CoverageDisplay
    >>> y = np.random.RandomState(0).randn(500)
    >>> display = CoverageDisplay.from_predictions(y, np.zeros(500), np.ones(500))
    >>> bool(np.abs(display.empirical - display.nominal).max() < 0.1)
    True
    """

    def __init__(self, nominal: NDArray, empirical: NDArray, name: str | None = None) -> None:
        self.nominal, self.empirical, self.name = nominal, empirical, name

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike, *, name: str | None = None, ax: Any = None
    ) -> CoverageDisplay:
        """Draw a fitted regressor's intervals against y.

        They are its ``predict_quantile``'s; of an estimator without one, those of N(mean, std²) by
        ``predict(X, return_std=True)``. ValueError if y has not their shape.
        """
        tails = 0.5 * (1.0 - _LEVELS)
        ends = _quantiles(estimator, X, np.concatenate([tails, 1.0 - tails]))
        y = _of_one_shape(y, ends)
        n = len(_LEVELS)
        inside = (ends[..., :n] <= y) & (y <= ends[..., n:])
        empirical = inside.reshape(-1, n).mean(axis=0)
        return cls(_LEVELS, empirical, name or type(estimator).__name__).plot(ax=ax)

    @classmethod
    def from_predictions(
        cls,
        y: ArrayLike,
        mean: ArrayLike,
        std: ArrayLike,
        *,
        name: str | None = None,
        ax: Any = None,
    ) -> CoverageDisplay:
        """Draw those of N(mean, std²); ValueError if lengths differ or a std is not positive."""
        y, mean, std = (np.asarray(a, dtype=float).ravel() for a in (y, mean, std))
        check_consistent_length(y, mean, std)
        if not (std > 0).all():
            raise ValueError(f"std must be positive, got a smallest value of {std.min():.3g}.")
        # |z| is below the quantile of the central interval where 2Φ(|z|) - 1 is below α.
        inside = erf(np.abs(y - mean) / std / np.sqrt(2.0))
        empirical = (inside[:, None] <= _LEVELS).mean(axis=0)
        return cls(_LEVELS, empirical, name).plot(ax=ax)

    def plot(self, ax: Any = None) -> CoverageDisplay:
        """Draw the curve and the diagonal."""
        self.ax_, self.figure_ = new_axes(ax)
        (self.diagonal_,) = self.ax_.plot([0, 1], [0, 1], ":", color=BLACK, label="calibrated")
        (self.line_,) = self.ax_.plot(self.nominal, self.empirical, color=BLUE, label=self.name)
        self.ax_.set(xlabel="nominal coverage", ylabel="empirical coverage", aspect="equal")
        self.ax_.legend()
        return self


class QuantileCalibrationDisplay:
    """How many targets lie below each quantile: calibration of a whole predictive distribution.

    For each probability q, the part of the targets that are at or below their own q-quantile. On
    the diagonal the distribution is calibrated; an S around it tells error bars of a wrong width, a
    curve above or below it a bias. The band is where, of that many independent targets, a
    calibrated curve is at each q with probability 0.95.

    Parameters
    ----------
    levels : ndarray of shape (n_levels,)
        q, between 0 and 1.
    below : ndarray of shape (n_levels,)
        Part of the targets at or below.
    n_targets : int
    name : str, default=None

    Attributes
    ----------
    ax_, figure_ : Axes and Figure
    line_, diagonal_ : Line2D
    band_ : FillBetweenPolyCollection

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.plotting import QuantileCalibrationDisplay
    >>> y = np.arange(10) / 10
    >>> quantiles = np.tile([0.15, 0.85], (10, 1))
    >>> d = QuantileCalibrationDisplay.from_predictions(y, quantiles, [0.2, 0.9])
    >>> d.below.tolist()
    [0.2, 0.9]
    """

    def __init__(
        self, levels: NDArray, below: NDArray, n_targets: int, name: str | None = None
    ) -> None:
        self.levels, self.below, self.n_targets, self.name = levels, below, n_targets, name

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike, *, name: str | None = None, ax: Any = None
    ) -> QuantileCalibrationDisplay:
        """Draw a fitted regressor's ``predict_quantile`` against y.

        Of an estimator without one, the quantiles of N(mean, std²) by ``predict(X,
        return_std=True)``.
        """
        quantiles = _quantiles(estimator, X, _LEVELS)
        name = name or type(estimator).__name__
        return cls.from_predictions(y, quantiles, _LEVELS, name=name, ax=ax)

    @classmethod
    def from_predictions(
        cls,
        y: ArrayLike,
        quantiles: ArrayLike,
        levels: ArrayLike,
        *,
        name: str | None = None,
        ax: Any = None,
    ) -> QuantileCalibrationDisplay:
        """Draw quantiles of shape (..., n_levels); ValueError if shapes do not agree."""
        quantiles, levels = np.asarray(quantiles, dtype=float), np.asarray(levels, dtype=float)
        y = _of_one_shape(y, quantiles)
        below = (y <= quantiles).reshape(-1, len(levels)).mean(axis=0)
        return cls(levels, below, y.size, name).plot(ax=ax)

    def plot(self, ax: Any = None) -> QuantileCalibrationDisplay:
        """Draw the curve, the diagonal and its band."""
        self.ax_, self.figure_ = new_axes(ax)
        (self.diagonal_,) = self.ax_.plot([0, 1], [0, 1], ":", color=BLACK, label="calibrated")
        ends = (binom.ppf(tail, self.n_targets, self.levels) for tail in (0.025, 0.975))
        low, high = (end / self.n_targets for end in ends)
        self.band_ = self.ax_.fill_between(
            self.levels, low, high, color=BLACK, alpha=0.1, linewidth=0
        )
        (self.line_,) = self.ax_.plot(self.levels, self.below, color=BLUE, label=self.name)
        self.ax_.set(xlabel="quantile", ylabel="part of the targets below", aspect="equal")
        self.ax_.legend()
        return self


def _quantiles(estimator: Any, X: ArrayLike, levels: NDArray) -> NDArray:
    """Of shape (..., n_levels): the estimator's own, or those of N(mean, std²)."""
    if hasattr(estimator, "predict_quantile"):
        return estimator.predict_quantile(X, levels)
    mean, std = estimator.predict(X, return_std=True)
    return mean[..., None] + std[..., None] * ndtri(levels)


def _of_one_shape(y: ArrayLike, quantiles: NDArray) -> NDArray:
    """y with an axis for the levels."""
    y = np.asarray(y, dtype=float)
    if y.shape != quantiles.shape[:-1]:
        raise ValueError(
            f"y has shape {y.shape}, and its quantiles {quantiles.shape}: the same and an axis of "
            "levels is needed."
        )
    return y[..., None]

"""A classifier's variances: per class, and over a plane of two features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length

from .axes import BLUE, ORANGE, new_axes

__all__ = ["DecisionMapDisplay", "UncertaintyDisplay"]


class UncertaintyDisplay:
    """Aleatoric and epistemic variance of each example, averaged per class (figure 4d).

    Parameters
    ----------
    aleatoric, epistemic : ndarray of shape (n_samples,)
        Variances, summed over the classes.
    target : ndarray of shape (n_samples,)

    Attributes
    ----------
    ax_, figure_ : Axes and Figure
    aleatoric_bars_, epistemic_bars_ : BarContainer
        Mean over the examples of each class, stacked.
    classes_ : ndarray of shape (n_classes,)

    Examples
    --------
    >>> from sk_dnn2gp.plotting import UncertaintyDisplay
    >>> d = UncertaintyDisplay.from_predictions([1, 3, 5], [2, 2, 0], ["a", "a", "b"])
    >>> [float(bar.get_height()) for bar in d.aleatoric_bars_]
    [2.0, 5.0]
    """

    def __init__(self, aleatoric: NDArray, epistemic: NDArray, target: NDArray) -> None:
        self.aleatoric, self.epistemic, self.target = aleatoric, epistemic, target

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike, *, ax: Any = None
    ) -> UncertaintyDisplay:
        """Draw ``predict_uncertainty(X)`` of a fitted classifier, by the labels y."""
        parts = estimator.predict_uncertainty(X)
        return cls.from_predictions(parts.aleatoric, parts.epistemic, y, ax=ax)

    @classmethod
    def from_predictions(
        cls, aleatoric: ArrayLike, epistemic: ArrayLike, y: ArrayLike, *, ax: Any = None
    ) -> UncertaintyDisplay:
        """Draw variances (n_samples,) or (n_samples, n_classes); ValueError if lengths differ."""
        parts = [np.asarray(a, dtype=float) for a in (aleatoric, epistemic)]
        y = np.asarray(y)
        check_consistent_length(*parts, y)
        noise, ignorance = (part.reshape(len(y), -1).sum(axis=1) for part in parts)
        return cls(noise, ignorance, y).plot(ax=ax)

    def plot(self, ax: Any = None) -> UncertaintyDisplay:
        """Draw one stacked bar per class."""
        self.ax_, self.figure_ = new_axes(ax)
        self.classes_, index, counts = np.unique(
            self.target, return_inverse=True, return_counts=True
        )
        noise = np.bincount(index, self.aleatoric) / counts
        ignorance = np.bincount(index, self.epistemic) / counts
        at = np.arange(len(counts))
        self.aleatoric_bars_ = self.ax_.bar(at, noise, color=ORANGE, label="aleatoric")
        self.epistemic_bars_ = self.ax_.bar(
            at, ignorance, bottom=noise, color=BLUE, hatch="//", label="epistemic"
        )
        self.ax_.set_xticks(at, [str(name) for name in self.classes_])
        self.ax_.set(xlabel="class", ylabel="variance, mean over examples")
        self.ax_.legend()
        return self


class DecisionMapDisplay:
    """A classifier's probability or variance over a plane of two features (figures 2a, 2d, 9).

    Parameters
    ----------
    xx0, xx1 : ndarray of shape (n, n)
        The grid.
    values : ndarray of shape (n, n)
    response : str
        What the values are.
    data : tuple of X (n_samples, 2) and y (n_samples,), default=None

    Attributes
    ----------
    ax_ : Axes
    figure_ : Figure
    surface_ : QuadContourSet
    colorbar_ : Colorbar
    scatters_ : list of PathCollection

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sk_dnn2gp import DNN2GPClassifier
    >>> from sk_dnn2gp.plotting import DecisionMapDisplay
    >>> X, y = make_moons(40, noise=0.2, random_state=0)
    >>> model = DNN2GPClassifier(hidden_layer_sizes=(4,), prior_precision=1.0, random_state=0)
    >>> display = DecisionMapDisplay.from_estimator(model.fit(X, y), X, y, response="epistemic")
    >>> display.values.shape
    (80, 80)
    """

    def __init__(
        self, xx0: NDArray, xx1: NDArray, values: NDArray, response: str, data: Any = None
    ) -> None:
        self.xx0, self.xx1, self.values = xx0, xx1, values
        self.response, self.data = response, data

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: Any = None,
        *,
        response: str = "probability",
        class_index: int = -1,
        margin: float = 1.0,
        resolution: int = 80,
        ax: Any = None,
    ) -> DecisionMapDisplay:
        """Draw a fitted classifier of two features over the range of X and a margin.

        ``response``: "probability", "aleatoric" or "epistemic" of the class, or "latent", the
        standard deviation of its logit. Raises ValueError for other responses, or if X has not two
        columns.
        """
        X = np.asarray(X, dtype=float)
        if X.ndim != 2 or X.shape[1] != 2:
            raise ValueError(f"X must have two columns to be drawn on, got shape {X.shape}.")
        low, high = X.min(axis=0) - margin, X.max(axis=0) + margin
        axes = [np.linspace(a, b, resolution) for a, b in zip(low, high, strict=True)]
        xx0, xx1 = np.meshgrid(*axes)
        points = np.column_stack([xx0.ravel(), xx1.ravel()])
        values = _response(estimator, points, response)[:, class_index].reshape(xx0.shape)
        data = None if y is None else (X, np.asarray(y))
        return cls(xx0, xx1, values, response, data).plot(ax=ax)

    def plot(self, ax: Any = None, *, cmap: str = "cividis") -> DecisionMapDisplay:
        """Draw the map and the data."""
        self.ax_, self.figure_ = new_axes(ax)
        self.surface_ = self.ax_.contourf(self.xx0, self.xx1, self.values, levels=20, cmap=cmap)
        self.colorbar_ = self.figure_.colorbar(self.surface_, ax=self.ax_, label=self.response)
        self.scatters_ = []
        if self.data is not None:
            X, y = self.data
            for label, marker in zip(np.unique(y), "osD^vP*X" * len(y), strict=False):
                rows = X[y == label]
                drawn = self.ax_.scatter(
                    *rows.T, s=18, marker=marker, edgecolor="black", facecolor="white", label=label
                )
                self.scatters_.append(drawn)
            self.ax_.legend()
        self.ax_.set(xlabel="feature 0", ylabel="feature 1")
        return self


def _response(estimator: Any, points: NDArray, response: str) -> NDArray:
    """Values of shape (n_points, n_classes), or (n_points, n_outputs) for "latent"."""
    if response == "probability":
        return estimator.predict_proba(points)
    if response == "latent":
        return estimator.predict_std(points, "latent")
    if response in ("aleatoric", "epistemic"):
        return estimator.predict_uncertainty(points)[response]
    raise ValueError(
        f"response must be 'probability', 'aleatoric', 'epistemic' or 'latent', got {response!r}."
    )

"""Matrices as images whose rows are sorted by target."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length

from .axes import new_axes

__all__ = ["KernelDisplay", "PosteriorMeanDisplay"]


class _GroupedImage:
    """A matrix as an image whose rows are sorted by target and marked by class."""

    symmetric = True

    def __init__(self, values: NDArray, target: NDArray) -> None:
        self.values, self.target = values, target

    def plot(self, ax: Any = None, *, cmap: str = "viridis", colorbar: bool = True) -> Any:
        """Draw the image; white lines part the classes, where there are at most 20."""
        self.ax_, self.figure_ = new_axes(ax)
        aspect = "equal" if self.symmetric else "auto"
        self.im_ = self.ax_.imshow(self.values, cmap=cmap, aspect=aspect, interpolation="nearest")
        self.colorbar_ = self.figure_.colorbar(self.im_, ax=self.ax_) if colorbar else None
        self.lines_: list[Any] = []
        names, first, counts = np.unique(self.target, return_index=True, return_counts=True)
        if len(names) <= 20:
            self._mark(names, first, counts)
        else:
            self.ax_.set_ylabel("examples, sorted by target")
        return self

    def _mark(self, names: NDArray, first: NDArray, counts: NDArray) -> None:
        centre, labels = first + (counts - 1) / 2, [str(name) for name in names]
        self.ax_.set_yticks(centre, labels)
        self.ax_.set_ylabel("examples, by class")
        lines = [self.ax_.axhline(row - 0.5, color="white", lw=0.8) for row in first[1:]]
        if self.symmetric:
            self.ax_.set_xticks(centre, labels)
            lines += [self.ax_.axvline(row - 0.5, color="white", lw=0.8) for row in first[1:]]
        self.lines_ = lines


class KernelDisplay(_GroupedImage):
    """Gram matrix of a kernel, its examples sorted by target (figures 2c, 4a, 4c).

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_samples)
        Rows and columns sorted by target.
    target : ndarray of shape (n_samples,)
        Sorted.

    Attributes
    ----------
    ax_, figure_ : Axes and Figure
    im_ : AxesImage
    colorbar_ : Colorbar or None
    lines_ : list of Line2D
        Between the classes; empty above 20 distinct targets.

    Examples
    --------
    >>> from sk_dnn2gp.plotting import KernelDisplay
    >>> d = KernelDisplay.from_predictions([[4, 1], [1, 9]], ["b", "a"])
    >>> d.values.tolist()
    [[9.0, 1.0], [1.0, 4.0]]
    """

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike, *, ax: Any = None
    ) -> KernelDisplay:
        """Draw ``kernel_(X)`` of a fitted estimator, or ``estimator(X)`` of a kernel."""
        return cls.from_predictions(getattr(estimator, "kernel_", estimator)(X), y, ax=ax)

    @classmethod
    def from_predictions(cls, K: ArrayLike, y: ArrayLike, *, ax: Any = None) -> KernelDisplay:
        """Draw a Gram matrix; ValueError if it is not square or not as long as y."""
        K, y = np.asarray(K, dtype=float), np.asarray(y)
        if K.ndim != 2 or K.shape[0] != K.shape[1]:
            raise ValueError(f"K must be a square matrix, got shape {K.shape}.")
        check_consistent_length(K, y)
        order = np.argsort(y, kind="stable")
        return cls(K[np.ix_(order, order)], y[order]).plot(ax=ax)


class PosteriorMeanDisplay(_GroupedImage):
    """Posterior mean of each class's probability, examples sorted by class (figure 4a, 4b).

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_classes)
        Rows sorted by target.
    target : ndarray of shape (n_samples,)
        Sorted.

    Attributes
    ----------
    ax_, figure_ : Axes and Figure
    im_ : AxesImage
    colorbar_ : Colorbar or None
    lines_ : list of Line2D
        Between the classes of the examples.

    Examples
    --------
    >>> from sk_dnn2gp.plotting import PosteriorMeanDisplay
    >>> d = PosteriorMeanDisplay.from_predictions([[0.2, 0.8], [0.9, 0.1]], [1, 0])
    >>> d.values.tolist()
    [[0.9, 0.1], [0.2, 0.8]]
    """

    symmetric = False

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike, *, ax: Any = None
    ) -> PosteriorMeanDisplay:
        """Draw ``predict_proba(X)`` of a fitted classifier, columns named by ``classes_``."""
        display = cls.from_predictions(estimator.predict_proba(X), y, ax=ax)
        classes = estimator.classes_
        display.ax_.set_xticks(range(len(classes)), [str(name) for name in classes])
        return display

    @classmethod
    def from_predictions(
        cls, mean: ArrayLike, y: ArrayLike, *, ax: Any = None
    ) -> PosteriorMeanDisplay:
        """Draw means (n_samples, n_classes); ValueError if they are not as long as y."""
        mean, y = np.asarray(mean, dtype=float), np.asarray(y)
        if mean.ndim != 2:
            raise ValueError(f"mean must be (n_samples, n_classes), got shape {mean.shape}.")
        check_consistent_length(mean, y)
        order = np.argsort(y, kind="stable")
        display = cls(mean[order], y[order]).plot(ax=ax)
        display.ax_.set_xlabel("class")
        return display

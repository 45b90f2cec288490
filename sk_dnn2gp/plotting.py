"""The paper's figures as Displays, in scikit-learn's manner.

A Display computes in ``from_estimator`` (or takes numbers in ``from_predictions``), draws in
``plot(ax=...)`` and keeps its artists as attributes ending in ``_``. matplotlib is an extra
(``plot``), imported when something is drawn; no global style is touched. Colours are those of Okabe
and Ito, which the colour-blind tell apart.

Shapes: X (n_samples, n_features), means and variances (n_samples,) or (n_samples, n_classes).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf
from sklearn.utils.validation import check_consistent_length

__all__ = [
    "CoverageDisplay",
    "DecisionMapDisplay",
    "KernelDisplay",
    "MarginalLikelihoodDisplay",
    "PosteriorMeanDisplay",
    "PredictiveDisplay",
    "UncertaintyDisplay",
]

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#E69F00", "#009E73", "#000000"


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
        cls, estimator: Any, X: ArrayLike, *, data: Any = None, ax: Any = None
    ) -> PredictiveDisplay:
        """Draw a fitted DNN2GPRegressor of one feature and one output at X.

        Raises ValueError if X has more than one column.
        """
        X = np.asarray(X, dtype=float)
        if X.ndim != 2 or X.shape[1] != 1:
            raise ValueError(f"X must have one column to be drawn along, got shape {X.shape}.")
        parts = estimator.predict_uncertainty(X)
        stds = np.sqrt(parts.epistemic), np.sqrt(parts.total)
        return cls.from_predictions(X, estimator.predict(X), *stds, data=data, ax=ax)

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
        self.ax_, self.figure_ = _axes(ax)
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


class _GroupedImage:
    """A matrix as an image whose rows are sorted by target and marked by class."""

    symmetric = True

    def __init__(self, values: NDArray, target: NDArray) -> None:
        self.values, self.target = values, target

    def plot(self, ax: Any = None, *, cmap: str = "viridis", colorbar: bool = True) -> Any:
        """Draw the image; white lines part the classes, where there are at most 20."""
        self.ax_, self.figure_ = _axes(ax)
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
        self.ax_, self.figure_ = _axes(ax)
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


class MarginalLikelihoodDisplay:
    """Evidence and loss over a hyperparameter, stars at the optima (figures 5 and 6).

    Parameters
    ----------
    values : ndarray of shape (n_values,)
        Of the hyperparameter, sorted.
    curves : dict of str to (mean, standard error)
        Under "evidence", "train loss" and "test loss"; the last two may be missing. Each a pair of
        ndarrays of shape (n_values,).
    name : str, default="hyperparameter"

    Attributes
    ----------
    ax_, loss_ax_, figure_ : Axes, Axes or None, and Figure
    lines_, bands_, stars_ : dict of str to artist
        One of each for every curve.

    Examples
    --------
    >>> from sk_dnn2gp.plotting import MarginalLikelihoodDisplay
    >>> d = MarginalLikelihoodDisplay.from_predictions([1, 10, 100], [-9, -5, -7])
    >>> d.stars_["evidence"].get_xdata().tolist()
    [10.0]
    """

    def __init__(
        self, values: NDArray, curves: dict[str, tuple[NDArray, NDArray]], name: str
    ) -> None:
        self.values, self.curves, self.name = values, curves, name

    @classmethod
    def from_estimator(
        cls,
        search: Any,
        parameter: str,
        *,
        evidence: str = "score",
        loss: str | None = None,
        ax: Any = None,
    ) -> MarginalLikelihoodDisplay:
        """Draw a fitted search over one parameter.

        ``evidence`` and ``loss`` name metrics of its ``scoring``; the loss is drawn with its sign
        turned, as scikit-learn's scorers of losses are negative. Raises ValueError if the search
        has no such parameter or metric, or varied others too.
        """
        results, key = search.cv_results_, f"param_{parameter}"
        varied = sorted(name for name in results if name.startswith("param_"))
        if varied != [key]:
            raise ValueError(f"The search must vary {parameter!r} alone; it varied {varied}.")
        wanted = {"evidence": ("test", evidence, 1.0)}
        if loss is not None:
            wanted["test loss"] = ("test", loss, -1.0)
            if f"mean_train_{loss}" in results:
                wanted["train loss"] = ("train", loss, -1.0)
        curves = {
            label: _mean_and_error(results, part, metric, sign, search.n_splits_)
            for label, (part, metric, sign) in wanted.items()
        }
        return cls._sorted(np.asarray(results[key], dtype=float), curves, parameter).plot(ax=ax)

    @classmethod
    def from_predictions(
        cls,
        values: ArrayLike,
        evidence: ArrayLike,
        *,
        train_loss: Any = None,
        test_loss: Any = None,
        name: str = "hyperparameter",
        ax: Any = None,
    ) -> MarginalLikelihoodDisplay:
        """Draw curves of shape (n_values,), or (n_values, n_repeats) for standard-error bands."""
        given = {"evidence": evidence, "train loss": train_loss, "test loss": test_loss}
        values = np.asarray(values, dtype=float)
        curves = {}
        for label, curve in given.items():
            if curve is not None:
                check_consistent_length(values, curve)
                curves[label] = _over_repeats(np.asarray(curve, dtype=float))
        return cls._sorted(values, curves, name).plot(ax=ax)

    @classmethod
    def _sorted(cls, values: NDArray, curves: Any, name: str) -> MarginalLikelihoodDisplay:
        order = np.argsort(values, kind="stable")
        curves = {label: (mean[order], error[order]) for label, (mean, error) in curves.items()}
        return cls(values[order], curves, name)

    def plot(self, ax: Any = None, *, xscale: str = "log") -> MarginalLikelihoodDisplay:
        """Draw the evidence on the left axis and losses on the right."""
        self.ax_, self.figure_ = _axes(ax)
        self.loss_ax_ = self.ax_.twinx() if len(self.curves) > 1 else None
        self.lines_: dict[str, Any] = {}
        self.bands_: dict[str, Any] = {}
        self.stars_: dict[str, Any] = {}
        styles = {"evidence": (BLUE, "-"), "train loss": (ORANGE, ":"), "test loss": (GREEN, "--")}
        for label in self.curves:
            self._draw(label, *styles[label])
        self.ax_.set(xscale=xscale, xlabel=self.name, ylabel="log marginal likelihood")
        if self.loss_ax_ is not None:
            self.loss_ax_.set_ylabel("loss")
        self.ax_.legend(handles=list(self.lines_.values()))
        return self

    def _draw(self, label: str, color: str, style: str) -> None:
        mean, error = self.curves[label]
        is_evidence = label == "evidence"
        ax: Any = self.ax_ if is_evidence else self.loss_ax_
        best = np.nanargmax(mean) if is_evidence else np.nanargmin(mean)
        (self.lines_[label],) = ax.plot(self.values, mean, style, color=color, label=label)
        self.bands_[label] = ax.fill_between(
            self.values, mean - error, mean + error, color=color, alpha=0.2, linewidth=0
        )
        (self.stars_[label],) = ax.plot(
            self.values[[best]], mean[[best]], "*", color=color, markersize=14
        )


class CoverageDisplay:
    """How often intervals hold what they promise: a calibration curve for regression.

    For each nominal probability α the central interval of N(mean, std²) at every example, and the
    part of the targets inside it. On the diagonal, the error bars are trustworthy; above it too
    wide, below it too narrow.

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
        """Draw a fitted regressor's ``predict(X, return_std=True)`` against y."""
        mean, std = estimator.predict(X, return_std=True)
        return cls.from_predictions(y, mean, std, name=name or type(estimator).__name__, ax=ax)

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
        """Draw given numbers; ValueError if lengths differ or a std is not positive."""
        y, mean, std = (np.asarray(a, dtype=float).ravel() for a in (y, mean, std))
        check_consistent_length(y, mean, std)
        if not (std > 0).all():
            raise ValueError(f"std must be positive, got a smallest value of {std.min():.3g}.")
        nominal = np.linspace(0.02, 0.98, 49)
        # |z| is below the quantile of the central interval where 2Φ(|z|) - 1 is below α.
        inside = erf(np.abs(y - mean) / std / np.sqrt(2.0))
        empirical = (inside[:, None] <= nominal).mean(axis=0)
        return cls(nominal, empirical, name).plot(ax=ax)

    def plot(self, ax: Any = None) -> CoverageDisplay:
        """Draw the curve and the diagonal."""
        self.ax_, self.figure_ = _axes(ax)
        (self.diagonal_,) = self.ax_.plot([0, 1], [0, 1], ":", color=BLACK, label="calibrated")
        (self.line_,) = self.ax_.plot(self.nominal, self.empirical, color=BLUE, label=self.name)
        self.ax_.set(xlabel="nominal coverage", ylabel="empirical coverage", aspect="equal")
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
        self.ax_, self.figure_ = _axes(ax)
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


def _mean_and_error(
    results: Any, part: str, metric: str, sign: float, n_splits: int
) -> tuple[NDArray, NDArray]:
    key = f"mean_{part}_{metric}"
    if key not in results:
        known = sorted(k[len("mean_test_") :] for k in results if k.startswith("mean_test_"))
        raise ValueError(f"The search has no metric {metric!r}; it has {known}.")
    # cv_results_ holds the population's standard deviation over splits.
    error = results[f"std_{part}_{metric}"] / np.sqrt(max(n_splits - 1, 1))
    return sign * results[key], error


def _over_repeats(curve: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and its standard error; one repeat has no error to speak of."""
    curve = curve.reshape(len(curve), -1)
    repeats = curve.shape[1]
    error = curve.std(axis=1) / np.sqrt(max(repeats - 1, 1))
    return curve.mean(axis=1), error


def _axes(ax: Any) -> tuple[Any, Any]:
    """The axes given, or new ones; ImportError naming the extra if matplotlib is missing."""
    if ax is not None:
        return ax, ax.figure
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays need matplotlib: install the extra with pip install 'sk_dnn2gp[plot]'."
        ) from error
    figure, ax = plt.subplots()
    return ax, figure

"""Evidence and loss over a hyperparameter."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import GridSearchCV
from sklearn.utils.validation import check_consistent_length

from ..model_selection import TrainingSetSplit, marginal_likelihood_scorer
from .axes import BLUE, GREEN, ORANGE, new_axes

__all__ = ["MarginalLikelihoodDisplay"]


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
        estimator: Any,
        X: Any,
        y: Any,
        *,
        param_name: str,
        param_range: Any,
        loss: str | None = None,
        n_jobs: int | None = None,
        ax: Any = None,
    ) -> MarginalLikelihoodDisplay:
        """Fit a clone at each value of one parameter, and draw its evidence.

        As :class:`sklearn.model_selection.ValidationCurveDisplay` does, with all rows for training;
        the estimator may be a Pipeline. ``param_range``: numbers, or sequences of one, as
        ``hidden_layer_sizes`` takes. ``loss``: name of a scorer of scikit-learn whose opposite is
        drawn as a training loss, such as "neg_mean_squared_error". ValueError if a value cannot be
        drawn along an axis.
        """
        scoring: dict[str, Any] = {"evidence": marginal_likelihood_scorer}
        if loss is not None:
            scoring["loss"] = loss
        search = GridSearchCV(
            estimator,
            {param_name: list(param_range)},
            scoring=scoring,
            refit=False,
            cv=TrainingSetSplit(),
            n_jobs=n_jobs,
        ).fit(X, y)
        shown = None if loss is None else "loss"
        return cls.from_search(search, param_name, evidence="evidence", loss=shown, ax=ax)

    @classmethod
    def from_search(
        cls,
        search: Any,
        parameter: str,
        *,
        evidence: str = "score",
        loss: str | None = None,
        ax: Any = None,
    ) -> MarginalLikelihoodDisplay:
        """Draw a fitted search over one parameter, whose values are numbers or sequences of one.

        ``evidence`` and ``loss`` are metrics of the search's ``scoring``; the loss is drawn with
        its sign turned, as scikit-learn's scorers of losses are negative, and is a training loss if
        the search's ``cv`` is a :class:`~sk_dnn2gp.TrainingSetSplit`. ValueError if values cannot
        be drawn along an axis, if the search has no such parameter or metric, or varied others too.
        """
        results, key = search.cv_results_, f"param_{parameter}"
        varied = sorted(name for name in results if name.startswith("param_"))
        if varied != [key]:
            raise ValueError(f"The search must vary {parameter!r} alone; it varied {varied}.")
        held_out = not isinstance(getattr(search, "cv", None), TrainingSetSplit)
        wanted = {"evidence": ("test", evidence, 1.0)}
        if loss is not None:
            wanted["test loss" if held_out else "train loss"] = ("test", loss, -1.0)
            if held_out and f"mean_train_{loss}" in results:
                wanted["train loss"] = ("train", loss, -1.0)
        curves = {
            label: _mean_and_error(results, part, metric, sign, search.n_splits_)
            for label, (part, metric, sign) in wanted.items()
        }
        return cls._sorted(_numbers(results[key], parameter), curves, parameter).plot(ax=ax)

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

    def plot(self, ax: Any = None, *, xscale: str | None = None) -> MarginalLikelihoodDisplay:
        """Draw the evidence on the left axis and losses on the right.

        ``xscale`` is matplotlib's; None is "log" where all values are positive.
        """
        if xscale is None:
            xscale = "log" if (self.values > 0).all() else "linear"
        self.ax_, self.figure_ = new_axes(ax)
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
        # Above the axes: two scales leave no corner free.
        handles = list(self.lines_.values())
        self.ax_.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
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


def _numbers(values: Any, parameter: str) -> NDArray:
    """The values of a parameter as numbers, those of sequences of one too."""
    single = [v[0] if isinstance(v, Sequence) and len(v) == 1 else v for v in values]
    wrong = [v for v in single if isinstance(v, bool) or not isinstance(v, Real)]
    if wrong:
        raise ValueError(
            f"{parameter!r} took the value {wrong[0]!r}: only numbers, and sequences of one "
            "number, can be drawn along an axis."
        )
    return np.array(single, dtype=float)


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

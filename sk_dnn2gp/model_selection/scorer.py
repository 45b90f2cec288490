"""Choosing hyperparameters by the evidence, without validation data (MATH 8).

Nothing here looks inside an estimator: the public face (``log_marginal_likelihood``,
``linear_model_``, ``prior_precision_``, ``noise_std_``) is all that is used.

The recipe for a grid, random or halving search is three lines:

    search = GridSearchCV(
        DNN2GPRegressor(), grid, scoring=marginal_likelihood_scorer, cv=TrainingSetSplit()
    )

Every score is a log density of the same y in the same units, so candidates that standardise or
transform y differently are comparable: a change of variables z = g(y) adds Σ log|∂g/∂y|.
Shapes: y (n_samples,) or (n_samples, n_outputs).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import _num_samples, check_is_fitted

from .._utils.random import draw_seed
from ..evidence.spectrum import GroupedEvidence
from ..inference import Variational, resolve_inference
from ..posterior import Full, SubsetOfData, resolve_posterior

__all__ = [
    "MarginalLikelihoodScorer",
    "TrainingSetSplit",
    "evidence_path",
    "marginal_likelihood_scorer",
    "optimize_hyperparameters",
]

_PRIOR_BOUNDS, _NOISE_BOUNDS = (1e-5, 1e8), (1e-3, 1e2)
# Steps of the difference quotients of g, in units of y's spread; see ``_log_jacobian``.
_STEPS = (1e-3, 1e-5, 1e-7)
# Agreement asked of the quotients at two steps: fourth order at 1e-3 leaves about 1e-10.
_SMOOTH = 1e-5
# Change of slope over a step that is curvature and no kink, relative to the slope.
_STRAIGHT = 0.02


class MarginalLikelihoodScorer(BaseEstimator):
    """A scorer that is the log marginal likelihood of the data it is given (MATH 3, 8).

    For every search class of scikit-learn, ``cross_validate`` and multi-metric scoring; larger is
    better. With :class:`TrainingSetSplit` no data is held back. The estimator may be the last step
    of a Pipeline (the steps before transform X), inside a TransformedTargetRegressor (the change of
    variables is counted), or the best estimator of a fitted search. scikit-learn keeps no open
    register of scorers, so it is passed as an object: ``scoring=marginal_likelihood_scorer``.

    An evidence that is not a number, or whose matrix cannot be factorised, scores -inf with a
    warning. A fit that fails is the search's own business (``error_score``).

    Parameters
    ----------
    kind : {"laplace", "dual"}, default=None
        Which evidence; "dual" is the paper's evidence of the transformed targets. None is the
        estimator's own: "laplace", or "dual" with ``inference="vi"``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import TrainingSetSplit, marginal_likelihood_scorer
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> y = np.sin(X[:, 0])
    >>> model = DNN2GPRegressor(hidden_layer_sizes=(5,), noise_std=0.1, random_state=0)
    >>> search = GridSearchCV(
    ...     model, {"prior_precision": [0.1, 1000.0]}, scoring=marginal_likelihood_scorer,
    ...     cv=TrainingSetSplit(),
    ... ).fit(X, y)
    >>> search.best_params_
    {'prior_precision': 0.1}
    """

    def __init__(self, kind: str | None = None) -> None:
        self.kind = kind

    def __call__(
        self, estimator: Any, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the log marginal likelihood of (X, y) under a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            Fitted; see the class.
        X : array-like
            What the estimator's ``predict`` would take.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each row counts.

        Returns
        -------
        float
            In the units of y.

        Raises
        ------
        TypeError
            If the estimator has no log marginal likelihood of given data.
        ValueError
            If y went through a transformation whose density cannot be followed.
        """
        check_is_fitted(estimator)
        final, X, y, offset = _unwrapped(estimator, X, y, sample_weight)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        try:
            value = float(final.log_marginal_likelihood(X=X, y=y, kind=self.kind, **weights))
        except LinAlgError as error:
            return _unusable(str(error))
        value += offset
        return value if math.isfinite(value) else _unusable(f"it is {value}")

    def set_score_request(self, *, sample_weight: bool | str | None = None) -> Any:
        """Ask scikit-learn's metadata routing for sample weights, as its own scorers do.

        Parameters
        ----------
        sample_weight : bool, str or None, default=None
            Whether to take it, or the name that it has.

        Returns
        -------
        self : MarginalLikelihoodScorer
        """
        self._metadata_request = MetadataRequest(owner=type(self).__name__)
        self._metadata_request.score.add_request(param="sample_weight", alias=sample_weight)
        return self

    def _accept_sample_weight(self) -> bool:
        """Answer scikit-learn's search classes, which ask before they pass sample_weight on."""
        return True


marginal_likelihood_scorer = MarginalLikelihoodScorer()


class TrainingSetSplit:
    """One split whose training set and test set are both all of the data.

    For scores that need no held-out data, such as :data:`marginal_likelihood_scorer`. Any other
    score computed with it is a training score. A halving search draws rows anew for training and
    for scoring unless its ``random_state`` is an integer: give it one.

    Examples
    --------
    >>> from sk_dnn2gp.model_selection import TrainingSetSplit
    >>> [(train.tolist(), test.tolist()) for train, test in TrainingSetSplit().split([5, 6, 7])]
    [([0, 1, 2], [0, 1, 2])]
    """

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[NDArray, NDArray]]:
        """Yield the one split.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like, default=None
            Not used.
        groups : array-like, default=None
            Not used: nothing is separated.

        Yields
        ------
        train, test : ndarray of shape (n_samples,)
            All indices, twice.
        """
        yield np.arange(_num_samples(X)), np.arange(_num_samples(X))

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return 1.

        Parameters
        ----------
        X, y, groups : object, default=None
            Not used.

        Returns
        -------
        int
        """
        return 1

    def __repr__(self) -> str:
        return "TrainingSetSplit()"


def evidence_path(
    estimator: Any,
    *,
    prior_precision: ArrayLike | None = None,
    noise_std: ArrayLike | None = None,
    kind: str | None = None,
) -> Bunch:
    """Evidence of the training set at many δ and σ, the weights as trained (MATH 3).

    One eigendecomposition, kept by the estimator, serves every value: a curve of 100 costs less
    than a fit. At a δ or σ other than the trained ones, the trained weights are no minimum of the
    loss; a search that trains anew at each value gives the paper's curves (MATH 8).

    Parameters
    ----------
    estimator : DNN2GPRegressor or DNN2GPClassifier
        Fitted.
    prior_precision : array-like of shape (n_precisions,), default=None
        δ; None is 100 values within a factor 1000 of the fitted one.
    noise_std : array-like of shape (n_stds,), default=None
        σ as the network sees y; None is the fitted one. Refused where there is no σ.
    kind : {"laplace", "dual"}, default=None
        None is the estimator's own: "laplace", or "dual" with ``inference="vi"``.

    Returns
    -------
    Bunch
        ``prior_precision`` (n_precisions,), ``noise_std`` (n_stds,), and of shape
        (n_precisions, n_stds) ``log_marginal_likelihood`` in the units of y,
        ``effective_dimension`` γ, and the derivatives ``gradient_log_prior_precision`` and
        ``gradient_log_noise_std``. For a classifier the two with σ are left out and the second axis
        has length 1.

    Raises
    ------
    ValueError
        If a value is not positive and finite, or ``noise_std`` is given for a classifier.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import evidence_path
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> model = DNN2GPRegressor(
    ...     hidden_layer_sizes=(5,), prior_precision=0.1, noise_std=0.1, random_state=0
    ... ).fit(X, np.sin(X[:, 0]))
    >>> path = evidence_path(model, noise_std=[0.05, 0.1])
    >>> path.log_marginal_likelihood.shape
    (100, 2)
    """
    check_is_fitted(estimator)
    regression = hasattr(estimator, "noise_std_")
    if noise_std is not None and not regression:
        raise ValueError("noise_std is given, and this estimator has no noise to vary.")
    fitted = estimator.prior_precision_
    deltas = _positive("prior_precision", prior_precision, fitted * np.logspace(-3, 3, 100))
    stds = _positive("noise_std", noise_std, getattr(estimator, "noise_std_", 1.0))
    shape = (len(deltas), len(stds))
    values, slopes = np.empty(shape), np.empty((*shape, 1 + regression))
    for i, j in np.ndindex(shape):
        theta = np.log([deltas[i], stds[j]][: 1 + regression])
        values[i, j], slopes[i, j] = estimator.log_marginal_likelihood(theta, True, kind=kind)
    result = Bunch(
        prior_precision=deltas,
        log_marginal_likelihood=values,
        effective_dimension=_effective_dimension(estimator, deltas, stds, regression),
        gradient_log_prior_precision=slopes[..., 0],
    )
    if regression:
        result.update(noise_std=stds, gradient_log_noise_std=slopes[..., 1])
    return result


def optimize_hyperparameters(
    estimator: Any,
    *,
    groups: str = "all",
    kind: str | None = None,
    prior_precision_bounds: tuple[float, float] | None = _PRIOR_BOUNDS,
    noise_std_bounds: tuple[float, float] | None = _NOISE_BOUNDS,
    n_starts: int = 5,
    random_state: Any = 0,
) -> Bunch:
    """Find the δ and σ of the best training evidence at the trained weights (MATH 3, 8).

    L-BFGS-B over log δ and log σ with exact gradients, from the fitted values and from others drawn
    around them; the best end is returned, and is never below the start. The estimator is left as
    it is: train at the result with ``set_params(..., warm_start=True).fit(X, y)``.

    Parameters
    ----------
    estimator : DNN2GPRegressor or DNN2GPClassifier
        Fitted.
    groups : {"all", "layer", "tensor"}, default="all"
        One δ; one for each layer's weights and biases; or one for each parameter tensor. The last
        two factorise a P×P matrix at each evaluation, and need ``posterior="full"``.
    kind : {"laplace", "dual"}, default=None
        None is the estimator's own: "laplace", or "dual" with ``inference="vi"``.
    prior_precision_bounds, noise_std_bounds : tuple of float, or None
        None keeps it as fitted.
    n_starts : int, default=5
    random_state : int, RandomState or None, default=0
        Draws the starts.

    Returns
    -------
    Bunch
        ``prior_precision`` (a float, or a dict from the group's name to its δ), ``noise_std``
        (None for a classifier), ``log_marginal_likelihood`` in the units of y, ``initial``, that at
        the start, and ``prior_precision_vector``, one δ per weight, as ``LinearModel`` takes it.

    Raises
    ------
    ValueError
        If an argument is unknown, out of range, or does not fit the posterior.
    MemoryError
        If a P×P matrix is needed and does not fit the estimator's ``memory_limit``.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import optimize_hyperparameters
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> model = DNN2GPRegressor(
    ...     hidden_layer_sizes=(5,), prior_precision=0.1, noise_std=0.3, random_state=0
    ... ).fit(X, np.sin(X[:, 0]))
    >>> found = optimize_hyperparameters(model)
    >>> bool(found.log_marginal_likelihood > found.initial and found.noise_std < 0.3)
    True
    """
    check_is_fitted(estimator)
    if groups not in ("all", "layer", "tensor"):
        raise ValueError(f"groups must be 'all', 'layer' or 'tensor', got {groups!r}.")
    if n_starts < 1:
        raise ValueError(f"n_starts must be at least 1, got {n_starts!r}.")
    names, index, objective = _objective(estimator, groups, kind or _own_kind(estimator))
    sigma = getattr(estimator, "noise_std_", None)
    fixed = np.log([estimator.prior_precision_] * len(names) + ([] if sigma is None else [sigma]))
    bounds = [prior_precision_bounds] * len(names) + ([] if sigma is None else [noise_std_bounds])
    initial = objective(fixed)[0]
    theta, value = _best_end(objective, fixed, bounds, n_starts, random_state)
    deltas = np.exp(theta[: len(names)])
    return Bunch(
        prior_precision=float(deltas[0])
        if groups == "all"
        else dict(zip(names, deltas.tolist(), strict=True)),
        prior_precision_vector=deltas[index],
        noise_std=None if sigma is None else float(np.exp(theta[-1])),
        log_marginal_likelihood=value,
        initial=initial,
    )


# ---------------------------------------------------------------------- optimisation


def _own_kind(estimator: Any) -> str:
    """The evidence that the estimator itself reports."""
    variational = isinstance(resolve_inference(estimator.inference), Variational)
    return "dual" if variational and hasattr(estimator, "noise_std_") else "laplace"


def _objective(estimator: Any, groups: str, kind: str) -> tuple[list[str], Any, Any]:
    """Names of the δs, the number of each weight's δ, and θ -> evidence and gradient."""
    model = estimator.linear_model_
    if groups == "all":

        def all_weights(theta: NDArray) -> tuple[float, NDArray]:
            return estimator.log_marginal_likelihood(theta, True, kind=kind)

        return ["all"], np.zeros(model.n_params, dtype=np.intp), all_weights
    posterior = resolve_posterior(estimator.posterior)
    if isinstance(posterior, SubsetOfData):
        posterior = resolve_posterior(posterior.posterior)
    if not isinstance(posterior, Full):
        raise ValueError(
            "groups other than 'all' need the full GGN, which posterior="
            f"{estimator.posterior!r} does not take. Use posterior='full'."
        )
    names, index = _group_index(model.linearization, groups)
    sigma = getattr(estimator, "noise_std_", None)
    evidence = GroupedEvidence.from_model(model, index, sigma, posterior.memory_limit)
    noise = [] if sigma is None else [sigma]
    # The change of units does not depend on θ: it is what the estimator's own number has more.
    own = estimator.log_marginal_likelihood(np.log([estimator.prior_precision_, *noise]), kind=kind)
    start = np.log([estimator.prior_precision_] * len(names) + noise)
    offset = own - evidence.value_and_gradient(start, kind)[0]

    def grouped(theta: NDArray) -> tuple[float, NDArray]:
        value, gradient = evidence.value_and_gradient(theta, kind)
        return value + offset, gradient

    return names, index, grouped


def _group_index(linearization: Any, groups: str) -> tuple[list[str], NDArray]:
    """Names of the groups and, for every weight, the number of its group."""
    labels = [
        name if groups == "tensor" else name.rpartition(".")[0] or name
        for name in linearization.parameter_names
    ]
    names = list(dict.fromkeys(labels))
    numbers = [names.index(label) for label in labels]
    return names, np.repeat(numbers, linearization.parameter_sizes)


def _best_end(
    objective: Any, fixed: NDArray, bounds: list, n_starts: int, random_state: Any
) -> tuple[NDArray, float]:
    """L-BFGS-B from several starts over the free part of θ; the best of all points compared."""
    free = np.array([b is not None for b in bounds])
    best, highest = fixed.copy(), float(objective(fixed)[0])
    if not free.any():
        return best, highest
    box = np.log([b for b in bounds if b is not None])
    rng = np.random.default_rng(draw_seed(random_state))

    def full(part: NDArray) -> NDArray:
        theta = fixed.copy()
        theta[free] = part
        return theta

    def negative(part: NDArray) -> tuple[float, NDArray]:
        value, gradient = objective(full(part))
        return -value, -np.asarray(gradient)[free]

    for start in range(n_starts):
        shift = 0.0 if start == 0 else 2.0 * rng.standard_normal(free.sum())
        begin = np.clip(fixed[free] + shift, *box.T)
        run = minimize(negative, begin, jac=True, method="L-BFGS-B", bounds=box)
        if -run.fun > highest:
            best, highest = full(run.x), float(-run.fun)
    return best, highest


def _effective_dimension(
    estimator: Any, deltas: NDArray, stds: NDArray, regression: bool
) -> NDArray:
    """γ = 2 ∂/∂log δ + δ‖w‖² of the Laplace evidence (MATH 3)."""
    squared = float((estimator.linear_model_.weights**2).sum())
    result = np.empty((len(deltas), len(stds)))
    for i, j in np.ndindex(result.shape):
        theta = np.log([deltas[i], stds[j]][: 1 + regression])
        slope = estimator.log_marginal_likelihood(theta, True)[1][0]
        result[i, j] = 2.0 * slope + deltas[i] * squared
    return result


def _positive(name: str, given: ArrayLike | None, otherwise: Any) -> NDArray:
    values = np.atleast_1d(np.asarray(otherwise if given is None else given, dtype=np.float64))
    if values.ndim != 1 or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{name} must be positive, finite numbers in one row, got {given!r}.")
    return values


# ---------------------------------------------------------------------- scorer


def _unusable(reason: str) -> float:
    warnings.warn(
        f"The marginal likelihood cannot be used ({reason}); the candidate scores -inf.",
        UserWarning,
        stacklevel=3,
    )
    return -math.inf


def _unwrapped(
    estimator: Any, X: Any, y: Any, weight: ArrayLike | None
) -> tuple[Any, Any, Any, float]:
    """The estimator inside, its X and y, and Σ s log|∂z/∂y| of what was done to y on the way."""
    offset = 0.0
    while True:
        if isinstance(estimator, Pipeline):
            X = estimator[:-1].transform(X) if len(estimator) > 1 else X
            estimator = estimator[-1]
        elif isinstance(estimator, TransformedTargetRegressor):
            y, change = _transformed_target(estimator, y, weight)
            offset, estimator = offset + change, estimator.regressor_
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            break
    if not hasattr(estimator, "linear_model_"):
        raise TypeError(
            f"{type(estimator).__name__} has no marginal likelihood of given data. The scorer "
            "takes DNN2GPRegressor and DNN2GPClassifier, also as the last step of a Pipeline, "
            "inside a TransformedTargetRegressor, or chosen by a fitted search."
        )
    return estimator, X, y, offset


def _transformed_target(
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
    logs = _log_jacobian(transform, columns)
    total = float(np.sum(logs if weight is None else np.asarray(weight) * logs))
    return (z[:, 0] if y.ndim == 1 else z), total


def _log_jacobian(transform: Any, y: NDArray) -> NDArray:
    """log|det ∂g/∂y| of each row, by fourth-order differences.

    Each row takes the first step at which the quotients of h and h/2 agree: long steps lose no
    digits, short ones keep log y and √y inside their domain.

    Raises
    ------
    ValueError
        If at some row no step does: g is not smooth there.
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

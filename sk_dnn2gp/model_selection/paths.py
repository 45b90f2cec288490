"""The evidence over δ and σ at the trained weights: a grid of values, and its maximum.

Nothing here looks inside an estimator: the public face (``log_marginal_likelihood``,
``linear_model_``, ``prior_precision_``, ``noise_std_``) is all that is used.
Shapes: prior_precision (n_precisions,), noise_std (n_stds,), θ (n_hyperparameters,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

from .._utils.random import draw_seed
from ..evidence import GroupedEvidence, log_marginal_likelihood
from ..evidence.spectrum import climbed
from ..inference import Variational, resolve_inference
from ..posterior import Full, resolve_posterior
from .conditional import conditional_evidence
from .inside import estimator_inside

__all__ = ["evidence_path", "optimize_hyperparameters"]

_PRIOR_BOUNDS, _NOISE_BOUNDS = (1e-5, 1e8), (1e-3, 1e2)


def evidence_path(
    estimator: Any,
    *,
    prior_precision: ArrayLike | None = None,
    noise_std: ArrayLike | None = None,
    kind: str | None = None,
    X: Any = None,
    y: Any = None,
    sample_weight: ArrayLike | None = None,
    part: float = 0.5,
) -> Bunch:
    """Evidence of the training set at many δ and σ, the weights as trained (:ref:`math-evidence`).

    One eigendecomposition, kept by the estimator, serves every value: a curve of 100 costs less
    than a fit. At a δ or σ other than the trained ones, the trained weights are no minimum of the
    loss; a search that trains anew at each value gives the paper's curves (:ref:`math-choosing`).

    Parameters
    ----------
    estimator : DNN2GPRegressor or DNN2GPClassifier
        Fitted; also as the last step of a Pipeline, inside a TransformedTargetRegressor, or as the
        best estimator of a fitted search.
    prior_precision : array-like of shape (n_precisions,), default=None
        δ; None is 100 values within a factor 1000 of the fitted one. Where weights have several δ
        (``prior_groups``), that of the last group, and the others' ratios to it stay.
    noise_std : array-like of shape (n_stds,), default=None
        σ as the network sees y; None is the fitted one. Refused where there is no σ.
    kind : {"laplace", "dual"}, default=None
        None is the estimator's own: "laplace", or "dual" for a regressor with
        ``inference="vi"``.
    X, y, sample_weight : array-like, default=None
        The training data as ``estimator`` takes them, where the conditional evidence is wanted.
    part : float, default=0.5
        Of the rows that it is conditional on; see
        :func:`~sk_dnn2gp.model_selection.conditional_evidence`.

    Returns
    -------
    Bunch
        ``prior_precision`` (n_precisions,), ``noise_std`` (n_stds,), and of shape
        (n_precisions, n_stds) ``log_marginal_likelihood`` in the units of y as the estimator
        inside sees it,
        ``effective_dimension`` γ, and the derivatives ``gradient_log_prior_precision`` and
        ``gradient_log_noise_std``. For a classifier the two with σ are left out and the second axis
        has length 1. With X and y also ``conditional_evidence``, in nats per row left.

    Raises
    ------
    TypeError
        If there is no DNN2GPRegressor or DNN2GPClassifier inside.
    ValueError
        If a value is not positive and finite, ``noise_std`` is given for a classifier, or one of X
        and y is missing.

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
    outer, estimator = estimator, estimator_inside(estimator)
    if (X is None) != (y is None):
        raise ValueError("X and y must be given together, or both left out.")
    regression = hasattr(estimator, "noise_std_")
    if noise_std is not None and not regression:
        raise ValueError("noise_std is given, and this estimator has no noise to vary.")
    fitted = estimator.prior_precision_
    deltas = _positive("prior_precision", prior_precision, fitted * np.logspace(-3, 3, 100))
    stds = _positive("noise_std", noise_std, getattr(estimator, "noise_std_", 1.0))
    shape = (len(deltas), len(stds))
    grid = np.meshgrid(deltas, stds, indexing="ij")[: 1 + regression]
    theta = np.log(np.stack([axis.ravel() for axis in grid], axis=1))
    values, slopes = estimator.log_marginal_likelihood(theta, True, kind=kind)
    slopes = slopes.reshape(*shape, -1)
    result = Bunch(
        prior_precision=deltas,
        log_marginal_likelihood=values.reshape(shape),
        effective_dimension=_effective_dimension(estimator, deltas, stds, regression),
        gradient_log_prior_precision=slopes[..., 0],
    )
    if regression:
        result.update(noise_std=stds, gradient_log_noise_std=slopes[..., 1])
    if X is not None:
        conditional = conditional_evidence(
            outer, X, y, theta=theta, part=part, sample_weight=sample_weight
        )
        result.conditional_evidence = conditional.reshape(shape)
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
    """Find the δ and σ of the best training evidence at the trained weights (:ref:`math-evidence`).

    L-BFGS-B over log δ and log σ with exact gradients, from the fitted values and from others drawn
    around them; the best end is returned, and is never below the start. The estimator is left as
    it is: train at the result with ``set_params(..., warm_start=True).fit(X, y)``.

    Parameters
    ----------
    estimator : DNN2GPRegressor or DNN2GPClassifier
        Fitted; also as the last step of a Pipeline, inside a TransformedTargetRegressor, or as the
        best estimator of a fitted search.
    groups : {"all", "layer", "tensor"}, default="all"
        One δ; one for each layer's weights and biases; or one for each parameter tensor. The last
        two factorise a P×P matrix at each evaluation, and need the full posterior.
    kind : {"laplace", "dual"}, default=None
        None is the estimator's own: "laplace", or "dual" for a regressor with
        ``inference="vi"``.
    prior_precision_bounds, noise_std_bounds : tuple of float, or None
        None keeps it as fitted.
    n_starts : int, default=5
    random_state : int, RandomState or None, default=0
        Draws the starts.

    Returns
    -------
    Bunch
        ``prior_precision`` (a float, or a dict from the group's name to its δ), ``noise_std``
        (None for a classifier), ``log_marginal_likelihood`` in the units of y as the estimator
        inside sees it, ``initial``, that at the start, and ``prior_precision_vector``, one δ per
        weight, as ``LinearModel`` takes it. The start is the fitted δ and σ; with ``groups``
        coarser than the fitted ones, the geometric mean of the δ in each; with "all", all δ by one
        factor.

    Raises
    ------
    TypeError
        If there is no DNN2GPRegressor or DNN2GPClassifier inside.
    ValueError
        If an argument is unknown, out of range, or does not fit the posterior.
    MemoryError
        If a P×P matrix is needed and does not fit the posterior's ``memory_limit``.

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
    estimator = estimator_inside(estimator)
    if groups not in ("all", "layer", "tensor"):
        raise ValueError(f"groups must be 'all', 'layer' or 'tensor', got {groups!r}.")
    if n_starts < 1:
        raise ValueError(f"n_starts must be at least 1, got {n_starts!r}.")
    names, index, fitted, objective = _objective(estimator, groups, kind)
    sigma = getattr(estimator, "noise_std_", None)
    fixed = np.concatenate([np.log(fitted), [] if sigma is None else [np.log(sigma)]])
    bounds = [prior_precision_bounds] * len(names) + ([] if sigma is None else [noise_std_bounds])
    initial = float(objective(fixed)[0])
    theta, value = climbed(objective, fixed, bounds, _shifts(bounds, n_starts, random_state))
    if value <= initial:
        theta, value = fixed, initial
    deltas = np.exp(theta[: len(names)])
    vector = deltas[index]
    if groups == "all":
        vector = _precisions(estimator) * (deltas[0] / fitted[0])
    return Bunch(
        prior_precision=float(deltas[0])
        if groups == "all"
        else dict(zip(names, deltas.tolist(), strict=True)),
        prior_precision_vector=vector,
        noise_std=None if sigma is None else float(np.exp(theta[-1])),
        log_marginal_likelihood=value,
        initial=initial,
    )


def _own_kind(estimator: Any) -> str:
    """The evidence that the estimator itself reports."""
    variational = isinstance(resolve_inference(estimator.inference), Variational)
    return "dual" if variational and hasattr(estimator, "noise_std_") else "laplace"


def _precisions(estimator: Any) -> NDArray:
    """δ of every weight, of shape (n_params,)."""
    model = estimator.linear_model_
    return model.prior_precision.expand(model.n_params).cpu().numpy().copy()


def _objective(
    estimator: Any, groups: str, kind: str | None
) -> tuple[list[str], NDArray, NDArray, Any]:
    """Names of the δs, the number of each weight's, those fitted, and θ -> evidence, gradient."""
    model = estimator.linear_model_
    if groups == "all":

        def all_weights(theta: NDArray) -> tuple[float, NDArray]:
            return estimator.log_marginal_likelihood(theta, True, kind=kind)

        index = np.zeros(model.n_params, dtype=np.intp)
        return ["all"], index, np.array([estimator.prior_precision_]), all_weights
    specification = resolve_posterior(estimator.posterior)
    if not specification.is_network_process:
        raise ValueError(
            f"groups other than 'all' need the full posterior; posterior={estimator.posterior!r} "
            "is another."
        )
    names, index = _group_index(model.linearization, groups)
    deltas = _precisions(estimator)
    fitted = np.exp(np.bincount(index, np.log(deltas)) / np.bincount(index))
    limit = getattr(specification, "memory_limit", None)
    return names, index, fitted, _grouped(estimator, index, kind or _own_kind(estimator), limit)


def _grouped(estimator: Any, index: NDArray, kind: str, memory_limit: float | None) -> Any:
    """θ -> evidence and gradient, with one δ for each group."""
    model = estimator.linear_model_
    sigma = getattr(estimator, "noise_std_", None)
    evidence = GroupedEvidence.from_model(model, index, sigma, memory_limit)
    # The change of units does not depend on θ: it is what the estimator's own number has more.
    own = estimator.log_marginal_likelihood(kind=kind)
    offset = own - log_marginal_likelihood(Full(memory_limit).build(model), kind)

    def grouped(theta: NDArray) -> tuple[float, NDArray]:
        value, gradient = evidence.value_and_gradient(theta, kind)
        return value + offset, gradient

    return grouped


def _group_index(linearization: Any, groups: str) -> tuple[list[str], NDArray]:
    """Names of the groups and, for every weight, the number of its group."""
    labels = [
        name if groups == "tensor" else name.rpartition(".")[0] or name
        for name in linearization.parameter_names
    ]
    names = list(dict.fromkeys(labels))
    numbers = [names.index(label) for label in labels]
    return names, np.repeat(numbers, linearization.parameter_sizes)


def _shifts(bounds: list, n_starts: int, random_state: Any) -> NDArray:
    """From the fitted θ itself, and from others drawn around it."""
    free = np.array([b is not None for b in bounds])
    rng = np.random.default_rng(draw_seed(random_state))
    shifts = np.zeros((n_starts, len(bounds)))
    shifts[1:, free] = 2.0 * rng.standard_normal((n_starts - 1, free.sum()))
    return shifts


def _effective_dimension(
    estimator: Any, deltas: NDArray, stds: NDArray, regression: bool
) -> NDArray:
    """γ = 2 ∂/∂log δ + Σ_p δ_p w_p² of the Laplace evidence (:ref:`math-evidence`)."""
    weights = estimator.linear_model_.weights.cpu().numpy()
    squared = float(_precisions(estimator) @ weights**2) / estimator.prior_precision_
    result = np.empty((len(deltas), len(stds)))
    for i, j in np.ndindex(result.shape):
        theta = np.log([deltas[i], stds[j]][: 1 + regression])
        slope = estimator.log_marginal_likelihood(theta, True, kind="laplace")[1][0]
        result[i, j] = 2.0 * slope + deltas[i] * squared
    return result


def _positive(name: str, given: ArrayLike | None, otherwise: Any) -> NDArray:
    values = np.atleast_1d(np.asarray(otherwise if given is None else given, dtype=np.float64))
    if values.ndim != 1 or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{name} must be positive, finite numbers in one row, got {given!r}.")
    return values

"""Log densities of y as scorers of scikit-learn: the evidence, and of held-out rows.

Mathematics: :ref:`math-evidence`, :ref:`math-predicting`, :ref:`math-leave-one-out`. Nothing here
looks inside an estimator: ``log_marginal_likelihood_bounds``, ``log_predictive_density`` and
``leave_one_out`` are all that is used.

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
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import MetadataRequest

from .._utils.documentation import Documented
from .._utils.warn import warn
from ..evidence.bounds import NAT
from ..exceptions import ApproximationWarning
from .conditional import conditional_evidence
from .inside import unwrapped

__all__ = [
    "ConditionalEvidenceScorer",
    "LeaveOneOutScorer",
    "LogPredictiveDensityScorer",
    "MarginalLikelihoodScorer",
    "conditional_evidence_scorer",
    "leave_one_out_scorer",
    "log_predictive_density_scorer",
    "marginal_likelihood_scorer",
    "undecided_candidates",
]


class _DensityScorer(Documented, BaseEstimator):
    """What the scorers share: how scikit-learn asks them for sample weights."""

    def set_score_request(self, *, sample_weight: bool | str | None = None) -> Any:
        """Ask scikit-learn's metadata routing for sample weights, as its own scorers do.

        Parameters
        ----------
        sample_weight : bool, str or None, default=None
            Whether to take it, or the name that it has.

        Returns
        -------
        self : scorer
        """
        self._metadata_request = MetadataRequest(owner=type(self).__name__)
        self._metadata_request.score.add_request(param="sample_weight", alias=sample_weight)
        return self

    def _accept_sample_weight(self) -> bool:
        """Answer scikit-learn's search classes, which ask before they pass sample_weight on."""
        return True


class MarginalLikelihoodScorer(_DensityScorer):
    """A scorer that is the log marginal likelihood of the data it is given (:ref:`math-evidence`).

    For every search class of scikit-learn, ``cross_validate`` and multi-metric scoring; larger is
    better. With :class:`~sk_dnn2gp.TrainingSetSplit` no data is held back. The estimator may be the
    last step of a Pipeline (the steps before transform X), inside a TransformedTargetRegressor (the
    change of variables is counted), or the best estimator of a fitted search. scikit-learn keeps no
    open register of scorers, so it is passed as an object: ``scoring=marginal_likelihood_scorer``.

    An evidence that is not a number, or whose matrix cannot be factorised, scores -inf with a
    warning. A fit that fails is the search's own business (``error_score``). The evidence of a
    low-rank posterior is known as a bracket (:ref:`math-low-rank`) and scores its lower end, with
    an ApproximationWarning where more than a nat is left open.

    Parameters
    ----------
    kind : {"laplace", "dual"}, default=None
        Which evidence; "dual" is the paper's evidence of the transformed targets. None is the
        estimator's own, the kind of ``log_marginal_likelihood_value_``: "laplace", or "dual" for a
        regressor with ``inference="vi"``, whose mean is no minimum. At a minimum of a Gaussian loss
        the two are equal, so that a search over ``inference`` compares like with like; where
        training warned that it stopped before one, give the kind. ``inference="swag"``, which has
        no evidence, is refused.
    bounds : bool, default=False
        Give both ends of the bracket, as the metrics "lower" and "upper" of a search with
        ``refit="lower"``; :func:`~sk_dnn2gp.model_selection.undecided_candidates` then says which
        candidates cannot be told apart from the best.

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

    def __init__(self, kind: str | None = None, bounds: bool = False) -> None:
        self.kind = kind
        self.bounds = bounds

    def __call__(
        self, estimator: Any, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> Any:
        """The log marginal likelihood of (X, y) under a fitted estimator, in the units of y.

        X is what the estimator's ``predict`` would take; ``sample_weight`` says how many times each
        row counts. A float, or with ``bounds`` a dict of both ends. TypeError if the estimator has
        no such thing, ValueError if y went through a transformation whose density cannot be
        followed.
        """
        final, X, y, offset = unwrapped(estimator, X, y, sample_weight)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        try:
            ends = final.log_marginal_likelihood_bounds(X=X, y=y, kind=self.kind, **weights)
            lower, upper = (float(end) + offset for end in ends)
        except LinAlgError as error:
            lower = upper = _unusable(str(error))
        else:
            if not math.isfinite(lower):
                lower = upper = _unusable(f"it is {lower}")
        if self.bounds:
            return {"lower": lower, "upper": upper}
        if upper - lower > NAT:
            warn(
                f"The evidence of this candidate is known to lie between {lower:.6g} and "
                f"{upper:.6g} alone, and scores the lower end. MarginalLikelihoodScorer("
                "bounds=True), refit='lower' and undecided_candidates(search) say which "
                "candidates cannot be told apart; a lower tol of posterior=LowRank(...) decides.",
                ApproximationWarning,
            )
        return lower


def undecided_candidates(search: Any) -> NDArray:
    """Candidates of a search that the brackets of their evidences cannot tell from the best.

    Those whose upper end is at or above the best lower end: the true best is among them. One alone
    is decided.

    Parameters
    ----------
    search : GridSearchCV, RandomizedSearchCV or a halving search
        Fitted, with ``scoring=MarginalLikelihoodScorer(bounds=True)`` and ``refit="lower"``.

    Returns
    -------
    ndarray of int
        Places in ``search.cv_results_``, the best lower end first.

    Raises
    ------
    ValueError
        If the search has no brackets.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import (
    ...     MarginalLikelihoodScorer, TrainingSetSplit, undecided_candidates,
    ... )
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> model = DNN2GPRegressor(
    ...     hidden_layer_sizes=(5,), noise_std=0.1, posterior="low_rank", random_state=0
    ... )
    >>> search = GridSearchCV(
    ...     model, {"prior_precision": [0.1, 1000.0]}, cv=TrainingSetSplit(),
    ...     scoring=MarginalLikelihoodScorer(bounds=True), refit="lower",
    ... ).fit(X, np.sin(X[:, 0]))
    >>> undecided_candidates(search).tolist()  # the first alone: decided
    [0]
    """
    results = getattr(search, "cv_results_", {})
    if not {"mean_test_lower", "mean_test_upper"} <= set(results):
        raise ValueError(
            "undecided_candidates needs a fitted search with "
            "scoring=MarginalLikelihoodScorer(bounds=True) and refit='lower'."
        )
    lower, upper = results["mean_test_lower"], results["mean_test_upper"]
    order = np.argsort(-lower, kind="stable")
    return order[upper[order] >= np.nanmax(lower)]


class LogPredictiveDensityScorer(_DensityScorer):
    """A scorer that is the mean log density of held-out targets (:ref:`math-predicting`).

    What papers call the test log likelihood, and its opposite the NLL: the mean over rows of
    ``log_predictive_density``, summed over the targets of a row; for a classifier, minus the log
    loss. Larger is better, and no other number is as hard to please by error bars that are too wide
    or too narrow. The estimator may stand in a Pipeline, in a TransformedTargetRegressor (the
    change of variables is counted) or in a search, as with
    :class:`~sk_dnn2gp.model_selection.MarginalLikelihoodScorer`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import cross_val_score
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import log_predictive_density_scorer
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> model = DNN2GPRegressor(
    ...     hidden_layer_sizes=(5,), prior_precision=0.1, noise_std=0.1, random_state=0
    ... )
    >>> y = np.sin(X[:, 0])
    >>> scores = cross_val_score(model, X, y, scoring=log_predictive_density_scorer, cv=2)
    >>> scores.shape
    (2,)
    """

    def __call__(
        self, estimator: Any, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the mean log predictive density of y at X under a fitted estimator.

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
            Nats per row, in the units of y.

        Raises
        ------
        TypeError
            If the estimator has no density of given data.
        ValueError
            If y went through a transformation whose density cannot be followed.
        """
        wanted = "log_predictive_density"
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        final, X, y, offset = unwrapped(estimator, X, y, weight, wanted)
        rows = final.log_predictive_density(X, y).reshape(len(y), -1).sum(axis=1)
        return float((weight @ rows + offset) / weight.sum())


class LeaveOneOutScorer(_DensityScorer):
    """A scorer: the mean log density of each row given the others (:ref:`math-leave-one-out`).

    In closed form at the trained weights, for :class:`~sk_dnn2gp.TrainingSetSplit`: no data is held
    back and nothing is trained again. The features were learned with every row, so that across
    priors it favours weak ones; at one prior it compares networks.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import TrainingSetSplit, leave_one_out_scorer
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> y = np.sin(X[:, 0])
    >>> model = DNN2GPRegressor(prior_precision=0.1, noise_std=0.1, random_state=0)
    >>> search = GridSearchCV(
    ...     model, {"hidden_layer_sizes": [(1,), (6,)]}, scoring=leave_one_out_scorer,
    ...     cv=TrainingSetSplit(),
    ... ).fit(X, y)
    >>> search.best_params_
    {'hidden_layer_sizes': (6,)}
    """

    def __call__(
        self, estimator: Any, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the mean leave-one-out log density of the training rows (X, y).

        Parameters
        ----------
        estimator : estimator
            Fitted; as :class:`~sk_dnn2gp.model_selection.MarginalLikelihoodScorer` takes it.
        X : array-like
            What the estimator was trained on.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each row counts.

        Returns
        -------
        float
            Nats per row, in the units of y.

        Raises
        ------
        TypeError
            If the estimator has no density of given data.
        ValueError
            If the posterior is an approximation, or y went through a transformation whose density
            cannot be followed.
        """
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        final, X, y, offset = unwrapped(estimator, X, y, weight)
        try:
            rows = final.leave_one_out(X, y, weight).log_density
        except LinAlgError as error:
            return _unusable(str(error))
        return float((weight @ rows.reshape(len(y), -1).sum(axis=1) + offset) / weight.sum())


class ConditionalEvidenceScorer(_DensityScorer):
    """A scorer that is the evidence of some rows given the others (:ref:`math-leave-one-out`).

    See :func:`~sk_dnn2gp.model_selection.conditional_evidence`; for
    :class:`~sk_dnn2gp.TrainingSetSplit`, as the marginal likelihood's.

    Parameters
    ----------
    part : float, default=0.5
        Of the rows that the others are predicted from, from 0 to below 1.
    n_parts : int, default=4
        Random parts, over which the mean is taken.
    random_state : int, RandomState or None, default=0
        Draws them; with an int all candidates are scored on the same.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.model_selection import ConditionalEvidenceScorer
    >>> X = np.linspace(-3, 3, 40)[:, None]
    >>> y = np.sin(X[:, 0])
    >>> model = DNN2GPRegressor(
    ...     hidden_layer_sizes=(5,), prior_precision=0.1, noise_std=0.1, random_state=0
    ... ).fit(X, y)
    >>> evidence = ConditionalEvidenceScorer(part=0.0)(model, X, y)
    >>> bool(np.isclose(40 * evidence, model.log_marginal_likelihood(kind="dual")))
    True
    """

    def __init__(self, part: float = 0.5, n_parts: int = 4, random_state: Any = 0) -> None:
        self.part = part
        self.n_parts = n_parts
        self.random_state = random_state

    def __call__(
        self, estimator: Any, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the conditional evidence of the training rows (X, y), per row left.

        Parameters
        ----------
        estimator : estimator
            Fitted; as :class:`~sk_dnn2gp.model_selection.MarginalLikelihoodScorer` takes it.
        X : array-like
            What the estimator was trained on.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each row counts.

        Returns
        -------
        float
            Nats per row left, in the units of y.
        """
        settings = {**self.get_params(), "sample_weight": sample_weight}
        try:
            value = float(conditional_evidence(estimator, X, y, **settings))
        except LinAlgError as error:
            return _unusable(str(error))
        return value if math.isfinite(value) else _unusable(f"it is {value}")


conditional_evidence_scorer = ConditionalEvidenceScorer()
leave_one_out_scorer = LeaveOneOutScorer()
log_predictive_density_scorer = LogPredictiveDensityScorer()
marginal_likelihood_scorer = MarginalLikelihoodScorer()


def _unusable(reason: str) -> float:
    warn(
        f"The marginal likelihood cannot be used ({reason}); the candidate scores -inf.",
        UserWarning,
    )
    return -math.inf

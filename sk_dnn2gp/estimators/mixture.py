"""Several networks from several starts as one mixture of Gaussian processes (math-mixtures).

The posterior of a network's weights has many modes, and one Laplace posterior knows one of them.
Each start ends in another; the mixture of their processes is a deep ensemble of processes
(Lakshminarayanan et al. 2017; Eschenhagen et al. 2021).
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, softmax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    MultiOutputMixin,
    RegressorMixin,
    _fit_context,
    clone,
)
from sklearn.utils import Bunch, Tags, check_random_state, get_tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from .._utils.documentation import Documented
from .._utils.interrupts import whole_fit
from .._utils.random import draw_seed
from ..inference import SWAG, resolve_inference
from ..predictive import Mixture, Predictive
from ..training.source import NetworkSource
from .classifier import DNN2GPClassifier
from .distributional import DistributionMixin
from .options import check_target
from .regressor import DNN2GPRegressor

__all__ = ["MixtureClassifier", "MixtureRegressor"]


class _BaseMixture(Documented, MetaEstimatorMixin, BaseEstimator):
    """Fits the members, and finds the best. Not for use on its own."""

    _member: Any = None

    _parameter_constraints: dict = {
        "estimator": "no_validation",
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "search": [StrOptions({"own", "shared"})],
        "weights": [StrOptions({"equal", "evidence"})],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_estimators: int = 4,
        search: str = "own",
        weights: str = "equal",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.search = search
        self.weights = weights
        self.n_jobs = n_jobs
        self.random_state = random_state

    @property
    def best_estimator_(self) -> Any:
        """The member of the highest evidence."""
        check_is_fitted(self, "estimators_")
        return self.estimators_[self.best_index_]

    @property
    def kernel_(self) -> Any:
        """The best member's kernel: a mixture of processes is no Gaussian process."""
        return self.best_estimator_.kernel_

    @property
    def n_features_in_(self) -> int:
        """As the members."""
        return self.best_estimator_.n_features_in_

    @property
    def feature_names_in_(self) -> NDArray:
        """As the members, where X has names."""
        return self.best_estimator_.feature_names_in_

    def to_gaussian_process(self) -> Any:
        """Return the best member's process: a mixture of processes is no Gaussian process.

        Returns
        -------
        GaussianProcessRegressor

        Raises
        ------
        ValueError
            If that member has none; see its own method.
        """
        return self.best_estimator_.to_gaussian_process()

    def _fit_members(self, X: Any, y: Any, **given: ArrayLike | None) -> None:
        template = self._member(n_restarts=1) if self.estimator is None else self.estimator
        self._check_member(template)
        draws = check_random_state(self.random_state)
        fit = self._of_one_search if self.search == "shared" else self._of_own_searches
        fitted = fit(template, draws, X, y, given)
        evidence = np.array([one.log_marginal_likelihood_value_ for one in fitted])
        equal = np.full(len(fitted), 1.0 / len(fitted))
        self.estimators_ = fitted
        self.weights_ = equal if self.weights == "equal" else softmax(evidence)
        self.best_index_ = int(evidence.argmax())

    def _of_own_searches(
        self, template: Any, draws: np.random.RandomState, X: Any, y: Any, given: Any
    ) -> list[Any]:
        members = [
            clone(template).set_params(random_state=draw_seed(draws))
            for _ in range(self.n_estimators)
        ]
        fit = delayed(_fitted)
        return Parallel(n_jobs=self.n_jobs)(fit(one, X, y, given) for one in members)

    def _of_one_search(
        self, template: Any, draws: np.random.RandomState, X: Any, y: Any, given: Any
    ) -> list[Any]:
        one = clone(template).set_params(random_state=draw_seed(draws))
        return one.fit_starts(X, y, self.n_estimators, **given)

    def _check_member(self, template: Any) -> None:
        if not isinstance(template, self._member):
            raise TypeError(
                f"{type(self).__name__} mixes {self._member.__name__}s, got {template!r}. Put "
                "the mixture into a Pipeline or a search, not one of them into the mixture."
            )
        if self.weights == "evidence" and isinstance(resolve_inference(template.inference), SWAG):
            raise ValueError(
                "weights='evidence' needs the evidence of each member, and inference='swag' has "
                "none: take weights='equal'."
            )
        source = NetworkSource(template.net, (), "tanh", 1)
        same = source.is_frozen or not source.draws_weights
        if self.n_estimators > 1 and same:
            raise ValueError(
                f"net={template.net!r} brings its weights, so that every start would end in the "
                "same minimum. Give the module's class, or a skorch net, which draw new ones."
            )

    def _average(self, values: Any) -> NDArray:
        """Σ_m π_m of what the members give."""
        return np.tensordot(self.weights_, np.stack(list(values)), axes=1)

    def _shares(self, n_samples: int, draws: np.random.RandomState) -> list[tuple[Any, int, int]]:
        """Each member with how many draws it gives, and their seed."""
        check_is_fitted(self, "estimators_")
        counts = draws.multinomial(n_samples, self.weights_)
        seeds = [draw_seed(draws) for _ in self.estimators_]
        triples = zip(self.estimators_, counts.tolist(), seeds, strict=True)
        return [triple for triple in triples if triple[1]]

    def _drawn(self, X: ArrayLike, n_samples: int, random_state: Any, target: str) -> NDArray:
        """Draws of the members in random order, on the last axis."""
        draws = check_random_state(random_state)
        shares = self._shares(n_samples, draws)
        parts = [one.sample_y(X, count, seed, target) for one, count, seed in shares]
        return np.concatenate(parts, axis=-1)[..., draws.permutation(n_samples)]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = get_tags(self._member() if self.estimator is None else self.estimator)
        tags.input_tags = inner.input_tags
        return tags


class MixtureRegressor(DistributionMixin, MultiOutputMixin, RegressorMixin, _BaseMixture):
    """Several DNN2GPRegressors from different starts, as one mixture of Gaussian processes.

    The posterior of a network has many modes; each start ends in another (:ref:`math-mixtures`).
    Means, variances, intervals, densities and draws are those of the mixture. Where one process is
    meant (``kernel_``, ``to_gaussian_process``, ``evidence_path``, the evidence as a scorer), it is
    that of ``best_estimator_``.

    Parameters
    ----------
    estimator : DNN2GPRegressor, default=None
        What is fitted; its ``random_state`` is replaced. None is
        ``DNN2GPRegressor(n_restarts=1)``: the starts that it would choose among are kept here.
    n_estimators : int, default=4
        How many starts.
    search : {"own", "shared"}, default="own"
        "own": each start has a search of its own for δ and σ, and all ``n_restarts`` of it.
        "shared": all are starts of one search, as the estimator's own ``n_restarts`` are, where
        the later ones begin near the best δ and σ so far; each then goes to its own best.
        ``n_restarts`` and ``n_jobs`` do not matter there.
    weights : {"equal", "evidence"}, default="equal"
        Equal ones, or in proportion to the marginal likelihood, which mostly gives one all the
        weight.
    n_jobs : int, default=None
        Members fitted at a time, by joblib.
    random_state : int, RandomState or None, default=None
        Draws the members' seeds.

    Attributes
    ----------
    estimators_ : list of DNN2GPRegressor
    weights_ : ndarray of shape (n_estimators,)
        Fewer, with a warning, where starts of a shared search had no finite evidence or were not
        begun before the solver's ``max_iter`` was spent.
    best_index_ : int
        Of the highest evidence.
    best_estimator_ : DNN2GPRegressor
    kernel_ : NTKKernel
        The best member's.
    n_features_in_ : int
    feature_names_in_ : ndarray of str

    References
    ----------
    Lakshminarayanan, Pritzel, Blundell, "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles", 2017, arXiv 1612.01474. Eschenhagen et al., "Mixtures of Laplace
    Approximations for Improved Post-Hoc Uncertainty in Deep Learning", 2021, arXiv 2111.03577.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp import DNN2GPRegressor, MixtureRegressor
    >>> X = np.r_[np.linspace(-3, -1, 20), np.linspace(1, 3, 20)][:, None]
    >>> member = DNN2GPRegressor(hidden_layer_sizes=(8,), prior_precision=0.1, noise_std=0.1)
    >>> model = MixtureRegressor(member, random_state=0).fit(X, np.sin(2 * X[:, 0]))
    >>> low, high = model.predict_interval([[0.0]])[0]  # in the gap
    >>> len(model.estimators_), bool(low < high)
    (4, True)
    """

    _member = DNN2GPRegressor

    @_fit_context(prefer_skip_nested_validation=True)
    @whole_fit
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        noise_std: ArrayLike | None = None,
    ) -> MixtureRegressor:
        """Fit every member to all rows, from a start of its own.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each example counts.
        noise_std : array-like of shape (n_samples,), default=None
            The known standard deviation of each row's noise, as the members' ``fit`` takes it.

        Returns
        -------
        self : MixtureRegressor

        Raises
        ------
        TypeError
            If ``estimator`` is no DNN2GPRegressor.
        ValueError
            If every start would be the same, or as the members' own ``fit``.
        """
        self._fit_members(X, y, sample_weight=sample_weight, noise_std=noise_std)
        self._one_dimensional = np.asarray(y).ndim == 1
        return self

    def predict_distribution(self, X: ArrayLike) -> Predictive:
        """Predict the whole distribution of y (:ref:`math-mixtures`).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        Mixture
            Of each target by itself, in the units of y.
        """
        check_is_fitted(self, "estimators_")
        return Mixture([one.predict_distribution(X) for one in self.estimators_], self.weights_)

    def predict(self, X: ArrayLike, return_std: bool = False, return_cov: bool = False) -> Any:
        """Predict the mixture's mean, and its standard deviation or covariance on request.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        return_std : bool, default=False
            Also return the standard deviation of y.
        return_cov : bool, default=False
            Also return the joint covariance of y over the rows of X.

        Returns
        -------
        y_mean : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        y_std : ndarray of the same shape, optional
        y_cov : ndarray of shape (n_samples, n_samples), or (…, n_outputs) for 2-D y, optional

        Raises
        ------
        ValueError
            If both ``return_std`` and ``return_cov`` are asked for.
        """
        if return_std and return_cov:
            raise ValueError("At most one of return_std or return_cov can be requested.")
        check_is_fitted(self, "estimators_")
        if return_std:
            distribution = self.predict_distribution(X)
            return self._shaped(distribution.mean), self._shaped(np.sqrt(distribution.variance))
        if not return_cov:
            return self._average(one.predict(X) for one in self.estimators_)
        means, covariances = zip(
            *(one.predict(X, return_cov=True) for one in self.estimators_), strict=True
        )
        mean = self._average(means)
        apart = [one - mean for one in means]
        between = self._average([one[:, None] * one[None] for one in apart])
        return mean, self._average(covariances) + between

    def predict_std(self, X: ArrayLike, target: str = "y") -> NDArray:
        """Standard deviation of y (noise and ignorance) or of its mean (ignorance alone).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        target : {"y", "latent"}, default="y"

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)

        Raises
        ------
        ValueError
            If ``target`` is unknown.
        """
        check_target(target, ("y", "latent"))
        parts = self.predict_uncertainty(X)
        return np.sqrt(parts.total if target == "y" else parts.epistemic)


class MixtureClassifier(ClassifierMixin, _BaseMixture):
    """Several DNN2GPClassifiers from different starts, as one mixture of Gaussian processes.

    Probabilities are the members' mean (:ref:`math-mixtures`). Where one process is meant
    (``kernel_``, ``to_gaussian_process``, the evidence as a scorer), it is that of
    ``best_estimator_``.

    Parameters
    ----------
    estimator : DNN2GPClassifier, default=None
        What is fitted; its ``random_state`` is replaced. None is
        ``DNN2GPClassifier(n_restarts=1)``.
    n_estimators : int, default=4
        How many starts.
    search : {"own", "shared"}, default="own"
        "own": each start has a search of its own for δ and σ, and all ``n_restarts`` of it.
        "shared": all are starts of one search, as the estimator's own ``n_restarts`` are, where
        the later ones begin near the best δ and σ so far; each then goes to its own best.
        ``n_restarts`` and ``n_jobs`` do not matter there.
    weights : {"equal", "evidence"}, default="equal"
        Equal ones, or in proportion to the marginal likelihood.
    n_jobs : int, default=None
        Members fitted at a time, by joblib.
    random_state : int, RandomState or None, default=None
        Draws the members' seeds.

    Attributes
    ----------
    estimators_ : list of DNN2GPClassifier
    classes_ : ndarray of shape (n_classes,)
    weights_ : ndarray of shape (n_estimators,)
        Fewer, with a warning, where starts of a shared search had no finite evidence or were not
        begun before the solver's ``max_iter`` was spent.
    best_index_ : int
        Of the highest evidence.
    best_estimator_ : DNN2GPClassifier
    kernel_ : NTKKernel
        The best member's.
    n_features_in_ : int
    feature_names_in_ : ndarray of str

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from sk_dnn2gp import DNN2GPClassifier, MixtureClassifier
    >>> X, y = make_moons(60, noise=0.2, random_state=0)
    >>> member = DNN2GPClassifier(hidden_layer_sizes=(6,), prior_precision=0.3)
    >>> model = MixtureClassifier(member, n_estimators=2, random_state=0).fit(X, y)
    >>> model.predict_proba(X).shape
    (60, 2)
    """

    _member = DNN2GPClassifier

    @_fit_context(prefer_skip_nested_validation=True)
    @whole_fit
    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> MixtureClassifier:
        """Fit every member to all rows, from a start of its own.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None
            How many times each example counts.

        Returns
        -------
        self : MixtureClassifier

        Raises
        ------
        TypeError
            If ``estimator`` is no DNN2GPClassifier.
        ValueError
            If every start would be the same, or as the members' own ``fit``.
        """
        self._fit_members(X, y, sample_weight=sample_weight)
        self.classes_ = self.best_estimator_.classes_
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Most probable class of the mixture.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        index = self.predict_log_proba(X).argmax(axis=1)
        return self.classes_[index]

    def predict_proba(self, X: ArrayLike, link: str | None = None) -> NDArray:
        """Probabilities of the classes: the members' mean.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        link : {"auto", "probit", "contrast", "mc", "map"}, default=None
            None takes the members' own.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return np.exp(self.predict_log_proba(X, link))

    def predict_log_proba(self, X: ArrayLike, link: str | None = None) -> NDArray:
        """Logarithms of :meth:`predict_proba`, finite where a probability underflows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        link : {"auto", "probit", "contrast", "mc", "map"}, default=None
            None takes the members' own.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self, "estimators_")
        terms = np.stack([one.predict_log_proba(X, link) for one in self.estimators_], axis=-1)
        return logsumexp(terms, axis=-1, b=self.weights_)

    def log_predictive_density(
        self, X: ArrayLike, y: ArrayLike, link: str | None = None
    ) -> NDArray:
        """log p of each row's own label: the opposite of its part of the log loss.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        y : array-like of shape (n_samples,)
        link : {"auto", "probit", "contrast", "mc", "map"}, default=None
            None takes the members' own.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self, "estimators_")
        terms = [one.log_predictive_density(X, y, link) for one in self.estimators_]
        return logsumexp(np.stack(terms, axis=-1), axis=-1, b=self.weights_)

    def predict_uncertainty(self, X: ArrayLike, link: str | None = None) -> Bunch:
        """Variance of the labels, as 0 or 1 per class, split into noise and ignorance.

        Members' differences count as ignorance.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        link : {"mc"}, default=None
            None is the first order; "mc" the mean over draws.

        Returns
        -------
        Bunch
            ``aleatoric``, ``epistemic`` and ``total``, each of shape (n_samples, n_classes).
        """
        check_is_fitted(self, "estimators_")
        parts = [one.predict_uncertainty(X, link=link) for one in self.estimators_]
        p = np.stack([one.predict_proba(X, link or "map") for one in self.estimators_])
        apart = self._average((p - self._average(p)) ** 2)
        aleatoric = self._average(part.aleatoric for part in parts)
        epistemic = self._average(part.epistemic for part in parts) + apart
        return Bunch(aleatoric=aleatoric, epistemic=epistemic, total=aleatoric + epistemic)

    def sample_y(
        self, X: ArrayLike, n_samples: int = 1, random_state: Any = 0, target: str = "y"
    ) -> NDArray:
        """Draw joint samples: each of one member, drawn by its weight.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features) or (n_rows, ...)
        n_samples : int, default=1
        random_state : int, RandomState or None, default=0
        target : {"y", "p", "latent"}, default="y"
            Labels, the classes' probabilities, or the logits.

        Returns
        -------
        ndarray of shape (n_rows, n_samples), or (n_rows, n_columns, n_samples) for "p" and "latent"
        """
        return self._drawn(X, n_samples, random_state, target)


def _fitted(estimator: Any, X: Any, y: Any, given: dict[str, ArrayLike | None]) -> Any:
    return estimator.fit(X, y, **given)

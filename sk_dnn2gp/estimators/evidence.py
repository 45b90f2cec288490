"""The evidence of a fitted estimator at its weights, of its own data or of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from .._utils.rows import rows_where
from ..evidence import EvidenceSpectrum, leave_one_out
from ..evidence.bounds import SketchedEvidence, evidence_of
from ..inference import SWAG
from ..linear_model import LinearModel
from ..posterior import Full, IndependentOutputs
from .options import Options, options_of
from .rows import RowsMixin

__all__: list[str] = []


class EvidenceMixin(RowsMixin):
    """log p(y) as a function of δ and σ at the trained weights, and what leaves rows out.

    An estimator has the fitted attributes below, and says what its hyperparameters and targets are.
    """

    prior_precision_: float
    linear_model_: LinearModel
    log_marginal_likelihood_value_: float
    _fit_sample_weight: NDArray
    _spectrum: EvidenceSpectrum | SketchedEvidence | None
    _result: Any

    def _hyperparameters(self) -> list[float]:
        """δ, and σ where there is one."""
        raise NotImplementedError

    def _encoded(self, y: NDArray) -> Tensor:
        """Targets as the likelihood takes them."""
        raise NotImplementedError

    def _evidence_offset(self, weight: NDArray) -> float:
        """log of the change of units, of rows of these weights."""
        raise NotImplementedError

    def log_marginal_likelihood(
        self,
        theta: ArrayLike | None = None,
        eval_gradient: bool = False,
        *,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        kind: str | None = None,
    ) -> Any:
        """Evidence at the trained weights, of the training or other data (:ref:`math-evidence`).

        Parameters
        ----------
        theta : array-like of shape (n_hyperparameters,) or (n_points, n_hyperparameters), \
                default=None
            log of the hyperparameters: (log δ, log σ) for a regressor, (log δ,) for a classifier.
            None takes the fitted ones. The weights stay as they are; where weights have several δ,
            δ is the last group's and the ratios stay. Of many points, one decomposition serves all.
        eval_gradient : bool, default=False
            Also return the gradient in theta, at fixed weights.
        X, y : array-like, default=None
            Other data; None is the training set.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows of ``X``; ``class_weight`` multiplies them, as in ``fit``.
        kind : {"laplace", "dual"}, default=None
            ``dual`` is the paper's evidence of the transformed targets. None is "laplace", or
            "dual" for a regressor with ``inference="vi"``, whose weights are no minimum of the
            loss.

        Returns
        -------
        log_likelihood : float, or ndarray of shape (n_points,)
            In the units of y.
        gradient : ndarray of the shape of theta, optional

        Raises
        ------
        ValueError
            If theta has the wrong length, one of X and y is missing, ``kind="dual"`` is asked of
            independent outputs, or ``inference="swag"`` has no evidence.
        """
        kind = self._checked_kind(kind)
        own = kind == self._result.evidence_kind
        if X is None and y is None and theta is None and own and not eval_gradient:
            return self.log_marginal_likelihood_value_
        spectrum, weight = self._spectrum_at(X, y, sample_weight)
        theta, offset = self._checked_theta(theta), self._evidence_offset(weight)
        points = np.exp(np.atleast_2d(theta))
        values = np.array([spectrum.log_marginal_likelihood(*at, kind=kind) for at in points])  # type: ignore[misc]
        value = values + offset if theta.ndim == 2 else float(values[0]) + offset
        if not eval_gradient:
            return value
        slopes = [spectrum.gradient(*at, kind=kind)[: len(at)] for at in points]  # type: ignore[misc]
        return value, np.array(slopes).reshape(theta.shape)

    def log_marginal_likelihood_bounds(
        self,
        theta: ArrayLike | None = None,
        *,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        kind: str | None = None,
    ) -> tuple[Any, Any]:
        """Both ends of the evidence, of the training or other data (:ref:`math-low-rank`).

        Of a low-rank posterior, what its certificate says; ``log_marginal_likelihood`` is the lower
        end. Of every other both ends are that value. Two candidates whose brackets overlap cannot
        be told apart.

        Parameters
        ----------
        theta, X, y, sample_weight, kind
            As for ``log_marginal_likelihood``.

        Returns
        -------
        lower, upper : float, or ndarray of shape (n_points,)
            In the units of y.

        Raises
        ------
        ValueError
            As ``log_marginal_likelihood``.
        """
        kind = self._checked_kind(kind)
        spectrum, weight = self._spectrum_at(X, y, sample_weight)
        theta = self._checked_theta(theta)
        points = np.exp(np.atleast_2d(theta))
        ends = np.array([spectrum.bounds(*at, kind=kind) for at in points])  # type: ignore[misc]
        lower, upper = ends.T + self._evidence_offset(weight)
        return (lower, upper) if theta.ndim == 2 else (float(lower[0]), float(upper[0]))

    def _checked_kind(self, kind: str | None) -> str:
        """Which evidence, where there is one."""
        check_is_fitted(self)
        self._require_likelihood("log_marginal_likelihood()")
        kind = self._result.evidence_kind if kind is None else kind
        if kind == "dual" and isinstance(self._options().posterior, IndependentOutputs):
            raise ValueError(
                "kind='dual' is not defined for posterior='independent', whose outputs have no "
                "common posterior of the weights. Use kind='laplace' or posterior='full'."
            )
        return kind

    def _spectrum_at(
        self, X: Any, y: Any, sample_weight: ArrayLike | None
    ) -> tuple[EvidenceSpectrum | SketchedEvidence, NDArray]:
        """Of the training set, or of other data; with the weights of the rows."""
        if (X is None) != (y is None):
            raise ValueError("X and y must be given together, or both left out.")
        if X is None:
            return self._training_spectrum(), self._fit_sample_weight
        return self._spectrum_of(X, y, sample_weight)

    def _options(self) -> Options:
        return options_of(self, hasattr(self, "classes_"))

    def _require_likelihood(self, what: str, error: type[Exception] = ValueError) -> None:
        """Refuse what is of a posterior under the likelihood and the prior."""
        if isinstance(self._options().inference, SWAG):
            raise error(
                f"{what} is of a posterior that a likelihood and a prior give, and the covariance "
                "of inference='swag' is that of steps of SGD. Take inference='laplace'."
            )

    def _training_spectrum(self) -> EvidenceSpectrum | SketchedEvidence:
        if self._spectrum is None:
            self._spectrum = self._spectrum_from(self.linear_model_, self._fit_sample_weight)
        return self._spectrum

    def _spectrum_from(
        self, model: LinearModel, weight: NDArray
    ) -> EvidenceSpectrum | SketchedEvidence:
        """Of the posterior whose evidence is reported: that of the process at μ for VI."""
        options = self._options()
        specification = Full() if options.is_variational else options.posterior
        likelihood, posterior = self._result.likelihood, self._result.posterior
        if posterior.model is not model or options.is_variational:
            posterior = specification.build(model)
        return evidence_of(
            posterior,
            likelihood.sigma,
            float(weight.sum()) * model.whitened_residual.shape[1],
            self.prior_precision_,
        )

    def _spectrum_of(
        self, X: Any, y: Any, sample_weight: ArrayLike | None
    ) -> tuple[EvidenceSpectrum | SketchedEvidence, NDArray]:
        """Spectrum of the linear model of other data at the trained weights."""
        X, y, weight = self._checked_data(X, y, sample_weight)
        X, y, weight = (rows_where(rows, weight > 0) for rows in (X, y, weight))
        return self._spectrum_from(self._model_of(X, y, weight), weight), weight

    def _checked_data(
        self, X: Any, y: Any, sample_weight: ArrayLike | None
    ) -> tuple[Any, NDArray, NDArray]:
        """Data given after ``fit``, with the weights of rows and classes."""
        X, y = self._validated(X, y, reset=False, multi_output=True)
        weight = _check_sample_weight(sample_weight, y, dtype=np.float64)
        return X, y, self._weighed(y, weight)

    def _model_of(self, X: Any, y: NDArray, weight: NDArray) -> LinearModel:
        """The linear model of other data at the trained weights."""
        own = self.linear_model_
        return LinearModel.from_laplace(
            own.linearization,
            self._as_inputs(X),
            self._encoded(y).to(own.X.device),
            self._result.likelihood,
            own.prior_precision,
            torch.tensor(weight).to(own.X.device),
        )

    def _left_out(
        self, X: Any, y: Any, sample_weight: ArrayLike | None
    ) -> tuple[NDArray, Tensor, Tensor]:
        """y, and mean and covariance of each row's f given the other rows."""
        check_is_fitted(self)
        self._require_likelihood("leave_one_out()")
        X, y, weight = self._checked_data(X, y, sample_weight)
        options = self._options()
        specification = Full() if options.is_variational else options.posterior
        mean, covariance = leave_one_out(specification.build(self._model_of(X, y, weight)))
        return y, mean.cpu(), covariance.cpu()

    def _weighed(self, y: NDArray, weight: NDArray) -> NDArray:
        """Weights of rows, with those of their classes."""
        return weight

    def _checked_theta(self, theta: ArrayLike | None) -> NDArray:
        fitted = np.log(self._hyperparameters())
        if theta is None:
            return fitted
        theta = np.asarray(theta, dtype=np.float64)
        fits = theta.ndim in (1, 2) and theta.size and theta.shape[-1:] == fitted.shape
        if not fits or not np.isfinite(theta).all():
            raise ValueError(
                f"theta must hold the logarithms of {len(fitted)} hyperparameter(s), all finite; "
                f"got {theta!r}."
            )
        return theta

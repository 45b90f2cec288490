"""What a fitted classifier says of labels: probabilities, their variance, draws.

Mathematics: :ref:`math-predicting`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, column_or_1d
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor

from .._utils.random import torch_generator
from ..inference import LinearizedVariational, resolve_inference
from ..links import LINKS, log_proba, log_softmax, mean_uncertainty, of_classes, of_difference
from .base import BaseDNN2GP
from .options import check_target

__all__: list[str] = []


class _ClassPredictions(BaseDNN2GP):
    """Predictions of labels, by a link. Not for use on its own."""

    classes_: NDArray
    link: str
    _draw_seed: int

    def predict(self, X: ArrayLike) -> NDArray:
        """Most probable class under ``predict_proba``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        ValueError
            If ``link`` is unknown.
        """
        check_is_fitted(self)
        if len(self.classes_) > 2 or self._link(None) in ("mc", "map"):
            log_p = self._log_proba(X, None)
        else:  # these links keep the sign of the difference: no variance is needed
            inputs = self._checked_inputs(X)
            log_p = log_softmax(self._result.mean(inputs))
        return self.classes_[log_p.argmax(-1).numpy()]

    def predict_proba(self, X: ArrayLike, link: str | None = None) -> NDArray:
        """Probabilities of the classes, by ``link`` (:ref:`math-predicting`).

        For two classes the links are taken of the difference of the logits, so that a network of
        two outputs agrees with one of a single output.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        link : {"auto", "probit", "contrast", "mc", "map"}, default=None
            None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)

        Raises
        ------
        ValueError
            If ``link`` is unknown.
        """
        return self._log_proba(X, link).exp().numpy()

    def predict_log_proba(self, X: ArrayLike, link: str | None = None) -> NDArray:
        """Logarithms of :meth:`predict_proba`, finite where a probability underflows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        link : {"auto", "probit", "contrast", "mc", "map"}, default=None
            None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)

        Raises
        ------
        ValueError
            If ``link`` is unknown.
        """
        return self._log_proba(X, link).numpy()

    def log_predictive_density(
        self, X: ArrayLike, y: ArrayLike, link: str | None = None
    ) -> NDArray:
        """log p of each row's own label: the opposite of its part of the log loss.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        y : array-like of shape (n_samples,)
            Labels that ``fit`` has seen.
        link : {"auto", "probit", "contrast", "mc", "map"}, default=None
            None takes the estimator's own.

        Returns
        -------
        ndarray of shape (n_samples,)

        Raises
        ------
        ValueError
            If ``link`` is unknown, or y does not fit X or the labels of ``fit``.
        """
        log_p, labels = self.predict_log_proba(X, link), np.asarray(column_or_1d(y))
        check_consistent_length(log_p, labels)
        self._refuse_unseen(labels)
        return log_p[np.arange(len(labels)), np.searchsorted(self.classes_, labels)]

    def leave_one_out(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        link: str | None = None,
    ) -> Bunch:
        """Predict each training row from all the others, without fitting again.

        The linear model of theorem 1 without the row's transformed target
        (:ref:`math-leave-one-out`): its features and its curvature were learned with every row. A
        diagnostic, for one factorisation.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Those that were trained on.
        y : array-like of shape (n_samples,)
        sample_weight : array-like of shape (n_samples,), default=None
            As in ``fit``. A row is left out with all its weight.
        link : {"auto", "probit", "contrast", "mc", "map"}, default=None
            None takes the estimator's own.

        Returns
        -------
        Bunch
            ``probability`` of the classes predicted without the row, of shape (n_samples,
            n_classes), and ``log_density``, its logarithm for the row's own label (n_samples,).

        Raises
        ------
        ValueError
            If the posterior is an approximation, a label unseen, or ``link`` unknown.
        numpy.linalg.LinAlgError
            If the other rows leave some direction of f undetermined in floating point.
        """
        link = self._link(link)
        y, f, V = self._left_out(X, y, sample_weight)
        log_p = log_softmax(f) if link == "map" else log_proba(link, f, V, self._draw_seed)
        own = log_p.numpy()[np.arange(len(y)), np.searchsorted(self.classes_, y)]
        return Bunch(probability=log_p.exp().numpy(), log_density=own)

    def decision_function(self, X: ArrayLike) -> NDArray:
        """Scores whose softmax (sigmoid, for two classes) is :meth:`predict_proba`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,) for two classes, (n_samples, n_classes) otherwise
            Two classes: log p₁/p₀. More: log p_k, up to a constant per row.

        Raises
        ------
        ValueError
            If ``link`` is unknown.
        """
        log_p = self._log_proba(X, None)
        if len(self.classes_) == 2:
            return (log_p[:, 1] - log_p[:, 0]).numpy()
        return log_p.numpy()

    def predict_std(self, X: ArrayLike, target: str = "p") -> NDArray:
        """Standard deviation of the classes' probabilities, or of the latent logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        target : {"p", "y", "latent"}, default="p"
            "p": of the probabilities, √diag(Λ V Λ); "y": of the labels as 0 or 1 per class, noise
            included; "latent": of the logits, √diag V.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples, n_outputs) for "latent"

        Raises
        ------
        ValueError
            If ``target`` is unknown.
        """
        check_target(target, ("y", "p", "latent"))
        if target == "latent":
            inputs = self._checked_inputs(X)
            return self._in_parts(self._result.variance, inputs).sqrt().numpy()
        parts = self.predict_uncertainty(X)
        return np.sqrt(parts.epistemic if target == "p" else parts.total)

    def predict_uncertainty(
        self, X: ArrayLike, full: bool = False, link: str | None = None
    ) -> Bunch:
        """Variance of the labels, as 0 or 1 per class, split into noise and ignorance.

        Mathematics: :ref:`math-predicting`.

        Var[y] = Λ_* + Λ_* V_* Λ_*, with Λ_* = diag p - p pᵀ at p = softmax(f), f the mean of the
        logits. That is the first order in V_*: where the mean is sure of a class, however large V_*
        is, both parts vanish. ``link="mc"`` takes the whole distribution f ~ N(f_*, V_*) instead:

            Var[y] = E[diag p - p pᵀ] + Cov(p)

        (Kwon et al. 2020, arXiv 1806.05978), at most ¼ per class together; it tells inputs of a
        kind never seen.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        full : bool, default=False
            Return the covariances between the classes, not the variances alone.
        link : {"mc"}, default=None
            None is the first order; "mc" the mean over the draws of ``predict_proba``'s link.

        Returns
        -------
        Bunch
            ``aleatoric``, ``epistemic`` and ``total``, each of shape (n_samples, n_classes), or
            (n_samples, n_classes, n_classes) if ``full``.

        Raises
        ------
        ValueError
            If ``link`` is another.
        """
        if link not in (None, "mc"):
            raise ValueError(f"link must be None or 'mc', got {link!r}.")
        inputs = self._checked_inputs(X)
        f, V = self._result.mean(inputs), self._in_parts(self._result.covariance, inputs)
        if link == "mc":
            aleatoric, epistemic = mean_uncertainty(*of_difference(f, V), self._draw_seed)
        else:
            aleatoric = of_classes(self._result.likelihood.aleatoric(f))
            epistemic = of_classes(self._result.likelihood.epistemic(f, V))
        if not full:
            aleatoric, epistemic = (t.diagonal(dim1=-2, dim2=-1) for t in (aleatoric, epistemic))
        return Bunch(
            aleatoric=aleatoric.numpy().copy(),
            epistemic=epistemic.numpy().copy(),
            total=(aleatoric + epistemic).numpy(),
        )

    def sample_y(
        self, X: ArrayLike, n_samples: int = 1, random_state: Any = 0, target: str = "y"
    ) -> NDArray:
        """Draw joint samples from the predictive distribution of the Gaussian process.

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

        Raises
        ------
        ValueError
            If ``target`` is unknown.
        """
        check_target(target, ("y", "p", "latent"))
        inputs = self._checked_inputs(X)
        generator = torch_generator(random_state)
        f = self._result.sample(inputs, n_samples, generator)
        if target == "latent":
            return np.moveaxis(f.numpy(), 0, -1)
        p = log_softmax(f).exp()
        if target == "p":
            return np.moveaxis(p.numpy(), 0, -1)
        codes = torch.multinomial(p.flatten(0, 1), 1, generator=generator)
        return self.classes_[codes.reshape(n_samples, -1).numpy().T]

    def _refuse_unseen(self, y: NDArray) -> None:
        # Values, not arrays: before numpy 1.25 arrays of text and of numbers do not compare.
        classes = self.classes_.tolist()
        unseen = sorted(set(np.unique(y).tolist()) - set(classes))
        if unseen:
            raise ValueError(
                f"y holds labels that fit has not seen: {unseen[:5]}; the classes are "
                f"{classes[:10]}."
            )

    def _link(self, link: str | None) -> str:
        """The link that is meant.

        Raises
        ------
        ValueError
            If there is no such link.
        """
        link = self.link if link is None else link
        if link == "auto":
            linearized = isinstance(resolve_inference(self.inference), LinearizedVariational)
            return "contrast" if linearized else "map"
        if link not in LINKS:
            raise ValueError(f"link must be 'auto' or one of {LINKS}, got {link!r}.")
        return link

    def _log_proba(self, X: ArrayLike, link: str | None) -> Tensor:
        """log p, of shape (n_samples, n_classes)."""
        check_is_fitted(self)
        link = self._link(link)
        inputs = self._checked_inputs(X)
        if link == "map":
            return log_softmax(self._result.outputs(inputs))
        f, V = self._result.mean(inputs), self._in_parts(self._result.covariance, inputs)
        return log_proba(link, f, V, self._draw_seed)

"""What a fitted regressor says of y: mean, variance, distribution, draws.

Mathematics: :ref:`math-predicting`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from torch import Tensor

from .._utils.random import torch_generator
from ..likelihoods import HeteroscedasticGaussian
from ..predictive import Affine, Predictive
from .base import BaseDNN2GP
from .distributional import DistributionMixin
from .options import check_target

__all__: list[str] = []


class _RegressionPredictions(DistributionMixin, BaseDNN2GP):
    """Predictions in the units of y. Not for use on its own."""

    y_mean_: NDArray
    y_scale_: NDArray

    def predict(self, X: ArrayLike, return_std: bool = False, return_cov: bool = False) -> Any:
        """Predict the mean of y, and its standard deviation or covariance on request.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        return_std : bool, default=False
            Also return the standard deviation of y: noise and ignorance, √(σ² + V).
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
        NotImplementedError
            If ``return_cov`` is asked of a likelihood without a joint covariance, as ordered
            categories: take ``sample_y``.
        """
        if return_std and return_cov:
            raise ValueError("At most one of return_std or return_cov can be requested.")
        inputs = self._checked_inputs(X)
        f = self._result.mean(inputs)
        likelihood = self._result.likelihood
        if likelihood.is_additive and not (return_std or return_cov):  # no variance is needed
            return self._shaped(likelihood.mean(f).numpy() * self.y_scale_ + self.y_mean_)
        distribution = self._distribution(f, self._variance(inputs))
        mean = self._shaped(distribution.mean)
        if return_std:
            return mean, self._shaped(np.sqrt(distribution.variance))
        if return_cov:
            return mean, self._joint_covariance(inputs, distribution)
        return mean

    def predict_std(self, X: ArrayLike, target: str = "y") -> NDArray:
        """Standard deviation of y (noise and ignorance) or of the latent f (ignorance alone).

        f is in the units of y where y is f and noise, and as the network gives it otherwise: for
        counts the logarithm of the rate. Of a noise that depends on x, f is the mean.

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
        if target == "latent":
            inputs = self._checked_inputs(X)
            return self._in_latent_units(
                self._in_parts(self._result.variance, inputs).sqrt().numpy()
            )
        return np.sqrt(self.predict_uncertainty(X).total)

    def predict_distribution(self, X: ArrayLike) -> Predictive:
        """Predict the whole distribution of y (:ref:`math-predicting`).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        Predictive
            ``mean``, ``variance``, ``log_density(y)``, ``cdf(y)`` and ``quantile(q)`` of each
            target by itself, each of shape (n_samples, n_outputs), in the units of y.

        Examples
        --------
        >>> import numpy as np
        >>> from sk_dnn2gp import DNN2GPRegressor
        >>> X = np.linspace(-3, 3, 40)[:, None]
        >>> model = DNN2GPRegressor(
        ...     hidden_layer_sizes=(5,), prior_precision=0.1, noise_std=0.1, random_state=0
        ... ).fit(X, np.sin(X[:, 0]))
        >>> low, high = model.predict_interval([[0.5]], coverage=0.9)[0]
        >>> distribution = model.predict_distribution([[0.5]])
        >>> round(distribution.cdf([[low]]).item(), 12)
        0.05
        """
        inputs = self._checked_inputs(X)
        return self._distribution(self._result.mean(inputs), self._variance(inputs))

    def leave_one_out(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Bunch:
        """Predict each training row from all the others, without fitting again.

        Exact for the linear model at the trained weights (:ref:`math-leave-one-out`), whose
        features were learned with every row: a diagnostic of rows and of networks at one prior, and
        no substitute for held-out data. Costs one factorisation.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Those that were trained on.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), default=None
            As in ``fit``. A row is left out with all its weight.

        Returns
        -------
        Bunch
            ``mean`` and ``std`` of y predicted without its row, ``residual`` (y less that mean) and
            ``log_density`` of y, each of shape (n_samples,) or (n_samples, n_outputs), in the units
            of y.

        Raises
        ------
        ValueError
            If the posterior is an approximation.
        numpy.linalg.LinAlgError
            If the other rows leave some direction of f undetermined in floating point.

        Examples
        --------
        >>> import numpy as np
        >>> from sk_dnn2gp import DNN2GPRegressor
        >>> X = np.linspace(-3, 3, 40)[:, None]
        >>> y = np.sin(X[:, 0])
        >>> y[7] += 2.0  # a wrong row
        >>> model = DNN2GPRegressor(
        ...     hidden_layer_sizes=(5,), prior_precision=0.1, noise_std=0.3, random_state=0
        ... ).fit(X, y)
        >>> int(model.leave_one_out(X, y).log_density.argmin())
        7
        """
        y, mean, covariance = self._left_out(X, y, sample_weight)
        together = self._result.likelihood.outputs_per_target > 1
        V = covariance if together else covariance.diagonal(dim1=1, dim2=2)
        distribution = self._distribution(mean, V)
        columns = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        parts = {
            "mean": distribution.mean,
            "std": np.sqrt(distribution.variance),
            "residual": columns - distribution.mean,
            "log_density": distribution.log_density(columns),
        }
        return Bunch(**{name: self._shaped(value) for name, value in parts.items()})

    def _drawn(self, X: ArrayLike, n_samples: int, random_state: Any, target: str) -> NDArray:
        inputs = self._checked_inputs(X)
        generator = torch_generator(random_state)
        draws = self._result.sample(inputs, n_samples, generator)
        if target == "y":
            draws = self._result.likelihood.sample(draws, generator)
        draws = draws[..., : len(self.y_scale_)]
        in_units = np.moveaxis(draws.numpy() * self.y_scale_ + self.y_mean_, 0, -1)
        return self._shaped(in_units)

    def _variance(self, inputs: Tensor) -> Tensor:
        """What the likelihood's predictive takes: covariances of several outputs of a target."""
        jointly = self._result.likelihood.outputs_per_target > 1
        V = self._result.covariance if jointly else self._result.variance
        return self._in_parts(V, inputs)

    def _distribution(self, f: Tensor, V: Tensor) -> Predictive:
        """Of y in its units, where f has this mean and such a V of :meth:`_variance`."""
        return Affine(self._result.likelihood.predictive(f, V), self.y_mean_, self.y_scale_)

    def _joint_covariance(self, inputs: Tensor, distribution: Predictive) -> NDArray:
        K, n = len(self.y_scale_), len(inputs)
        joint = self._result.joint_covariance(inputs).numpy()
        outputs = joint.reshape(n, len(joint) // n, n, -1)
        V = np.einsum("ikjk->ijk", outputs)[..., :K]
        return self._squeezed_last(distribution.joint_covariance(V))

    def _in_latent_units(self, std: NDArray) -> NDArray:
        """In the units of y, of the means alone."""
        return self._shaped(std[:, : len(self.y_scale_)] * self.y_scale_)

    def _squeezed_last(self, values: NDArray) -> NDArray:
        return values[..., 0] if self._one_dimensional else values

    def _in_units(self, outputs: NDArray) -> NDArray:
        K = len(self.y_scale_)
        means = outputs[:, :K] * self.y_scale_[:, None] + self.y_mean_[:, None]
        if outputs.shape[1] == K:
            return means
        assert isinstance(self._result.likelihood, HeteroscedasticGaussian)
        level = self._result.likelihood.scale * self.y_scale_  # s = level e^g
        return np.concatenate([means, outputs[:, K:] + np.log(level)[:, None]], axis=1)

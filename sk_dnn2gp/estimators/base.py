"""What both estimators share: arrays to tensors once, the walk of a fit, the way back.

A fit walks through the rooms of the package in one direction: checked arrays become tensors;
``training`` (with ``tuning`` for "auto") minimises the MAP objective; ``linearize`` turns the
network into a linear map; ``dual`` makes theorem 1's linear model; ``posterior`` and
``evidence`` finish.
"""

from __future__ import annotations

import inspect
import math
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from .._utils.random import draw_seed, torch_generator
from ..evidence.prior_groups import precisions
from ..evidence.search import Tuning
from ..evidence.spectrum import EvidenceSpectrum, log_marginal_likelihood
from ..exceptions import ApproximationWarning
from ..inference.laplace import FittedNetwork, fit_network
from ..inference.variational import VariationalSettings, fit_variational
from ..kernels import NTKKernel
from ..likelihoods import Likelihood
from ..linear_model import LinearModel
from ..networks import ACTIVATIONS
from ..posterior import Posterior, make_posterior
from ..training.first_order import Objective, SolverSettings, TrainingData
from ..training.source import NetworkSource
from .checks import check_prior_groups, check_variational, warn_of_scales

__all__: list[str] = []


class BaseDNN2GP(BaseEstimator):
    """The walk that both estimators share. Not for use on its own."""

    _parameter_constraints: dict = {
        "net": "no_validation",
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "prior_precision": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "prior_groups": [StrOptions({"all", "layer", "feature"})],
        "inference": [StrOptions({"laplace", "vi"})],
        "vi_epochs": [Interval(Integral, 1, None, closed="left")],
        "mc_samples": [Interval(Integral, 1, None, closed="left")],
        "posterior": [StrOptions({"full", "diag", "last_layer"})],
        "solver": [StrOptions({"gauss-newton", "adam", "lbfgs", "sgd"}), HasMethods(["step"])],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "learning_rate_schedule": [StrOptions({"constant", "cosine", "plateau"})],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "evidence_interval": [Interval(Integral, 1, None, closed="left")],
        "n_restarts": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "memory_limit": [None, Interval(Real, 0, None, closed="neither")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # ------------------------------------------------------------------ arrays to tensors

    def _checked_training_set(
        self, X: Any, y: Any, sample_weight: ArrayLike | None, **check: Any
    ) -> tuple[NDArray, NDArray, NDArray]:
        """X, y and weights as arrays, rows of weight zero left out."""
        X, y = validate_data(
            self,
            X,
            y,
            dtype="numeric" if self.net is not None else np.float64,
            allow_nd=self.net is not None,
            ensure_min_samples=2,
            y_numeric=check.pop("y_numeric", True),
            **check,
        )
        if sample_weight is None:
            weight = np.ones(len(X))
        else:
            weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
            if len(X) < 2:
                raise ValueError(
                    f"sample_weight leaves {len(X)} sample(s) with a positive weight; 2 are needed."
                )
        warn_of_scales(X)
        return X, y, weight

    def set_params(self, **params: Any) -> BaseDNN2GP:
        """Set parameters, those of a skorch net by ``net__...``.

        Parameters
        ----------
        **params : dict
            Estimator parameters.

        Returns
        -------
        self : estimator

        Raises
        ------
        ValueError
            If ``net__...`` is given and ``net`` is no estimator that has parameters.
        """
        nested = [name for name in params if name.startswith("net__")]
        if nested and not hasattr(params.get("net", self.net), "set_params"):
            raise ValueError(
                f"{nested[0]!r} needs net to be a skorch NeuralNet, and net is "
                f"{params.get('net', self.net)!r}. With net=None the network is set by "
                "hidden_layer_sizes and activation."
            )
        return super().set_params(**params)

    def _checked_inputs(self, X: Any) -> Tensor:
        """Test inputs as the tensor that the linearisation takes."""
        check_is_fitted(self)
        X = validate_data(
            self,
            X,
            reset=False,
            dtype="numeric" if self.net is not None else np.float64,
            allow_nd=self.net is not None,
        )
        return self._as_inputs(X)

    def _as_inputs(self, X: NDArray) -> Tensor:
        return input_tensor(X).to(self.device)

    # ------------------------------------------------------------------ the walk of a fit

    def _fit_network(
        self, X: NDArray, y: Tensor, weight: NDArray, likelihood: Likelihood, n_outputs: int
    ) -> None:
        """Train, linearise, take the posterior; set every fitted attribute."""
        tuning = self._tuning(self._posterior_rows(len(X)))
        prior = 1.0 if self.prior_precision == "auto" else float(self.prior_precision)
        previous = getattr(self, "net_", None) if self.warm_start else None
        if previous is not None and tuning.prior_precision:
            prior = self.prior_precision_
        data = TrainingData(input_tensor(X), y, torch.tensor(weight))
        seed = draw_seed(self.random_state)
        if self.inference == "vi":
            check_variational(self, tuning)
        check_prior_groups(self, tuning)
        fitted = fit_network(
            NetworkSource(self.net, self.hidden_layer_sizes, self.activation, n_outputs),
            data,
            Objective(likelihood, prior, len(X)),
            tuning,
            self._settings(),
            self.n_restarts,
            seed,
            previous,
            self.prior_groups,
        )
        if self.inference == "vi":
            settings = VariationalSettings(self.vi_epochs, self.mc_samples, self.batch_size)
            fitted, self.elbo_curve_ = fit_variational(
                fitted, data, tuning, settings, seed, self.device
            )
        self._set_fitted(fitted, weight)

    def _posterior_rows(self, n_samples: int) -> Tensor | None:
        """Rows that the posterior is conditioned on, drawn at random; None for all of them."""
        wanted = getattr(self, "posterior_samples", None)
        self.posterior_indices_ = None
        if wanted is None or wanted >= n_samples:
            return None
        chosen = np.random.RandomState(draw_seed(self.random_state)).permutation(n_samples)
        self.posterior_indices_ = np.sort(chosen[:wanted])
        return torch.tensor(self.posterior_indices_)

    @property
    def _structure(self) -> str:
        """The posterior's structure: the classifier's independent outputs are one of their own."""
        independent = getattr(self, "outputs", "joint") == "independent"
        return "independent" if independent else self.posterior

    def _tuning(self, rows: Tensor | None) -> Tuning:
        return Tuning(
            rows=rows,
            prior_precision=self.prior_precision == "auto",
            noise_std=getattr(self, "noise_std", None) == "auto",
            structure=self._structure,
            interval=self.evidence_interval,
            memory_limit=self.memory_limit,
        )

    def _settings(self) -> SolverSettings:
        names = inspect.signature(SolverSettings).parameters
        return SolverSettings(**{name: getattr(self, name) for name in names})

    def _set_fitted(self, fitted: FittedNetwork, weight: NDArray) -> None:
        model = fitted.posterior.model
        self.module_, self.net_ = fitted.module, fitted.net
        self.prior_precision_ = fitted.objective.prior_precision
        names = getattr(self, "feature_names_in_", None)
        names = [f"x{i}" for i in range(self.n_features_in_)] if names is None else list(names)
        self.prior_precisions_ = precisions(fitted.module, self.prior_precision_, names)
        self._likelihood = fitted.objective.likelihood
        self.linear_model_, self.posterior_ = model, fitted.posterior
        rows = self.posterior_indices_
        self._fit_sample_weight = weight if rows is None else weight[rows]
        self.effective_dimension_ = fitted.posterior.effective_dimension
        self.gradient_norm_ = float(fitted.gradient.norm())
        self.newton_decrement_ = math.nan
        if self._structure != "independent":  # which has no common A
            step = fitted.posterior.solve(fitted.gradient)
            self.newton_decrement_ = max(0.0, float(fitted.gradient @ step))
        self.loss_curve_, self.n_iter_ = fitted.loss_curve, fitted.n_iter
        evidence = self._evidence(fitted.posterior)
        offset = self._evidence_offset(self._fit_sample_weight)
        self.log_marginal_likelihood_value_ = evidence + offset
        self._spectrum: EvidenceSpectrum | None = None

    def _evidence(self, posterior: Posterior) -> float:
        """Of the default kind; for variational inference that of the converged GP at μ (MATH 5)."""
        if self.inference != "vi":
            return log_marginal_likelihood(posterior)
        try:
            process = make_posterior(posterior.model, "full", self.memory_limit)
        except MemoryError as error:
            warnings.warn(
                f"The evidence of the converged process is not computed. {error}",
                ApproximationWarning,
                stacklevel=5,
            )
            return math.nan
        return log_marginal_likelihood(process, "dual")

    # ------------------------------------------------------------------ the Gaussian process

    @property
    def kernel_(self) -> NTKKernel:
        """The neural tangent kernel J Jᵀ/δ of the trained network, a scikit-learn kernel."""
        check_is_fitted(self)
        return NTKKernel(
            self.module_, prior_precision=self.prior_precision_, memory_limit=self.memory_limit
        )

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
        """Evidence at the trained weights, of the training set or of other data (MATH 3).

        Parameters
        ----------
        theta : array-like of shape (n_hyperparameters,), default=None
            log of the hyperparameters: (log δ, log σ) for a regressor, (log δ,) for a classifier.
            None takes the fitted ones. The weights stay as they are.
        eval_gradient : bool, default=False
            Also return the gradient in theta, at fixed weights.
        X, y : array-like, default=None
            Other data; None is the training set.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows of ``X``.
        kind : {"laplace", "dual"}, default=None
            ``dual`` is the paper's evidence of the transformed targets. None is "laplace", or
            "dual" with ``inference="vi"``, whose weights are no minimum of the loss.

        Returns
        -------
        log_likelihood : float
            In the units of y.
        gradient : ndarray of shape (n_hyperparameters,), optional

        Raises
        ------
        ValueError
            If theta has the wrong length, one of X and y is missing, or ``kind="dual"`` is asked of
            independent outputs.
        """
        check_is_fitted(self)
        if kind == "dual" and self._structure == "independent":
            raise ValueError(
                "kind='dual' is not defined for outputs='independent', which have no common "
                "posterior of the weights. Use kind='laplace' or outputs='joint'."
            )
        if (X is None) != (y is None):
            raise ValueError("X and y must be given together, or both left out.")
        default = "dual" if self.inference == "vi" else "laplace"
        kind = default if kind is None else kind
        if X is None:
            if theta is None and not eval_gradient and kind == default:
                return self.log_marginal_likelihood_value_
            spectrum, weight = self._training_spectrum(), self._fit_sample_weight
        else:
            spectrum, weight = self._spectrum_of(X, y, sample_weight)
        theta = self._checked_theta(theta)
        hyperparameters = np.exp(theta)
        value = spectrum.log_marginal_likelihood(*hyperparameters, kind=kind)  # type: ignore[misc]
        value += self._evidence_offset(weight)
        if not eval_gradient:
            return value
        gradient = spectrum.gradient(*hyperparameters, kind=kind)  # type: ignore[misc]
        return value, np.array(gradient[: len(theta)])

    def sample_network(self, X: ArrayLike, n_samples: int = 1, random_state: Any = 0) -> NDArray:
        """Outputs of the network itself with weights drawn from q(w): not the Gaussian process.

        The paper's baselines DNN-Laplace and DNN-VI (its figure 3), for comparison: far from the
        mean weights the network is not its linearisation.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features) or (n_rows, ...)
        n_samples : int, default=1
        random_state : int, RandomState or None, default=0

        Returns
        -------
        ndarray of shape (n_rows, n_outputs, n_samples)
            In the units of y, or logits.

        Raises
        ------
        ValueError
            If the posterior is held in function space, where weights are not drawn.
        """
        inputs = self._checked_inputs(X)
        if not hasattr(self.posterior_, "sample_weights"):
            raise ValueError(
                f"The posterior is a {type(self.posterior_).__name__}, which draws functions and "
                "not weights; use posterior='diag', or fewer weights than n_samples * n_outputs."
            )
        steps = self.posterior_.sample_weights(n_samples, torch_generator(random_state))
        linearization = self.linear_model_.linearization
        module, names = linearization.module, linearization.parameter_names
        own = dict(module.named_parameters())
        draws = []
        for w in (self.linear_model_.weights + steps).split(1):
            pieces = w[0].split(list(linearization.parameter_sizes))
            weights = {
                n: piece.to(own[n]).view_as(own[n]) for n, piece in zip(names, pieces, strict=True)
            }
            with torch.no_grad():
                f = torch.func.functional_call(module, weights, (inputs.to(linearization.dtype),))
            draws.append(f.double().cpu())
        return self._in_units(torch.stack(draws, dim=-1).numpy())

    def _in_units(self, outputs: NDArray) -> NDArray:
        """Network outputs (n_rows, n_outputs, n_samples) in the units that users see."""
        return outputs

    def _training_spectrum(self) -> EvidenceSpectrum:
        if self._spectrum is None:
            self._spectrum = self._spectrum_from(self.linear_model_, self._fit_sample_weight)
        return self._spectrum

    def _spectrum_from(self, model: LinearModel, weight: NDArray) -> EvidenceSpectrum:
        return EvidenceSpectrum.from_model(
            model,
            getattr(self._likelihood, "noise_std", None),
            float(weight.sum()) * model.whitened_residual.shape[1],
            structure=self._structure,
        )

    def _spectrum_of(
        self, X: Any, y: Any, sample_weight: ArrayLike | None
    ) -> tuple[EvidenceSpectrum, NDArray]:
        """Spectrum of the linear model of other data at the trained weights."""
        X, y = validate_data(
            self,
            X,
            y,
            reset=False,
            dtype="numeric" if self.net is not None else np.float64,
            allow_nd=self.net is not None,
            multi_output=True,
        )
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        model = LinearModel.from_laplace(
            self.linear_model_.linearization,
            input_tensor(X).to(self.linear_model_.X),
            self._encoded(y),
            self._likelihood,
            self.prior_precision_,
            torch.tensor(weight),
        )
        return self._spectrum_from(model, weight), weight

    def _checked_theta(self, theta: ArrayLike | None) -> NDArray:
        fitted = np.log(self._hyperparameters())
        if theta is None:
            return fitted
        theta = np.asarray(theta, dtype=np.float64)
        if theta.shape != fitted.shape or not np.isfinite(theta).all():
            raise ValueError(
                f"theta must hold the logarithms of {len(fitted)} hyperparameter(s), all finite; "
                f"got {theta!r}."
            )
        return theta

    def _outputs(self, inputs: Tensor) -> Tensor:
        """f(X) in float64."""
        return self.linear_model_.linearization.outputs(inputs).double().cpu()

    def _latent_covariance(self, inputs: Tensor) -> Tensor:
        """V_* per example, of shape (n_samples, n_outputs, n_outputs), in float64."""
        return self.posterior_.covariance(inputs).cpu()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = self.net is not None
        return tags


def input_tensor(X: NDArray) -> Tensor:
    """Copy to a tensor: float32 as it is, float64, or int64 for whole numbers (token indices)."""
    whole = np.issubdtype(X.dtype, np.integer)
    dtype = np.int64 if whole else np.float32 if X.dtype == np.float32 else np.float64
    return torch.tensor(np.ascontiguousarray(X, dtype=dtype))

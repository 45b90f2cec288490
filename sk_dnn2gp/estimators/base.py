"""What both estimators share: arrays to tensors once, the walk of a fit, the way back.

A fit walks through the rooms of the package in one direction: checked arrays become tensors and
strings become objects; ``inference`` trains the network (``training``), chooses δ and σ
(``evidence``) and gives one Result, from which everything that an estimator shows is read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags, check_consistent_length, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_sample_weight,
    _check_y,
    check_is_fitted,
    validate_data,
)
from skorch import NeuralNet
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader, Dataset

from .._utils.checkpoint import Checkpoint, digest
from .._utils.documentation import Documented
from .._utils.progress import Bar, CallbackSupport, Progress
from .._utils.random import draw_seed, torch_generator
from .._utils.rows import Loaded, Streamed, as_rows, is_mapped, moments, rows_where
from .._utils.tensor_file import read, write
from ..evidence import EvidenceSpectrum, leave_one_out
from ..evidence.freedom import Freedom
from ..inference import LinearizedVariational, Result
from ..inference.laplace import Task, fit_laplace
from ..inference.linearized import fit_linearized
from ..inference.variational import fit_variational
from ..kernels import NTKKernel
from ..likelihoods import Gaussian, Likelihood
from ..linear_model import LinearModel
from ..networks import ACTIVATIONS
from ..posterior import Full, IndependentOutputs
from ..training.first_order import shown_as_net
from ..training.objective import TrainingData
from ..training.source import NetworkSource, of_first_half
from .options import SHORTHANDS, Options, options_of, warn_of_scales
from .storage import ATTRIBUTES, FitWriter, content_of_fit, fill

__all__: list[str] = []

# Rows of a part of a prediction, beyond which ``verbose`` shows a bar.
_MANY = 1000
# Fitted attributes that do not end like one, or are of the result.
_FITTED = {"_result", "_spectrum", "_net", *ATTRIBUTES}


class BaseDNN2GP(Documented, CallbackSupport, BaseEstimator):
    """The walk that both estimators share. Not for use on its own."""

    _parameter_constraints: dict = {
        "net": "no_validation",
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "prior_precision": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "prior_groups": "no_validation",
        "inference": "no_validation",
        "posterior": "no_validation",
        "solver": "no_validation",
        "n_restarts": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # ---------------------------------------------------------------------------- parameters

    def set_params(self, **params: Any) -> BaseDNN2GP:
        """Set parameters; those of an object by ``posterior__...``, ``solver__...``, and so on.

        Where the object is still a string, it is made first.

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
            If ``net__...`` is given and ``net`` is no estimator that has parameters, or a string
            stands for no one object.
        """
        for name in {key.partition("__")[0] for key in params if "__" in key}:
            owner = params.get(name, getattr(self, name, None))
            if name == "net" and not hasattr(owner, "set_params"):
                raise ValueError(
                    f"'net__...' needs net to be a skorch NeuralNet, and net is {owner!r}. With "
                    "net=None the network is set by hidden_layer_sizes and activation."
                )
            if name in SHORTHANDS and isinstance(owner, str):
                made = SHORTHANDS[name](owner)
                if made is None:
                    raise ValueError(
                        f"'{name}__...' needs {name} to be one object, and {owner!r} may become "
                        f"several: give {name} by name first."
                    )
                params = {name: made, **{k: v for k, v in params.items() if k != name}}
        return super().set_params(**params)

    # --------------------------------------------------------------------- arrays to tensors

    def _validated(self, X: Any, y: Any = "no_validation", **check: Any) -> Any:
        """X (and y) checked as scikit-learn does; rows in a file or a Dataset are left there."""
        if isinstance(X, Mapping):
            raise ValueError(
                f"X is a dict of {list(X)}, and inputs here are one array: put its parts side by "
                "side, and take them apart in the network's forward."
            )
        own = self.net is not None
        if isinstance(X, (Dataset, DataLoader)):
            return self._validated_rows(Loaded(X, self._loader()), y, own, **check)
        mapped = is_mapped(X)
        numbers = "numeric" if own or mapped else np.float64
        checked = validate_data(self, X, y, dtype=numbers, allow_nd=own, **check)
        if not mapped:
            return checked
        alone = isinstance(y, str)
        return Streamed.of(checked) if alone else (Streamed.of(checked[0]), checked[1])

    def _validated_rows(self, loaded: Loaded, y: Any, own: bool, **check: Any) -> Any:
        """Rows of a Dataset, and its own y where None is given: the first row stands for all."""
        rows = Streamed.of(loaded)
        reset = check.get("reset", True)
        validate_data(self, rows[:1].numpy(), dtype="numeric", allow_nd=own, reset=reset)
        if isinstance(y, str):
            return rows
        y = _check_y(
            loaded.targets() if y is None else y,
            multi_output=check.get("multi_output", False),
            y_numeric=check.get("y_numeric", False),
            estimator=self,
        )
        check_consistent_length(rows, y)
        return rows, y

    def _loader(self) -> Any:
        """How a skorch net of the user's reads a Dataset when it predicts."""
        net = self.net.estimator if self._is_frozen else self.net
        return partial(net.get_iterator, training=False) if isinstance(net, NeuralNet) else None

    def _checked_training_set(
        self, X: Any, y: Any, sample_weight: ArrayLike | None, **check: Any
    ) -> tuple[Any, NDArray, NDArray]:
        """X, y and weights."""
        X, y = self._validated(
            X, y, ensure_min_samples=2, y_numeric=check.pop("y_numeric", True), **check
        )
        if sample_weight is None:
            weight = np.ones(len(X))
        else:
            weight = _check_sample_weight(
                sample_weight, y, dtype=np.float64, ensure_non_negative=True
            )
        return X, y, weight

    @staticmethod
    def _without_zeros(X: Any, y: NDArray, weight: NDArray) -> tuple[Any, NDArray, NDArray]:
        """The rows of positive weight."""
        X, y, weight = (rows_where(rows, weight > 0) for rows in (X, y, weight))
        if len(X) < 2:
            raise ValueError(
                f"sample_weight and class_weight leave {len(X)} sample(s) with a positive weight; "
                "2 are needed."
            )
        return X, y, weight

    def _checked_inputs(self, X: Any) -> Any:
        """Test inputs as the rows that the linearisation takes."""
        check_is_fitted(self)
        return self._as_inputs(self._validated(X, reset=False))

    def _as_inputs(self, X: Any) -> Any:
        """On the network's device; of the kind of number that it was trained with."""
        trained = self._result.model.X
        tensor = as_rows(X)
        if trained.is_floating_point() and not tensor.is_floating_point():
            tensor = tensor.to(trained.dtype)
        return tensor.to(trained.device)

    def _in_parts(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """``function`` of all inputs; of many, where ``verbose``, a part at a time under a bar."""
        if not self.verbose or len(inputs) <= _MANY:
            return function(inputs)
        bar, parts = Bar("prediction", True, len(inputs)), []
        for part in gen_batches(len(inputs), _MANY):
            parts.append(function(inputs[part]))
            bar.add(len(parts[-1]))
        bar.end()
        return torch.cat(parts)

    # -------------------------------------------------------------------- the walk of a fit

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Leave the estimator as it was if the block fails or is interrupted."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before  # at once: no second signal can come between
            raise

    @contextmanager
    def _fitting(self, X: Any, y: Any, sample_weight: Any) -> Iterator[Progress]:
        """The block is the fit: told to callbacks where scikit-learn has them, and all or none."""
        context, told = None, {"X": X, "y": y, "metadata": {"sample_weight": sample_weight}}
        if hasattr(self, "_init_callback_context"):
            context = self._init_callback_context(max_subtasks=None)
            context.call_on_fit_task_begin(estimator=self, **told)
        with self._all_or_none(), torch.inference_mode(False), torch.enable_grad():
            yield Progress(self.verbose, self, context)
        if context is not None:
            context.call_on_fit_task_end(estimator=self, **told, reconstruction_attributes={})

    def _opened(
        self,
        path: Any,
        X: Any,
        y: Tensor,
        weight: NDArray,
        previous: Any,
        likelihood: Likelihood,
    ) -> Checkpoint:
        """The checkpoint of this very fit; one that keeps nothing where there is no path."""
        if path is None:
            return Checkpoint()
        if not isinstance(self.random_state, Integral):
            raise ValueError(
                f"checkpoint={path!r} needs random_state to be a whole number, and it is "
                f"{self.random_state!r}: a fit that goes on must draw what the one before it drew."
            )
        if isinstance(self.net, NeuralNet):
            raise ValueError(
                f"checkpoint={path!r}, and net is a skorch net, whose own callbacks keep its "
                "training (skorch.callbacks.Checkpoint). Leave checkpoint out."
            )
        if not isinstance(X, Tensor) or likelihood.outputs_per_target > 1:
            what = "a noise that varies" if isinstance(X, Tensor) else "rows in a file or a Dataset"
            raise ValueError(f"checkpoint={path!r} does not go with {what}. Leave checkpoint out.")
        states = {"net": self.net, "the last fit": previous}
        given = self.get_params(deep=False).items()
        identity = {
            "the estimator": type(self).__name__,
            "the likelihood": repr(likelihood),
            **{name: repr(value) for name, value in given if name != "verbose"},
            **{name: digest(v.state_dict()) for name, v in states.items() if isinstance(v, Module)},
            **{name: digest(v) for name, v in (("X", X), ("y", y), ("sample_weight", weight))},
        }
        return Checkpoint(path, identity)

    def _fit_result(
        self,
        X: Any,
        y: Tensor,
        weight: NDArray,
        likelihood: Likelihood,
        n_outputs: int,
        options: Options,
        progress: Progress,
        checkpoint: Any,
        free_noise: bool = False,
    ) -> Result:
        """Train, choose δ and σ, find q."""
        n_outputs = n_outputs * likelihood.outputs_per_target
        freedom = Freedom(
            self.prior_precision == "auto", free_noise and isinstance(likelihood, Gaussian)
        )
        standardize = None
        if self.net is None:
            standardize = _mean_and_scale(X, weight)
        else:
            warn_of_scales(X)
        source = NetworkSource(
            self.net, self.hidden_layer_sizes, self.activation, n_outputs, standardize
        )
        tensor = source.inputs(as_rows(X))
        previous = self._previous(source, tensor)
        prior = 1.0 if freedom.prior_precision else float(self.prior_precision)
        if previous is not None and freedom.prior_precision:
            prior = self.prior_precision_
        task = Task(
            source=source,
            data=TrainingData(tensor, y, torch.tensor(weight)),
            likelihood=likelihood,
            prior_precision=prior,
            freedom=freedom,
            specification=options.posterior,
            solver=options.solver,
            n_restarts=self.n_restarts,
            seed=draw_seed(self.random_state),
            device=self.device,
            previous=previous,
            groups=self.prior_groups,
            feature_names=self._feature_names(),
            encode=lambda y: self._targets(y, n_outputs),
            progress=progress,
            checkpoint=self._opened(checkpoint, tensor, y, weight, previous, likelihood),
        )
        progress.offset = self._evidence_offset(weight if task.rows is None else weight[task.rows])
        result = fit_laplace(task)
        if options.is_variational:
            result = fit_variational(task, result, options.inference)
        if isinstance(options.inference, LinearizedVariational):
            with progress.stage("linearized variational") as stage:
                result = fit_linearized(task, result, options.inference)
                stage.evidence = result.evidence
        task.checkpoint.remove()
        return result

    def _previous(self, source: NetworkSource, X: Tensor) -> Any:
        """The network to go on with, under ``warm_start``."""
        if not self.warm_start or not hasattr(self, "_result"):
            return None
        if not source.same_architecture(self._result.module, X):
            raise ValueError(
                "warm_start=True goes on with the network of the last fit, and hidden_layer_sizes, "
                "the number of features or that of outputs has changed since: set "
                "warm_start=False, or clone the estimator."
            )
        return self._result.module

    def _feature_names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        if names is not None:
            return list(names)
        return [f"x{i}" for i in range(getattr(self, "n_features_in_", 0))]

    def _show(self, result: Result, weight: NDArray) -> None:
        """Set every fitted attribute from the result."""
        rows = result.posterior_indices
        self._result = result
        self._fit_sample_weight = weight if rows is None else weight[rows]
        self._spectrum: EvidenceSpectrum | None = None
        self.module_, self._net = result.module, result.net
        self.solver_, self.converged_ = result.solver, result.converged
        self.prior_precision_ = result.prior_precision
        self.prior_precisions_ = dict(result.prior_precisions)
        self.linear_model_, self.posterior_ = result.model, result.posterior
        self.posterior_indices_ = rows
        self.effective_dimension_ = result.posterior.effective_dimension
        self.gradient_norm_ = float(result.gradient.norm())
        self.newton_decrement_ = result.newton_decrement
        self.loss_curve_, self.n_iter_ = result.loss_curve, result.n_iter
        self.elbo_curve_ = result.elbo_curve
        offset = self._evidence_offset(self._fit_sample_weight)
        self.log_marginal_likelihood_value_ = result.evidence + offset

    @property
    def net_(self) -> NeuralNet:
        """A fitted skorch net around the network: what trained it, or one with the same history."""
        check_is_fitted(self)
        if self._net is None:  # its optimiser draws in much of torch: made when it is asked for
            result = self._result
            device = result.model.X.device
            self._net = shown_as_net(result.module, result.likelihood, result.loss_curve, device)
        return self._net

    def __getstate__(self) -> dict[str, Any]:
        """Of a fitted default network numbers and text alone, which skops takes as pickle does."""
        state = super().__getstate__()
        if self.net is not None or "_result" not in state:
            return state
        writer, stream = FitWriter(), io.BytesIO()
        try:
            write(stream, content_of_fit(self, writer), writer.tensors)
        except ValueError:  # a likelihood or labels of the user's own classes
            return state
        public = {n: v for n, v in state.items() if not n.endswith("_") and n not in _FITTED}
        return {**public, "_stored": np.frombuffer(stream.getvalue(), dtype=np.uint8)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        stored = state.get("_stored")
        super().__setstate__({name: value for name, value in state.items() if name != "_stored"})
        if stored is not None:
            fill(self, *read(io.BytesIO(stored.tobytes())))

    # ----------------------------------------------------------------- the Gaussian process

    @property
    def kernel_(self) -> NTKKernel:
        """The neural tangent kernel J Jᵀ/δ of the trained network, a scikit-learn kernel.

        Of a network with a noise that depends on x, the kernel of its means.

        Raises
        ------
        AttributeError
            If the posterior is not that of the whole network with one δ: its process has another
            kernel.
        """
        check_is_fitted(self)
        self._require_network_process("kernel_", AttributeError)
        network = self.module_
        if self._result.likelihood.outputs_per_target > 1:
            network = of_first_half(network, self.linear_model_.noise_factor.shape[1] // 2)
        return NTKKernel(network, prior_precision=self.prior_precision_)

    def _require_network_process(self, what: str, error: type[Exception] = ValueError) -> None:
        """Refuse what holds for the process of the whole network's tangent kernel alone."""
        if not options_of(self, hasattr(self, "classes_")).posterior.is_network_process:
            raise error(
                f"{what} is of the process whose kernel is the whole network's tangent kernel; "
                f"posterior={self.posterior!r} is another process. Use posterior='full'."
            )
        # The noise's head has a δ of its own, and no part in the kernel of the means.
        if set(self.prior_precisions_) - {"noise"} != {"all"}:
            raise error(
                f"{what} is of one prior precision for all weights, and prior_groups="
                f"{self.prior_groups!r} chose {len(self.prior_precisions_)}."
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
        """Evidence at the trained weights, of the training set or of other data (math-evidence).

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
            If theta has the wrong length, one of X and y is missing, or ``kind="dual"`` is asked of
            independent outputs.
        """
        check_is_fitted(self)
        default = self._result.evidence_kind
        kind = default if kind is None else kind
        if kind == "dual" and isinstance(self._options().posterior, IndependentOutputs):
            raise ValueError(
                "kind='dual' is not defined for posterior='independent', whose outputs have no "
                "common posterior of the weights. Use kind='laplace' or posterior='full'."
            )
        if (X is None) != (y is None):
            raise ValueError("X and y must be given together, or both left out.")
        if X is None:
            if theta is None and not eval_gradient and kind == default:
                return self.log_marginal_likelihood_value_
            spectrum, weight = self._training_spectrum(), self._fit_sample_weight
        else:
            spectrum, weight = self._spectrum_of(X, y, sample_weight)
        theta, offset = self._checked_theta(theta), self._evidence_offset(weight)
        points = np.exp(np.atleast_2d(theta))
        values = np.array([spectrum.log_marginal_likelihood(*at, kind=kind) for at in points])  # type: ignore[misc]
        value = values + offset if theta.ndim == 2 else float(values[0]) + offset
        if not eval_gradient:
            return value
        slopes = [spectrum.gradient(*at, kind=kind)[: len(at)] for at in points]  # type: ignore[misc]
        return value, np.array(slopes).reshape(theta.shape)

    def _options(self) -> Options:
        return options_of(self, hasattr(self, "classes_"))

    def _training_spectrum(self) -> EvidenceSpectrum:
        if self._spectrum is None:
            self._spectrum = self._spectrum_from(self.linear_model_, self._fit_sample_weight)
        return self._spectrum

    def _spectrum_from(self, model: LinearModel, weight: NDArray) -> EvidenceSpectrum:
        """Of the posterior whose evidence is reported: that of the process at μ for VI."""
        options = self._options()
        specification = Full() if options.is_variational else options.posterior
        likelihood = self._result.likelihood
        return EvidenceSpectrum.from_posterior(
            specification.build(model),
            likelihood.sigma,
            float(weight.sum()) * model.whitened_residual.shape[1],
            self.prior_precision_,
        )

    def _spectrum_of(
        self, X: Any, y: Any, sample_weight: ArrayLike | None
    ) -> tuple[EvidenceSpectrum, NDArray]:
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
            If the outputs are independent, which have no common posterior of the weights.
        """
        inputs = self._checked_inputs(X)
        generator = torch_generator(random_state)
        draws = self._result.sample_network(inputs, n_samples, generator)
        return self._in_units(draws.permute(1, 2, 0).numpy())

    def _in_units(self, outputs: NDArray) -> NDArray:
        """Network outputs (n_rows, n_outputs, n_samples) in the units that users see."""
        return outputs

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = self.net is not None
        return tags

    @property
    def _is_frozen(self) -> bool:
        return isinstance(self.net, FrozenEstimator)


def _mean_and_scale(X: Any, weight: NDArray) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of the features; 1 where one is constant."""
    mean, scale = moments(X, weight)
    constant = scale <= 10 * np.finfo(float).eps * np.maximum(np.abs(mean), 1e-300)
    return torch.tensor(mean), torch.tensor(np.where(constant, 1.0, scale))

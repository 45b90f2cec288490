"""What both estimators share: arrays to tensors once, the walk of a fit, the way back.

A fit walks through the rooms of the package in one direction: checked arrays become tensors and
strings become objects; ``inference`` trains the network (``training``), chooses δ and σ
(``evidence``) and gives one Result, from which everything that an estimator shows is read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from torch import Tensor
from torch.nn import Module

from .._utils.checkpoint import Checkpoint, digest
from .._utils.documentation import Documented
from .._utils.interrupts import all_or_none
from .._utils.parallel import end_with_parent
from .._utils.progress import CallbackSupport, Progress
from .._utils.random import draw_seed, torch_generator
from .._utils.rows import as_rows, moments
from .._utils.tensor_file import read, write
from .._utils.warn import warn
from ..evidence.freedom import Freedom
from ..inference import SWAG, LinearizedVariational, Result
from ..inference.laplace import Task, by_gradients, fit_laplace
from ..inference.linearized_low_rank import fit_linearized
from ..inference.swag import fit_swag
from ..inference.variational import fit_variational
from ..likelihoods import Gaussian, Likelihood
from ..networks import ACTIVATIONS
from ..training.first_order import shown_as_net
from ..training.objective import TrainingData
from ..training.source import NetworkSource
from .options import SHORTHANDS, Options, warn_of_scales
from .process import ProcessMixin
from .storage import ATTRIBUTES, FitWriter, content_of_fit, fill, weights_of_all

__all__: list[str] = []

# Fitted attributes that do not end like one, or are of the result.
_FITTED = {"_result", "_spectrum", "_net", *ATTRIBUTES}


class BaseDNN2GP(ProcessMixin, Documented, CallbackSupport, BaseEstimator):
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

    # -------------------------------------------------------------------- the walk of a fit

    @contextmanager
    def _fitting(self, X: Any, y: Any, sample_weight: Any) -> Iterator[Progress]:
        """The block is the fit: told to callbacks where scikit-learn has them, and all or none."""
        end_with_parent()
        context, told = None, {"X": X, "y": y, "metadata": {"sample_weight": sample_weight}}
        if hasattr(self, "_init_callback_context"):
            context = self._init_callback_context(max_subtasks=None)
            context.call_on_fit_task_begin(estimator=self, **told)
        with all_or_none(self), torch.inference_mode(False), torch.enable_grad():
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
        source = self._source(X, weight, n_outputs)
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
            keep=self._keeps_starts,
            conditional=options.is_conditional,
        )
        progress.offset = self._evidence_offset(weight if task.rows is None else weight[task.rows])
        best, *others = [_inferred(task, one, options) for one in fit_laplace(task)]
        if task.keep:
            self._others = others
        task.checkpoint.remove()
        return best

    def _source(self, X: Any, weight: NDArray, n_outputs: int) -> NetworkSource:
        """What makes the network; a default one standardises its inputs."""
        standardize = None
        if self.net is None:
            standardize = _mean_and_scale(X, weight)
        else:
            warn_of_scales(X)
        return NetworkSource(
            self.net, self.hidden_layer_sizes, self.activation, n_outputs, standardize
        )

    def fit_starts(self, X: Any, y: Any, n_starts: int, **given: Any) -> list[Any]:
        """Fit, and give every start of the one search as a fitted estimator.

        In the order of their evidence, the highest first. ``fit`` with ``n_restarts=n_starts``
        goes to the end with one of them alone, the best so far. This estimator itself is not
        fitted. :class:`~sk_dnn2gp.MixtureRegressor` makes one distribution of them.

        Parameters
        ----------
        X, y : array-like
            As ``fit`` takes them.
        n_starts : int
        **given : array-like
            Further arguments of ``fit``, but ``checkpoint``.

        Returns
        -------
        list of estimators
            At most ``n_starts``: one without a finite evidence is left out, and so are those that
            had not begun when the solver's ``max_iter`` was spent or a callback stopped the search.

        Raises
        ------
        ValueError
            As ``fit``, or if a ``checkpoint`` is given.

        Warns
        -----
        ConvergenceWarning
            If there are fewer than ``n_starts``.
        """
        if given.get("checkpoint") is not None:
            raise ValueError("fit_starts keeps no checkpoint: leave checkpoint out, or call fit.")
        best = clone(self).set_params(n_restarts=n_starts)
        best._keeps_starts = True
        best.fit(X, y, **given)
        others = best._others
        del best._keeps_starts, best._others
        if len(others) + 1 < n_starts:
            warn(
                f"{len(others) + 1} of {n_starts} starts were kept: the others had no finite "
                "evidence, or had not begun when max_iter was spent or the search was stopped. "
                "Raise max_iter of the solver, as solver=NewtonCG(max_iter=...), or ask for fewer.",
                ConvergenceWarning,
            )
        return [best, *(best._as_another(result) for result in others)]

    _keeps_starts = False
    _others: list[Result]

    def _as_another(self, result: Result) -> Any:
        """The same fit with another start's result."""
        other = clone(self)
        other.__dict__.update(self.__dict__)
        other._show(result, weights_of_all(result, self._fit_sample_weight))
        return other

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
        self._spectrum = None
        self.module_, self._net = result.module, result.net
        self.solver_, self.converged_ = result.solver, result.converged
        self.prior_precision_ = result.prior_precision
        self.prior_precisions_ = dict(result.prior_precisions)
        self.linear_model_, self.posterior_ = result.model, result.posterior
        self.posterior_indices_ = rows
        self.effective_dimension_ = result.posterior.effective_dimension
        self.gradient_norm_ = float(result.gradient.norm())
        self.loss_curve_, self.n_iter_ = result.loss_curve, result.n_iter
        self.elbo_curve_ = result.elbo_curve
        offset = self._evidence_offset(self._fit_sample_weight)
        self.log_marginal_likelihood_value_ = result.evidence + offset

    @property
    def newton_decrement_(self) -> float:
        """∇lossᵀ A⁻¹ ∇loss."""
        return self._result.newton_decrement

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


def _inferred(task: Task, result: Result, options: Options) -> Result:
    """q(w): from Laplace's to the one asked for."""
    if options.is_variational:
        result = fit_variational(task, result, options.inference)
    if isinstance(options.inference, LinearizedVariational):
        with task.progress.stage("linearized variational") as stage:
            result = fit_linearized(task, result, options.inference)
            stage.evidence = result.evidence
    if isinstance(options.inference, SWAG):
        result = fit_swag(task, result, options.inference)
    if options.has_gradients:
        result = by_gradients(task, result)
    return result


def _mean_and_scale(X: Any, weight: NDArray) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of the features; 1 where one is constant."""
    mean, scale = moments(X, weight)
    constant = scale <= 10 * np.finfo(float).eps * np.maximum(np.abs(mean), 1e-300)
    return torch.tensor(mean), torch.tensor(np.where(constant, 1.0, scale))

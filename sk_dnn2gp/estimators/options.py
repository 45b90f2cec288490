"""Options of an estimator: strings to objects, and every combination that cannot work, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet

from .._utils.rows import as_rows, moments
from .._utils.warn import warn
from ..inference import SWAG, Laplace, LinearizedVariational, Variational, resolve_inference
from ..inference.swag import snapshots_of
from ..likelihoods import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Gaussian,
    HeteroscedasticGaussian,
)
from ..posterior import (
    Automatic,
    Diagonal,
    IndependentOutputs,
    Kronecker,
    PosteriorSpecification,
    resolve_posterior,
)
from ..training import FirstOrder, resolve_solver

__all__ = [
    "SHORTHANDS",
    "Options",
    "check_target",
    "is_heteroscedastic",
    "options_of",
    "warn_of_scales",
]

# Arguments that hold an object with settings, and what makes one of a string.
SHORTHANDS: dict[str, Any] = {
    "posterior": resolve_posterior,
    "solver": resolve_solver,
    "inference": resolve_inference,
}
# Beyond these a feature's spread, or its mean over its spread, makes units constant or linear.
_SCALE_RANGE, _SHIFT = (1e-4, 1e4), 1e4


@dataclass(frozen=True)
class Options:
    """The objects that an estimator's arguments stand for; a solver of None is "auto"."""

    inference: Any
    posterior: PosteriorSpecification
    solver: Any

    @property
    def has_gradients(self) -> bool:
        """Whether the posterior is of gradients in the place of Jacobians."""
        return isinstance(self.inference, Laplace) and self.inference.curvature == "gradient"

    @property
    def is_conditional(self) -> bool:
        """Whether the conditional evidence chooses δ."""
        return isinstance(self.inference, Laplace) and self.inference.criterion == "conditional"

    @property
    def is_variational(self) -> bool:
        """Whether the network is trained variationally."""
        return isinstance(self.inference, Variational)


def options_of(estimator: Any, is_classifier: bool) -> Options:
    """Resolve and check all options of an estimator, before any work.

    ValueError naming the arguments, what was found and what to do.
    """
    options = Options(
        resolve_inference(estimator.inference),
        resolve_posterior(estimator.posterior),
        resolve_solver(estimator.solver),
    )
    for part in (options.inference, options.posterior, options.solver):
        if part is not None:
            part.validate()
    _check_device(estimator.device)
    _check_likelihood(estimator, options)
    _check_noise(estimator, options)
    _check_inference(estimator, options, is_classifier)
    _check_posterior(estimator, options)
    _check_groups(estimator, options)
    _check_net(estimator, options)
    return options


def _check_device(device: Any) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here: {str(error).splitlines()[0]} Take "
            "device='cpu', or a build of torch with that device."
        ) from error


def _check_likelihood(estimator: Any, options: Options) -> None:
    likelihood = getattr(estimator, "likelihood", None)
    if likelihood is None:
        return
    wrong = []
    if not isinstance(estimator.noise_std, str) or estimator.noise_std != "auto":
        wrong.append(f"noise_std={estimator.noise_std!r} (its own parameters tell the noise)")
    if isinstance(likelihood, Gaussian | DiagonalGaussian | HeteroscedasticGaussian):
        wrong.append("Gaussian (leave likelihood=None, and give noise_std)")
    if isinstance(likelihood, Bernoulli | Categorical):
        wrong.append("labels (take DNN2GPClassifier)")
    if options.is_variational:
        wrong.append("inference='vi' (take 'laplace')")
    if wrong:
        raise ValueError(f"likelihood={likelihood!r} does not go with {'; '.join(wrong)}.")


def _check_noise(estimator: Any, options: Options) -> None:
    if not is_heteroscedastic(estimator):
        return
    wrong = []
    if options.is_variational:
        wrong.append("inference='vi' (take 'laplace')")
    own = isinstance(estimator.net, NeuralNet | FrozenEstimator)
    first = isinstance(options.solver, FirstOrder) or own
    whole = options.posterior.is_network_process or first
    if estimator.prior_precision == "auto" and not whole:
        wrong.append(
            f"posterior={estimator.posterior!r} while prior_precision is 'auto': the noise has its "
            "own, chosen by the evidence of all weights (take 'full', or give a number)"
        )
    if wrong:
        raise ValueError(f"noise_std='heteroscedastic' does not go with {'; '.join(wrong)}.")


def is_heteroscedastic(estimator: Any) -> bool:
    """Whether the size of the noise is asked to depend on x."""
    noise_std = getattr(estimator, "noise_std", None)
    return isinstance(noise_std, str) and noise_std == "heteroscedastic"


def _check_inference(estimator: Any, options: Options, is_classifier: bool) -> None:
    posterior, name = options.posterior, repr(estimator.posterior)
    if options.is_variational:
        dense = posterior.is_network_process or isinstance(posterior, Diagonal)
        if not dense:
            raise ValueError(
                "inference='vi' finds a posterior of all weights given all examples: "
                f"posterior='full' or 'diag', not {name}."
            )
        if isinstance(estimator.net, FrozenEstimator):
            raise ValueError(
                "inference='vi' trains the network, and a FrozenEstimator is used as it is: give "
                "the net without it, or take inference='laplace'."
            )
        if estimator.prior_groups != "all":
            raise ValueError("inference='vi' has one prior precision: leave prior_groups='all'.")
    if options.is_conditional:
        _check_conditional(estimator, options, is_classifier)
    if isinstance(options.inference, SWAG):
        _check_swag(estimator, posterior)
    if options.has_gradients and isinstance(posterior, IndependentOutputs):
        raise ValueError(
            "Laplace(curvature='gradient') has one gradient for all outputs of an example, and "
            f"posterior={name} takes them one by one: take curvature='ggn', or 'full'."
        )
    if isinstance(options.inference, LinearizedVariational):
        if not is_classifier:
            raise ValueError(
                "inference='linearized-vi' is for classifiers: for Gaussian noise it is "
                "inference='laplace' itself."
            )
        inner: Any = getattr(posterior, "posterior", posterior)  # of a SubsetOfData
        if isinstance(resolve_posterior(inner), Diagonal | IndependentOutputs | Kronecker):
            raise ValueError(
                "inference='linearized-vi' needs posterior='full', 'low_rank' or 'last_layer', "
                f"and outputs together; got posterior={name}."
            )


def _check_conditional(estimator: Any, options: Options, is_classifier: bool) -> None:
    wrong = []
    likelihood = getattr(estimator, "likelihood", None)
    if is_classifier or is_heteroscedastic(estimator) or likelihood is not None:
        wrong.append("another likelihood than the Gaussian of one noise_std")
    if estimator.prior_precision != "auto":
        wrong.append(f"prior_precision={estimator.prior_precision!r}, which leaves no δ to choose")
    if not isinstance(estimator.prior_groups, str) or estimator.prior_groups != "all":
        wrong.append(f"prior_groups={estimator.prior_groups!r}")
    if not options.posterior.is_network_process:
        wrong.append(f"posterior={estimator.posterior!r} (needed: 'full')")
    own = isinstance(estimator.net, NeuralNet | FrozenEstimator)
    if isinstance(options.solver, FirstOrder) or own:
        wrong.append("a network trained in minibatches, or frozen")
    if wrong:
        raise ValueError(
            f"Laplace(criterion='conditional') does not go with {'; '.join(wrong)}. Take "
            "criterion='evidence', or compare fits by conditional_evidence."
        )


def _check_swag(estimator: Any, posterior: PosteriorSpecification) -> None:
    if not isinstance(posterior, Automatic | Diagonal):
        raise ValueError(
            "inference='swag' brings its covariance, low rank plus diagonal: leave "
            "posterior='auto', or take 'diag' for its diagonal alone; got "
            f"{estimator.posterior!r}."
        )
    net = estimator.net
    if isinstance(net, FrozenEstimator) and snapshots_of(net.estimator) is None:
        raise ValueError(
            "inference='swag' trains the network on, and a FrozenEstimator is used as it is: give "
            "the net without it, or one trained with sk_dnn2gp.inference.Snapshots() among its "
            "callbacks."
        )


def _check_posterior(estimator: Any, options: Options) -> None:
    independent = isinstance(options.posterior, IndependentOutputs)
    if independent and estimator.prior_precision == "auto":
        raise ValueError(
            "posterior='independent' needs a number for prior_precision: it counts the weights "
            "once for each output, so that its evidence does not choose between values. "
            "posterior='full' lets the evidence choose it, on SubsetOfData if need be."
        )


def _check_groups(estimator: Any, options: Options) -> None:
    groups = estimator.prior_groups
    if isinstance(groups, str) and groups == "all":
        return
    if not (isinstance(groups, Mapping) or groups in ("layer", "feature")):
        raise ValueError(
            "prior_groups must be 'all', 'layer', 'feature' or a dict from a name to names of "
            f"parameters, got {groups!r}."
        )
    wrong = []
    if estimator.prior_precision != "auto":
        wrong.append(f"prior_precision={estimator.prior_precision!r} (needed: 'auto')")
    if isinstance(options.solver, FirstOrder):
        wrong.append(f"solver={estimator.solver!r} (needed: one that sees all examples)")
    if isinstance(estimator.net, NeuralNet | FrozenEstimator):
        wrong.append("a skorch net of its own (needed: a torch module, or net=None)")
    if not options.posterior.is_network_process:
        wrong.append(f"posterior={estimator.posterior!r} (needed: 'full')")
    if wrong:
        raise ValueError(
            f"prior_groups={groups!r} chooses a prior precision for each group by the evidence of "
            f"all weights, which does not go with {'; '.join(wrong)}. optimize_hyperparameters("
            "estimator, groups=...) serves other networks, at their trained weights."
        )


def _check_net(estimator: Any, options: Options) -> None:
    """Refuse what a given network would silently not take part in."""
    net = estimator.net
    if net is None:
        return
    defaults = {"hidden_layer_sizes": (50,), "activation": "tanh"}
    for name, default in defaults.items():
        found = getattr(estimator, name)
        if found is not default and found != default:
            raise ValueError(
                f"{name}={found!r} is for net=None, and net is given: set it in the network."
            )
    if not isinstance(net, NeuralNet | FrozenEstimator):
        return
    what = "a FrozenEstimator" if isinstance(net, FrozenEstimator) else "a skorch net"
    if options.solver is not None:
        raise ValueError(
            f"solver={estimator.solver!r} is for networks without an optimiser, and net is {what}: "
            "leave solver='auto', and set the optimiser in the net."
        )
    if isinstance(net, FrozenEstimator) and estimator.n_restarts not in ("auto", 1):
        raise ValueError(
            f"n_restarts={estimator.n_restarts!r}, and a FrozenEstimator is used as trained."
        )


def check_target(target: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError where a prediction of an unknown quantity is asked for."""
    if target not in allowed:
        names = ", ".join(map(repr, allowed[:-1]))
        raise ValueError(f"target must be {names} or {allowed[-1]!r}, got {target!r}.")


def warn_of_scales(X: Any) -> None:
    """Warn of features whose spread or mean saturates or starves the first layer."""
    if X.ndim != 2 or not as_rows(X[:1]).is_floating_point():
        return
    mean, spread = moments(X, np.ones(len(X)))
    signed, mean = mean, np.abs(mean)
    odd = (spread > _SCALE_RANGE[1]) | ((spread > 0) & (spread < _SCALE_RANGE[0]))
    odd |= mean > _SHIFT * np.maximum(spread, 1e-300) * (spread > 0) + _SHIFT * (spread == 0)
    if odd.any():
        first = int(np.flatnonzero(odd)[0])
        warn(
            f"X has {int(odd.sum())} feature(s) of extreme scale (feature {first}: mean "
            f"{signed[first]:.1e}, standard deviation {spread[first]:.1e}), too much for a "
            "network. Put StandardScaler before it.",
            UserWarning,
        )

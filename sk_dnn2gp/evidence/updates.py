"""δ and σ by the evidence at weights that are no minimum yet, or are given (math-choosing).

MacKay's δ = γ/‖w‖² and σ² = ‖y-f‖²/(NK-γ) every few epochs of any optimiser (Immer et al. 2021,
arXiv 2104.04975, algorithm 1), and their fixed point at fixed weights.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from skorch.callbacks import Callback, EarlyStopping
from torch import Tensor, nn

from ..exceptions import ApproximationWarning
from ..likelihoods import Gaussian, Likelihood
from ..linear_model import LinearModel
from ..linearize import Linearization
from ..posterior import PosteriorSpecification
from ..training.objective import TrainingData
from .bounds import SketchedEvidence, evidence_of
from .freedom import NOISE_STD_BOUNDS, PRIOR_PRECISION_BOUNDS, Freedom, n_observations
from .spectrum import EvidenceSpectrum, updated_noise_std, updated_precision

__all__ = ["EvidenceUpdates", "maximise_at_fixed_weights"]

# Largest change of log δ and log σ in an update.
_TRUST = 0.5
# A change of those that makes the loss another one.
_MOVED = 0.01
# A sketch that was made for a prior so many times stronger than the one it chose is made anew, so
# often at most: its bracket is wide there.
_STRONGER, _SKETCHES = 2.0, 4


class EvidenceUpdates(Callback):
    """MacKay's updates of δ and σ every ``interval`` epochs; ``loss`` is changed in place.

    The posterior whose γ counts is ``specification``'s.
    """

    def __init__(
        self,
        data: TrainingData,
        loss: Any,
        freedom: Freedom,
        specification: PosteriorSpecification,
        rows: Tensor | None = None,
        interval: int = 20,
    ) -> None:
        self.data = data
        self.loss = loss
        self.freedom = freedom
        self.specification = specification
        self.rows = rows
        self.interval = interval

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Update where the interval is over, and the weights have left their initial values."""
        if len(net.history) % self.interval:
            return
        loss = self.loss
        model = model_at(
            net.module_,
            self.data.take(self.rows),
            loss.likelihood,
            loss.prior_precision,
            self.specification,
        )
        gamma = self.specification.build(model).effective_dimension
        before = loss.prior_precision, loss.likelihood.sigma or 1.0
        if self.freedom.prior_precision:
            new = updated_precision(gamma, float((model.weights**2).sum()))
            loss.prior_precision = near(new, loss.prior_precision, PRIOR_PRECISION_BOUNDS)
        if self.freedom.noise_std:
            sigma = loss.likelihood.noise_std
            squares = float((model.whitened_residual**2).sum()) * sigma**2
            new = updated_noise_std(gamma, squares, n_observations(model, loss.likelihood))
            loss.likelihood = Gaussian(near(new, sigma, NOISE_STD_BOUNDS))
        after = loss.prior_precision, loss.likelihood.sigma or 1.0
        if max(abs(math.log(a / b)) for a, b in zip(after, before, strict=True)) > _MOVED:
            _forget_losses(net)


def _forget_losses(net: Any) -> None:
    """Let waiting for a fall of the loss begin anew: it is another loss now."""
    for _, callback in net.callbacks_:
        if isinstance(callback, EarlyStopping):
            callback.on_train_begin(net)
        schedule = getattr(callback, "lr_scheduler_", None)
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.best, schedule.num_bad_epochs = math.inf, 0


def maximise_at_fixed_weights(
    module: nn.Module,
    data: TrainingData,
    likelihood: Likelihood,
    prior_precision: float,
    freedom: Freedom,
    specification: PosteriorSpecification,
    rows: Tensor | None = None,
) -> tuple[float, Likelihood]:
    """The best δ and likelihood at a module's weights: one eigendecomposition serves all.

    A sketch serves all as a bracket, whose lower end is maximised; it is made anew where it was
    made for another prior.
    """
    data = data.take(rows)
    spread = _spread(data) if likelihood.sigma is not None else 1.0
    start = spread if freedom.noise_std else 1.0
    for _ in range(_SKETCHES):
        model = model_at(module, data, likelihood, prior_precision, specification)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ApproximationWarning)  # said of the chosen one's
            posterior = specification.build(model)
        spectrum = evidence_of(posterior, likelihood.sigma, n_observations(model, likelihood))
        before = _strength(prior_precision, likelihood)
        found = _maximised(spectrum, prior_precision, likelihood, freedom, start, spread)
        (prior_precision, likelihood), start = found, 1.0
        stronger = before / _strength(prior_precision, likelihood)
        if not isinstance(spectrum, SketchedEvidence) or stronger < _STRONGER:
            break
    return prior_precision, likelihood


def _strength(prior_precision: float, likelihood: Likelihood) -> float:
    """ρ = δσ²."""
    return prior_precision * (likelihood.sigma or 1.0) ** 2


def _spread(data: TrainingData) -> float:
    """That of y: a frozen network's σ is in its units, and so are the bounds of σ."""
    spread = float(data.y.double().std()) if data.y.is_floating_point() and len(data) > 1 else 1.0
    return spread if spread > 0 else 1.0


def _maximised(
    spectrum: EvidenceSpectrum | SketchedEvidence,
    prior_precision: float,
    likelihood: Likelihood,
    freedom: Freedom,
    start: float,
    spread: float,
) -> tuple[float, Likelihood]:
    """The best δ and likelihood of one decomposition or sketch."""
    sigma = likelihood.sigma
    low, high = NOISE_STD_BOUNDS
    delta, best = spectrum.maximise(
        prior_precision,
        None if sigma is None else sigma * start,
        prior_precision_bounds=PRIOR_PRECISION_BOUNDS if freedom.prior_precision else None,
        noise_std_bounds=(low * spread, high * spread) if freedom.noise_std else None,
    )
    return delta, Gaussian(best) if freedom.noise_std and best is not None else likelihood


def model_at(
    module: nn.Module,
    data: TrainingData,
    likelihood: Likelihood,
    prior_precision: float,
    specification: PosteriorSpecification,
) -> LinearModel:
    """Theorem 1 at a module's present weights, in float64 whatever the module's precision."""
    linearization = Linearization(module, parameters=specification.parameters, dtype=torch.float64)
    linearization.outputs(data.X[:1])
    return LinearModel.from_laplace(
        linearization.at(linearization.weights()),
        data.X,
        data.y,
        likelihood,
        prior_precision,
        data.sample_weight,
    )


def near(new: float, old: float, bounds: tuple[float, float]) -> float:
    """The new value within the bounds, and within a trust region around the old one."""
    ratio = min(max(new / old, math.exp(-_TRUST)), math.exp(_TRUST))
    return min(max(old * ratio, bounds[0]), bounds[1])

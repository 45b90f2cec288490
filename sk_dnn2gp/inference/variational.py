"""From the Laplace posterior to the variational one: ``inference="vi"`` (MATH 5).

The network is first trained to the minimum of the loss; variational training (VOGGN for the full
covariance, VOGN for the diagonal) starts at that Laplace posterior and moves it to the Gaussian of
the best evidence lower bound. Its rate falls to zero, so that the noise of the draws averages out.

    ELBO = E_q[Σ log p(y|f_w)] - KL(q ‖ N(0, I/δ))

has its maxima in the hyperparameters, at fixed q = N(μ, Σ), at

    δ = P / (‖μ‖² + tr Σ)         σ² = E_q ‖y - f_w‖² / NK

The converged q is a Gaussian process: theorem 1's linear model at μ, with q's own covariance.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from torch import Tensor, nn

from .._utils.memory import limit_in_bytes, require_memory
from .._utils.random import seeded
from ..evidence.search import Tuning, gaussian, linear_model, moved
from ..linear_model import LinearModel
from ..linearize import Linearization
from ..optim import VOGGN, VOGN
from ..posterior import DiagonalPosterior, Posterior, WeightSpacePosterior
from ..training.first_order import Objective, TrainingData, as_is, train
from .laplace import FittedNetwork

__all__ = ["VariationalSettings", "fit_variational"]

# First rate of mean and precision with the full covariance: a part of a Newton step.
_RATE = 0.3
# With the diagonal: rate of the precision, and of the mean relative to where it would diverge.
_DIAGONAL_BETA, _STABLE = 0.1, 0.5
_POWER_ITERATIONS, _START_DRAWS = 20, 8
# Epochs between updates of δ and σ, and the memory of the mean of E_q‖y - f‖² over epochs.
_INTERVAL, _MEMORY = 5, 0.9


@dataclass(frozen=True)
class VariationalSettings:
    """How long and with how many draws of the weights a step.

    Parameters
    ----------
    n_epochs : int
    mc_samples : int
    batch_size : int or "auto"
        "auto" is the whole data.
    """

    n_epochs: int = 200
    mc_samples: int = 4
    batch_size: int | str = "auto"


def fit_variational(
    fitted: FittedNetwork,
    data: TrainingData,
    tuning: Tuning,
    settings: VariationalSettings,
    seed: int,
    device: Any = "cpu",
) -> tuple[FittedNetwork, list[float]]:
    """Move a Laplace posterior to the variational one.

    Parameters
    ----------
    fitted : FittedNetwork
        Its module is trained on, in place.
    data : TrainingData
    tuning : Tuning
        Whether the ELBO chooses δ and σ; ``structure`` is "full" or "diag".
    settings : VariationalSettings
    seed : int
    device : str or torch.device

    Returns
    -------
    fitted : FittedNetwork
        The network at μ, with q as its posterior.
    elbo_curve : list of float
        The ELBO of every epoch, estimated from that epoch's draws, in nats.

    Raises
    ------
    MemoryError
        If the matrices of the full covariance do not fit.
    ConvergenceError
        If training diverged.
    """
    module, objective = fitted.module, replace(fitted.objective, has_prior=False)
    own = data.astype(next(module.parameters()).dtype).to(device)
    _check_memory(fitted, tuning)
    with seeded(seed, device):
        net = _variational_net(module, own, objective, fitted, tuning, settings, seed)
        n_numbers = float(data.sample_weight.sum()) * (own.y.shape[1] if own.y.ndim > 1 else 1)
        updates = ElboUpdates(objective, tuning, n_numbers)
        losses = train(net, own, objective, [updates])
    module.eval()
    optimizer = net.optimizer_
    _warn_of_divergence(updates.elbo_curve)
    objective = replace(objective, has_prior=True)
    linearization = Linearization(module, dtype=torch.float64, memory_limit=tuning.memory_limit)
    model = linear_model(linearization, own, objective)
    posterior: Posterior
    curvature = optimizer.corrected_curvature().double()
    if tuning.structure == "diag":
        posterior = DiagonalPosterior(model, tuning.memory_limit, curvature)
    else:
        posterior = WeightSpacePosterior(model, tuning.memory_limit, curvature)
    for p in module.parameters():
        p.grad = None
    result = FittedNetwork(
        module, net, objective, posterior, model.gradient, losses, len(net.history)
    )
    return result, updates.elbo_curve


def _warn_of_divergence(elbo_curve: list[float]) -> None:
    """Warn where the lower bound ended below its start: the draws' noise apart, it rises."""
    n = max(1, len(elbo_curve) // 4)
    first, last = (sum(part) / n for part in (elbo_curve[:n], elbo_curve[-n:]))
    if last < first - 0.1 * abs(first):
        warnings.warn(
            f"The evidence lower bound fell from {first:.4g} to {last:.4g} in variational "
            "training. Raise mc_samples or prior_precision, or take posterior='full'.",
            ConvergenceWarning,
            stacklevel=4,
        )


def _check_memory(fitted: FittedNetwork, tuning: Tuning) -> None:
    P = fitted.posterior.model.n_params
    if tuning.structure == "diag":
        return
    largest = int((limit_in_bytes(tuning.memory_limit) / 48) ** 0.5)
    require_memory(
        48 * P**2,
        tuning.memory_limit,
        f"The full variational posterior (P={P} weights, six matrices)",
        f"Within it fits P <= {largest}: use posterior='diag' or raise memory_limit.",
    )


def _variational_net(
    module: nn.Module,
    data: TrainingData,
    objective: Objective,
    fitted: FittedNetwork,
    tuning: Tuning,
    settings: VariationalSettings,
    seed: int,
) -> NeuralNet:
    """A skorch net whose optimiser starts at the Laplace posterior."""
    diagonal = tuning.structure == "diag"
    whole = settings.batch_size == "auto"
    batch_size = len(data) if whole else min(int(settings.batch_size), len(data))
    weighted = bool((data.sample_weight != 1.0).any())
    if weighted and batch_size < len(data):
        raise ValueError(
            "inference='vi' takes sample_weight with the whole data in a batch only: set "
            "batch_size='auto'."
        )
    model = linear_model(
        Linearization(module, dtype=torch.float64, memory_limit=tuning.memory_limit),
        data,
        objective,
    )
    if diagonal:
        curvature, rate = _diagonal_start(model, module, seed)
    else:
        curvature = model.linearization.ggn(model.X, cotangents=model.noise_factor)
        rate = _RATE
    module.train()
    net = NeuralNet(
        module,
        criterion=nn.MSELoss,  # never called: get_loss is the objective's
        optimizer=VOGN if diagonal else VOGGN,
        lr=rate,
        optimizer__beta=_DIAGONAL_BETA if diagonal else None,
        optimizer__momentum=0.0,
        optimizer__curvature="ggn",
        optimizer__n_data=len(data),
        optimizer__likelihood=objective.likelihood,
        optimizer__prior_precision=objective.prior_precision,
        optimizer__mc_samples=settings.mc_samples,
        optimizer__module=module,
        optimizer__random_state=seed,
        optimizer__memory_limit=tuning.memory_limit,
        max_epochs=settings.n_epochs,
        batch_size=batch_size,
        iterator_train__shuffle=batch_size < len(data),
        iterator_train__collate_fn=as_is,
        train_split=None,
        callbacks="disable",
        device=data.X.device,
        verbose=0,
    )
    net.initialize()
    net.optimizer_.sample_weight = data.sample_weight if weighted else None
    schedule = LRScheduler("CosineAnnealingLR", T_max=settings.n_epochs, eta_min=1e-3 * rate)
    net.callbacks_ += [("schedule", schedule.initialize())]
    net.optimizer_.set_curvature(curvature)
    return net


def _diagonal_start(model: LinearModel, module: nn.Module, seed: int) -> tuple[Tensor, float]:
    """The first S, and a rate of the mean that does not go uphill with it.

    S is the mean of diag JᵀΛJ, Λ as at the mean, at draws from the diagonal Laplace posterior:
    where VOGN will take it. The rate is half of 1/λ_max(D⁻¹A) at the worst draw, D = S + δ: beyond
    2/λ_max a step diverges.
    """
    laplace = DiagonalPosterior(model)
    steps = laplace.sample_weights(_START_DRAWS, torch.Generator().manual_seed(seed))
    named = dict(module.named_parameters())
    parameters = [named[name] for name in model.linearization.parameter_names]
    S = torch.zeros_like(laplace.precision)
    for step in steps:
        with moved(parameters, step):
            S += model.linearization.ggn_diagonal(model.X, cotangents=model.noise_factor)
    S /= len(steps)
    largest = 1.0
    for step in steps:
        with moved(parameters, step):
            largest = max(largest, _largest_eigenvalue(model, S + model.prior_precision))
    return S, min(_RATE, _STABLE / largest)


def _largest_eigenvalue(model: LinearModel, D: Tensor) -> float:
    """λ_max(D⁻¹A) at the module's present weights, by power iteration."""
    linearization, L = model.linearization, model.noise_factor
    v = torch.linspace(0.5, 1.5, len(D)).to(D)
    size = float(v.norm())
    for _ in range(_POWER_ITERATIONS):
        v = v / size
        Jv = linearization.jvp(model.X, v).double()
        weighed = (L @ (L.mT @ Jv[..., None]))[..., 0]
        v = (linearization.vjp(model.X, weighed) + model.prior_precision * v) / D
        size = float(v.norm())
    return size


class ElboUpdates(Callback):
    """Record the ELBO of every epoch, and move δ and σ to its maximum where they are free.

    Parameters
    ----------
    objective : Objective
        Changed in place.
    tuning : Tuning
    n_numbers : float
        K Σ s.
    """

    def __init__(self, objective: Objective, tuning: Tuning, n_numbers: float) -> None:
        self.objective = objective
        self.tuning = tuning
        self.n_numbers = n_numbers

    def initialize(self) -> ElboUpdates:
        """Forget earlier training."""
        self.elbo_curve: list[float] = []
        self.squares: float | None = None
        return self

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        """Record, and update every few epochs."""
        optimizer = net.optimizer_
        elbo = optimizer.elbo()
        net.history.record("elbo", elbo)
        self.elbo_curve.append(elbo)
        if self.tuning.noise_std:
            self._remember_squares(optimizer.expected_loss)
        if self.tuning.is_needed and len(net.history) % _INTERVAL == 0:
            self._update(optimizer)

    def _remember_squares(self, expected_loss: float) -> None:
        """E_q‖y - f‖² from E_q Σℓ, a running mean."""
        sigma = gaussian(self.objective).noise_std
        constant = 0.5 * self.n_numbers * math.log(2 * math.pi * sigma**2)
        squares = 2 * sigma**2 * (expected_loss - constant)
        before = squares if self.squares is None else self.squares
        self.squares = _MEMORY * before + (1 - _MEMORY) * squares

    def _update(self, optimizer: Any) -> None:
        q, objective = optimizer.posterior(), self.objective
        if self.tuning.prior_precision:
            total = float((q.mean**2).sum() + q.variances().sum())
            objective.prior_precision = len(q.mean) / total
            optimizer.param_groups[0]["prior_precision"] = objective.prior_precision
        if self.tuning.noise_std and self.squares is not None:
            sigma = math.sqrt(max(self.squares, 1e-12) / self.n_numbers)
            objective.likelihood = gaussian(objective).with_noise_std(sigma)
            optimizer.likelihood = objective.likelihood

"""From the Laplace posterior to the variational one: ``inference="vi"`` (:ref:`math-variational`).

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
from dataclasses import replace
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import Tensor

from .._utils.memory import limit_in_bytes, require_memory
from .._utils.progress import Stage
from .._utils.random import seeded
from .._utils.warn import warn
from ..evidence.freedom import NOISE_STD_BOUNDS, PRIOR_PRECISION_BOUNDS
from ..evidence.spectrum import log_marginal_likelihood
from ..evidence.updates import model_at, near
from ..exceptions import ApproximationWarning, ConvergenceError
from ..likelihoods import Gaussian
from ..linear_model import LinearModel
from ..linearize import Linearization
from ..optim import VOGGN, VOGN
from ..posterior import Diagonal, DiagonalPosterior, Full, Posterior, WeightSpacePosterior
from ..training.first_order import NegativeLogLikelihood
from ..training.objective import TrainingData
from ..training.source import module_dtype
from .laplace import Task
from .result import Result
from .specification import Variational

__all__ = ["fit_variational", "largest_eigenvalue"]

# First rate of mean and precision with the full covariance: a part of a Newton step.
_RATE = 0.3
# With the diagonal: rate of the precision, and of the mean relative to where it would diverge.
_DIAGONAL_BETA, _STABLE = 0.1, 0.5
_POWER_ITERATIONS, _START_DRAWS = 20, 8
# Epochs between updates of δ and σ.
_INTERVAL = 5
# Draws that judge a step; trials of an epoch, each half as long, before its draws are given up, and
# how short a step may become; the fall of the bound, as a part of it, that is no fall.
_JUDGES, _TRIALS, _SHORTEST, _SLACK = 16, 3, 1 / 64, 1e-6


def fit_variational(task: Task, result: Result, settings: Variational) -> Result:
    """Move a Laplace posterior to the variational one; the result's module is trained on, in place.

    MemoryError if the matrices of the full covariance do not fit, ConvergenceError if the lower
    bound is not finite, or minibatches ended far below its start, ValueError if ``sample_weight``
    meets minibatches.
    """
    module, diagonal = result.module, isinstance(task.specification, Diagonal)
    own = task.data.astype(module_dtype(module)).to(result.model.X.device)
    if not diagonal:
        _require_memory(result.model.n_params, getattr(task.specification, "memory_limit", None))
    with seeded(task.seed, task.device):
        training = _Training(task, result, settings, own, diagonal)
        losses, curve = training.run()
    module.eval()
    for p in module.parameters():
        p.grad = None
    optimizer, likelihood, delta = training.optimizer, training.likelihood, training.delta
    model = model_at(module, task.data.to(own.X.device), likelihood, delta, Full())
    curvature = optimizer.corrected_curvature().double()
    posterior: Posterior
    if diagonal:
        posterior = DiagonalPosterior(model, ggn_diagonal=curvature)
    else:
        posterior = WeightSpacePosterior(model, ggn=curvature)
    kind = "dual" if isinstance(likelihood, Gaussian) else "laplace"
    return replace(
        result,
        net=None,
        likelihood=likelihood,
        prior_precision=delta,
        prior_precisions={"all": delta},
        model=model,
        posterior=posterior,
        evidence=_evidence(model, kind),
        evidence_kind=kind,
        gradient=model.gradient,
        solver=type(optimizer).__name__,
        loss_curve=losses,
        elbo_curve=curve,
        n_iter=len(losses),
    )


def _evidence(model: LinearModel, kind: str) -> float:
    """Of the converged process at μ (math-variational); nan where its factor does not fit."""
    try:
        return log_marginal_likelihood(Full().build(model), kind)
    except MemoryError as error:
        warn(
            f"The evidence of the converged process is not computed. {error}",
            ApproximationWarning,
        )
        return math.nan


def _require_memory(n_params: int, memory_limit: float | None) -> None:
    largest = int((limit_in_bytes(memory_limit) / 48) ** 0.5)
    require_memory(
        48 * n_params**2,
        memory_limit,
        f"The full variational posterior (P={n_params} weights, six matrices)",
        f"Within it fits P <= {largest}: use posterior='diag' or raise its memory_limit.",
    )


class _Training:
    """Epochs of VOGGN or VOGN from the Laplace posterior, and δ and σ by the bound."""

    def __init__(
        self,
        task: Task,
        result: Result,
        settings: Variational,
        data: TrainingData,
        diagonal: bool,
    ) -> None:
        self.task, self.settings, self.data = task, settings, data
        self.module = result.module
        self.likelihood, self.delta = result.likelihood, result.prior_precision
        weighted = bool((data.sample_weight != 1.0).any())
        whole = settings.batch_size == "auto"
        self.length = len(data) if whole else min(int(settings.batch_size), len(data))
        if weighted and self.length < len(data):
            raise ValueError(
                "inference='vi' takes sample_weight with the whole data in a batch only: set "
                "batch_size='auto'."
            )
        model = model_at(self.module, data, self.likelihood, self.delta, Full())
        if diagonal:
            curvature, self.rate = _diagonal_start(model, task.seed)
        else:
            curvature = model.linearization.ggn(model.X, cotangents=model.noise_factor)
            self.rate = _RATE
        self.module.train()
        make = VOGN if diagonal else VOGGN
        self.optimizer = make(
            [p for p in self.module.parameters() if p.requires_grad],
            lr=self.rate,
            n_data=len(data),
            likelihood=self.likelihood,
            prior_precision=self.delta,
            beta=_DIAGONAL_BETA if diagonal else None,
            momentum=0.0,
            curvature="ggn",
            mc_samples=settings.n_samples,
            module=self.module,
            random_state=task.seed,
        )
        self.optimizer.sample_weight = data.sample_weight if weighted else None
        self.optimizer.set_curvature(curvature)

    def run(self) -> tuple[list[float], list[float]]:
        """The expected loss and the bound of every epoch."""
        with self.task.progress.stage("variational", self.settings.max_iter) as stage:
            return self._epochs(stage)

    def _epochs(self, stage: Stage) -> tuple[list[float], list[float]]:
        losses, curve, shorter = self._recalled()
        for epoch in range(len(losses), self.settings.max_iter):
            stage.begin_step()
            part = 0.5 * (1.0 + math.cos(math.pi * epoch / self.settings.max_iter))
            rate = self.rate * max(part, 1e-3)
            shorter, loss = self._epoch(rate, shorter, epoch)
            losses.append(loss)
            curve.append(self.optimizer.elbo(loss))
            _check_bound(curve)
            if self.task.freedom.is_any and (epoch + 1) % _INTERVAL == 0:
                self._update(loss)
            self._keep(losses, curve, shorter)
            if stage.end_step():
                break
        stage.evidence = curve[-1]
        return losses, curve

    def _keep(self, losses: list[float], curve: list[float], shorter: float) -> None:
        """Put the state of this epoch into the checkpoint."""
        if self.task.checkpoint.path is None:
            return
        state = {
            "optimizer": self.optimizer.snapshot(),
            "prior_precision": self.delta,
            "noise_std": self.likelihood.sigma,
            "curves": (list(losses), list(curve), shorter),
            "generator": torch.get_rng_state(),
        }
        self.task.checkpoint.keep_state("variational", state)

    def _recalled(self) -> tuple[list[float], list[float], float]:
        """Go back to the state of a checkpoint: its losses, bounds, and part of the rate."""
        state = self.task.checkpoint.states.get("variational")
        if state is None:
            return [], [], 1.0
        self.optimizer.restore(state["optimizer"])
        self.delta = state["prior_precision"]
        self.optimizer.param_groups[0]["prior_precision"] = self.delta
        if state["noise_std"] is not None:
            self.likelihood = self.optimizer.likelihood = Gaussian(state["noise_std"])
        torch.set_rng_state(state["generator"])
        losses, curve, shorter = state["curves"]
        return list(losses), list(curve), shorter

    def _epoch(self, rate: float, shorter: float, epoch: int) -> tuple[float, float]:
        """The part of the rate for the next epoch and E_q Σℓ after one pass over the data.

        A step on all of the data is shortened while the bound falls.
        """
        if self.length < len(self.data):
            order = torch.randperm(len(self.data))
            for part in gen_batches(len(self.data), self.length):
                self._step(self.data.take(order[part]), rate)
            return 1.0, self._expected_loss(epoch)
        first = self._expected_loss(epoch)
        before, kept = self.optimizer.elbo(first), self.optimizer.snapshot()
        for _ in range(_TRIALS):
            self._step(self.data, rate * shorter)
            loss = self._expected_loss(epoch)
            if self.optimizer.elbo(loss) >= before - _SLACK * abs(before):
                return min(1.0, 2.0 * shorter), loss
            # The generator goes on: a step that fails is tried at other draws, half as long.
            kept["state"]["generator"] = self.optimizer.snapshot()["state"]["generator"]
            self.optimizer.restore(kept)
            shorter = max(0.5 * shorter, _SHORTEST)
        return shorter, first

    def _step(self, batch: TrainingData, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step(self._closure(batch, backward=True))

    def _closure(self, batch: TrainingData, backward: bool) -> Any:
        criterion = NegativeLogLikelihood(self.likelihood)

        def closure() -> Tensor:
            if backward:
                self.optimizer.zero_grad()
            nll = criterion.likelihood.negative_log_likelihood(self.module(batch.X[:]), batch.y)
            loss = (batch.sample_weight.to(nll) * nll).mean()
            if backward:
                loss.backward()
            return loss

        return closure

    def _expected_loss(self, epoch: int) -> float:
        """E_q Σℓ at draws that are the same for all that is compared in an epoch."""
        draws = max(_JUDGES, self.settings.n_samples)
        closure = self._closure(self.data, backward=False)
        return self.optimizer.estimate_loss(closure, draws, self.task.seed + epoch)

    def _update(self, loss: float) -> None:
        """δ and σ at the maximum of the bound for this q, within a trust region."""
        q, group = self.optimizer.posterior(), self.optimizer.param_groups[0]
        if self.task.freedom.prior_precision:
            best = len(q.mean) / float((q.mean**2).sum() + q.variances().sum())
            self.delta = near(best, self.delta, PRIOR_PRECISION_BOUNDS)
            group["prior_precision"] = self.delta
        if self.task.freedom.noise_std and isinstance(self.likelihood, Gaussian):
            sigma = self.likelihood.noise_std
            count = self.data.total_weight * self.data.y.shape[1]
            squares = 2.0 * sigma**2 * (loss - 0.5 * count * math.log(2 * math.pi * sigma**2))
            best = math.sqrt(max(squares, 1e-12) / count)
            self.likelihood = Gaussian(near(best, sigma, NOISE_STD_BOUNDS))
            self.optimizer.likelihood = self.likelihood


def _check_bound(curve: list[float]) -> None:
    """Raise ConvergenceError where the bound is not finite, or far below its start."""
    if math.isfinite(curve[-1]) and curve[-1] >= curve[0] - max(100.0, 10.0 * abs(curve[0])):
        return
    raise ConvergenceError(
        f"Variational training diverged: the lower bound went from {curve[0]:.4g} to "
        f"{curve[-1]:.4g}. Set inference__batch_size='auto', raise inference__n_samples or "
        "prior_precision, or take inference='laplace'."
    )


def _diagonal_start(model: LinearModel, seed: int) -> tuple[Tensor, float]:
    """The first S, and a rate of the mean that does not go uphill with it.

    S is the mean of diag JᵀΛJ, Λ as at the mean, at draws from the diagonal Laplace posterior:
    where VOGN will take it. The rate is half of 1/λ_max(D⁻¹A) at the worst draw, D = S + δ: beyond
    2/λ_max a step diverges.
    """
    laplace = DiagonalPosterior(model)
    steps = laplace.sample_weights(_START_DRAWS, torch.Generator().manual_seed(seed))
    draws = [model.linearization.at(model.weights + step) for step in steps]
    S = torch.zeros_like(model.weights)
    for draw in draws:
        S += draw.ggn_diagonal(model.X, cotangents=model.noise_factor)
    S /= len(draws)
    D = S + model.prior_precision
    largest = max(1.0, *(largest_eigenvalue(model, draw, D) for draw in draws))
    return S, min(_RATE, _STABLE / largest)


def largest_eigenvalue(model: LinearModel, linearization: Linearization, D: Tensor) -> float:
    """λ_max(D⁻¹A) at the weights of ``linearization``, by power iteration."""
    L = model.noise_factor
    v = torch.linspace(0.5, 1.5, len(D)).to(D)
    size = float(v.norm())
    for _ in range(_POWER_ITERATIONS):
        v = v / size
        Jv = linearization.jvp(model.X, v).double()
        weighed = (L @ (L.mT @ Jv[..., None]))[..., 0]
        v = (linearization.vjp(model.X, weighed) + model.prior_precision * v) / D
        size = float(v.norm())
    return size

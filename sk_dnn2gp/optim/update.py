"""The one update behind VOGGN, VOGN, OGGN and OGN (:ref:`math-variational`).

Optimisers that carry a Gaussian over the weights, four faces of ``VariationalOptimizer.step``:

    S ← (1-β) S + β mean_s H_s         H_s = Σ_i JᵀΛJ, or Σ_i ∇ℓ_i ∇ℓ_iᵀ, at w_s
    μ ← μ - α (S + δ)⁻¹ (mean_s g_s + δ μ)

    at samples w_s ~ N(μ, (S+δ)⁻¹)     VOGGN: S a matrix     VOGN: its diagonal
    at the mean w_s = μ                OGGN                  OGN

Between steps the parameters hold μ. Per-example quantities come from the closure's own forward
and backward pass (``closure``). Shapes: μ, g (P,); S, H (P, P) or (P,); P in the order of the
optimiser's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .._utils.copies import copied
from ..likelihoods import Likelihood
from ..linear_model import IterationModel, LinearModel
from ..linearize import Linearization
from ..posterior.precision import (
    DiagonalPrecision,
    GaussianWeights,
    Precision,
    precision_of,
    with_prior,
)
from .closure import Observation, Watcher, check_reduction, order_in, parameter_names
from .flat import FlatOptimizer
from .pieces import Pieces, draw, gradients, writable

__all__ = ["VariationalOptimizer"]

# What "auto" stands for, by whether the precision is a diagonal.
_DEFAULTS: dict[bool, dict[str, Any]] = {
    False: {"lr": 0.1, "beta": None, "momentum": 0.0, "curvature": "ggn"},
    True: {"lr": 0.01, "beta": 0.01, "momentum": 0.9, "curvature": "gradient"},
}


@dataclass
class _Iteration:
    """What a step saw, kept for ``dual_gp``."""

    q: GaussianWeights
    delta: Tensor | float
    rate: float
    sample_weight: Tensor | None
    scale: float = 1.0
    weights: list[Tensor] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)


class VariationalOptimizer(FlatOptimizer):
    """The one update; its four faces choose a precision and where expectations are taken.

    VOGGN and OGGN have a full precision, VOGN and OGN a diagonal one; VOGGN and VOGN take
    expectations at draws of the weights, OGGN and OGN at their mean.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Weights, or param_groups with their own ``lr``, ``momentum`` and ``prior_precision``.
    lr : float, default="auto"
        α, the rate of the mean. The gradient and the curvature are sums over all N examples, so
        that the step is a part α of a Newton step. 0.1 for a full precision, 0.01 for a diagonal.
    n_data : int
        N, the number of examples in the whole training set.
    likelihood : Likelihood, optional
        Its noise precision Λ(f) is the curvature of the loss in f; needed for
        ``curvature="ggn"``.
    prior_precision : float, default=1.0
        δ of the prior N(0, I/δ), which this optimiser adds: no weight decay in the closure.
    beta : float or None, default="auto"
        β, the rate of the precision; None is lr, with which theorem 2 is exact. None for a full
        precision, 0.01 for a diagonal.
    momentum : float, default="auto"
        Decay of a running mean of the gradient, corrected for its start as Adam's. 0 for a full
        precision, 0.9 for a diagonal.
    mc_samples : int, default=1
        M, the draws of the weights in a step; the closure is called once for each.
    initial_precision : float, optional
        S₀ + δ; None is N + δ, weights known to about 1/√N.
    bias_correction : bool, default=False
        Take what is left of S₀ out of S, as Adam does.
    curvature : {"ggn", "gradient"}, default="auto"
        Σ_i JᵀΛJ, or the sum over examples of squared gradients (Khan et al. 2018), which needs no
        more than the closure's own backward pass. "ggn" for a full precision, "gradient" for a
        diagonal.
    module : torch.nn.Module, optional
        The network; None finds it when the closure first calls it.
    random_state : int, optional
        Seed of the draws; None takes one from torch's global generator.
    keep_iteration : bool, default=False
        Keep what each step saw, for :meth:`dual_gp`.
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Raises
    ------
    ValueError
        If a number is out of range, ``likelihood`` is missing where it is needed, or draws are
        asked of an optimiser that takes none.
    """

    _diagonal: bool
    _sampled: bool

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | str = "auto",
        *,
        n_data: int,
        likelihood: Likelihood | None = None,
        prior_precision: float = 1.0,
        beta: float | str | None = "auto",
        momentum: float | str = "auto",
        mc_samples: int = 1,
        initial_precision: float | None = None,
        bias_correction: bool = False,
        curvature: str = "auto",
        module: nn.Module | None = None,
        random_state: int | None = None,
        keep_iteration: bool = False,
        memory_limit: float | None = None,
    ) -> None:
        group = {"lr": lr, "beta": beta, "momentum": momentum, "prior_precision": prior_precision}
        super().__init__(params, {name: self._chosen(name, v) for name, v in group.items()})
        self.n_data, self.likelihood, self.mc_samples = n_data, likelihood, mc_samples
        self.initial_precision, self.bias_correction = initial_precision, bias_correction
        self.curvature, self.keep_iteration = self._chosen("curvature", curvature), keep_iteration
        self.memory_limit, self.random_state = memory_limit, random_state
        self.sample_weight: Tensor | None = None
        self._check_settings()
        self._set_transient(module)
        self._start()

    def _chosen(self, name: str, value: Any) -> Any:
        return (
            _DEFAULTS[self._diagonal][name] if isinstance(value, str) and value == "auto" else value
        )

    def _check_settings(self) -> None:
        for group in self.param_groups:
            _check_group(group)
        _check_count("n_data", self.n_data)
        _check_count("mc_samples", self.mc_samples)
        if not self._sampled and (self.mc_samples != 1 or self.random_state is not None):
            raise ValueError(
                f"{type(self).__name__} takes expectations at the mean and draws nothing: leave "
                f"out mc_samples and random_state, or take V{type(self).__name__}."
            )
        if self.curvature not in ("ggn", "gradient"):
            raise ValueError(f"curvature must be 'ggn' or 'gradient', got {self.curvature!r}.")
        if self.curvature == "ggn" and not isinstance(self.likelihood, Likelihood):
            raise ValueError(
                "curvature='ggn' needs the likelihood whose noise precision it is, one of "
                f"sk_dnn2gp.likelihoods; got {self.likelihood!r}."
            )

    def _set_transient(self, module: nn.Module | None) -> None:
        """What can be found again: the module, its plan, the last factor and iteration."""
        factor = self._weighted_factor if self.curvature == "ggn" else None
        self._watcher = Watcher(self._params, module, factor, self._diagonal)
        self._pieces = Pieces(self._params)
        self._before: Tensor | None = None  # memory for μ, kept: new pages cost as much as a pass
        self._precision: Precision | None = None
        self._linearization: Linearization | None = None
        self._iteration: _Iteration | None = None

    def _start(self) -> None:
        """S₀, momentum and the generator: all state, held under the first parameter."""
        mean, start = self._mean(), self._initial_curvature()
        seed = self.random_state if self._sampled else 0
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        S = torch.full_like(mean, start)
        self.state[self._params[0]] = {
            "step": 0,
            "curvature": S if self._diagonal else torch.diag(S.double()),
            "momentum": torch.zeros_like(mean),
            "generator": torch.Generator(mean.device).manual_seed(seed).get_state(),
            "initial_curvature": start,
            "remaining": 1.0,  # Π (1-β): how much of S₀ is left in S
        }

    def _initial_curvature(self) -> float:
        if self.initial_precision is None:
            return float(self.n_data)
        delta = max(g["prior_precision"] for g in self.param_groups)
        start = self.initial_precision - delta
        if not 0.0 <= start < math.inf:
            raise ValueError(
                f"initial_precision must be finite and at least prior_precision={delta}, got "
                f"{self.initial_precision!r}."
            )
        return start

    # -------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Take one step of the mean and the precision; the mean of the closure's losses.

        The closure zeroes the gradients, calls the module once on a batch, and returns the batch's
        mean negative log-likelihood, prior excluded, after ``backward``. It is called
        ``mc_samples`` times, each time with the weights set to a draw from q. ValueError if there
        is none, or it breaks the protocol, or the batch is larger than n_data; FloatingPointError
        if the loss, its gradient or the curvature is not finite: weights and state are then those
        before the step.
        """
        if closure is None:
            raise ValueError(
                f"{type(self).__name__}.step needs a closure: curvature is taken while it runs."
            )
        state, flat = self._state, [p.detach().flatten() for p in self._params]
        mean = self._before = torch.cat(flat, out=self._before)
        generator_before = state["generator"]
        try:
            loss, gradient, H = self._expectations(closure, mean)
            self._check_finite(loss, gradient, H)
            self._update(mean, gradient, H)
        except BaseException:
            state["generator"] = generator_before
            self._set(mean)
            raise
        self.expected_loss = float(loss) * self.n_data
        return loss

    def _expectations(
        self, closure: Callable[[], Tensor], mean: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Loss, its gradient by parameter and H, means over the samples; H is of all N examples."""
        record = self._started_iteration() if self.keep_iteration else None
        total: Any = None
        for _ in self._draws(mean):
            if record is not None:
                record.weights.append(self._mean())
            seen = self._watcher.observe(closure, self.n_data)
            check_reduction(seen, self.likelihood, self.sample_weight)
            scale = self.n_data / self._checked_batch(seen)
            if record is not None:
                record.seen.append(seen)
                record.scale = scale
            parts = [seen.loss, self._curvature_of(seen, scale), *gradients(self._params)]
            if self.mc_samples > 1:  # the next call may write into the same gradients
                parts = [part / self.mc_samples for part in parts]
            total = parts if total is None else list(map(torch.add, total, parts))
        self._iteration = record
        return total[0], total[2:], total[1]

    def _draws(self, mean: Tensor) -> Iterator[None]:
        """Set the weights to the next w_s ~ q, one after the other, or leave them at the mean."""
        generator = torch.Generator(mean.device)
        generator.set_state(self._state["generator"])
        yield from self._drawn(mean, self.mc_samples, generator)
        self._state["generator"] = generator.get_state()

    def _drawn(self, mean: Tensor, n_draws: int, generator: Generator) -> Iterator[None]:
        if not self._sampled:
            yield
            return
        precision = self._present_precision()
        for _ in range(n_draws):
            if self._diagonal:
                draw(self._pieces, self._params, mean, precision.factor, generator)
            else:
                z = torch.randn(len(mean), generator=generator, device=mean.device,
                                dtype=precision.factor.dtype)  # fmt: skip
                self._set(precision.scale(z).to(mean.dtype).add_(mean))
            yield

    def _curvature_of(self, seen: Observation, scale: float) -> Tensor:
        """H at the present weights: that of the batch, times N/n."""
        if self._diagonal:
            assert seen.squares is not None
            return seen.squares
        linearization = self._present_linearization()
        C = seen.residual[..., None] if self.curvature == "gradient" else self._weighted_factor
        if callable(C):
            C = C(linearization.outputs(seen.X))
        return linearization.ggn(seen.X, cotangents=C)[self._order][:, self._order].mul_(scale)

    def _update(self, mean: Tensor, gradient: list[Tensor], H: Tensor) -> None:
        """Move q; the gradient, and so the direction, is that of the objective over N."""
        state, beta = self._state, self._rate()
        remaining = state["remaining"] * (1.0 - beta)
        if self._diagonal:
            self._move_diagonal(mean, gradient, H, remaining)
            self._precision = DiagonalPrecision.from_factor(H)
        else:
            # A may have no factor, and then S must stay as it was.
            delta, S = self._per_weight("prior_precision"), torch.lerp(state["curvature"], H, beta)
            A = with_prior(self._corrected(S, remaining, out=H), delta, out=H)
            precision = precision_of(A)
            direction = _add(torch.cat(gradient), delta / self.n_data, mean)
            step = precision.solve(self._with_momentum(direction).to(S.dtype)).to(mean.dtype)
            self._set(_add(mean, -self._rates() * self.n_data, step))
            state["curvature"], self._precision = S, precision
        state.update(remaining=remaining, step=state["step"] + 1)

    def _move_diagonal(
        self, mean: Tensor, gradient: list[Tensor], H: Tensor, remaining: float
    ) -> None:
        """Move S, the running gradient and μ, a piece after the other; H becomes (S + δ)^(-1/2)."""
        state, beta, N, cut = self._state, self._rate(), self.n_data, self._pieces
        owners = [g for g in self.param_groups for p in g["params"] if p.requires_grad]
        groups = [g for g, sizes in zip(owners, cut.of_param, strict=True) for _ in sizes]
        flat = (state["curvature"], state["momentum"], mean, H)
        with writable(self._params) as weights:
            pieces = (*map(cut.of, flat), cut.of_each(gradient), cut.of_each(weights))
            for group, S, m, mu, h, g, w in zip(groups, *pieces, strict=True):
                delta, keep = group["prior_precision"], group["momentum"]
                A = torch.add(self._corrected(S.lerp_(h, beta), remaining, out=h), delta, out=h)
                direction = torch.add(g, mu, alpha=delta / N)
                if keep:
                    direction = m.lerp_(direction, 1.0 - keep)
                rate = group["lr"] / (1.0 - keep ** (state["step"] + 1))
                torch.addcdiv(mu, direction, A, value=-rate * N, out=w)
                A.rsqrt_()

    def _with_momentum(self, gradient: Tensor) -> Tensor:
        """The direction to take: the running mean of gradients, moved in its place."""
        rate = self._per_weight("momentum")
        if isinstance(rate, float) and rate == 0.0:
            return gradient
        return self._state["momentum"].lerp_(gradient, 1.0 - rate)

    def _rates(self) -> Any:
        """α, divided by what the running mean of gradients lacks after its start at zero."""
        return self._per_weight("lr") / (
            1.0 - self._per_weight("momentum") ** (self._state["step"] + 1)
        )

    def _corrected(self, S: Tensor, remaining: float, out: Tensor | None = None) -> Tensor:
        """S without what is left of S₀ in it, where asked for; S itself or in memory of its own."""
        start = self._state["initial_curvature"]
        if not self.bias_correction or remaining == 1.0:
            return S
        left = remaining * start
        # Rounding may leave a zero curvature just below zero.
        free = with_prior(S, -left, out).div_(1.0 - remaining)
        return free.clamp_min_(0.0) if self._diagonal else free

    # -------------------------------------------------------------- what an iteration is

    def posterior(self) -> GaussianWeights:
        """q_t = N(μ_t, (S_t + δ)⁻¹) at this iteration."""
        A = with_prior(self.corrected_curvature(), self._per_weight("prior_precision"))
        return GaussianWeights(self._mean().double(), A.double())

    def corrected_curvature(self) -> Tensor:
        """S_t, of shape (n_params, n_params) or (n_params,), free of S₀ where asked for."""
        S = self._state["curvature"]
        corrected = self._corrected(S, self._state["remaining"])
        return S.clone() if corrected is S else corrected

    def set_curvature(self, curvature: Tensor) -> None:
        """Go on from another S, as that of a Laplace posterior; ValueError if of another shape."""
        own = self._state["curvature"]
        if curvature.shape != own.shape:
            raise ValueError(
                f"curvature must have shape {tuple(own.shape)}, got {tuple(curvature.shape)}."
            )
        self._state.update(curvature=curvature.detach().clone().to(own), remaining=0.0)
        self._precision = None

    def elbo(self, expected_loss: float | None = None) -> float:
        """Evidence lower bound E_q[Σ log p(y|f)] - KL(q ‖ prior).

        ``expected_loss``, E_q[Σℓ], of None is the last step's estimate, from its batch and its
        samples; RuntimeError if there has been no step yet.
        """
        if expected_loss is None:
            expected_loss = getattr(self, "expected_loss", None)
        if expected_loss is None:
            raise RuntimeError("elbo needs a step first, or expected_loss.")
        return -expected_loss - self.posterior().kl_divergence(self._per_weight("prior_precision"))

    @torch.no_grad()
    def estimate_loss(
        self, closure: Callable[[], Tensor], n_draws: int | None = None, random_state: int = 0
    ) -> float:
        """E_q[Σℓ] of the present q, from ``n_draws`` of its own (None: ``mc_samples``): no step is
        taken.

        With one ``random_state``, the difference of two estimates is that of two q's and not of
        their draws, so that ``elbo(estimate_loss(closure))`` tells whether a step has raised the
        bound. Of a step's own estimate, q is the one before it. The closure need not call
        ``backward``.
        """
        mean = self._mean()
        generator = torch.Generator(mean.device).manual_seed(random_state)
        n_draws = self.mc_samples if n_draws is None else n_draws
        losses = []
        try:
            for _ in self._drawn(mean, n_draws, generator):
                with torch.enable_grad():
                    losses.append(float(closure().detach()))
        finally:
            self._set(mean)
        return self.n_data * math.fsum(losses) / len(losses)

    def snapshot(self) -> dict[str, Any]:
        """The mean and all state, to go back to with :meth:`restore`; of this optimiser alone."""
        return {"mean": self._mean(), "state": copied(self._state)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to what :meth:`snapshot` returned, so that a step can be taken again, shorter.

        Rates are those of the param_groups and are left alone. The draws will be the same.
        """
        self._set(snapshot["mean"])
        self._state.update(copied(snapshot["state"]))
        self._precision = self._iteration = None

    def dual_gp(self) -> IterationModel:
        """The linear model and the Gaussian process that the last step was (theorem 2).

        RuntimeError if the optimiser was not made with ``keep_iteration=True`` and a likelihood, or
        no step was taken.
        """
        kept = self._iteration
        if kept is None or self.likelihood is None:
            raise RuntimeError(
                "dual_gp needs keep_iteration=True and a likelihood when the optimiser is made, "
                "and one step."
            )
        root = 1.0 if kept.sample_weight is None else kept.sample_weight.sqrt()[:, None, None]
        factors = [self.likelihood.noise_precision_factor(o.f.double()) * root for o in kept.seen]
        return LinearModel.from_variational(
            [self._linearized_at(w) for w in kept.weights],
            kept.seen[0].X,
            torch.stack(factors),
            torch.stack([o.residual.double() for o in kept.seen]),
            kept.q.mean,
            kept.q.precision,
            kept.delta,
            kept.rate,
            kept.scale,
        )

    def _started_iteration(self) -> _Iteration:
        delta = self._per_weight("prior_precision")
        delta = delta.double() if isinstance(delta, Tensor) else delta
        weight = None if self.sample_weight is None else self.sample_weight.double()
        return _Iteration(self.posterior(), delta, self._rate(), weight)

    def _linearized_at(self, w: Tensor) -> Linearization:
        """The network fixed at w, in float64."""
        names = parameter_names(self._module, self._params)
        module = copied(self._module).double()
        named = dict(module.named_parameters())
        with torch.no_grad():
            for name, piece in zip(names, self._split(w.double()), strict=True):
                named[name].copy_(piece)
        return Linearization(module, parameters=names, memory_limit=self.memory_limit)

    # -------------------------------------------------------------- rates, module

    @property
    def _module(self) -> nn.Module:
        assert self._watcher.module is not None
        return self._watcher.module

    def _rate(self) -> float:
        """β: one for all weights; lr where it is not set."""
        rates = {g["lr"] if g["beta"] is None else g["beta"] for g in self.param_groups}
        if len(rates) > 1:
            raise ValueError(f"beta must be the same in all param_groups, got {sorted(rates)}.")
        rate = float(rates.pop())
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"beta must lie in [0, 1], got {rate} (beta=None takes lr).")
        return rate

    def _present_precision(self) -> Precision:
        if self._precision is None:
            S, delta = self.corrected_curvature(), self._per_weight("prior_precision")
            self._precision = precision_of(with_prior(S, delta))
        return self._precision

    def _present_linearization(self) -> Linearization:
        """Of the module at whatever weights it has; made at the first step."""
        if self._linearization is None:
            names = parameter_names(self._module, self._params)
            self._linearization = Linearization(
                self._module, parameters=names, dtype=torch.float64, memory_limit=self.memory_limit
            )
            self._order = order_in(self._linearization, names)
        return self._linearization

    def _weighted_factor(self, f: Tensor) -> Tensor:
        assert self.likelihood is not None
        L = self.likelihood.noise_precision_factor(f)
        if self.sample_weight is None:
            return L
        return L * self.sample_weight.sqrt().to(L)[:, None, None]

    # -------------------------------------------------------------- checks, saving

    def _checked_batch(self, seen: Observation) -> int:
        n = len(seen.f)
        if n > self.n_data:
            raise ValueError(
                f"n_data={self.n_data} is less than the {n} examples of a batch: it is the number "
                "of examples in the whole training set."
            )
        return n

    def _check_finite(self, loss: Tensor, gradient: list[Tensor], H: Tensor) -> None:
        for name, values in (("loss", [loss]), ("gradient", gradient), ("curvature", [H])):
            total = float(sum(value.sum() for value in values))
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"The {name} is not finite ({total}) in step {self._state['step'] + 1} of "
                    f"{type(self).__name__}. Weights and precision are kept as they were after "
                    f"step {self._state['step']}: lower lr or beta, raise initial_precision, or "
                    "check the batch for NaN."
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state, to go on bit for bit."""
        super().load_state_dict(state_dict)
        # torch casts floating state to the weights' precision; ours keeps its own.
        saved = copied(next(iter(state_dict["state"].values())))
        device = self._params[0].device
        for name in ("curvature", "momentum"):
            saved[name] = saved[name].to(device)
        self.state[self._params[0]] = saved
        self._precision = self._iteration = None

    def __getstate__(self) -> dict[str, Any]:
        settings = {k: v for k, v in self.__dict__.items() if k in _SETTINGS}
        return {**super().__getstate__(), "_settings": settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings = state.pop("_settings", {})
        super().__setstate__(state)
        self.__dict__.update(settings)
        if settings:
            self._set_transient(None)


_SETTINGS = (
    "n_data", "likelihood", "mc_samples", "initial_precision", "bias_correction", "curvature",
    "keep_iteration", "memory_limit", "random_state", "sample_weight", "expected_loss",
)  # fmt: skip


def _add(a: Tensor, factor: Any, b: Tensor) -> Tensor:
    """a + factor · b in the place of a, the factor a number or one per weight."""
    if isinstance(factor, Tensor):
        return a.addcmul_(factor, b)
    return a.add_(b, alpha=factor)


def _check_group(group: dict[str, Any]) -> None:
    for name, low, high in (("lr", 0.0, math.inf), ("prior_precision", 0.0, math.inf)):
        if not low < group[name] < high:
            raise ValueError(f"{name} must be positive and finite, got {group[name]!r}.")
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']!r}.")
    beta = group["beta"]
    if beta is not None and not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must lie in [0, 1], got {beta!r}.")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")

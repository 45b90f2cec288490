"""The one update behind VOGGN, VOGN, OGGN and OGN (MATH 5).

Optimisers that carry a Gaussian over the weights, four faces of ``Variational.step``:

    S ← (1-β) S + β mean_s H_s         H_s = Σ_i JᵀΛJ, or Σ_i ∇ℓ_i ∇ℓ_iᵀ, at w_s
    μ ← μ - α (S + δ)⁻¹ (mean_s g_s + δ μ)

    at samples w_s ~ N(μ, (S+δ)⁻¹)     VOGGN: S a matrix     VOGN: its diagonal
    at the mean w_s = μ                OGGN                  OGN

Between steps the parameters hold μ. Per-example quantities come from the closure's own forward
and backward pass (``_closure``). Shapes: μ, g (P,); S, H (P, P) or (P,); P in the order of the
optimiser's parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..likelihoods import Likelihood
from ..linear_model import IterationModel, LinearModel
from ..linearize import Linearization
from .closure import Observation, Watcher, check_reduction, parameter_names
from .structure import Diagonal, Full, Structure

__all__ = ["GaussianWeights", "Variational"]


@dataclass(frozen=True)
class GaussianWeights:
    """A Gaussian over the weights, q = N(μ, A⁻¹) (MATH 5).

    Parameters
    ----------
    mean : Tensor of shape (n_params,), float64
        μ, in the order of the optimiser's parameters.
    precision : Tensor of shape (n_params, n_params) or (n_params,), float64
        A = S + δ, a matrix or its diagonal.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.optim import GaussianWeights
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> round(GaussianWeights(one, 4 * one).kl_divergence(1.0), 4)
    1.6363
    """

    mean: Tensor
    precision: Tensor

    @property
    def structure(self) -> Structure:
        """Whether the precision is a matrix or a diagonal."""
        return Full if self.precision.ndim == 2 else Diagonal

    def variances(self) -> Tensor:
        """diag A⁻¹, of shape (n_params,): the variances of the weights."""
        return self.structure.variances(self.structure.factor(self.precision))

    def sample(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw weights, of shape (n_samples, n_params)."""
        z = torch.randn(n_samples, len(self.mean), dtype=torch.float64, generator=generator)
        factor = self.structure.factor(self.precision)
        return self.mean + self.structure.scale(factor, z.to(self.mean.device))

    def kl_divergence(self, prior_precision: float | Tensor) -> float:
        """KL(q ‖ N(0, I/δ)) = ½ [δ tr A⁻¹ + δ‖μ‖² - P + log|A| - P log δ].

        Parameters
        ----------
        prior_precision : float or Tensor of shape (n_params,)
            δ.

        Returns
        -------
        float
        """
        delta = torch.as_tensor(prior_precision, dtype=torch.float64).expand(len(self.mean))
        delta = delta.to(self.mean.device)
        factor = self.structure.factor(self.precision)
        squares = (delta * (self.structure.variances(factor) + self.mean**2)).sum()
        logs = self.structure.log_determinant(factor) - delta.log().sum()
        return float(0.5 * (squares - len(self.mean) + logs))


@dataclass
class _Iteration:
    """What a step saw, kept for ``dual_gp``."""

    weights: list[Tensor]
    seen: list[Observation]
    mean: Tensor
    precision: Tensor
    delta: Tensor | float
    rate: float
    scale: float
    sample_weight: Tensor | None


class Variational(torch.optim.Optimizer):
    """The one update; its four faces choose a structure and where expectations are taken."""

    _structure: Structure
    _sampled: bool

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        n_data: int,
        likelihood: Likelihood | None,
        prior_precision: float,
        beta: float | None,
        momentum: float,
        mc_samples: int,
        initial_precision: float | None,
        bias_correction: bool,
        curvature: str,
        module: nn.Module | None,
        random_state: int | None,
        keep_iteration: bool,
        memory_limit: float | None,
    ) -> None:
        group = {"lr": lr, "beta": beta, "momentum": momentum, "prior_precision": prior_precision}
        super().__init__(params, group)
        for group in self.param_groups:
            _check_group(group)
        _check_count("n_data", n_data)
        _check_count("mc_samples", mc_samples)
        if curvature not in ("ggn", "gradient"):
            raise ValueError(f"curvature must be 'ggn' or 'gradient', got {curvature!r}.")
        if curvature == "ggn" and not isinstance(likelihood, Likelihood):
            raise ValueError(
                "curvature='ggn' needs the likelihood whose noise precision it is, one of "
                f"sk_dnn2gp.likelihoods; got {likelihood!r}."
            )
        self.n_data, self.likelihood, self.mc_samples = n_data, likelihood, mc_samples
        self.initial_precision, self.bias_correction = initial_precision, bias_correction
        self.curvature, self.keep_iteration = curvature, keep_iteration
        self.memory_limit, self.random_state = memory_limit, random_state
        self.sample_weight: Tensor | None = None
        self._set_transient(module)
        self._start()

    def _set_transient(self, module: nn.Module | None) -> None:
        """What can be found again: the module, its plan, the last factor and iteration."""
        diagonal = self._structure is Diagonal
        factor = self._weighted_factor if self.curvature == "ggn" else None
        self._watcher = Watcher(self._params, module, factor, diagonal)
        self._factor: Tensor | None = None
        self._linearization: Linearization | None = None
        self._iteration: _Iteration | None = None

    def _start(self) -> None:
        """S₀, momentum and the generator: all state, held under the first parameter."""
        mean = self._mean()
        start = float(self.n_data) if self.initial_precision is None else None
        if start is None:
            delta = max(g["prior_precision"] for g in self.param_groups)
            start = self.initial_precision - delta  # type: ignore[operator]
            if not 0.0 <= start < math.inf:
                raise ValueError(
                    f"initial_precision must be finite and at least prior_precision={delta}, got "
                    f"{self.initial_precision!r}."
                )
        generator = torch.Generator(mean.device)
        seed = self.random_state
        generator.manual_seed(int(torch.randint(2**31, ())) if seed is None else seed)
        self.state[self._params[0]] = {
            "step": 0,
            "curvature": self._structure.start(len(mean), start, mean),
            "momentum": torch.zeros_like(mean),
            "generator": generator.get_state(),
            "initial_curvature": start,
            "remaining": 1.0,  # Π (1-β): how much of S₀ is left in S
        }

    # -------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Take one step of the mean and the precision.

        Parameters
        ----------
        closure : callable
            Zeroes the gradients, calls the module once on a batch, and returns the batch's mean
            negative log-likelihood, prior excluded, after ``backward``. Called ``mc_samples``
            times, each time with the weights set to a draw from q.

        Returns
        -------
        Tensor
            Mean of the closure's losses.

        Raises
        ------
        ValueError
            If there is no closure, or it breaks the protocol, or the batch is larger than n_data.
        FloatingPointError
            If the loss, its gradient or the curvature is not finite; weights and state are then
            those before the step.
        """
        if closure is None:
            raise ValueError(
                f"{type(self).__name__}.step needs a closure: curvature is taken while it runs."
            )
        state, mean = self._state, self._mean()
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, Σ∇ℓ and H, means over the samples; H and Σ∇ℓ scaled to all N examples."""
        draws = self._draws(mean)
        record = self._started_iteration(mean) if self.keep_iteration else None
        total: Any = None
        for w in draws:
            self._set(w)
            seen = self._watcher.observe(closure)
            check_reduction(seen, self.likelihood, self.sample_weight)
            scale = self.n_data / self._checked_batch(seen)
            if record is not None:
                record.weights.append(w.clone())
                record.seen.append(seen)
                record.scale = scale
            # The weights have them now: the memory of the draw serves the gradient.
            place = w if self._sampled else None
            g = torch.cat([_gradient(p) for p in self._params], out=place).mul_(self.n_data)
            parts = (seen.loss, g, self._curvature_of(seen).mul_(scale))
            total = parts if total is None else tuple(map(torch.add, total, parts))
        self._iteration = record
        if len(draws) > 1:
            total = tuple(part / len(draws) for part in total)
        return total

    def _draws(self, mean: Tensor) -> list[Tensor]:
        """w_s ~ q, or the mean alone."""
        if not self._sampled:
            return [mean]
        factor = self._present_factor()
        generator = torch.Generator(mean.device)
        generator.set_state(self._state["generator"])
        draws = []
        for _ in range(self.mc_samples):
            z = torch.randn(len(mean), generator=generator, device=mean.device, dtype=factor.dtype)
            draws.append(self._structure.scale(factor, z).to(mean.dtype).add_(mean))
        self._state["generator"] = generator.get_state()
        return draws

    def _curvature_of(self, seen: Observation) -> Tensor:
        """H of the batch at the present weights."""
        if self._structure is Diagonal:
            assert seen.squares is not None
            return seen.squares
        linearization = self._present_linearization()
        C = seen.residual[..., None] if self.curvature == "gradient" else self._weighted_factor
        if callable(C):
            C = C(linearization.outputs(seen.X))
        return linearization.ggn(seen.X, cotangents=C)[self._order][:, self._order]

    def _update(self, mean: Tensor, gradient: Tensor, H: Tensor) -> None:
        """Move q, in the memory of the three; what can fail comes before anything is stored."""
        state, delta, lr = self._state, self._per_weight("prior_precision"), self._rates()
        beta = self._rate()
        S = self._structure.blend(state["curvature"], H, beta)
        remaining = state["remaining"] * (1.0 - beta)
        A = self._structure.precision(self._corrected(S, remaining, out=H), delta, out=H)
        factor = self._structure.factor(A)
        direction = self._with_momentum(_add(gradient, delta, mean))
        step = self._structure.solve(factor, direction.to(factor.dtype)).to(mean.dtype)
        self._set(_add(mean, -lr, step))
        state.update(curvature=S, remaining=remaining, step=state["step"] + 1)
        self._factor = factor

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
        free = self._structure.precision(S, -left, out).div_(1.0 - remaining)
        return free.clamp_min_(0.0) if self._structure is Diagonal else free

    # -------------------------------------------------------------- what an iteration is

    def posterior(self) -> GaussianWeights:
        """q_t = N(μ_t, (S_t + δ)⁻¹) at this iteration.

        Returns
        -------
        GaussianWeights
        """
        A = self._structure.precision(
            self.corrected_curvature(), self._per_weight("prior_precision")
        )
        return GaussianWeights(self._mean().double(), A.double())

    def corrected_curvature(self) -> Tensor:
        """S_t, of shape (n_params, n_params) or (n_params,), free of S₀ where asked for.

        Returns
        -------
        Tensor
        """
        S = self._state["curvature"]
        corrected = self._corrected(S, self._state["remaining"])
        return S.clone() if corrected is S else corrected

    def set_curvature(self, curvature: Tensor) -> None:
        """Go on from another S, as that of a Laplace posterior.

        Parameters
        ----------
        curvature : Tensor of shape (n_params, n_params) or (n_params,)
            S, of the structure of this optimiser's own.

        Raises
        ------
        ValueError
            If the shape is another.
        """
        own = self._state["curvature"]
        if curvature.shape != own.shape:
            raise ValueError(
                f"curvature must have shape {tuple(own.shape)}, got {tuple(curvature.shape)}."
            )
        self._state.update(curvature=curvature.detach().clone().to(own), remaining=0.0)
        self._factor = None

    def elbo(self, expected_loss: float | None = None) -> float:
        """Evidence lower bound E_q[Σ log p(y|f)] - KL(q ‖ prior).

        Parameters
        ----------
        expected_loss : float, optional
            E_q[Σℓ]; None takes the last step's estimate, from its batch and its samples.

        Returns
        -------
        float

        Raises
        ------
        RuntimeError
            If there has been no step yet.
        """
        if expected_loss is None:
            expected_loss = getattr(self, "expected_loss", None)
        if expected_loss is None:
            raise RuntimeError("elbo needs a step first, or expected_loss.")
        return -expected_loss - self.posterior().kl_divergence(self._per_weight("prior_precision"))

    def dual_gp(self) -> IterationModel:
        """The linear model and the Gaussian process that the last step was (theorem 2).

        Returns
        -------
        IterationModel

        Raises
        ------
        RuntimeError
            If the optimiser was not made with ``keep_iteration=True`` and a likelihood, or no step
            was taken.
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
            kept.mean,
            kept.precision,
            kept.delta,
            kept.rate,
            kept.scale,
        )

    def _started_iteration(self, mean: Tensor) -> _Iteration:
        delta = self._per_weight("prior_precision")
        q = self.posterior()
        delta = delta.double() if isinstance(delta, Tensor) else delta
        weight = None if self.sample_weight is None else self.sample_weight.double()
        return _Iteration([], [], q.mean, q.precision, delta, self._rate(), 1.0, weight)

    def _linearized_at(self, w: Tensor) -> Linearization:
        """The network fixed at w, in float64."""
        names = parameter_names(self._module, self._params)
        module = copy.deepcopy(self._module).double()
        named = dict(module.named_parameters())
        with torch.no_grad():
            for name, piece in zip(names, self._split(w.double()), strict=True):
                named[name].copy_(piece)
        return Linearization(module, parameters=names, memory_limit=self.memory_limit)

    # -------------------------------------------------------------- weights, flat

    @property
    def _params(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"] if p.requires_grad]

    @property
    def _state(self) -> dict[str, Any]:
        return self.state[self._params[0]]

    @property
    def _module(self) -> nn.Module:
        assert self._watcher.module is not None
        return self._watcher.module

    def _mean(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self._params])

    def _split(self, w: Tensor) -> list[Tensor]:
        params = self._params
        pieces = w.split([p.numel() for p in params])
        return [piece.view(p.shape) for piece, p in zip(pieces, params, strict=True)]

    def _set(self, w: Tensor) -> None:
        torch._foreach_copy_([p.detach() for p in self._params], self._split(w))

    def _per_weight(self, name: str) -> Any:
        """A group's number, or one per weight where the groups differ."""
        values = [float(g[name]) for g in self.param_groups]
        if len(set(values)) == 1:
            return values[0]
        p = self._params[0]
        pieces = [
            torch.full((sum(q.numel() for q in g["params"] if q.requires_grad),), v)
            for g, v in zip(self.param_groups, values, strict=True)
        ]
        return torch.cat(pieces).to(p)

    def _rate(self) -> float:
        """β: one for all weights; lr where it is not set."""
        rates = {g["lr"] if g["beta"] is None else g["beta"] for g in self.param_groups}
        if len(rates) > 1:
            raise ValueError(f"beta must be the same in all param_groups, got {sorted(rates)}.")
        rate = float(rates.pop())
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"beta must lie in [0, 1], got {rate} (beta=None takes lr).")
        return rate

    def _present_factor(self) -> Tensor:
        if self._factor is None:
            S, delta = self.corrected_curvature(), self._per_weight("prior_precision")
            self._factor = self._structure.factor(self._structure.precision(S, delta))
        return self._factor

    def _present_linearization(self) -> Linearization:
        """Of the module at whatever weights it has; made at the first step."""
        if self._linearization is None:
            names = parameter_names(self._module, self._params)
            self._linearization = Linearization(
                self._module, parameters=names, dtype=torch.float64, memory_limit=self.memory_limit
            )
            named = dict(zip(names, self._split(torch.arange(self._mean().numel())), strict=True))
            found = [named[n].flatten() for n in self._linearization.parameter_names]
            self._order = torch.cat(found).argsort().to(self._params[0].device)
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

    def _check_finite(self, loss: Tensor, gradient: Tensor, H: Tensor) -> None:
        for name, value in (("loss", loss), ("gradient", gradient), ("curvature", H)):
            total = float(value.sum())
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"The {name} is not finite ({total}) in step {self._state['step'] + 1} of "
                    f"{type(self).__name__}. Weights and precision are kept as they were after "
                    f"step {self._state['step']}: lower lr or beta, raise initial_precision, or "
                    "check the batch for NaN."
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state, to go on bit for bit.

        Parameters
        ----------
        state_dict : dict
            From ``state_dict()``.
        """
        super().load_state_dict(state_dict)
        # torch casts floating state to the weights' precision; ours keeps its own.
        saved = copy.deepcopy(next(iter(state_dict["state"].values())))
        device = self._params[0].device
        for name in ("curvature", "momentum"):
            saved[name] = saved[name].to(device)
        self.state[self._params[0]] = saved
        self._factor = self._iteration = None

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


def _gradient(p: Tensor) -> Tensor:
    return (torch.zeros_like(p) if p.grad is None else p.grad).flatten()


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

"""Full-batch Gauss-Newton with Levenberg-Marquardt damping.

Mathematics: :ref:`math-variational`; its OGGN, never going uphill.

At weights w with gradient g = ∇loss and curvature A = δ + ΦᵀΦ, a trial step solves
(A + μ I) x = -g. It is taken only if the loss falls; μ follows the ratio ρ of the actual to the
predicted decrease by Nielsen's rule (1999, IMM-REP-1999-05): times max(1/3, 1 - (2ρ - 1)³), and
growing fast while steps fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..linearize import Linearization
from .curvature import Curvature, curvature_at

__all__ = ["GaussNewton", "SecantMemory"]

# Below this part of the loss a decrease drowns in the rounding of the sum over examples,
_ROUNDING = 1e-9
# and below this one there is nothing left to gain (in single precision: the loss's own rounding).
_NOTHING = 1e-18


@dataclass(frozen=True)
class _Point:
    """One call of the closure: its own loss ``raw``; the whole loss and gradient, float64."""

    raw: Tensor
    loss: float
    gradient: Tensor
    weights: Tensor
    X: Tensor
    outputs: Tensor


class GaussNewton(torch.optim.Optimizer):
    """Gauss-Newton steps on loss(w) = Σ ℓ(y, f_w(x)) + δ/2 ‖w‖², with damping.

    Mathematics: :ref:`math-objective`, :ref:`math-variational`.

    Every call of ``step`` makes up to ``max_iter`` accepted steps, as ``torch.optim.LBFGS`` does.
    The closure zeroes the gradients, calls ``module`` on the whole data, and returns the loss,
    prior included, divided by ``loss_scale``, after ``backward``. The loss never increases.

    Parameters
    ----------
    params : iterable of Tensor
        ``module.parameters()``.
    lr : float, default=1.0
        Factor on the Gauss-Newton step.
    module : torch.nn.Module
        The network that the closure calls.
    likelihood : Likelihood
        Its noise precision Λ(f) gives the curvature.
    prior_precision : float, default=1.0
        δ, as in the closure's loss.
    sample_weight : Tensor of shape (n_samples,), optional
        s, as in the closure's loss.
    loss_scale : float, default=1.0
        What the closure divided the loss by.
    max_iter : int, default=100
        Accepted steps in one call of ``step``.
    tol : float, default=1e-8
        Stop when ‖∇loss‖ ≤ tol (1 + abs loss).
    damping : float, default=1e-2
        First μ, relative to the largest diagonal entry of ΦᵀΦ.
    history_size : int, default=8
        Secant pairs that correct the Gauss-Newton matrix near the minimum; 0 for none.
    memory_limit : float, optional
        MiB for the matrices of a step; None is scikit-learn's ``working_memory``.

    Attributes
    ----------
    gradient_norm : float
        ‖∇loss‖ at the last point.
    n_iter : int
        Accepted steps so far.
    losses : list of float
        The loss before and after every accepted step of the last call.
    converged : bool
        Whether ``tol`` was met, or no step could lower the loss any more in floating point.

    Raises
    ------
    ValueError
        If a number is out of range, or ``params`` are not the module's.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.optim import GaussNewton
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> x = torch.ones(3, 1, dtype=torch.float64)
    >>> optimizer = GaussNewton(net.parameters(), module=net, likelihood=Gaussian(1.0))
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     squares = (net(x) - 4.0).square().sum() + net.weight.square().sum()
    ...     loss = 0.5 * squares
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> round(net.weight.item(), 6)  # 3 * 4 / (3 + 1)
    3.0
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        *,
        module: nn.Module,
        likelihood: Likelihood,
        prior_precision: float = 1.0,
        sample_weight: Tensor | None = None,
        loss_scale: float = 1.0,
        max_iter: int = 100,
        tol: float = 1e-8,
        damping: float = 1e-2,
        history_size: int = 8,
        memory_limit: float | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("prior_precision", prior_precision)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}.")
        super().__init__(params, {"lr": lr, "prior_precision": prior_precision})
        self.likelihood, self.sample_weight = likelihood, sample_weight
        self.loss_scale = loss_scale
        self.max_iter, self.tol, self.memory_limit = max_iter, tol, memory_limit
        self.linearization = Linearization(module, memory_limit=memory_limit)
        self._module = module
        self._params = [p for p in self.param_groups[0]["params"] if p.requires_grad]
        self._sizes = [p.numel() for p in self._params]
        if sum(self._sizes) != self.linearization.n_params:
            raise ValueError("params must be module.parameters(): all weights of the network.")
        double = self.linearization.dtype == torch.float64
        self._nothing = _NOTHING if double else torch.finfo(self.linearization.dtype).eps
        # NaN: to be set from the curvature at the next point.
        self._relative_damping, self._damping, self._growth = damping, math.nan, 2.0
        self._memory = SecantMemory(history_size)
        self.gradient_norm, self.n_iter, self.converged = float("inf"), 0, False
        self.losses: list[float] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Make up to ``max_iter`` accepted steps; return the loss before them.

        ValueError if no closure is given, or it does not call the module; FloatingPointError if the
        loss at the starting point is not finite.
        """
        if closure is None:
            raise ValueError("GaussNewton.step needs a closure that returns the loss.")
        first = self._evaluate(closure)
        if not math.isfinite(first.loss):
            raise FloatingPointError(f"The loss is {first.loss} before the first step.")
        point, self.losses = first, [first.loss]
        self.converged = self._is_converged(point)
        for _ in range(self.max_iter):
            if self.converged:
                break
            following = self._descend(closure, point)
            if following is None:
                self.converged = True
                break
            point = following
            self.losses.append(point.loss)
            self.n_iter += 1
            self.converged = self._is_converged(point)
        return first.raw

    def _evaluate(self, closure: Callable[[], Tensor]) -> _Point:
        """Call the closure at the module's present weights; it shows X and f(X) to a hook."""
        seen: list[Tensor] = []
        handle = self._module.register_forward_hook(
            lambda _, args, f: seen.extend((args[0], f.detach()))
        )
        try:
            with torch.enable_grad():
                raw = closure()
        finally:
            handle.remove()
        if not seen:
            raise ValueError("The closure must call the module given to GaussNewton.")
        gradient = _flat([cast(Tensor, p.grad) for p in self._params]) * self.loss_scale
        loss = float(raw.detach().double()) * self.loss_scale
        return _Point(raw, loss, gradient, _flat(self._params), *seen[-2:])

    def _curvature(self, point: _Point) -> Curvature:
        """Curvature at the module's present weights, by further passes."""
        L = self.likelihood.noise_precision_factor(point.outputs)
        if self.sample_weight is not None:
            L = L * self.sample_weight.sqrt().to(L)[:, None, None]
        return curvature_at(self.linearization, point.X, L, self.memory_limit)

    def _is_converged(self, point: _Point) -> bool:
        self.gradient_norm = float(point.gradient.norm())
        return self.gradient_norm <= self.tol * (1.0 + abs(point.loss))

    def _descend(self, closure: Callable[[], Tensor], point: _Point) -> _Point | None:
        """Try steps of growing damping until one lowers the loss; None when none does."""
        group = self.param_groups[0]
        curvature = self._curvature(point)
        if math.isnan(self._damping):
            self._damping = self._relative_damping * curvature.scale
        ceiling = 1e12 * (curvature.scale + group["prior_precision"])
        start = point.weights
        while self._damping <= ceiling:
            diagonal = group["prior_precision"] + self._damping
            x = self._memory.solve(point.gradient, partial(curvature.solve, diagonal=diagonal))
            if x is not None:
                predicted = self._predicted_decrease(point, x)
                if predicted <= self._nothing * abs(point.loss):
                    break
                self._set_weights(start - group["lr"] * x)
                trial = self._evaluate(closure)
                gain = _decrease(point, trial, group["lr"] * x, predicted) / predicted
                if gain > 0 and bool(torch.isfinite(trial.gradient).all()):
                    self._memory.remember(-group["lr"] * x, trial.gradient - point.gradient)
                    self._damping *= max(1 / 3, 1.0 - (2.0 * min(gain, 2.0) - 1.0) ** 3)
                    self._growth = 2.0
                    return trial
                if not curvature.is_explicit:  # its next product with J is at the module's weights
                    self._set_weights(start)
            self._memory.forget()
            self._damping = max(self._damping * self._growth, 1e-12 * curvature.scale)
            self._growth *= 2.0
        self._set_weights(start)
        self._damping, self._growth = math.nan, 2.0
        return None

    def _predicted_decrease(self, point: _Point, x: Tensor) -> float:
        """What the quadratic model promises for the step -x."""
        predicted = 0.5 * float(point.gradient @ x)
        if len(self._memory) == 0:
            # gᵀx - ½xᵀAx with (A + μ)x = g
            predicted += 0.5 * self._damping * float(x @ x)
        return predicted

    def _set_weights(self, w: Tensor) -> None:
        parts = w.split(self._sizes)
        shaped = [t.view_as(p) for t, p in zip(parts, self._params, strict=True)]
        torch._foreach_copy_(self._params, shaped)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One float64 vector of all entries."""
    return torch.cat([t.detach().reshape(-1) for t in tensors]).double()


def _decrease(point: _Point, trial: _Point, x: Tensor, predicted: float) -> float:
    """How far the loss fell along the step -x."""
    if predicted >= _ROUNDING * abs(point.loss):
        return point.loss - trial.loss
    # Too small to be seen in the loss: the trapezoid rule along the step is exact to third order
    # in the step, and the rounding of the loss does not reach it.
    return 0.5 * float((point.gradient + trial.gradient) @ x)


class SecantMemory:
    """The last ``size`` steps and the changes of the gradient along them.

    The recursion of L-BFGS (Nocedal & Wright 2006, algorithm 7.4) started from the damped
    Gauss-Newton inverse H in place of a multiple of the identity: the secant pairs hold what the
    Gauss-Newton matrix leaves out (the second derivatives of f times the residuals), which makes
    the last digits of a fit with large residuals come in a few steps. With steps s_i and changes
    y_i as the rows of S and Y, and R the upper triangle of S Yᵀ, its two loops are the systems

        R a = S g      x = H(g - Yᵀ a)      Rᵀ c = diag(R) a - Y x      result x + Sᵀ c
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.S: Tensor
        self.Y: Tensor
        self.R: Tensor
        self.forget()

    def __len__(self) -> int:
        return self.S.shape[0]  # as fast as a number; len() of a tensor is not

    def remember(self, s: Tensor, y: Tensor) -> None:
        """Keep a step s and the gradient's change y, if the loss is convex along the step."""
        if not self.size or not float(s @ y) > 1e-10 * math.sqrt(s @ s) * math.sqrt(y @ y):
            return
        first = len(self) == 0
        self.S = s[None] if first else torch.cat([self.S[1 - self.size :], s[None]])
        self.Y = y[None] if first else torch.cat([self.Y[1 - self.size :], y[None]])
        self.R = (self.S @ self.Y.mT).triu()

    def forget(self) -> None:
        """Drop all pairs."""
        self.S = self.Y = self.R = torch.empty(0, 0, dtype=torch.float64)

    def solve(self, g: Tensor, inverse: Callable[[Tensor], Tensor | None]) -> Tensor | None:
        """Approximate (∇²loss)⁻¹ g from ``inverse`` and the pairs; None where that fails."""
        if len(self) == 0:
            return inverse(g)
        a = torch.linalg.solve_triangular(self.R, (self.S @ g)[:, None], upper=True)[:, 0]
        x = inverse(g - a @ self.Y)
        if x is None:
            return None
        right = self.R.diagonal() * a - self.Y @ x
        c = torch.linalg.solve_triangular(self.R.mT, right[:, None], upper=False)[:, 0]
        return x + c @ self.S

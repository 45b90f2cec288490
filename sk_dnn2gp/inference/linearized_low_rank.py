"""The best Gaussian of the linearised network where no factor fits (:ref:`math-linearized`).

A low-rank posterior costs minutes where a step of :mod:`.linearized` wants a new one. So the steps
stay in the basis U of a sketch, in the prior's scale D^(-1/2): of the Gaussians

    q(w) = N(μ + D^(-1/2) U m,  D^(-1/2) (U S⁻¹ Uᵀ + I - U Uᵀ) D^(-1/2)),
    S = I + Σ_i B_iᵀ Λ̄_i B_i,    B_i = J_i D^(-1/2) U,

with m and Λ̄ free, each a Gaussian of the linear model whose bound is exact,

    V_i = B_i S⁻¹ B_iᵀ + (J_i D⁻¹ J_iᵀ - B_i B_iᵀ),
    KL = ½ (‖D^½μ + U m‖² - (r - tr S⁻¹) + log|S|),

the best is found by the same steps, r = rank numbers instead of P. Then a new sketch is made, of
the Λ̄ found; from its basis the steps begin again, until the bound gains no more. What is returned
is N(μ, M⁻¹) of the last sketch, M = D + Ĝ: a low-rank posterior with its certificate, whose own
bound ends the curve.

Shapes: B (n_samples, n_outputs, rank); S (rank, rank); m (rank,).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._utils.linalg import cholesky
from .._utils.memory import limit_in_bytes
from .._utils.warn import warn
from ..exceptions import ApproximationWarning
from ..likelihoods import Likelihood
from ..linear_model import LinearModel
from ..posterior import LowRankPosterior
from .laplace import Task
from .linearized import (
    Iterate,
    LinearizedPosterior,
    Points,
    as_model,
    climb,
    maximise_linearized_elbo,
    psd_root,
    slack,
)
from .result import Result
from .specification import LinearizedVariational

__all__ = ["fit_linearized", "maximise_low_rank_elbo"]

# Sketches after the first one, at most. Steps that gain nothing, one after another, that end a way:
# they are cheap beside a sketch.
_SKETCHES, _PATIENCE = 3, 2


def fit_linearized(task: Task, result: Result, settings: LinearizedVariational) -> Result:
    """Replace the Laplace posterior by the best Gaussian of the same linear model."""
    data = task.data.to(result.model.X.device).take(task.rows)
    limit = getattr(task.specification, "memory_limit", None)
    pointwise = data.y, result.likelihood, data.sample_weight
    rest: tuple = (limit, settings.max_iter)
    if isinstance(result.posterior, LowRankPosterior):
        build = task.specification.build
        best = maximise_low_rank_elbo(result.posterior, *pointwise, build, *rest)
    else:
        best = maximise_linearized_elbo(result.model, *pointwise, *rest)
    return replace(result, posterior=best.posterior, shift=best.shift, elbo_curve=best.elbo_curve)


def maximise_low_rank_elbo(
    posterior: LowRankPosterior,
    y: Tensor,
    likelihood: Likelihood,
    sample_weight: Tensor,
    build: Callable[[LinearModel], Any],
    memory_limit: float | None = None,
    max_iter: int = 60,
    n_sketches: int = _SKETCHES,
) -> LinearizedPosterior:
    """Find the best low-rank Gaussian of theorem 1's linear model by the evidence lower bound.

    From the Laplace posterior of rank r, whose model is the linear model; ``build`` makes the
    posterior of another Λ̄, at most ``n_sketches`` times. A step is two products of (NK, r) with
    (r, r): B is kept where it fits half of ``memory_limit`` (MiB), else the network's products make
    it anew for every step. A ConvergenceWarning if the bound still rises after ``max_iter`` steps
    from a sketch, and whatever ``build`` warns of, but of the sketches on the way.
    """
    model = posterior.model
    outputs = model.linearization.outputs(model.X).double()
    points = Points(y, sample_weight.to(outputs), likelihood, memory_limit)
    Lambda, mean, best = model.noise_factor @ model.noise_factor.mT, model.weights, None
    curve: list[float] = []
    for _ in range(n_sketches):
        Lambda, mean, steps = _climbed(posterior, points, outputs, Lambda, mean, max_iter)
        posterior.release()
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", ApproximationWarning)
            posterior = build(replace(model, noise_factor=psd_root(Lambda)))
        q = _of_sketch(posterior, points, outputs, mean)
        if best is not None and q.elbo < best.elbo + slack(q.elbo):
            break
        best, said, mean, curve = q, raised, q.mean, [*curve, *steps]
    assert best is not None
    _say(said)
    best.posterior.model = as_model(best)  # of the same Λ̄: the sketch is its own
    return LinearizedPosterior(best.posterior, best.mean - model.weights, [*curve, best.elbo])


def _climbed(
    posterior: LowRankPosterior,
    points: Points,
    outputs: Tensor,
    Lambda: Tensor,
    mean: Tensor,
    max_iter: int,
) -> tuple[Tensor, Tensor, list[float]]:
    """Λ̄ and μ at the end of the steps in a sketch's basis, and their bounds."""
    problem = _Restricted.of(posterior, points, outputs, mean)
    inner, steps = climb(problem, problem.first(Lambda), max_iter, _PATIENCE)
    return inner.noise_precision, problem.weights(inner.mean), steps


def _say(raised: Any) -> None:
    """The warnings that were held back."""
    for warning in raised:
        warn(str(warning.message), warning.category)


def _of_sketch(
    posterior: LowRankPosterior, points: Points, outputs: Tensor, mean: Tensor
) -> Iterate:
    """N(μ, M⁻¹) with its own bound; μ by one more step, in all weights, where that helps."""
    model = posterior.model
    Lambda = model.noise_factor @ model.noise_factor.mT
    linearization, delta = model.linearization, model.prior_precision
    V = posterior.covariance(model.X)
    volume = posterior.own_log_determinant - posterior.effective_dimension

    def at(mu: Tensor) -> Iterate:
        f = outputs + linearization.jvp(model.X, mu - model.weights).double()
        loss, residual, target = points.means(f, V)
        elbo = -loss - 0.5 * (float((delta * mu**2).sum()) + volume)
        return Iterate(posterior, Lambda, mu, residual, target, loss, elbo)

    q = at(mean)
    gradient = linearization.vjp(model.X, q.residual) + delta * mean
    return max(q, at(mean - posterior.solve(gradient)), key=lambda each: each.elbo)


@dataclass(frozen=True)
class _Small(Iterate):
    """Of the restricted q: ``mean`` m, S and S of the target Λ̄, and the bound's gradient in m."""

    S: Tensor
    target_S: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class _Restricted:
    """The Gaussians that differ from μ and the prior in the span of D^(-1/2) U alone.

    ``outputs`` are f at μ; ``along`` is Uᵀ D^½ μ; ``parts`` are (slice, B, the rest of the prior's
    covariance) of the rows in turn, as often as asked.
    """

    posterior: LowRankPosterior
    points: Points
    outputs: Tensor
    mu: Tensor
    along: Tensor
    parts: Callable[[], Iterator[tuple[slice, Tensor, Tensor]]]

    @classmethod
    def of(
        cls, posterior: LowRankPosterior, points: Points, outputs: Tensor, mu: Tensor
    ) -> _Restricted:
        """In the basis of a posterior's sketch; ``outputs`` are the network's."""
        model, U = posterior.model, posterior.basis
        f = outputs + model.linearization.jvp(model.X, mu - model.weights).double()
        along = U.mT @ (model.prior_precision.sqrt() * mu)
        n_bytes = 8 * model.n_rows * (posterior.rank + f.shape[1])

        def parts() -> Iterator[tuple[slice, Tensor, Tensor]]:
            return posterior.along_basis(model.X)

        if 2 * n_bytes <= limit_in_bytes(points.memory_limit):
            kept = list(parts())
            return cls(posterior, points, f, mu, along, lambda: iter(kept))
        return cls(posterior, points, f, mu, along, parts)

    def weights(self, m: Tensor) -> Tensor:
        """μ + D^(-1/2) U m."""
        return self.mu + self.posterior.model.prior_precision.rsqrt() * (self.posterior.basis @ m)

    def first(self, noise_precision: Tensor) -> _Small:
        """At m = 0, with the S of this Λ̄."""
        S = torch.eye(len(self.along)).to(self.along)
        for part, B, _ in self.parts():
            S += _gram(B, noise_precision[part])
        return self._at(torch.zeros_like(self.along), S, noise_precision)

    def gradient(self, q: _Small) -> Tensor:
        """Σ Bᵀ r̄ + Uᵀ D^½ μ + m, of shape (rank,)."""
        return q.gradient

    def moved(self, q: _Small, gradient: Tensor, rate: float) -> _Small:
        """A part of Newton's step from q; S is linear in Λ̄."""
        S = (1.0 - rate) * q.S + rate * q.target_S
        mixed = (1.0 - rate) * q.noise_precision + rate * q.target
        step = torch.cholesky_solve(gradient[:, None], _factor(S))[:, 0]
        return self._at(q.mean - min(1.0, 4.0 * rate) * step, S, mixed)

    def _at(self, m: Tensor, S: Tensor, noise_precision: Tensor) -> _Small:
        """All that the next step needs, in one pass over the rows."""
        L = _factor(S)
        identity = torch.eye(len(S)).to(S)
        inverse_root = torch.linalg.solve_triangular(L, identity, upper=False)
        target_S, gradient = identity.clone(), self.along + m
        residual, target = torch.empty_like(self.outputs), torch.empty_like(noise_precision)
        loss = 0.0
        for part, B, rest in self.parts():
            half = B @ inverse_root.mT
            f = self.outputs[part] + B @ m
            more, residual[part], target[part] = self.points.take(part).means(
                f, half @ half.mT + rest
            )
            loss += more
            gradient += (B.mT @ residual[part][..., None]).sum(0)[:, 0]
            target_S += _gram(B, target[part])
        mu, gamma = self.mu, len(S) - float(inverse_root.square().sum())
        squares = float((self.posterior.model.prior_precision * mu**2).sum())
        squares += float(m @ (2.0 * self.along + m))
        elbo = -loss - 0.5 * (squares - gamma + 2.0 * float(L.diagonal().log().sum()))
        basis = self.posterior
        return _Small(
            basis, noise_precision, m, residual, target, loss, elbo, S, target_S, gradient
        )


def _factor(S: Tensor) -> Tensor:
    return cholesky(S, "I + Σ Bᵀ Λ̄ B of the low-rank posterior", "Raise prior_precision.")


def _gram(B: Tensor, Lambda: Tensor) -> Tensor:
    """Σ_i B_iᵀ Λ_i B_i, of shape (rank, rank)."""
    half = (psd_root(Lambda).mT @ B).flatten(0, 1)
    return half.mT @ half

"""The best Gaussian of the linearised network: ``inference="linearized-vi"`` of the classifier.

The Laplace posterior takes the curvature at the mode. Where a likelihood is no Gaussian the mass
lies elsewhere: the mode of a network that is sure of its data has little curvature, and the
posterior taken from it is far too wide (Kuss and Rasmussen 2005). Theorem 1's linear model
f = f* + J (w - w*) has a Gaussian q(w) = N(μ, Σ) that maximises the lower bound on its evidence,

    ELBO = E_q[Σ log p(y | f)] - KL(q ‖ N(0, δ⁻¹)),
    KL = ½ (δ‖μ‖² - γ + log|B|),   γ = P - δ tr Σ,   log|B| = -log|δΣ|,

and it is Gauss-Newton's with every pointwise function replaced by its mean over q (Opper and
Archambeau 2009; Immer, Korzepa, Bauer 2021, section 3.3):

    Σ⁻¹ = Jᵀ Λ̄ J + δ,   Jᵀ r̄ + δ μ = 0,   Λ̄ = E_q Λ(f),   r̄ = E_q r(f),

so that q is the exact posterior of the linear model with noise precision Λ̄ and targets
ỹ = J μ - Λ̄⁺ r̄: a Gaussian process with the same kernel. J is fixed, so the steps need no draws of
the weights; the means over f(x) ~ N(f* + J (μ - w*), V) are quadratures in K dimensions.

γ = Σ_i tr Λ̄_i V_i, of q's own Λ̄.

Shapes: f, r̄ (n_samples, n_outputs); V, Λ̄ (n_samples, n_outputs, n_outputs); μ, w* (n_params,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches
from torch import Tensor

from .._utils.memory import chunk_length
from .._utils.warn import warn
from ..likelihoods import Likelihood
from ..linear_model import LinearModel
from ..posterior import Posterior, make_posterior

__all__ = ["Iterate", "LinearizedPosterior", "Points", "as_model", "climb"]
__all__ += ["maximise_linearized_elbo", "psd_root", "slack"]

# Nodes of the quadrature: Gauss-Hermite per axis for one or two outputs, quasi-random for more.
_HERMITE_NODES, _QUASI_RANDOM_NODES = {1: 64, 2: 24}, 128
# Steps at most; a step is shortened to this part before it is given up. Gains of the bound that
# count: in nats, and as a part of it.
_MAX_STEPS, _SHORTEST = 60, 0.02
_NATS, _PART = 0.01, 1e-5
# A step went too far where the next one is to be shorter than this part of it.
_SWUNG = 0.75


@dataclass(frozen=True)
class LinearizedPosterior:
    """The converged q(w) of the linear model: Σ, as the posterior of the model with Λ̄ and ỹ.

    ``shift`` (P,) is μ - w*; ``elbo_curve`` the lower bound of every step, in nats.
    """

    posterior: Posterior
    shift: Tensor
    elbo_curve: list[float]


@dataclass(frozen=True)
class Iterate:
    """q and what the next step needs of it: Λ̄ of its own Σ, its means r̄ and Λ̄, and the bound."""

    posterior: Any
    noise_precision: Tensor
    mean: Tensor
    residual: Tensor
    target: Tensor
    expected_loss: float
    elbo: float


@dataclass(frozen=True)
class Points:
    """Targets y and weights s (n,) of the rows, and what is pointwise in them."""

    y: Tensor
    weight: Tensor
    likelihood: Likelihood
    memory_limit: float | None

    def take(self, part: slice) -> Points:
        """Those of a part of the rows."""
        return replace(self, y=self.y[part], weight=self.weight[part])

    def means(self, f: Tensor, V: Tensor) -> tuple[float, Tensor, Tensor]:
        """E_q Σ s ℓ, r̄ and Λ̄, the sample weights in all of them."""
        total, residual, precision = f.new_zeros(()), torch.empty_like(f), torch.empty_like(V)
        z, nodes = (t.to(f) for t in standard_normal_nodes(f.shape[1]))
        K = f.shape[1]
        bytes_per_row = 8 * len(nodes) * (8 * K + 3 * K * K)
        for part in gen_batches(len(f), chunk_length(bytes_per_row, self.memory_limit)):
            draws = (f[part, None] + z @ psd_root(V[part]).mT).flatten(0, 1)
            y, s = self.y[part].repeat_interleave(len(nodes), 0), self.weight[part]
            loss = self.likelihood.negative_log_likelihood(draws, y)
            total += s @ _mean(loss, nodes)
            residual[part] = s[:, None] * _mean(self.likelihood.residual(draws, y), nodes)
            Lambda = self.likelihood.mean_noise_precision(draws.unflatten(0, (-1, len(z))), nodes)
            precision[part] = s[:, None, None] * Lambda
        return float(total), residual, precision


@dataclass(frozen=True)
class _Problem:
    """The linear model in all its weights, with exact posteriors."""

    model: LinearModel
    outputs: Tensor
    points: Points

    def posterior(self, noise_precision: Tensor) -> Posterior:
        """Σ = (Jᵀ Λ̄ J + δ)⁻¹."""
        model = replace(self.model, noise_factor=psd_root(noise_precision))
        return make_posterior(model, memory_limit=self.points.memory_limit)

    def iterate(self, mean: Tensor, posterior: Posterior, noise_precision: Tensor) -> Iterate:
        """N(mean, Σ), its means over the marginals of f, and its lower bound."""
        model = self.model
        f = self.outputs + model.linearization.jvp(model.X, mean - model.weights).double()
        V = posterior.covariance(model.X)
        gamma = (noise_precision * V).sum()
        penalty = float((model.prior_precision * mean**2).sum() - gamma)
        loss, residual, target = self.points.means(f, V)
        elbo = -loss - 0.5 * (penalty + posterior.log_determinant)
        return Iterate(posterior, noise_precision, mean, residual, target, loss, elbo)

    def gradient(self, q: Iterate) -> Tensor:
        """Jᵀ r̄ + δ μ, of shape (n_params,)."""
        model = self.model
        return model.linearization.vjp(model.X, q.residual) + model.prior_precision * q.mean

    def moved(self, q: Iterate, gradient: Tensor, rate: float) -> Iterate:
        """A part of Newton's step from q."""
        mixed = (1.0 - rate) * q.noise_precision + rate * q.target
        posterior = self.posterior(mixed)
        # The mean's own Newton step does not swing: it is cut short where little else is left.
        step = min(1.0, 4.0 * rate) * posterior.solve(gradient)
        return self.iterate(q.mean - step, posterior, mixed)


def maximise_linearized_elbo(
    model: LinearModel,
    y: Tensor,
    likelihood: Likelihood,
    sample_weight: Tensor,
    memory_limit: float | None = None,
    max_iter: int = _MAX_STEPS,
) -> LinearizedPosterior:
    """Find the best Gaussian of theorem 1's linear model by the evidence lower bound.

    Newton's steps on the natural parameters of q, from the Laplace posterior's model on: the
    precision moves to a mean of the old and the new Λ̄, the mean by the same part of Σ Jᵀ(...),
    halved until the bound does not fall. A step costs as much as a Laplace posterior and its
    variances at the training inputs. MemoryError if a factor does not fit; a ConvergenceWarning if
    the bound still rises at the end.
    """
    outputs = model.linearization.outputs(model.X).double()
    points = Points(y, sample_weight.to(outputs), likelihood, memory_limit)
    problem = _Problem(model, outputs, points)
    precision = model.noise_factor @ model.noise_factor.mT
    first = problem.iterate(model.weights, problem.posterior(precision), precision)
    q, curve = climb(problem, first, max_iter)
    q.posterior.model = as_model(q)  # of the same Λ̄: the factorisation is its own
    return LinearizedPosterior(q.posterior, q.mean - model.weights, curve)


def climb(problem: Any, q: Any, max_iter: int, patience: int = 1) -> tuple[Any, list[float]]:
    """Newton's steps from q until ``patience`` of them gain nothing: the last q, and every bound.

    One that swings gains nothing, and the next one is shorter: it has a second trial.
    """
    curve, rate, idle = [q.elbo], 1.0, 0
    while len(curve) <= max_iter:
        new, rate = _step(problem, q, rate)
        if new is None:
            break
        gain, rest, q = new.elbo - q.elbo, _next_rate(problem, q, new, rate), new
        curve.append(q.elbo)
        # Of a step cut short: that part of the gain.
        idle = idle + 1 if gain < rate * slack(q.elbo) else 0
        if idle >= (2 if rest < _SWUNG * rate else patience):
            break
        rate = rest
    else:
        warn(
            f"The lower bound of the linearised network still rises after {max_iter} steps (last "
            f"to {q.elbo:.6g}). Raise prior_precision.",
            ConvergenceWarning,
        )
    return q, curve


def _step(problem: Any, q: Any, rate: float) -> tuple[Any, float]:
    """The next q and the part of the step that was taken; None where no part raises the bound."""
    gradient = problem.gradient(q)
    while rate >= _SHORTEST:
        new = problem.moved(q, gradient, rate)
        if new.elbo > q.elbo - slack(q.elbo):
            return new, rate
        rate *= 0.5
    return None, rate


def _next_rate(problem: Any, q: Iterate, new: Iterate, rate: float) -> float:
    """The part at which the step from q would have left nothing to do, along itself.

    A wide q asks for a Λ̄ that makes it narrow, and the other way round: whole steps swing. A row
    of weight s counts as s rows, whose Λ̄ are 1/s of its own each.
    """
    before, after = q.target - q.noise_precision, new.target - new.noise_precision
    each = before / problem.points.weight[:, None, None]
    closed = 1.0 - float((each * after).sum() / (each * before).sum().clamp_min(1e-300))
    return min(1.0, max(0.5 * rate, rate / closed if closed > 0 else 1.0))


def slack(elbo: float) -> float:
    """What does not count, in nats: the quadrature is not finer."""
    return max(_NATS, _PART * abs(elbo))


def as_model(q: Iterate) -> LinearModel:
    """The linear model whose exact posterior is q: noise precision Λ̄, targets J μ - Λ̄⁺ r̄."""
    L = q.posterior.model.noise_factor
    return replace(
        q.posterior.model,
        residual=q.residual,
        whitened_residual=(torch.linalg.pinv(L) @ q.residual[..., None])[..., 0],
        weights=q.mean,
        log_likelihood=-q.expected_loss,
        log_noise_determinant=math.nan,
    )


def standard_normal_nodes(n_dimensions: int) -> tuple[Tensor, Tensor]:
    """Nodes (S, K) and weights (S,) of a mean over N(0, I), the same in every call.

    One or two dimensions: a grid of Gauss-Hermite nodes. More: a scrambled Sobol sequence and its
    mirror image.
    """
    if n_dimensions <= 2:
        axis, w = np.polynomial.hermite_e.hermegauss(_HERMITE_NODES[n_dimensions])
        grids = torch.cartesian_prod(*[torch.tensor(axis)] * n_dimensions)
        weights = torch.cartesian_prod(*[torch.tensor(w / w.sum())] * n_dimensions)
        shape = (-1, n_dimensions)
        return grids.reshape(shape), weights.reshape(shape).prod(1)
    engine = torch.quasirandom.SobolEngine(n_dimensions, scramble=True, seed=0)
    uniform = engine.draw(_QUASI_RANDOM_NODES // 2, dtype=torch.float64)
    half = torch.tensor(ndtri(uniform.clamp(1e-12, 1 - 1e-12).numpy()))
    z = torch.cat([half, -half])
    return z, z.new_full((len(z),), 1.0 / len(z))


def _mean(values: Tensor, nodes: Tensor) -> Tensor:
    """Mean over the nodes of values (n S, ...)."""
    return torch.einsum("ns...,s->n...", values.unflatten(0, (-1, len(nodes))), nodes)


def psd_root(matrices: Tensor) -> Tensor:
    """R with R Rᵀ the positive semi-definite matrices, of shape (n, K, K)."""
    if matrices.shape[-1] == 1:
        return matrices.clamp_min(0.0).sqrt()
    values, vectors = torch.linalg.eigh(matrices)
    return vectors * values.clamp_min(0.0).sqrt()[:, None, :]

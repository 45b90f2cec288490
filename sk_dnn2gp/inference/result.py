"""What a fit ends with: one Gaussian over the weights of one network, and how it came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .._utils.memory import require_memory
from .._utils.parallel import Kept, kept_rows, over_workers
from ..likelihoods import Likelihood
from ..linear_model import LinearModel
from ..linearize.shared import workers_of
from ..posterior import (
    FunctionSpacePosterior,
    IndependentPosterior,
    LowRankPosterior,
    Posterior,
)

__all__ = ["Result"]

# An error bar costs about as much as a pass with this many columns.
_COLUMNS = 500


@dataclass(frozen=True)
class Result:
    """q(w) of one network, from which an estimator reads everything that it shows.

    Parameters
    ----------
    module : torch.nn.Module
        The trained network, in eval mode.
    net : NeuralNet or None
        The skorch net that trained it; None where none did.
    likelihood : Likelihood
        With the σ of the end.
    prior_precision : float
        δ; where there are groups, that of the weights in no other.
    prior_precisions : dict of str to float
        δ of each group of weights; "all" where there is one.
    model : LinearModel
        Theorem 1's linear model at the expansion point, of the posterior's examples.
    posterior : Posterior
        Of q; with its own ``model`` where q is not the Laplace posterior.
    evidence : float
        log marginal likelihood of the targets as the network sees them; nan where there is none.
    evidence_kind : {"laplace", "dual"}
    gradient : Tensor of shape (n_params,)
        ∇loss over all examples, with respect to the posterior's weights.
    converged : bool
        Whether training ended at a minimum.
    solver : str
        What trained the network.
    loss_curve, elbo_curve : list of float
    n_iter : int
    shift : Tensor of shape (n_params,), optional
        Mean of q less the expansion point; None for zero.
    posterior_indices : ndarray of int, optional
        Rows that the posterior is conditioned on; None for all.
    """

    module: nn.Module
    net: Any
    likelihood: Likelihood
    prior_precision: float
    prior_precisions: dict[str, float]
    model: LinearModel
    posterior: Posterior
    evidence: float
    gradient: Tensor
    converged: bool
    solver: str
    loss_curve: list[float]
    n_iter: int
    evidence_kind: str = "laplace"
    elbo_curve: list[float] = field(default_factory=list)
    shift: Tensor | None = None
    posterior_indices: Any = None

    def mean(self, X: Tensor) -> Tensor:
        """E f(X) under q, of shape (n_samples, n_outputs), float64, on the CPU."""
        f = self.model.linearization.outputs(X).double()
        if self.shift is not None:
            f = f + self.model.linearization.jvp(X, self.shift).double()
        return f.cpu()

    def outputs(self, X: Tensor) -> Tensor:
        """The network's own outputs, of shape (n_samples, n_outputs), float64, on the CPU."""
        return self.model.linearization.outputs(X).double().cpu()

    def variance(self, X: Tensor) -> Tensor:
        """Marginal variances of f(X), of shape (n_samples, n_outputs), on the CPU."""
        return self._by_workers("variance", X).cpu()

    def variance_bounds(self, X: Tensor, tol: float | None = None) -> tuple[Tensor, Tensor]:
        """Variances between which the exact ones lie, each (n_samples, n_outputs).

        ``tol`` as of ``refined_covariance``. ValueError if the posterior has no bounds.
        """
        posterior = self.posterior
        if isinstance(posterior, LowRankPosterior):
            if tol is None:
                return posterior.variance_bounds(X)
            bracket = posterior.refined_covariance(X, tol)
            ends = (end.diagonal(dim1=-2, dim2=-1) for end in (bracket.lower, bracket.upper))
            return next(ends), next(ends)
        if not posterior.is_exact:
            raise ValueError(
                f"{type(posterior).__name__} is an approximation without a bound of its error: "
                "take posterior='low_rank', whose certificate is one, or 'full'."
            )
        variance = self.variance(X)
        return variance, variance

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* of each f(x), of shape (n_samples, n_outputs, n_outputs), on the CPU."""
        return self._by_workers("covariance", X).cpu()

    def _by_workers(self, name: str, X: Tensor) -> Tensor:
        """What the posterior's method gives for test rows, of which workers may have a part."""
        n = workers_of(self.model.linearization, X, min(self.model.n_params, _COLUMNS))
        if n < 2:
            return getattr(self.posterior, name)(X)
        tasks = [(rows, self._kept_posterior, name) for rows in kept_rows(X, n)]
        return torch.cat(over_workers(_of_rows, tasks))

    @cached_property
    def _kept_posterior(self) -> Kept:
        return Kept(self.posterior)

    def joint_covariance(self, X: Tensor) -> Tensor:
        """V_* over all rows and outputs, of shape (n K, n K), on the CPU."""
        self._require(2.0 * self._joint_size(X), f"The joint covariance of {len(X)} rows")
        return self.posterior.joint_covariance(X).cpu()

    def _joint_size(self, X: Tensor) -> float:
        return 8.0 * (len(X) * self.model.whitened_residual.shape[1]) ** 2

    def _require(self, needed: float, what: str) -> None:
        advice = "Take fewer at a time, or raise memory_limit."
        require_memory(needed, getattr(self.posterior, "memory_limit", None), what, advice)

    def sample(self, X: Tensor, n_samples: int, generator: Generator) -> Tensor:
        """Draw functions from the process, of shape (n_samples, len(X), n_outputs)."""
        drawn = 8.0 * n_samples * len(X) * self.model.whitened_residual.shape[1]
        by_functions = isinstance(self.posterior, FunctionSpacePosterior | IndependentPosterior)
        weights = 8.0 * n_samples * self.model.n_params
        needed = drawn + (2.0 * self._joint_size(X) if by_functions else weights)
        self._require(needed, f"A draw of {n_samples} functions at {len(X)} rows")
        return self.posterior.sample(X, n_samples, generator).cpu() + self.mean(X)

    def sample_network(self, X: Tensor, n_samples: int, generator: Generator) -> Tensor:
        """Outputs of the network itself with weights drawn from q, of the same shape."""
        linearization = self.model.linearization
        centre = self.model.weights if self.shift is None else self.model.weights + self.shift
        steps = self.posterior.sample_weights(n_samples, generator)
        draws = [linearization.at(centre + step).outputs(X).double() for step in steps]
        return torch.stack(draws).cpu()

    @cached_property
    def newton_decrement(self) -> float:
        """∇lossᵀ A⁻¹ ∇loss; nan where the outputs have no common A.

        Made when it is asked for: of a low rank it takes many passes over all rows.
        """
        try:
            step = self.posterior.solve(self.gradient)
        except ValueError:
            return float("nan")
        return max(float(self.gradient @ step), 0.0)  # of nan nan


def _of_rows(X: Any, posterior: Posterior, name: str) -> Tensor:
    return getattr(posterior, name)(X)

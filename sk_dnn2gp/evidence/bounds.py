"""The evidence as a bracket, where log|B| is known as one (:ref:`math-low-rank`).

The evidence is a fit less ½ log|B|, so that bounds of log|B| bound it. From a low-rank posterior
they come from its certificate, for every multiple of δ at once; from minibatches by Fischer's
inequality (:ref:`math-refinement`),

    log|I + Φ D⁻¹ Φᵀ|  ≤  Σ_b log|I + Φ_b D⁻¹ Φ_bᵀ|      for any partition of the rows,

a lower bound of the evidence that needs no more than one block's factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import gen_batches
from torch import Tensor

from .._utils.linalg import cholesky
from .._utils.warn import warn
from ..exceptions import ApproximationWarning
from ..linear_model import LinearModel
from ..posterior import LowRankPosterior, Posterior
from .spectrum import Data, EvidenceSpectrum, OverPriorAndNoise, log_marginal_likelihood

__all__ = [
    "NAT",
    "BracketedChoice",
    "SketchedEvidence",
    "choose_prior_precision",
    "evidence_of",
    "fischer_bound",
    "log_marginal_likelihood_bounds",
    "undecided_prior_precisions",
    "warn_of_starts",
    "warn_of_undecided",
    "bracket_width",
]

# Nats of evidence that are none worth a mention (Kass and Raftery 1995, section 3.2): brackets that
# leave no more than this open count as decided.
NAT = 1.0
# Multiples of δ that are looked at, both ways.
_NEAREST, _FARTHEST, _MULTIPLES = 1e-3, 5.0, 60


def log_marginal_likelihood_bounds(
    posterior: Posterior, kind: str = "laplace"
) -> tuple[float, float]:
    """Lower and upper end of the evidence of the model behind ``posterior``; ``kind`` as for its
    value.

    A low-rank posterior gives a bracket; of another, both ends are its own value. ValueError if
    ``kind`` is unknown.
    """
    lower = log_marginal_likelihood(posterior, kind)
    return lower, lower + bracket_width(posterior)


def bracket_width(posterior: Posterior) -> float:
    """Nats between the ends of the evidence; 0 where it has one value."""
    if not isinstance(posterior, LowRankPosterior):
        return 0.0
    low, high = posterior.log_determinant_bounds()
    return 0.5 * (high - low)


def fischer_bound(model: LinearModel, block_size: int | Sequence[Tensor] = 100) -> float:
    """An upper bound of log|B| from blocks of examples: Σ_b log|I + Φ_b D⁻¹ Φ_bᵀ|.

    ``block_size``: examples of a block, in order, or the examples of every block. The fit less half
    of the bound is a lower bound of the evidence. ValueError if the blocks are no partition.
    """
    n = len(model.X)
    if isinstance(block_size, int):
        if block_size < 1:
            raise ValueError(f"block_size must be a positive integer, got {block_size}.")
        order = torch.arange(n)
        blocks: Sequence[Tensor] = [order[part] for part in gen_batches(n, block_size)]
    else:
        blocks = block_size
    members = torch.cat([block.cpu() for block in blocks]).sort().values
    if not torch.equal(members, torch.arange(n)):
        raise ValueError("The blocks must be a partition: every example in exactly one of them.")
    return sum(_block_log_determinant(model, block.to(model.X.device)) for block in blocks)


def _block_log_determinant(model: LinearModel, block: Tensor) -> float:
    B = _block_gram(model, model.X[block], model.noise_factor[block])
    B.diagonal().add_(1.0)
    L = cholesky(B, "a block of B = I + ΦΦᵀ/δ", "Raise prior_precision, or standardise the inputs.")
    return float(2.0 * L.diagonal().log().sum())


def _block_gram(model: LinearModel, X: Tensor, C: Tensor) -> Tensor:
    """Φ_b D⁻¹ Φ_bᵀ: from the layers' factors where δ is one number, else from rows."""
    delta = model.prior_precision
    if delta.ndim == 0:
        return model.linearization.gram(X, cotangents=C) / delta
    rows = [part.flatten(0, 1) for _, part in model.linearization.iter_rows(X, C)]
    half = torch.cat(rows) * delta.rsqrt()
    return half @ half.mT


@dataclass(frozen=True)
class BracketedChoice:
    """Multiples (n,) of the posterior's δ, with the bracket of the evidence at each."""

    factors: NDArray
    lower: NDArray
    upper: NDArray

    @property
    def best(self) -> int:
        """The place of the largest middle of the bracket."""
        return int(np.argmax(0.5 * (self.lower + self.upper)))

    @property
    def undecided(self) -> NDArray:
        """Places that the brackets cannot tell from the best: their upper end is above its lower.

        The true maximum over the grid is among them.
        """
        return np.flatnonzero(self.upper >= self.lower.max())


def choose_prior_precision(
    posterior: Posterior, factors: Sequence[float] | NDArray, kind: str = "laplace"
) -> BracketedChoice:
    """Bracket the evidence at multiples of δ, weights fixed, from one sketch.

    The posterior has ``with_prior_precision`` (low rank; Kronecker, without a bracket). ValueError
    if a factor is not positive.
    """
    grid = np.asarray(factors, dtype=float)
    if grid.ndim != 1 or not len(grid) or not (grid > 0).all():
        raise ValueError(f"factors must be positive numbers, at least one, got {factors!r}.")
    delta = posterior.model.prior_precision
    brackets = [
        log_marginal_likelihood_bounds(
            posterior.with_prior_precision(delta * float(factor)),  # type: ignore[attr-defined]
            kind,
        )
        for factor in grid
    ]
    lower, upper = np.array(brackets).T
    return BracketedChoice(grid, lower, upper)


@dataclass(frozen=True)
class SketchedEvidence(OverPriorAndNoise, Data):
    """The evidence at every δ and σ from one sketch, weights fixed: a bracket at each.

    What has one value is the lower end, so that its maximum over δ and σ is never too high
    (:ref:`math-low-rank`). With ρ = δσ² over that of the sketch, A = D + G/σ² is σ₀²/σ² times the
    matrix that the sketch is of at ρ times its δ.

    Parameters
    ----------
    log_likelihood, log_noise_determinant, residual_squared, n_observations, gaussian
        As in :class:`EvidenceSpectrum`.
    posterior : LowRankPosterior
    prior_precision, variance : float
        Of ``posterior``: the δ that stands for all, and σ² (1 where there is no σ).
    """

    posterior: LowRankPosterior
    prior_precision: float
    variance: float

    @classmethod
    def from_posterior(
        cls,
        posterior: LowRankPosterior,
        noise_std: float | None = None,
        n_observations: float = 0.0,
        prior_precision: float | None = None,
    ) -> SketchedEvidence:
        """As :meth:`EvidenceSpectrum.from_posterior`; nothing is decomposed."""
        delta = posterior.model.prior_precision
        return cls(
            posterior=posterior,
            prior_precision=float(
                delta.flatten()[-1] if prior_precision is None else prior_precision
            ),
            variance=1.0 if noise_std is None else noise_std**2,
            **cls.of(posterior.model, noise_std, n_observations),
        )

    @property
    def weights_squared(self) -> float:  # type: ignore[override]
        """‖w*‖², each weight by its δ over the one that stands for all."""
        return self._squares(self.posterior.model.weights)

    def _squares(self, w: Tensor) -> float:
        return float((self.posterior.model.prior_precision * w**2).sum()) / self.prior_precision

    def bounds(
        self, prior_precision: float, noise_std: float = 1.0, kind: str = "laplace"
    ) -> tuple[float, float]:
        """Lower and upper end of the evidence at (δ, σ); ValueError if ``kind`` is unknown."""
        delta, variance = prior_precision, noise_std**2
        low, high = self._at(delta, variance).log_determinant_bounds()
        penalty = delta * self.weights_squared
        fit = self.fit(kind, variance, penalty, lambda: self._step(delta, variance)[0])
        return fit - 0.5 * high, fit - 0.5 * low

    def effective_dimension(self, prior_precision: float, noise_std: float = 1.0) -> float:
        """γ of the lower end of the evidence, itself within the bracket of γ."""
        return self._at(prior_precision, noise_std**2).effective_dimension_of_bound

    def _at(self, delta: float, variance: float) -> LowRankPosterior:
        ratio = delta * variance / (self.prior_precision * self.variance)
        return self.posterior.with_prior_precision(self.posterior.model.prior_precision * ratio)

    def _step(self, delta: float, variance: float) -> tuple[float, Tensor]:
        """gᵀA⁻¹g and A⁻¹g, by conjugate gradients."""
        model, scale = self.posterior.model, variance / self.variance
        prior = model.prior_precision * (delta / self.prior_precision)
        g = model.data_gradient / scale + prior * model.weights
        step = scale * self._at(delta, variance).solve(g)
        return max(0.0, float(g @ step)), step

    def _at_ridge_solution(self, delta: float, variance: float) -> tuple[float, float]:
        """As in the base; stepᵀG step = gᵀstep - stepᵀ D step, both over σ²."""
        decrement, step = self._step(delta, variance)
        model = self.posterior.model
        curved = variance * (decrement - delta * self._squares(step))
        moved = curved - 2.0 * self.variance * float(model.data_gradient @ step)
        return self._squares(model.weights - step), self.residual_squared + moved


def evidence_of(
    posterior: Posterior,
    noise_std: float | None = None,
    n_observations: float = 0.0,
    prior_precision: float | None = None,
) -> EvidenceSpectrum | SketchedEvidence:
    """The evidence at every δ and σ: from one decomposition, or of a low rank from its sketch.

    Arguments as of :meth:`EvidenceSpectrum.from_posterior`.
    """
    made = SketchedEvidence if isinstance(posterior, LowRankPosterior) else EvidenceSpectrum
    return made.from_posterior(posterior, noise_std, n_observations, prior_precision)  # type: ignore[arg-type]


def undecided_prior_precisions(posterior: LowRankPosterior) -> tuple[float, float]:
    """Least and greatest multiple of δ that its bracket alone cannot tell from δ, w and σ fixed.

    Every δ that may be better by more than one nat, and is not known to be, lies between; (1, 1)
    where there is none. What is known to be better at these weights is no matter of the bracket: a
    search moves the weights too.
    """
    steps = np.exp(np.geomspace(_NEAREST, _FARTHEST, _MULTIPLES))
    factors = np.concatenate([1.0 / steps[::-1], [1.0], steps])
    choice = choose_prior_precision(posterior, factors)
    lower = choice.lower[_MULTIPLES]
    open_ = factors[(choice.upper > lower + NAT) & (choice.lower <= lower + NAT)]
    return (float(open_.min()), float(open_.max())) if len(open_) else (1.0, 1.0)


def warn_of_undecided(posterior: Posterior) -> None:
    """Warn of the values of δ that the bracket cannot tell from the one that was chosen."""
    if not isinstance(posterior, LowRankPosterior):
        return
    low, high = undecided_prior_precisions(posterior)
    if low == high:
        return
    delta = float(posterior.model.prior_precision.flatten()[-1])
    warn(
        f"The evidence is known to lie within {bracket_width(posterior):.3g} nats alone: at these "
        f"weights prior_precision from {low * delta:.3g} to {high * delta:.3g} cannot be told "
        f"apart from {delta:.3g}, which has the greatest lower end. {_ADVICE}",
        ApproximationWarning,
    )


def warn_of_starts(brackets: Sequence[tuple[float, float]]) -> None:
    """Warn where another start may have a better evidence than the one of the best lower end."""
    best = max(lower for lower, _ in brackets)
    rivals = sum(upper > best + NAT and lower < best for lower, upper in brackets)
    if rivals:
        warn(
            f"{rivals} of {len(brackets)} starts cannot be told apart from the one that was kept: "
            f"the brackets of their evidences overlap by more than a nat. {_ADVICE}",
            ApproximationWarning,
        )


_ADVICE = "Lower tol, or raise max_rank or memory_limit, of posterior=LowRank(...) to decide."

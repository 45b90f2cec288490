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
from torch import Tensor

from .._utils.linalg import cholesky
from .._utils.memory import batches
from ..linear_model import LinearModel
from ..posterior import Posterior
from .spectrum import fit_of

__all__ = [
    "BracketedChoice",
    "choose_prior_precision",
    "fischer_bound",
    "log_marginal_likelihood_bounds",
]


def log_marginal_likelihood_bounds(
    posterior: Posterior, kind: str = "laplace"
) -> tuple[float, float]:
    """Lower and upper end of the evidence of the model behind ``posterior``; ``kind`` as for its
    value.

    A posterior with ``log_determinant_bounds`` (low rank) gives a bracket; of one without, both
    ends are its own value. ValueError if ``kind`` is unknown.
    """
    fit = fit_of(posterior, kind)
    if hasattr(posterior, "log_determinant_bounds"):
        low, high = posterior.log_determinant_bounds()
    else:
        low = high = posterior.log_determinant
    return fit - 0.5 * high, fit - 0.5 * low


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
        blocks: Sequence[Tensor] = [order[part] for part in batches(n, block_size)]
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

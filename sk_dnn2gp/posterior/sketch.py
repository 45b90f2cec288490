"""A Nyström sketch of G = ΨᵀΨ, grown in blocks, that knows its own error (:ref:`math-low-rank`).

Ĝ = F Fᵀ from products with G alone. With E = G - Ĝ ⪰ 0 and orthonormal columns V,

    F ← [F, E V (VᵀEV)^(-1/2)],      E ← E - E V (VᵀEV)⁻¹ VᵀE

is the Nyström sketch over all the columns so far (a block Cholesky factorisation), so that E only
falls. The columns of a round are the block Krylov space of E from a *fresh* Gaussian block Ω,
span(Ω, EΩ, ..., E^(k-1)Ω): near the top of E's spectrum after a few steps, and its largest Ritz
value ξ = max eig VᵀEV bounds ‖E‖ from above too, with a probability that ``allowance`` gives. One
set of products thus grows the sketch and certifies it. Directions whose VᵀEV is rounding are left
out: they would divide noise by it.

Shapes: F (n_params, rank); V, EV (n_params, columns).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from numpy.linalg import LinAlgError
from scipy.special import betaincinv
from sklearn.utils import gen_batches
from torch import Generator, Tensor

from .._utils.memory import limit_in_bytes, require_memory
from .products import ScaledFeatures

__all__ = ["Certificate", "Sketch", "allowance", "grow_sketch"]

# Columns of a fresh block and steps from it. More steps certify tighter (a factor 1.3 at 64 and 6
# for a million weights and one in a million), more columns make better matrix products.
_BLOCK, _STEPS = 64, 6
# Of VᵀEV: relative to its largest eigenvalue, and to ‖G‖ (rounding of E V).
_CUT, _ROUNDING = 1e-10, 1e-13


@dataclass(frozen=True)
class Certificate:
    """What is known of E = G - Ĝ after a round, ``seconds`` after the sketch was begun.

    tr E ≥ ‖E‖ is rigorous. ``spectral`` η ≥ ‖E‖ (infinite where nothing was probed) and
    ``frobenius`` W ≥ ‖E‖_F² hold up to ``failure_probability``: that any of the probed bounds so
    far is false; 0 where only the trace is used.
    """

    rank: int
    trace: float
    spectral: float
    frobenius: float
    failure_probability: float
    seconds: float

    @property
    def bound(self) -> float:
        """The smaller of the two bounds of ‖E‖."""
        return min(self.trace, self.spectral)

    @property
    def kind(self) -> str:
        """Which it is: "trace" is rigorous, "probabilistic" has a failure probability."""
        return "trace" if self.trace <= self.spectral else "probabilistic"


@dataclass(frozen=True)
class Sketch:
    """Ĝ = F Fᵀ, F (P, rank) with orthogonal columns of squared lengths ``eigenvalues``, ascending.

    One certificate a round in ``history``; the last holds for F.
    """

    factor: Tensor
    eigenvalues: Tensor
    history: tuple[Certificate, ...]

    @property
    def certificate(self) -> Certificate:
        """The last round's."""
        return self.history[-1]


def allowance(n: int, n_starts: int, n_steps: int, failure_probability: float) -> float:
    """ε in [0, 1) such that ‖E‖ ≤ ξ/(1-ε) for the largest Ritz value ξ of a block Krylov space.

    For any symmetric E ⪰ 0 of n rows and a Gaussian Ω (n, s), independent of it. The space of k
    steps holds q(E) Ω c for every polynomial q of degree k - 1 and every c. Take c along row 1 of Ω
    in E's eigenbasis: the first component is then χ_s, the others standard normal and independent
    of it. With q the Chebyshev polynomial of [0, 1-ε] times ‖E‖, ξ < (1-ε) ‖E‖ needs

        χ²_s / χ²_{n-1} < τ,      τ = (1-ε) / (ε T_{k-1}((1+ε)/(1-ε))²),

    whose probability p is that of a beta variable. For s = 1 the same order as Kuczyński and
    Woźniakowski (1992, theorem 4.1), ε ≈ (log(1.65 √n / p) / (2k - 1))².
    """
    if n_starts * n_steps >= n:
        return 0.0
    share = betaincinv(0.5 * n_starts, 0.5 * (n - 1), failure_probability)
    if share <= 0.0:
        return 1.0 - 1e-12
    log_ratio = math.log(share) - math.log1p(-share)
    low, high = -60.0, 30.0  # of logit ε; log τ falls as ε grows
    for _ in range(100):
        middle = 0.5 * (low + high)
        if _log_tau(middle, n_steps) > log_ratio:
            low = middle
        else:
            high = middle
    return 1.0 / (1.0 + math.exp(-high))


def _log_tau(logit: float, n_steps: int) -> float:
    epsilon = 1.0 / (1.0 + math.exp(-logit))
    angle = (n_steps - 1) * math.acosh(1.0 + 2.0 * math.exp(logit))
    log_cosh = angle + math.log1p(math.exp(-2.0 * angle)) - math.log(2.0)
    return math.log1p(-epsilon) - math.log(epsilon) - 2.0 * log_cosh


def frobenius_bound(squares: float, n_starts: int, spectral: float, probability: float) -> float:
    """W ≥ ‖E‖_F² from ‖EΩ‖_F² of s Gaussian columns, given η ≥ ‖E‖.

    ‖EΩ‖_F²/s is a sum of χ² with weights μ² ≤ η² over s; by Laurent and Massart (2000, lemma 1)
    it is below W - 2 √(η² W x/s) with probability e⁻ˣ at most. Solved for √W.
    """
    half = spectral * math.sqrt(-math.log(probability) / n_starts)
    return (half + math.sqrt(half**2 + squares / n_starts)) ** 2


def grow_sketch(
    features: ScaledFeatures,
    tol: float,
    max_rank: int,
    generator: Generator,
    max_seconds: float | None = None,
    failure_probability: float = 1e-6,
) -> Sketch:
    """Add rounds until ‖E‖ ≤ tol is certified, or the rank or the time is spent.

    δ is one in the units of ``tol``. No round is begun that would end after ``max_seconds``, judged
    by the longest so far. ``failure_probability`` is that of all probed bounds together; round i
    takes its share p/(i(i+1)). MemoryError if not even one column fits, LinAlgError if Ψ is not
    finite.
    """
    start, total = time.perf_counter(), features.squared_norm
    if not math.isfinite(total):
        raise LinAlgError(
            "ΦᵀΦ holds NaN or infinite entries: check the inputs and the network's weights."
        )
    blocks: list[Tensor] = []
    history = [Certificate(0, total, math.inf, total**2, 0.0, 0.0)]
    longest = 0.0
    while history[-1].bound > tol and history[-1].rank < max_rank:
        began = time.perf_counter() - start
        if max_seconds is not None and began + longest > max_seconds:
            break
        i = len(history)
        share = failure_probability / (i * (i + 1))
        V, EV, squares = krylov(features, blocks, generator)
        block, ritz = _new_columns(V, EV, max_rank - history[-1].rank, total)
        if not block.shape[1]:  # what is left is rounding
            history[-1] = replace(history[-1], spectral=_ROUNDING * total)
            break
        blocks.append(block)
        seconds = time.perf_counter() - start
        longest = max(longest, seconds - began)
        history.append(_next(history, block, ritz, squares, share, features, seconds))
    return _finished(blocks, history, features)


def _next(
    history: Sequence[Certificate],
    block: Tensor,
    ritz: float,
    squares: float,
    share: float,
    features: ScaledFeatures,
    seconds: float,
) -> Certificate:
    """The round's certificate: bounds of the E before it, which the one after is below."""
    last = history[-1]
    s, k = block_shape(features.n_params, features.memory_limit)
    eta = min(last.spectral, ritz / (1.0 - allowance(features.n_params, s, k, 0.5 * share)))
    trace = max(0.0, last.trace - float((block**2).sum()))
    W = frobenius_bound(squares, s, min(eta, last.trace), 0.5 * share)
    W = min(last.frobenius, W, min(eta, last.trace) * last.trace)
    failure = last.failure_probability + share
    return Certificate(last.rank + block.shape[1], trace, eta, W, failure, seconds)


def block_shape(n: int, memory_limit: float | None = None) -> tuple[int, int]:
    """Columns of a fresh block and steps from it, for n weights: V, E V within a quarter.

    MemoryError if not even one column fits.
    """
    steps = min(_STEPS, n)
    needed = 4 * 3 * 8 * n * steps
    require_memory(
        needed,
        memory_limit,
        f"A block of the low-rank posterior (P={n} weights)",
        "Raise memory_limit, use posterior='diag', or fewer weights.",
    )
    most = limit_in_bytes(memory_limit) // needed
    return min(_BLOCK, max(1, n // (2 * steps)), most), steps


def krylov(
    features: ScaledFeatures, blocks: Sequence[Tensor], generator: Generator
) -> tuple[Tensor, Tensor, float]:
    """Orthonormal V (P, columns) of E's block Krylov space from a fresh block, E V, and ‖EΩ‖_F²."""
    n = features.n_params
    s, steps = block_shape(n, features.memory_limit)
    root = features.inverse_root
    Omega = torch.randn(n, s, dtype=torch.float64, generator=generator).to(root.device)
    block, R = torch.linalg.qr(Omega)
    V, EV = block, _error_times(features, blocks, block)
    squares = float(((EV @ R) ** 2).sum())
    last = EV
    for _ in range(steps - 1):
        block = _orthonormal(last, V, generator)
        last = _error_times(features, blocks, block)
        V, EV = torch.cat([V, block], 1), torch.cat([EV, last], 1)
    return V, EV, squares


def _error_times(features: ScaledFeatures, blocks: Sequence[Tensor], V: Tensor) -> Tensor:
    """E V = G V - F Fᵀ V."""
    EV = features.gram_times(V)
    for F in blocks:
        EV -= F @ (F.mT @ V)
    return EV


def _orthonormal(W: Tensor, V: Tensor, generator: Generator) -> Tensor:
    """Orthonormal columns of what W has beside V; random ones where it has nothing."""
    rest = W - V @ (V.mT @ W)
    small = torch.linalg.vector_norm(rest, dim=0) <= 1e-12 * torch.linalg.vector_norm(W, dim=0)
    Q, R = torch.linalg.qr(rest)
    diagonal = R.diagonal().abs()
    small |= diagonal <= 1e-12 * diagonal.max()
    if bool(small.any()):
        fresh = torch.randn(len(W), int(small.sum()), dtype=torch.float64, generator=generator)
        Q[:, small] = fresh.to(Q)
    for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
        Q, _R = torch.linalg.qr(Q - V @ (V.mT @ Q))
    return Q


def _new_columns(V: Tensor, EV: Tensor, most: int, norm: float) -> tuple[Tensor, float]:
    """E V (VᵀEV)^(-1/2) over the Ritz vectors that rounding leaves, the largest first, and ξ."""
    T = V.mT @ EV
    values, vectors = torch.linalg.eigh(0.5 * (T + T.mT))
    largest = float(values[-1])
    kept = values > max(_CUT * largest, _ROUNDING * norm)
    values, vectors = values[kept][-most:], vectors[:, kept][:, -most:]
    return EV @ (vectors / values.sqrt()), max(largest, 0.0)


def _finished(blocks: list[Tensor], history: list[Certificate], features: ScaledFeatures) -> Sketch:
    """F turned so that its columns are orthogonal; the blocks are given up one after another."""
    n, rank = features.n_params, sum(block.shape[1] for block in blocks)
    F = torch.empty(n, rank, dtype=torch.float64, device=features.inverse_root.device)
    stop = rank
    while blocks:
        block = blocks.pop()
        F[:, stop - block.shape[1] : stop] = block
        stop -= block.shape[1]
    values, vectors = torch.linalg.eigh(F.mT @ F)
    for part in gen_batches(n, 4096):
        F[part] = F[part] @ vectors
    return Sketch(F, values.clamp_min(0.0), tuple(history))

"""A posterior for NK and P both large that knows its own error (:ref:`math-low-rank`).

In the prior's scale A = cI + G, and a sketch Ĝ = F Fᵀ ⪯ G ⪯ Ĝ + ηI gives, with M = cI + Ĝ,

    J (M + ηI)⁻¹ Jᵀ  ⪯  J A⁻¹ Jᵀ  ⪯  J M⁻¹ Jᵀ  ⪯  (1 + η/c) J (M + ηI)⁻¹ Jᵀ      for every J:

a bracket of the covariances at all test points from one number. Where it is too wide, conjugate
gradients with M narrow it for given test points, and draw exact samples
(:ref:`math-refinement`). What has one value here lies on the safe side: variances are never too
small, the evidence never too high.

c is the prior precision δ over the one that the sketch was made with: it serves every multiple.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches
from torch import Generator, Tensor

from .._utils.linalg import nonnegative_variance
from .._utils.memory import chunk_length, joined_parts, limit_in_bytes
from .._utils.random import torch_generator
from .._utils.warn import warn
from ..exceptions import ApproximationWarning
from ..linear_model import LinearModel
from .contract import Posterior
from .products import ScaledFeatures
from .refine import Preconditioner, solve
from .sketch import grow_sketch

__all__ = ["CovarianceBracket", "LowRankPosterior"]

# Of a solve: the bracket of vᵀA⁻¹v in relation to its size; the error of A⁻¹v is its root.
_SOLVE_TOL, _MAX_STEPS = 1e-14, 1000


@dataclass(frozen=True)
class CovarianceBracket:
    """Two matrices (n, K, K) with lower ⪯ V_* ⪯ upper at each test point.

    ``n_iter``: most steps of conjugate gradients that a point took; 0 for the sketch alone.
    """

    lower: Tensor
    upper: Tensor
    n_iter: int = 0


class LowRankPosterior(Posterior):
    """N(w*, A⁻¹) by a Nyström sketch with a certificate (:ref:`math-low-rank`).

    Parameters
    ----------
    model : LinearModel
    tol : float, default=0.1
        The sketch grows until η/δ ≤ tol: standard deviations are then at most √(1 + tol) too wide.
    max_rank : int, optional
        Columns of the sketch at most; None is what the memory holds.
    memory_limit : float, optional
        MiB; None is scikit-learn's ``working_memory``. The sketch takes half of it.
    max_seconds : float, optional
        Of growing the sketch.
    random_state : int, RandomState or None
    failure_probability : float, default=1e-6
        Of the certificate, where it is not the trace's.

    Attributes
    ----------
    rank : int
    error_bound : float
        η/δ.
    error_kind : {"trace", "probabilistic"}
        Whether the bound is rigorous or may fail.
    failure_probability : float
        Of the bound; 0 for "trace".
    std_factor : float
        √(1 + η/δ): how many times too wide a standard deviation may be.
    history : tuple of Certificate
        What was known after every round, with its rank and time, at the sketch's own δ.

    Raises
    ------
    MemoryError
        If not even a few columns fit.
    ValueError
        If ``tol``, ``max_rank`` or ``max_seconds`` is not positive.
    numpy.linalg.LinAlgError
        If the features are not finite.

    Warns
    -----
    ApproximationWarning
        If rank or time was spent before η/δ ≤ tol, with the certificate that was reached.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior.low_rank import LowRankPosterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> posterior = LowRankPosterior(model, random_state=0)
    >>> round(posterior.variance(X[:1]).item(), 6), posterior.rank  # 1 / (3 + 1)
    (0.25, 1)
    """

    is_exact = False

    def __init__(
        self,
        model: LinearModel,
        *,
        tol: float = 0.1,
        max_rank: int | None = None,
        memory_limit: float | None = None,
        max_seconds: float | None = None,
        random_state: Any = None,
        failure_probability: float = 1e-6,
    ) -> None:
        _check_settings(tol, max_rank, max_seconds, failure_probability)
        self.model, self.memory_limit, self.ratio = model, memory_limit, 1.0
        self._features = ScaledFeatures(model, memory_limit)
        self._sketch = grow_sketch(
            self._features,
            tol,
            self._affordable(max_rank),
            torch_generator(random_state),
            max_seconds,
            failure_probability,
        )
        self._known: dict[str, Tensor] = {}  # of the sketch, shared by all its multiples of δ
        if self.error_bound > tol:
            self._warn(tol)

    def _affordable(self, max_rank: int | None) -> int:
        """The largest rank that is asked for and whose sketch fits half of the memory."""
        P = self.model.n_params
        fits = max(1, int(limit_in_bytes(self.memory_limit) / 2 // (16 * P)))
        wanted = min(P, self.model.n_rows) if max_rank is None else max_rank
        return min(wanted, fits, P)

    def _warn(self, tol: float) -> None:
        warn(
            f"The low-rank posterior of rank {self.rank} is certified to η/δ = "
            f"{self.error_bound:.3g} ({self.error_kind}), not to tol={tol:g}: standard deviations "
            f"may be up to {self.std_factor:.3g} times too wide. Raise max_rank, max_seconds or "
            "memory_limit, or a stronger prior; refined_covariance narrows the bracket for given "
            "test points.",
            ApproximationWarning,
        )

    def with_prior_precision(self, prior_precision: float | Tensor) -> LowRankPosterior:
        """The posterior under a multiple of δ, from the same sketch; ValueError if it is none."""
        model = self.model.with_prior_precision(prior_precision)
        ratios = model.prior_precision / self._features.model.prior_precision
        ratio = float(ratios.flatten()[0])
        if not torch.allclose(ratios, ratios.new_tensor(ratio), rtol=1e-12, atol=0.0):
            raise ValueError(
                "A sketch serves multiples of the prior_precision it was made with; for another "
                "pattern of δ make a new LowRankPosterior."
            )
        changed = object.__new__(LowRankPosterior)
        shared = ("memory_limit", "_features", "_sketch", "_known")
        changed.__dict__.update({name: self.__dict__[name] for name in shared})
        changed.model, changed.ratio = model, ratio
        return changed

    def release(self) -> None:
        """Give up the factors of the training rows, which further products would make anew."""
        self._features.release()

    @property
    def rank(self) -> int:
        """Columns of the sketch."""
        return len(self._sketch.eigenvalues)

    @property
    def history(self) -> tuple:
        """A Certificate of every round, in units of the δ that the sketch was made with."""
        return self._sketch.history

    @property
    def error_bound(self) -> float:
        """η/δ, by the trace or by the probes, whichever is smaller."""
        return self._sketch.certificate.bound / self.ratio

    @property
    def error_kind(self) -> str:
        """ "trace": rigorous; "probabilistic": but for ``failure_probability``."""
        return self._sketch.certificate.kind

    @property
    def failure_probability(self) -> float:
        """Of ``error_bound``; 0 where it is the trace's."""
        rigorous = self.error_kind == "trace"
        return 0.0 if rigorous else self._sketch.certificate.failure_probability

    @property
    def std_factor(self) -> float:
        """√(1 + η/δ)."""
        return math.sqrt(1.0 + self.error_bound)

    @cached_property
    def effective_dimension(self) -> float:
        """Σ λ̂/(λ̂ + δ): the lower end of :meth:`effective_dimension_bounds`' simplest form."""
        s = self._sketch.eigenvalues
        return float((s / (self.ratio + s)).sum())

    @property
    def own_log_determinant(self) -> float:
        """log|M/c|, of the Gaussian N(w*, M⁻¹) itself; its γ is ``effective_dimension``."""
        return float(torch.log1p(self._sketch.eigenvalues / self.ratio).sum())

    @property
    def log_determinant(self) -> float:
        """log|B|, the upper end of its bracket: the evidence that rests on it is a lower bound."""
        return self.log_determinant_bounds()[1]

    def log_determinant_bounds(self) -> tuple[float, float]:
        """Lower and upper end of log|B| = log|I + G/c|.

        With X = M^(-1/2) E M^(-1/2) ⪯ η/c, log|B| = log|I + Ĝ/c| + log|I + X|. Of X the trace m =
        tr(M⁻¹E) is known (one more pass over the data, the first time), and W ≥ ‖X‖_F²; as log(1+μ)
        is concave, and h(μ) = log(1+μ)/μ convex and falling (Jensen, weights μ/m),

            m h(min(η/c, W/m))  ≤  log|I + X|  ≤  r log(1 + m/r),      r = min(P, NK) - rank.
        """
        c, m = self.ratio, self._trace_of_remainder(1)
        base = self.own_log_determinant
        if m <= 0.0:
            return base, base
        W = self._sketch.certificate.frobenius / c**2
        largest = min(self.error_bound, W / m)
        chord = math.log1p(largest) / largest if largest > 0.0 else 1.0
        r = self._free_dimensions()
        return base + m * chord, base + r * math.log1p(m / r)

    def effective_dimension_bounds(self) -> tuple[float, float]:
        """Lower and upper end of γ = P - δ tr A⁻¹.

        γ - γ̂ = c tr(M⁻¹ - A⁻¹) lies between c tr(M⁻²E)/(1 + η/c) and m/(1 + m/r), with m and r as
        in :meth:`log_determinant_bounds`.
        """
        base, m, r = self.effective_dimension, self._trace_of_remainder(1), self._free_dimensions()
        lower = self.ratio * self._trace_of_remainder(2) / (1.0 + self.error_bound)
        return base + lower, base + m / (1.0 + m / r)

    @property
    def effective_dimension_of_bound(self) -> float:
        """-∂/∂log δ of ``log_determinant``, the upper end of log|B|: γ̂ + c tr(M⁻²E)/(1 + m/r).

        It lies between the ends of :meth:`effective_dimension_bounds`, as m/r ≤ η/c.
        """
        m, r = self._trace_of_remainder(1), self._free_dimensions()
        slope = self.ratio * self._trace_of_remainder(2)
        return self.effective_dimension + slope / (1.0 + m / r)

    def _free_dimensions(self) -> int:
        """Rank of E at most: a sketch of ℓ columns takes ℓ from that of G."""
        return max(1, min(self.model.n_params, self.model.n_rows) - self.rank)

    def _trace_of_remainder(self, power: int) -> float:
        """tr(M⁻¹E) or tr(M⁻²E), from tr E and fᵀEf = ‖Ψf‖² - λ̂² of every column f."""
        c, s = self.ratio, self._sketch.eigenvalues
        weight = 1.0 / (c + s) if power == 1 else (2.0 * c + s) / (c + s) ** 2
        rest = self._sketch.certificate.trace - float((self._along_columns() * weight).sum())
        return max(0.0, rest) / c**power

    def _along_columns(self) -> Tensor:
        """fᵀE f of every column f of F, of shape (rank,): once for all multiples of δ."""
        if "along" not in self._known:
            F, s = self._sketch.factor, self._sketch.eigenvalues
            found = [self._features.squared_columns(part) for part in F.split(256, 1)]
            self._known["along"] = (torch.cat([s[:0], *found]) - s**2).clamp_min(0.0)
        return self._known["along"]

    @property
    def inverse_diagonal(self) -> Tensor:
        """diag A⁻¹ with Ĝ in the place of G, never too small, of shape (n_params,)."""
        F, s, c = self._sketch.factor, self._sketch.eigenvalues, self.ratio
        explained = F.square() @ (1.0 / (c * (c + s)))  # F has the norms √λ̂
        return self._features.inverse_root.square() * (1.0 / c - explained)

    def solve(self, v: Tensor) -> Tensor:
        """A⁻¹ v, of shape (n_params,), by conjugate gradients to a relative error of 1e-7."""
        root = self._features.inverse_root
        return root * self._solved((root * v)[:, None], _SOLVE_TOL)[:, 0]

    def _solved(self, V: Tensor, tol: float) -> Tensor:
        step, n_iter = solve(self._product, self._preconditioner, V, tol, _MAX_STEPS)
        if n_iter >= _MAX_STEPS:
            warn(
                f"Conjugate gradients stopped after {n_iter} steps with a relative error of "
                f"{float(((step.upper / step.lower - 1.0).max()) ** 0.5):.1e}. Raise max_rank.",
                ConvergenceWarning,
            )
        return step.solution

    @property
    def _preconditioner(self) -> Preconditioner:
        return Preconditioner(self._sketch.factor, self._sketch.eigenvalues, self.ratio)

    def _product(self, V: Tensor) -> Tensor:
        return self.ratio * V + self._features.gram_times(V)

    def variance(self, X: Tensor) -> Tensor:
        """Variances v_up of f(x), never too small, of shape (n_samples, n_outputs)."""
        return self.variance_bounds(X)[1]

    def variance_bounds(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """v_lo ≤ v ≤ v_up, each (n_samples, n_outputs), with v_up ≤ (1 + η/δ) v_lo."""
        return self._contracted(X, _diagonals)

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* of M ⪯ A, never too small, (n_samples, n_outputs, n_outputs)."""
        return self.covariance_bounds(X).upper

    def covariance_bounds(self, X: Tensor) -> CovarianceBracket:
        """Lower ⪯ V_* ⪯ upper at every test point, from the sketch."""
        return CovarianceBracket(*self._contracted(X, _blocks))

    def _contracted(self, X: Tensor, contract: Any) -> tuple[Tensor, Tensor]:
        """J M⁻¹ Jᵀ with c + η and with c, as ``contract`` takes it from J Jᵀ and J F."""
        ends = self.ratio * (1.0 + self.error_bound), self.ratio
        s = self._sketch.eigenvalues
        both = (
            torch.stack([contract(prior, along, s, end) for end in ends], dim=1)
            for _, prior, along in self._features.contractions(X, self._sketch.factor)
        )
        lower, upper = joined_parts(both, len(X)).unbind(1)
        return lower.contiguous(), upper.contiguous()

    @cached_property
    def basis(self) -> Tensor:
        """Orthonormal U (P, rank) of the sketch's columns, in the prior's scale."""
        return torch.linalg.qr(self._sketch.factor.flip(1)).Q  # the longest first

    def along_basis(self, X: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (slice, B = J D^(-1/2) U (n, K, rank), J D⁻¹ Jᵀ - B Bᵀ (n, K, K)), D = diag δ."""
        for part, prior, along in self._features.contractions(X, self.basis):
            yield part, along / self.ratio**0.5, (prior - along @ along.mT) / self.ratio

    def joint_covariance(self, X: Tensor) -> Tensor:
        """V_* of M over all examples and outputs, of shape (n K, n K)."""
        rows = torch.cat([part.flatten(0, 1) for _, part in self._features.rows(X)])
        half = self._preconditioner.half_solve(rows.mT)
        return half.mT @ half

    def refined_covariance(
        self, X: Tensor, tol: float = 0.01, max_iter: int = 100
    ) -> CovarianceBracket:
        """Bracket of V_* by conjugate gradients, for as many steps as ``tol`` asks.

        Rigorous wherever it stops (:ref:`math-refinement`), whatever the certificate's kind.
        ``tol`` is the width of every variance's bracket, in relation to its lower end; after
        ``max_iter`` steps the bracket of the last is returned.
        """
        P, K = self.model.n_params, self.model.noise_factor.shape[1]
        lower, upper, most = [], [], 0
        for part in gen_batches(len(X), chunk_length(10 * 8 * P * K, self.memory_limit)):
            J = torch.cat([rows for _, rows in self._features.rows(X[part])])
            columns = J.flatten(0, 1).mT
            step, n_iter = solve(self._product, self._preconditioner, columns, tol, max_iter)
            Z, R, Y = (
                column.mT.reshape(J.shape)
                for column in (step.solution, step.residual, step.preconditioned)
            )
            Q = J @ Z.mT + Z @ R.mT
            lower.append(0.5 * (Q + Q.mT))
            upper.append(lower[-1] + R @ Y.mT)
            most = max(most, n_iter)
        return CovarianceBracket(torch.cat(lower), torch.cat(upper), most)

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw w - w* from N(0, A⁻¹), of shape (n_samples, n_params).

        A ζ = Φᵀε + √δ ξ with standard normal ε, ξ has that covariance exactly; the solves, to a
        relative error of 1e-7, share their products with Φ.
        """
        features, parts = self._features, []
        length = chunk_length(10 * 8 * (features.n_params + features.n_rows), self.memory_limit)
        for part in gen_batches(n_samples, length):
            q = part.stop - part.start
            shape = (features.n_rows + features.n_params, q)
            noise = torch.randn(*shape, dtype=torch.float64, generator=generator)
            epsilon, xi = noise.to(features.inverse_root.device).split(
                [features.n_rows, features.n_params]
            )
            right = features.transpose_times(epsilon) + self.ratio**0.5 * xi
            parts.append((features.inverse_root[:, None] * self._solved(right, _SOLVE_TOL)).mT)
        return torch.cat(parts)

    def sampled_variance(
        self, X: Tensor, n_samples: int = 200, generator: Generator | None = None
    ) -> tuple[Tensor, float]:
        """Variances (n, K) of S exact samples, and their relative standard error √(2/S)."""
        draws = self.sample(X, n_samples, generator)
        return draws.square().mean(0), math.sqrt(2.0 / n_samples)


def _blocks(prior: Tensor, along: Tensor, s: Tensor, c: float) -> Tensor:
    """J (cI + F Fᵀ)⁻¹ Jᵀ = (J Jᵀ - J F (c + Λ̂)⁻¹ Fᵀ Jᵀ)/c, of shape (n, K, K)."""
    covariance = prior - (along / (c + s)) @ along.mT
    fixed = nonnegative_variance(
        covariance.diagonal(dim1=-2, dim2=-1),
        prior.diagonal(dim1=-2, dim2=-1),
        "the posterior variance",
    )
    return covariance.diagonal_scatter(fixed, dim1=-2, dim2=-1) / c


def _diagonals(prior: Tensor, along: Tensor, s: Tensor, c: float) -> Tensor:
    """The diagonal of :func:`_blocks`, of shape (n, K)."""
    own = prior.diagonal(dim1=-2, dim2=-1)
    explained = along.square() @ (1.0 / (c + s))
    return nonnegative_variance(own - explained, own, "the posterior variance") / c


def _check_settings(
    tol: float, max_rank: int | None, max_seconds: float | None, probability: float
) -> None:
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol!r}.")
    if max_rank is not None and (int(max_rank) != max_rank or max_rank < 1):
        raise ValueError(f"max_rank must be a positive integer or None, got {max_rank!r}.")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive or None, got {max_seconds!r}.")
    if not 0 < probability < 1:
        raise ValueError(f"failure_probability must lie between 0 and 1, got {probability!r}.")

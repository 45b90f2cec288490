"""The log marginal likelihood of the linear model, its gradients and its maximisers.

Mathematics: :ref:`math-evidence`, :ref:`math-choosing`.

Two numbers, equal for the Gaussian at a true minimum:

    laplace   Σ log p(y|f) - ½ wᵀδw - ½ log|B|
    dual      log N(ỹ | 0, K + Λ⁻¹) = ½ Σ log|Λ/2π| - ½ log|B| - ½ min_w [ ‖t - Φw‖² + wᵀδw ]

and min_w [...] = ‖u‖² + w*ᵀδw* - gᵀA⁻¹g with g = ∇loss(w*), so both need the same few numbers.
``fit_of`` takes them from a posterior at one (δ, σ). ``EvidenceSpectrum`` factorises once
and then gives the evidence, its gradient and γ for every (δ, σ) in O(min(P, NK)) each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .._utils.linalg import cholesky, symmetric_eigenvalues
from .._utils.memory import require_memory
from ..linear_model import LinearModel
from ..posterior import (
    DiagonalPosterior,
    IndependentPosterior,
    KroneckerPosterior,
    Posterior,
    output_gram,
)

__all__ = [
    "Data",
    "EvidenceSpectrum",
    "GroupedEvidence",
    "OverPriorAndNoise",
    "log_marginal_likelihood",
    "updated_noise_std",
    "updated_precision",
]

_LOG_2PI = math.log(2.0 * math.pi)
_KINDS = ("laplace", "dual")
# Starts of the search over (log δ, log σ), relative to the one given.
_SHIFTS = np.array([(0.0, 0.0), (3.0, 0.0), (-3.0, 0.0)])


def log_marginal_likelihood(posterior: Posterior, kind: str = "laplace") -> float:
    """Evidence of the model behind ``posterior`` at its own δ and σ (:ref:`math-evidence`).

    Parameters
    ----------
    posterior : Posterior
    kind : {"laplace", "dual"}, default="laplace"
        ``dual`` is the paper's Gaussian process evidence of the transformed targets; ``laplace``
        is the one to compare models by. Equal for the Gaussian at a minimum of the loss.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If ``kind`` is unknown.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.evidence import log_marginal_likelihood
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior import make_posterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> _ = torch.nn.init.constant_(net.weight, 0.5)  # the minimum for x = y = 1, δ = σ = 1
    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), one, one, Gaussian(1.0), 1.0)
    >>> round(log_marginal_likelihood(make_posterior(model), "dual"), 6)  # log N(1 | 0, 2)
    -1.515512
    """
    return fit_of(posterior, kind) - 0.5 * posterior.log_determinant


def fit_of(posterior: Posterior, kind: str) -> float:
    """The evidence of the model behind ``posterior`` without -½ log|B|."""
    model = posterior.model
    return _fit(
        kind,
        model.log_likelihood,
        model.log_noise_determinant - float((model.whitened_residual**2).sum()),
        float((model.prior_precision * model.weights**2).sum()),
        lambda: posterior.newton_decrement,
    )


def _fit(
    kind: str, log_p: float, noise: float, penalty: float, decrement: Callable[[], float]
) -> float:
    """Either evidence without -½ log|B|; ``noise`` is Σ log|Λ/2π| - ‖u‖²."""
    if kind == "laplace":
        return log_p - 0.5 * penalty
    _check_kind(kind)
    return 0.5 * (noise - penalty + decrement())


@dataclass(frozen=True)
class Data:
    """What the evidence needs of the data whatever δ and σ are; of a Gaussian's, at σ = 1."""

    log_likelihood: float
    log_noise_determinant: float
    residual_squared: float
    n_observations: float
    gaussian: bool

    @staticmethod
    def of(model: LinearModel, noise_std: float | None, n_observations: float) -> dict[str, Any]:
        squares = float((model.whitened_residual**2).sum())
        return {
            "log_likelihood": model.log_likelihood,
            "log_noise_determinant": model.log_noise_determinant,
            "residual_squared": squares * (1.0 if noise_std is None else noise_std**2),
            "n_observations": n_observations,
            "gaussian": noise_std is not None,
        }

    def fit(
        self, kind: str, variance: float, penalty: float, decrement: Callable[[], float]
    ) -> float:
        """The evidence without -½ log|B|; ValueError if ``kind`` is unknown."""
        log_noise, squares = self.log_noise_determinant, self.residual_squared / variance
        if self.gaussian:
            log_noise = -self.n_observations * (_LOG_2PI + math.log(variance))
        log_p = 0.5 * (log_noise - squares) if self.gaussian else self.log_likelihood
        return _fit(kind, log_p, log_noise - squares, penalty, decrement)


class OverPriorAndNoise:
    """What follows from the evidence and γ at every δ and σ: its slopes and its maximum.

    Of ``log_marginal_likelihood`` and ``bounds`` a kind of evidence defines one.
    """

    gaussian: bool
    n_observations: float
    residual_squared: float
    weights_squared: float

    def log_marginal_likelihood(
        self, prior_precision: float, noise_std: float = 1.0, kind: str = "laplace"
    ) -> float:
        """Evidence at (δ, σ) and the fixed w*; ValueError if ``kind`` is unknown."""
        return self.bounds(prior_precision, noise_std, kind)[0]

    def bounds(
        self, prior_precision: float, noise_std: float = 1.0, kind: str = "laplace"
    ) -> tuple[float, float]:
        """Both ends of the evidence: the value twice, where it is known."""
        value = self.log_marginal_likelihood(prior_precision, noise_std, kind)
        return value, value

    def gradient(
        self, prior_precision: float, noise_std: float = 1.0, kind: str = "laplace"
    ) -> tuple[float, float]:
        """∂/∂log δ and ∂/∂log σ of the evidence at fixed w* (the second is 0 without a σ).

        ``laplace``: ½(γ - δ‖w*‖²) and Σ s‖y-f‖²/σ² - NK + γ, twice the ∂/∂log σ² of
        :ref:`math-evidence`. ``dual``: the same with the ridge solution ŵ(δ, σ) of the linear model
        in place of w*. ValueError if ``kind`` is unknown.
        """
        _check_kind(kind)
        delta, variance = prior_precision, noise_std**2
        gamma = self.effective_dimension(delta, noise_std)
        weights_squared, residual_squared = self.weights_squared, self.residual_squared
        if kind == "dual":
            weights_squared, residual_squared = self._at_ridge_solution(delta, variance)
        by_delta = 0.5 * (gamma - delta * weights_squared)
        if not self.gaussian:
            return by_delta, 0.0
        return by_delta, residual_squared / variance - self.n_observations + gamma

    def maximise(
        self,
        prior_precision: float,
        noise_std: float | None = None,
        prior_precision_bounds: tuple[float, float] | None = (1e-5, 1e8),
        noise_std_bounds: tuple[float, float] | None = (1e-4, 1e2),
        kind: str = "laplace",
    ) -> tuple[float, float | None]:
        """Find the (δ, σ) of the best evidence at fixed w*, by L-BFGS-B in log space.

        The numbers given are one start; a strong and a weak prior are two others. Bounds of None
        keep that one fixed.
        """
        sigma = 1.0 if noise_std is None else noise_std
        bounds = [prior_precision_bounds, noise_std_bounds if self.gaussian else None]

        def objective(theta: np.ndarray) -> tuple[float, tuple[float, float]]:
            delta, std = np.exp(theta)
            value = self.log_marginal_likelihood(delta, std, kind)
            return value, self.gradient(delta, std, kind)

        start = np.log([prior_precision, sigma])
        theta, _ = climbed(objective, start, bounds, _SHIFTS)
        # What is kept is returned to the bit, not by way of its logarithm.
        given = (prior_precision, sigma)
        best = [
            g if b is None else math.exp(t) for g, b, t in zip(given, bounds, theta, strict=True)
        ]
        return best[0], None if noise_std is None else best[1]

    def effective_dimension(self, prior_precision: float, noise_std: float = 1.0) -> float:
        """γ: of what ``log_marginal_likelihood`` gives, the slope of -log|B| in log δ."""
        raise NotImplementedError

    def _at_ridge_solution(self, delta: float, variance: float) -> tuple[float, float]:
        """‖ŵ‖² and Σ s‖ỹ - Jŵ‖² with ŵ = w* - A⁻¹g."""
        raise NotImplementedError


@dataclass(frozen=True)
class EvidenceSpectrum(OverPriorAndNoise, Data):
    """One eigendecomposition, then the evidence at every δ and σ.

    Mathematics: :ref:`math-evidence` and :ref:`math-choosing`.

    Holds the nonzero eigenvalues λ of Σ s_i J_iᵀ Λ_i J_i and the gradient and weights along their
    eigenvectors. For a Gaussian the noise is taken out (Λ = I), so that σ is free too; for other
    likelihoods ``noise`` stays None and only δ is.

    Parameters
    ----------
    log_likelihood, log_noise_determinant, residual_squared : float
        Σ s log p, Σ s log det(Λ/2π) and ‖u‖²; for the Gaussian only ``residual_squared`` counts,
        and is Σ s ‖y - f‖².
    n_observations : float
        K Σ s.
    gaussian : bool
        Whether σ is free.
    eigenvalues : Tensor of shape (rank,)
        λ, at σ = 1 for the Gaussian.
    gradient_in_range, weights_in_range : Tensor of shape (rank,)
        Data gradient Jᵀr (at σ = 1 for the Gaussian) and w* along the eigenvectors.
    weights_squared : float
        ‖w*‖².
    n_params : int
    """

    eigenvalues: Tensor
    gradient_in_range: Tensor
    weights_in_range: Tensor
    weights_squared: float
    n_params: int

    @classmethod
    def from_posterior(
        cls,
        posterior: Posterior,
        noise_std: float | None = None,
        n_observations: float = 0.0,
        prior_precision: float | None = None,
    ) -> EvidenceSpectrum:
        """Decompose what a posterior is made of: ΦᵀΦ or ΦΦᵀ, a diagonal, each output's ΦΦᵀ.

        ``noise_std`` is the σ that the model was made with (None: no Gaussian), and then
        ``n_observations`` is K Σ s. ``prior_precision`` stands for all δ where weights have
        several, and their ratios to it stay; None is the last weight's.
        """
        model = posterior.model
        delta = float(model.prior_precision[-1]) if prior_precision is None else prior_precision
        root = (model.prior_precision / delta).sqrt()
        variance = 1.0 if noise_std is None else noise_std**2
        values, gradient, weights = decomposition(posterior, root)
        return cls(
            eigenvalues=values * variance,
            gradient_in_range=gradient * variance,
            weights_in_range=weights,
            weights_squared=float((root * model.weights).square().sum()),
            n_params=model.n_params,
            **cls.of(model, noise_std, n_observations),
        )

    def log_marginal_likelihood(
        self, prior_precision: float, noise_std: float = 1.0, kind: str = "laplace"
    ) -> float:
        """Evidence at (δ, σ) and the fixed w*; ValueError if ``kind`` is unknown."""
        delta, variance = prior_precision, noise_std**2
        log_det = float(torch.log1p(self.eigenvalues / variance / delta).sum())
        penalty = delta * self.weights_squared
        fit = self.fit(kind, variance, penalty, lambda: self._newton_decrement(delta, variance))
        return fit - 0.5 * log_det

    def effective_dimension(self, prior_precision: float, noise_std: float = 1.0) -> float:
        """γ = Σ λ/(λ + δσ²)."""
        lam = self.eigenvalues
        return float((lam / (lam + prior_precision * noise_std**2)).sum())

    def _newton_step(self, delta: float, variance: float) -> tuple[Tensor, Tensor]:
        """Gradient g and A⁻¹g along the eigenvectors; outside them g = δw and A⁻¹g = w."""
        g = self.gradient_in_range / variance + delta * self.weights_in_range
        return g, g / (self.eigenvalues / variance + delta)

    def _weights_outside(self) -> float:
        return max(0.0, self.weights_squared - float((self.weights_in_range**2).sum()))

    def _newton_decrement(self, delta: float, variance: float) -> float:
        g, step = self._newton_step(delta, variance)
        return float(g @ step) + delta * self._weights_outside()

    def _at_ridge_solution(self, delta: float, variance: float) -> tuple[float, float]:
        """As in the base; outside the eigenvectors ŵ is zero."""
        _, step = self._newton_step(delta, variance)
        weights = self.weights_in_range - step
        moved = float((self.eigenvalues * step**2).sum() - 2.0 * (self.gradient_in_range @ step))
        return float((weights**2).sum()), self.residual_squared + moved


@dataclass(frozen=True)
class GroupedEvidence(Data):
    """The evidence as a function of σ and of several δ, one for each group of weights.

    Mathematics: :ref:`math-evidence`.

    With D = diag(δ) and A = D + G/σ² (G = ΦᵀΦ at σ = 1), log|B| = log|A| - Σ_k P_k log δ_k, and

        ∂/∂log δ_k = ½(γ_k - δ_k‖w_k‖²),   γ_k = P_k - δ_k tr(A⁻¹)_kk

    where the ``dual`` kind takes the ridge solution ŵ = w* - A⁻¹g for w*, as in EvidenceSpectrum.
    Each evaluation factorises a P×P matrix.

    Parameters
    ----------
    log_likelihood, log_noise_determinant, residual_squared, n_observations : float
        As in EvidenceSpectrum.
    gaussian : bool
        Whether σ is free.
    ggn : Tensor of shape (n_params, n_params)
        G; at σ = 1 for the Gaussian.
    data_gradient : Tensor of shape (n_params,)
        Jᵀr; at σ = 1 for the Gaussian.
    weights : Tensor of shape (n_params,)
        w*.
    groups : Tensor of shape (n_params,), int64
        The number of each weight's group.
    """

    ggn: Tensor
    data_gradient: Tensor
    weights: Tensor
    groups: Tensor

    @classmethod
    def from_model(
        cls,
        model: LinearModel,
        groups: np.ndarray,
        noise_std: float | None = None,
        memory_limit: float | None = None,
    ) -> GroupedEvidence:
        """Form the GGN of ``model``, made with this σ (None: no Gaussian); ``groups`` (P,) count
        from 0.

        MemoryError if three P×P matrices do not fit the limit.
        """
        require_memory(
            3 * 8 * model.n_params**2,
            memory_limit,
            f"One prior precision per group of weights (P={model.n_params}: G, A and A's factor)",
            "Use one prior precision for all weights, or raise memory_limit.",
        )
        variance = 1.0 if noise_std is None else noise_std**2
        # Σ s of the Gaussian: LLᵀ = sI/σ².
        n_observations = float((model.noise_factor**2).sum()) * variance
        return cls(
            ggn=model.linearization.ggn(model.X, cotangents=model.noise_factor) * variance,
            data_gradient=model.data_gradient * variance,
            weights=model.weights,
            groups=torch.as_tensor(groups).to(model.weights.device),
            **cls.of(model, noise_std, n_observations),
        )

    def value_and_gradient(
        self, theta: np.ndarray, kind: str = "laplace"
    ) -> tuple[float, np.ndarray]:
        """Evidence and its gradient at θ = (log δ of each group, and log σ for a Gaussian).

        θ and the gradient are of shape (n_groups,) or (n_groups + 1,). ValueError if ``kind`` is
        unknown.
        """
        _check_kind(kind)
        logs = torch.as_tensor(theta, dtype=torch.float64, device=self.weights.device)
        n_groups = len(logs) - self.gaussian
        variance = float(torch.exp(2.0 * logs[-1])) if self.gaussian else 1.0
        delta = logs[:n_groups].exp()[self.groups]
        A = self.ggn / variance
        A.diagonal().add_(delta)
        factor = cholesky(A)
        log_det = 2.0 * float(factor.diagonal().log().sum()) - float(delta.log().sum())
        g = self.data_gradient / variance + delta * self.weights
        step = torch.cholesky_solve(g[:, None], factor)[:, 0]
        by_weight = 1.0 - delta * torch.cholesky_inverse(factor).diagonal()
        penalty = float((delta * self.weights**2).sum())
        fit = self.fit(kind, variance, penalty, lambda: float(g @ step))
        w, squares = self.weights, self.residual_squared
        if kind == "dual":
            w = w - step
            moved = step @ (self.ggn @ step) - 2.0 * (self.data_gradient @ step)
            squares = squares + float(moved)
        terms = 0.5 * (by_weight - delta * w**2)
        gradient = torch.zeros_like(logs).index_add_(0, self.groups, terms)
        if self.gaussian:
            gradient[-1] = squares / variance - self.n_observations + float(by_weight.sum())
        return fit - 0.5 * log_det, gradient.cpu().numpy()


def climbed(
    objective: Callable[[np.ndarray], tuple[float, Any]],
    start: np.ndarray,
    bounds: Sequence[tuple[float, float] | None],
    shifts: np.ndarray,
) -> tuple[np.ndarray, float]:
    """The best end of L-BFGS-B from ``start`` and each shift of it, and the value there.

    ``objective``: θ, logarithms, -> value and gradient; bounds are no logarithms, and None keeps
    that entry as it is.
    """
    free = np.array([b is not None for b in bounds])
    if not free.any():
        return start, float(objective(start)[0])
    box = np.log([b for b in bounds if b is not None])

    def full(part: np.ndarray) -> np.ndarray:
        theta = start.copy()
        theta[free] = part
        return theta

    def negative(part: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(full(part))
        return -value, -np.asarray(gradient)[free]

    starts = (np.clip(start[free] + shift[free], *box.T) for shift in shifts)
    runs = [minimize(negative, s, jac=True, method="L-BFGS-B", bounds=box) for s in starts]
    best = min(runs, key=lambda run: run.fun)
    return full(best.x), -float(best.fun)


def updated_precision(effective_dimension: float, weights_squared: float) -> float:
    """MacKay's δ = γ/‖w‖² (:ref:`math-choosing`): the stationary point of the evidence in log δ.

    Parameters
    ----------
    effective_dimension : float
        γ.
    weights_squared : float
        ‖w‖².

    Returns
    -------
    float
    """
    return effective_dimension / max(weights_squared, 1e-300)


def updated_noise_std(
    effective_dimension: float, residual_squared: float, n_observations: float
) -> float:
    """MacKay's σ² = ‖y-f‖²/(NK-γ), as σ (:ref:`math-choosing`).

    Parameters
    ----------
    effective_dimension : float
        γ.
    residual_squared : float
        ‖y-f‖².
    n_observations : float
        NK.

    Returns
    -------
    float
    """
    return math.sqrt(residual_squared / max(n_observations - effective_dimension, 1e-300))


@singledispatch
def decomposition(posterior: Posterior, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of ΦᵀΦ, and data gradient and w* along its eigenvectors, by the smaller side:
    (rank,).

    In rescaled weights √r w, r (P,) the ratios of their prior precisions, ``root`` their root: Φ
    takes 1/√r. A new kind of posterior registers its own.
    """
    model = posterior.model
    gradient, weights = model.data_gradient / root, model.weights * root
    if model.n_params <= model.n_rows:
        ggn = model.linearization.ggn(model.X, cotangents=model.noise_factor)
        ggn /= root[:, None]
        ggn /= root
        values, vectors = torch.linalg.eigh(ggn)
        return values.clamp_min(0.0), vectors.mT @ gradient, vectors.mT @ weights
    gram = model.prior_gram(model.X, cotangents=model.noise_factor)
    gram *= float((model.prior_precision / root.square())[0])
    values, vectors = torch.linalg.eigh(gram)
    # Directions that rounding alone fills say nothing: their eigenvectors of ΦᵀΦ are undefined.
    keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    values, vectors = values[keep], vectors[:, keep]
    roots = values.sqrt()
    # For Φ = U √λ Qᵀ:  Qᵀ(Φᵀu) = √λ Uᵀu   and   Qᵀw = Uᵀ(Φw)/√λ
    Phi_w = model.whitened_targets + model.whitened_residual
    along = roots * (vectors.mT @ model.whitened_residual.flatten())
    return values, along, (vectors.mT @ Phi_w.flatten()) / roots


@decomposition.register
def _(posterior: DiagonalPosterior, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """diag(ΦᵀΦ), whose eigenvectors are the weights' own axes."""
    model = posterior.model
    values = model.linearization.ggn_diagonal(model.X, cotangents=model.noise_factor)
    return values / root.square(), model.data_gradient / root, model.weights * root


@decomposition.register
def _(posterior: KroneckerPosterior, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """β α of every layer, in the eigenbases of its factors."""
    model = posterior.model
    delta = (model.prior_precision / root.square())[0]
    along = posterior.in_eigenbasis(torch.stack([model.data_gradient / root, model.weights * root]))
    return posterior.eigenvalues * delta, along[0], along[1]


@decomposition.register
def _(posterior: IndependentPosterior, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of every output's own ΦΦᵀ; no common weights belong to them: nan."""
    model = posterior.model
    grams = (output_gram(model, k) for k in range(model.noise_factor.shape[1]))
    values = torch.cat([symmetric_eigenvalues(gram) for gram in grams])
    return values, torch.full_like(values, torch.nan), torch.full_like(values, torch.nan)


def _check_kind(kind: str) -> None:
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {_KINDS}, got {kind!r}.")

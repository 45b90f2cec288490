"""The exact posterior by an NK×NK factor, whatever the number of weights (:ref:`math-laplace`).

With K = J D⁻¹ J'ᵀ the prior covariance of f, D = diag(δ),  B = I + Lᵀ K L  and
V_* = K_** - K_*L B⁻¹ Lᵀ K_*ᵀ. No Jacobian is formed: every kernel comes from the layer rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from sklearn.utils import gen_batches
from torch import Generator, Tensor

from .._utils.linalg import nonnegative_variance
from .._utils.memory import chunk_length, limit_in_bytes
from ..linear_model import LinearModel
from .contract import Posterior
from .precision import DensePrecision

# With at most this many weights a row, products with explicit rows beat passes over the network.
_FEW = 16

__all__ = ["FunctionSpacePosterior", "draws_of"]


class FunctionSpacePosterior(Posterior):
    """The Gaussian process view of the posterior, by a factor of B = I + Φ D⁻¹ Φᵀ.

    See :ref:`math-laplace`.

    Parameters
    ----------
    model : LinearModel
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If B is not positive definite in floating point.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior import FunctionSpacePosterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> round(FunctionSpacePosterior(model).covariance(X[:1]).item(), 6)  # 1 - 3/4
    0.25
    """

    is_exact = True

    def __init__(self, model: LinearModel, memory_limit: float | None = None) -> None:
        self.model = model
        self.memory_limit = memory_limit
        B = model.prior_gram(model.X, cotangents=model.noise_factor)
        B.diagonal().add_(1.0)
        advice = "Raise prior_precision or noise_std, or standardise the inputs."
        self.B = DensePrecision(B, "B = I + ΦΦᵀ/δ", advice)

    @property
    def log_determinant(self) -> float:
        return self.B.log_determinant

    @cached_property
    def effective_dimension(self) -> float:
        """γ = NK - tr B⁻¹: how many weights the data determine."""
        return float((1.0 - self.B.inverse_diagonal).sum())

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """diag(A⁻¹) = 1/δ - Σ_r (C⁻¹ΦD⁻¹)²_rp, of shape (n_params,), with B = C Cᵀ.

        So many columns of Φ at a time as fit the memory limit, the rows made anew for each.
        """
        model, parts = self.model, []
        length = chunk_length(2 * 8 * model.n_rows, self.memory_limit)
        for part in gen_batches(model.n_params, length):
            chunks = model.linearization.iter_rows(model.X, model.noise_factor)
            Phi = torch.cat([rows.flatten(0, 1)[:, part].clone() for _, rows in chunks])
            parts.append(self.B.half_solve(Phi).square().sum(0))
        prior = 1.0 / model.prior_precision
        explained = torch.cat(parts) * prior**2
        return nonnegative_variance(prior - explained, prior, "a weight's posterior variance")

    def solve(self, v: Tensor) -> Tensor:
        """A⁻¹ v = h - D⁻¹Φᵀ B⁻¹ Φ h with h = D⁻¹v, of shape (n_params,)."""
        h = v / self.model.prior_precision
        return h - self._pulled_back(self._features_times(h))

    def variance(self, X: Tensor) -> Tensor:
        """Marginal variances of f, of shape (n_samples, n_outputs): norms of columns."""
        parts = []
        for prior, half in self._halves(X):
            prior = prior.diagonal(dim1=1, dim2=2)
            difference = prior - half.square().sum(0).view(prior.shape)
            parts.append(nonnegative_variance(difference, prior, "the posterior variance"))
        return torch.cat(parts)

    def covariance(self, X: Tensor) -> Tensor:
        blocks = []
        for prior, half in self._halves(X):
            rows = half.reshape(len(half), *prior.shape[:2]).permute(1, 2, 0)
            blocks.append(_difference(prior, rows @ rows.mT))
        return torch.cat(blocks)

    def joint_covariance(self, X: Tensor) -> Tensor:
        half = self._half(X)
        return _difference(self.model.prior_gram(X), half.mT @ half)

    def sample(self, X: Tensor, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw zero-mean fluctuations of f(X), of shape (n_samples, len(X), n_outputs)."""
        draws = draws_of(self.joint_covariance(X), n_samples, generator)
        return draws.reshape(n_samples, len(X), -1)

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw w - w* from N(0, A⁻¹), of shape (n_samples, n_params), by Matheron's rule.

        From the prior, corrected by what the data say of it: with w ~ N(0, D⁻¹) and ε ~ N(0, I),
        w - D⁻¹Φᵀ B⁻¹ (Φw + ε) has the covariance A⁻¹ (Wilson et al. 2020, equation 5).
        """
        model = self.model
        P, R = model.n_params, model.n_rows
        z = torch.randn(n_samples, P + R, dtype=torch.float64, generator=generator)
        z, noise = z.to(model.weights.device).split([P, R], dim=1)
        w = z * model.prior_precision.rsqrt()
        seen = self._features_times(w.mT).mT + noise
        return torch.stack([w_s - self._pulled_back(t) for w_s, t in zip(w, seen, strict=True)])

    @cached_property
    def _rows(self) -> Tensor | None:
        """Φ itself, where it is small beside the memory limit and less work than two passes."""
        model = self.model
        few = model.n_params <= _FEW * model.n_rows
        if not few or 8 * model.n_rows * model.n_params > limit_in_bytes(self.memory_limit) / 8:
            return None
        chunks = model.linearization.iter_rows(model.X, model.noise_factor)
        return torch.cat([rows.flatten(0, 1) for _, rows in chunks])

    def _features_times(self, v: Tensor) -> Tensor:
        """Φ v, of shape (n_rows,), or (n_rows, n) for v (n_params, n)."""
        if self._rows is not None:
            return self._rows @ v
        Jv = self.model.linearization.jvp(self.model.X, v).double()
        columns = Jv if v.ndim == 2 else Jv[..., None]
        return (self.model.noise_factor.mT @ columns).reshape(self.model.n_rows, *v.shape[1:])

    def _pulled_back(self, t: Tensor) -> Tensor:
        """D⁻¹Φᵀ B⁻¹ t, of shape (n_params,)."""
        model = self.model
        if self._rows is not None:
            return (self._rows.mT @ self.B.solve(t)) / model.prior_precision
        u = model.noise_factor @ self.B.solve(t).view(len(model.X), -1, 1)
        return model.linearization.vjp(model.X, u[..., 0]) / model.prior_precision

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def _halves(self, X: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of K_** per example (n, K, K) and C⁻¹ Lᵀ K_*ᵀ (n_rows, n K), with B = C Cᵀ."""
        R, K = self.model.n_rows, self.model.noise_factor.shape[1]
        for part in gen_batches(len(X), chunk_length(3 * 8 * R * K, self.memory_limit)):
            yield self.model.prior_blocks(X[part]), self._half(X[part])

    def _half(self, X: Tensor) -> Tensor:
        model = self.model
        cross = model.prior_gram(model.X, X, cotangents=model.noise_factor)
        return self.B.half_solve(cross)


def draws_of(covariance: Tensor, n_samples: int, generator: Generator | None) -> Tensor:
    """Draws (n_samples, n) from N(0, covariance), which may be singular.

    A covariance of more rows than weights is: a symmetric root, no Cholesky factor.
    """
    values, vectors = torch.linalg.eigh(covariance)
    z = torch.randn(len(values), n_samples, dtype=torch.float64, generator=generator)
    return (vectors @ (values.clamp_min(0.0).sqrt()[:, None] * z.to(values.device))).mT


def _difference(prior: Tensor, explained: Tensor) -> Tensor:
    """prior - explained, whose diagonal is a variance and is checked as one."""
    covariance = prior - explained
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    scale = prior.diagonal(dim1=-2, dim2=-1)
    fixed = nonnegative_variance(diagonal, scale, "the posterior variance")
    return covariance.diagonal_scatter(fixed, dim1=-2, dim2=-1)

"""The exact posterior by an NK×NK factor, whatever the number of weights (MATH 3).

With K = J J'ᵀ/δ the prior covariance of f,  B = I + Lᵀ K L  and
V_* = K_** - K_*L B⁻¹ Lᵀ K_*ᵀ. No Jacobian is formed: every kernel comes from the layer rules.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Generator, Tensor

from .._utils.linalg import cholesky, nonnegative_variance
from .._utils.memory import batches, chunk_length
from ..linear_model import LinearModel

__all__ = ["FunctionSpacePosterior"]


class FunctionSpacePosterior:
    """The Gaussian process view of the posterior, by a factor of B = I + ΦΦᵀ/δ (MATH 3).

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

    def __init__(self, model: LinearModel, memory_limit: float | None = None) -> None:
        self.model = model
        self.memory_limit = memory_limit
        B = self._kernel(model.X, None, model.noise_factor, None)
        B.diagonal().add_(1.0)
        self.cholesky_factor = cholesky(
            B, "B = I + ΦΦᵀ/δ", "Raise prior_precision or noise_std, or standardise the inputs."
        )

    @cached_property
    def log_determinant(self) -> float:
        """log|B|."""
        return float(2.0 * self.cholesky_factor.diagonal().log().sum())

    @cached_property
    def effective_dimension(self) -> float:
        """γ = NK - tr B⁻¹: how many weights the data determine."""
        half_inverse = torch.linalg.solve_triangular(
            self.cholesky_factor, torch.eye(self.model.n_rows).to(self.cholesky_factor), upper=False
        )
        return self.model.n_rows - float((half_inverse**2).sum())

    @cached_property
    def newton_decrement(self) -> float:
        """gᵀ A⁻¹ g: zero at a true minimum."""
        g = self.model.gradient
        return max(0.0, float(g @ self.solve(g)))

    def solve(self, v: Tensor) -> Tensor:
        """A⁻¹ v = h - D⁻¹Φᵀ B⁻¹ Φ h with h = D⁻¹v, D = diag(δ), of shape (n_params,)."""
        model = self.model
        h = v / model.prior_precision
        Jh = model.linearization.jvp(model.X, h).double()
        Phi_h = (model.noise_factor.mT @ Jh[..., None]).reshape(-1, 1)
        inner = torch.cholesky_solve(Phi_h, self.cholesky_factor)
        L_inner = model.noise_factor @ inner.reshape(len(model.X), -1, 1)
        return h - model.linearization.vjp(model.X, L_inner[..., 0]) / model.prior_precision

    def covariance(self, X: Tensor) -> Tensor:
        """Marginal V_* per example, of shape (n_samples, n_outputs, n_outputs)."""
        R, K = self.model.n_rows, self.model.noise_factor.shape[1]
        blocks = []
        for part in batches(len(X), chunk_length(3 * 8 * R * K, self.memory_limit)):
            prior = self._prior_blocks(X[part])
            cross = self._kernel(self.model.X, X[part], self.model.noise_factor, None)
            half = self._half_solve(cross).reshape(R, -1, K).permute(1, 2, 0)
            blocks.append(_difference(prior, half @ half.mT))
        return torch.cat(blocks)

    def joint_covariance(self, X: Tensor) -> Tensor:
        """V_* over all examples and outputs, of shape (n K, n K)."""
        prior = self._kernel(X, None, None, None)
        cross = self._kernel(self.model.X, X, self.model.noise_factor, None)
        half = self._half_solve(cross)
        return _difference(prior, half.mT @ half)

    def sample(self, X: Tensor, n_samples: int, generator: Generator | None = None) -> Tensor:
        """Draw zero-mean fluctuations of f(X), of shape (n_samples, len(X), n_outputs)."""
        covariance = self.joint_covariance(X)
        # V_* is singular whenever NK test rows exceed the rank, so a symmetric root, no Cholesky.
        values, vectors = torch.linalg.eigh(covariance)
        z = torch.randn(len(values), n_samples, dtype=torch.float64, generator=generator)
        draws = vectors @ (values.clamp_min(0.0).sqrt()[:, None] * z.to(values.device))
        return draws.mT.reshape(n_samples, len(X), -1)

    def _kernel(self, X: Tensor, X2: Tensor | None, L: Tensor | None, L2: Tensor | None) -> Tensor:
        """Lᵀ K(X, X2) L2 with K = J diag(1/δ) Jᵀ."""
        scale = self.model.parameter_scale()
        gram = self.model.linearization.gram(
            X, X2, cotangents=L, cotangents2=L2, parameter_scale=scale
        )
        return gram if scale is not None else gram.div_(self.model.prior_precision)

    def _prior_blocks(self, X: Tensor) -> Tensor:
        scale = self.model.parameter_scale()
        blocks = self.model.linearization.diagonal_blocks(X, parameter_scale=scale)
        return (
            blocks.double() if scale is not None else blocks.double() / self.model.prior_precision
        )

    def _half_solve(self, columns: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.cholesky_factor, columns, upper=False)


def _difference(prior: Tensor, explained: Tensor) -> Tensor:
    """prior - explained, whose diagonal is a variance and is checked as one."""
    covariance = prior - explained
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    scale = prior.diagonal(dim1=-2, dim2=-1)
    fixed = nonnegative_variance(diagonal, scale, "the posterior variance")
    return covariance.diagonal_scatter(fixed, dim1=-2, dim2=-1)

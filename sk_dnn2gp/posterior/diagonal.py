"""The diagonal posterior: diag(ΦᵀΦ) + δ only, the paper's choice for large networks.

An approximation, and named so: correlations between weights are dropped, which makes the
variance of f too small where errors of weights would have cancelled (:ref:`math-laplace`).
"""

from __future__ import annotations

from torch import Tensor

from .._utils.memory import joined_parts
from ..linear_model import LinearModel
from .precision import DiagonalPrecision
from .weight_space import PrecisionPosterior

__all__ = ["DiagonalPosterior"]


class DiagonalPosterior(PrecisionPosterior):
    """N(w*, diag(a)⁻¹) with a = diag(ΦᵀΦ) + δ (:ref:`math-laplace`).

    Parameters
    ----------
    model : LinearModel
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.
    ggn_diagonal : Tensor of shape (n_params,), optional
        diag(ΦᵀΦ) where the caller has it already.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior import DiagonalPosterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> round(DiagonalPosterior(model).covariance(X[:1]).item(), 6)
    0.25
    """

    def __init__(
        self,
        model: LinearModel,
        memory_limit: float | None = None,
        ggn_diagonal: Tensor | None = None,
    ) -> None:
        if ggn_diagonal is None:
            ggn_diagonal = model.linearization.ggn_diagonal(model.X, cotangents=model.noise_factor)
        precision = DiagonalPrecision(ggn_diagonal + model.prior_precision)
        super().__init__(model, precision, is_exact=False)

    def variance(self, X: Tensor) -> Tensor:
        """Marginal variances Σ_p J_kp²/a_p of f, of shape (n_samples, n_outputs)."""
        chunks = self.model.linearization.iter_rows(X)
        return joined_parts((rows.square() @ self.inverse_diagonal for _, rows in chunks), len(X))

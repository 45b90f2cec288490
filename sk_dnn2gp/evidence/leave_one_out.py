"""Each example predicted by all the others, without fitting again (:ref:`math-leave-one-out`).

The linear model without example i has A_{-i} = A - Φ_iᵀ Φ_i. With V = J_i A⁻¹ J_iᵀ, H = Lᵀ V L and
e = t_i - Φ_i ŵ, Woodbury's formula gives its mean and covariance of f(x_i):

    V_{-i} = V + V L (I - H)⁻¹ Lᵀ V        f_{-i} = f̂_i - V L (I - H)⁻¹ e

where f̂ = f + J (ŵ - w*) is the linear model's own fit: at a minimum of the loss, the network's.
Λ is never inverted, so that classifiers are served too.

Shapes: f_{-i} (n_samples, n_outputs); V, L, H (n_samples, n_outputs, n_outputs).
"""

from __future__ import annotations

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from ..posterior import Posterior

__all__ = ["leave_one_out"]

# 1 - h is a difference from one, and keeps four of its digits down to here.
_LEFT = 1e-12


def leave_one_out(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Mean and covariance of each f(x_i) given all examples but i (:ref:`math-leave-one-out`).

    Exact for the linear model; its features were learned with example i. An example of weight s is
    left out with all its weight.

    Parameters
    ----------
    posterior : Posterior
        Exact.

    Returns
    -------
    mean : Tensor of shape (n_samples, n_outputs)
    covariance : Tensor of shape (n_samples, n_outputs, n_outputs)

    Raises
    ------
    ValueError
        If the posterior is an approximation of the linear model's own.
    numpy.linalg.LinAlgError
        If an example is all that determines some direction of f, in floating point.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.evidence import leave_one_out
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior import make_posterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> y = torch.tensor([[1.0], [1.0], [4.0]], dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, y, Gaussian(1.0), 1.0)
    >>> mean, variance = leave_one_out(make_posterior(model))
    >>> round(mean[2].item(), 6), round(variance[2].item(), 6)  # (1 + 1) / (2 + 1), 1 / (2 + 1)
    (0.666667, 0.333333)
    """
    if not posterior.is_exact:
        raise ValueError(
            f"{type(posterior).__name__} approximates the linear model's posterior, and the rows "
            "of an approximation cannot be left out exactly. Use posterior='full' or 'last_layer'."
        )
    model = posterior.model
    L, linearization = model.noise_factor, model.linearization
    step = posterior.solve(model.gradient)  # w* - ŵ
    moved = linearization.jvp(model.X, step).double()
    error = (L.mT @ moved[..., None]) - model.whitened_residual[..., None]
    V = posterior.covariance(model.X)
    VL = V @ L
    gain = _solved(L.mT @ VL, torch.cat([error, VL.mT], dim=-1))
    mean = linearization.outputs(model.X).double() - moved - (VL @ gain[..., :1])[..., 0]
    covariance = V + VL @ gain[..., 1:]
    return mean, 0.5 * (covariance + covariance.mT)


def _solved(H: Tensor, columns: Tensor) -> Tensor:
    """(I - H)⁻¹ columns, by Cholesky factors."""
    factor, info = torch.linalg.cholesky_ex(torch.eye(H.shape[-1]).to(H) - H)
    smallest = factor.diagonal(dim1=-2, dim2=-1).square().min(-1).values
    lost = (info != 0) | ~(smallest > _LEFT)
    if bool(lost.any()):
        row = int(lost.nonzero()[0])
        raise LinAlgError(
            f"Example {row} alone determines f there (a leverage of one), so that the others do "
            "not predict it. Raise prior_precision or noise_std."
        )
    return torch.cholesky_solve(columns, factor)

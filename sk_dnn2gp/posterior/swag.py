"""The moments of weights along a training as a posterior (:ref:`math-swag`)."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ..linear_model import LinearModel
from .precision import LowRankCovariance
from .weight_space import PrecisionPosterior

__all__ = ["SWAGPosterior"]


class SWAGPosterior(PrecisionPosterior):
    """N(w̄, Σ) of recorded weights (:ref:`math-swag`; Maddox et al. 2019).

    Σ = ½ (diag s² + D Dᵀ/(m - 1)), or diag s² where there are no deviations. No likelihood and no
    prior made it: its evidence has no meaning.

    Parameters
    ----------
    model : LinearModel
        At the mean w̄ of the weights.
    variances : Tensor of shape (n_params,), float64
        s²: mean of the squares less the square of the mean.
    deviations : Tensor of shape (n_params, n_columns), float64, optional
        D: the last weights less the mean of all until then.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> from sk_dnn2gp.posterior import SWAGPosterior
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> X = torch.ones(3, 1, dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> D = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
    >>> posterior = SWAGPosterior(model, torch.tensor([3.0], dtype=torch.float64), D)
    >>> round(posterior.variance(X[:1]).item(), 6)  # (3 + 5/2)/2
    2.75
    """

    def __init__(
        self, model: LinearModel, variances: Tensor, deviations: Tensor | None = None
    ) -> None:
        if deviations is None:
            covariance = LowRankCovariance(variances, variances.new_zeros(len(variances), 0))
        else:
            columns = deviations / math.sqrt(2.0 * (deviations.shape[1] - 1))
            covariance = LowRankCovariance(0.5 * variances, columns)
        super().__init__(model, covariance, is_exact=False)

    def sample_weights(self, n_samples: int, generator: Generator | None = None) -> Tensor:
        U = self.precision.factor
        z = torch.randn(n_samples, sum(U.shape), dtype=torch.float64, generator=generator)
        return self.precision.scale(z.to(U.device))

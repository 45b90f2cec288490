"""A fitted regressor as a BoTorch model: its acquisition functions and optimisers, on our process.

Needs ``botorch`` (``pip install sk_dnn2gp[botorch]``), which is imported when a model is made. X is
(..., q, d): q inputs jointly, in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ..estimators.regressor import DNN2GPRegressor
from ..posterior import Posterior

__all__ = ["BoTorchModel"]


class _Solved(torch.autograd.Function):
    """rows A⁻¹ (n, P); A is symmetric, and so is the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, posterior: Posterior) -> Tensor:
        ctx.posterior = posterior
        return torch.stack([posterior.solve(row) for row in rows])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.stack([ctx.posterior.solve(row) for row in gradient]), None


class BoTorchModel(nn.Module):
    """The process of a fitted :class:`~sk_dnn2gp.DNN2GPRegressor`, as BoTorch's optimisers take it.

    The posterior of f at X is N(f_w*(X), J A⁻¹ Jᵀ) (:ref:`math-predicting`), in the units of y,
    with gradients in X. Another observation is another ``fit``: ``condition_on_observations`` and
    ``fantasize`` are not supported, as training moves the features.

    Parameters
    ----------
    estimator : DNN2GPRegressor
        Fitted, with one target and a posterior that solves with A: any but "independent".

    Raises
    ------
    ImportError
        If BoTorch is not installed.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.
    ValueError
        If there are several targets, or y is not f and noise (counts, say).

    Examples
    --------
    >>> import numpy as np, torch
    >>> from botorch.acquisition import LogExpectedImprovement
    >>> from sk_dnn2gp import DNN2GPRegressor
    >>> from sk_dnn2gp.integrations import BoTorchModel
    >>> X = np.linspace(-2, 2, 8)[:, None]
    >>> y = np.cos(2 * X[:, 0])
    >>> model = BoTorchModel(DNN2GPRegressor(n_restarts=1, random_state=0).fit(X, y))
    >>> improvement = LogExpectedImprovement(model, best_f=0.9)
    >>> improvement(torch.zeros(3, 1, 1, dtype=torch.float64)).shape  # three single inputs
    torch.Size([3])
    """

    def __init__(self, estimator: DNN2GPRegressor) -> None:
        super().__init__()
        _gpytorch_law()
        check_is_fitted(estimator)
        n_targets, likelihood = len(estimator.y_scale_), estimator._result.likelihood
        if n_targets != 1:
            raise ValueError(f"The estimator must have one target, got one of {n_targets}.")
        if not likelihood.is_additive:
            raise ValueError(f"y must be f and noise, got the likelihood {likelihood!r}.")
        self.estimator = estimator

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """That of a single model."""
        return torch.Size()

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
    ) -> Any:
        """The joint normal law of f (of y, with ``observation_noise``) at X.

        Parameters
        ----------
        X : Tensor of shape (..., q, d)
        output_indices : list of int, optional
        observation_noise : bool or Tensor of shape (..., q, 1), default=False
            Add σ², or these variances in the units of y squared.
        posterior_transform : PosteriorTransform, optional

        Returns
        -------
        GPyTorchPosterior
        """
        fitted = self.estimator
        scale, shift = float(fitted.y_scale_[0]), float(fitted.y_mean_[0])
        f, J = self._outputs_and_rows(X.flatten(0, -2))
        shape = X.shape[:-1]
        solved = _Solved.apply(J, fitted.posterior_).view(*shape, -1)
        half = 0.5 * scale**2 * (J.view(*shape, -1) @ solved.mT)
        covariance = half + half.mT
        if observation_noise is not False:
            same = (scale * fitted.noise_std_) ** 2 * torch.ones(*shape, 1).to(covariance)
            noise = same if observation_noise is True else observation_noise
            covariance = covariance + torch.diag_embed(noise[..., 0])
        law = _gpytorch_law()(shift + scale * f.view(shape), covariance)
        return law if posterior_transform is None else posterior_transform(law)

    def _outputs_and_rows(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """f (n,) and J (n, P) at w*, with the graph of X."""
        linearization = self.estimator.posterior_.model.linearization
        module = linearization.module.eval()
        named = dict(module.named_parameters())
        chosen = {name: named[name].detach() for name in linearization.parameter_names}

        def f(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
            value = functional_call(module, weights, (x[None],))[0, 0]
            return value, value

        rows, values = vmap(jacrev(f, has_aux=True), (None, 0))(chosen, X.to(linearization.dtype))
        return values, torch.cat([rows[name].flatten(1) for name in chosen], 1)


def _gpytorch_law() -> Callable[[Tensor, Tensor], Any]:
    """Mean and covariance -> BoTorch's posterior."""
    try:
        from botorch.posteriors.gpytorch import GPyTorchPosterior
        from gpytorch.distributions import MultivariateNormal
    except ImportError as error:
        raise ImportError("BoTorchModel needs botorch: pip install sk_dnn2gp[botorch]") from error
    return lambda mean, covariance: GPyTorchPosterior(MultivariateNormal(mean, covariance))

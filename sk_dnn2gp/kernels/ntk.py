"""The neural tangent kernel of a network as a scikit-learn kernel (MATH 3 and 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel
from torch import nn

from ..linearize import Linearization

__all__ = ["NTKKernel"]


class NTKKernel(Kernel):
    """K(x, x') = J(x) J(x')ᵀ / δ, summed over outputs or of one output (MATH 3).

    Parameters
    ----------
    network : torch.nn.Module, skorch net or fitted estimator with ``module_``
    prior_precision : float, default=1.0
        δ.
    prior_precision_bounds : pair of float or "fixed", default=(1e-5, 1e5)
    output : "sum" or int, default="sum"
    memory_limit : float, default=None
        MiB for temporary work.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sk_dnn2gp.kernels import NTKKernel
    >>> NTKKernel(torch.nn.Linear(1, 1), prior_precision=2.0)(np.ones((1, 1))).item()
    1.0
    """

    def __init__(
        self,
        network: Any,
        *,
        prior_precision: float = 1.0,
        prior_precision_bounds: Any = (1e-5, 1e5),
        output: str | int = "sum",
        memory_limit: float | None = None,
    ) -> None:
        self.network = network
        self.prior_precision = prior_precision
        self.prior_precision_bounds = prior_precision_bounds
        self.output = output
        self.memory_limit = memory_limit

    @property
    def hyperparameter_prior_precision(self) -> Hyperparameter:
        """δ as scikit-learn's optimiser sees it."""
        return Hyperparameter("prior_precision", "numeric", self.prior_precision_bounds)

    def __sklearn_clone__(self) -> NTKKernel:
        return NTKKernel(**self.get_params())

    def __call__(
        self, X: ArrayLike, Y: ArrayLike | None = None, eval_gradient: bool = False
    ) -> Any:
        """Kernel matrix, and its gradient in log δ on request."""
        linearization = self._linearization()
        X = torch.tensor(np.asarray(X, dtype=np.float64))
        other = None if Y is None else torch.tensor(np.asarray(Y, dtype=np.float64))
        K = linearization.gram(X, other).numpy() / self.prior_precision
        if not eval_gradient:
            return K
        if self.hyperparameter_prior_precision.fixed:
            return K, np.empty((len(K), len(K), 0))
        return K, -K[:, :, None]

    def diag(self, X: ArrayLike) -> NDArray:
        """Diagonal of ``self(X)``."""
        X = torch.tensor(np.asarray(X, dtype=np.float64))
        blocks = self._linearization().diagonal_blocks(X)
        return blocks.diagonal(dim1=-2, dim2=-1).sum(-1).numpy() / self.prior_precision

    def is_stationary(self) -> bool:
        """Whether K(x, x') depends on x - x' alone: no."""
        return False

    def _linearization(self) -> Linearization:
        module = self.network
        if not isinstance(module, nn.Module):
            module = module.module_
        return Linearization(module, dtype=torch.float64, memory_limit=self.memory_limit)

"""Infinitely wide dense networks as scikit-learn kernels (:ref:`math-infinite`; Lee et al. 2018).

K⁰ = σ_b² + σ_w² x·x'/D, K^{l+1} = σ_b² + σ_w² F_φ; tangents in (log σ_b², log σ_w²) go forward with
it. X is (n_samples, n_features).
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .base import InfiniteKernel, checked
from .steps import Activation, Node, Weights, chain

__all__ = ["InfiniteNTKKernel", "NNGPKernel"]


class NNGPKernel(InfiniteKernel):
    """Prior covariance of an infinitely wide dense network (Lee et al. 2018, equation 5).

    Parameters
    ----------
    depth : int, default=3
        Hidden layers.
    activation : str or callable, default="relu"
        See `dual_activation`; a callable must act on every element of an array by itself.
    sigma_w2, sigma_b2 : float
        Weight variance (times fan-in) and bias variance.
    sigma_w2_bounds, sigma_b2_bounds : pair of float or "fixed", default=(1e-5, 1e5)
        For an optimiser. ``sigma_b2=0`` must be "fixed".
    slope : float, default=0.01
        Of the leaky ReLU.
    terms : int, default=300
        Highest degree of the Hermite series, where there is no closed form. Its relative error is
        known; above 1e-6 it is warned of.
    dtype, device : torch.dtype, default=torch.float64, and str or torch.device, default="cpu"
        Of the work; float32 halves the time at about six digits. The result is float64.
    memory_limit : float, default=None
        MiB of temporary work beyond the result; None is scikit-learn's ``working_memory``.
    n_jobs : int, default=None
        Processes for joblib, which work on panels of the matrix; None is one (torch's own threads
        serve it).
    verbose : int, default=0
        Whether to show a progress bar.

    Raises
    ------
    ValueError
        If a parameter is out of its range, or X is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.kernels import NNGPKernel
    >>> NNGPKernel(1, sigma_w2=2.0, sigma_b2=1.0).diag(np.eye(2)).tolist()
    [3.0, 3.0]
    """

    def __init__(
        self,
        depth: int = 3,
        *,
        activation: Any = "relu",
        sigma_w2: float = 2.0,
        sigma_b2: float = 0.1,
        sigma_w2_bounds: Any = (1e-5, 1e5),
        sigma_b2_bounds: Any = (1e-5, 1e5),
        slope: float = 0.01,
        terms: int = 300,
        dtype: torch.dtype = torch.float64,
        device: Any = "cpu",
        memory_limit: float | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self._keep(locals())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(depth={self.depth}, activation={self.activation!r}, "
            f"sigma_w2={self.sigma_w2:.3g}, sigma_b2={self.sigma_b2:.3g})"
        )

    def _nodes(self) -> list[Node]:
        if isinstance(self.depth, bool) or int(self.depth) != self.depth or self.depth < 0:
            raise ValueError(f"depth must be a whole number >= 0, got {self.depth!r}.")
        phi = Activation(self.activation, self.slope, self.terms)
        return chain([Weights(), *(phi, Weights()) * int(self.depth)])

    def _input(self, X: ArrayLike, name: str) -> Tensor:
        x = checked(X, name, self.dtype, self.device)
        if x.ndim != 2:
            raise ValueError(f"{name} must be (n_samples, n_features), got shape {tuple(x.shape)}.")
        return x


class InfiniteNTKKernel(NNGPKernel):
    """Neural tangent kernel of an infinitely wide dense network (Jacot et al. 2018).

    Θ⁰ = K⁰, Θ^{l+1} = K^{l+1} + σ_w² Ḟ_φ Θ^l, in the parametrisation of `NNGPKernel`, whose
    parameters it takes.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_dnn2gp.kernels import InfiniteNTKKernel
    >>> InfiniteNTKKernel(0, sigma_w2=2.0, sigma_b2=1.0).diag(np.eye(2)).tolist()
    [2.0, 2.0]
    """

    kind = "ntk"

"""Noise with outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.special import stdtr, stdtrit
from torch import Generator, Tensor

from ..predictive import Predictive, StudentNormal
from .contract import LOG_2PI, Likelihood, identities

__all__ = ["StudentT"]


@dataclass(frozen=True)
class StudentT(Likelihood):
    """Noise with heavy tails, robust to outliers (:ref:`math-likelihoods`).

    y = f + s t, with t Student's of ν degrees of freedom. At z = (y - f)/s the Hessian is
    (ν+1)(ν - z²)/(ν + z²)²/s², negative for outliers; Λ is its mean over y, the Fisher information
    (ν+1)/((ν+3) s²).

    Parameters
    ----------
    scale : float
        s > 0, in the units of y as the network sees it (standardised under ``normalize_y``). A
        search chooses it by the evidence, as any parameter.
    df : float, default=4.0
        ν > 2, so that the noise has a variance, s² ν/(ν - 2). The larger, the more Gaussian.

    Raises
    ------
    ValueError
        If ``scale`` is not positive or ``df`` not above 2, or one is not finite.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import StudentT
    >>> f, y = torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [100.0]])
    >>> StudentT(1.0).residual(f, y).abs().argmax().item()  # the outlier pulls less than y = 2
    1
    """

    scale: float
    df: float = 4.0
    is_definite: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be a positive finite number, got {self.scale!r}.")
        if not (self.df > 2 and math.isfinite(self.df)):
            raise ValueError(f"df must be a finite number above 2, got {self.df!r}.")

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        nu = self.df
        z = (y - f) / self.scale
        constant = math.lgamma(0.5 * nu) - math.lgamma(0.5 * (nu + 1.0))
        constant += 0.5 * math.log(nu * math.pi) + math.log(self.scale)
        return (0.5 * (nu + 1.0) * torch.log1p(z * z / nu) + constant).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        z = (f - y) / self.scale
        return (self.df + 1.0) * z / (self.df + z * z) / self.scale

    def noise_precision(self, f: Tensor) -> Tensor:
        return identities(f) * self._root**2

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return identities(f) * self._root

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        return self.residual(f, y) / self._root

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return f.new_full((len(f),), f.shape[-1] * (2.0 * math.log(self._root) - LOG_2PI))

    def mean(self, f: Tensor) -> Tensor:
        return f

    def aleatoric(self, f: Tensor) -> Tensor:
        return identities(f) * (self.scale**2 * self.df / (self.df - 2.0))

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        return V

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.tensor(stdtr(self.df, ((y - f) / self.scale).numpy()))

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        uniform = torch.rand(f.shape, dtype=torch.float64, generator=generator)
        # In the middle of a draw's cell: at 0 the quantile is infinite.
        quantile = stdtrit(self.df, uniform.numpy() * (1.0 - 2**-52) + 2**-53)
        return f + self.scale * torch.tensor(quantile).to(f)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        return StudentNormal(f.numpy(), V.numpy(), self.scale, self.df)

    @property
    def _root(self) -> float:
        return math.sqrt((self.df + 1.0) / (self.df + 3.0)) / self.scale

"""Gaussian noise: of one size, of one for each target, or of one that depends on x."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from ..predictive import Normal, NormalLognormal, Predictive
from .contract import LOG_2PI, Likelihood, identities

__all__ = ["DiagonalGaussian", "Gaussian", "HeteroscedasticGaussian"]


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Gaussian noise of standard deviation σ on every output, independent.

    Mathematics: :ref:`math-likelihoods`.

    Parameters
    ----------
    noise_std : float, default=1.0
        σ > 0, in the units of y as the network sees it.

    Raises
    ------
    ValueError
        If ``noise_std`` is not a positive finite number.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> Gaussian(0.5).residual(torch.ones(1, 1), torch.zeros(1, 1)).item()
    4.0
    """

    noise_std: float = 1.0
    is_definite: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.noise_std > 0 and math.isfinite(self.noise_std)):
            raise ValueError(f"noise_std must be a positive finite number, got {self.noise_std!r}.")

    @property
    def sigma(self) -> float:
        return self.noise_std

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        squares = ((y - f) ** 2).sum(-1)
        return squares / (2 * self.noise_std**2) + f.shape[-1] * self.log_normaliser()

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self.noise_std**2

    def noise_precision(self, f: Tensor) -> Tensor:
        return identities(f) / self.noise_std**2

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return identities(f) / self.noise_std

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self.noise_std

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return f.new_full((len(f),), -2 * f.shape[-1] * self.log_normaliser())

    def mean(self, f: Tensor) -> Tensor:
        return f

    def aleatoric(self, f: Tensor) -> Tensor:
        return identities(f) * self.noise_std**2

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        return V

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.special.ndtr((y - f) / self.noise_std)

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        return f + self.noise_std * torch.randn(f.shape, dtype=f.dtype, generator=generator)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        return Normal(f.numpy(), np.full(V.shape, self.noise_std**2), V.numpy())

    def log_normaliser(self) -> float:
        """½ log 2πσ², of one output."""
        return 0.5 * LOG_2PI + math.log(self.noise_std)


@dataclass(frozen=True)
class DiagonalGaussian(Likelihood):
    """Gaussian noise with a standard deviation for each target (:ref:`math-likelihoods`).

    Parameters
    ----------
    noise_stds : tuple of float
        σ > 0 of each target, in the units of y as the network sees it.

    Raises
    ------
    ValueError
        If one is not a positive finite number.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import DiagonalGaussian
    >>> DiagonalGaussian((0.5, 2.0)).residual(torch.ones(1, 2), torch.zeros(1, 2)).tolist()
    [[4.0, 0.25]]
    """

    noise_stds: tuple[float, ...]
    is_definite: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not all(std > 0 and math.isfinite(std) for std in self.noise_stds):
            raise ValueError(
                f"noise_stds must be positive finite numbers, got {self.noise_stds!r}."
            )

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        sigma = self._sigma(f)
        return (0.5 * ((y - f) / sigma) ** 2 + sigma.log() + 0.5 * LOG_2PI).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self._sigma(f) ** 2

    def noise_precision(self, f: Tensor) -> Tensor:
        return identities(f) / self._sigma(f) ** 2

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return identities(f) / self._sigma(f)

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self._sigma(f)

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return -(2.0 * self._sigma(f).log() + LOG_2PI).sum().expand(len(f))

    def mean(self, f: Tensor) -> Tensor:
        return f

    def aleatoric(self, f: Tensor) -> Tensor:
        return identities(f) * self._sigma(f) ** 2

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        return V

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.special.ndtr((y - f) / self._sigma(f))

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        return f + self._sigma(f) * torch.randn(f.shape, dtype=f.dtype, generator=generator)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        return Normal(f.numpy(), np.tile(np.square(self.noise_stds), (len(f), 1)), V.numpy())

    def _sigma(self, f: Tensor) -> Tensor:
        return torch.tensor(self.noise_stds, dtype=f.dtype, device=f.device)


@dataclass(frozen=True)
class HeteroscedasticGaussian(Likelihood):
    """Gaussian noise whose size depends on x (:ref:`math-heteroscedastic`).

    Two outputs per target, the means m of all targets and then their g = log s/σ. Λ is the Fisher
    information: the Hessian's mean over y, which is never negative.

    Parameters
    ----------
    scale : float, default=1.0
        σ > 0, the noise where g = 0: a network near zero begins at it.

    Raises
    ------
    ValueError
        If ``scale`` is not a positive finite number.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import HeteroscedasticGaussian
    >>> f, y = torch.zeros(1, 2), torch.full((1, 1), 3.0)
    >>> HeteroscedasticGaussian().residual(f, y).tolist()  # m shall rise, and the noise too
    [[-3.0, -8.0]]
    """

    scale: float = 1.0
    is_definite: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True
    outputs_per_target: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be a positive finite number, got {self.scale!r}.")

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        m, log_s = self._parts(f)
        z = (y - m) * torch.exp(-log_s)
        return (0.5 * z * z + log_s + 0.5 * LOG_2PI).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        m, log_s = self._parts(f)
        z = (y - m) * torch.exp(-log_s)
        return torch.cat([-z * torch.exp(-log_s), 1.0 - z * z], -1)

    def noise_precision(self, f: Tensor) -> Tensor:
        return self.noise_precision_factor(f) ** 2

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        _, log_s = self._parts(f)
        root_two = torch.full_like(log_s, math.sqrt(2.0))
        return torch.diag_embed(torch.cat([torch.exp(-log_s), root_two], -1))

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        m, log_s = self._parts(f)
        z = (y - m) * torch.exp(-log_s)
        return torch.cat([-z, (1.0 - z * z) / math.sqrt(2.0)], -1)

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return (math.log(2.0) - 2.0 * (self._parts(f)[1] + LOG_2PI)).sum(-1)

    def mean(self, f: Tensor) -> Tensor:
        return self._parts(f)[0]

    def aleatoric(self, f: Tensor) -> Tensor:
        return torch.diag_embed(torch.exp(2.0 * self._parts(f)[1]))

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        K = f.shape[-1] // 2
        return V[..., :K, :K]

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        m, log_s = self._parts(f)
        return torch.special.ndtr((y - m) * torch.exp(-log_s))

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        m, log_s = self._parts(f)
        return m + log_s.exp() * torch.randn(m.shape, dtype=m.dtype, generator=generator)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        m, log_s = (part.numpy() for part in self._parts(f))
        K = m.shape[-1]
        of_both = V.diagonal(dim1=-2, dim2=-1).numpy()
        between = V[..., :K, K:].diagonal(dim1=-2, dim2=-1).numpy()
        return NormalLognormal(m, log_s, of_both[:, :K], of_both[:, K:], between)

    def _parts(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """m and log s of every target."""
        m, g = f.chunk(2, -1)
        return m, g + math.log(self.scale)

"""Counts, whose log rate is f."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..predictive import PoissonLognormal, Predictive
from .contract import LOG_2PI, Likelihood

__all__ = ["Poisson"]


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts of rate e^f, whose noise grows with them (:ref:`math-likelihoods`).

    Under f ~ N(m, V) the mean is exp(m + V/2).

    Parameters
    ----------
    exposure : float, default=1.0
        What multiplies every rate. Under ``normalize_y`` the mean count is taken in, so that a
        network near zero begins at it.

    Raises
    ------
    ValueError
        If ``exposure`` is not a positive finite number.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Poisson
    >>> f, y = torch.zeros(1, 1), torch.full((1, 1), 3.0)
    >>> Poisson(2.0).residual(f, y).item()  # rate less count
    -1.0
    """

    exposure: float = 1.0
    is_discrete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.exposure > 0 and math.isfinite(self.exposure)):
            raise ValueError(f"exposure must be a positive finite number, got {self.exposure!r}.")

    def check_targets(self, y: Tensor) -> None:
        """Refuse what is no count: ValueError."""
        if bool(((y < 0) | (y != y.floor())).any()):
            raise ValueError(
                "likelihood=Poisson() is of counts: y must hold whole numbers, none negative."
            )

    def centred(self, y: Tensor, sample_weight: Tensor) -> Poisson:
        """With the mean count in the exposure."""
        mean = float((sample_weight[:, None] * y).mean() / sample_weight.mean())
        return replace(self, exposure=self.exposure * mean) if mean > 0 else self

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        log_rate = self._log_rate(f)
        return (log_rate.exp() - y * log_rate + torch.lgamma(y + 1.0)).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        return self.mean(f) - y

    def noise_precision(self, f: Tensor) -> Tensor:
        return torch.diag_embed(self.mean(f))

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return torch.diag_embed((0.5 * self._log_rate(f)).exp())

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        half = 0.5 * self._log_rate(f)
        return half.exp() - y * (-half).exp()

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return (self._log_rate(f) - LOG_2PI).sum(-1)

    def mean(self, f: Tensor) -> Tensor:
        return self._log_rate(f).exp()

    def aleatoric(self, f: Tensor) -> Tensor:
        return self.noise_precision(f)

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        rate = self.noise_precision(f)
        return rate @ V @ rate

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        count = y.floor()
        below = torch.special.gammaincc(count.clamp_min(0.0) + 1.0, self.mean(f))
        return torch.where(count >= 0, below, 0.0)

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.poisson(self.mean(f), generator=generator)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        return PoissonLognormal(self._log_rate(f).numpy(), V.numpy())

    def _log_rate(self, f: Tensor) -> Tensor:
        return f + math.log(self.exposure)

"""Categories in an order, by one latent f."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .contract import LOG_2PI, Likelihood

__all__ = ["Ordinal"]


@dataclass(frozen=True)
class Ordinal(Likelihood):
    """Ordered categories 0, 1, …, C - 1: P(y ≤ k) = sigmoid((c_k - f)/s) (:ref:`math-likelihoods`).

    The cumulative logit model (McCullagh 1980) with f from the network. Predictions are mean
    categories; ``log_predictive_density(X, y)`` is the logarithm of the probability of each y.

    Parameters
    ----------
    scale : float, default=1.0
        s > 0: how far f must go from one category into the next, beside the thresholds. A search
        chooses it by the evidence.
    thresholds : tuple of float, optional
        c_0 < c_1 < … < c_{C-2}. None takes those at which f = 0 and s = 1 give the frequencies of
        the training targets (each category half an example more), which ``normalize_y`` must allow.

    Raises
    ------
    ValueError
        If ``scale`` is not a positive finite number, or ``thresholds`` are not finite and rising.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Ordinal
    >>> likert = Ordinal(thresholds=(-1.0, 1.0))
    >>> f, y = torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [2.0]])
    >>> [round(p, 3) for p in (-likert.negative_log_likelihood(f, y)).exp().tolist()]
    [0.269, 0.462, 0.269]
    """

    scale: float = 1.0
    thresholds: tuple[float, ...] | None = None
    is_discrete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be a positive finite number, got {self.scale!r}.")
        c = (0.0,) if self.thresholds is None else self.thresholds
        finite = len(c) > 0 and all(math.isfinite(one) for one in c)
        if not finite or any(high <= low for low, high in zip(c, c[1:], strict=False)):
            raise ValueError(f"thresholds must be finite and rising, got {c!r}.")

    def check_targets(self, y: Tensor) -> None:
        """Refuse what is no category: ValueError."""
        most = math.inf if self.thresholds is None else len(self.thresholds)
        if bool(((y < 0) | (y != y.floor()) | (y > most)).any()):
            raise ValueError(f"{self!r} takes whole numbers from 0 to {most}, a category each.")

    def centred(self, y: Tensor, sample_weight: Tensor) -> Ordinal:
        """With the thresholds of the targets' frequencies, where none are given."""
        if self.thresholds is not None:
            return self
        weight = sample_weight[:, None].expand(y.shape).flatten()
        counts = 0.5 + torch.bincount(y.flatten().long(), weight / weight.mean(), minlength=2)
        below = counts.cumsum(0)[:-1] / counts.sum()
        return replace(self, thresholds=tuple(torch.logit(below).tolist()))

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        # σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b-a)): no digits are lost where both are 0 or 1.
        upper, lower = (ends[y.long()] for ends in self._ends(f))
        between = torch.log(-torch.expm1((lower - upper) / self.scale))
        beyond = F.softplus((f - upper) / self.scale) + F.softplus((lower - f) / self.scale)
        return (beyond - between).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        upper, lower = (ends[y.long()] for ends in self._ends(f))
        above = torch.sigmoid((f - upper) / self.scale)
        return (above - torch.sigmoid((lower - f) / self.scale)) / self.scale

    def noise_precision(self, f: Tensor) -> Tensor:
        return torch.diag_embed(self._information(f))

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return torch.diag_embed(self._information(f).sqrt())

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        # The information vanishes beyond |f| = 700 s, and r with it but where the network is wrong.
        return self.residual(f, y) / self._information(f).sqrt().clamp_min(1e-150)

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return (self._information(f).clamp_min(1e-300).log() - LOG_2PI).sum(-1)

    def mean(self, f: Tensor) -> Tensor:
        p, _, k = self._of_all(f)
        return (p * k).sum(-1)

    def aleatoric(self, f: Tensor) -> Tensor:
        p, _, k = self._of_all(f)
        return torch.diag_embed((p * (k - self.mean(f)[..., None]) ** 2).sum(-1))

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        p, r, k = self._of_all(f)
        slope = torch.diag_embed(-(p * r * k).sum(-1))  # ∂p/∂f = -p r
        return slope @ V @ slope

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        upper, _ = self._ends(f)
        inside = torch.sigmoid((upper[y.clamp(0, len(upper) - 1).long()] - f) / self.scale)
        return torch.where(y < 0, 0.0, inside)

    def n_nodes(self, variance: float) -> int:
        # The sigmoid has poles at πs; beyond the most, what is left is a step's, below 2e-3.
        return max(97, min(4096, math.ceil(18.0 * math.sqrt(variance) / (0.6 * self.scale))))

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        uniform = torch.rand(f.shape, dtype=torch.float64, generator=generator).to(f)
        below = self._of_all(f)[0].cumsum(-1)[..., :-1]
        return (uniform[..., None] > below).sum(-1).to(f)

    def _ends(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Upper and lower end of f's range for every category, each (C,)."""
        if self.thresholds is None:
            raise ValueError(
                "likelihood=Ordinal() needs thresholds where normalize_y=False or net is frozen."
            )
        c, infinity = f.new_tensor(self.thresholds), f.new_tensor([math.inf])
        return torch.cat([c, infinity]), torch.cat([-infinity, c])

    def _of_all(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p and r of every category k, of shape (n_samples, n_outputs, C), and k (C,)."""
        k = torch.arange(len(self._ends(f)[0]), device=f.device)
        shape = (*f.shape, len(k))
        at, y = (t.expand(shape).reshape(-1, 1) for t in (f[..., None], k))
        p = torch.exp(-self.negative_log_likelihood(at, y))
        return p.view(shape), self.residual(at, y).view(shape), k.to(f)

    def _information(self, f: Tensor) -> Tensor:
        """E r², of shape (n_samples, n_outputs)."""
        p, r, _ = self._of_all(f)
        return (p * r**2).sum(-1)

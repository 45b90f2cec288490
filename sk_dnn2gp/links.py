"""From the distribution of the logits to probabilities: the links of :ref:`math-predicting`.

Pure functions. Shapes: f (n_samples, n_outputs), V (n_samples, n_outputs, n_outputs); log p
(n_samples, n_classes), where one logit is the difference of two classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import Tensor

__all__ = [
    "LINKS",
    "contrast_log_softmax",
    "log_proba",
    "log_softmax",
    "mean_log_softmax",
    "mean_uncertainty",
    "of_classes",
    "of_difference",
    "probit_log_softmax",
]

LINKS = ("probit", "contrast", "mc", "map")

# Draws of the latent function behind a probability by link="mc". Of independent draws the error
# would be below 0.016; a scrambled Sobol sequence, unbiased too, is far closer, and it covers the
# tails that decide where a sure network is wrong.
_MC_DRAWS = 1024


def of_difference(f: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """For two logits their difference and its variance: one logit and two then agree."""
    if f.shape[-1] != 2:
        return f, V
    sign = f.new_tensor([[-1.0, 1.0]])
    return f @ sign.mT, sign @ V @ sign.mT


def of_classes(covariance: Tensor) -> Tensor:
    """Covariances over the classes: p₀ = 1 - p₁ where there is one logit."""
    if covariance.shape[-1] != 1:
        return covariance
    return covariance * covariance.new_tensor([[1.0, -1.0], [-1.0, 1.0]])


def log_softmax(f: Tensor) -> Tensor:
    """log p of all classes; one logit is the difference between two."""
    if f.shape[-1] == 1:
        return torch.cat([F.logsigmoid(-f), F.logsigmoid(f)], dim=-1)
    return torch.log_softmax(f, -1)


def probit_log_softmax(f: Tensor, V: Tensor) -> Tensor:
    """log p of f / √(1 + π/8 diag V): exact to 0.02 for one logit (MacKay 1992)."""
    return log_softmax(f / (1.0 + torch.pi / 8.0 * V.diagonal(dim1=-2, dim2=-1)).sqrt())


def contrast_log_softmax(f: Tensor, V: Tensor) -> Tensor:
    """The probit link of what a shift of all logits leaves: each against the mean of the others.

    softmax(f̄/√(1 + π/8 s²)), f̄ the logits less their mean and s_k² = Var(f_k - mean_{j≠k} f_j). The
    common level, which Λ = diag p - p pᵀ does not see, keeps its prior variance whatever the data;
    here it does not count. Two classes: the probit link of the difference.
    """
    K = f.shape[-1]
    centring = torch.eye(K, dtype=f.dtype, device=f.device) - 1.0 / K
    against = centring * (K / (K - 1))
    variance = (against @ V @ against).diagonal(dim1=-2, dim2=-1).clamp_min(0.0)
    return torch.log_softmax(f @ centring / (1.0 + torch.pi / 8.0 * variance).sqrt(), -1)


def mean_log_softmax(f: Tensor, V: Tensor, seed: int) -> Tensor:
    """log of the mean probabilities over draws of f ~ N(f, V), marginally for each example."""
    total = [torch.logsumexp(log_p, dim=1) for log_p in _drawn_log_p(f, V, seed)]
    return torch.cat(total) - np.log(_MC_DRAWS)


def mean_uncertainty(f: Tensor, V: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """E[diag p - p pᵀ] and Cov(p), each (n, K, K), over the same draws: they add up to Var[y]."""
    noise, ignorance = [], []
    for log_p in _drawn_log_p(f, V, seed):
        p = log_p.exp()
        mean = p.mean(1)
        noise.append(torch.diag_embed(mean) - p.mT @ p / _MC_DRAWS)
        p -= mean[:, None]
        ignorance.append(p.mT @ p / _MC_DRAWS)
    return torch.cat(noise), torch.cat(ignorance)


def _drawn_log_p(f: Tensor, V: Tensor, seed: int) -> Iterator[Tensor]:
    """log p (n, draws, K) of a chunk of examples at a time."""
    values, vectors = torch.linalg.eigh(V)
    root = vectors * values.clamp_min(0.0).sqrt()[:, None, :]
    # The same draws for every example: an example's probabilities do not depend on the others.
    engine = torch.quasirandom.SobolEngine(f.shape[1], scramble=True, seed=seed)
    # In the middle of the sequence's cells, whose corners may be 0, where the quantile is infinite.
    uniform = engine.draw(_MC_DRAWS, dtype=torch.float64) * (1 - 2**-30) + 2**-31
    z = torch.tensor(ndtri(uniform.numpy())).mT.to(f)
    for part in torch.arange(len(f)).split(max(1, 2**20 // z.numel())):
        yield log_softmax(f[part, None, :] + (root[part] @ z).mT)


def log_proba(link: str, f: Tensor, V: Tensor, seed: int) -> Tensor:
    """log p by a link that takes the variance: "probit", "contrast" or "mc"."""
    f, V = of_difference(f, V)
    if link == "mc":
        return mean_log_softmax(f, V, seed)
    if link == "contrast" and f.shape[1] > 1:
        return contrast_log_softmax(f, V)
    return probit_log_softmax(f, V)

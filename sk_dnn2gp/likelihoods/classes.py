"""Classes: two by the sigmoid, several by the softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .contract import LOG_2PI, Likelihood

__all__ = ["Bernoulli", "Categorical"]


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """One logit f, p = sigmoid(f), y in {0, 1} (:ref:`math-likelihoods`).

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Bernoulli
    >>> Bernoulli().noise_precision(torch.zeros(1, 1)).item()
    0.25
    """

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        # softplus(-f) for y = 1 and softplus(f) for y = 0: neither loses digits at |f| = 40.
        return (y * F.softplus(-f) + (1 - y) * F.softplus(f)).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (1 - y) * torch.sigmoid(f) - y * torch.sigmoid(-f)

    def noise_precision(self, f: Tensor) -> Tensor:
        return (torch.sigmoid(f) * torch.sigmoid(-f))[..., None]

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return self._root(f)[..., None]

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        # (p - y)/√(p(1-p)) is -e^{-f/2} for y = 1 and e^{f/2} for y = 0.
        return (1 - y) * torch.exp(f / 2) - y * torch.exp(-f / 2)

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return (F.logsigmoid(f) + F.logsigmoid(-f)).sum(-1) - LOG_2PI

    def mean(self, f: Tensor) -> Tensor:
        return torch.sigmoid(f)

    def aleatoric(self, f: Tensor) -> Tensor:
        return self.noise_precision(f)

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        return self.noise_precision(f) ** 2 * V

    @staticmethod
    def _root(f: Tensor) -> Tensor:
        return torch.exp(0.5 * (F.logsigmoid(f) + F.logsigmoid(-f)))


@dataclass(frozen=True)
class Categorical(Likelihood):
    """K logits f, p = softmax(f), y a class index (:ref:`math-likelihoods`).

    Λ = diag p - p pᵀ is singular: a shift of all logits changes nothing. Its factor
    L = diag √p - p √pᵀ is square, and the whitened residual is taken as u = √p - e_y/√p_y.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Categorical
    >>> Categorical().residual(torch.zeros(1, 2), torch.tensor([0])).tolist()
    [[-0.5, 0.5]]
    """

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y, reduction="none")

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        p = torch.softmax(f, -1)
        # p_y - 1 as minus the sum of the others, so that a certain network keeps its digits.
        others = p.scatter(-1, y[:, None], 0.0)
        return others.scatter(-1, y[:, None], -others.sum(-1, keepdim=True))

    def noise_precision(self, f: Tensor) -> Tensor:
        L = self.noise_precision_factor(f)
        return L @ L.mT

    def mean_noise_precision(self, f: Tensor, nodes: Tensor) -> Tensor:
        # Without Λ of every node; 1 - p as the sum of the others keeps the digits of its diagonal.
        p = torch.softmax(f, -1)
        products = (p * nodes[:, None]).mT @ p
        off_diagonal = products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1))
        return torch.diag_embed(off_diagonal.sum(-1)) - off_diagonal

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        log_p = torch.log_softmax(f, -1)
        p, root = log_p.exp(), (0.5 * log_p).exp()
        off_diagonal = -p[:, :, None] * root[:, None, :]
        # The diagonal is √p (1 - p); 1 - p as the sum of the others keeps its digits.
        complement = _complement(p)
        return off_diagonal.diagonal_scatter(root * complement, dim1=-2, dim2=-1)

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        log_p = torch.log_softmax(f, -1)
        root = (0.5 * log_p).exp()
        log_p_y = log_p.gather(-1, y[:, None])
        p_not_y = torch.expm1(log_p_y).neg()
        # √p_y - 1/√p_y = -(1 - p_y)/√p_y
        return root.scatter(-1, y[:, None], -p_not_y * torch.exp(-0.5 * log_p_y))

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        # The K-1 nonzero eigenvalues of diag p - p pᵀ multiply to K Π p_k.
        K = f.shape[-1]
        log_p = torch.log_softmax(f, -1)
        return log_p.sum(-1) + math.log(K) - (K - 1) * LOG_2PI

    def mean(self, f: Tensor) -> Tensor:
        return torch.softmax(f, -1)

    def aleatoric(self, f: Tensor) -> Tensor:
        return self.noise_precision(f)

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        Lambda = self.noise_precision(f)
        return Lambda @ V @ Lambda


def _complement(p: Tensor) -> Tensor:
    """1 - p without cancellation where p is close to one: the sum of the other classes."""
    K = p.shape[-1]
    others = 1.0 - torch.eye(K, dtype=p.dtype, device=p.device)
    return p @ others

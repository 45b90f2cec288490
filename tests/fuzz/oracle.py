"""Brute force for one fitted estimator: dense Jacobians, one singular value decomposition.

With J̃ = J D^(-1/2) and L̃ = Lᵀ J̃ of the training rows (D = diag δ, L Lᵀ = s Λ), L̃ = U S Wᵀ:

    V_* = J̃_* W (1 + S²)⁻¹ Wᵀ J̃_*ᵀ        log|B| = Σ log(1 + S²)

W square, so that no difference of large numbers is formed: V_* keeps its digits.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sk_dnn2gp.posterior import Diagonal, IndependentOutputs

from .cases import Case


def jacobian(module: nn.Module, X: Tensor, names: list[str]) -> Tensor:
    """∂f/∂w of named weights, of shape (n_samples, n_outputs, n_params)."""
    parameters = [dict(module.named_parameters())[name] for name in names]
    rows = []
    for f in module(X).flatten():
        grads = torch.autograd.grad(f, parameters, retain_graph=True, allow_unused=True)
        pieces = [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(grads, parameters, strict=True)
        ]
        rows.append(torch.cat(pieces))
    return torch.stack(rows).view(len(X), -1, len(rows[0]))


@dataclass
class Truth:
    """What a fitted estimator must say, by brute force."""

    f_new: Tensor
    prior: Tensor
    variance: Tensor
    evidence: float
    condition: float
    size: float


def truth(case: Case, model: Any, specification: Any) -> Truth:
    """Brute force at the trained weights of ``model``.

    Parameters
    ----------
    case : Case
    model : fitted estimator
    specification : PosteriorSpecification

    Returns
    -------
    Truth
    """
    module = copy.deepcopy(model.module_).double().eval()
    names = chosen_names(module, specification.parameters)
    rows = training_rows(case, model)
    X, y, weight = rows
    J, J_new = jacobian(module, X, names), jacobian(module, as_double(case.X_new), names)
    with torch.no_grad():
        f, f_new = module(X), module(as_double(case.X_new))
    w = torch.cat([dict(module.named_parameters())[n].detach().flatten() for n in names])
    delta = model.posterior_.model.prior_precision
    L, log_p = noise(case, model, f, y)
    L, log_p = L * weight.sqrt()[:, None, None], (weight * log_p).sum()
    J, J_new = J * delta.rsqrt(), J_new * delta.rsqrt()
    prior = J_new.square().sum(-1)
    variance, log_det, condition = posterior_of(specification, L, J, J_new)
    penalty = 0.5 * float((delta * w * w).sum())
    evidence = float(log_p) - penalty - 0.5 * log_det
    if not case.classifier:
        evidence -= float(weight.sum() * np.log(model.y_scale_).sum())
    size = abs(float(log_p)) + penalty + abs(log_det) + 1.0
    return Truth(f_new, prior, variance, evidence, condition, size)


def posterior_of(
    specification: Any, L: Tensor, J: Tensor, J_new: Tensor
) -> tuple[Tensor, float, float]:
    """Variances of f at new inputs, log|B| and the condition of B, J in units of the prior."""
    inner = getattr(specification, "_inner", lambda: specification)()
    if isinstance(inner, IndependentOutputs):
        parts = []
        for k in range(J.shape[1]):
            root = L[:, k].norm(dim=-1)
            parts.append(_dense(root[:, None] * J[:, k], J_new[:, k : k + 1]))
        variance = torch.cat([v for v, _, _ in parts], 1)
        return variance, sum(d for _, d, _ in parts), max(c for _, _, c in parts)
    Phi = (L.mT @ J).flatten(0, 1)
    if isinstance(inner, Diagonal):
        a = 1.0 + Phi.square().sum(0)
        return J_new.square() @ (1.0 / a), float(a.log().sum()), 1.0
    return _dense(Phi, J_new)


def _dense(Phi: Tensor, J_new: Tensor) -> tuple[Tensor, float, float]:
    _, S, Wh = torch.linalg.svd(Phi, full_matrices=True)
    squares = torch.zeros(len(Wh), dtype=torch.float64)
    squares[: len(S)] = S.square()
    variance = (J_new @ Wh.mT).square() @ (1.0 / (1.0 + squares))
    return variance, float(squares.log1p().sum()), 1.0 + float(squares.max())


def chosen_names(module: nn.Module, parameters: Any) -> list[str]:
    """The weights of the posterior: all, the last layer's, or those that are named."""
    trainable = [name for name, p in module.named_parameters() if p.requires_grad]
    if parameters is None:
        return trainable
    if parameters == "last_layer":
        last = trainable[-1].rpartition(".")[0]
        return [name for name in trainable if name.rpartition(".")[0] == last]
    return [name for name in trainable if name in parameters]


def as_double(X: Any) -> Tensor:
    return torch.tensor(np.asarray(X, dtype=np.float64))


def training_weight(case: Case) -> np.ndarray:
    """Weights of all rows, those of their classes in them."""
    weight = np.ones(len(case.X)) if case.weight is None else case.weight.copy()
    if case.classifier and case.options.get("class_weight") == "balanced":
        classes, index, counts = np.unique(case.y, return_inverse=True, return_counts=True)
        weight = weight * (len(case.y) / (len(classes) * counts))[index]
    return weight


def training_rows(case: Case, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """X, y as the likelihood wants it, and weights, of the posterior's rows."""
    weight = training_weight(case)
    seen = weight > 0
    X, y, weight = as_double(case.X)[seen], case.y[seen], torch.tensor(weight)[seen]
    if case.classifier:
        target = torch.tensor(np.searchsorted(model.classes_, y))
    else:
        target = torch.tensor((y.reshape(len(y), -1) - model.y_mean_) / model.y_scale_)
    rows = model.posterior_indices_
    return (X, target, weight) if rows is None else (X[rows], target[rows], weight[rows])


def noise(case: Case, model: Any, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A root of Λ, and log p(y | f), per example."""
    if not case.classifier:
        sigma = model.noise_std_
        eye = torch.eye(f.shape[1], dtype=torch.float64).expand(len(f), -1, -1)
        squares = ((y - f) ** 2).sum(1) / (2 * sigma**2)
        return eye / sigma, -squares - 0.5 * f.shape[1] * math.log(2 * math.pi * sigma**2)
    logits = torch.cat([torch.zeros_like(f), f], 1) if f.shape[1] == 1 else f
    log_p = torch.log_softmax(logits, 1)
    values, vectors = torch.linalg.eigh(precision_of(f, log_p))
    root = vectors * values.clamp_min(0.0).sqrt()[:, None]
    return root, log_p[torch.arange(len(f)), y]


def precision_of(f: Tensor, log_p: Tensor) -> Tensor:
    """Λ; of one logit p(1-p) in a form that keeps its digits."""
    if f.shape[1] == 1:
        return log_p.sum(1).exp()[:, None, None]
    p = log_p.exp()
    off = -p[:, :, None] * p[:, None, :]
    off.diagonal(dim1=1, dim2=2).zero_()
    return off - torch.diag_embed(off.sum(-1))

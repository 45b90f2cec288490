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
from scipy import stats
from torch import Tensor, nn

from sk_dnn2gp.posterior import Diagonal, IndependentOutputs, Kronecker

from .cases import Case

LOG_2PI = math.log(2.0 * math.pi)


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
    gamma: float
    condition: float  # 1 + λ_max, of G in units of the prior: what its rounding is in proportion to
    trace: float  # Σ (1 + λ)
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
    J, J_new = jacobian(module, rows.X, names), jacobian(module, as_double(case.X_new), names)
    with torch.no_grad():
        f, f_new = module(rows.X), module(as_double(case.X_new))
    w = torch.cat([dict(module.named_parameters())[n].detach().flatten() for n in names])
    delta = model.posterior_.model.prior_precision
    L, log_p = noise(case, model, f, rows)
    L, log_p = L * rows.weight.sqrt()[:, None, None], (rows.weight * log_p).sum()
    J_new = J_new * delta.rsqrt()
    prior = J_new.square().sum(-1)
    inner = getattr(specification, "_inner", lambda: specification)()
    if isinstance(inner, Kronecker):
        found = _dense(kronecker_root(module, rows.X, L, J, names) * delta.rsqrt(), J_new)
    else:
        found = posterior_of(inner, L, J * delta.rsqrt(), J_new)
    penalty = 0.5 * float((delta * w * w).sum())
    evidence = float(log_p) - penalty - 0.5 * found.log_det
    if not case.classifier:
        evidence -= float(rows.weight.sum() * np.log(model.y_scale_).sum())
    size = abs(float(log_p)) + penalty + abs(found.log_det) + 1.0
    return Truth(
        f_new, prior, found.variance, evidence, found.gamma, found.condition, found.trace, size
    )


@dataclass
class _Found:
    """Variances of f at new inputs, log|B|, γ, 1 + λ_max and Σ (1 + λ), in units of the prior."""

    variance: Tensor
    log_det: float
    gamma: float
    condition: float
    trace: float


def posterior_of(inner: Any, L: Tensor, J: Tensor, J_new: Tensor) -> _Found:
    """The posterior of a specification without rows of its own, J in units of the prior."""
    if isinstance(inner, IndependentOutputs):
        parts = []
        for k in range(J.shape[1]):
            root = L[:, k].norm(dim=-1)
            parts.append(_dense(root[:, None] * J[:, k], J_new[:, k : k + 1]))
        variance = torch.cat([one.variance for one in parts], 1)
        log_det, gamma = sum(one.log_det for one in parts), sum(one.gamma for one in parts)
        condition, trace = max(one.condition for one in parts), sum(one.trace for one in parts)
        return _Found(variance, log_det, gamma, condition, trace)
    Phi = (L.mT @ J).flatten(0, 1)
    if isinstance(inner, Diagonal):
        squares = Phi.square().sum(0)
        gamma = float((squares / (1.0 + squares)).sum())
        variance = J_new.square() @ (1.0 / (1.0 + squares))
        return _Found(variance, float(squares.log1p().sum()), gamma, 1.0, float(len(squares)))
    return _dense(Phi, J_new)


def _dense(Phi: Tensor, J_new: Tensor) -> _Found:
    _, S, Wh = torch.linalg.svd(Phi, full_matrices=True)
    squares = torch.zeros(len(Wh), dtype=torch.float64)
    squares[: len(S)] = S.square()
    variance = (J_new @ Wh.mT).square() @ (1.0 / (1.0 + squares))
    gamma = float((squares / (1.0 + squares)).sum())
    largest, total = float(squares.max()), float(squares.sum())
    return _Found(
        variance, float(squares.log1p().sum()), gamma, 1.0 + largest, len(squares) + total
    )


def kronecker_root(module: nn.Module, X: Tensor, L: Tensor, J: Tensor, names: list[str]) -> Tensor:
    """R (P, P) with RᵀR = K-FAC's blocks, R = kron(chol B, chol A) by QR, without the prior.

    A dense layer that is called once is one block, its bias an input that is one; called T times
    its weight is one, g gᵀ averaged over the calls. Of every other parameter the block is exact.
    """
    parameters = dict(module.named_parameters())
    sizes = [parameters[name].numel() for name in names]
    places = dict(zip(names, torch.arange(sum(sizes)).split(sizes), strict=True))
    R, left = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64), set(names)
    for name, a, g in _calls(module, X, L):
        n, T = a.shape[0], a.shape[2]
        index, columns = places[f"{name}.weight"].view(g.shape[-1], -1), a[:, 0]
        left.remove(f"{name}.weight")
        if T == 1:
            left.remove(f"{name}.bias")
            index = torch.cat([index, places[f"{name}.bias"][:, None]], 1)
            columns = torch.cat([columns, torch.ones(n, T, 1, dtype=torch.float64)], 2)
        root_A = torch.linalg.qr(columns.flatten(0, 1) / n**0.5).R
        root_B = torch.linalg.qr(g.flatten(0, 2) / T**0.5).R
        block = torch.kron(root_B, root_A)
        R[index.flatten()[: len(block), None], index.flatten()] = block
    Phi = (L.mT @ J).flatten(0, 1)
    for name in left:
        block = torch.linalg.qr(Phi[:, places[name]]).R
        R[places[name][: len(block), None], places[name]] = block
    return R


def _calls(module: nn.Module, X: Tensor, L: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Of dense layers: name, inputs a (n, 1, T, I), whitened output derivatives g (n, K, T, O)."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, given, out, name=name: seen.setdefault(name, []).append((given[0], out))
        )
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    ]
    f = module(X)
    for hook in hooks:
        hook.remove()
    calls = []
    for name, pairs in seen.items():
        outs = [out for _, out in pairs]
        grads = [
            torch.autograd.grad(f[:, k].sum(), outs, retain_graph=True) for k in range(f.shape[1])
        ]
        g = torch.stack([torch.stack(one, 1) for one in grads], 1)  # (n, K, T, O)
        a = torch.stack([given.detach() for given, _ in pairs], 1)[:, None]
        calls.append((name, a, torch.einsum("nkr,nkto->nrto", L, g)))
    return calls


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


@dataclass
class Rows:
    """What the posterior is conditioned on, y as the likelihood wants it, and where in the data."""

    X: Tensor
    y: Tensor
    weight: Tensor
    index: np.ndarray


def training_rows(case: Case, model: Any) -> Rows:
    """X, y and weights of the posterior's rows."""
    weight = training_weight(case)
    index = np.flatnonzero(weight > 0)
    if model.posterior_indices_ is not None:
        index = index[model.posterior_indices_]
    y = case.y[index]
    if case.classifier:
        target = torch.tensor(np.searchsorted(model.classes_, y))
    else:
        target = torch.tensor((y.reshape(len(y), -1) - model.y_mean_) / model.y_scale_)
    return Rows(as_double(case.X)[index], target, torch.tensor(weight[index]), index)


def noise(case: Case, model: Any, f: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """A root of Λ, and log p(y | f), per example."""
    if case.classifier:
        return _of_classes(f, rows.y)
    kind, y = case.words["noise"], rows.y
    if kind == "varying":
        m, g = f.chunk(2, 1)
        log_s = g + math.log(model._result.likelihood.scale)
        root = torch.cat([torch.exp(-log_s), torch.full_like(log_s, math.sqrt(2.0))], 1)
        z = (y - m) * torch.exp(-log_s)
        return torch.diag_embed(root), (-0.5 * z * z - log_s - 0.5 * LOG_2PI).sum(1)
    if kind == "student":
        s, nu = case.options["likelihood"].scale, case.options["likelihood"].df
        log_p = stats.t.logpdf(y.numpy(), nu, f.numpy(), s).sum(1)
        eye = torch.eye(f.shape[1], dtype=torch.float64).expand(len(f), -1, -1)
        return eye * math.sqrt((nu + 1) / (nu + 3)) / s, torch.tensor(log_p)
    if kind == "poisson":
        log_rate = f + math.log(exposure(case))
        log_p = (y * log_rate - log_rate.exp() - torch.lgamma(y + 1.0)).sum(1)
        return torch.diag_embed((0.5 * log_rate).exp()), log_p
    if kind == "ordinal":
        p, r = categories(case, f)
        root = torch.diag_embed((p * r * r).sum(-1).sqrt())
        return root, p.gather(-1, y.long()[..., None])[..., 0].log().sum(1)
    sigma = noise_of_rows(case, model)[rows.index]
    log_p = -((y - f) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * LOG_2PI
    return torch.diag_embed((1.0 / sigma).expand_as(f)), log_p.sum(1)


def noise_of_rows(case: Case, model: Any) -> Tensor:
    """σ of every row of the data, (n_samples, 1) or (…, n_outputs), in the units of training."""
    if case.words["noise"] == "rows":
        return torch.tensor(case.extra["noise_std"] / model.y_scale_[0])[:, None]
    if case.words["noise"] == "outputs":
        return torch.tensor(case.options["noise_std"]).double().expand(len(case.X), -1)
    return torch.tensor(model.noise_std_).double().expand(len(case.X), 1)


def is_centred(case: Case) -> bool:
    """Whether f = 0 is put into the middle of the targets."""
    return case.options["normalize_y"] and case.net != "frozen"


def exposure(case: Case) -> float:
    """What multiplies a rate: the mean count too, under ``normalize_y``."""
    own = case.options["likelihood"].exposure
    mean = np.average(case.y.reshape(len(case.y), -1).mean(1), weights=training_weight(case))
    return own * mean if is_centred(case) and mean > 0 else own


def categories(case: Case, f: Tensor) -> tuple[Tensor, Tensor]:
    """p and r = -∂log p/∂f of every category, (n_samples, n_outputs, C)."""
    s, c = case.options["likelihood"].scale, case.options["likelihood"].thresholds
    if c is None:
        weight = training_weight(case)
        weight = weight / weight[weight > 0].mean()
        y = case.y.reshape(len(case.y), -1)
        counts = [0.5 + (weight[:, None] * (y == k)).sum() for k in range(max(2, int(y.max()) + 1))]
        below = np.cumsum(counts)[:-1] / np.sum(counts)
        c = np.log(below / (1.0 - below))
    infinity = [np.inf]
    u = (torch.tensor(np.concatenate([c, infinity])) - f[..., None]) / s
    l = (torch.tensor(np.concatenate([np.negative(infinity), c])) - f[..., None]) / s
    # The difference of what is small: σ(u) - σ(l) = σ(-l) - σ(-u).
    high = l > 0
    u, l = torch.where(high, -l, u), torch.where(high, -u, l)
    p, r = torch.sigmoid(u) - torch.sigmoid(l), (1.0 - torch.sigmoid(u) - torch.sigmoid(l)) / s
    return p, torch.where(high, -r, r)


def _of_classes(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
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

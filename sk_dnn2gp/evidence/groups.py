"""A prior precision for each group of weights, chosen by the evidence (:ref:`math-groups`).

Everything holds with a vector δ. In turn: the evidence at fixed weights moves every δ_g and σ
(exact gradients, within a trust region), and the network goes to its own minimum under them. A
move that does not raise the evidence there is not made. (Automatic relevance determination:
MacKay 1994, Neal 1996.)

Shapes: δ, index (n_params,); θ = log of (δ_g …, σ).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ..likelihoods import Gaussian
from ..linearize import Linearization
from .freedom import NOISE_STD_BOUNDS, PRIOR_PRECISION_BOUNDS
from .minima import Minima, Trial
from .search import Found, found, polish, resumed
from .spectrum import GroupedEvidence

__all__ = ["choose_groups", "weight_groups"]

# Largest change of a log δ or log σ in a move, and how far it shrinks before there is no more move;
# the gain in nats that a move must bring, and the most moves.
_TRUST, _LEAST_TRUST, _GAIN, _MOVES = 1.0, 0.25, 0.05, 30


def weight_groups(
    linearization: Linearization, groups: Any, feature_names: Sequence[str]
) -> tuple[list[str], Tensor]:
    """Names of the groups (the last is that of the biases), and the group's number of every weight
    (P,).

    "layer": the weights of every layer, and all biases and other vectors together; "feature": those
    of every input of the first layer too; a dict names groups of named parameters, and what it
    leaves out is the last group, "others". ValueError if a dict names a parameter that the network
    does not have, or one twice, or the first weights are not a matrix with a column for each input.
    """
    tensors = linearization.parameter_names
    if isinstance(groups, str) and groups == "all":
        labels = dict.fromkeys(tensors, "all")
        return _numbered(linearization, labels, ["all"])
    if isinstance(groups, Mapping):
        return _numbered(linearization, *_named_groups(tensors, groups))
    shapes = dict(linearization.module.named_parameters())
    matrices = [name for name in tensors if shapes[name].ndim > 1]
    labels = dict.fromkeys(tensors, "biases")
    labels.update({name: f"layer {k}" for k, name in enumerate(matrices)})
    names, index = _numbered(linearization, labels, [*(labels[m] for m in matrices), "biases"])
    if groups == "layer":
        return names, index
    first = shapes[matrices[0]]
    if first.ndim != 2 or first.shape[1] != len(feature_names):
        raise ValueError(
            f"prior_groups='feature' needs a first layer with a column of weights for each of the "
            f"{len(feature_names)} inputs; that of {matrices[0]!r} has shape {tuple(first.shape)}. "
            "Use prior_groups='layer', or a dict from a name to names of parameters."
        )
    start = sum(linearization.parameter_sizes[: tensors.index(matrices[0])])
    columns = torch.arange(first.shape[1], device=index.device).repeat(first.shape[0])
    index = torch.where(index > 0, index + first.shape[1] - 1, index)
    index[start : start + columns.numel()] = columns
    return [*feature_names, *names[1:]], index


def _named_groups(
    tensors: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], list[str]]:
    labels: dict[str, str] = {}
    for group, members in groups.items():
        for name in [members] if isinstance(members, str) else members:
            if name not in tensors:
                raise ValueError(
                    f"prior_groups[{group!r}] names {name!r}, which is no trainable parameter of "
                    f"the network; it has {list(tensors)}."
                )
            if name in labels:
                raise ValueError(f"prior_groups names {name!r} in {labels[name]!r} and {group!r}.")
            labels[name] = group
    order = list(groups)
    if len(labels) < len(tensors):
        labels = {**dict.fromkeys(tensors, "others"), **labels}
        order.append("others")
    return labels, order


def _numbered(
    linearization: Linearization, labels: Mapping[str, str], order: Sequence[str]
) -> tuple[list[str], Tensor]:
    numbers = torch.tensor([order.index(labels[n]) for n in linearization.parameter_names])
    sizes = torch.tensor(linearization.parameter_sizes)
    return list(order), numbers.repeat_interleave(sizes).to(linearization.device)


def choose_groups(minima: Minima, start: Found, index: Tensor, n_groups: int) -> Found:
    """Go from one δ to one for each group, as long as the evidence at the minimum rises.

    ``index`` (P,) holds the number of each weight's group. MemoryError if three P × P matrices do
    not fit.
    """
    best, trust, short = resumed(minima, start), _TRUST, False
    evidence = _evidence(best, index)
    for _ in range(_MOVES):
        minima.left = minima.of_one  # of each move: there are many
        theta = _move(evidence, best, minima, n_groups, trust)
        delta = torch.tensor(np.exp(theta[:n_groups]), device=index.device)[index]
        likelihood = best.objective.likelihood
        if minima.freedom.noise_std:
            likelihood = Gaussian(math.exp(theta[-1]))
        trial = minima.at(best.objective.under(likelihood, delta), best)
        short = minima.is_short  # what is no minimum has no evidence to go by
        if trial.evidence >= best.evidence + _GAIN:
            best, trust = trial, min(_TRUST, 2.0 * trust)
            evidence = _evidence(best, index)
        elif trust > _LEAST_TRUST:
            trust *= 0.5
        else:
            break
        if short:
            break
    minima.left = 1 if short else minima.max_iter
    return found(minima, *polish(minima, best))


def _evidence(trial: Trial, index: Tensor) -> GroupedEvidence:
    """At the weights of ``trial``, as a function of every δ_g and σ."""
    assert trial.posterior is not None
    sigma = trial.objective.likelihood.sigma
    limit = trial.objective.linearization.memory_limit
    return GroupedEvidence.from_model(trial.posterior.model, index.cpu().numpy(), sigma, limit)


def _move(
    evidence: GroupedEvidence, trial: Trial, minima: Minima, n_groups: int, trust: float
) -> np.ndarray:
    """The best θ within ``trust`` of the present one."""
    delta = torch.zeros(n_groups, dtype=torch.float64, device=evidence.groups.device)
    delta[evidence.groups] = trial.objective.prior_precision
    sigma = trial.objective.likelihood.sigma
    start = np.log([*delta.tolist(), *([] if sigma is None else [sigma])])
    ranges = [PRIOR_PRECISION_BOUNDS] * n_groups + ([] if sigma is None else [NOISE_STD_BOUNDS])
    low, high = np.log(ranges).T
    # The search's own end may lie outside the range, by rounding or by σ: then it is the end.
    low, high = np.minimum(low, start), np.maximum(high, start)
    low, high = np.maximum(low, start - trust), np.minimum(high, start + trust)
    if sigma is not None and not minima.freedom.noise_std:
        low[-1] = high[-1] = start[-1]

    def negative(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evidence.value_and_gradient(theta)
        return -value, -gradient

    bounds = list(zip(low, high, strict=True))
    return minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds).x

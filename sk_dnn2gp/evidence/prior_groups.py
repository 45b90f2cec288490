"""A prior precision for each group of weights, chosen by the evidence: layers, or input features.

A weight w_k with prior N(0, 1/δ_k) is s_k v_k with v_k ~ N(0, 1/δ) and s_k = √(δ/δ_k). So a network
whose dense layers see their inputs times s, and one common δ for all v, is the network with a δ per
group: training, posterior and evidence stay as they are. δ is that of the biases.

In turn: the evidence at fixed weights moves every δ_k and σ (exact gradients, within a trust
region), and Gauss-Newton takes the rescaled network to its own minimum. A move that does not raise
the evidence there is not made. (Automatic relevance determination: MacKay 1994, Neal 1996.)

Shapes: weights of a layer (n_out, n_in), scales (n_in,) or (1,), θ = log of (δ_k …, σ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from skorch import NeuralNet
from torch import Tensor, nn

from ..networks import MLP, Scale
from ..training.first_order import Objective, TrainingData
from .search import (
    NOISE_STD_BOUNDS,
    PRIOR_PRECISION_BOUNDS,
    Candidate,
    Tuning,
    gaussian,
    refine,
    settle,
)
from .spectrum import GroupedEvidence

__all__ = ["GroupedWeights", "choose_groups", "precisions"]

# Largest change of a log δ or log σ in a move, and how far it shrinks before there is no more move;
# the gain in nats that a move must bring, and the most moves.
_TRUST, _LEAST_TRUST, _GAIN, _MOVES = 1.0, 0.25, 0.05, 30


@dataclass(frozen=True)
class GroupedWeights:
    """The scales of an MLP's dense layers, each one number or one for every input.

    Parameters
    ----------
    scales : tuple of Tensor
        s of each layer.
    widths : tuple of (int, int)
        (n_in, n_out) of each layer.
    """

    scales: tuple[Tensor, ...]
    widths: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, network: MLP, by_feature: bool) -> GroupedWeights:
        """The groups of a network, nothing scaled yet."""
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        widths = tuple((layer.in_features, layer.out_features) for layer in layers)
        sizes = [n_in if by_feature and i == 0 else 1 for i, (n_in, _) in enumerate(widths)]
        return cls(tuple(torch.ones(size, dtype=torch.float64) for size in sizes), widths)

    def index(self) -> np.ndarray:
        """The number of each weight's group, in the order of the parameters; biases are last."""
        n_groups, first, numbers = sum(len(s) for s in self.scales), 0, []
        for s, (n_in, n_out) in zip(self.scales, self.widths, strict=True):
            own = np.broadcast_to(np.arange(first, first + len(s)), (n_out, n_in))
            numbers += [own.ravel(), np.full(n_out, n_groups)]
            first += len(s)
        return np.concatenate(numbers)

    def rescaled(self, ratios: np.ndarray) -> GroupedWeights:
        """Every group's s times its ratio."""
        pieces = torch.as_tensor(ratios).split([len(s) for s in self.scales])
        return replace(self, scales=tuple(s * r for s, r in zip(self.scales, pieces, strict=True)))

    def network(self, old: nn.Sequential, before: GroupedWeights) -> nn.Sequential:
        """The same function as ``old``, whose scales were ``before``, with these scales."""
        layers: list[nn.Module] = []
        pairs = iter(zip(before.scales, self.scales, strict=True))
        for layer in old:
            if isinstance(layer, Scale):
                continue
            if isinstance(layer, nn.Linear):
                was, now = next(pairs)
                own = nn.Linear(layer.in_features, layer.out_features).to(layer.weight)
                with torch.no_grad():
                    own.weight.copy_(layer.weight * (was / now).to(layer.weight))
                    own.bias.copy_(layer.bias)
                layers.append(Scale(now.to(layer.weight)))
                layer = own
            layers.append(layer)
        return nn.Sequential(*layers)


def choose_groups(
    best: Candidate,
    data: TrainingData,
    tuning: Tuning,
    by_feature: bool,
    make_net: Callable[[nn.Module, Objective], NeuralNet],
) -> Candidate:
    """Go from one δ to one for each group, as long as the evidence at the minimum rises.

    Parameters
    ----------
    best : Candidate
        Settled, of an MLP.
    data : TrainingData
    tuning : Tuning
    by_feature : bool
        Whether each input of the first layer has a δ of its own.
    make_net : callable
        Module and objective -> an initialised skorch net with Gauss-Newton.

    Returns
    -------
    Candidate

    Raises
    ------
    MemoryError
        If three P × P matrices do not fit the memory limit.
    """
    losses = list(best.losses)

    def settled(groups: GroupedWeights, before: GroupedWeights, objective: Objective) -> Candidate:
        module = groups.network(best.net.module_, before)
        candidate = Candidate(make_net(module, objective), objective)
        settle(candidate, data, tuning)
        losses.extend(candidate.losses)
        return candidate

    groups = GroupedWeights.of(best.net.module_, by_feature)
    best = settled(groups, groups, best.objective.copy())
    evidence, trust = _evidence(best, groups, tuning), _TRUST
    for _ in range(_MOVES):
        objective = best.objective.copy()
        following = groups.rescaled(_move(evidence, objective, tuning, trust))
        candidate = settled(following, groups, objective)
        if candidate.evidence >= best.evidence + _GAIN:
            best, groups, trust = candidate, following, min(_TRUST, 2.0 * trust)
            evidence = _evidence(best, groups, tuning)
        elif trust > _LEAST_TRUST:
            trust *= 0.5
        else:
            break
    refine(best, data, tuning)
    best.losses = losses
    return best


def _evidence(best: Candidate, groups: GroupedWeights, tuning: Tuning) -> GroupedEvidence:
    """At the weights of ``best``, as a function of every δ_k and σ."""
    assert best.posterior is not None
    sigma = getattr(best.objective.likelihood, "noise_std", None)
    model, index = best.posterior.model, groups.index()
    return GroupedEvidence.from_model(model, index, sigma, tuning.memory_limit)


def _move(
    evidence: GroupedEvidence, objective: Objective, tuning: Tuning, trust: float
) -> np.ndarray:
    """Put the best δ of the biases and σ within ``trust`` (of logs) into ``objective``.

    Returns √(δ/δ_k) of the other groups.
    """
    sigma = getattr(objective.likelihood, "noise_std", None)
    n_groups = int(evidence.groups.max()) + 1
    start = np.log([objective.prior_precision] * n_groups + ([] if sigma is None else [sigma]))
    ranges = [PRIOR_PRECISION_BOUNDS] * n_groups + ([] if sigma is None else [NOISE_STD_BOUNDS])
    low, high = np.log(ranges).T
    low, high = np.maximum(low, start - trust), np.minimum(high, start + trust)
    if sigma is not None and not tuning.noise_std:
        low[-1] = high[-1] = start[-1]

    def negative(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evidence.value_and_gradient(theta)
        return -value, -gradient

    theta = minimize(
        negative, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True))
    ).x
    deltas = np.exp(theta[:n_groups])
    objective.prior_precision = float(deltas[-1])
    if tuning.noise_std and sigma is not None:
        objective.likelihood = gaussian(objective).with_noise_std(float(np.exp(theta[-1])))
    return np.sqrt(deltas[-1] / deltas[:-1])


def precisions(module: nn.Module, delta: float, feature_names: list[str]) -> dict[str, float]:
    """δ_k = δ/s_k² of every group of a network's plain weights, by name; "all" if there are none.

    Parameters
    ----------
    module : torch.nn.Module
    delta : float
        δ, the common one.
    feature_names : list of str
        Of the inputs, for scales of the first layer.

    Returns
    -------
    dict of str to float
    """
    scales = [layer.scale for layer in module.children() if isinstance(layer, Scale)]
    if not scales:
        return {"all": delta}
    found = {}
    for number, s in enumerate(scales):
        names = feature_names if number == 0 and len(s) > 1 else [f"layer {number}"]
        found |= dict(zip(names, (delta / s.double() ** 2).tolist(), strict=True))
    return {**found, "biases": delta}

"""The grid of cases: networks, outputs, hyperparameters, examples on either side of P."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sk_dnn2gp.likelihoods import Gaussian
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.optim import GaussNewton


@dataclass(frozen=True)
class Case:
    """One network with one data set."""

    n_samples: int
    n_features: int
    hidden: tuple[int, ...]
    n_outputs: int
    activation: str
    delta: float
    sigma: float

    def __str__(self) -> str:
        hidden = "x".join(map(str, self.hidden))
        return f"N{self.n_samples}-{hidden}-K{self.n_outputs}-{self.activation}"


CASES = [
    Case(60, 2, (4,), 1, "tanh", 0.5, 0.3),  # NK > P
    Case(8, 2, (6,), 1, "tanh", 1.0, 0.5),  # NK < P
    Case(40, 3, (4,), 2, "tanh", 2.0, 0.4),
    Case(6, 3, (5, 4), 3, "gelu", 0.7, 0.6),
    Case(30, 1, (5, 3), 1, "sigmoid", 0.1, 0.2),
    Case(25, 2, (), 2, "identity", 0.3, 1.5),  # a linear model, exact from the first step
    Case(12, 4, (7,), 1, "erf", 30.0, 1.0),
]


def data(case: Case, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth targets with noise, in float64."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (case.n_samples, case.n_features))
    y = np.sin(X.sum(1, keepdims=True) + np.arange(case.n_outputs))
    y += case.sigma * rng.standard_normal(y.shape)
    return torch.tensor(X), torch.tensor(y)


def trained(case: Case, seed: int = 0) -> tuple[MLP, torch.Tensor, torch.Tensor]:
    """A network at a minimum of the loss, to rounding, with its data."""
    X, y = data(case, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = MLP(case.n_features, case.hidden, case.n_outputs, case.activation)
    likelihood = Gaussian(case.sigma)
    optimizer = GaussNewton(
        module.parameters(), module=module, likelihood=likelihood, prior_precision=case.delta,
        max_iter=3000, tol=1e-12,
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        squares = sum((p**2).sum() for p in module.parameters())
        loss = likelihood.negative_log_likelihood(module(X), y).sum() + 0.5 * case.delta * squares
        loss.backward()
        return loss

    optimizer.step(closure)
    for p in module.parameters():
        p.grad = None
    return module.eval(), X, y

"""laplace-torch's ``marglik_training`` as scikit-learn estimators, for an environment that has it.

One hidden layer of 50 tanh on standardised inputs and targets, a prior precision per layer (and the
noise) chosen by its marginal likelihood during training, the full Gauss-Newton matrix, and its own
predictive: the GLM's, with the probit link for classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from laplace import marglik_training
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["MarglikClassifier", "MarglikRegressor"]


class _Marglik:
    """Common to both: training, and inputs in its units."""

    def _train(self, X: NDArray, targets: torch.Tensor, n_outputs: int, likelihood: str) -> None:
        torch.manual_seed(0)
        self._mean, spread = X.mean(0), X.std(0)
        self._spread = np.where(spread > 0, spread, 1.0)
        net = nn.Sequential(nn.Linear(X.shape[1], 50), nn.Tanh(), nn.Linear(50, n_outputs))
        pairs = TensorDataset(self._inputs(X), targets)
        self.la_, *_ = marglik_training(
            net, DataLoader(pairs, batch_size=256, shuffle=True), likelihood=likelihood,
            hessian_structure="full", n_epochs=300, optimizer_kwargs={"lr": 1e-2},
            n_epochs_burnin=10, n_hypersteps=20, marglik_frequency=5,
        )  # fmt: skip
        self.log_marginal_likelihood_value_ = float(self.la_.log_marginal_likelihood())

    def _inputs(self, X: NDArray) -> torch.Tensor:
        return torch.tensor((X - self._mean) / self._spread).float()


class MarglikRegressor(_Marglik):
    """Gaussian noise."""

    def fit(self, X: NDArray, y: NDArray) -> MarglikRegressor:
        """Train; the evidence is in the units of y."""
        self._shift, self._scale = float(y.mean()), float(y.std())
        targets = torch.tensor((y - self._shift) / self._scale).float()[:, None]
        self._train(X, targets, 1, "regression")
        self.log_marginal_likelihood_value_ -= len(y) * float(np.log(self._scale))
        return self

    def predict(self, X: NDArray, return_std: bool = False) -> Any:
        """Mean of y, and its standard deviation."""
        f, V = (part.detach().numpy().ravel() for part in self.la_(self._inputs(X)))
        mean = f * self._scale + self._shift
        std = np.sqrt(V + float(self.la_.sigma_noise) ** 2) * self._scale
        return (mean, std) if return_std else mean


class MarglikClassifier(_Marglik):
    """Softmax."""

    def fit(self, X: NDArray, y: NDArray) -> MarglikClassifier:
        """Train."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._train(X, torch.tensor(codes), len(self.classes_), "classification")
        return self

    def predict_proba(self, X: NDArray) -> NDArray:
        """Probabilities of the classes."""
        return self.la_(self._inputs(X), link_approx="probit").detach().numpy()

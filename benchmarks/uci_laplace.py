"""laplace-torch's ``marglik_training`` on the splits of ``uci.py``, in an environment of its own.

One hidden layer of 50 tanh, inputs and targets standardised on the training part, a prior precision
per layer and the noise chosen by its marginal likelihood during training; the GLM predictive. Needs
torch, numpy and laplace-torch, not sk_dnn2gp. Scores are in the units of y.

    python benchmarks/uci_laplace.py [--splits 5] [--rows 1439]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from laplace import marglik_training
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RESULT = Path(__file__).parent / "results" / "uci_laplace.json"
FILES = {"wine": "uci_wine-quality-red.npz", "power": "uci_power-plant.npz"}


def scores(X: NDArray, y: NDArray, X_test: NDArray, y_test: NDArray) -> list[float]:
    """RMSE, NLPD, 95% coverage, seconds."""
    start = time.perf_counter()
    torch.manual_seed(0)
    mean, std = X.mean(0), X.std(0)
    inputs, others = ((a - mean) / std for a in (X, X_test))
    targets = (y - y.mean()) / y.std()
    pairs = TensorDataset(torch.tensor(inputs).float(), torch.tensor(targets).float()[:, None])
    net = nn.Sequential(nn.Linear(X.shape[1], 50), nn.Tanh(), nn.Linear(50, 1))
    la, model, *_ = marglik_training(
        net, DataLoader(pairs, batch_size=256, shuffle=True), likelihood="regression",
        hessian_structure="full", n_epochs=300, optimizer_kwargs={"lr": 1e-2},
        n_epochs_burnin=10, n_hypersteps=20, marglik_frequency=5,
    )  # fmt: skip
    f, variance = la(torch.tensor(others).float())
    sigma = float(la.sigma_noise)
    f = f.detach().numpy().ravel() * y.std() + y.mean()
    total = np.sqrt(variance.detach().numpy().ravel() + sigma**2) * y.std()
    seconds = time.perf_counter() - start
    z = (y_test - f) / total
    nlpd = 0.5 * np.mean(z**2 + np.log(2 * np.pi * total**2))
    rmse = np.sqrt(np.mean((y_test - f) ** 2))
    return [float(v) for v in (rmse, nlpd, np.mean(np.abs(z) < 1.96), seconds)]


def main() -> None:
    """Print a row for each data set; store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1439)
    args = parser.parse_args()
    result: dict[str, dict] = {}
    for name, file in FILES.items():
        with np.load(Path(os.environ["SK_DNN2GP_DATA"]) / file) as data:
            X, y = data["X"].astype(float), data["y"].astype(float).ravel()
            splits = list(zip(data["train"], data["test"], strict=True))[: args.splits]
        rows = []
        for train, test in splits:
            train = train[: args.rows]
            rows.append(scores(X[train], y[train], X[test], y[test]))
        mean = np.mean(rows, axis=0)
        print(
            f"{name}: RMSE {mean[0]:.4f}  NLPD {mean[1]:.4f}  95% {mean[2]:.3f}  s {mean[3]:.2f}",
            flush=True,
        )
        result[name] = {"rows": len(train), "scores": rows}
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""laplace-torch's ``marglik_training`` on the splits of ``uci.py``, in an environment of its own.

One hidden layer of 50 tanh, inputs and targets standardised on the training part, a prior precision
per layer and the noise chosen by its marginal likelihood during training; the GLM predictive. Needs
torch, numpy and laplace-torch, not sk_dnn2gp. Scores are in the units of y.

    python benchmarks/uci_laplace.py [--splits 5] [--rows 1439]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from _uci_data import NAMES, scores, show, splits
from laplace import marglik_training
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RESULT = Path(__file__).parent / "results" / "uci_laplace.json"


def fitted_scores(X: NDArray, y: NDArray, X_test: NDArray, y_test: NDArray) -> list[float]:
    """Scores of a fit."""
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
    return scores(y_test, f, total, time.perf_counter() - start)


def main() -> None:
    """Print a row for each data set; store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1439)
    args = parser.parse_args()
    result: dict[str, dict] = {}
    for name in ("wine", "power"):
        rows = [fitted_scores(*split) for split in splits(name, args.splits, args.rows)]
        show(name, rows)
        result[name] = {"rows": args.rows, "columns": NAMES, "scores": rows}
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

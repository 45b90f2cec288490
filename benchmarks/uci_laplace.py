"""laplace-torch's ``marglik_training`` on the splits of ``uci.py``, in an environment of its own.

One hidden layer of 50 tanh, inputs and targets standardised on the training part, a prior precision
per layer and the noise chosen by its marginal likelihood during training; the GLM predictive. Needs
torch, numpy and laplace-torch, not sk_dnn2gp. Scores are in the units of y; ``uci.py --show``
prints them beside the others'. What is stored already is not run again.

    python benchmarks/uci_laplace.py [--splits 3] [--only wine,concrete]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from _uci_data import COLUMNS, FILES, normal_quantiles, scored, splits
from laplace import marglik_training
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RESULT = Path(__file__).parent / "results" / "uci_laplace.json"


def fitted_scores(X: NDArray, y: NDArray, X_test: NDArray, y_test: NDArray) -> list[float]:
    """Scores of a fit."""
    start = time.process_time()
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
    seconds = time.process_time() - start
    log_density = -0.5 * ((y_test - f) / total) ** 2 - np.log(total) - 0.5 * np.log(2 * np.pi)
    return scored(y_test, f, log_density, normal_quantiles(f, total), seconds)


def main() -> None:
    """Store the scores of what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--only", default=",".join(FILES))
    args = parser.parse_args()
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name in args.only.split(","):
        table = result.setdefault(name, {"columns": COLUMNS, "scores": {"laplace": {}}})
        rows = table["scores"]["laplace"]
        for number, split in enumerate(splits(name, args.splits)):
            if str(number) not in rows:
                rows[str(number)] = fitted_scores(*split)
                print(name, number, np.round(rows[str(number)], 3), flush=True)
                RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

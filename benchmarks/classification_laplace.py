"""laplace-torch on the splits of ``classification.py``, in an environment of its own.

The same MLP trained by Adam with weight decay, then laplace-torch's GLM predictive with the prior
precision of its marginal likelihood. Needs torch, scikit-learn and laplace-torch, not sk_dnn2gp.

    python benchmarks/classification_laplace.py [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _classification_data import Split, breast_cancer, digits, mnist, scores
from laplace import Laplace
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

RESULT = Path(__file__).parent / "results" / "classification_laplace.json"


def mlp(n_features: int, n_classes: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_features, hidden), nn.Tanh(), nn.Linear(hidden, n_classes))


def lenet() -> nn.Module:
    """LeNet5, as ``sk_dnn2gp.networks`` has it (this environment need not have that package)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def run(
    data: Split,
    make: Callable[[], nn.Module],
    structure: str,
    seed: int,
    weights: str = "all",
    epochs: int = 100,
    learning_rate: float = 1e-2,
) -> dict[str, dict[str, float]]:
    """One network, one Laplace approximation, a row for each of its links."""
    X, X_test, y, y_test = data
    torch.manual_seed(seed)
    net = make()
    train = TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(y))
    loader = DataLoader(train, batch_size=200, shuffle=True)
    start = time.perf_counter()
    # δ = N · weight_decay = 1, as a mean of log losses sees it.
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate, weight_decay=1.0 / len(X))
    for _ in range(epochs):
        for a, b in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(a), b).backward()
            optimizer.step()
    net.eval()
    la = Laplace(net, "classification", subset_of_weights=weights, hessian_structure=structure)
    la.fit(loader)
    la.optimize_prior_precision(method="marglik")
    seconds = time.perf_counter() - start
    row = {"seconds": seconds, "prior_precision": float(la.prior_precision.mean())}
    inputs = torch.tensor(X_test, dtype=torch.float32)
    with torch.no_grad():
        p = {"map": torch.softmax(net(inputs), -1)}
    for link in ("probit", "mc"):
        p[link] = la(inputs, pred_type="glm", link_approx=link, n_samples=1000).detach()
    return {
        f"{structure}, {link}": {**scores(np.asarray(q, dtype=float), y_test), **row}
        for link, q in p.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    n_seeds = parser.parse_args().seeds
    result: dict[str, dict] = {"setting": {"torch": torch.__version__, "n_seeds": n_seeds}}
    for name, load, make, structures in (
        ("breast-cancer", breast_cancer, partial(mlp, 30, 2, 10), ("full", "kron")),
        ("digits", digits, partial(mlp, 64, 10, 20), ("kron",)),
        ("mnist, last layer", mnist, lenet, ("full",)),
    ):
        if name.startswith("mnist") and "SK_DNN2GP_DATA" not in os.environ:
            print("MNIST is left out: SK_DNN2GP_DATA names no folder.")
            continue
        images = ("last_layer", 15, 1e-3) if name.startswith("mnist") else ()
        rows: dict[str, list[dict[str, float]]] = {}
        for seed in range(n_seeds):
            for structure in structures:
                found = run(load(seed), make, structure, seed, *images)
                for key, row in found.items():
                    rows.setdefault(key, []).append(row)
        result[name] = {
            key: {k: float(np.mean([r[k] for r in found])) for k in found[0]}
            for key, found in rows.items()
        }
        for key, row in result[name].items():
            print(name, key, "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""laplace-torch on the networks of ``large.py``, for an environment that has it.

Needs torch and laplace-torch, not sk_dnn2gp: the trained weights and the data lie in a folder.
Prints one line of JSON: processor seconds of the fit and of the predictions, test NLL, memory.

    python _large_peer.py digits|protein kron|diag|last_layer FOLDER
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from typing import Any

import torch
from laplace import Laplace
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DELTA = 30.0  # of the digits' training


def lenet() -> nn.Sequential:
    """The layers of sk_dnn2gp.networks.LeNet5, in their order."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def perceptron() -> nn.Sequential:
    """That of ``_large_protein.py``."""
    hidden = [nn.Linear(9, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(200, 1))


def fitted(net: nn.Module, X: Any, y: Any, likelihood: str, structure: str, **options: Any) -> Any:
    """The posterior of a network as it stands."""
    subset = "last_layer" if structure == "last_layer" else "all"
    shape = "full" if structure == "last_layer" else structure
    model = Laplace(net, likelihood, subset_of_weights=subset, hessian_structure=shape, **options)
    model.fit(DataLoader(TensorDataset(X, y), batch_size=256))
    return model


def digits(structure: str, folder: str) -> dict:
    """Time and NLL of the probit link, by batches of 50."""
    weights, X, y, X_test, y_test = torch.load(f"{folder}/digits.pt", weights_only=True)
    net = lenet()
    net.load_state_dict(weights)
    start = time.process_time()
    model = fitted(net.eval(), X, y, "classification", structure, prior_precision=DELTA)
    fit, start = time.process_time() - start, time.process_time()
    parts = [model(part, link_approx="probit").detach() for part in X_test.split(50)]
    seconds, p = time.process_time() - start, torch.cat(parts)
    nll = -float(p.clamp_min(1e-30).log()[torch.arange(len(p)), y_test].mean())
    return {"fit": fit, "rows": len(p), "predictions": seconds, "nll": nll}


def protein(structure: str, folder: str) -> dict:
    """δ and σ by 100 steps of Adam on its own evidence, then the test rows."""
    found = torch.load(f"{folder}/protein.pt", weights_only=True)
    weights, X, y, X_test, y_test, shift, scale = found
    net = perceptron()
    net.load_state_dict(weights)
    start = time.process_time()
    model = fitted(net.eval(), X, y[:, None], "regression", structure)
    logs = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logs], 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = -model.log_marginal_likelihood(logs[0].exp(), logs[1].exp())
        loss.backward()
        optimizer.step()
    fit, start = time.process_time() - start, time.process_time()
    parts = [tuple(t.detach().flatten() for t in model(part)) for part in X_test.split(500)]
    seconds = time.process_time() - start
    f, variance = (torch.cat(column).double() for column in zip(*parts, strict=True))
    std = (variance + float(model.sigma_noise) ** 2).sqrt() * scale
    error = y_test - (f * scale + shift)
    nll = (0.5 * (error / std) ** 2 + std.log()).mean() + 0.5 * math.log(2 * math.pi)
    return {
        "fit": fit,
        "rows": len(f),
        "predictions": seconds,
        "rmse": float(error.square().mean().sqrt()),
        "nll": float(nll),
        "evidence": -float(loss),
        "prior_precision": float(model.prior_precision),
        "noise_std": float(model.sigma_noise),
    }


def main() -> None:
    case, structure, folder = sys.argv[1:]
    torch.set_num_threads(1)
    found = {"digits": digits, "protein": protein}[case](structure, folder)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Data sets, splits and scores of the UCI benchmarks; needs numpy alone.

So that a peer in an environment of its own sees the same rows and is scored by the same code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILES = {
    "wine": "uci_wine-quality-red.npz",
    "power": "uci_power-plant.npz",
    "concrete": "uci_concrete.npz",
    "protein": "uci_protein.npz",
}
NAMES = ("RMSE", "NLPD", "coverage", "seconds")


def splits(name: str, n_splits: int, n_rows: int | None = None) -> Iterator[tuple[NDArray, ...]]:
    """X, y, X_test, y_test of the benchmark's own splits; of training rows the first ``n_rows``."""
    folder = os.environ.get("SK_DNN2GP_DATA")
    if not folder:
        raise SystemExit("Name the folder of the data in SK_DNN2GP_DATA.")
    with np.load(Path(folder) / FILES[name]) as data:
        X, y = data["X"].astype(float), data["y"].astype(float).ravel()
        pairs = list(zip(data["train"], data["test"], strict=True))[:n_splits]
    for train, test in pairs:
        yield X[train[:n_rows]], y[train[:n_rows]], X[test], y[test]


def scores(y: NDArray, mean: NDArray, std: NDArray, seconds: float) -> list[float]:
    """RMSE, negative log predictive density, coverage of the central 95 % interval, seconds."""
    z = (y - mean) / std
    nlpd = 0.5 * np.mean(z**2 + np.log(2 * np.pi * std**2))
    rmse = np.sqrt(np.mean((y - mean) ** 2))
    return [float(v) for v in (rmse, nlpd, np.mean(np.abs(z) < 1.96), seconds)]


def show(name: str, rows: list[list[float]]) -> None:
    """Print the mean over splits."""
    mean = np.mean(rows, axis=0)
    print(f"{name:22}{mean[0]:9.4f}{mean[1]:9.4f}{mean[2]:8.3f}{mean[3]:9.2f}", flush=True)

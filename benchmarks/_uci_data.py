"""Data sets, splits and scores of the UCI benchmarks; needs numpy, generated sets scikit-learn too.

So that a peer in an environment of its own sees the same rows and is scored by the same code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FILES = {
    "wine": "uci_wine-quality-red.npz",
    "power": "uci_power-plant.npz",
    "concrete": "uci_concrete.npz",
    "protein": "uci_protein.npz",
}
# Kept aside while defaults were chosen: Friedman's second and third functions (scikit-learn's) with
# his noise, a third of the signal's standard deviation; 500 rows, 1,000 for testing, by split.
ASIDE = {"friedman2": 125.0, "friedman3": 0.1}
COLUMNS = ("RMSE", "NLPD", "CRPS", "coverage", "seconds")
LEVELS = (np.arange(20) + 0.5) / 20  # the first and the last are the ends of the central 95%


def splits(name: str, n_splits: int, n_rows: int | None = None) -> Iterator[tuple[NDArray, ...]]:
    """X, y, X_test, y_test of the benchmark's own splits; of training rows the first ``n_rows``."""
    if name in ASIDE:
        yield from (_generated(name, split) for split in range(n_splits))
        return
    folder = os.environ.get("SK_DNN2GP_DATA")
    if not folder:
        raise SystemExit("Name the folder of the data in SK_DNN2GP_DATA.")
    with np.load(Path(folder) / FILES[name]) as data:
        X, y = data["X"].astype(float), data["y"].astype(float).ravel()
        pairs = list(zip(data["train"], data["test"], strict=True))[:n_splits]
    for train, test in pairs:
        yield X[train[:n_rows]], y[train[:n_rows]], X[test], y[test]


def _generated(name: str, split: int) -> tuple[NDArray, ...]:
    import sklearn.datasets

    make = getattr(sklearn.datasets, f"make_{name}")
    X, y = make(1500, noise=ASIDE[name], random_state=split)
    return X[:500], y[:500], X[500:], y[500:]


def normal_quantiles(mean: NDArray, std: NDArray) -> NDArray:
    """Those of ``LEVELS``, (n_samples, 20)."""
    z = np.array([NormalDist().inv_cdf(q) for q in LEVELS])
    return mean[:, None] + std[:, None] * z


def scored(
    y: NDArray, mean: NDArray, log_density: NDArray | None, quantiles: NDArray, seconds: float
) -> list[float]:
    """The columns' numbers; CRPS is the mean pinball loss of the quantiles, doubled."""
    error = y[:, None] - quantiles
    pinball = np.maximum(LEVELS * error, (LEVELS - 1) * error)
    inside = (quantiles[:, 0] <= y) & (y <= quantiles[:, -1])
    nlpd = np.nan if log_density is None else -log_density.mean()
    rmse = np.sqrt(np.mean((y - mean) ** 2))
    return [float(v) for v in (rmse, nlpd, 2 * pinball.mean(), inside.mean(), seconds)]

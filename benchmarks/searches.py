"""A user's choice of hyperparameters: by evidence, by cross-validation, or "auto".

Over the same grid of δ × σ × hidden_layer_sizes, ``GridSearchCV`` with the evidence of the whole
training set (``marginal_likelihood_scorer``, ``TrainingSetSplit``) and with 5-fold
cross-validation of the predictive density; and ``DNN2GPRegressor`` with both hyperparameters on
"auto". Diabetes, and 2,000 rows of the power-plant data (``SK_DNN2GP_DATA``); a quarter of the
rows tests.

    python benchmarks/searches.py [--splits 5] [--only diabetes,power]
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _common import save
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV, ParameterGrid, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_dnn2gp import DNN2GPRegressor, TrainingSetSplit, marginal_likelihood_scorer

GRID = {
    "dnn2gpregressor__prior_precision": [0.1, 1.0, 10.0],
    "dnn2gpregressor__noise_std": [0.2, 0.4, 0.7],
    "dnn2gpregressor__hidden_layer_sizes": [(10,), (30,)],
}


def log_density(estimator: Any, X: NDArray, y: NDArray) -> float:
    """Mean log predictive density in the units of y: a scorer, larger is better."""
    mean, std = estimator.predict(X, return_std=True)
    return float(-0.5 * np.mean(((y - mean) / std) ** 2 + np.log(2 * np.pi * std**2)))


def model(**options: Any) -> Any:
    settings = {"random_state": 0, "n_restarts": 1, **options}
    return make_pipeline(StandardScaler(), DNN2GPRegressor(**settings))


def ways() -> dict[str, tuple[Any, int]]:
    """Name, estimator and number of fits."""
    n = len(ParameterGrid(GRID))
    by_evidence = {"scoring": marginal_likelihood_scorer, "cv": TrainingSetSplit()}
    return {
        "evidence": (GridSearchCV(model(), GRID, **by_evidence), n + 1),
        "5-fold": (GridSearchCV(model(), GRID, scoring=log_density, cv=5), 5 * n + 1),
        "auto (30 units)": (model(hidden_layer_sizes=(30,), n_restarts="auto"), 1),
    }


def load(name: str) -> tuple[NDArray, NDArray]:
    if name == "diabetes":
        return load_diabetes(return_X_y=True)
    with np.load(Path(os.environ["SK_DNN2GP_DATA"]) / "uci_power-plant.npz") as data:
        rows = np.random.default_rng(0).permutation(len(data["X"]))[:2000]
        return data["X"][rows].astype(float), data["y"].astype(float).ravel()[rows]


def main() -> None:
    """Print a table for each data set; store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", default="diabetes,power")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    for name in args.only.split(","):
        X, y = load(name)
        rows: dict[str, list[list[float]]] = {}
        for seed in range(args.splits):
            a, b, c, d = train_test_split(X, y, test_size=0.25, random_state=seed)
            for way, (search, fits) in ways().items():
                start = time.process_time()
                search.fit(a, c)
                seconds = time.process_time() - start
                chosen = getattr(search, "best_estimator_", search)
                rows.setdefault(way, []).append([-log_density(chosen, b, d), seconds, fits])
        print(f"{name}: {len(X)} rows, {args.splits} splits")
        print(
            f"{'':18}{'test NLL':>10}{'s.e.':>8}{'minus 5-fold':>14}{'s.e.':>8}{'s':>8}{'fits':>6}"
        )
        reference = np.array(rows["5-fold"])[:, 0]
        for way, table in rows.items():
            values = np.array(table)
            gap, root = values[:, 0] - reference, len(values) ** 0.5
            print(
                f"{way:18}{values[:, 0].mean():10.4f}{values[:, 0].std(ddof=1) / root:8.4f}"
                f"{gap.mean():14.4f}{gap.std(ddof=1) / root:8.4f}{values[:, 1].mean():8.1f}"
                f"{values[0, 2]:6.0f}",
                flush=True,
            )
        results[name] = {"columns": ["nll", "processor_seconds", "fits"], "rows": rows}
    save("searches", results)


if __name__ == "__main__":
    main()

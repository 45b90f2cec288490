"""Does "auto" reach the evidence of a 10 × 10 grid over (δ, σ), in less time?

On the paper's toy sets, diabetes and Red Wine (left out, and said so, without ``SK_DNN2GP_DATA``).

    python benchmarks/auto_vs_grid.py [--points 10] [--toy-sets 10] [--only toy,diabetes,wine]
"""

from __future__ import annotations

import argparse
import os
import warnings
from typing import Any

import numpy as np
from _common import red_wine, save, timed, toy_data
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

from sk_dnn2gp import DNN2GPRegressor


def fit(X: Any, y: Any, hidden: tuple[int, ...], **options: Any) -> DNN2GPRegressor:
    """One fit; a grid's far corners may stop at max_iter, which is counted, not printed."""
    model = DNN2GPRegressor(hidden_layer_sizes=hidden, random_state=0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X, y)


def compare(X: Any, y: Any, hidden: tuple[int, ...], points: int) -> dict[str, Any]:
    """Auto and the grid on one data set, in one run."""
    auto, auto_seconds = timed(lambda: fit(X, y, hidden))

    def grid() -> list[tuple[float, float, float]]:
        return [
            (fit(X, y, hidden, prior_precision=d, noise_std=s, n_restarts=1)
             .log_marginal_likelihood_value_, d, s)
            for d in np.logspace(-2, 2, points) for s in np.logspace(-1.5, 0.2, points)
        ]  # fmt: skip

    values, grid_seconds = timed(grid)
    best, delta, sigma = max(values)
    reached = auto.log_marginal_likelihood_value_
    return {
        "auto": reached,
        "auto_prior_precision": auto.prior_precision_,
        "auto_noise_std": auto.noise_std_,
        "auto_seconds": auto_seconds,
        "grid": best,
        "grid_prior_precision": float(delta),
        "grid_noise_std": float(sigma),
        "grid_seconds": grid_seconds,
        "holds": bool(reached >= best - 0.005 * abs(best) and auto_seconds < grid_seconds),
    }


def data_sets(toy_sets: int) -> dict[str, Any]:
    """Name to a function that gives X, y and hidden widths."""

    def diabetes() -> tuple:
        X, y = load_diabetes(return_X_y=True)
        return StandardScaler().fit_transform(X), y, (20,)

    sets: dict[str, Any] = {
        f"toy {seed}": lambda seed=seed: (*toy_data(100, seed), (20,)) for seed in range(toy_sets)
    }
    sets["diabetes"] = diabetes
    if os.environ.get("SK_DNN2GP_DATA"):
        sets["wine"] = lambda: (*red_wine()[:2], (20,))
    else:
        print("wine: left out, SK_DNN2GP_DATA is not set")
    return sets


def main() -> None:
    """Print a line for each data set; store all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--toy-sets", type=int, default=10)
    parser.add_argument("--only", default="toy,diabetes,wine")
    args = parser.parse_args()
    wanted = tuple(args.only.split(","))
    results = {}
    print(f"{'':12}{'auto':>10}{'grid':>10}{'auto s':>9}{'grid s':>9}{'ratio':>7}  holds")
    for name, load in data_sets(args.toy_sets).items():
        if not name.startswith(wanted):
            continue
        r = results[name] = compare(*load(), args.points)
        print(
            f"{name:12}{r['auto']:10.2f}{r['grid']:10.2f}{r['auto_seconds']:9.2f}"
            f"{r['grid_seconds']:9.2f}{r['grid_seconds'] / r['auto_seconds']:7.1f}  {r['holds']}"
        )
    save("auto_vs_grid", {"points": args.points, "sets": results})


if __name__ == "__main__":
    main()

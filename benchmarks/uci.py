"""Out of the box: ``DNN2GPRegressor()`` with no argument set, beside its peers, on UCI data.

Red Wine and Power Plant, the benchmark's own splits; beside it a prior precision for each input.
RMSE, negative log predictive density and 95% coverage in the units of y, seconds of fit and
prediction. Nothing is tuned to these sets.

    python benchmarks/uci.py [--splits 5] [--only wine,power] [--rows 1439]
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
from _common import save
from _uci_data import NAMES, scores, show, splits
from sklearn.compose import TransformedTargetRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_dnn2gp import DNN2GPRegressor


def models(n_features: int) -> dict[str, Any]:
    """Each with its inputs standardised."""
    kernel = ConstantKernel(1.0) * RBF(np.ones(n_features)) + WhiteKernel(0.5)
    peers = {
        "DNN2GPRegressor": DNN2GPRegressor(random_state=0),
        "  a δ per feature": DNN2GPRegressor(prior_groups="feature", random_state=0),
        "GP, RBF per feature": GaussianProcessRegressor(kernel, normalize_y=True, random_state=0),
        "MLPRegressor": TransformedTargetRegressor(
            MLPRegressor(hidden_layer_sizes=(50,), max_iter=500, random_state=0),
            transformer=StandardScaler(),
        ),
    }
    return {name: make_pipeline(StandardScaler(), peer) for name, peer in peers.items()}


def fitted_scores(model: Any, X: Any, y: Any, X_test: Any, y_test: Any) -> list[float]:
    """Scores of a fit; a model without error bars has its training residuals'."""
    start = time.perf_counter()
    model.fit(X, y)
    if isinstance(model[-1], TransformedTargetRegressor):
        mean = model.predict(X_test)
        std = np.full(len(mean), np.std(y - model.predict(X)))
    else:
        mean, std = model.predict(X_test, return_std=True)
    return scores(y_test, mean, std, time.perf_counter() - start)


def main() -> None:
    """Print a table for each data set; store it after each split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", default="wine,power")
    parser.add_argument("--rows", type=int, default=1439, help="most training rows")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for name in args.only.split(","):
        table: dict[str, list] = {}
        for X, y, X_test, y_test in splits(name, args.splits, args.rows):
            for peer, model in models(X.shape[1]).items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    row = fitted_scores(model, X, y, X_test, y_test)
                table.setdefault(peer, []).append(row)
            results[name] = {"rows": len(X), "columns": NAMES, "scores": table}
            save("uci", results)
        print(f"{name}: {args.splits} splits, {len(X)} rows")
        print(f"{'':22}{'RMSE':>9}{'NLPD':>9}{'95%':>8}{'s':>9}")
        for peer, rows in table.items():
            show(peer, rows)


if __name__ == "__main__":
    main()

"""Does the time per row stay flat, and memory bounded, up to 200,000 rows?

20 features, P = 485 weights: full posterior, evidence and 10,000 predictive standard deviations,
each size in a fresh process that reports its own peak memory.

    python benchmarks/bench_scale.py [--rows 20000 50000 100000 200000] [--steps 20]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings

import numpy as np
from _common import save
from sklearn.exceptions import ConvergenceWarning

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.training import GaussNewtonLM


def one_size(n_rows: int, steps: int) -> dict[str, float]:
    """Fit with a fixed number of steps, so that sizes do the same work a row."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, 20))
    y = np.sin(X[:, 0]) + 0.5 * X[:, 1] * X[:, 2] + 0.1 * rng.standard_normal(n_rows)
    model = DNN2GPRegressor(
        hidden_layer_sizes=(22,), prior_precision=1.0, noise_std=0.2, n_restarts=1, random_state=0,
        solver=GaussNewtonLM(max_iter=steps, tol=0.0),
    )  # fmt: skip
    before = _peak_mib()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the steps are limited on purpose
        model.fit(X, y)
    fit_seconds = time.perf_counter() - start
    start = time.perf_counter()
    std = model.predict_std(rng.standard_normal((10_000, 20)))
    return {
        "rows": n_rows,
        "weights": model.linear_model_.n_params,
        "steps": model.n_iter_,
        "fit_seconds": fit_seconds,
        "predict_seconds": time.perf_counter() - start,
        "microseconds_per_row_and_step": 1e6 * fit_seconds / n_rows / model.n_iter_,
        "evidence": model.log_marginal_likelihood_value_,
        "mean_std": float(std.mean()),
        "peak_mib": _peak_mib(),
        "peak_before_fit_mib": before,
    }


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Run each size in a process of its own; print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 50_000, 100_000, 200_000])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one_size(args.child, args.steps)))
        return
    results = []
    print(f"{'rows':>8}{'P':>5}{'fit s':>8}{'us/row/step':>12}{'10k std s':>10}{'peak MiB':>10}")
    for rows in args.rows:
        command = [sys.executable, __file__, "--child", str(rows), "--steps", str(args.steps)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        r = json.loads(out.splitlines()[-1])
        results.append(r)
        print(
            f"{rows:8d}{r['weights']:5d}{r['fit_seconds']:8.2f}"
            f"{r['microseconds_per_row_and_step']:12.2f}{r['predict_seconds']:10.3f}"
            f"{r['peak_mib']:10.0f}"
        )
    first, last = (r["microseconds_per_row_and_step"] for r in (results[0], results[-1]))
    print(f"time per row and step, last / first: {last / first:.2f}")
    save("bench_scale", {"sizes": results})


if __name__ == "__main__":
    main()

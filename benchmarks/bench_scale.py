"""Does the time per row stay flat, and memory bounded, up to a million rows?

20 features, P = 485 weights: full posterior, evidence and 10,000 predictive standard deviations,
each size in a fresh process that reports its own peak memory. Then the largest size but one again,
by one worker and by two, each of one thread: joblib's processes, which are there already.

    python benchmarks/bench_scale.py [--rows 10000 100000 1000000] [--steps 5]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings

import numpy as np
from _common import save
from joblib import Parallel, delayed, parallel_config
from sklearn.exceptions import ConvergenceWarning

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.training import GaussNewtonLM


def one_size(n_rows: int, steps: int, workers: int = 1) -> dict[str, float]:
    """Fit with a fixed number of steps, so that sizes do the same work a row."""
    with parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        _imported()
        if workers > 1:
            Parallel(max_nbytes=None)(delayed(_imported)() for _ in range(8 * workers))
        return _one_size(n_rows, steps)


def _imported() -> float:
    """So that a process has the package before the clock starts."""
    return _one_size(200, 1)["rows"]


def _one_size(n_rows: int, steps: int) -> dict[str, float]:
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


def in_process(rows: int, steps: int, workers: int, threads: int | None = None) -> dict:
    """What :func:`one_size` gives in a fresh process."""
    command = [sys.executable, __file__, "--child", *map(str, (rows, workers)), "--steps"]
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    done = subprocess.run(
        [*command, str(steps)], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run each size in a process of its own; print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one_size(args.child[0], args.steps, args.child[1])))
        return
    results = []
    print(f"{'rows':>8}{'P':>5}{'fit s':>8}{'us/row/step':>12}{'10k std s':>10}{'peak MiB':>10}")
    for rows in args.rows:
        results.append(in_process(rows, args.steps, 1))
        print(
            f"{rows:8d}{results[-1]['weights']:5d}{results[-1]['fit_seconds']:8.2f}"
            f"{results[-1]['microseconds_per_row_and_step']:12.2f}"
            f"{results[-1]['predict_seconds']:10.3f}{results[-1]['peak_mib']:10.0f}"
        )
    first, last = (r["microseconds_per_row_and_step"] for r in (results[0], results[-1]))
    print(f"time per row and step, last / first: {last / first:.2f}")
    rows = sorted(args.rows)[-2:][0]
    alone, shared = (in_process(rows, 4 * args.steps, n, threads=1) for n in (1, 2))
    speedup = alone["fit_seconds"] / shared["fit_seconds"]
    print(
        f"{rows} rows, {4 * args.steps} steps, one thread each: one worker "
        f"{alone['fit_seconds']:.2f} s, two {shared['fit_seconds']:.2f} s, ratio {speedup:.2f}; "
        f"evidence {alone['evidence']:.6f}, {shared['evidence']:.6f}"
    )
    save("bench_scale", {"sizes": results, "one_worker": alone, "two_workers": shared})


if __name__ == "__main__":
    main()

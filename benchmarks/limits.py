"""What a posterior costs by its kind and its size: seconds of one core, and MiB at the peak.

A network of 20 inputs and one output that is trained already (so that training is not in the
times), given numbers for δ and σ; its posterior is built, and 1,000 standard deviations asked for.
Each line in a process of its own.

    python benchmarks/limits.py
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

# Kind, rows, width of the hidden layer.
CASES = [
    ("full", 5000, 45), ("full", 5000, 90), ("full", 5000, 180), ("full", 1000, 4500),
    ("full", 2000, 4500), ("full", 4000, 4500), ("full", 100_000, 45), ("low_rank", 5000, 180),
     ("kronecker", 5000, 4500), ("last_layer", 5000, 4500),
    ("diag", 5000, 4500), ("kronecker", 100_000, 4500), ("last_layer", 100_000, 450),
    ("diag", 100_000, 450),
]  # fmt: skip


def one_case(kind: str, n_rows: int, width: int) -> dict[str, float | int | str]:
    """Seconds and memory of one posterior."""
    import torch
    from sklearn.frozen import FrozenEstimator
    from skorch import NeuralNetRegressor

    from sk_dnn2gp import DNN2GPRegressor
    from sk_dnn2gp.networks import MLP

    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, 20))
    y = np.sin(X[:, 0]) + 0.5 * X[:, 1] * X[:, 2] + 0.1 * rng.standard_normal(n_rows)
    net = NeuralNetRegressor(MLP(20, (width,), 1), train_split=None, verbose=0).initialize()
    settings = {"prior_precision": 1.0, "noise_std": 0.3, "posterior": kind, "random_state": 0}
    model = DNN2GPRegressor(FrozenEstimator(net), **settings)
    before, start = peak(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the network is at no minimum, which costs nothing here
        model.fit(X, y)
    built = time.process_time()
    model.predict_std(X[:1000], "latent")
    asked = time.process_time()
    return {
        "posterior": kind, "rows": n_rows, "weights": 22 * width + 1, "build": built - start,
        "predict": asked - built, "mib": peak() - before,
    }  # fmt: skip


def peak() -> float:
    """MiB at the peak so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """One process for each case, and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3)
    case = parser.parse_args().case
    if case:
        print(json.dumps(one_case(case[0], int(case[1]), int(case[2]))))
        return
    found = []
    print(
        f"{'posterior':11s}{'rows':>8s}{'weights':>9s}{'build s':>9s}{'1000 std s':>11s}{'MiB':>7s}"
    )
    for case in CASES:
        command = [sys.executable, __file__, "--case", *map(str, case)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            found.append({"case": case, "error": done.stderr.strip().splitlines()[-1]})
            print(case, found[-1]["error"])
            continue
        line = json.loads(done.stdout)
        found.append(line)
        print(
            f"{line['posterior']:11s}{line['rows']:8d}{line['weights']:9d}{line['build']:9.1f}"
            f"{line['predict']:11.1f}{line['mib']:7.0f}",
            flush=True,
        )
    save("limits", {"cases": found})


if __name__ == "__main__":
    main()

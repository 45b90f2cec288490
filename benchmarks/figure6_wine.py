"""The paper's figure 6: evidence and test error on Red Wine against δ, σ and width, 20 splits.

δ: two hidden layers of 20 tanh, σ = 0.64, 30 points of logspace(-1, 3.6); σ: the same network,
δ = 30, 30 points of logspace(-1, 1); width: one hidden layer, δ = 3, σ = 0.64. Inputs and targets
are standardised on each split's training part; errors are in the units of y.

Along δ and σ each fit goes on from its neighbour's weights, outwards from a point of the middle
that is trained from three starts (the best evidence wins); at most 40 Gauss-Newton steps a point.
Where the prior is weak the network is not at a minimum after them, nor was the authors' after
1,000 epochs. Each width is trained from a start of its own, from three up to width 9, where the
evidence has minima that are nats apart.

    python benchmarks/figure6_wine.py [--splits 20] [--jobs 2] [--published FILE]
                                      [--sweeps delta,noise_std,width]

``--sweeps`` runs some of them anew and takes the others from the stored result.

The authors' curves, wine_figure6_published.json, are drawn beside ours where FILE names them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import RESULTS, picture, red_wine, save
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import nn

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.training import GaussNewtonLM

WIDTHS = [1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 18, 22, 26, 31, 37, 44, 53, 63, 75, 89, 106, 126, 150]
SWEEPS: dict[str, dict[str, Any]] = {
    "delta": {
        "parameter": "prior_precision",
        "values": np.logspace(-1, 3.6, 30),
        "fixed": {"noise_std": 0.64, "hidden_layer_sizes": (20, 20)},
        "middle": 18,
        "starts": 3,
        "epochs": 1000,
    },
    "noise_std": {
        "parameter": "noise_std",
        "values": np.logspace(-1, 1, 30),
        "fixed": {"prior_precision": 30.0, "hidden_layer_sizes": (20, 20)},
        "middle": 13,
        "starts": 3,
        "epochs": 1000,
    },
    "width": {
        "parameter": "hidden_layer_sizes",
        "values": np.array(WIDTHS),
        "fixed": {"prior_precision": 3.0, "noise_std": 0.64},
        "starts": 3,
        "starts_up_to": 9,
        "epochs": 1500,
    },
}
LABELS = {"delta": "δ", "noise_std": "σ", "width": "width"}
CURVES = ("log_marginal_likelihood", "test_mse", "train_mse")


def variance_of_targets(split: int) -> float:
    """Of y on the split's training part, by which errors are multiplied."""
    with np.load(Path(os.environ["SK_DNN2GP_DATA"]) / "uci_wine-quality-red.npz") as data:
        return float(data["y"].astype(float)[data["train"][split]].var())


def estimator(fixed: dict[str, Any], split: int) -> DNN2GPRegressor:
    return DNN2GPRegressor(
        normalize_y=False,
        solver=GaussNewtonLM(max_iter=40, tol=1e-4),
        random_state=split,
        warm_start=True,
        **fixed,
    )


def order(sweep: dict[str, Any]) -> list[list[int]]:
    """Walks over the points, each from its first point's own start."""
    n = len(sweep["values"])
    if "middle" not in sweep:
        return [[i] for i in range(n)]
    middle = sweep["middle"]
    return [list(range(middle, -1, -1)), list(range(middle, n))]


def run(name: str, split: int) -> tuple[str, int, NDArray, float]:
    """Evidence, test and train MSE of every point of one sweep on one split: (3, n_points).

    With the seconds of processor time, in one thread.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sweep, (X, y, X_test, y_test) = SWEEPS[name], red_wine(split)
    unit, start = variance_of_targets(split), time.process_time()
    table = np.empty((3, len(sweep["values"])))
    for walk in order(sweep):
        model = estimator(sweep["fixed"], split)
        for step, i in enumerate(walk):
            value = sweep["values"][i]
            point = (int(value),) if name == "width" else float(value)
            many = step == 0 and value <= sweep.get("starts_up_to", np.inf)
            restarts = sweep["starts"] if many else 1
            model.set_params(**{sweep["parameter"]: point}, n_restarts=restarts).fit(X, y)
            errors = [np.mean((model.predict(a) - b) ** 2) for a, b in ((X_test, y_test), (X, y))]
            table[:, i] = model.log_marginal_likelihood_value_, *(unit * e for e in errors)
    return name, split, table, time.process_time() - start


def adam_seconds(name: str) -> float:
    """One fit of the authors' schedule, full-batch Adam alone, on the network of the middle.

    Their Jacobians, example by example, and their evidence are left out.
    """
    torch.set_num_threads(1)
    sweep, (X, y, _, _) = SWEEPS[name], red_wine(0)
    hidden = sweep["fixed"].get("hidden_layer_sizes", (int(np.median(sweep["values"])),))
    net = MLP(X.shape[1], hidden, 1).double()
    inputs, targets = torch.tensor(X), torch.tensor(y)[:, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)

    start = time.process_time()
    for _ in range(sweep["epochs"]):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()
    return time.process_time() - start


def summary(name: str, tables: NDArray, published: dict[str, Any] | None) -> dict[str, Any]:
    """Means and standard errors over splits (n_splits, 3, n_points); printed, beside published."""
    mean, n = tables.mean(0), len(tables)
    error = tables.std(0, ddof=1) / n**0.5 if n > 1 else np.zeros_like(mean)
    values = SWEEPS[name]["values"]
    best, least = int(mean[0].argmax()), int(mean[1].argmin())
    ratio = mean[1, best] / mean[1, least]
    print(
        f"{LABELS[name]}: evidence peaks at {values[best]:.3g} with {mean[0, best]:.1f} ± "
        f"{error[0, best]:.1f}; test MSE there {mean[1, best]:.4f} ± {error[1, best]:.4f}, least "
        f"{mean[1, least]:.4f} at {values[least]:.3g}: ratio {ratio:.3f}"
    )
    if published is not None:
        theirs = {key: np.array(published[name][f"{key}_mean"]) for key in CURVES}
        peak = int(theirs["log_marginal_likelihood"].argmax())
        gap = (mean[0, peak] - theirs["log_marginal_likelihood"][peak]) / max(error[0, peak], 1e-9)
        print(
            f"   published: {theirs['log_marginal_likelihood'][peak]:.1f} at "
            f"{published[name]['values'][peak]:.3g}, test MSE {theirs['test_mse'][peak]:.4f}; ours "
            f"at that point {mean[0, peak]:.1f} ({gap:+.1f} standard errors), "
            f"{mean[1, peak]:.4f}"
        )
    curves = {f"{key}_mean": mean[i].tolist() for i, key in enumerate(CURVES)}
    errors = {f"{key}_standard_error": error[i].tolist() for i, key in enumerate(CURVES)}
    chosen = {"chosen": float(values[best]), "mse_ratio": float(ratio)}
    return {"values": np.asarray(values, float).tolist(), **curves, **errors, **chosen}


def draw(results: dict[str, Any], published: dict[str, Any] | None) -> None:
    """Evidence above, test error below; the authors' curves dashed; stars at the optima."""
    with picture("figure6_wine", 2, len(results)) as axes:
        for column, (name, r) in zip(axes.T, results.items(), strict=True):
            for axis, key, best in zip(column, CURVES, (np.argmax, np.argmin), strict=False):
                x, values = np.array(r["values"]), np.array(r[f"{key}_mean"])
                bars = np.array(r[f"{key}_standard_error"])
                axis.plot(x, values, color="tab:blue", label="ours")
                axis.fill_between(x, values - bars, values + bars, color="tab:blue", alpha=0.3)
                axis.plot(x[best(values)], values[best(values)], "*", color="tab:blue", ms=12)
                if published is not None:
                    theirs = published[name]
                    axis.plot(
                        theirs["values"], theirs[f"{key}_mean"], "--", color="tab:orange",
                        label="published",
                    )  # fmt: skip
                axis.set(xscale="log", xlabel=LABELS[name], ylabel=key.replace("_", " "))
            column[0].set_ylim(-3300, -1650)
            column[1].set_ylim(0.38, 0.8)
        axes[0, 0].legend()


def main() -> None:
    """Run, print, store, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--sweeps", default=",".join(SWEEPS))
    args = parser.parse_args()
    published = json.loads(args.published.read_text(encoding="utf-8")) if args.published else None
    names = args.sweeps.split(",")
    tables: dict[str, list[NDArray]] = {name: [] for name in names}
    seconds = dict.fromkeys(names, 0.0)
    parallel = Parallel(n_jobs=args.jobs, return_as="generator")
    tasks = [delayed(run)(name, split) for split in range(args.splits) for name in names]
    for name, split, table, spent in parallel(tasks):
        tables[name].append(table)
        seconds[name] += spent
        print(f"split {split}, {name}: {spent:.1f} s", flush=True)
    path = RESULTS / "figure6_wine.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = {name: stored[name] for name in SWEEPS if name in stored}
    for name in names:
        results[name] = summary(name, np.array(tables[name]), published)
        results[name]["processor_seconds"] = seconds[name]
        n_fits = len(SWEEPS[name]["values"]) * args.splits
        results[name]["authors_schedule_seconds"] = adam_seconds(name) * n_fits
    ours, theirs = (
        sum(r[key] for r in results.values())
        for key in ("processor_seconds", "authors_schedule_seconds")
    )
    print(
        f"all sweeps: {ours:.0f} s of processor time; the authors' schedule, Adam alone, "
        f"extrapolated from a fit per sweep: {theirs:.0f} s, {theirs / ours:.2f} times"
    )
    save("figure6_wine", {"splits": args.splits, **results})
    draw({name: results[name] for name in SWEEPS}, published)


if __name__ == "__main__":
    main()

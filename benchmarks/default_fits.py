"""What a new user waits for, and gets: constructor defaults alone, beside peers.

Each row is one fit in a process of its own, on two threads: seconds of ``fit``, the evidence, test
RMSE (or accuracy), test NLL and the coverage of the central 95 % interval. Nothing is tuned.

    git worktree add ../before 46915ea
    python benchmarks/default_fits.py --before ../before [--laplace-python PYTHON]
                                      [--only diabetes,iris] [--splits 5] [--repeats 3]

The sets of scikit-learn are split at random (a fifth for testing, seeded), those of the UCI
benchmark as it splits them; "full" fits all rows of scikit-learn's sets, for the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
TOY = {"iris": "load_iris", "wine": "load_wine", "breast_cancer": "load_breast_cancer",
       "digits": "load_digits", "diabetes": "load_diabetes"}  # fmt: skip
UCI = {"red_wine": "wine-quality-red", "concrete": "concrete", "power": "power-plant",
       "protein": "protein"}  # fmt: skip
SETS = (
    "diabetes", "breast_cancer_raw", "breast_cancer", "iris_raw", "iris", "wine_raw", "wine",
    "digits_20", "digits", "red_wine", "concrete", "power", "protein", "generated",
)  # fmt: skip
# Rows of a timed fit, where they are not all.
TIMED = {"digits": 1257}
CLASSIFIED = ("breast_cancer", "iris", "wine", "digits")
# Sets that are left out for scikit-learn's processes: their cost is the cube of the rows.
LARGE = ("power", "protein", "generated")


def data(name: str, split: int | str) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """X, y, X_test, y_test; the test set is the training set where ``split`` is "full"."""
    if name == "generated":
        return _generated()
    base = name.removesuffix("_raw").removesuffix("_20")
    if base in UCI:
        X, y, train, test = _uci(base, 0 if split == "full" else int(split))
    else:
        import sklearn.datasets

        X, y = getattr(sklearn.datasets, TOY[base])(return_X_y=True)
        order = np.random.default_rng(0 if split == "full" else int(split)).permutation(len(X))
        cut = TIMED.get(base, len(X)) if split == "full" else len(X) * 4 // 5
        train, test = order[:cut], order[cut:] if cut < len(X) else order
    if not name.endswith("_raw"):
        spread = X[train].std(0)
        X = (X - X[train].mean(0)) / np.where(spread > 0, spread, 1.0)
    return X[train], y[train], X[test], y[test]


def _uci(base: str, split: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    folder = os.environ.get("SK_DNN2GP_DATA")
    if not folder:
        raise SystemExit("Name the folder of the data in SK_DNN2GP_DATA.")
    with np.load(Path(folder) / f"uci_{UCI[base]}.npz") as file:
        X, y = file["X"].astype(float), file["y"].astype(float).ravel()
        return X, y, file["train"][split], file["test"][split]


def _generated(n: int = 1_000_000) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Friedman's first function of five of eight inputs, noise of standard deviation 1."""
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(n + 2000, 8))
    y = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2
    y += 10 * X[:, 3] + 5 * X[:, 4] + rng.standard_normal(len(X))
    return X[:n], y[:n], X[n:], y[n:]


def model(peer: str, name: str) -> Any:
    """The peer with its constructor defaults."""
    classify = name.startswith(CLASSIFIED)
    if peer in ("ours", "before"):
        import sk_dnn2gp

        cls = sk_dnn2gp.DNN2GPClassifier if classify else sk_dnn2gp.DNN2GPRegressor
        width = {"hidden_layer_sizes": (20,)} if name == "digits_20" else {}
        return cls(random_state=0, **width)
    if peer == "mlp":
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        return (MLPClassifier if classify else MLPRegressor)(random_state=0)
    if peer == "gp":
        from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        if classify:
            return GaussianProcessClassifier(ConstantKernel() * RBF(), random_state=0)
        d = data(name, 0)[0].shape[1]
        kernel = ConstantKernel() * RBF(np.ones(d)) + WhiteKernel()
        return GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    from _laplace_peer import MarglikClassifier, MarglikRegressor

    return (MarglikClassifier if classify else MarglikRegressor)()


def row(peer: str, name: str, split: int | str) -> dict[str, Any]:
    """Fit one model once and score it."""
    X, y, X_test, y_test = data(name, split)
    estimator = model(peer, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        estimator.fit(X, y)
        seconds = time.perf_counter() - start
    result = {"peer": peer, "data": name, "split": split, "rows": len(X), "seconds": seconds}
    value = getattr(estimator, "log_marginal_likelihood_value_", None)
    result["evidence"] = None if value is None else float(value)
    result["warnings"] = sorted({str(w.message).splitlines()[0][:120] for w in caught})
    scores = _classification if name.startswith(CLASSIFIED) else _regression
    return {**result, **scores(estimator, X, y, X_test, y_test)}


def _classification(estimator: Any, X: Any, y: Any, X_test: Any, y_test: Any) -> dict[str, float]:
    p = estimator.predict_proba(X_test)
    codes = np.searchsorted(estimator.classes_, y_test)
    own = np.clip(p[np.arange(len(p)), codes], 1e-300, None)
    return {"score": float((p.argmax(1) == codes).mean()), "nll": float(-np.log(own).mean())}


def _regression(estimator: Any, X: Any, y: Any, X_test: Any, y_test: Any) -> dict[str, float]:
    try:
        mean, std = estimator.predict(X_test, return_std=True)
    except TypeError:  # a network without error bars has those of its training residuals
        mean, std = estimator.predict(X_test), np.std(y - estimator.predict(X))
    z = (y_test - mean) / std
    nll = 0.5 * np.mean(z**2 + np.log(2 * np.pi * std**2))
    rmse = np.sqrt(np.mean((y_test - mean) ** 2))
    coverage = np.mean(np.abs(z) < 1.96)
    return {"score": float(rmse), "nll": float(nll), "coverage": float(coverage)}


def in_process(
    peer: str, name: str, split: int | str, most: float, root: Path, python: str
) -> dict[str, Any]:
    """The row of a process that imports the package of ``root``, within so many seconds."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [python, str(HERE / "default_fits.py"), "--row", f"{peer}:{name}:{split}"]
    row = {"peer": peer, "data": name, "split": split}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=most
        )
    except subprocess.TimeoutExpired:
        return {**row, "failed": f"not ended after {most:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {**row, "failed": last}
    return json.loads(done.stdout.splitlines()[-1])


def show(rows: list[dict[str, Any]], repeats: int) -> None:
    """One line for each data set and peer: median seconds, means over splits."""
    print(f"{'':20}{'':9}{'seconds':>9}{'evidence':>11}{'score':>9}{'NLL':>9}{'95%':>7}")
    keys = dict.fromkeys((r["data"], r["peer"]) for r in rows)
    mean: Callable[[list], float] = lambda v: float(np.mean(v)) if v else np.nan  # noqa: E731
    for name, peer in keys:
        some = [r for r in rows if (r["data"], r["peer"]) == (name, peer) and "nll" in r]
        timed = [r for r in some if r["split"] == "full"] or some
        tested = [r for r in some if r["split"] != "full"]
        if not some:
            print(f"{name:20}{peer:9}   failed: {[r for r in rows if r['data'] == name][-1]}")
            continue
        evidence = [r["evidence"] for r in timed if r["evidence"] is not None]
        columns = [mean([r[c] for r in tested if c in r]) for c in ("score", "nll", "coverage")]
        seconds = np.median([r["seconds"] for r in timed])
        print(
            f"{name:20}{peer:9}{seconds:9.2f}{mean(evidence):11.2f}{columns[0]:9.4f}"
            f"{columns[1]:9.4f}{columns[2]:7.3f}",
            flush=True,
        )


def merged(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is stored of other peers and data sets, and then these rows."""
    path = HERE / "results" / f"{name}.json"
    stored = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {(r["data"], r["peer"]) for r in rows}
    return [r for r in stored if (r["data"], r["peer"]) not in new] + rows


def main() -> None:
    """Fit everything in turn, print the table, store the rows in the place of earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", help="peer:data:split, one fit in this process, as JSON")
    parser.add_argument("--before", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("--laplace-python", help="an interpreter that has laplace-torch")
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--peers", default="ours,before,gp,mlp,laplace")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="of the timed fit")
    parser.add_argument("--most", type=float, default=900.0, help="seconds that a peer may take")
    parser.add_argument("--save", default="default_fits")
    args = parser.parse_args()
    if args.row:
        peer, name, split = args.row.split(":")
        print(json.dumps(row(peer, name, split)))
        return
    here = HERE.parent
    runs = {"ours": (here, sys.executable), "gp": (here, sys.executable),
            "mlp": (here, sys.executable)}  # fmt: skip
    if args.before:
        runs["before"] = (args.before.resolve(), sys.executable)
    if args.laplace_python:
        runs["laplace"] = (here, args.laplace_python)
    rows: list[dict[str, Any]] = []
    for name in args.only.split(","):
        n_splits = 0 if name == "generated" else min(args.splits, 5)
        for split in [*["full"] * args.repeats, *range(n_splits)]:
            for peer in (p for p in args.peers.split(",") if p in runs):
                if peer == "gp" and name in LARGE:
                    continue
                rows.append(in_process(peer, name, split, args.most, *runs[peer]))
        show([r for r in rows if r["data"] == name], args.repeats)
        from _common import save

        save(args.save, {"rows": merged(args.save, rows)})


if __name__ == "__main__":
    main()

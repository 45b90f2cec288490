"""Intervals beside those of other packages: same data, same folds, an environment for each.

    python benchmarks/peers.py ours
    python benchmarks/peers.py gp
    python benchmarks/peers.py ngboost
    python benchmarks/peers.py mapie

A peer's environment is made below ``.venv-peers`` at its first call. Three folds of the oblique
front of README and of diabetes; RMSE, negative log predictive density (where there is a density),
coverage and mean width of the 90% intervals, and seconds of one core for a fit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import venv
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What is installed for each; ours is this checkout, in the environment that runs the script.
NEEDS = {
    "ours": [],
    "gp": ["scikit-learn==1.9.1"],
    "ngboost": ["ngboost==0.5.11"],
    "mapie": ["mapie==1.6.0"],
}


def data() -> dict[str, tuple[Any, Any]]:
    """Two sets of inputs and targets."""
    import numpy as np
    from sklearn.datasets import load_diabetes

    rng = np.random.RandomState(0)
    X = rng.uniform(-2, 2, (150, 3))
    y = np.tanh(2 * (X[:, 0] + X[:, 1] - X[:, 2])) + 0.1 * rng.randn(150)
    return {"oblique front": (X, y), "diabetes": load_diabetes(return_X_y=True)}


def ours(X, y, X_new):
    """With the defaults of README's first example."""
    from sk_dnn2gp import DNN2GPRegressor

    model = DNN2GPRegressor(hidden_layer_sizes=(8,), random_state=0).fit(X, y)
    return normal(*model.predict(X_new, return_std=True))


def gp(X, y, X_new):
    """Scikit-learn's process, a length scale for each input."""
    import numpy as np
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    kernel = ConstantKernel() * RBF(np.ones(X.shape[1])) + WhiteKernel()
    model = GaussianProcessRegressor(kernel, normalize_y=True).fit(X, y)
    return normal(*model.predict(X_new, return_std=True))


def ngboost(X, y, X_new):
    """Natural gradient boosting of a normal, with its defaults."""
    from ngboost import NGBRegressor

    found = NGBRegressor(verbose=False, random_state=0).fit(X, y).pred_dist(X_new)
    return normal(found.loc, found.scale)


def mapie(X, y, X_new):
    """Cross-conformal intervals of a random forest: a guarantee, and no density."""
    from mapie.regression import CrossConformalRegressor
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(random_state=0)
    model = CrossConformalRegressor(forest, confidence_level=0.9, cv=5).fit_conformalize(X, y)
    mean, interval = model.predict_interval(X_new)
    return mean, interval[:, 0, 0], interval[:, 1, 0], None


def normal(mean, std):
    """Mean, ends of the central 90%, standard deviation."""
    return mean, mean - 1.6448536 * std, mean + 1.6448536 * std, std


def scores(y, mean, low, high, std) -> list[float]:
    """RMSE, NLPD, coverage, width."""
    import numpy as np

    density = np.nan
    if std is not None:
        density = np.mean(0.5 * ((y - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi))
    inside = (low <= y) & (y <= high)
    return [np.sqrt(np.mean((y - mean) ** 2)), density, inside.mean(), np.mean(high - low)]


def run(peer: str) -> None:
    """The peer's table."""
    import numpy as np
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import StandardScaler

    print(f"{peer:16s}{'RMSE':>8s}{'NLPD':>8s}{'90%':>8s}{'width':>8s}{'seconds':>9s}")
    for name, (X, y) in data().items():
        rows = []
        for train, test in KFold(3, shuffle=True, random_state=0).split(X):
            scaler = StandardScaler().fit(X[train])
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = globals()[peer](
                    scaler.transform(X[train]), y[train], scaler.transform(X[test])
                )
            rows.append([*scores(y[test], *found), time.process_time() - start])
        print(f"{name:16s}" + "{:8.3f}{:8.3f}{:8.2f}{:8.2f}{:9.2f}".format(*np.mean(rows, axis=0)))


def environment(peer: str) -> Path:
    """The interpreter of the peer's environment, which is made where it is not there."""
    folder = ROOT / ".venv-peers" / peer
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NEEDS[peer]], check=True)
    return python


def main() -> None:
    """In the peer's environment, the table; anywhere else, that environment first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=NEEDS)
    parser.add_argument("--here", action="store_true", help="in the environment that runs this")
    given = parser.parse_args()
    if given.here or not NEEDS[given.peer]:
        run(given.peer)
        return
    python = environment(given.peer)
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [str(python), __file__, given.peer, "--here"]
    sys.exit(subprocess.run(command, env={**os.environ, **threads}, check=False).returncode)


if __name__ == "__main__":
    main()

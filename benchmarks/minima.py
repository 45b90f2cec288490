"""Does more evidence mean better predictions? Many minima of a set, by three scores of each.

Networks are trained to minima at a grid of prior precisions, σ by the evidence, from several
initial weights each; for every minimum the evidence, the mean leave-one-out log density and the
log density of the test rows.

    python benchmarks/minima.py [--sets concrete,red_wine,diabetes] [--seeds 3] [--split 0]
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from _common import save
from default_fits import data
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning

from sk_dnn2gp import DNN2GPRegressor

PRECISIONS = (0.3, 1.0, 3.0, 10.0, 30.0)


def scores(name: str, split: int, seed: int, prior_precision: float) -> list[float]:
    """Evidence, leave-one-out log density and test log density (means over rows) of a minimum."""
    X, y, X_test, y_test = data(name, split)
    model = DNN2GPRegressor(prior_precision=prior_precision, n_restarts=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by the column of converged_
        model.fit(X, y)
    return [
        model.log_marginal_likelihood_value_,
        float(model.leave_one_out(X, y).log_density.mean()),
        float(model.log_predictive_density(X_test, y_test).mean()),
        float(model.converged_),
    ]


def show(name: str, keys: list[tuple[float, int]], table: NDArray) -> None:
    """A line for each minimum, then how the first two scores order the third."""
    print(f"{name}\n{'δ':>8}{'start':>6}{'evidence':>11}{'left out':>10}{'test NLL':>10}")
    for (delta, seed), (evidence, left_out, test, converged) in zip(keys, table, strict=True):
        mark = "" if converged else "  not converged"
        print(f"{delta:8g}{seed:6d}{evidence:11.1f}{-left_out:10.3f}{-test:10.3f}{mark}")
    for column, label in enumerate(("evidence", "leave-one-out")):
        rank = spearmanr(table[:, column], table[:, 2]).statistic
        chosen = -table[table[:, column].argmax(), 2]
        print(f"{label:>14}: rank correlation {rank:5.2f}, test NLL of its best {chosen:.3f}")
    print(f"{'all':>14}: test NLL from {-table[:, 2].max():.3f} to {-table[:, 2].min():.3f}\n")


def main() -> None:
    """Print the table of every set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="concrete,red_wine,diabetes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", type=int, default=0)
    args = parser.parse_args()
    stored = {}
    for name in args.sets.split(","):
        keys = [(delta, seed) for delta in PRECISIONS for seed in range(args.seeds)]
        table = np.array([scores(name, args.split, seed, delta) for delta, seed in keys])
        show(name, keys, table)
        stored[name] = {"minima": keys, "scores": table.tolist()}
    save("minima", stored)


if __name__ == "__main__":
    main()

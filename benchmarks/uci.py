"""Out of the box: ``DNN2GPRegressor()`` with no argument set, beside its peers, on UCI data.

Red Wine, Power Plant, Concrete and Protein, the benchmark's own splits, full training parts but for
the Gaussian process (2,000 rows at most). Beside the default: a noise that varies, a mixture of the
starts of one search, one of independent searches, a prior precision for each input. In the units of
y: RMSE, negative log predictive density, CRPS (the mean pinball loss of 20 quantiles, doubled),
coverage of the central 95%, seconds of processor time of fit and prediction. Nothing is tuned to
these sets, and two generated ones of known noise were kept aside while defaults were chosen. What
is stored already is not run again: later runs add splits. laplace-torch runs in an environment of
its own, by ``uci_laplace.py``; the literature's rows are those of its papers.

    python benchmarks/uci.py [--splits 3] [--only wine,power] [--models default,mixture] [--show]
    python benchmarks/uci.py --copies [--splits 2] [--models default,gp]

``--copies`` scores Red Wine's test rows that are exact copies of a training row apart from others.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import RESULTS, save
from _uci_data import ASIDE, COLUMNS, FILES, LEVELS, normal_quantiles, scored, splits
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from sk_dnn2gp import DNN2GPRegressor, MixtureRegressor
from sk_dnn2gp.inference import Laplace
from sk_dnn2gp.predictive import Predictive

ROWS_OF_GP = 2000
# RMSE and NLL as published: Lakshminarayanan et al. 2017 (arXiv 1612.01474, table 1, with PBP of
# Hernández-Lobato and Adams 2015 and MC dropout of Gal and Ghahramani 2016); Matsubara 2024 (arXiv
# 2405.09536, table 1, with NGBoost of Duan et al. 2020 and evidential networks of Amini et al.
# 2020). Each on 20 random splits (Protein 5), not all of them these.
LITERATURE = {
    "PBP 2015": {
        "wine": (0.64, 0.97), "power": (4.12, 2.84), "concrete": (5.67, 3.16),
        "protein": (4.73, 2.97),
    },
    "MC dropout 2016": {
        "wine": (0.62, 0.93), "power": (4.02, 2.80), "concrete": (5.23, 3.04),
        "protein": (4.36, 2.89),
    },
    "deep ensembles 2017": {
        "wine": (0.64, 0.94), "power": (4.11, 2.79), "concrete": (6.03, 3.06),
        "protein": (4.71, 2.83),
    },
    "NGBoost 2020": {
        "wine": (0.63, 0.91), "power": (3.79, 2.79), "concrete": (5.06, 3.04),
        "protein": (4.33, 2.81),
    },
    "evidential 2020": {
        "wine": (0.61, 0.89), "power": (4.23, 2.81), "concrete": (5.85, 3.01),
        "protein": (4.64, 2.63),
    },
    "Wasserstein GB 2024": {
        "wine": (0.61, 0.95), "power": (3.19, 2.60), "concrete": (4.15, 2.83),
        "protein": (4.09, 2.70),
    },
}  # fmt: skip

# Mean, log density (None where there is none) and the 20 quantiles of test rows.
Forecast = tuple[NDArray, NDArray | None, NDArray]


def ours(model: Any) -> Callable[..., Forecast]:
    """One of ours, as it comes."""

    def forecast(X: NDArray, y: NDArray, X_test: NDArray, y_test: NDArray) -> Forecast:
        law = model.fit(X, y).predict_distribution(X_test)
        return of_law(law, y_test)

    return forecast


def of_law(law: Predictive, y_test: NDArray) -> Forecast:
    """Of a distribution for each row."""
    quantiles = np.stack([law.quantile(q)[:, 0] for q in LEVELS], axis=1)
    return law.mean[:, 0], law.log_density(y_test[:, None])[:, 0], quantiles


def normal(mean: NDArray, std: NDArray, y_test: NDArray) -> Forecast:
    """Of means and standard deviations."""
    return mean, norm.logpdf(y_test, mean, std), normal_quantiles(mean, std)


def process(X: NDArray, y: NDArray, X_test: NDArray, y_test: NDArray) -> Forecast:
    """scikit-learn's Gaussian process with a length scale for each input."""
    kernel = ConstantKernel(1.0) * RBF(np.ones(X.shape[1])) + WhiteKernel(0.5)
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    model.fit(X[:ROWS_OF_GP], y[:ROWS_OF_GP])
    return normal(*model.predict(X_test, return_std=True), y_test)


def network(X: NDArray, y: NDArray, X_test: NDArray, y_test: NDArray) -> Forecast:
    """scikit-learn's network of the same width, its error bars those of its training residuals."""
    inner = MLPRegressor(hidden_layer_sizes=(50,), max_iter=500, random_state=0)
    model = TransformedTargetRegressor(inner, transformer=StandardScaler()).fit(X, y)
    mean = model.predict(X_test)
    return normal(mean, np.full(len(mean), np.std(y - model.predict(X))), y_test)


def boosting(X: NDArray, y: NDArray, X_test: NDArray, y_test: NDArray) -> Forecast:
    """Trees for the mean and for each quantile, put in order; no density."""
    mean = HistGradientBoostingRegressor(random_state=0).fit(X, y).predict(X_test)
    columns = [
        HistGradientBoostingRegressor(loss="quantile", quantile=q, random_state=0)
        .fit(X, y)
        .predict(X_test)
        for q in LEVELS
    ]
    return mean, None, np.sort(np.stack(columns, axis=1), axis=1)


def models() -> dict[str, tuple[str, Callable[..., Forecast]]]:
    """Short name: title, and what fits and predicts. Inputs are standardised for each."""
    return {
        "default": ("DNN2GPRegressor()", ours(DNN2GPRegressor(random_state=0))),
        "varying": (
            "noise that varies",
            ours(DNN2GPRegressor(noise_std="heteroscedastic", random_state=0)),
        ),
        "mixture": ("mixture, 4 searches", ours(MixtureRegressor(random_state=0))),
        "shared": (
            "mixture of one search",
            ours(MixtureRegressor(search="shared", random_state=0)),
        ),
        "feature": (
            "δ per feature",
            ours(DNN2GPRegressor(prior_groups="feature", random_state=0)),
        ),
        "conditional": (
            "by conditional evidence",
            ours(DNN2GPRegressor(inference=Laplace(criterion="conditional"), random_state=0)),
        ),
        "gp": ("GaussianProcess, ARD", process),
        "mlp": ("MLPRegressor", network),
        "boosting": ("HistGradientBoosting", boosting),
    }


def run(forecast: Callable[..., Forecast], split: tuple[NDArray, ...]) -> tuple[Forecast, float]:
    """What a model says of the test rows, and its seconds."""
    X, y, X_test, y_test = split
    scaler = StandardScaler().fit(X)
    start = time.process_time()
    given = scaler.transform(X), y, scaler.transform(X_test), y_test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return forecast(*given), time.process_time() - start


def with_peers(results: dict[str, Any]) -> dict[str, Any]:
    """The stored scores, and those of laplace-torch."""
    path = RESULTS / "uci_laplace.json"
    others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sets = [name for name in (*FILES, *ASIDE) if name in results]
    return {n: results[n]["scores"] | others.get(n, {}).get("scores", {}) for n in sets}


def show(results: dict[str, Any]) -> None:
    """Print means over the splits of each model, how many they are, and NLPD less the default's.

    The last is of the same splits, where models ran on different ones, with its standard error.
    """
    titles = {name: title for name, (title, _) in models().items()}
    titles["laplace"] = "laplace-torch"
    for name, scores in with_peers(results).items():
        print(f"{name}\n{'':24}" + "".join(f"{c:>10}" for c in COLUMNS) + "  splits  to default")
        for model, rows in scores.items():
            mean = np.mean(list(rows.values()), axis=0)
            numbers = "".join(f"{v:10.3f}" for v in mean)
            usual = scores.get("default", {})
            beside = np.array([row[1] - usual[k][1] for k, row in rows.items() if k in usual])
            line = f"{titles.get(model, model):24}{numbers}{len(rows):8d}"
            if model != "default" and len(beside) and np.isfinite(beside).all():
                line += f"{beside.mean():12.3f}"
                line += (
                    f" ± {beside.std(ddof=1) / len(beside) ** 0.5:.3f}" if beside[1:].size else ""
                )
            print(line)
        for paper, rows in LITERATURE.items():
            if name in rows:
                print(f"{paper:24}{rows[name][0]:10.2f}{rows[name][1]:10.2f}   published")
        if name in ASIDE:
            entropy = 0.5 * np.log(2 * np.pi * np.e * ASIDE[name] ** 2)
            print(f"{'the truth (its noise)':24}{ASIDE[name]:10.3f}{entropy:10.3f}")


def show_copies(n_splits: int, names: list[str]) -> None:
    """RMSE and NLPD of Red Wine's test rows that a training row equals, and of the others."""
    columns = "".join(f"{c:>12}" for c in ("part", "RMSE: them", "others", "NLPD: them", "others"))
    print(f"{'split':16}{columns}")
    for number, split in enumerate(splits("wine", n_splits)):
        known = {row.tobytes() for row in split[0]}
        is_copy = np.array([row.tobytes() in known for row in split[2]])
        for name in names:
            (mean, log_density, _), _ = run(models()[name][1], split)
            square = (split[3] - mean) ** 2
            loss = np.full(len(mean), np.nan) if log_density is None else -log_density
            numbers = [
                is_copy.mean(),
                *(square[part].mean() ** 0.5 for part in (is_copy, ~is_copy)),
            ]
            numbers += [loss[part].mean() for part in (is_copy, ~is_copy)]
            print(f"{number} {name:14}" + "".join(f"{v:12.3f}" for v in numbers), flush=True)


def main() -> None:
    """Run what is not stored yet, store it after each fit, and print all that is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--only", default=",".join([*FILES, *ASIDE]))
    parser.add_argument("--models", default=",".join(models()))
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--copies", action="store_true", help="of Red Wine; stores nothing")
    args = parser.parse_args()
    if args.copies:
        show_copies(args.splits, args.models.split(","))
        return
    path = RESULTS / "uci.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results.pop("setting", None)
    for name in [] if args.show else args.only.split(","):
        table = results.setdefault(name, {"columns": COLUMNS, "scores": {}})
        for number, split in enumerate(splits(name, args.splits)):
            for model in args.models.split(","):
                rows = table["scores"].setdefault(model, {})
                if str(number) in rows:
                    continue
                forecast, seconds = run(models()[model][1], split)
                rows[str(number)] = scored(split[3], *forecast, seconds)
                print(name, number, model, np.round(rows[str(number)], 3), flush=True)
                save("uci", results)
    show(results)


if __name__ == "__main__":
    main()

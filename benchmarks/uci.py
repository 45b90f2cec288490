"""Out of the box: ``DNN2GPRegressor()`` with no argument set, beside its peers, on UCI data.

Red Wine, Power Plant, Concrete and Protein, the benchmark's own splits, full training parts but for
the Gaussian process (2,000 rows at most). Beside the default: a noise that varies, a mixture of the
starts of one search, one of independent searches, a prior precision for each input. In the units of
y: RMSE, negative log predictive density, CRPS (the mean pinball loss of 20 quantiles, doubled),
coverage of the central 95%, seconds of processor time of fit and prediction. Nothing is tuned to
these sets. What is stored already is not run again: later runs add splits.

    python benchmarks/uci.py [--splits 3] [--only wine,power] [--models default,mixture] [--show]
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
from _uci_data import FILES, splits
from numpy.typing import NDArray
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from sk_dnn2gp import DNN2GPRegressor, MixtureRegressor
from sk_dnn2gp.inference import Laplace
from sk_dnn2gp.predictive import Normal, Predictive

COLUMNS = ("RMSE", "NLPD", "CRPS", "coverage", "seconds")
LEVELS = (np.arange(20) + 0.5) / 20  # the first and the last are the ends of the central 95%
ROWS_OF_GP = 2000

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
    variance = std[:, None] ** 2
    return of_law(Normal(mean[:, None], variance, 0 * variance), y_test)


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


def scored(forecast: Callable[..., Forecast], split: tuple[NDArray, ...]) -> list[float]:
    """The columns' numbers of one fit."""
    X, y, X_test, y_test = split
    scaler = StandardScaler().fit(X)
    start = time.process_time()
    given = scaler.transform(X), y, scaler.transform(X_test), y_test
    mean, log_density, quantiles = forecast(*given)
    seconds = time.process_time() - start
    error = y_test[:, None] - quantiles
    pinball = np.maximum(LEVELS * error, (LEVELS - 1) * error)
    inside = (quantiles[:, 0] <= y_test) & (y_test <= quantiles[:, -1])
    nlpd = np.nan if log_density is None else -log_density.mean()
    rmse = np.sqrt(np.mean((y_test - mean) ** 2))
    return [float(v) for v in (rmse, nlpd, 2 * pinball.mean(), inside.mean(), seconds)]


def show(results: dict[str, Any]) -> None:
    """Print means over the splits of each model, how many they are, and NLPD less the default's.

    The last is of the same splits, where models have run on different ones.
    """
    titles = {name: title for name, (title, _) in models().items()}
    for name, table in results.items():
        print(f"{name}\n{'':24}" + "".join(f"{c:>10}" for c in COLUMNS) + "  splits  to default")
        for model, rows in table["scores"].items():
            mean = np.mean(list(rows.values()), axis=0)
            numbers = "".join(f"{v:10.3f}" for v in mean)
            usual = table["scores"].get("default", {})
            beside = [row[1] - usual[k][1] for k, row in rows.items() if k in usual] or [np.nan]
            line = f"{titles.get(model, model):24}{numbers}{len(rows):8d}"
            print(f"{line}{np.mean(beside):12.3f}")


def main() -> None:
    """Run what is not stored yet, store it after each fit, and print all that is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--only", default=",".join(FILES))
    parser.add_argument("--models", default=",".join(models()))
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = parser.parse_args()
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
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    rows[str(number)] = scored(models()[model][1], split)
                print(name, number, model, np.round(rows[str(number)], 3), flush=True)
                save("uci", results)
    show(results)


if __name__ == "__main__":
    main()

"""The paper's figure 5: evidence and test error against δ on the toy data, for Laplace and for VI.

100 points in three clusters (``_common.toy_data``), 20 tanh units, σ = 1, δ on 21 points of
logspace(-2, 2), ten data sets. Test error on 1,000 further points. The VI curve (5c) is the
evidence of the converged variational Gaussian process.

    python benchmarks/figure5_toy.py [--sets 10] [--skip-vi]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from _common import ToyNetwork, picture, save, timed, toy_data

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.training import NewtonCG

DELTAS = np.logspace(-2, 2, 21)


def curve(inference: str, sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Evidence and test error, each (n_sets, n_deltas)."""
    evidence, error = np.empty((sets, len(DELTAS))), np.empty((sets, len(DELTAS)))
    for seed in range(sets):
        X, y = toy_data(100, seed)
        X_test, y_test = toy_data(1000, 1000 + seed)
        for j, delta in enumerate(DELTAS):
            model = DNN2GPRegressor(
                ToyNetwork, prior_precision=delta, noise_std=1.0, normalize_y=False,
                inference=inference, solver=NewtonCG(tol=1e-6), random_state=seed,
            ).fit(X, y)  # fmt: skip
            evidence[seed, j] = model.log_marginal_likelihood_value_
            error[seed, j] = np.mean((model.predict(X_test) - y_test) ** 2)
    return evidence, error


def summary(name: str, evidence: np.ndarray, error: np.ndarray, seconds: float) -> dict[str, Any]:
    """Print where the curves have their optima."""
    mean, mse = evidence.mean(0), error.mean(0)
    best, least = int(mean.argmax()), int(mse.argmin())
    chosen = evidence.argmax(1)
    picked = float(np.mean([error[i, j] for i, j in enumerate(chosen)]))
    print(
        f"{name}: evidence peaks at δ = {DELTAS[best]:.3g} with {mean[best]:.2f}; test MSE there "
        f"{mse[best]:.4f}, least {mse[least]:.4f} at δ = {DELTAS[least]:.3g}, ratio "
        f"{mse[best] / mse[least]:.3f}; chosen set by set {picked:.4f} ({seconds:.1f} s)"
    )
    return {
        "evidence": mean.tolist(),
        "evidence_standard_error": (evidence.std(0, ddof=1) / len(evidence) ** 0.5).tolist(),
        "test_mse": mse.tolist(),
        "test_mse_standard_error": (error.std(0, ddof=1) / len(error) ** 0.5).tolist(),
        "chosen_prior_precision": float(DELTAS[best]),
        "mse_ratio": float(mse[best] / mse[least]),
        "mse_chosen_set_by_set": picked,
        "seconds": seconds,
    }


def draw(results: dict[str, Any]) -> None:
    """Evidence above, error below, stars at the optima."""
    with picture("figure5_toy", 2, len(results)) as axes:
        for column, (name, r) in zip(axes.T, results.items(), strict=True):
            for axis, key, best in zip(
                column, ("evidence", "test_mse"), (np.argmax, np.argmin), strict=True
            ):
                values, bars = np.array(r[key]), np.array(r[f"{key}_standard_error"])
                axis.plot(DELTAS, values)
                axis.fill_between(DELTAS, values - bars, values + bars, alpha=0.3)
                axis.plot(DELTAS[best(values)], values[best(values)], "*", markersize=12)
                axis.set(xscale="log", xlabel="δ", ylabel=key.replace("_", " "))
            column[0].set_title(name)


def main() -> None:
    """Run, print, store and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--skip-vi", action="store_true")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for inference in ("laplace",) if args.skip_vi else ("laplace", "vi"):

        def run(inference: str = inference) -> tuple[np.ndarray, np.ndarray]:
            return curve(inference, args.sets)

        (evidence, error), seconds = timed(run)
        results[inference] = summary(inference, evidence, error, seconds)
    save("figure5_toy", {"prior_precision": DELTAS.tolist(), "sets": args.sets, **results})
    draw(results)


if __name__ == "__main__":
    main()

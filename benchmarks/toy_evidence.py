"""Does the evidence pick the prior precision that predicts best? The paper's toy figures.

100 points in three clusters, 20 tanh units, σ = 1, δ on 21 points of logspace(-2, 2), 10 data
sets. Published: the mean evidence peaks between δ = 0.4 and 1.6 at about -110, with test MSE about
0.135; at δ = 10 they are about -113.4 and 0.325.

    python benchmarks/toy_evidence.py [--sets 10] [--points 21] [--restarts 1]
"""

from __future__ import annotations

import argparse

import numpy as np
from _common import ToyNetwork, save, timed, toy_data

from sk_dnn2gp import DNN2GPRegressor


def evaluate(delta: float, seed: int, restarts: int) -> tuple[float, float]:
    """Evidence and test MSE of one fit."""
    X, y = toy_data(100, seed)
    X_test, y_test = toy_data(1000, 10_000 + seed)
    model = DNN2GPRegressor(
        ToyNetwork, prior_precision=delta, noise_std=1.0, normalize_y=False,
        n_restarts=restarts, random_state=seed,
    ).fit(X, y)  # fmt: skip
    error = float(np.mean((model.predict(X_test) - y_test) ** 2))
    return model.log_marginal_likelihood_value_, error


def main() -> None:
    """Print and store the two curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--points", type=int, default=21)
    parser.add_argument("--restarts", type=int, default=1)
    args = parser.parse_args()
    deltas = np.logspace(-2, 2, args.points)

    def sweep() -> np.ndarray:
        return np.array(
            [[evaluate(d, s, args.restarts) for s in range(args.sets)] for d in deltas]
        ).mean(axis=1)

    curves, seconds = timed(sweep)
    print(f"{'delta':>8} {'evidence':>10} {'test MSE':>10}")
    for delta, (evidence, error) in zip(deltas, curves, strict=True):
        print(f"{delta:8.3f} {evidence:10.2f} {error:10.4f}")
    best = int(curves[:, 0].argmax())
    print(
        f"peak: evidence {curves[best, 0]:.2f} at delta {deltas[best]:.3f}, "
        f"test MSE {curves[best, 1]:.4f} (published: about -110, 0.4 to 1.6, 0.135)"
    )
    print(f"{args.sets * len(deltas)} fits in {seconds:.1f} s")
    save(
        "toy_evidence",
        {
            "delta": deltas.tolist(),
            "evidence": curves[:, 0].tolist(),
            "test_mse": curves[:, 1].tolist(),
            "sets": args.sets,
            "seconds": seconds,
        },
    )


if __name__ == "__main__":
    main()

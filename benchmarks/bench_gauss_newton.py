"""How fast is a Gauss-Newton fit, against Adam and against its own operation count?

Toy: the paper's 100 points, 20 tanh units, δ = 0.63, σ = 1; 10,000 full-batch Adam epochs in plain
torch from the same kind of start (step 0.5, halved on a plateau). Wine: 1439 × 11, two hidden
layers of 20, δ = 24, σ = 0.64; operations of the linear algebra at the measured GEMM rate.

    python benchmarks/bench_gauss_newton.py [--epochs 10000] [--skip-wine]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from _common import ToyNetwork, gemm_rate, red_wine, save, timed, toy_data

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.training import GaussNewtonLM


def fit(
    X: Any, y: Any, hidden: tuple[int, ...], delta: float, sigma: float, tol: float = 1e-8
) -> DNN2GPRegressor:
    """One Gauss-Newton fit with everything given; the toy's two inputs are taken as they are."""
    network = {"net": ToyNetwork} if X.shape[1] == 2 else {"hidden_layer_sizes": hidden}
    return DNN2GPRegressor(
        **network, prior_precision=delta, noise_std=sigma, normalize_y=False, n_restarts=1,
        random_state=0, solver=GaussNewtonLM(tol=tol),
    ).fit(X, y)  # fmt: skip


def loss(module: torch.nn.Module, X: Any, y: Any, delta: float, sigma: float) -> torch.Tensor:
    """Σ (y-f)²/2σ² + δ/2 ‖w‖², without the constant."""
    misfit = (module(X).squeeze(-1) - y).square().sum() / (2 * sigma**2)
    return misfit + delta / 2 * sum(p.square().sum() for p in module.parameters())


def adam(X: Any, y: Any, delta: float, epochs: int) -> float:
    """Train by Adam and return the least loss seen."""
    torch.manual_seed(0)
    module = MLP(X.shape[1], (20,), 1, "tanh").double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=100, min_lr=1e-6
    )
    best = float("inf")
    for _ in range(epochs):
        optimizer.zero_grad()
        value = loss(module, X, y, delta, 1.0)
        value.backward()
        optimizer.step()
        best = min(best, value.item())
        schedule.step(value.item())
    return best


def toy(epochs: int) -> dict[str, Any]:
    """Side by side on one toy set, to the default gradient tolerance and two looser ones."""
    X, y = toy_data(100, 0)
    fit(X, y, (20,), 0.63, 1.0)  # warm-up
    inputs, targets = torch.tensor(X), torch.tensor(y)
    adam_loss, adam_seconds = timed(lambda: adam(inputs, targets, 0.63, epochs))
    print(f"Adam:                    loss {adam_loss:.9f}, {epochs} epochs, {adam_seconds:.4f} s")
    result: dict[str, Any] = {
        "adam_loss": adam_loss, "adam_seconds": adam_seconds, "adam_epochs": epochs,
    }  # fmt: skip
    for tol in (1e-8, 1e-6, 1e-5):

        def newton(tol: float = tol) -> DNN2GPRegressor:
            return fit(X, y, (20,), 0.63, 1.0, tol)

        model, seconds = timed(newton, repeats=7)
        with torch.no_grad():
            value = loss(model.module_, inputs, targets, 0.63, 1.0).item()
        print(
            f"Gauss-Newton, tol={tol:.0e}: loss {value:.9f}, {model.n_iter_} steps, "
            f"{seconds:.4f} s; Adam / Gauss-Newton: time {adam_seconds / seconds:.1f}, "
            f"loss difference {adam_loss - value:.3e}"
        )
        result[f"newton_tol_{tol:.0e}"] = {
            "loss": value, "seconds": seconds, "steps": model.n_iter_,
        }  # fmt: skip
    return result


def wine() -> dict[str, Any]:
    """Count operations, measure, and print the breakdown."""
    X, y, X_test, _ = red_wine()
    model = fit(X, y, (20, 20), 24.0, 0.64)  # warm-up
    model, fit_seconds = timed(lambda: fit(X, y, (20, 20), 24.0, 0.64), repeats=3)
    _, predict_seconds = timed(lambda: model.predict(X_test, return_std=True), repeats=3)
    N, P, steps, rate = len(X), model.linear_model_.n_params, model.n_iter_, gemm_rate()
    # Multiply-adds; a symmetric product is counted whole, as a GEMM does it.
    operations = {
        "GGN of the steps": steps * N * P**2,
        "Cholesky of the steps": steps * P**3 / 3,
        "posterior": N * P**2 + P**3 / 3,
        "predictions": len(X_test) * P**2,
    }
    inputs = torch.tensor(X)
    targets = torch.tensor(y)

    def network_pass() -> None:
        module = model.module_
        torch.autograd.grad(loss(module, inputs, targets, 24.0, 0.64), list(module.parameters()))

    passes_seconds = timed(network_pass, repeats=20)[1] * (steps + 1)
    print(f"N={N} P={P} steps={steps}, {rate / 1e9:.1f} G multiply-adds a second")
    for name, count in operations.items():
        print(f"{name:24} {count / 1e9:8.3f} G  {count / rate:8.4f} s")
    algebra = sum(operations.values()) / rate
    measured = fit_seconds + predict_seconds
    print(f"{'network passes':24} {'':10}  {passes_seconds:8.4f} s")
    print(f"measured: fit {fit_seconds:.4f} s, predictions {predict_seconds:.4f} s")
    print(f"(measured - passes) / algebra: {(measured - passes_seconds) / algebra:.2f}")
    return {
        "operations": operations,
        "rate": rate,
        "algebra_seconds": algebra,
        "passes_seconds": passes_seconds,
        "fit_seconds": fit_seconds,
        "predict_seconds": predict_seconds,
        "steps": steps,
    }


def main() -> None:
    """Run both questions and store the answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--skip-wine", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {"toy": toy(args.epochs)}
    if not args.skip_wine:
        result["wine"] = wine()
    save("bench_gauss_newton", result)


if __name__ == "__main__":
    main()

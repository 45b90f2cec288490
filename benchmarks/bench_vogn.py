"""What a VOGN step costs beside an Adam step on the same batch.

LeNet-5 on 28 × 28 images and an MLP 784-512-512-10, batch 128, one draw of the weights a step,
single precision. Steps of both are timed in turn, and the least of each is taken.

    python benchmarks/bench_vogn.py [--steps 30]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _common import save
from torch import Tensor, nn

from sk_dnn2gp.networks import MLP, LeNet5
from sk_dnn2gp.optim import VOGN

BATCH = 128


def stepper(module: nn.Module, optimizer: torch.optim.Optimizer, X: Tensor, y: Tensor) -> Callable:
    """One step on the batch."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(module(X), y)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def compare(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], steps: int) -> dict:
    """Least seconds of a step of each optimiser, timed in turn."""
    torch.manual_seed(0)
    X, y = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    pairs: dict[str, Callable] = {}
    for kind in ("adam", "vogn"):
        module = make()
        if kind == "adam":
            optimizer: Any = torch.optim.Adam(module.parameters(), lr=1e-3)
        else:
            optimizer = VOGN(module.parameters(), lr=1e-3, n_data=10_000, random_state=0)
        pairs[kind] = stepper(module, optimizer, X, y)
    seconds = dict.fromkeys(pairs, float("inf"))
    for _ in range(steps):
        for kind, step in pairs.items():
            start = time.perf_counter()
            step()
            seconds[kind] = min(seconds[kind], time.perf_counter() - start)
    ratio = seconds["vogn"] / seconds["adam"]
    print(
        f"{name:18} Adam {1e3 * seconds['adam']:.2f} ms, VOGN {1e3 * seconds['vogn']:.2f} ms, "
        f"ratio {ratio:.2f}"
    )
    return {**seconds, "ratio": ratio}


def main() -> None:
    """Print and store the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    results = {
        "lenet5": compare("LeNet-5", LeNet5, (1, 28, 28), args.steps),
        "784-512-512-10": compare(
            "784-512-512-10",
            lambda: MLP(784, (512, 512), 10, "relu", dtype=torch.float32),
            (784,),
            args.steps,
        ),
    }
    save("bench_vogn", results)


if __name__ == "__main__":
    main()

"""What a VOGN step costs beside an Adam step on the same batch.

LeNet-5 on 28 × 28 images and an MLP 784-512-512-10, batch 128, one draw of the weights a step,
single precision. Steps of both are timed in turn, and the least of each is taken, in each of a
number of runs; CLOCK=process_time takes the processor's time. Memory is what a hundred steps add to
a process that took steps of either with a small network before; glibc is told to give large arrays
pages of their own, so that holes in its heap do not count.

    python benchmarks/bench_vogn.py [--steps 60] [--runs 6]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import save
from torch import Tensor, nn

from sk_dnn2gp.networks import MLP, LeNet5
from sk_dnn2gp.optim import VOGN

BATCH = 128
KINDS = ("adam", "vogn")
CLOCK = getattr(time, os.environ.get("CLOCK", "perf_counter"))


def stepper(module: nn.Module, optimizer: torch.optim.Optimizer, X: Tensor, y: Tensor) -> Callable:
    """One step on the batch."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(module(X), y)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet5": (LeNet5, (1, 28, 28)),
    "784-512-512-10": (lambda: MLP(784, (512, 512), 10, "relu", dtype=torch.float32), (784,)),
}
SMALL = (
    lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(676, 10)),
    (1, 28, 28),
)


def prepared(kind: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable:
    """A step of one of the optimisers on a batch of its own."""
    torch.manual_seed(0)
    X, y = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    module = make()
    if kind == "adam":
        optimizer: Any = torch.optim.Adam(module.parameters(), lr=1e-3)
    else:
        optimizer = VOGN(module.parameters(), lr=1e-3, n_data=10_000, random_state=0)
    return stepper(module, optimizer, X, y)


def compare(name: str, steps: int, runs: int) -> dict:
    """Least seconds of a step of each optimiser in every run, and MiB of each alone."""
    found = [one_run(name, steps) for _ in range(runs)]
    ratios = [run["vogn"] / run["adam"] for run in found]
    seconds = {kind: min(run[kind] for run in found) for kind in KINDS}
    memory = {kind: grown(name, kind) for kind in KINDS}
    memory_ratio = memory["vogn"] / memory["adam"]
    print(
        f"{name:15} Adam {1e3 * seconds['adam']:.2f} ms, VOGN {1e3 * seconds['vogn']:.2f} ms, "
        f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}; {memory['adam']:.1f} and "
        f"{memory['vogn']:.1f} MiB, ratio {memory_ratio:.2f}"
    )
    return {"seconds": seconds, "ratios": ratios, "MiB": memory, "memory_ratio": memory_ratio}


def one_run(name: str, steps: int) -> dict[str, float]:
    """Least seconds of a step of each optimiser, timed in turn."""
    pairs = {kind: prepared(kind, *NETWORKS[name]) for kind in KINDS}
    seconds = dict.fromkeys(pairs, float("inf"))
    for _ in range(steps):
        for kind, step in pairs.items():
            start = CLOCK()
            step()
            seconds[kind] = min(seconds[kind], CLOCK() - start)
    return seconds


def grown(name: str, kind: str) -> float:
    """What ``--memory`` prints, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, kind]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def measure_memory(name: str, kind: str) -> None:
    """Print the MiB that the high-water mark (Linux) rises by in a hundred steps."""
    for first in KINDS:
        prepared(first, *SMALL)()
    Path("/proc/self/clear_refs").write_text("5")  # the mark is what is resident now
    before = high_water_mark()
    step = prepared(kind, *NETWORKS[name])
    for _ in range(100):
        step()
    print(high_water_mark() - before)


def high_water_mark() -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Print and store the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--memory", nargs=2, metavar=("NETWORK", "KIND"), help="measure one alone")
    args = parser.parse_args()
    if args.memory:
        measure_memory(*args.memory)
        return
    results = {name: compare(name, args.steps, args.runs) for name in NETWORKS}
    save("bench_vogn", {"clock": CLOCK.__name__, **results})


if __name__ == "__main__":
    main()

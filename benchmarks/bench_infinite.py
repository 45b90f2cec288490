"""How fast are the infinite kernels, against X Xᵀ, neural-tangents and cnn-gp?

(1) NNGP ReLU of depth 3 on 4,000 × 784 against the time of X Xᵀ and of the elementwise passes its
recursion counts; (2) dense 2,000 × 784, a ConvNet of seven 3 × 3 layers on 200 images of 28 × 28
and the 32-layer ResNet on 50, each also as a tangent kernel ("ntk"), against peers in environments
of their own, every one in a process of its own, rounds alternating, minima compared, matrices
compared with neural-tangents'; CLOCK=process_time takes the processor's time; (3) with
``--large`` the ResNet's 1,000 × 1,000 with its progress bar and peak memory.

    python benchmarks/bench_infinite.py --neural-tangents PYTHON --cnn-gp FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import save, timed

from sk_dnn2gp import NNGPKernel, ResNetKernel

HERE = Path(__file__).parent
# For each activation: a product of variances, a product subtracted, a clamp, a negation, a product
# added, a scaling; and for its weights a scaling and a sum.
LIGHT_PASSES = 8
CASES = ("dense", "convnet", "resnet", "dense ntk", "convnet ntk", "resnet ntk")


def against_gram(n: int, rounds: int) -> dict[str, float]:
    """NNGP of depth 3 against 3 X Xᵀ + the passes, on half of the entries, in cache as it is."""
    X = np.random.RandomState(0).randn(n, 784)
    kernel = NNGPKernel(3)
    block = torch.rand(512, 256, dtype=torch.float64)
    out = torch.empty_like(block)
    times: dict[str, list[float]] = {"gram": [], "kernel": [], "light": [], "sqrt": [], "atan2": []}
    for _ in range(rounds):
        times["gram"].append(timed(lambda: X @ X.T)[1])
        times["kernel"].append(timed(lambda: kernel(X))[1])
        times["light"].append(timed(lambda: torch.mul(block, block, out=out), 50)[1])
        times["sqrt"].append(timed(lambda: torch.sqrt(block, out=out), 50)[1])
        times["atan2"].append(timed(lambda: torch.atan2(block, block, out=out), 50)[1])
    best = {name: min(seconds) for name, seconds in times.items()}
    layer = LIGHT_PASSES * best["light"] + best["sqrt"] + best["atan2"]
    passes = 3 * layer * (n * (n + 1) / 2) / block.numel()
    ratio, budget = best["kernel"] / best["gram"], 3 * best["gram"] + passes
    print(
        f"NNGP ReLU depth 3, {n} × 784: {best['kernel']:.2f} s; X Xᵀ {best['gram']:.2f} s (ratio"
        f" {ratio:.2f}); counted passes {passes:.2f} s; 3 X Xᵀ + passes = {budget:.2f} s:"
        f" {'inside' if best['kernel'] <= budget else 'OUTSIDE'}"
    )
    return {"n": n, **best, "passes": passes, "budget": budget, "ratio_to_gram": ratio}


def peer(who: str, python: str, case: str, output: Path, folder: list[str]) -> list[float]:
    script = str(HERE / "_infinite_peer.py")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if who == "ours":
        environment["PYTHONPATH"] = str(HERE.parent)
    command = [python, script, who, case, "3", str(output), *folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{who} failed on {case}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def against_peers(case: str, peers: dict[str, tuple], rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {who: [] for who in peers}
    row: dict[str, Any] = {"case": case}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for who, (python, extra) in peers.items():
                times[who] += peer(who, python, case, Path(folder) / f"{who}.npy", extra)
        K = {who: np.load(Path(folder) / f"{who}.npy") for who in peers}
    for who, seconds in times.items():
        row[who] = {"min": min(seconds), "median": float(np.median(seconds))}
    for who in [w for w in peers if w != "ours"]:
        row[who]["ratio"] = row[who]["min"] / row["ours"]["min"]
    if "neural-tangents" in K:
        ours = K["ours"]
        row["relative_difference"] = float(np.abs(K["neural-tangents"] / ours - 1).max())
    parts = [f"{w} {row[w]['min']:.3f} s" for w in peers]
    parts += [f"{w} / ours {row[w]['ratio']:.1f}" for w in peers if w != "ours"]
    print(f"{case}: {', '.join(parts)}; difference {row.get('relative_difference')}", flush=True)
    return row


def large(n: int, dtype: torch.dtype) -> dict[str, Any]:
    """The ResNet's matrix of n images with a memory limit of 256 MiB, and the peak of it."""
    X = np.random.RandomState(0).rand(n, 784)
    kernel = ResNetKernel(image_shape=(1, 28, 28), memory_limit=256, verbose=1, dtype=dtype)
    kernel(X[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    K, seconds = timed(lambda: kernel(X))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    result = K.nbytes / 2**20
    print(f"ResNet-32 {n} × {n} ({dtype}): {seconds:.0f} s, peak {peak:.0f} MiB more (limit 256, "
          f"result {result:.0f})")  # fmt: skip
    return {"n": n, "dtype": str(dtype), "seconds": seconds, "peak_mib": peak, "result_mib": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neural-tangents", metavar="PYTHON")
    parser.add_argument("--cnn-gp", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--large", type=int, default=0, metavar="N")
    args = parser.parse_args()
    result: dict[str, Any] = {"gram": against_gram(4000, max(3, args.rounds)), "peers": []}
    for case in args.cases:
        peers: dict[str, tuple] = {"ours": (sys.executable, [])}
        if args.neural_tangents:
            peers["neural-tangents"] = (args.neural_tangents, [])
        if args.cnn_gp and case in ("convnet", "resnet"):
            peers["cnn-gp"] = (sys.executable, [args.cnn_gp])
        result["peers"].append(against_peers(case, peers, args.rounds))
        save("bench_infinite", result)
    if args.large:
        result["large"] = large(args.large, torch.float64)
    save("bench_infinite", result)


if __name__ == "__main__":
    main()

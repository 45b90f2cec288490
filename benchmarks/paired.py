"""Is every case of four benchmarks as fast as it was at another commit?

    python benchmarks/paired.py --before DIR [--rounds 7] [--only PART ...]

DIR is a checkout of that commit. The cases of bench_ntk, bench_gauss_newton, bench_infinite and
bench_vogn are prepared by either checkout's own scripts and package, each in a process of its own
with one thread, and timed in turn: a round is one of each, repeated for 0.3 s at least, and who
begins changes from round to round. Times are the processor's, which other work on the machine
changes less than the wall's. The ratio is that of the medians, after / before; beside it stand the
least and the greatest ratio of a round, and how far the two results are apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
# Seconds that a round of one side lasts at least.
_LONG_ENOUGH = 0.3
# What is to be timed, and of its result a number and how many steps were taken.
Case = tuple[Callable[[], Any], Callable[[Any], tuple[float, int]]]


def norm(K: Any) -> tuple[float, int]:
    return float(np.linalg.norm(K)), 0


def ntk() -> Iterator[tuple[str, Callable[[], Case]]]:
    import bench_ntk

    for dtype in ("float32", "float64"):
        for case, (layers, shape, n) in bench_ntk.CASES.items():

            def make(case=case, layers=layers, shape=shape, n=n, dtype=dtype) -> Case:
                arrays = bench_ntk.make_arrays(layers, shape, n)
                return bench_ntk.ours(case, arrays, dtype, n), norm

            yield f"{case}, {dtype}", make


def gauss_newton() -> Iterator[tuple[str, Callable[[], Case]]]:
    """As the benchmark of either commit fits, and from one start."""
    import bench_gauss_newton as bench

    def fits(data: Callable[[], Any], hidden: tuple[int, ...], *setting: float) -> Case:
        X, y = data()[:2]
        return lambda: bench.fit(X, y, hidden, *setting), loss_of(X, y, *setting[:2])

    def from_one_start(data: Callable[[], Any], hidden: tuple[int, ...], *setting: float) -> Case:
        X, y = data()[:2]
        torch.manual_seed(0)
        net = bench.MLP(X.shape[1], hidden, 1, "tanh").double()
        model = regressor(net, *setting)
        return lambda: model.fit(X, y), loss_of(X, y, *setting[:2])

    def loss_of(X: Any, y: Any, *setting: float) -> Callable[[Any], tuple[float, int]]:
        def found(model: Any) -> tuple[float, int]:
            with torch.no_grad():
                data = torch.tensor(X), torch.tensor(y)
                return float(bench.loss(model.module_, *data, *setting)), model.n_iter_

        return found

    def predictions() -> Case:
        X, y, X_test, _ = bench.red_wine()
        model = bench.fit(X, y, (20, 20), 24.0, 0.64)
        return lambda: model.predict(X_test, return_std=True)[1], norm

    import torch

    for name, way in (("fit", fits), ("fit from one start", from_one_start)):
        for tol in (1e-8, 1e-6, 1e-5):
            toy = partial(bench.toy_data, 100, 0), (20,), 0.63, 1.0, tol
            yield f"toy {name}, tol={tol:.0e}", partial(way, *toy)
        yield f"wine {name}", partial(way, bench.red_wine, (20, 20), 24.0, 0.64, 1e-8)
    yield "wine predictions", predictions


def regressor(net: Any, delta: float, sigma: float, tol: float) -> Any:
    """By damped Gauss-Newton steps from a network's own weights, under either commit's names."""
    from sk_dnn2gp import DNN2GPRegressor

    try:
        from sk_dnn2gp.training import GaussNewtonLM

        solver: dict[str, Any] = {"solver": GaussNewtonLM(tol=tol)}
    except ImportError:
        solver = {"tol": tol}
    fixed = {"prior_precision": delta, "noise_std": sigma, "normalize_y": False}
    return DNN2GPRegressor(net, **fixed, n_restarts=1, random_state=0, **solver)


def infinite() -> Iterator[tuple[str, Callable[[], Case]]]:
    import _infinite_peer as peer

    import sk_dnn2gp.kernels as kernels

    options = {"sigma_w2": peer.W2, "sigma_b2": peer.B2}
    images = {"image_shape": (1, 28, 28), **options}
    X = np.random.RandomState(0).randn(4000, 784)
    kinds = {
        "dense": lambda: kernels.NNGPKernel(3, **options),
        "dense ntk": lambda: kernels.InfiniteNTKKernel(3, **options),
        "convnet": lambda: kernels.ConvNetKernel(7, **images),
        "resnet": lambda: kernels.ResNetKernel(**images),
    }
    yield "NNGP of depth 3, 4000 × 784", lambda: (lambda: kernels.NNGPKernel(3)(X), norm)
    for name, kernel in kinds.items():
        inputs = peer.inputs(name.split()[0])
        yield name, lambda kernel=kernel, inputs=inputs: (lambda: kernel()(inputs), norm)


def vogn() -> Iterator[tuple[str, Callable[[], Case]]]:
    import bench_vogn

    for name, network in bench_vogn.NETWORKS.items():
        yield (
            name,
            lambda network=network: (
                bench_vogn.prepared("vogn", *network),
                lambda loss: (float(loss), 1),
            ),
        )


BENCHMARKS = {
    "bench_ntk": ntk, "bench_gauss_newton": gauss_newton, "bench_infinite": infinite,
    "bench_vogn": vogn,
}  # fmt: skip


def cases() -> dict[str, Callable[[], Case]]:
    return {f"{b}: {name}": make for b, each in BENCHMARKS.items() for name, make in each()}


# ---------------------------------------------------------------------------------- processes


def serve() -> None:
    """Answer requests, one a line: list the cases, prepare one, or time a round of it."""
    import torch

    import sk_dnn2gp

    torch.set_num_threads(1)
    known, out = cases(), sys.stdout
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            if request["do"] == "list":
                answer: Any = {"package": sk_dnn2gp.__file__, "cases": list(known)}
            elif request["do"] == "prepare":
                run, number = known[request["case"]]()
                value, steps = number(run())
                times = max(1, round(_LONG_ENOUGH / timed(run, 1)))
                answer = {"value": value, "steps": steps}
            else:
                answer = timed(run, times)
        print(json.dumps(answer), file=out, flush=True)


def timed(run: Callable[[], Any], times: int) -> float:
    """Processor seconds of one of so many calls."""
    start = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - start) / times


class Checkout:
    """A checkout, in a process of its own."""

    def __init__(self, root: Path) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        path = os.pathsep.join([str(root), str(root / "benchmarks")])
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(HERE), "--serve"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root,
            env={**os.environ, **threads, "PYTHONPATH": path},
        )  # fmt: skip
        listed = self.ask(do="list")
        if not Path(listed["package"]).is_relative_to(root):
            raise SystemExit(f"{root} would be timed by the package of {listed['package']}.")
        self.cases = listed["cases"]

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A process ended with {self.process.wait()} at {request}.")
        return json.loads(line)


def compare(case: str, after: Checkout, before: Checkout, rounds: int) -> dict[str, Any]:
    sides = {"after": after, "before": before}
    first = {name: side.ask(do="prepare", case=case) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in sorted(sides, reverse=bool(turn % 2)):
            seconds[name].append(sides[name].ask(do="run"))
    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    ratio = medians["after"] / medians["before"]
    each = np.divide(seconds["after"], seconds["before"])
    apart = abs(first["after"]["value"] / first["before"]["value"] - 1.0)
    steps = {name: answer["steps"] for name, answer in first.items()}
    print(
        f"{case}: {1e3 * medians['after']:.3f} ms, before {1e3 * medians['before']:.3f} ms, "
        f"ratio {ratio:.3f} ({each.min():.2f} to {each.max():.2f}); apart {apart:.0e}"
        + (f"; {steps['after']} steps for {steps['before']}" if steps["after"] > 1 else ""),
        flush=True,
    )
    return {
        "ratio": ratio, "medians": medians, "seconds": seconds, "apart": apart, "steps": steps,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of cases")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    if args.before is None:
        parser.error("--before names a checkout of the other commit.")
    root = args.before.resolve()
    commit = subprocess.run(["git", "-C", root, "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True).stdout.strip()  # fmt: skip
    after, before = Checkout(HERE.parents[1]), Checkout(root)
    from _common import RESULTS, save

    stored = RESULTS / "paired.json"
    known = json.loads(stored.read_text()) if stored.exists() else {}
    kept = known["cases"] if known.get("before") == commit else {}  # cases not run now stay
    for case in after.cases:
        if any(part in case for part in args.only):
            kept[case] = compare(case, after, before, args.rounds)
            save("paired", {"before": commit, "cases": kept})


if __name__ == "__main__":
    main()

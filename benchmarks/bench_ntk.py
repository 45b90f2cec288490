"""How fast is the empirical tangent kernel, against three ways to compute the same matrix?

Peers: (a) ``vmap(jacrev)`` and one matrix product, in torch; (b) laplace-torch's FunctionalLaplace
Gram; (c) neural-tangents' empirical kernel with structured derivatives. Every method runs in a
process of its own, kept alive and warm; rounds alternate between them, each long enough for short
cases to be called many times; minimum and median over the rounds are stored, ratios of minima
printed. Weights and inputs are the same arrays for all, and results are compared. Peak memory is
the resident memory's high water mark above what was resident before the call (Linux).

    python benchmarks/bench_ntk.py --laplace PYTHON --neural-tangents PYTHON

where PYTHON is the interpreter of an environment that holds the peer (jax 0.4.38 for
neural-tangents). A peer that is not named is left out. With both the whole takes less than five
minutes on two cores. The dense ways need N × K × P numbers: a case whose Jacobian exceeds
``--max-dense`` GiB is timed for them on fewer samples and marked with *. Their time for N is then
bounded from below: the Jacobian's by N / n; the product of ``vmap(jacrev)`` by its operations at
the measured rate of a large matrix product; laplace-torch as a whole by N / n.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# name: (layers, input shape, N). Layers: ("dense", width), ("conv", channels, kernel, stride,
# padding), ("relu",), ("tanh",), ("pool",), ("flatten",), ("mean",), ("residual", [layers]).
_RES = [("conv", 16, 3, 1, "SAME"), ("relu",), ("conv", 16, 3, 1, "SAME")]
_RES32 = [("conv", 32, 3, 1, "SAME"), ("relu",), ("conv", 32, 3, 1, "SAME")]


def _mlp(*widths: int, activation: str = "relu") -> list[tuple]:
    layers: list[tuple] = []
    for width in widths:
        layers += [("dense", width), (activation,)]
    return layers[:-1]


CASES: dict[str, tuple[list[tuple], tuple[int, ...], int]] = {
    "MLP 2-20-1, N=100": (_mlp(20, 1, activation="tanh"), (2,), 100),
    "MLP 5-10-3 full, N=20": (_mlp(10, 3, activation="tanh"), (5,), 20),
    "MLP 50-256-256-1, N=1000": (_mlp(256, 256, 1), (50,), 1000),
    "MLP 784-512-512-10 full, N=200": (_mlp(512, 512, 10), (784,), 200),
    "LeNet5 full, N=300": (
        [("conv", 6, 5, 1, "SAME"), ("tanh",), ("pool",), ("conv", 16, 5, 1, "VALID"), ("tanh",),
         ("pool",), ("conv", 120, 5, 1, "VALID"), ("tanh",), ("flatten",), ("dense", 84),
         ("tanh",), ("dense", 10)], (28, 28, 1), 300),
    "ResNet full, N=100": (
        [("conv", 16, 3, 1, "SAME"), ("relu",), ("residual", _RES), ("relu",),
         ("conv", 32, 3, 1, "SAME"), ("pool",), ("relu",), ("residual", _RES32), ("relu",),
         ("mean",), ("dense", 10)], (16, 16, 3), 100),
}  # fmt: skip


def make_arrays(layers: list[tuple], shape: tuple[int, ...], n: int) -> dict[str, np.ndarray]:
    """Inputs (channels last) and weights: dense (in, out), conv (h, w, in, out)."""
    rng = np.random.default_rng(0)
    arrays = {"X": rng.normal(size=(n, *shape))}

    def add(layers: list[tuple], shape: tuple[int, ...]) -> tuple[int, ...]:
        for kind, *args in layers:
            number = len(arrays) // 2
            if kind == "dense":
                fan_in, size, shape = shape[0], (shape[0], args[0]), (args[0],)
            elif kind == "conv":
                channels, k, stride, padding = args
                fan_in, size = k * k * shape[2], (k, k, shape[2], channels)
                lost = 0 if padding == "SAME" else k - 1
                shape = tuple(-(-(s - lost) // stride) for s in shape[:2]) + (channels,)
            else:
                shape = _shape_after(kind, args, shape, add)
                continue
            arrays[f"W{number}"] = rng.normal(size=size) / np.sqrt(fan_in)
            arrays[f"b{number}"] = 0.1 * rng.normal(size=size[-1])
        return shape

    add(layers, shape)
    return arrays


def _shape_after(kind, args, shape, add):
    if kind == "residual":
        return add(args[0], shape)
    if kind == "pool":
        return (shape[0] // 2, shape[1] // 2, shape[2])
    if kind == "flatten":
        return (int(np.prod(shape)),)
    return (shape[-1],) if kind == "mean" else shape


# ---------------------------------------------------------------- torch: ours, (a) and (b)


def torch_network(layers: list[tuple], arrays: dict[str, np.ndarray], dtype):
    """The case as a torch module (channels first)."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return x + self.body(x)

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    class Flatten(nn.Module):  # channels last, as in jax
        def forward(self, x):
            return x.permute(0, 2, 3, 1).flatten(1)

    plain = {"relu": nn.ReLU, "tanh": nn.Tanh, "flatten": Flatten, "mean": Mean}
    counter = iter(range(10**6))

    def build(layers):
        found = []
        for kind, *args in layers:
            if kind == "dense":
                i = next(counter)
                W = torch.tensor(arrays[f"W{i}"].T.copy())
                layer = nn.Linear(W.shape[1], W.shape[0])
            elif kind == "conv":
                i = next(counter)
                W = torch.tensor(arrays[f"W{i}"].transpose(3, 2, 0, 1).copy())
                padding = "same" if args[3] == "SAME" else 0
                layer = nn.Conv2d(W.shape[1], W.shape[0], args[1], args[2], padding)
            else:
                found.append(
                    Residual(build(args[0])) if kind == "residual"
                    else nn.AvgPool2d(2) if kind == "pool" else plain[kind]()
                )  # fmt: skip
                continue
            layer.weight.data, layer.bias.data = W, torch.tensor(arrays[f"b{i}"])
            found.append(layer)
        return nn.Sequential(*found)

    return build(layers).to(dtype).eval()


def _torch_case(case: str, arrays: dict[str, np.ndarray], dtype: str, n: int):
    import torch

    kind = getattr(torch, dtype)
    X = torch.tensor(arrays["X"][:n])
    X = X.permute(0, 3, 1, 2).contiguous() if X.ndim == 4 else X
    return torch_network(CASES[case][0], arrays, kind), X.to(kind)


def ours(case, arrays, dtype, n):
    from sk_dnn2gp.linearize import Linearization

    net, X = _torch_case(case, arrays, dtype, n)
    lin = Linearization(net)
    return lambda: lin.gram(X).numpy()


def vmap_jacrev(case, arrays, dtype, n):
    import torch
    from torch.func import functional_call, jacrev, vmap

    net, X = _torch_case(case, arrays, dtype, n)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    jacobian = vmap(jacrev(lambda w, x: functional_call(net, w, (x[None],))[0]), (None, 0))

    def run():
        parts = [j.flatten(2) for j in jacobian(weights, X).values()]
        J = torch.cat(parts, dim=2).flatten(0, 1)
        del parts
        start = time.perf_counter()
        K = (J @ J.mT).numpy()
        run.product = time.perf_counter() - start
        return K

    return run


def laplace(case, arrays, dtype, n):
    import torch
    from laplace import FunctionalLaplace
    from laplace.curvature import CurvlinopsGGN

    torch.set_default_dtype(getattr(torch, dtype))
    net, X = _torch_case(case, arrays, dtype, n)
    model = FunctionalLaplace(net, "regression", n_subset=n, backend=CurvlinopsGGN)

    def run():  # its own loop over batches, with one batch
        J, _ = model._jacobians(X)
        return model._kernel_batch(J, X).detach().numpy()

    return run


# ---------------------------------------------------------------- jax: (c)


def neural_tangents(case, arrays, dtype, n):
    import jax
    from jax import numpy as jnp
    from jax._src.interpreters import ad as internals
    from jax.interpreters import ad

    for name in dir(internals):  # neural-tangents 0.6.5 looks for some of them in jax.interpreters
        if name not in dir(ad):
            setattr(ad, name, getattr(internals, name))
    ad.config = jax.config
    import neural_tangents as nt

    jax.config.update("jax_enable_x64", dtype == "float64")
    weights = {k: jnp.asarray(v, dtype) for k, v in arrays.items() if k != "X"}
    X = jnp.asarray(arrays["X"][:n], dtype)

    def forward(weights, x):
        counter = iter(range(10**6))
        return _jax_layers(CASES[case][0], weights, x, counter)

    kernel = nt.empirical_ntk_fn(
        forward, trace_axes=(), vmap_axes=0,
        implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES,
    )  # fmt: skip
    kernel = jax.jit(kernel, static_argnums=1)

    def run():
        K = np.asarray(kernel(X, None, weights).block_until_ready())
        N, _, K_, _ = K.shape
        return K.transpose(0, 2, 1, 3).reshape(N * K_, N * K_)

    return run


def _jax_layers(layers, weights, x, counter):
    import jax
    from jax import numpy as jnp

    for kind, *args in layers:
        if kind == "dense":
            i = next(counter)
            x = x @ weights[f"W{i}"] + weights[f"b{i}"]
        elif kind == "conv":
            i = next(counter)
            x = jax.lax.conv_general_dilated(
                x, weights[f"W{i}"], (args[2], args[2]), args[3],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ) + weights[f"b{i}"]  # fmt: skip
        elif kind == "residual":
            x = x + _jax_layers(args[0], weights, x, counter)
        elif kind == "pool":
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
        elif kind == "flatten":
            x = x.reshape(len(x), -1)
        elif kind == "mean":
            x = x.mean((1, 2))
        else:
            x = jnp.tanh(x) if kind == "tanh" else jnp.maximum(x, 0)
    return x


METHODS = {
    "ours": ours, "vmap(jacrev)": vmap_jacrev, "laplace": laplace,
    "neural-tangents": neural_tangents,
}  # fmt: skip


# ---------------------------------------------------------------- processes


def serve(method: str) -> None:
    """Answer requests, one a line: prepare a case, or time one run of it."""
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                arrays = dict(np.load(request["arrays"]))
                run = METHODS[method](request["case"], arrays, request["dtype"], request["n"])
                run()
                with _memory() as used:
                    start = time.perf_counter()
                    result = run()
                    first = time.perf_counter() - start
                times = max(1, int(_LONG_ENOUGH / first))
                np.save(request["result"], result)
                del result
                answer = {"peak_mib": used[0], "seconds": first}
            else:
                start = time.perf_counter()
                for _ in range(times):
                    run()
                seconds = (time.perf_counter() - start) / times
                answer = {"seconds": seconds, "product": getattr(run, "product", 0.0)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print("@" + json.dumps(answer), flush=True)


@contextlib.contextmanager
def _memory():
    """MiB of resident memory at its highest above the present; NaN where that is not known."""
    used = [float("nan")]
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except (OSError, AttributeError):
        yield used
        return
    yield used
    used[0] = _status("VmHWM") - before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


class Worker:
    """A method in a process of its own, for one precision."""

    def __init__(self, method: str, python: str, threads: int) -> None:
        root = str(Path(__file__).resolve().parents[1])
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONPATH": root}
        if threads == 1:
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        self.process = subprocess.Popen(
            [python, __file__, "--serve", method],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip

    def ask(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        return {"error": f"process ended with {self.process.poll()}"}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def gemm_rate(dtype: str) -> float:
    """GFLOP/s of a 2000 × 2000 product in torch, best of five."""
    import torch

    a = torch.randn(2000, 2000, dtype=getattr(torch, dtype))
    best = min(_timed(lambda: a @ a) for _ in range(5))
    return 2 * 2000**3 / best / 1e9


# Seconds that a round lasts at least, by repeating.
_LONG_ENOUGH = 0.05


def _timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def count_operations(case: str) -> dict[str, float]:
    """Multiplications and additions of the contraction: ours by layer rule, the dense way's."""
    layers, shape, n = CASES[case]
    arrays = make_arrays(layers, shape, 1)
    n_params = sum(a.size for name, a in arrays.items() if name != "X")
    K = next(a.size for name, a in reversed(arrays.items()) if name.startswith("b"))
    rows, positions = n * K, _positions(layers, shape)
    total = 0.0
    for i, T in enumerate(positions):
        W = arrays[f"W{i}"]
        d_out = W.shape[-1]
        d_in = W.size // d_out
        dense = n * n * d_in + rows * rows * (d_out + 1)
        total += dense if T == 1 else rows * rows * W.size + rows * T * W.size
    return {"ours": 2 * total / 2, "dense": 2.0 * rows * rows * n_params}


def _positions(layers: list[tuple], shape: tuple[int, ...]) -> list[int]:
    found: list[int] = []
    for kind, *args in layers:
        if kind == "residual":
            found += _positions(args[0], shape)
        elif kind == "conv":
            lost = 0 if args[3] == "SAME" else args[1] - 1
            shape = tuple(-(-(s - lost) // args[2]) for s in shape[:2]) + (args[0],)
            found.append(shape[0] * shape[1])
        elif kind == "dense":
            found.append(1)
        else:
            shape = _shape_after(kind, args, shape, None)
    return found


def problem_size(case: str) -> tuple[int, int]:
    """Numbers of weights P and outputs K."""
    layers, shape, _ = CASES[case]
    arrays = make_arrays(layers, shape, 1)
    P = sum(a.size for name, a in arrays.items() if name != "X")
    return P, next(a.size for name, a in reversed(arrays.items()) if name.startswith("b"))


def samples_for(method: str, case: str, dtype: str, max_dense: float) -> int:
    """N, or fewer where the dense Jacobian would not fit."""
    n = CASES[case][2]
    if method in ("ours", "neural-tangents"):
        return n
    n_params, K = problem_size(case)
    per_sample = n_params * K * np.dtype(dtype).itemsize * (20 if method == "laplace" else 2.5)
    return max(1, min(n, int(max_dense * 2**30 / per_sample)))


def run_case(case: str, dtype: str, workers: dict[str, Worker], options, rate: float) -> dict:
    """Times and agreement of every method on one case."""
    layers, shape, n = CASES[case]
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "arrays.npz")
        np.savez(path, **make_arrays(layers, shape, n))
        results = {}
        for method, worker in workers.items():
            size = samples_for(method, case, dtype, options.max_dense)
            result = str(Path(folder) / f"{method.replace('(', '')}.npy")
            answer = worker.ask(
                do="prepare", case=case, dtype=dtype, n=size, arrays=path, result=result
            )
            found[method] = {"n": size, "times": [], "products": [], **answer}
            if "error" not in answer:
                results[method] = np.load(result)
        for turn in range(options.rounds):
            for method in results:
                entry = found[method]
                if turn == 0 or (turn + 1) * max(entry["seconds"], _LONG_ENOUGH) < options.budget:
                    time.sleep(0.05)  # threads of the method before may still wait actively
                    answer = workers[method].ask(do="run")
                    entry["times"].append(answer["seconds"])
                    entry["products"].append(answer["product"])
    _summarise(case, found, results, rate)
    return found


def _summarise(case: str, found: dict, results: dict[str, np.ndarray], rate: float) -> None:
    K, n = results["ours"], CASES[case][2]
    P, n_outputs = problem_size(case)
    for method, entry in found.items():
        products = entry.pop("products")
        if method not in results:
            continue
        least = int(np.argmin(entry["times"]))
        entry["min"] = entry["times"][least]
        entry["median"] = float(np.median(entry["times"]))
        if entry["n"] < n:  # a lower bound of the time for n
            scale = n / entry["n"]
            by_rate = 2 * (n * n_outputs) ** 2 * P / (rate * 1e9) if products[least] else 0.0
            rest = entry["min"] - products[least]
            entry["min"] = scale * rest + max(scale * products[least], by_rate)
        other = results[method]
        error = np.abs(other - K[: len(other), : len(other)]).max() / np.abs(K).max()
        entry["difference"] = float(error)
        entry["result_mib"] = other.nbytes / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laplace", help="interpreter of an environment with laplace-torch")
    parser.add_argument("--neural-tangents", help="interpreter of one with neural-tangents")
    parser.add_argument("--without", nargs="*", default=[], help="methods to leave out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=2.5, help="s for a method's rounds, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-dense", type=float, default=0.5, help="GiB for a dense way")
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"])
    parser.add_argument("--case", nargs="+", help="parts of names of cases", default=[""])
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "ntk.json"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    import torch

    torch.set_num_threads(options.threads)
    pythons = {"ours": sys.executable, "vmap(jacrev)": sys.executable}
    if options.laplace:
        pythons["laplace"] = options.laplace
    if options.neural_tangents:
        pythons["neural-tangents"] = options.neural_tangents
    pythons = {m: python for m, python in pythons.items() if m not in options.without}
    report: dict = {"threads": options.threads, "machine": platform.machine(), "cases": {}}
    for dtype in options.dtype:
        rate = gemm_rate(dtype)
        report[f"gemm_gflops_{dtype}"] = rate
        print(f"\n{dtype}: a matrix product runs at {rate:.0f} GFLOP/s; ratios are peer / ours")
        workers = {m: Worker(m, python, options.threads) for m, python in pythons.items()}
        for case in CASES:
            if not any(part in case for part in options.case):
                continue
            rate = max(rate, gemm_rate(dtype))  # where the machine is busy, it flatters us
            report[f"gemm_gflops_{dtype}"] = rate
            found = run_case(case, dtype, workers, options, rate)
            report["cases"][f"{case}, {dtype}"] = found
            _print(case, found)
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
            Path(options.output).write_text(json.dumps(report, indent=1))
        for worker in workers.values():
            worker.close()


def _print(case: str, found: dict[str, dict]) -> None:
    base, counted = found["ours"]["min"], count_operations(case)
    print(
        f"  {case}: {1e3 * base:.2f} ms, {counted['ours'] / 1e9:.3g} GFLOP counted "
        f"({counted['ours'] / base / 1e9:.0f} GFLOP/s; dense way {counted['dense'] / 1e9:.3g}), "
        f"{found['ours']['peak_mib']:.0f} MiB, "
        f"{found['ours']['result_mib']:.0f} of them the result"
    )
    for method, entry in found.items():
        if method == "ours":
            continue
        if "min" not in entry:
            print(f"      {method:16s} failed: {entry['error']}")
            continue
        mark = "*" if entry["n"] != CASES[case][2] else " "
        print(
            f"      {method:16s}{mark} {1e3 * entry['min']:10.2f} ms   ratio "
            f"{entry['min'] / base:8.1f}   difference {entry['difference']:.0e}"
        )


if __name__ == "__main__":
    main()

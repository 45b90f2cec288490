"""What do the quick ways of ``linearize`` earn in a whole Gram matrix, and in a whole fit?

    python benchmarks/rules.py [--only PART ...] [--rounds 5]

Left out in turn are ``small`` (numpy for small matrices), ``chain`` (dense layers by hand, and
``small`` with it, which stands on it) and ``reverse`` (all rows of an example backward at once). In
the place of what is left out comes ``torch.autograd.grad(..., is_grads_batched=True)``. One thread,
processor time, the ways in turn; of each the least of the rounds is printed, and its ratio to that
of all rules together.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import bench_ntk
import torch
from _common import RESULTS, save, toy_data
from paired import regressor
from sklearn.datasets import load_diabetes

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.networks import MLP


def batched(f: Any, calls: Any, C: Any, *_: Any, **__: Any) -> list[Any]:
    """All rows by autograd's own batches."""
    edges = [call.edge for call in calls]
    if not edges or not f.requires_grad:
        return [None] * len(edges)
    found = torch.autograd.grad(
        f, edges, C.permute(2, 0, 1), retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    return [None if g is None else g.movedim(0, 1) for g in found]


_PLACE = "sk_dnn2gp.linearize."
WITHOUT = {
    "small": {"plan.small_chain": lambda *_: None},
    "chain": {"tape.chain_of": lambda _: None},
    "reverse": {"plan.backward": batched, "recording.backward": batched},
}
WAYS: dict[str, tuple[str, ...]] = {
    "all rules": (), "no small": ("small",), "no chain": ("chain",), "no reverse": ("reverse",),
    "autograd alone": ("chain", "reverse"),
}  # fmt: skip


def gram(case: str) -> Callable[[], Any]:
    layers, shape, n = bench_ntk.CASES[case]
    return bench_ntk.ours(case, bench_ntk.make_arrays(layers, shape, n), "float64", n)


def toy() -> Callable[[], Any]:
    X, y = toy_data(100, 0)
    torch.manual_seed(0)
    model = regressor(MLP(2, (20,), 1).double(), 0.63, 1.0, 1e-8)
    return lambda: model.fit(X, y)


CASES: dict[str, Callable[[], Callable[[], Any]]] = {
    **{f"Gram, {case}": partial(gram, case) for case in bench_ntk.CASES},
    "fit, toy by Gauss-Newton": toy,
    "fit, diabetes with nothing set": lambda: partial(
        DNN2GPRegressor(random_state=0).fit, *load_diabetes(return_X_y=True)
    ),
}


def seconds(run: Callable[[], Any], left_out: tuple[str, ...], times: int) -> float:
    with ExitStack() as stack:
        for name in left_out:
            for place, other in WITHOUT[name].items():
                stack.enter_context(mock.patch(_PLACE + place, other))
        start = time.process_time()
        for _ in range(times):
            run()
        return (time.process_time() - start) / times


def compare(make: Callable[[], Callable[[], Any]], rounds: int) -> dict[str, float]:
    runs = {way: make() for way in WAYS}  # a network is looked at once, under the way's own rules
    for way in WAYS:
        seconds(runs[way], WAYS[way], 1)
    least = {way: seconds(runs[way], WAYS[way], 1) for way in WAYS}
    times = {way: max(1, round(0.2 / least[way])) for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            least[way] = min(least[way], seconds(runs[way], WAYS[way], times[way]))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of cases")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = RESULTS / "rules.json"
    result = json.loads(stored.read_text()) if stored.exists() else {}  # cases not run now stay
    result.pop("setting", None)
    for case, make in CASES.items():
        if any(part in case for part in args.only):
            result[case] = least = compare(make, args.rounds)
            base = least["all rules"]
            ratios = "; ".join(f"{w} {s / base:.2f}" for w, s in least.items() if s is not base)
            print(f"{case}: {1e3 * base:.2f} ms; {ratios}", flush=True)
            save("rules", result)


if __name__ == "__main__":
    main()

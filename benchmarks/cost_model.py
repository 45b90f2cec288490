"""Does the cost model of the user guide (docs/user_guide/cost.rst) predict measured times?

Two rates of this machine are measured around each step, of a float64 matrix product and of a pass
over memory; the table's counts over these rates are the prediction. Each step of the table at
several sizes, beside it: processor seconds, the better of two runs, and their ratio, which is to
lie within 2.

    OMP_NUM_THREADS=1 python benchmarks/cost_model.py
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from _common import save
from torch import nn

from sk_dnn2gp.evidence import EvidenceSpectrum
from sk_dnn2gp.likelihoods import Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.posterior import (
    DiagonalPosterior,
    FunctionSpacePosterior,
    KroneckerPosterior,
    LowRankPosterior,
    WeightSpacePosterior,
)

# Operations of a pass through the network and back for each weight and example; those of an
# eigendecomposition at the speed of a matrix product, in cubes of its side.
PASS, EIGEN = 6, 15


def cpu(function: Callable[[], Any]) -> float:
    """Processor seconds of a call, the least of two."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


def rates() -> tuple[float, float]:
    """Operations (multiplications and additions) and numbers of a memory pass in a second."""
    a = torch.randn(800, 800, dtype=torch.float64)
    x = torch.randn(2_000_000, dtype=torch.float64)
    return 2 * 800**3 / cpu(lambda: a @ a), len(x) / cpu(lambda: x * x)


class Case:
    """A perceptron of given widths, N examples and its linear model; the table's symbols."""

    def __init__(self, widths: tuple[int, ...], n: int) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for wide, narrow in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(wide, narrow, dtype=torch.float64), nn.Tanh()]
        self.pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.N, self.K = n, widths[-1]
        X = torch.randn(n, widths[0], dtype=torch.float64)
        y = torch.randn(n, self.K, dtype=torch.float64)
        linearization = Linearization(nn.Sequential(*layers[:-1]))
        self.model = LinearModel.from_laplace(linearization, X, y, Gaussian(0.5), 1.0)
        self.P, self.name = self.model.n_params, f"{'-'.join(map(str, widths))}, N={n}"

    @property
    def gram(self) -> tuple[float, float]:
        """Operations and numbers of the Gram matrix."""
        N, NK = self.N, self.N * self.K
        operations = sum(N**2 * i + NK**2 * o for i, o in self.pairs)
        return operations + self.passes[0], 3 * len(self.pairs) * NK**2 + self.passes[1]

    @property
    def passes(self) -> tuple[float, float]:
        """Of the network there and back, for each output."""
        units = sum(i + o for i, o in self.pairs)
        return PASS * self.N * self.K * self.P, 2 * self.N * self.K * units

    @property
    def products(self) -> float:
        """Operations of one column with Φ and Φᵀ."""
        return 4 * self.N * sum(i * o + self.K * o for i, o in self.pairs)


# What to run, its operations and the numbers it passes over.
Step = tuple[Callable[[], Any], float, float]


def steps(case: Case) -> dict[str, Step]:
    """The rows of the table for exact posteriors and the diagonal."""
    model, N, K, P = case.model, case.N, case.K, case.P
    X, NK, there = model.X[: min(N, 500)], N * K, case.passes
    rows, side, (operations, numbers) = len(X) * K, min(P, NK), case.gram
    found: dict[str, Step] = {"Gram": (_gram(model), operations, numbers)}
    if P <= NK:
        exact: Any = WeightSpacePosterior(model)
        operations, numbers = NK * P**2 + there[0], NK * P + there[1]
        name, bars, extra = "weight space", rows * P**2, 2.0 * rows * P
    else:
        exact = FunctionSpacePosterior(model)
        cross = 2 * sum(len(X) * N * i + rows * NK * o for i, o in case.pairs)
        name, bars = "function space", cross + rows * NK**2
        extra = 6.0 * len(case.pairs) * rows * NK
    factor = operations + side**3 / 3
    spectrum = operations + EIGEN * side**3
    found[name] = (lambda: type(exact)(model), factor, numbers + side**2)
    found["error bars"] = (lambda: exact.variance(X), bars, extra)
    found["diagonal"] = (lambda: DiagonalPosterior(model), 2 * there[0], 2 * there[1])
    every = lambda: EvidenceSpectrum.from_posterior(exact, 0.5, NK)  # noqa: E731
    found["every δ and σ"] = (every, spectrum, numbers)
    return found


def _gram(model: LinearModel) -> Callable[[], Any]:
    return lambda: model.linearization.gram(model.X)


def large_steps(case: Case, rank: int = 384) -> dict[str, Step]:
    """The posteriors that form no matrix of the size of NK or P; a whole round of the sketch."""
    model, N, K, P = case.model, case.N, case.K, case.P
    sums = sum(2 * N * ((i + 1) ** 2 + K * o**2) for i, o in case.pairs)
    factors = sum(EIGEN * ((i + 1) ** 3 + o**3) for i, o in case.pairs)
    sketch = lambda: LowRankPosterior(model, tol=1e-9, max_rank=rank, random_state=0)  # noqa: E731
    products, there = rank * case.products + 12 * P * rank**2, case.passes
    blocks = rank / 64
    return {
        "low rank": (sketch, products + blocks * there[0], blocks * (3 * N * K * P + there[1])),
        "kronecker": (lambda: KroneckerPosterior(model), sums + factors + there[0], 4 * there[1]),
    }


def main() -> None:
    """Print and store a line for each step and size."""
    warnings.simplefilter("ignore")
    table: list[dict[str, Any]] = []
    small = [((10, 100, 1), 2500), ((10, 60, 3), 1200), ((20, 300, 300, 1), 1200)]
    large = [((20, 100, 60, 1), 1500), ((30, 60, 60, 5), 500)]
    cases = [(Case(*size), steps) for size in small] + [
        (Case(*size), large_steps) for size in large
    ]
    for case, of in cases:
        for step, (run, operations, numbers) in of(case).items():
            before = rates()
            seconds = cpu(run)
            # A busy machine changes its speed: the mean of before and after.
            speed, reach = (0.5 * (a + b) for a, b in zip(before, rates(), strict=True))
            predicted = operations / speed + numbers / reach
            row = {"step": step, "case": case.name, "seconds": seconds, "predicted": predicted}
            table.append(row)
            ratio = seconds / predicted
            print(f"{step:16}{case.name:28}{seconds:9.4f}{predicted:9.4f}{ratio:7.2f}", flush=True)
    outside = [r for r in table if not 0.5 <= r["seconds"] / r["predicted"] <= 2.0]
    save("cost_model", {"rates": rates(), "steps": table, "outside_2": len(outside)})


if __name__ == "__main__":
    main()

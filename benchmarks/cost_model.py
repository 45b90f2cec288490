"""Does the cost model of the user guide (docs/user_guide/cost.rst) predict measured times?

Two rates of this machine are measured, of a float64 matrix product and of a pass over memory; the
table's counts over these rates are the prediction. Each step of the table at several sizes, beside
it: processor seconds, the better of two runs, and their ratio, which is to lie within 2.

    OMP_NUM_THREADS=1 python benchmarks/cost_model.py
"""

from __future__ import annotations

import time
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

# Operations of a pass through the network and back for each weight and example.
PASS = 6


def cpu(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its processor seconds, the least of two."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        found = function()
        seconds.append(time.process_time() - start)
    return found, min(seconds)


def rates() -> dict[str, float]:
    """Operations (multiplications and additions) and numbers of a memory pass in a second."""
    a = torch.randn(1200, 1200, dtype=torch.float64)
    x = torch.randn(4_000_000, dtype=torch.float64)
    cpu(lambda: a @ a)
    return {
        "operations": 2 * 1200**3 / cpu(lambda: a @ a)[1],
        "numbers": len(x) / cpu(lambda: x * x)[1],
    }


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
        """Operations and numbers of N² d_in + (NK)² d_out + 3 (NK)² over the layers."""
        N, K = self.N, self.K
        operations = sum(N**2 * i + (N * K) ** 2 * o for i, o in self.pairs)
        return operations + self.network, 3 * len(self.pairs) * (N * K) ** 2

    @property
    def network(self) -> float:
        """A pass there and back for each output."""
        return PASS * self.N * self.K * self.P

    @property
    def products(self) -> float:
        """Of one column with Φ and Φᵀ: 4 (d_in d_out + K d_out) an example and layer."""
        return 4 * self.N * sum(i * o + self.K * o for i, o in self.pairs)


def steps(case: Case) -> dict[str, tuple[Callable[[], Any], float, float]]:
    """What to run, operations and numbers passed over, for each row of the table."""
    model, N, K, P = case.model, case.N, case.K, case.P
    X, rows = model.X[: min(N, 500)], min(N, 500) * K
    side, NK = min(P, N * K), N * K
    operations, numbers = case.gram
    found: dict[str, tuple[Callable[[], Any], float, float]] = {}
    found["Gram matrix"] = (lambda: model.linearization.gram(model.X), operations, numbers)
    if P <= NK:
        half = NK * P**2 + P**3 / 3 + case.network
        exact = WeightSpacePosterior(model)
        found["weight space"] = (lambda: WeightSpacePosterior(model), half, NK * P)
        bars, extra = rows * P**2, 2 * rows * P
    else:
        whole = operations + NK**3 / 3
        exact = FunctionSpacePosterior(model)
        found["function space"] = (lambda: FunctionSpacePosterior(model), whole, numbers + NK**2)
        cross = 2 * sum(len(X) * N * i + rows * NK * o for i, o in case.pairs)
        bars, extra = cross + rows * NK**2, 3 * len(case.pairs) * rows * NK
    found["error bars"] = (lambda: exact.variance(X), bars, extra)
    diagonal = 2 * K * PASS * N * P
    found["diagonal"] = (lambda: DiagonalPosterior(model), diagonal, 0.0)
    factor = half - P**3 / 3 if P <= NK else operations
    spectrum = factor + EIGEN * side**3
    found["every δ and σ"] = (
        lambda: EvidenceSpectrum.from_posterior(exact, 0.5, NK),
        spectrum,
        numbers,
    )
    return found


# Operations of an eigendecomposition, in cubes of its side, at the speed of a matrix product.
EIGEN = 20


def large_steps(case: Case, rank: int = 192) -> dict[str, tuple[Callable[[], Any], float, float]]:
    """The posteriors that form no matrix of the size of NK or P."""
    model, N, K, P = case.model, case.N, case.K, case.P
    sums = sum(2 * N * ((i + 1) ** 2 + K * o**2) for i, o in case.pairs)
    factors = sum(EIGEN * ((i + 1) ** 3 + o**3) for i, o in case.pairs)
    sketch = rank * case.products + 12 * P * rank**2
    return {
        "low rank": (
            lambda: LowRankPosterior(model, tol=1e-9, max_rank=rank, random_state=0),
            sketch + case.network,
            N * K * P,
        ),
        "kronecker": (lambda: KroneckerPosterior(model), sums + factors + case.network, 0.0),
    }


def main() -> None:
    """Print and store a line for each step and size."""
    import warnings

    warnings.simplefilter("ignore")
    speed = rates()
    print({name: f"{value:.3g}" for name, value in speed.items()})
    table: list[dict[str, Any]] = []
    small = [((10, 100, 1), 4000), ((10, 60, 3), 1500), ((20, 300, 300, 1), 1200)]
    large = [((20, 200, 200, 1), 4000), ((30, 100, 100, 5), 1000)]
    cases = [(Case(*size), steps) for size in small] + [
        (Case(*size), large_steps) for size in large
    ]
    for case, of in cases:
        for step, (run, operations, numbers) in of(case).items():
            predicted = operations / speed["operations"] + numbers / speed["numbers"]
            seconds = cpu(run)[1]
            row = {"step": step, "case": case.name, "seconds": seconds, "predicted": predicted}
            table.append(row)
            ratio = seconds / predicted
            print(f"{step:16}{case.name:28}{seconds:9.4f}{predicted:9.4f}{ratio:7.2f}", flush=True)
    outside = [r for r in table if not 0.5 <= r["seconds"] / r["predicted"] <= 2.0]
    save("cost_model", {"rates": speed, "steps": table, "outside_2": len(outside)})


if __name__ == "__main__":
    main()

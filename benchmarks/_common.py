"""What the benchmark scripts share: the paper's toy data, real data, timing, JSON results.

Real data lie in the folder named by the environment variable ``SK_DNN2GP_DATA``.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray

from sk_dnn2gp.networks import MLP

RESULTS = Path(__file__).parent / "results"


class ToyNetwork(MLP):
    """The paper's network for its toy set, inputs as they are: the default one standardises."""

    def __init__(self) -> None:
        super().__init__(2, (20,), 1)


def toy_data(n_samples: int, random_state: int) -> tuple[NDArray, NDArray]:
    """The paper's toy set: three clusters, noise of standard deviation 1 in the middle one."""
    rng = np.random.default_rng(random_state)
    cluster = rng.choice(3, size=n_samples, p=[0.45, 0.1, 0.45])
    low, high = np.array([-3.5, -1.0, 1.5]), np.array([-1.5, 1.0, 3.5])
    x = rng.uniform(low[cluster], high[cluster])
    y = np.sin(x) + np.where(cluster == 1, 1.0, 0.1) * rng.standard_normal(n_samples)
    return np.column_stack([x, np.ones(n_samples)]), y


def red_wine(split: int = 0) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Red Wine's split, X and y standardised on its training part: X, y, X_test, y_test."""
    folder = os.environ.get("SK_DNN2GP_DATA")
    if not folder:
        raise SystemExit("Red Wine: name the folder of the data in SK_DNN2GP_DATA.")
    with np.load(Path(folder) / "uci_wine-quality-red.npz") as data:
        X, y = data["X"].astype(float), data["y"].astype(float).ravel()
        train, test = data["train"][split], data["test"][split]
    X = (X - X[train].mean(0)) / X[train].std(0)
    y = (y - y[train].mean()) / y[train].std()
    return X[train], y[train], X[test], y[test]


def mnist(seed: int = 0, n_train: int = 1000) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Training images drawn by seed from MNIST's test images, the others: X, y, X_test, y_test.

    Pixels are divided by 255, and the training pixels' mean is subtracted.
    """
    folder = os.environ.get("SK_DNN2GP_DATA")
    if not folder:
        raise SystemExit("MNIST: name the folder of the data in SK_DNN2GP_DATA.")
    with np.load(Path(folder) / "mnist_t10k.npz") as data:
        X, y = data["images"].reshape(-1, 784) / 255.0, data["labels"].astype(int)
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = order[:n_train], order[n_train:]
    X = X - X[train].mean()
    return X[train], y[train], X[test], y[test]


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """Result and least wall time in seconds over the repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def gemm_rate(size: int = 1500, repeats: int = 5) -> float:
    """Multiply-adds in a second of a float64 matrix product, the best of the repeats."""
    a = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return size**3 / timed(lambda: a @ a, repeats)[1]


@contextmanager
def picture(name: str, n_rows: int = 1, n_columns: int = 1) -> Iterator[Any]:
    """Give an array of axes (n_rows, n_columns); write ``docs/images/<name>.png`` after it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (4.5 * n_columns, 3.2 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)
    yield axes
    figure.tight_layout()
    path = RESULTS.parent.parent / "docs" / "images" / f"{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"drawn: {path.relative_to(RESULTS.parent.parent)}")


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result, with the versions and threads it was got with, to ``results/``."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"setting": machine, **result}, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(RESULTS.parent.parent)}")

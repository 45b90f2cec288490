"""Data sets, splits and scores of the classification benchmarks; needs no package but scikit-learn.

So that a peer in an environment of its own sees the same rows and is scored by the same code.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_classification,
    make_moons,
)
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

Split = tuple[NDArray, NDArray, NDArray, NDArray]


def breast_cancer(seed: int) -> Split:
    """X, X_test, y, y_test: 60 % for training, standardised on them."""
    X, y = load_breast_cancer(return_X_y=True)
    a, b, c, d = train_test_split(X, y, test_size=0.4, random_state=seed, stratify=y)
    scaler = StandardScaler().fit(a)
    return scaler.transform(a), scaler.transform(b), c, d


def digits(seed: int) -> Split:
    """8 × 8 digits as vectors between -1/2 and 1/2: 1,000 for training, 797 for testing."""
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16 - 0.5, y, test_size=797, random_state=seed, stratify=y)


def mnist(seed: int) -> Split:
    """MNIST's test images as (n, 1, 28, 28) float32: 8,000 for training, 2,000 for testing."""
    folder = os.environ.get("SK_DNN2GP_DATA")
    if not folder:
        raise SystemExit("MNIST: name the folder of the data in SK_DNN2GP_DATA.")
    with np.load(Path(folder) / "mnist_t10k.npz") as data:
        X = ((data["images"].astype(np.float32) / 255 - 0.1307) / 0.3081)[:, None]
        y = data["labels"].astype(int)
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = order[:8000], order[8000:]
    return X[train], X[test], y[train], y[test]


# Training rows of each set of the defaults' table; the others are for testing, 2,000 at most.
ROWS = {"iris": 90, "wine": 107, "breast cancer": 341, "noise, 3 classes": 300,
        "noise, moons": 300, "digits": 200, "MNIST": 200}  # fmt: skip


def small(name: str, seed: int) -> Split:
    """X, X_test, y, y_test of a set of ``ROWS``, tables standardised on their training part."""
    if name == "digits":
        X, y = load_digits(return_X_y=True)
        X = X / 16 - 0.5
    elif name == "MNIST":
        images, more, y, y_more = mnist(0)
        X, y = np.concatenate([images, more]).reshape(-1, 784).astype(float), np.r_[y, y_more]
    elif name.startswith("noise"):
        X, y = noisy(name, seed)
    else:
        load = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
        X, y = load[name](return_X_y=True)
    a, b, c, d = train_test_split(X, y, train_size=ROWS[name], random_state=seed, stratify=y)
    if name not in ("digits", "MNIST"):
        scaler = StandardScaler().fit(a)
        a, b = scaler.transform(a), scaler.transform(b)
    return a, b[:2000], c, d[:2000]


def noisy(name: str, seed: int) -> tuple[NDArray, NDArray]:
    """1,300 rows, a fifth of whose labels are drawn anew."""
    if name == "noise, 3 classes":
        return make_classification(
            1300, 10, n_informative=4, n_classes=3, flip_y=0.2, random_state=seed
        )
    X, y = make_moons(1300, noise=0.2, random_state=seed)
    generator = np.random.default_rng(seed)
    drawn = generator.random(len(y)) < 0.2
    return X, np.where(drawn, generator.integers(0, 2, len(y)), y)


def calibration_error(p: NDArray, y: NDArray, n_bins: int = 15) -> float:
    """ECE: mean distance of confidence and accuracy over bins of equal width."""
    confidence, right = p.max(1), p.argmax(1) == y
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = [abs((confidence - right)[bins == i].sum()) for i in range(n_bins)]
    return float(sum(gaps) / len(y))


def scores(p: NDArray, y: NDArray) -> dict[str, float]:
    """Accuracy, NLL, Brier score (over all classes) and ECE of probabilities of classes 0, 1, …."""
    one_hot = np.eye(p.shape[1])[y]
    return {
        "accuracy": float((p.argmax(1) == y).mean()),
        "nll": float(log_loss(y, np.clip(p, 1e-15, 1), labels=np.arange(p.shape[1]))),
        "brier": float(((p - one_hot) ** 2).sum(1).mean()),
        "ece": calibration_error(p, y),
    }

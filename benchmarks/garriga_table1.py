"""Are convolutional infinite networks better than dense ones on MNIST with 1,000 images?

After Garriga-Alonso et al. 2019, table 1 (there 50,000 images): dense NNGP, ConvNet and 32-layer
ResNet kernels; hyperparameters from a few candidates (the paper's among them) by the accuracy of
250 of the training images on another 250. Work in float32. Training images are drawn from
``mnist_t10k.npz``; the test is on ``--n-test`` of the remaining ones, three seeds.

    SK_DNN2GP_DATA=FOLDER python benchmarks/garriga_table1.py
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import torch
from _common import mnist, save, timed

from sk_dnn2gp import ConvNetKernel, NNGPClassifier, NNGPKernel, ResNetKernel

SHAPE = (1, 28, 28)


def candidates(work: dict[str, Any]) -> dict[str, list[Any]]:
    """Kernels to choose from, by family."""
    images = {"image_shape": SHAPE, **work}
    # The paper's ConvNet has 7 layers of 7 × 7 filters; its σ_w² = 2.79, σ_b² = 7.86 count
    # every cell of a filter. Its ResNet has no biases.
    large = {"filter_size": 7, "divide_by_filter_size": False, "sigma_w2": 2.79, "sigma_b2": 7.86}
    return {
        "dense NNGP": [
            NNGPKernel(depth, sigma_w2=w, sigma_b2=b, **work)
            for depth in (1, 3, 7) for w, b in ((2.0, 0.1), (1.45, 0.28), (2.0, 1.0))
        ],
        "ConvNet": [
            ConvNetKernel(7, **large, **images),
            ConvNetKernel(7, filter_size=7, sigma_b2=0.1, **images),
            ConvNetKernel(7, filter_size=3, sigma_b2=0.1, **images),
            ConvNetKernel(3, filter_size=5, sigma_b2=0.1, **images),
        ],
        "ResNet-32": [
            ResNetKernel(sigma_w2=1.0, sigma_b2=0.0, sigma_b2_bounds="fixed", **images),
            ResNetKernel(sigma_w2=1.0, sigma_b2=0.1, **images),
        ],
    }  # fmt: skip


def choose(kernels: list[Any], X: Any, y: Any) -> tuple[Any, list[tuple[str, float]]]:
    """The kernel of the best accuracy from 250 of the training images on another 250."""
    X, y, cut, scores = X[:500], y[:500], 250, []
    for kernel in kernels:
        model = NNGPClassifier(kernel, noise_std=1e-3).fit(X[:cut], y[:cut])
        scores.append((repr(kernel), float(model.score(X[cut:], y[cut:]))))
    return kernels[int(np.argmax([s for _, s in scores]))], scores


def run(seed: int, n_train: int, n_test: int, work: dict[str, Any]) -> list[dict[str, Any]]:
    X, y, X_test, y_test = mnist(seed, n_train)
    X_test, y_test = X_test[:n_test], y_test[:n_test]
    rows = []
    for family, kernels in candidates(work).items():
        (kernel, scores), choosing = timed(lambda k=kernels: choose(k, X, y))
        model, fitting = timed(lambda k=kernel: NNGPClassifier(k, noise_std=1e-3).fit(X, y))
        accuracy, scoring = timed(lambda m=model: float(m.score(X_test, y_test)))
        rows.append(
            {
                "family": family, "seed": seed, "kernel": repr(kernel), "accuracy": accuracy,
                "validation": scores, "choose_seconds": choosing, "fit_seconds": fitting,
                "score_seconds": scoring,
            }
        )  # fmt: skip
        print(
            f"seed {seed} {family:>10}: {accuracy:.4f} with {kernel!r}"
            f" (choose {choosing:.0f} s, fit {fitting:.0f} s, test {scoring:.0f} s)",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-train", type=int, default=1000)
    parser.add_argument("--n-test", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    work = {"dtype": torch.float32, "device": args.device}
    warnings.simplefilter("always")
    rows = []
    for seed in range(args.seeds):
        rows += run(seed, args.n_train, args.n_test, work)
        save("garriga_table1", {"n_train": args.n_train, "n_test": args.n_test, "rows": rows})
    means = {f: np.mean([r["accuracy"] for r in rows if r["family"] == f]) for f in candidates({})}
    for family, mean in means.items():
        margin = 100 * (mean - means["dense NNGP"])
        print(f"{family:>10}: mean accuracy {mean:.4f}, {margin:+.2f} points over the dense one")


if __name__ == "__main__":
    main()

"""Are convolutional infinite networks better than dense ones on MNIST with 1,000 images?

After Garriga-Alonso et al. 2019, table 1 (there 50,000 images): dense NNGP, ConvNet and 32-layer
ResNet kernels; hyperparameters from a few candidates (the paper's among them) by the accuracy of
250 of the training images on another 250. "published" is the paper's ResNet-32 (0.84% of errors
there) as its authors configured it, with nothing chosen, read off the torch module `resnet32`.
Work in float32. Training images are drawn from
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
from torch import nn

from sk_dnn2gp import (
    ConvNetKernel,
    InfiniteNetworkKernel,
    NNGPClassifier,
    NNGPKernel,
    ResNetKernel,
)
from sk_dnn2gp.networks import Residual

SHAPE = (1, 28, 28)


def block(channels: int, stride: int = 1, projection: bool = False) -> nn.Module:
    """Two pairs of activation and convolution; a projection shares the first activation."""
    wide = channels // stride if projection else channels
    body = [
        nn.Conv2d(wide, channels, 3, stride=stride, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
    ]  # fmt: skip
    if not projection:
        return Residual(nn.Sequential(nn.ReLU(), *body))
    short = nn.Conv2d(wide, channels, 1, stride=stride, bias=False)
    return nn.Sequential(nn.ReLU(), Residual(nn.Sequential(*body), short))


def resnet32(channels: int = 16, n_outputs: int = 10) -> nn.Module:
    """The ResNet-32 of table 1 as published, in channels that its kernel does not read.

    3 × 3 convolution; three stages of five blocks, the first of every stage with a projection,
    stride 2 in stages two and three; a 7 × 7 valid convolution in the place of average pooling,
    ReLU, a 1 × 1 convolution. No biases.
    """
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, padding=1, bias=False)]
    for stage in range(3):
        wide = channels * 2**stage
        layers += [block(wide, 1 + (stage > 0), projection=True), *(block(wide) for _ in range(4))]
    last = channels * 4
    layers += [nn.Conv2d(last, last, 7, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(last, n_outputs, 1, bias=False))


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
        "published": [
            InfiniteNetworkKernel(resnet32(), sigma_w2=1.0, input_shape=SHAPE, **work),
        ],
    }  # fmt: skip


def choose(kernels: list[Any], X: Any, y: Any) -> tuple[Any, list[tuple[str, float]]]:
    """The kernel of the best accuracy from 250 of the training images on another 250."""
    if len(kernels) == 1:
        return kernels[0], []
    X, y, cut, scores = X[:500], y[:500], 250, []
    for kernel in kernels:
        model = NNGPClassifier(kernel, noise_std=1e-3).fit(X[:cut], y[:cut])
        scores.append((repr(kernel), float(model.score(X[cut:], y[cut:]))))
    return kernels[int(np.argmax([s for _, s in scores]))], scores


def run(
    seed: int, n_train: int, n_test: int, work: dict[str, Any], families: list[str]
) -> list[dict[str, Any]]:
    X, y, X_test, y_test = mnist(seed, n_train)
    X_test, y_test = X_test[:n_test], y_test[:n_test]
    rows = []
    for family, kernels in [(f, k) for f, k in candidates(work).items() if f in families]:
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
    parser.add_argument("--families", nargs="+", default=list(candidates({})))
    args = parser.parse_args()
    work = {"dtype": torch.float32, "device": args.device}
    warnings.simplefilter("always")
    rows = []
    for seed in range(args.seeds):
        rows += run(seed, args.n_train, args.n_test, work, args.families)
        save("garriga_table1", {"n_train": args.n_train, "n_test": args.n_test, "rows": rows})
    means = {f: np.mean([r["accuracy"] for r in rows if r["family"] == f]) for f in args.families}
    for family, mean in means.items():
        margin = 100 * (mean - next(iter(means.values())))
        print(f"{family:>10}: mean accuracy {mean:.4f}, {margin:+.2f} points over the first")


if __name__ == "__main__":
    main()

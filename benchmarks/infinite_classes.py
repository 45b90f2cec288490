"""Probabilities of an infinite network: a likelihood of classes beside regression on labels.

NNGP (ReLU, depth 3, σ_w² = 2, σ_b² = 0.1) on 1,000 images of MNIST and 1,000 of the 8 × 8 digits,
three seeds. Of one kernel, times a scale that each method's own evidence chooses among 1 to 1,000:
"classes" is ``NNGPClassifier(likelihood="categorical")``; "labels" its regression on labels, with a
noise chosen by evidence too, whose means become probabilities by a softmax, by the chance that a
class has the largest drawn target, or by a softmax at the temperature of the least NLL of the
training images left out one by one; "one against the rest" is scikit-learn's
GaussianProcessClassifier at the scale of "classes". Accuracy, NLL, ECE (15 bins), and the
processor's seconds of the last fit and of the predictions.

    SK_DNN2GP_DATA=FOLDER python benchmarks/infinite_classes.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from _classification_data import digits, scores
from _common import mnist, save
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr, softmax
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import ConstantKernel

from sk_dnn2gp import NNGPClassifier, NNGPKernel

SCALES, NOISES = (1.0, 10.0, 100.0, 1000.0), (0.01, 0.03, 0.1, 0.3)
N_TEST = 1000


def kernel(scale: float) -> Any:
    """The prior of a class's function, or of a target."""
    return ConstantKernel(scale, "fixed") * NNGPKernel(3)


def best(X: NDArray, y: NDArray, settings: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting of the largest evidence."""
    return max(settings, key=lambda s: NNGPClassifier(**s).fit(X, y).log_marginal_likelihood())


def of_largest(means: NDArray, std: NDArray) -> NDArray:
    """P(class k has the largest target), targets independent about their means with one std."""
    z, w = np.polynomial.hermite_e.hermegauss(60)
    gaps = (means[:, :, None] - means[:, None, :]) / std[:, None, None]
    log_p = log_ndtr(gaps[..., None] + z).sum(2) - log_ndtr(z)  # of k against itself
    p = np.exp(log_p) @ w
    return p / p.sum(1, keepdims=True)


def temperature(X: NDArray, y: NDArray, setting: dict[str, Any]) -> float:
    """Of the softmax of means left out (Rasmussen & Williams eq. 5.12), by its NLL."""
    K = setting["kernel"](X)
    inverse = np.linalg.inv(K + setting["noise_std"] ** 2 * np.eye(len(X)))
    Y = np.eye(10)[y] - 0.1
    left_out = Y - inverse @ Y / inverse.diagonal()[:, None]

    def nll(log_t: float) -> float:
        return scores(softmax(left_out / np.exp(log_t), axis=1), y)["nll"]

    return float(np.exp(minimize_scalar(nll, bounds=(-6, 3), method="bounded").x))


def timed(model: Any, X: NDArray, y: NDArray, predict: Any) -> tuple[Any, dict[str, float]]:
    """Predictions, and seconds of the processor."""
    start = time.process_time()
    model.fit(X, y)
    fitted = time.process_time()
    found = predict(model)
    return found, {"fit": fitted - start, "predict": time.process_time() - fitted}


def run(X: NDArray, X_test: NDArray, y: NDArray, y_test: NDArray) -> dict[str, dict[str, float]]:
    """Rows of a split."""
    classes = best(X, y, [{"kernel": kernel(s), "likelihood": "categorical"} for s in SCALES])
    labels = best(X, y, [{"kernel": kernel(s), "noise_std": n} for s in (0.01, 0.1, *SCALES[:2])
                         for n in NOISES])  # fmt: skip
    p, seconds = timed(NNGPClassifier(**classes), X, y, lambda m: m.predict_proba(X_test))
    rows = {"classes": {**scores(p, y_test), **seconds}}
    (M, std), seconds = timed(
        NNGPClassifier(**labels), X, y, lambda m: (m.decision_function(X_test),
                                                   m.predict_std(X_test, "y")))  # fmt: skip
    t = temperature(X, y, labels)
    for name, p in (
        ("labels, softmax", softmax(M, axis=1)),
        ("labels, largest", of_largest(M, std)),
        ("labels, tempered", softmax(M / t, axis=1)),
    ):
        rows[name] = {**scores(p, y_test), **seconds}
    gpc = GaussianProcessClassifier(classes["kernel"], optimizer=None)
    p, seconds = timed(gpc, X, y, lambda m: m.predict_proba(X_test))
    rows["one against the rest"] = {**scores(p, y_test), **seconds}
    print(
        f"chosen: {classes['kernel']}; {labels['kernel']}, σ = {labels['noise_std']}, T = {t:.3f}"
    )
    return rows


def main() -> None:
    """Print and store the means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, Any] = {"kernel": repr(kernel(1.0)), "seeds": args.seeds}
    for name, split in (("digits", digits), ("mnist", mnist)):
        found = []
        for seed in range(args.seeds):
            X, X_test, y, y_test = split(seed)
            found.append(run(X, X_test[:N_TEST], y, y_test[:N_TEST]))
        results[name] = {
            row: {key: float(np.mean([one[row][key] for one in found])) for key in found[0][row]}
            for row in found[0]
        }
        for row, values in results[name].items():
            shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
            print(f"{name:6} {row:20} {shown}", flush=True)
        save("infinite_classes", results)


if __name__ == "__main__":
    main()

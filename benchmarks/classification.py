"""Are the Gaussian process's probabilities better than the network's own, and than the peers'?

Accuracy, NLL, Brier, ECE (15 bins) and seconds to fit, the mean over seeds, side by side; the
uncertainty of digits never seen; the time and memory of the kernel of LeNet5.

    python benchmarks/classification.py \
        [--only breast-cancer,digits,digits-cnn,mnist,unseen,bound,cost]
    python benchmarks/classification.py --only defaults

``defaults`` is the table by which ``link="auto"`` was chosen: constructor defaults on small sets.
laplace-torch runs in an environment of its own, by ``classification_laplace.py``. MNIST needs
``SK_DNN2GP_DATA``.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from _classification_data import ROWS, Split, breast_cancer, digits, mnist, scores, small
from _common import RESULTS, save, timed
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from torch import nn

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.evidence import log_marginal_likelihood
from sk_dnn2gp.networks import LeNet5
from sk_dnn2gp.posterior import FunctionSpacePosterior
from sk_dnn2gp.training import FirstOrder

LINKS = ("map", "probit", "contrast", "mc")
Row = dict[str, float]


def our_rows(name: str, make: Callable[[], Any], data: Split) -> dict[str, Row]:
    """One fit, and a row for each link."""
    X, X_test, y, y_test = data
    model, seconds = timed(lambda: make().fit(X, y))
    row = {"seconds": seconds, "prior_precision": model.prior_precision_}
    return {
        f"{name}, {link}": {**scores(model.predict_proba(X_test, link), y_test), **row}
        for link in LINKS
    }


def both_rows(name: str, options: dict[str, Any], data: Split) -> dict[str, Row]:
    """Laplace, and the best Gaussian of the same linear model."""
    rows = {}
    for inference in ("laplace", "linearized-vi"):
        make = partial(DNN2GPClassifier, inference=inference, **options)
        rows |= our_rows(f"{name}, {inference}", make, data)
    return rows


def peer_rows(peers: dict[str, Any], data: Split) -> dict[str, Row]:
    """A row for each scikit-learn classifier, images as vectors."""
    X, X_test, y, y_test = data
    rows = {}
    for name, peer in peers.items():
        _, seconds = timed(lambda peer=peer: peer.fit(X.reshape(len(X), -1), y))
        p = peer.predict_proba(X_test.reshape(len(X_test), -1))
        rows[name] = {**scores(p, y_test), "seconds": seconds}
    return rows


def linear_and_mlp(hidden: tuple[int, ...], seed: int) -> dict[str, Any]:
    return {
        "LogisticRegression": LogisticRegression(max_iter=1000),
        "MLPClassifier": MLPClassifier(hidden, activation="tanh", max_iter=300, random_state=seed),
    }


def run_breast_cancer(seed: int) -> dict[str, Row]:
    data = breast_cancer(seed)
    options = {"hidden_layer_sizes": (10,), "random_state": seed}
    rows = both_rows("auto", {**options, "n_restarts": 2}, data)
    rows |= both_rows("δ = 0.1", {**options, "prior_precision": 0.1}, data)
    peers = linear_and_mlp((10,), seed)
    peers["GaussianProcessClassifier"] = GaussianProcessClassifier(ConstantKernel() * RBF(5.0))
    return rows | peer_rows(peers, data)


def run_digits(seed: int) -> dict[str, Row]:
    data = digits(seed)
    solver = FirstOrder(max_iter=60)
    options = {"hidden_layer_sizes": (20,), "solver": solver, "random_state": seed}
    rows = both_rows("auto", options, data)
    rows |= both_rows("auto, last layer", {**options, "posterior": "last_layer"}, data)
    peers = linear_and_mlp((20,), seed)
    if seed == 0:  # ten binary processes of 1,000 rows: once
        peers["GaussianProcessClassifier (one seed)"] = GaussianProcessClassifier(
            RBF(1.5), optimizer=None
        )
    return rows | peer_rows(peers, data)


class SmallCNN(nn.Sequential):
    """Two convolutions for 8 × 8 digits: 2,810 weights."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(48, 30), nn.ReLU(), nn.Linear(30, 10),
        )  # fmt: skip


def run_digits_cnn(seed: int) -> dict[str, Row]:
    X, X_test, y, y_test = digits(seed)
    data = (
        X.reshape(-1, 1, 8, 8).astype(np.float32),
        X_test.reshape(-1, 1, 8, 8).astype(np.float32),
        y,
        y_test,
    )
    options = {"solver": FirstOrder(max_iter=60, batch_size=100), "random_state": seed}
    rows = both_rows(
        "auto, last layer", {"net": SmallCNN, "posterior": "last_layer", **options}, data
    )
    return rows | peer_rows(linear_and_mlp((50,), seed), data)


def lenet(X: NDArray, y: NDArray, seed: int, n_outputs: int = 10, **options: Any) -> Any:
    """LeNet5 by 15 epochs of Adam in minibatches, in single precision."""
    solver = FirstOrder(
        learning_rate=1e-3, learning_rate_schedule="cosine", max_iter=15, batch_size=64
    )
    defaults = {"solver": solver, "prior_precision": 1.0, "random_state": seed}
    return DNN2GPClassifier(LeNet5(n_outputs), **{**defaults, **options}).fit(X, y)


def run_mnist(seed: int) -> dict[str, Row]:
    data = X, _, y, _ = mnist(seed)
    model, seconds = timed(lambda: lenet(X, y, seed, posterior="last_layer"))
    frozen = {"net": FrozenEstimator(model.net_), "posterior": "last_layer", "random_state": seed}
    rows = both_rows("last layer, δ by evidence at the trained weights", frozen, data)
    rows["training LeNet5 alone"] = {"seconds": seconds}
    return rows | peer_rows(linear_and_mlp((50,), seed), data)


def run_unseen(seed: int) -> dict[str, Row]:
    """Trained on 0 and 1 alone: AUROC of telling the other eight digits from held-out 0s and 1s.

    δ = 10 and conditioning on all rows were chosen on split 0 among δ of 1, 10, 40 and "auto" and
    300 or all rows, by these very AUROCs; so split 0 is left out here.
    """
    X, X_test, y, y_test = mnist(seed + 1)
    known = y < 2
    model = lenet(X[known], y[known], seed, n_outputs=1, prior_precision=10.0)
    seen, unseen = X_test[y_test < 2][:200], X_test[y_test >= 2][:400]
    labels = np.r_[np.zeros(len(seen)), np.ones(len(unseen))]
    both = np.concatenate([seen, unseen])
    rows = {}
    std = model.predict_std(both, "latent")[:, 0]
    parts = model.predict_uncertainty(both)
    measures = {"latent variance": std**2, "epistemic variance": parts.epistemic[:, 1]}
    for link in ("map", "probit"):
        p = model.predict_proba(both, link)
        measures[f"predictive entropy, {link}"] = -(p * np.log(np.clip(p, 1e-300, 1))).sum(1)
    for name, measure in measures.items():
        rows[name] = {"auroc": float(roc_auc_score(labels, measure))}
    accuracy = float((model.predict(seen) == y_test[y_test < 2][:200]).mean())
    return {**rows, "accuracy on held-out 0 and 1": {"accuracy": accuracy}}


def run_defaults(name: str, seed: int) -> dict[str, Row]:
    """Constructor defaults, each inference with each link, beside peers of the same width."""
    data, own = small(name, seed), {"random_state": seed}
    peers = linear_and_mlp((50,), seed)
    # The temperature by the rows that five folds leave out.
    peers["MLPClassifier, temperature-scaled"] = CalibratedClassifierCV(
        peers["MLPClassifier"], method="temperature", ensemble=False
    )
    return both_rows("ours", own, data) | peer_rows(peers, data)


def run_bound(seed: int) -> dict[str, Row]:
    """Evidence and bound of the linearised network at minima that are trained for each δ."""
    rows = {}
    for name in ("wine", "breast cancer", "noise, 3 classes", "noise, moons"):
        X, X_test, y, y_test = small(name, seed)
        for delta in (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0):
            model = DNN2GPClassifier(
                prior_precision=delta, inference="linearized-vi", random_state=seed
            ).fit(X, y)
            rows[f"{name}, δ = {delta:g}"] = {
                "evidence": model.log_marginal_likelihood_value_,
                "bound": model.elbo_curve_[-1],
                **scores(model.predict_proba(X_test), y_test),
            }
    return rows


def run_cost(seed: int) -> dict[str, Row]:
    """LeNet5 at 300 images of ten classes: Gram matrix, evidence, covariance of 300 more."""
    X, X_test, y, _ = mnist(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LeNet5()
    model = DNN2GPClassifier(module, solver=FirstOrder(max_iter=1), prior_precision=1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, fit = timed(lambda: model.fit(X[:300], y[:300]))
    linear, inputs = model.linear_model_, torch.tensor(X_test[:300])

    def together() -> None:
        posterior = FunctionSpacePosterior(linear)
        log_marginal_likelihood(posterior)
        posterior.covariance(inputs)

    whole = timed(together, 3)[1]
    cpu = time.process_time()
    gram = timed(lambda: linear.linearization.gram(linear.X), 3)[1]
    cpu = (time.process_time() - cpu) / 3
    predict = timed(lambda: model.predict_uncertainty(X_test[:300]), 3)[1]
    joint = timed(lambda: model.posterior_.joint_covariance(inputs), 1)[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "Gram matrix, evidence, covariances of 300 more": {"seconds": whole},
        "3000 × 3000 Gram matrix": {"seconds": gram, "seconds of one core": cpu},
        "fit: an epoch, posterior and evidence": {"seconds": fit},
        "covariances of 300 more images": {"seconds": predict},
        "their joint 3000 × 3000 covariance": {"seconds": joint},
        "peak memory": {"GiB": peak / 2**20, "GiB before": before / 2**20},
    }


SECTIONS: dict[str, tuple[Callable[[int], dict[str, Row]], int]] = {
    "cost": (run_cost, 1),
    "breast-cancer": (run_breast_cancer, 5),
    "digits": (run_digits, 3),
    "digits-cnn": (run_digits_cnn, 5),
    "unseen": (run_unseen, 3),
    "bound": (run_bound, 1),
    "mnist": (run_mnist, 3),
}


DEFAULTS = {
    f"defaults: {name}": (partial(run_defaults, name), {"digits": 2, "MNIST": 1}.get(name, 5))
    for name in ROWS
}


def mean_rows(runs: list[dict[str, Row]]) -> dict[str, Row]:
    """Mean over the seeds that have the row; log NLLs of each seed are kept."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    result = {}
    for name in names:
        found = [run[name] for run in runs if name in run]
        result[name] = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
    return result


def show(section: str, rows: dict[str, Row]) -> None:
    print(f"\n{section}")
    for name, row in rows.items():
        print(f"  {name:55s}" + "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join([*SECTIONS, "defaults"]))
    parser.add_argument("--seeds", type=int, default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    path = RESULTS / "classification.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    result = {k: v for k, v in stored.items() if k != "setting"}
    sections = [name for name in options.only.split(",") if name != "defaults"]
    if "defaults" in options.only.split(","):
        sections += DEFAULTS
    for section in sections:
        run, n_seeds = {**SECTIONS, **DEFAULTS}[section]
        runs = [run(seed) for seed in range(options.seeds or n_seeds)]
        result[section] = {"n_seeds": len(runs), "mean": mean_rows(runs)}
        show(section, result[section]["mean"])
        save("classification", result)
    if "defaults" in options.only.split(","):
        means = mean_rows([result[section]["mean"] for section in DEFAULTS])
        result["defaults: mean over the sets"] = {"n_seeds": len(DEFAULTS), "mean": means}
        show("defaults: mean over the sets", means)
        save("classification", result)


if __name__ == "__main__":
    main()

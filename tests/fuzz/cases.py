"""One number makes one case: data, weights, network and settings, drawn from a seeded generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.inference import SWAG, LinearizedVariational, Variational
from sk_dnn2gp.likelihoods import Ordinal, Poisson, StudentT
from sk_dnn2gp.posterior import LowRank, SubsetOfData, SubsetOfWeights
from sk_dnn2gp.training import LBFGS, FirstOrder, GaussNewtonLM, NewtonCG

ACTIVATIONS = ("tanh", "relu", "sigmoid", "erf", "gelu", "identity")


class Plain(nn.Module):
    """A network of float32 weights that a user might write, made by its class alone."""

    n_features, n_outputs = 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(self.n_features, 4)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Linear(4, self.n_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


class Residual(nn.Module):
    """Shared weights, a skip and a frozen layer, in double precision."""

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.body = nn.Linear(n_features, 4)
        self.shared = nn.Linear(4, 4)
        self.held = nn.Linear(4, 4).requires_grad_(False)
        self.last = nn.Linear(4, n_outputs)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.body(x))
        h = h + torch.tanh(self.shared(h))
        h = h + self.held(torch.tanh(self.shared(h)))
        return self.last(h)


@dataclass
class Case:
    """What one number stands for."""

    number: int
    X: NDArray
    y: NDArray
    X_new: NDArray
    weight: NDArray | None
    classifier: bool
    options: dict[str, Any]
    words: dict[str, str]
    net: str = "default"
    user_module: Any = None
    extra: dict[str, Any] = field(default_factory=dict)  # further arguments of ``fit``

    @property
    def is_tame(self) -> bool:
        """Whether the data are of the kind for which nothing but a bad setting is an excuse."""
        return self.words["data"] == "tame" and len(self.X) >= 8

    def estimator(self) -> Any:
        """An unfitted estimator of this case."""
        make = DNN2GPClassifier if self.classifier else DNN2GPRegressor
        return make(**self.options)

    def __str__(self) -> str:
        words = " ".join(f"{k}={v}" for k, v in self.words.items())
        return f"case {self.number}: N={len(self.X)} D={self.X.shape[1]} {words}"


def draw(number: int, seed: int = 0) -> Case:
    """The case of a number; the same in every process.

    Parameters
    ----------
    number : int
    seed : int, default=0
        Of the whole run.

    Returns
    -------
    Case
    """
    rng = np.random.default_rng([seed, number])
    words: dict[str, str] = {}
    classifier = bool(rng.random() < 0.45)
    n_classes = int(rng.integers(2, 4))
    n_outputs = int(rng.integers(1, 3))
    X, X_new = _inputs(rng, words)
    y = _labels(rng, X, n_classes, words) if classifier else _targets(rng, X, n_outputs, words)
    weight = _weights(rng, len(X), words)
    words["likelihood"] = f"{n_classes} classes" if classifier else f"{n_outputs} outputs"
    width = (1 if n_classes == 2 and rng.random() < 0.5 else n_classes) if classifier else n_outputs
    options = _options(rng, classifier, words)
    case = Case(number, X, y, X_new, weight, classifier, options, words)
    if not classifier:
        _noise(rng, case)
        width *= 1 + (words["noise"] == "varying")
    _network(rng, case, width)
    return case


def _pick(rng: np.random.Generator, words: dict[str, str], name: str, **chances: float) -> str:
    names = list(chances)
    p = np.array(list(chances.values()))
    words[name] = names[int(rng.choice(len(names), p=p / p.sum()))]
    return words[name]


def _inputs(rng: np.random.Generator, words: dict[str, str]) -> tuple[NDArray, NDArray]:
    few = rng.random() < 0.15
    n, d = int(rng.integers(2, 5)) if few else int(rng.integers(5, 41)), int(rng.integers(1, 4))
    X = rng.standard_normal((n, d)) if rng.random() < 0.7 else rng.uniform(-2, 2, (n, d))
    X_new = 1.5 * rng.standard_normal((6, d))
    kind = _pick(
        rng, words, "data", tame=5, scaled=1, shifted=1, constant=1, duplicated=1, outlier=1,
        collinear=1, whole=0.5, tiny_spread=0.5, mixed=1, single=0.5,
    )  # fmt: skip
    if kind in ("scaled", "mixed"):
        scale = 10.0 ** rng.uniform(-6, 6, d)
        X, X_new = X * scale, X_new * scale
    if kind in ("shifted", "mixed"):
        shift = 10.0 ** rng.uniform(0, 6) * rng.choice([-1.0, 1.0], d)
        X, X_new = X + shift, X_new + shift
    if kind in ("constant", "mixed"):
        X[:, rng.integers(d)] = rng.choice([0.0, 1.0, -3e5])
    if kind in ("duplicated", "mixed"):
        X[n // 2 :] = X[: n - n // 2]
    if kind in ("outlier", "mixed"):
        X[rng.integers(n), rng.integers(d)] *= 10.0 ** rng.uniform(1, 6)
    if kind == "collinear":
        X, X_new = np.hstack([X, 2 * X[:, :1]]), np.hstack([X_new, 2 * X_new[:, :1]])
    if kind == "whole":
        X, X_new = np.round(2 * X).astype(np.int64), np.round(2 * X_new).astype(np.int64)
    if kind == "tiny_spread":
        X, X_new = 1.0 + 1e-9 * X, 1.0 + 1e-9 * X_new
    if kind == "single":
        X, X_new = X.astype(np.float32), X_new.astype(np.float32)
    return X, X_new


def _standard(X: NDArray) -> NDArray:
    """X as its author sees it, so that targets depend on it whatever its units."""
    X = X.astype(np.float64)
    scale = X.std(0)
    return (X - X.mean(0)) / np.where(scale > 0, scale, 1.0)


def _targets(rng: np.random.Generator, X: NDArray, K: int, words: dict[str, str]) -> NDArray:
    signal = np.sin(_standard(X).sum(1, keepdims=True) + np.arange(K))
    noise = rng.standard_normal(signal.shape)
    kind = _pick(
        rng, words, "y", noisy=5, exact=1, noise=1, constant=0.5, scaled=1, shifted=1, outlier=1
    )
    y = {"exact": signal, "noise": noise, "constant": np.full_like(signal, 7.0)}.get(
        kind, signal + 0.2 * noise
    )
    if kind == "scaled":
        y = y * 10.0 ** rng.uniform(-8, 8)
    if kind == "shifted":
        y = y + 10.0 ** rng.uniform(0, 7)
    if kind == "outlier":
        y[rng.integers(len(y))] += 10.0 ** rng.uniform(1, 5)
    return y[:, 0] if K == 1 and rng.random() < 0.7 else y


def _labels(rng: np.random.Generator, X: NDArray, K: int, words: dict[str, str]) -> NDArray:
    score = _standard(X).sum(1) + 1e-9 * rng.standard_normal(len(X))
    kind = _pick(rng, words, "y", noisy=4, separable=2, noise=1, rare=1)
    codes = np.argsort(np.argsort(score)) * K // len(X)
    if kind == "noisy":
        flipped = rng.random(len(X)) < 0.15
        codes[flipped] = rng.integers(0, K, int(flipped.sum()))
    if kind == "noise":
        codes = rng.integers(0, K, len(X))
    if kind == "rare":
        codes = np.zeros(len(X), dtype=int)
        codes[: K - 1] = np.arange(1, K)[: len(X)]
    return np.array(["a", "b", "c"])[codes] if rng.random() < 0.3 else codes


def _weights(rng: np.random.Generator, n: int, words: dict[str, str]) -> NDArray | None:
    kind = _pick(rng, words, "weight", none=6, random=2, whole=1, zeros=1, extreme=0.7)
    if kind == "none":
        return None
    weight = rng.uniform(0.2, 3.0, n)
    if kind == "whole":
        return rng.integers(1, 4, n).astype(float)
    if kind == "zeros":
        weight[rng.random(n) < 0.4] = 0.0
    if kind == "extreme":
        weight = 10.0 ** rng.uniform(-6, 4, n)
    return weight


def _options(rng: np.random.Generator, classifier: bool, words: dict[str, str]) -> dict[str, Any]:
    posterior = {
        "auto": "auto", "full": "full", "diag": "diag", "last_layer": "last_layer",
        "independent": "independent", "rows": SubsetOfData(5),
        "weights": SubsetOfWeights(("0.weight",)),
        "rows_of_layer": SubsetOfData(6, "last_layer", 0),
        "low_rank": "low_rank",
        "rough": LowRank(float(10.0 ** rng.uniform(-6, 1)), max_rank=int(rng.integers(1, 12))),
        "low_rank_of_rows": SubsetOfData(7, LowRank(0.5), 0), "kronecker": "kronecker",
    }  # fmt: skip
    solver = {
        "auto": "auto", "newton": NewtonCG(tol=1e-9), "gauss": GaussNewtonLM(), "lbfgs": LBFGS(),
        "adam": FirstOrder(max_iter=30), "batches": FirstOrder(max_iter=20, batch_size=7),
        "sgd": FirstOrder("sgd", max_iter=20, learning_rate=0.05), "short": NewtonCG(max_iter=3),
    }  # fmt: skip
    inference = {
        "laplace": "laplace",
        "vi": Variational(max_iter=12, n_samples=2),
        "vi_batches": Variational(max_iter=8, batch_size=9),
        "linearized": LinearizedVariational(max_iter=int(rng.integers(2, 40))),
        "swag": SWAG(rank=int(rng.integers(2, 9)), max_iter=int(rng.integers(3, 30))),
    }
    chosen = _pick(
        rng, words, "posterior", auto=5, full=1, diag=1.5, last_layer=1.5, independent=0.8, rows=1,
        weights=0.5, rows_of_layer=0.4, low_rank=0.8, rough=1, low_rank_of_rows=0.3, kronecker=1,
    ), _pick(
        rng, words, "solver", auto=5, newton=1, gauss=1, lbfgs=0.7, adam=0.7, batches=0.5, sgd=0.5,
        short=0.5,
    ), _pick(
        rng, words, "inference", laplace=7, vi=1.2, vi_batches=0.4,
        linearized=1.2 if classifier else 0.1, swag=0.9,
    ), _pick(rng, words, "groups", all=7, layer=1, feature=1, named=0.4)  # fmt: skip
    if chosen[2] == "swag" and chosen[0] != "diag" and rng.random() < 0.7:
        chosen = ("auto", *chosen[1:])  # it brings a posterior of its own
        words["posterior"] = "auto"
    named = {"first": ["0.weight"], "rest": "2.weight"}
    options: dict[str, Any] = {
        "posterior": posterior[chosen[0]],
        "solver": solver[chosen[1]],
        "inference": inference[chosen[2]],
        "prior_groups": named if chosen[3] == "named" else chosen[3],
        "random_state": int(rng.integers(1000)),
        "n_restarts": int(rng.integers(1, 3)) if rng.random() < 0.9 else "auto",
        "warm_start": bool(rng.random() < 0.15),
    }
    given = chosen[3] == "all" and (chosen[0] == "independent" or rng.random() < 0.4)
    if given:
        options["prior_precision"] = float(10.0 ** rng.uniform(-4, 4))
    words["delta"] = "given" if given else "auto"
    if classifier:
        options["class_weight"] = [None, None, "balanced"][int(rng.integers(3))]
        options["link"] = ["probit", "probit", "mc", "contrast", "map"][int(rng.integers(5))]
        words["class_weight"], words["link"] = str(options["class_weight"]), options["link"]
        return options
    options["normalize_y"] = bool(rng.random() < 0.8)
    words["normalize_y"] = str(options["normalize_y"])
    return options


def _noise(rng: np.random.Generator, case: Case) -> None:
    """What makes y of the network's output, and targets of that kind."""
    options, words, y = case.options, case.words, case.y
    kind = _pick(
        rng, words, "noise", auto=3.5, given=2.5, outputs=0.7, rows=0.8, varying=1, student=1,
        poisson=1, ordinal=0.8,
    )  # fmt: skip
    size = float(10.0 ** rng.uniform(-2.5, 1))
    if kind == "given":
        options["noise_std"] = size
    elif kind == "outputs":
        options["noise_std"] = (size * rng.uniform(0.3, 3.0, y[0].size)).tolist()
    elif kind == "rows":
        spread = float(y.std()) or 1.0
        case.extra["noise_std"] = spread * size * 10.0 ** rng.uniform(-0.5, 0.5, len(y))
    elif kind == "varying":
        options["noise_std"] = "heteroscedastic"
    elif kind == "student":
        options["likelihood"] = StudentT(size, df=float(rng.choice([2.2, 4.0, 30.0])))
    elif kind == "poisson":
        options["likelihood"] = Poisson(float(rng.choice([1.0, 1.0, 0.2, 30.0])))
        case.y = _counts(rng, y, words["y"])
    elif kind == "ordinal":
        thresholds = (-1.0, 0.5, 2.0) if rng.random() < 0.3 else None
        options["likelihood"] = Ordinal(float(10.0 ** rng.uniform(-1, 1)), thresholds)
        case.y = _categories(rng, y, words["y"])


def _counts(rng: np.random.Generator, y: NDArray, kind: str) -> NDArray:
    """Counts of rate e^y, few in a thousand cases none at all."""
    rate = np.exp(np.clip(y, -20.0, 12.0))
    counts = np.round(rate) if kind == "exact" else rng.poisson(rate).astype(float)
    return counts + 0.5 if rng.random() < 0.03 else counts


def _categories(rng: np.random.Generator, y: NDArray, kind: str) -> NDArray:
    """Up to four ordered categories, of equal parts; an outlier is far from the others."""
    ends = np.quantile(y, np.linspace(0, 1, int(rng.integers(2, 5)) + 1)[1:-1])
    categories = np.digitize(y, ends).astype(float)
    if kind == "outlier":
        categories[rng.integers(len(y))] = 3.0 if rng.random() < 0.7 else 7.0
    return categories


def _network(rng: np.random.Generator, case: Case, width: int) -> None:
    kind = _pick(
        rng, case.words, "net", default=6, linear=0.8, module_class=1, instance=0.8, residual=0.8,
        skorch=0.8, frozen=1, wrong_width=0.1,
    )  # fmt: skip
    case.net = kind
    D, options = case.X.shape[1], case.options
    if kind in ("default", "linear"):
        hidden = [(3,), (6,), (4, 3)][int(rng.integers(3))]
        options["hidden_layer_sizes"] = hidden if kind == "default" else ()
        options["activation"] = str(rng.choice(ACTIVATIONS))
        case.words["activation"] = options["activation"]
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        _own_network(rng, case, kind, D, width)


def _own_network(rng: np.random.Generator, case: Case, kind: str, D: int, width: int) -> None:
    options = case.options
    sized = type("Sized", (Plain,), {"n_features": D, "n_outputs": width})
    if case.words["data"] == "whole":  # a layer of float32 weights takes no whole numbers
        case.X, case.X_new = case.X.astype(np.float32), case.X_new.astype(np.float32)
    if kind == "module_class":
        options["net"] = sized
    elif kind == "residual":
        case.user_module = options["net"] = Residual(D, width)
    elif kind == "wrong_width":
        case.user_module = options["net"] = nn.Linear(D, width + 3)
    else:
        net = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, width))
        case.user_module = net
        options["net"] = net
    if kind in ("skorch", "frozen"):
        skorch = NeuralNet(
            case.user_module, criterion=nn.MSELoss, max_epochs=8, lr=0.05, verbose=0,
            batch_size=16, train_split=None, optimizer=torch.optim.Adam,
        )  # fmt: skip
        options["net"] = skorch
        if rng.random() < 0.8:
            options["solver"], case.words["solver"] = "auto", "auto"
        if rng.random() < 0.8:
            options["prior_groups"], case.words["groups"] = "all", "all"
        if kind == "frozen":
            skorch.initialize()
            options["net"] = FrozenEstimator(skorch)
            options["n_restarts"] = "auto"
            case.user_module = skorch.module_

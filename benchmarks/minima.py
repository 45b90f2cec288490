"""What should choose among minima, and how should several be weighed? By the density of test rows.

From several initial weights, networks of 20 hidden units are trained along a path of priors from
strong to weak, each minimum begun at the one before unless that was flat, with the best σ of each.
Every minimum is scored on its training rows by the evidence, by the conditional evidence given a
quarter, a half and three quarters of them, and by leave-one-out (:ref:`math-leave-one-out`). By
each score every path then chooses its ρ = δσ², and the best one, their mixture of equal weights and
that weighed by the score are judged on test rows. Generated sets have 1,000 of those and a known
noise; real ones are of 200 training rows, Diabetes of 353.

    python benchmarks/minima.py [--sets teacher,diabetes] [--draws 3] [--starts 3] [--show]
    python benchmarks/minima.py --weights [--sets ...] [--draws 3]

``--weights``: MixtureRegressor as it comes, its members weighed equally and by the evidence, beside
the default and the default that maximises the conditional evidence.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from _common import RESULTS, save
from default_fits import data
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from scipy.stats import spearmanr
from sklearn.datasets import make_friedman1
from sklearn.exceptions import ConvergenceWarning

from sk_dnn2gp import DNN2GPRegressor, MixtureRegressor
from sk_dnn2gp.inference import Laplace
from sk_dnn2gp.model_selection import conditional_evidence

PATH = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
RULES = ("evidence", "given 1/4", "given 1/2", "given 3/4", "left out")
REAL = ("diabetes", "concrete", "red_wine")
Split = tuple[NDArray, NDArray, NDArray, NDArray]


def teacher(rng: np.random.Generator, X: NDArray, width: float) -> NDArray:
    """A network of ten tanh units; wider weights bend it more."""
    hidden = np.tanh(X @ rng.normal(0, width, (X.shape[1], 10)) + rng.normal(0, width, 10))
    return hidden @ rng.standard_normal(10)


def generated(name: str, draw: int) -> Split:
    """X, y, X_test, y_test of a set of known truth."""
    rng = np.random.default_rng(draw)
    n, n_inputs = {"wave": (60, 1), "linear": (100, 5), "friedman1": (200, 10)}.get(name, (150, 4))
    X = rng.uniform(-2, 2, (n + 1000, n_inputs))
    noise = 0.3 * rng.standard_normal(n + 1000)
    if name == "friedman1":
        X, y = make_friedman1(n + 1000, n_features=n_inputs, noise=1.0, random_state=draw)
    elif name == "wave":
        y = np.sin(2 * X[:, 0] + X[:, 0] ** 2) + noise
    elif name == "linear":
        y = X @ rng.standard_normal(n_inputs) + 3 * noise
    elif name == "steps":
        y = np.sign(X[:, 0]) * np.sign(X[:, 1]) + noise
    else:
        y = teacher(rng, X, 2.0 if name == "rough teacher" else 0.5)
        if name == "varying noise":
            noise = noise * np.exp(X[:, 0])
        elif name == "heavy tails":
            noise = 0.3 * rng.standard_t(2.5, n + 1000)
        y = y + noise
        if name == "copies":  # a quarter of the rows, noise and all, twice
            again = rng.permutation(n)[: n // 4]
            X, y = np.r_[X[again], X], np.r_[y[again], y]
            n += n // 4
    return X[:n], y[:n], X[n:], y[n:]


GENERATED = ("friedman1", "teacher", "rough teacher", "linear", "wave", "steps",
             "varying noise", "heavy tails", "copies")  # fmt: skip


def loaded(name: str, draw: int) -> Split:
    """A generated set, or a part of a real one's training rows and all of its test rows."""
    if name in GENERATED:
        return generated(name, draw)
    X, y, X_test, y_test = data(name, draw)
    n = len(X) if name == "diabetes" else 200
    return X[:n], y[:n], X_test, y_test


def path(split: Split, seed: int) -> tuple[list[list[float]], list[NDArray]]:
    """For each ρ the scores by each rule, in nats a row, and the log densities of the test rows."""
    X, y, X_test, y_test = split
    model = DNN2GPRegressor(hidden_layer_sizes=(20,), n_restarts=1, random_state=seed)
    scores, tests, flat = [], [], True
    for rho in PATH:
        model.set_params(prior_precision=rho, noise_std=1.0, warm_start=not flat).fit(X, y)
        flat = model.posterior_.effective_dimension <= 3
        misfit = float((((y - model.predict(X)) / model.y_scale_[0]) ** 2).sum())
        pull = rho * float(model.linear_model_.weights.square().sum())
        sigma = ((misfit + pull) / len(X)) ** 0.5
        model.set_params(prior_precision=rho / sigma**2, noise_std=sigma, warm_start=True).fit(X, y)
        evidence = model.log_marginal_likelihood_value_ / len(X)
        given = [float(conditional_evidence(model, X, y, part=part)) for part in (0.25, 0.5, 0.75)]
        left_out = float(model.leave_one_out(X, y).log_density.mean())
        scores.append([evidence, *given, left_out])
        tests.append(model.log_predictive_density(X_test, y_test))
    return scores, tests


def judged(split: Split, n_starts: int) -> dict[str, Any]:
    """Test NLL by each rule, of one, of equal and of weighed mixtures; the best of all; ranks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        paths = [path(split, seed) for seed in range(n_starts)]
    scores, tests = (np.array([one[k] for one in paths]) for k in (0, 1))
    means, starts, n = tests.mean(-1), np.arange(n_starts), len(split[0])
    result: dict[str, Any] = {"best": -float(means.max()), "rules": {}}
    for k, rule in enumerate(RULES):
        chosen = scores[..., k].argmax(1)
        value, rows = scores[starts, chosen, k], tests[starts, chosen]
        result["rules"][rule] = {
            "one": -float(means[starts, chosen][value.argmax()]),
            "equal": -mixed(rows, np.full(n_starts, 1 / n_starts)),
            "weighed": -mixed(rows, softmax(n * value)),
            "ρ": PATH[chosen[value.argmax()]],
            "rank": float(spearmanr(scores[..., k].ravel(), means.ravel()).statistic),
        }
    return result


def mixed(log_densities: NDArray, weights: NDArray) -> float:
    """Mean log density of a mixture; log_densities (n_members, n_rows)."""
    return float(logsumexp(log_densities, axis=0, b=weights[:, None]).mean())


def by_weights(split: Split) -> dict[str, float]:
    """Test NLL of the default, by either criterion, and of a mixture, weighed both ways."""
    X, y, X_test, y_test = split
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        usual = DNN2GPRegressor(random_state=0).fit(X, y)
        other = DNN2GPRegressor(inference=Laplace(criterion="conditional"), random_state=0)
        other.fit(X, y)
        mixture = MixtureRegressor(random_state=0).fit(X, y)
    evidence = np.array([one.log_marginal_likelihood_value_ for one in mixture.estimators_])
    rows = np.stack([m.log_predictive_density(X_test, y_test) for m in mixture.estimators_])
    weights = softmax(evidence)
    return {
        "default": -float(usual.log_predictive_density(X_test, y_test).mean()),
        "conditional": -float(other.log_predictive_density(X_test, y_test).mean()),
        "best member": -float(rows[mixture.best_index_].mean()),
        "equal": -mixed(rows, mixture.weights_),
        "weighed": -mixed(rows, weights),
        "largest weight": float(weights.max()),
    }


def show(results: dict[str, list[dict[str, Any]]]) -> None:
    """For each set the best minimum's test NLL, and what each rule loses beside it; then means."""
    print(f"{'test NLL above the best one':24}" + "".join(f"{rule:>22}" for rule in RULES))
    print(f"{'set':16}{'best':>8}" + f"{'one':>8}{'equal':>7}{'weigh':>7}" * len(RULES))
    ways, table = ("one", "equal", "weighed"), []
    for name, draws in results.items():
        losses = np.array(
            [[d["rules"][r][w] - d["best"] for r in RULES for w in ways] for d in draws]
        )
        table.append(losses.mean(0))
        line(f"{name:16}{np.mean([d['best'] for d in draws]):8.3f}", table[-1])
    line(f"{'mean of sets':24}", np.mean(table, axis=0))
    for rule in RULES:
        every = [draw["rules"][rule] for draws in results.values() for draw in draws]
        ranks = np.mean([one["rank"] for one in every])
        wins = np.mean([one["equal"] < one["weighed"] for one in every])
        print(f"{rule:>12}: rank correlation {ranks:5.2f}; equal weights ahead in {wins:.0%}")


def line(start: str, numbers: Iterable[float]) -> None:
    """A row of losses, three a rule."""
    parts = [f"{value:{8 if k % 3 == 0 else 7}.3f}" for k, value in enumerate(numbers)]
    print(start + "".join(parts), flush=True)


def show_weights(results: dict[str, list[dict[str, float]]]) -> None:
    """Means over the draws of each set, and of all."""
    columns = list(next(iter(results.values()))[0])
    print(f"{'test NLL':16}" + "".join(f"{c:>16}" for c in columns))
    means = {n: np.mean([list(d.values()) for d in rows], axis=0) for n, rows in results.items()}
    means["mean of sets"] = np.mean(list(means.values()), axis=0)
    for name, row in means.items():
        print(f"{name:16}" + "".join(f"{v:16.3f}" for v in row))


def main() -> None:
    """Run what is not stored yet, store it after each draw, and print all that is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join([*GENERATED, *REAL]))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--weights", action="store_true")
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = parser.parse_args()
    part = "weights" if args.weights else "rules"
    path = RESULTS / "minima.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored.pop("setting", None)
    results = stored.setdefault(part, {})
    judge: Callable[[Split], Any] = by_weights
    if not args.weights:
        judge = lambda split: judged(split, args.starts)  # noqa: E731
    for name in [] if args.show else args.sets.split(","):
        draws = results.setdefault(name, [])
        for draw in range(len(draws), args.draws):
            start = time.process_time()
            draws.append(judge(loaded(name, draw)))
            save("minima", stored)
            print(f"{name}, draw {draw}: {time.process_time() - start:.1f} s", flush=True)
    (show_weights if args.weights else show)(results)


if __name__ == "__main__":
    main()

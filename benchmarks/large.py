"""LeNet5 on MNIST where both NK and P are large: posteriors with a certificate.

LeNet5 (P = 44,426) trained on 8,000 digits (NK = 80,000): the certified factor √(1 + η/δ) against
time, the bracket of the evidence, δ chosen by it, 2,000 predictions with their test NLL beside the
network's own, conjugate gradients for a few test points, and the Kronecker posterior.
The best Gaussian of the linearised network in a low rank (``linearized``; alone, added to what is
stored, with ``--only linearized``): from a sketch of ``--first-rank`` columns, and with as many
sketches after it as ``--sketches`` says. ``certified``: the same under the δ that the bracket of
the first sketch chooses, its own sketch grown until η/δ ≤ ``--tol``. ``thousand``: the δ that the
bracket chooses on 1,000 digits, beside exact evidences around it. ``protein``: a wide perceptron on
41,157 rows. ``peers``: laplace-torch, by an interpreter that has it. ``--quick``: 400 digits,
where the exact determinant and δ stand beside the brackets.

    python benchmarks/large.py [--quick] [--threads 2] [--seconds 480] [--memory 3000]
    python benchmarks/large.py --only linearized [--quick] [--first-rank 384] [--rank 768]
    python benchmarks/large.py --only certified --first-rank 768 --rank 2304 --memory 3600
    python benchmarks/large.py --only thousand --first-rank 1152
    python benchmarks/large.py --only protein --rank 384
    python benchmarks/large.py --only peers --laplace PYTHON [--digits 200]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import _large_protein as protein
import numpy as np
import torch
from _common import RESULTS, mnist, save, timed
from torch import Tensor, nn

from sk_dnn2gp.evidence.bounds import choose_prior_precision, fischer_bound
from sk_dnn2gp.exceptions import ApproximationWarning
from sk_dnn2gp.inference.linearized_low_rank import maximise_low_rank_elbo
from sk_dnn2gp.likelihoods import Categorical
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.links import log_proba, log_softmax
from sk_dnn2gp.networks import LeNet5
from sk_dnn2gp.posterior import LowRank
from sk_dnn2gp.posterior.kronecker import KroneckerPosterior
from sk_dnn2gp.posterior.low_rank import LowRankPosterior

GRID = np.geomspace(0.1, 30.0, 16)
DELTA, EPOCHS = 30.0, 12
QUICK_DELTA, QUICK_EPOCHS = 3.0, 60


def digits(n_train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 1, 28, 28) and labels; at most 2,000 test digits."""
    X, y, X_test, y_test = mnist(0, n_train)
    as_images = [torch.tensor(a, dtype=torch.float32).view(-1, 1, 28, 28) for a in (X, X_test)]
    return as_images[0], torch.tensor(y), as_images[1][:2000], torch.tensor(y_test)[:2000]


def train(X: Tensor, y: Tensor, delta: float, epochs: int) -> nn.Module:
    """Adam on the MAP objective in minibatches of 64, its rate falling to zero."""
    torch.manual_seed(0)
    net, batch = LeNet5(), 64
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    steps = epochs * -(-len(X) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for part in torch.randperm(len(X)).split(batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(X[part]), y[part])
            penalty = sum((p**2).sum() for p in net.parameters())
            (loss + 0.5 * delta / len(X) * penalty).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def nll(log_p: Tensor, y: Tensor) -> float:
    """Mean of -log p of the true class."""
    return float(-log_p[torch.arange(len(y)), y].mean())


def scores(f: Tensor, V: Tensor, y: Tensor) -> dict[str, float]:
    """Test NLL by the links that take the variance."""
    return {link: nll(log_proba(link, f, V, 0), y) for link in ("probit", "contrast", "mc")}


def curve(posterior: LowRankPosterior) -> list[dict]:
    """What was certified after every round."""
    return [
        {
            "rank": c.rank,
            "seconds": c.seconds,
            "std_factor": float(np.sqrt(1.0 + c.bound)),
            "kind": c.kind,
            "trace": c.trace,
        }
        for c in posterior.history
    ]


def evidence(posterior: LowRankPosterior) -> tuple[dict, float]:
    """The bracket over multiples of δ, and the δ of its best middle."""
    choice, seconds = timed(lambda: choose_prior_precision(posterior, GRID))
    (own,), more = timed(lambda: (choose_prior_precision(posterior, [1.0]),))
    delta = float(posterior.model.prior_precision[0])
    found = {
        "seconds": seconds,
        "seconds_for_another_grid": more,
        "bracket_at_delta": [float(own.lower[0]), float(own.upper[0])],
        "width_in_nats": float(own.upper[0] - own.lower[0]),
        "prior_precision": float(delta * GRID[choice.best]),
        "undecided": [float(delta * GRID[i]) for i in choice.undecided],
        "grid": (delta * GRID).tolist(),
        "lower": choice.lower.tolist(),
        "upper": choice.upper.tolist(),
    }
    return found, found["prior_precision"]


def predictions(posterior: LowRankPosterior | KroneckerPosterior, X: Tensor, y: Tensor) -> dict:
    """Covariances of all test digits, their time and the test NLL."""
    f = posterior.model.linearization.outputs(X).double()
    V, seconds = timed(lambda: posterior.covariance(X))
    mean_std = float(V.diagonal(dim1=-2, dim2=-1).sqrt().mean())
    return {"seconds": seconds, "mean_std": mean_std, **scores(f, V, y)}


def refinement(posterior: LowRankPosterior, X: Tensor) -> dict:
    """Ten test points to a bracket of one per cent, and exact samples of all of them."""
    bracket, seconds = timed(lambda: posterior.refined_covariance(X[:10], 0.01))
    generator = torch.Generator().manual_seed(0)
    (_, error), more = timed(lambda: posterior.sampled_variance(X, 50, generator))
    exact = bracket.lower.diagonal(dim1=-2, dim2=-1)
    wide = posterior.covariance(X[:10]).diagonal(dim1=-2, dim2=-1)
    return {
        "seconds_10_points": seconds,
        "steps": bracket.n_iter,
        "std_too_wide_by_at_most": float((wide / exact).sqrt().max()),
        "seconds_50_samples": more,
        "relative_error_of_sampled_variances": error,
    }


def exact(model: LinearModel) -> dict:
    """The determinant and the evidence over the grid from all eigenvalues of ΦΦᵀ (small N)."""
    gram, seconds = timed(lambda: model.linearization.gram(model.X, cotangents=model.noise_factor))
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0)
    delta, squares = float(model.prior_precision[0]), float((model.weights**2).sum())
    log_Z = [
        model.log_likelihood
        - 0.5 * delta * c * squares
        - 0.5 * float(torch.log1p(values / (delta * c)).sum())
        for c in GRID
    ]
    best = float(delta * GRID[int(np.argmax(log_Z))])
    log_B = float(torch.log1p(values / delta).sum())
    return {"seconds": seconds, "log_B": log_B, "evidence": log_Z, "prior_precision": best}


def certified(
    model: LinearModel, y: Tensor, X_test: Tensor, y_test: Tensor, args: argparse.Namespace
) -> dict:
    """δ by the bracket of a first sketch, then linearized-vi there with a certificate."""
    start = time.perf_counter()
    first = first_sketch(model, args)
    found, best = evidence(first)
    print("evidence", rounded(found), flush=True)
    result = linearized(first.with_prior_precision(best), y, X_test, y_test, args)
    return {"evidence": found, "seconds_in_all": time.perf_counter() - start, **result}


def first_sketch(model: LinearModel, args: argparse.Namespace) -> LowRankPosterior:
    """The Laplace posterior in the rank to begin from."""
    settings = {"memory_limit": args.memory, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        return LowRankPosterior(model, tol=args.tol, max_rank=args.first_rank, **settings)


def thousand(args: argparse.Namespace) -> dict:
    """The bracket's choice on 1,000 digits against exact determinants, by one factor a δ."""
    X, y, _, _ = digits(1000)
    net = train(X, y, 5.0, 30)
    linearization = Linearization(net, memory_limit=500)
    model = LinearModel.from_laplace(linearization, X, y, Categorical(), 5.0)
    posterior, seconds = timed(lambda: first_sketch(model, args))
    found, best = evidence(posterior)
    gram = linearization.gram(X, cotangents=model.noise_factor)
    start, values = time.perf_counter(), {}
    for delta in [d for d in found["grid"] if 0.4 < d / best < 2.5]:
        B = gram / delta
        B.diagonal().add_(1.0)
        log_B = 2.0 * float(torch.linalg.cholesky(B).diagonal().log().sum())
        penalty = delta * float((model.weights**2).sum())
        values[delta] = model.log_likelihood - 0.5 * penalty - 0.5 * log_B
    grid = found["grid"]
    inside = all(
        found["lower"][grid.index(d)] <= v <= found["upper"][grid.index(d)]
        for d, v in values.items()
    )
    return {
        "rank": posterior.rank,
        "sketch_seconds": seconds,
        "evidence": found,
        "exact_seconds": time.perf_counter() - start,
        "exact": [[delta, value] for delta, value in values.items()],
        "exact_prior_precision": max(values, key=lambda delta: values[delta]),
        "exact_inside_the_brackets": inside,
    }


def linearized(
    first: LowRankPosterior, y: Tensor, X_test: Tensor, y_test: Tensor, args: argparse.Namespace
) -> dict:
    """linearized-vi in low ranks: its bound, its test NLL beside the network's, time and memory."""
    model = first.model
    spec = LowRank(args.tol, max_rank=args.rank, memory_limit=args.memory, random_state=0)
    rest = spec.build, args.memory, 60, args.sketches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        ones = torch.ones(len(y))
        best, seconds = timed(lambda: maximise_low_rank_elbo(first, y, Categorical(), ones, *rest))
    f = model.linearization.outputs(X_test).double()
    moved = f + model.linearization.jvp(X_test, best.shift).double()
    V, more = timed(lambda: best.posterior.covariance(X_test))
    return {
        "prior_precision": float(model.prior_precision.flatten()[0]),
        "first_rank": first.rank,
        "first_sketch_seconds": first.history[-1].seconds,
        "seconds": seconds,
        "rank": best.posterior.rank,
        "std_factor": best.posterior.std_factor,
        "curve": curve(best.posterior),
        "elbo": best.elbo_curve,
        "prediction_seconds": more,
        "mean_std": float(V.diagonal(dim1=-2, dim2=-1).sqrt().mean()),
        "network": nll(log_softmax(f), y_test),
        "moved_map": nll(log_softmax(moved), y_test),
        **scores(moved, V, y_test),
        "threads": args.threads,
        "cpu_seconds": time.process_time(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def rounded(value: object) -> object:
    """Five digits are more than a timing has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def run(args: argparse.Namespace) -> None:
    """Train, then each posterior in turn; what is found is stored at once."""
    name = "large_quick" if args.quick else "large"
    results = Results(name, args.only is not None)
    if args.only == "protein":
        results["protein"] = protein.ours(args.rank, args.memory)
        return
    if args.only == "thousand":
        results["thousand"] = thousand(args)
        return
    n, delta, epochs = (400, QUICK_DELTA, QUICK_EPOCHS) if args.quick else (8000, DELTA, EPOCHS)
    X, y, X_test, y_test = digits(n)
    net, seconds = timed(lambda: train(X, y, delta, epochs))
    linearization = Linearization(net, memory_limit=500)
    model = LinearModel.from_laplace(linearization, X, y, Categorical(), delta)
    own = nll(log_softmax(linearization.outputs(X_test).double()), y_test)
    if args.only == "peers":
        results["peers"] = peers(args, net, X, y, X_test, y_test)
        return
    if args.only == "certified":
        results["certified"] = certified(model, y, X_test, y_test, args)
        return
    if args.only == "linearized":
        first = first_sketch(model, args)
        results["linearized"] = linearized(first, y, X_test, y_test, args)
        return
    results["sizes"] = {"n_train": n, "n_rows": model.n_rows, "n_params": model.n_params}
    results["network"] = {"seconds": seconds, "prior_precision": delta, "nll": own}
    kron, seconds = timed(lambda: KroneckerPosterior(model))
    found = predictions(kron, X_test, y_test)
    results["kronecker"] = {"fit_seconds": seconds, "log_B": kron.log_determinant, **found}
    posterior, seconds = timed(lambda: sketched(model, args))
    results["low_rank"] = {"fit_seconds": seconds, "curve": curve(posterior)}
    results["predictions"] = predictions(posterior, X_test, y_test)
    results["evidence"], best = evidence(posterior)
    changed = posterior.with_prior_precision(best)
    found = predictions(changed, X_test, y_test)
    results["predictions_at_chosen_delta"] = {"std_factor": changed.std_factor, **found}
    changed = kron.with_prior_precision(best)
    results["kronecker_at_chosen_delta"] = predictions(changed, X_test, y_test)
    if args.quick:
        results["exact"] = exact(model)
        results["fischer_log_B_100_digits"] = fischer_bound(model, 100)
    results["refinement"] = refinement(posterior, X_test)
    del posterior, changed, kron
    results["linearized"] = linearized(first_sketch(model, args), y, X_test, y_test, args)


def peers(
    args: argparse.Namespace, net: nn.Module, X: Tensor, y: Tensor, X_test: Tensor, y_test: Tensor
) -> dict:
    """laplace-torch on the same networks and data, each case in a process of its own."""
    k = args.digits
    with tempfile.TemporaryDirectory() as folder:
        torch.save([net.state_dict(), X, y, X_test[:k], y_test[:k]], f"{folder}/digits.pt")
        protein.store(f"{folder}/protein.pt")
        found = {}
        for case in ("digits kron", "digits diag", "protein last_layer", "protein kron"):
            command = [
                args.laplace,
                Path(__file__).parent / "_large_peer.py",
                *case.split(),
                folder,
            ]
            said = subprocess.run(command, capture_output=True, text=True, timeout=1200)
            lines = said.stdout.splitlines()
            why = said.stderr[-300:] or f"exit status {said.returncode} (-9: memory)"
            found[case] = json.loads(lines[-1]) if lines else {"fails": why}
            print(case, found[case], flush=True)
    return found


def sketched(model: LinearModel, args: argparse.Namespace) -> LowRankPosterior:
    """The low-rank posterior within the time, whatever it certifies: that is the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        return LowRankPosterior(
            model, tol=args.tol, max_seconds=args.seconds, memory_limit=args.memory, random_state=0
        )


class Results(dict):
    """Prints and stores every stage as it is found, with the processor time and memory so far."""

    def __init__(self, name: str, goes_on: bool) -> None:
        super().__init__()
        self.name, self.goes_on = name, goes_on

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, rounded(value))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = {
            "cpu_seconds": rounded(time.process_time()),
            "peak_mib": rounded(peak / (2**20 if sys.platform == "darwin" else 2**10)),
        }
        super().__setitem__("so_far", spent)
        print(key, self[key], spent, flush=True)
        if self.goes_on:
            stored = json.loads((RESULTS / f"{self.name}.json").read_text())
            stored[key] = self[key]
            (RESULTS / f"{self.name}.json").write_text(json.dumps(stored, indent=2) + "\n")
        else:
            save(self.name, dict(self))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="400 digits")
    parts = ["linearized", "certified", "thousand", "protein", "peers"]
    parser.add_argument("--only", choices=parts, help="this part, added to what is stored")
    parser.add_argument("--laplace", help="peers: an interpreter that has laplace-torch")
    parser.add_argument("--digits", type=int, default=200, help="peers: test digits")
    parser.add_argument("--first-rank", type=int, default=384, help="linearized: where it begins")
    parser.add_argument("--rank", type=int, default=768, help="linearized: of its own sketches")
    parser.add_argument("--sketches", type=int, default=1, help="linearized: at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=480.0, help="for growing the sketch")
    parser.add_argument("--memory", type=float, default=3000.0, help="MiB for the sketch")
    parser.add_argument("--tol", type=float, default=1.25, help="η/δ; 1.25 is a factor of 1.5")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run(args)


if __name__ == "__main__":
    main()

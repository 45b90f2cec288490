"""VOGN beside Adam on the 8 × 8 digits: the same network, epochs, batches and schedule.

MLP 64-100-10 (ReLU), 1,000 examples for training, 797 for testing. Both add the prior N(0, I/δ).
Settings are chosen by the mean NLL over splits 10 to 12, of twelve or more each; reported
are splits 0 to 4: VOGN averages the probabilities of 50 networks drawn from q ("drawn"), or takes
the network at its mean; Adam's is the network.

"Cold" ones may count every example c times, n_data = cN with the prior cδ: a posterior of
temperature 1/c, as in Osawa et al. 2019 (arXiv 1906.02506). At c = 1 it is the variational
posterior itself. IVON is VOGN with the later mends (Shen et al. 2024, algorithm 1): a Hessian by
the draws themselves, from a start of its own, steps that are clipped; its effective sample size is
cN.

``--why`` says why it is behind Adam there, on splits 0 to 2: beside the training loss of drawn
networks and the bound, for each example, it has the same run with q narrowed, a precision by the
Gauss-Newton matrix, and the diagonal q whose bound is climbed by Adam along gradients through its
draws (Kingma and Welling 2014), which are exact on average where VOGN's precision is not.

    python benchmarks/vogn_digits.py [--epochs 100] [--why] [--methods IVON "cold IVON"]
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _classification_data import digits, scores
from _common import RESULTS, save, timed
from torch import Tensor

from sk_dnn2gp.likelihoods import Categorical
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.optim import VOGN

BATCH, N_DRAWS = 100, 50
# Learning rate, δ, c; of IVON also the Hessian that it starts from, for an example, and the largest
# step before the rate.
GRIDS: dict[str, list] = {
    "Adam": list(product((1e-3, 3e-3, 1e-2), (0.1, 0.3, 1.0, 3.0), (1,))),
    "VOGN": list(product((0.05, 0.1, 0.2), (0.1, 0.15, 0.2, 0.3), (1,))),
    "cold VOGN": list(product((0.05, 0.1), (0.1, 0.3), (3, 10, 30))),
    "IVON": list(product((0.03, 0.1), (0.1, 0.3, 1.0), (1,), (0.01, 0.1), (0.1, 100.0))),
    "cold IVON": list(product((0.03, 0.1), (0.1, 0.3), (3, 10, 30), (0.01, 0.1), (100.0,))),
}
CHOOSING, REPORTED = (10, 11, 12), (0, 1, 2, 3, 4)
Row = dict[str, float]
Setting = tuple[Any, ...]


def fit(name: str, X: Tensor, y: Tensor, setting: Setting, epochs: int, seed: int) -> Any:
    """The trained network and its optimiser."""
    if "IVON" in name:
        return ivon(X, y, setting, epochs, seed)
    lr, delta, count = setting
    torch.manual_seed(seed)
    net = MLP(64, (100,), 10, "relu", dtype=torch.float32)
    if "VOGN" in name:
        optimizer: Any = VOGN(
            net.parameters(), lr=lr, beta=None, n_data=count * len(X),
            prior_precision=count * delta, random_state=seed, likelihood=Categorical(),
            curvature="ggn" if "GGN" in name else "gradient",
        )  # fmt: skip
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=lr, weight_decay=delta / len(X))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for part in torch.randperm(len(X)).split(BATCH):

            def closure(part: Tensor = part) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(net(X[part]), y[part])
                loss.backward()
                return loss.detach()

            optimizer.step(closure)
        schedule.step()
    return net, optimizer


def ivon(X: Tensor, y: Tensor, setting: Setting, epochs: int, seed: int) -> Any:
    """The network and q of IVON, in a VOGN that takes no step; rates of its running means fixed."""
    (lr, delta, count, h, clip), (beta1, beta2), N = setting, (0.9, 0.999), len(X)
    torch.manual_seed(seed)
    net, step = MLP(64, (100,), 10, "relu", dtype=torch.float32), 0
    mean = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    h, g, delta_1 = torch.full_like(mean, h), torch.zeros_like(mean), delta / N
    for epoch in range(epochs):
        rate = 0.5 * lr * (1 + math.cos(math.pi * epoch / epochs))
        for part in torch.randperm(N).split(BATCH):
            std, step = (count * N * (h + delta_1)).rsqrt(), step + 1
            noise = std * torch.randn(len(mean))
            torch.nn.utils.vector_to_parameters(mean + noise, net.parameters())
            grads = torch.autograd.grad(F.cross_entropy(net(X[part]), y[part]), net.parameters())
            found = torch.cat([one.flatten() for one in grads])
            g, seen = g.lerp(found, 1 - beta1), found * noise / std**2
            h = h.lerp(seen, 1 - beta2) + 0.5 * (1 - beta2) ** 2 * (h - seen) ** 2 / (h + delta_1)
            direction = (g / (1 - beta1**step) + delta_1 * mean) / (h + delta_1)
            mean = mean - rate * direction.clamp(-clip, clip)
    torch.nn.utils.vector_to_parameters(mean, net.parameters())
    q = VOGN(net.parameters(), n_data=count * N, prior_precision=count * delta)
    q.set_curvature(count * N * h)
    return net, q


def drawn(net: torch.nn.Module, optimizer: VOGN, X: Tensor) -> Tensor:
    """Mean probabilities of networks drawn from q."""
    mean = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    total = torch.zeros(len(X), 10, dtype=torch.float64)
    for w in optimizer.posterior().sample(N_DRAWS, torch.Generator().manual_seed(0)):
        torch.nn.utils.vector_to_parameters(w.to(mean), net.parameters())
        total += net(X).double().softmax(1)
    torch.nn.utils.vector_to_parameters(mean, net.parameters())
    return total / N_DRAWS


def run(name: str, seed: int, setting: Setting, epochs: int) -> dict[str, Row]:
    """Scores of a split."""
    X, X_test, y, y_test = digits(seed)
    inputs, others = (torch.tensor(a, dtype=torch.float32) for a in (X, X_test))
    (net, optimizer), seconds = timed(
        lambda: fit(name, inputs, torch.tensor(y), setting, epochs, seed)
    )
    with torch.no_grad():
        probabilities = {f"{name}, network": net(others).double().softmax(1)}
        if name != "Adam":
            probabilities[f"{name}, drawn"] = drawn(net, optimizer, others)
    return {
        key: {**scores(p.numpy(), y_test), "seconds": seconds} for key, p in probabilities.items()
    }


# ------------------------------------------------------------------- why it is behind at c = 1


def climbed(X: Tensor, y: Tensor, delta: float, epochs: int, seed: int) -> Any:
    """The network and the diagonal q whose bound Adam has climbed, in a VOGN that takes no step."""
    torch.manual_seed(seed)
    net = MLP(64, (100,), 10, "relu", dtype=torch.float32)
    shapes = {name: p.shape for name, p in net.named_parameters()}
    mean = torch.nn.utils.parameters_to_vector(net.parameters()).detach().requires_grad_()
    log_std = torch.full_like(mean, -3.5).requires_grad_()
    optimizer = torch.optim.Adam([mean, log_std], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for part in torch.randperm(len(X)).split(BATCH):
            optimizer.zero_grad()
            w = mean + log_std.exp() * torch.randn(len(mean))
            pieces = w.split([shape.numel() for shape in shapes.values()])
            weights = {n: v.view(shapes[n]) for n, v in zip(shapes, pieces, strict=True)}
            f = torch.func.functional_call(net, weights, (X[part],))
            penalty = 0.5 * (delta * (mean**2 + (2 * log_std).exp()) - 2 * log_std).sum()
            (F.cross_entropy(f, y[part]) + penalty / len(X)).backward()
            optimizer.step()
        schedule.step()
    torch.nn.utils.vector_to_parameters(mean.detach(), net.parameters())
    q = VOGN(net.parameters(), n_data=len(X), prior_precision=delta)
    q.set_curvature((-2 * log_std).exp() - delta)
    return net, q


def described(net: Any, q: VOGN, X: Tensor, y: Tensor, others: Tensor, y_test: Any) -> Row:
    """Scores of drawn networks and of the mean; of the training set, the loss and the bound."""
    loss = q.estimate_loss(lambda: F.cross_entropy(net(X), y), N_DRAWS)
    with torch.no_grad():
        at_mean, of_draws = net(others).double().softmax(1), drawn(net, q, others)
    return {
        "training loss": loss / q.n_data,
        "bound": q.elbo(loss) / q.n_data,
        "NLL of draws": scores(of_draws.numpy(), y_test)["nll"],
        "NLL of the mean": scores(at_mean.numpy(), y_test)["nll"],
    }


def why(seed: int, epochs: int) -> dict[str, Row]:
    """Rows of a split."""
    X, X_test, y, y_test = digits(seed)
    inputs, others = (torch.tensor(a, dtype=torch.float32) for a in (X, X_test))
    data = (inputs, torch.tensor(y), others, y_test)
    adam, _ = fit("Adam", *data[:2], (0.01, 0.3, 1), epochs, seed)
    with torch.no_grad():
        nll = scores(adam(others).double().softmax(1).numpy(), y_test)["nll"]
    rows = {"Adam": {"NLL of the mean": nll}}
    for delta in (0.3, 1.0, 3.0):
        net, q = fit("VOGN", *data[:2], (0.1, delta, 1), epochs, seed)
        rows[f"VOGN, δ = {delta}"] = described(net, q, *data)
        if delta == 0.3:
            A = q.corrected_curvature() + delta
            for times in (3, 10, 30):
                q.set_curvature(times * A - delta)
                rows[f"its q, variances / {times}"] = described(net, q, *data)
    net, q = fit("VOGN by GGN", *data[:2], (0.02, 0.3, 1), epochs, seed)
    rows["VOGN by GGN, δ = 0.3"] = described(net, q, *data)
    for delta in (0.03, 0.1, 0.3, 1.0, 3.0):
        best = climbed(*data[:2], delta, 4 * epochs, seed)
        rows[f"climbed, δ = {delta}"] = described(*best, *data)
    for count in (3, 10, 30):
        net, q = fit("VOGN", *data[:2], (0.05, 0.1, count), epochs, seed)
        rows[f"cold VOGN, c = {count}, δ = 0.1"] = described(net, q, *data)
    return rows


def explain(epochs: int) -> None:
    """Print and store the means over the splits."""
    found = [why(seed, epochs) for seed in (0, 1, 2)]
    mean = {
        name: {key: float(np.mean([rows[name][key] for rows in found])) for key in row}
        for name, row in found[0].items()
    }
    for name, row in mean.items():
        print(f"{name:26}", ", ".join(f"{key} {value:.4f}" for key, value in row.items()))
    save("vogn_digits_why", {"epochs": epochs, "mean": mean, "of": found})


def chosen(name: str, epochs: int) -> Setting:
    """The setting of the least mean NLL, of drawn networks where there are any."""
    key = f"{name}, network" if name == "Adam" else f"{name}, drawn"

    def nll(setting: Setting) -> float:
        found = [run(name, s, setting, epochs)[key]["nll"] for s in CHOOSING]
        return float(np.mean(found)) if np.isfinite(found).all() else math.inf

    return min(GRIDS[name], key=nll)


def main() -> None:
    """Print and store the means over the splits, and their standard errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--why", action="store_true")
    parser.add_argument("--methods", nargs="+", default=list(GRIDS))
    args = parser.parse_args()
    if args.why:
        explain(args.epochs)
        return
    results: dict[str, Any] = {}
    stored = RESULTS / "vogn_digits.json"
    if len(args.methods) < len(GRIDS) and stored.exists():
        results = json.loads(stored.read_text(encoding="utf-8"))["rows"]
    for name in args.methods:
        setting = chosen(name, args.epochs)
        found = [run(name, seed, setting, args.epochs) for seed in REPORTED]
        for row in found[0]:
            values = {key: [split[row][key] for split in found] for key in found[0][row]}
            results[row] = {"learning rate, δ, c": setting, **values}
            shown = ", ".join(
                f"{key} {np.mean(v):.4f}±{np.std(v) / np.sqrt(len(v) - 1):.4f}"
                for key, v in values.items()
            )
            print(f"{row:19} {setting}: {shown}", flush=True)
    save("vogn_digits", {"epochs": args.epochs, "splits": REPORTED, "rows": results})


if __name__ == "__main__":
    main()

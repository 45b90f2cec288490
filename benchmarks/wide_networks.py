"""Does the tangent kernel of a wide finite network approach the infinite one like 1/√width?

ReLU networks of depth 1 to 20 and width up to 4096, weights N(0, σ_w²/fan_in), against
InfiniteNTKKernel: relative Frobenius distance on four inputs, root mean square over seeds, and the
same times √(width/depth), which a 1/√width rate keeps constant.

    python benchmarks/wide_networks.py [--seeds 3] [--widths 256,1024,4096]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _common import save
from torch import nn

from sk_dnn2gp import InfiniteNTKKernel
from sk_dnn2gp.linearize import Linearization

SIGMA_W2, SIGMA_B2, N_IN = 1.8, 0.2, 4


def network(depth: int, width: int, seed: int) -> nn.Sequential:
    """A random ReLU network in single precision."""
    torch.manual_seed(seed)
    sizes = [N_IN, *[width] * depth, 1]
    layers: list[nn.Module] = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(n_in, n_out)
        nn.init.normal_(linear.weight, std=(SIGMA_W2 / n_in) ** 0.5)
        nn.init.normal_(linear.bias, std=SIGMA_B2**0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def distance(depth: int, width: int, seed: int, X: torch.Tensor) -> float:
    """Relative distance of the two kernels; a weight's own scale is σ_w²/fan_in, a bias's σ_b²."""
    module = network(depth, width, seed)
    scale = [
        SIGMA_W2 / p.shape[1] if name.endswith("weight") else SIGMA_B2
        for name, p in module.named_parameters()
    ]
    found = Linearization(module).gram(X, parameter_scale=scale).numpy()
    true = InfiniteNTKKernel(depth, sigma_w2=SIGMA_W2, sigma_b2=SIGMA_B2)(X.double().numpy())
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def main() -> None:
    """Print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--widths", default="256,1024,4096")
    args = parser.parse_args()
    widths = [int(w) for w in args.widths.split(",")]
    X = torch.randn(4, N_IN, generator=torch.Generator().manual_seed(0))
    table = {}
    print("depth" + "".join(f"{w:>22}" for w in widths) + "      rate")
    for depth in (1, 2, 5, 10, 20):
        rms = [
            float(np.sqrt(np.mean([distance(depth, w, s, X) ** 2 for s in range(args.seeds)])))
            for w in widths
        ]
        rate = float(np.polyfit(np.log(widths), np.log(rms), 1)[0])
        cells = [
            f"{r:10.4f} ({r * (w / depth) ** 0.5:8.3f})" for r, w in zip(rms, widths, strict=True)
        ]
        print(f"{depth:5}" + "".join(f"{c:>22}" for c in cells) + f"{rate:10.2f}", flush=True)
        table[depth] = {"distance": rms, "rate": rate}
    save("wide_networks", {"widths": widths, "seeds": args.seeds, "depths": table})


if __name__ == "__main__":
    main()

"""One case of bench_infinite.py in the interpreter of a peer: prints seconds, stores the matrix.

    PYTHON _infinite_peer.py {ours,neural-tangents,cnn-gp} CASE REPEATS OUTPUT [FOLDER]

CASE is a network, for its prior covariance, or "NETWORK ntk", for its tangent kernel; seconds are
of the wall, or of the processor where the environment variable CLOCK is "process_time". FOLDER
holds cnn-gp's package ``cnn_gp``. All take σ_w² = 2, σ_b² = 0.1 (cnn-gp has no biases and
its own variances: its matrix is not compared), and the same inputs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

W2, B2 = 2.0, 0.1
CASES = {"dense": 2000, "convnet": 200, "resnet": 50}


def inputs(case: str) -> Any:
    X = np.random.RandomState(0).rand(CASES[case], 784)
    return X


def ours(case: str, kind: str) -> Any:
    from sk_dnn2gp import ConvNetKernel, ResNetKernel
    from sk_dnn2gp.kernels import InfiniteNTKKernel, NNGPKernel

    options = {"sigma_w2": W2, "sigma_b2": B2}
    images = {"image_shape": (1, 28, 28), "kind": kind, **options}
    kernels = {
        "dense": (NNGPKernel if kind == "nngp" else InfiniteNTKKernel)(3, **options),
        "convnet": ConvNetKernel(7, **images),
        "resnet": ResNetKernel(**images),
    }
    X = inputs(case)
    return lambda: kernels[case](X)


def neural_tangents(case: str, kind: str) -> Any:
    import jax
    from neural_tangents import stax

    jax.config.update("jax_enable_x64", True)
    std = {"W_std": W2**0.5, "b_std": B2**0.5}

    def conv(size: int = 3, stride: int = 1) -> Any:
        return stax.Conv(1, (size, size), (stride, stride), padding="SAME", **std)

    def block(stride: int) -> Any:
        body = [conv(3, stride), stax.Relu(), conv()]
        if stride == 1:
            body = stax.serial(stax.Relu(), *body)
            return stax.serial(
                stax.FanOut(2), stax.parallel(body, stax.Identity()), stax.FanInSum()
            )
        pair = stax.parallel(stax.serial(*body), conv(1, stride))
        return stax.serial(stax.Relu(), stax.FanOut(2), pair, stax.FanInSum())

    end = (stax.Flatten(), stax.Dense(1, **std))
    dense = [layer for _ in range(3) for layer in (stax.Dense(1, **std), stax.Relu())]
    blocks = [block(1)] * 5 + ([block(2)] + [block(1)] * 4) * 2
    network = {
        "dense": lambda: stax.serial(*dense, stax.Dense(1, **std)),
        "convnet": lambda: stax.serial(*[s for _ in range(7) for s in (conv(), stax.Relu())], *end),
        "resnet": lambda: stax.serial(conv(), *blocks, stax.Relu(), *end),
    }[case]()
    X = inputs(case)
    X = X if case == "dense" else X.reshape(-1, 28, 28, 1)
    kernel = jax.jit(lambda x: network[2](x, None, kind))
    return lambda: np.asarray(kernel(X).block_until_ready())


def cnn_gp(case: str, kind: str) -> Any:
    if kind == "ntk":
        raise ValueError("cnn-gp has no tangent kernels.")
    import torch
    from cnn_gp import Conv2d, ReLU, Sequential, Sum

    def block(stride: int) -> Any:
        body = [Conv2d(3, stride=stride), ReLU(), Conv2d(3)]
        if stride == 1:
            return Sum([Sequential(), Sequential(ReLU(), *body)])
        return Sequential(ReLU(), Sum([Conv2d(1, stride=stride), Sequential(*body)]))

    blocks = [block(1)] * 5 + ([block(2)] + [block(1)] * 4) * 2
    network = {
        "convnet": lambda: Sequential(
            *[s for _ in range(7) for s in (Conv2d(3), ReLU())], Conv2d(28, padding=0)
        ),
        "resnet": lambda: Sequential(Conv2d(3), *blocks, ReLU(), Conv2d(7, padding=0)),
    }[case]()
    X = torch.tensor(inputs(case).reshape(-1, 1, 28, 28))
    network = network.double()

    def run() -> Any:
        with torch.no_grad():
            return network(X).numpy()

    return run


def main() -> None:
    who, case, repeats, output = sys.argv[1:5]
    sys.path[:0] = sys.argv[5:]
    network, _, kind = case.partition(" ")
    prepare = {"ours": ours, "neural-tangents": neural_tangents, "cnn-gp": cnn_gp}[who]
    function = prepare(network, kind or "nngp")
    clock = getattr(time, os.environ.get("CLOCK", "perf_counter"))
    np.save(output, function())
    seconds = []
    for _ in range(int(repeats)):
        start = clock()
        function()
        seconds.append(clock() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()

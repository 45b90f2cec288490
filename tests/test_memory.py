"""Peak memory of a Gram matrix: at most its own size and ``memory_limit``, as the kernel counts it.

In a process of its own, after a first small call (libraries keep buffers of their own): the high
water mark of resident memory is set back to what is resident (with nothing free in the
allocator), the matrix is computed, and the two are compared. The figures include what matrix
products hold beside our arrays. glibc is told to give every large array pages of its own, as it
does at first: how it reuses holes in its heap differs from run to run by several MiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import ctypes, gc, sys
import torch
from torch import nn
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP, LeNet5

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(c, c, 3, padding=1))
    def forward(self, x):
        return torch.relu(x + self.body(x))

CASES = {
    "mlp": lambda: (MLP(784, (512, 512), 10), torch.randn(150, 784)),
    "lenet": lambda: (LeNet5(), torch.randn(150, 1, 28, 28)),
    "resnet": lambda: (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Residual(8), nn.Flatten(),
                                     nn.Linear(2048, 4)), torch.randn(60, 3, 16, 16)),
    "tokens": lambda: (nn.Sequential(nn.Embedding(500, 32), nn.Flatten(), nn.Linear(320, 3)),
                       torch.randint(0, 500, (300, 10))),
}
WORK = {
    "gram": lambda lin, X: lin.gram(X),
    "cross": lambda lin, X: lin.gram(X, X[: len(X) // 2]),
    "trace": lambda lin, X: lin.gram_trace(X),
    "blocks": lambda lin, X: lin.diagonal_blocks(X),
    "squares": lambda lin, X: lin.ggn_diagonal(X),
}

def main(case, limit):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, X = CASES[case]()
    lin = Linearization(net, memory_limit=limit)
    for name, work in WORK.items():
        work(lin, X[:3])
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
        before = status("VmRSS")
        K = work(lin, X)
        peak = status("VmHWM")
        assert bool(torch.isfinite(K).all())
        print(name, peak - before - K.numel() * K.element_size() / 2**20)
        del K

main(sys.argv[1], float(sys.argv[2]))
"""

# One example of these networks takes up to 2 MiB while its rows are made.
LIMIT = 24.0


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the high water mark is Linux's"
)
@pytest.mark.parametrize("case", ["mlp", "lenet", "resnet", "tokens"])
def test_peak_memory_is_bounded(case):
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, case, str(LIMIT)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1",
             "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    extra = {name: float(mib) for name, mib in (line.split() for line in done.stdout.splitlines())}
    assert len(extra) == 5
    assert max(extra.values()) <= LIMIT, extra

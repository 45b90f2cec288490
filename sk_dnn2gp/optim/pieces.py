"""Weights a piece at a time, and what a diagonal q does with them (:ref:`math-variational`).

A step of VOGN passes ten times over vectors of P numbers. One pass after the other, each waits for
memory; piece by piece, all passes over a piece find it in the processor's cache.

Shapes: flat vectors (P,), in the order of the parameters; a piece lies in one parameter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import Generator, Tensor

__all__ = ["Pieces", "draw", "gradients", "writable"]

# Numbers: the three arrays of a pass in single precision then take 1.5 MiB. A multiple of 16: torch
# draws in sixteens, and a chunk after the other gives what it draws of the whole vector.
_CHUNK = 2**17


class Pieces:
    """Where vectors of all weights are cut: at the end of a parameter or of a chunk."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        ends = list(accumulate(p.numel() for p in params))
        chunks = [*range(_CHUNK, ends[-1], _CHUNK), ends[-1]]
        cuts = sorted({0, *ends, *chunks})
        self.of_param: list[list[int]] = [[] for _ in ends]
        self.of_chunk: list[list[int]] = [[] for _ in chunks]
        for start, stop in pairwise(cuts):
            self.of_param[bisect_left(ends, stop)].append(stop - start)
            self.of_chunk[bisect_left(chunks, stop)].append(stop - start)
        self.sizes = [size for sizes in self.of_param for size in sizes]

    def of(self, flat: Tensor) -> Sequence[Tensor]:
        """Of a vector."""
        return flat.split(self.sizes)

    def of_each(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Of one flat tensor for each parameter."""
        pairs = zip(tensors, self.of_param, strict=True)
        return [piece for t, sizes in pairs for piece in t.split(sizes)]


@contextmanager
def writable(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Each parameter's numbers, flat: in their own memory, or put there at the end."""
    flat = [p.detach().flatten() for p in params]
    yield flat
    for p, t in zip(params, flat, strict=True):
        if t.data_ptr() != p.data_ptr():
            p.detach().copy_(t.view(p.shape))


def gradients(params: Sequence[Tensor]) -> list[Tensor]:
    """Each parameter's gradient, flat; zeros where it has none."""
    return [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params]


def draw(
    pieces: Pieces, params: Sequence[Tensor], mean: Tensor, root: Tensor, generator: Generator
) -> None:
    """Set the parameters to μ + A^(-1/2) z, of ``root`` A^(-1/2)."""
    with writable(params) as flat:
        rows = zip(pieces.of_each(flat), pieces.of(mean), pieces.of(root), strict=True)
        for sizes in pieces.of_chunk:
            z = torch.randn(sum(sizes), generator=generator, device=mean.device, dtype=root.dtype)
            for part, (w, mu, r) in zip(z.split(sizes), rows, strict=False):
                torch.addcmul(mu, part, r, out=w)

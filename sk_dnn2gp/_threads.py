"""The number of threads: one for small problems, the user's own setting restored after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["few_threads"]

# Floating-point operations of one step below which handing work to a second thread costs more than
# it saves (measured: three times slower at 1e8 with two threads).
_SMALL = 5e8


@contextmanager
def few_threads(operations: float) -> Iterator[None]:
    """Use one torch thread inside the block if a step counts fewer than 5e8 operations.

    Parameters
    ----------
    operations : float
        Floating-point operations of one step of the work in the block.
    """
    before = torch.get_num_threads()
    if operations >= _SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

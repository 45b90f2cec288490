"""The number of threads: one for small problems, the user's own setting restored after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["few_threads", "over_threads"]

# Floating-point operations of one step below which handing work to a second thread costs more than
# it saves (measured: three times slower at 1e8 with two threads).
_SMALL = 5e8


@contextmanager
def few_threads(operations: float) -> Iterator[None]:
    """Use one torch thread inside the block if a step of it counts fewer than 5e8 operations."""
    before = torch.get_num_threads()
    if operations >= _SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def over_threads(function: Callable[..., Any], tasks: Sequence[tuple]) -> None:
    """Call ``function(*task)`` for every task, as many at once as torch has threads.

    Each call runs on one thread: many short operations then meet no barriers, which cost little on
    idle processors and a multiple of the work on busy ones. No call may change what another reads.
    """
    n_threads = min(torch.get_num_threads(), len(tasks))
    if n_threads < 2:
        for task in tasks:
            function(*task)
        return
    with few_threads(0.0), ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(lambda task: function(*task), tasks):
            pass

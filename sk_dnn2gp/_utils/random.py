"""Randomness enters through ``random_state`` alone; global generators are left as found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

__all__ = ["draw_seed", "seeded", "torch_generator"]


def draw_seed(random_state: Any) -> int:
    """Draw one seed from ``random_state`` (None, an int or a numpy RandomState)."""
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def torch_generator(random_state: Any) -> torch.Generator:
    """Return a torch generator seeded from ``random_state``."""
    return torch.Generator().manual_seed(draw_seed(random_state))


# Held while the global generators are someone's; a fit inside a fit's callback may take it again.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def seeded(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seed torch's and numpy's global generators inside the block; restore them after it.

    Layers initialise themselves, and data loaders shuffle, from the global generators: there is
    no other way to make them reproducible. The generators are of the whole process, so that one
    thread at a time is inside; others wait.
    """
    with _ONE_AT_A_TIME:
        yield from _seeded(seed, torch.device(device))


def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    numpy_state = np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            # torch.manual_seed would also queue a seed for every GPU, with a stack trace each.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002

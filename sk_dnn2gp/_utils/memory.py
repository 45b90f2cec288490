"""One rule for memory: work is cut into chunks that fit a stated limit.

``memory_limit`` is a number of MiB everywhere in this package. ``None`` means scikit-learn's
own setting, ``sklearn.get_config()["working_memory"]`` (1024 MiB unless the user says otherwise).
"""

from __future__ import annotations

from collections.abc import Iterable

from sklearn import get_config
from torch import Tensor

__all__ = [
    "chunk_length",
    "joined_parts",
    "limit_in_bytes",
    "require_memory",
    "sum_parts",
]

MIB = 2**20


def limit_in_bytes(memory_limit: float | None) -> int:
    """Return the memory limit in bytes (``memory_limit`` in MiB, None: scikit-learn's)."""
    if memory_limit is None:
        memory_limit = get_config()["working_memory"]
    if not memory_limit > 0:
        raise ValueError(f"memory_limit must be a positive number of MiB, got {memory_limit!r}.")
    return int(memory_limit * MIB)


def chunk_length(bytes_per_row: float, memory_limit: float | None) -> int:
    """Return how many rows of ``bytes_per_row`` bytes fit the limit (at least one)."""
    return max(1, int(limit_in_bytes(memory_limit) // max(1.0, bytes_per_row)))


def joined_parts(parts: Iterable[Tensor], n: int) -> Tensor:
    """Parts one after the other, of ``n`` rows together, each in its place as soon as it is made.

    Kept until the end as they are, small results would lie between large temporary arrays, whose
    room a heap then cannot use again: as much memory would be taken as all rows have.
    """
    whole, start = None, 0
    for part in parts:
        if whole is None:
            if len(part) == n:
                return part
            whole = part.new_empty(n, *part.shape[1:])
        whole[start : start + len(part)] = part
        start += len(part)
    assert whole is not None and start == n
    return whole


def sum_parts(parts: Iterable[Tensor]) -> Tensor:
    """Their sum, one at a time."""
    total = None
    for part in parts:
        total = part.clone() if total is None else total.add_(part)
    assert total is not None
    return total


def require_memory(needed: float, memory_limit: float | None, what: str, advice: str) -> None:
    """Raise MemoryError if ``needed`` bytes exceed the limit, saying what would fit."""
    limit = limit_in_bytes(memory_limit)
    if needed > limit:
        raise MemoryError(
            f"{what} needs {needed / MIB:.4g} MiB, above memory_limit={limit / MIB:.4g} MiB. "
            f"{advice}"
        )

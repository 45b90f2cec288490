"""Sums over rows through joblib: every worker has a shard of the rows (:ref:`math-refinement`).

How many workers and of which kind, ``joblib.parallel_config`` says: processes, threads, a cluster.
What is large stays with the workers: a :class:`Kept` value is sent when it is first asked for, and
again only to a worker that has it not, be it new in the place of one that died. Every task is a
pure function of what is sent, so that one that is lost is simply done again.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from multiprocessing import current_process, parent_process
from typing import Any

import numpy as np
import torch
from joblib import effective_n_jobs
from numpy.typing import NDArray
from sklearn import config_context, get_config
from sklearn.utils import gen_batches
from sklearn.utils.parallel import Parallel, delayed
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .rows import Streamed

__all__ = [
    "Kept",
    "end_with_parent",
    "kept_rows",
    "n_workers",
    "over_workers",
    "shards",
    "state",
]

# Operations below which handing them out costs more than it saves (some 20 ms of one thread).
_LEAST = 2e8
# Rounds in which workers may die before it is taken for their fate.
_TRIES = 3
# Values that a worker holds: shards, networks, states; the least recently used goes.
_MOST = 16
# What joblib's backends raise where a worker is lost, besides the classes of concurrent.futures.
_DEATHS = {"KilledWorker", "FutureCancelledError", "FuturesCancelledError", "CommClosedError"}

# Seconds between two looks at whether the process that a worker works for is there.
_WATCH = 0.5

_watches = False
_held: OrderedDict[Any, Any] = OrderedDict()
_lock = threading.Lock()
_rows: Any = WeakIdKeyDictionary()


class Kept:
    """A value that stays with the workers."""

    def __init__(self, value: Any) -> None:
        self.value, self.key, self.was_sent = value, uuid.uuid4().hex, False


class _Missing(tuple):
    """Keys that a worker does not hold."""


class _Key(str):
    """Stands for a kept value."""


def n_workers(operations: float) -> int:
    """Workers for so many operations: those that joblib offers, or one where that is quicker."""
    return 1 if operations < _LEAST else effective_n_jobs(None)


def shards(n_rows: int, n: int) -> list[slice]:
    """Slices of about equal length, one for each worker."""
    return list(gen_batches(n_rows, -(-n_rows // n)))


def kept_rows(X: Any, n: int) -> list[Kept]:
    """The shards of X, made once for as long as X lives and is not changed."""
    version = (n, getattr(X, "_version", 0))
    found = _rows.get(X)
    if found is None or found[0] != version:
        found = version, [Kept(_lazy_part(X, part)) for part in shards(len(X), n)]
        _rows[X] = found
    return found[1]


def _lazy_part(X: Any, part: slice) -> Any:
    """A shard that holds no more than itself when it is sent."""
    return X.take(part) if isinstance(X, Streamed) else X[part].numpy()


def state(slot: Any, stamp: Any, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, from this process's memory where the slot has that stamp already."""
    found = _recall(slot)
    if found is None or found[0] != stamp:
        found = stamp, make()
        _hold(slot, found)
    return found[1]


def _hold(key: Any, value: Any) -> None:
    with _lock:
        _held[key] = value
        _held.move_to_end(key)
        while len(_held) > _MOST:
            _held.popitem(last=False)


def _recall(key: Any) -> Any:
    with _lock:
        if key in _held:
            _held.move_to_end(key)
        return _held.get(key)


def over_workers(function: Callable[..., Any], tasks: Sequence[tuple]) -> list[Any]:
    """[function(*task) for task in tasks] by joblib's workers; tensors travel as arrays.

    ``function`` is given by name (a module's own). RuntimeError if workers die again and again.
    """
    results: list[Any] = [None] * len(tasks)
    todo, whole, deaths = list(range(len(tasks))), set[int](), 0
    # Together they take what one process would; and loky takes one that grows by 300 MB for a leak.
    share = get_config()["working_memory"] / effective_n_jobs(None)
    while todo:
        packed = [_packed(tasks[i], i in whole) for i in todo]
        try:
            with config_context(working_memory=share):
                found = Parallel(max_nbytes=None)(delayed(_run)(function, *one) for one in packed)
        except Exception as error:
            deaths += 1
            if not _is_death(error):
                raise
            if deaths >= _TRIES:
                raise _told(error) from error
            whole.update(todo)
            continue
        for i, one in zip(todo, found, strict=True):
            results[i] = one
        whole.update(i for i in todo if isinstance(results[i], _Missing))
        todo = [i for i in todo if isinstance(results[i], _Missing)]
    return [_unpacked(result) for result in results]


def end_with_parent() -> None:
    """In a worker of joblib's own processes: end with the process that it works for.

    One that SIGTERM ends says nothing to its workers, who would wait five minutes for work.
    """
    global _watches
    parent = parent_process()
    if parent and not _watches and type(current_process()).__name__.startswith("Loky"):
        _watches = True
        threading.Thread(target=_end_after, args=(parent.pid,), daemon=True).start()


def _end_after(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os._exit(1)


def _is_death(error: Exception) -> bool:
    lost = isinstance(error, (BrokenExecutor, CancelledError))
    return lost or type(error).__name__ in _DEATHS


def _told(error: Exception) -> RuntimeError:
    return RuntimeError(
        f"Workers died in {_TRIES} rounds of a sum over rows ({type(error).__name__}), most often "
        "for want of memory: beside its share of the rows and of scikit-learn's working_memory "
        "each holds the network and libraries. Lower sklearn.set_config(working_memory=...), or "
        "take fewer workers."
    )


def _packed(task: tuple, whole: bool) -> tuple[list[Any], dict[str, Any]]:
    """Arguments with keys in the place of kept values, and those values that go along."""
    sent = {}
    for one in task:
        if isinstance(one, Kept):
            if whole or not one.was_sent:
                sent[one.key] = one.value
            one.was_sent = True
    return [_Key(a.key) if isinstance(a, Kept) else _to_array(a) for a in task], sent


def _run(function: Callable[..., Any], arguments: list[Any], sent: dict[str, Any]) -> Any:
    """A task in its worker; which keys it lacks, where it lacks some."""
    end_with_parent()
    for key, value in sent.items():
        _hold(key, value)
    values = [_recall(a) if isinstance(a, _Key) else _to_tensor(a) for a in arguments]
    pairs = zip(arguments, values, strict=True)
    missing = _Missing(a for a, v in pairs if isinstance(a, _Key) and v is None)
    if missing:
        return missing
    return _to_arrays(function(*(_to_tensor(v) for v in values)))


def _to_array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _to_arrays(value: Any) -> Any:
    return tuple(map(_to_array, value)) if isinstance(value, tuple) else _to_array(value)


def _to_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    array: NDArray = value if value.flags.writeable else value.copy()
    return torch.from_numpy(array)


def _unpacked(value: Any) -> Any:
    return tuple(map(_to_tensor, value)) if isinstance(value, tuple) else _to_tensor(value)

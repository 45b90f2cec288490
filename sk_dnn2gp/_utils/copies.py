"""Deep copies that lose no interrupt.

``copyreg._slotnames``, which Python calls for every OrderedDict that it copies, ends in a bare
``except: pass``. A torch module holds a dozen; a KeyboardInterrupt that comes there is lost.
"""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["copied"]

T = TypeVar("T")


def copied(thing: T, memo: dict[int, Any] | None = None) -> T:
    """``copy.deepcopy``, after which a SIGINT that came in it has its way."""
    with _interrupted_after():
        return copy.deepcopy(thing, memo)


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """Keep SIGINT until the block has ended, where Python would hear of it in the block."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    asked: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *told: asked.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            before(*asked[0])

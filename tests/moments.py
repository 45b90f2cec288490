"""The moments of some work at which Python looks for signals: where it enters a function, and where
it returns from one in C. Each is known by its place and by those of two callers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["interrupted", "moments"]


def moments(work: Callable[[], Any]) -> list[tuple]:
    """Every moment of it, in the order in which it first comes."""
    seen: dict[tuple, None] = {}

    def look(frame: Any, event: str, function: Any) -> None:
        if event in ("call", "c_return"):
            seen.setdefault(_place(frame, event))

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    return list(seen)


def interrupted(work: Callable[[], Any], moment: tuple) -> bool:
    """Do the work, with a SIGINT at the first such moment; whether there was one."""
    came = []

    def look(frame: Any, event: str, function: Any) -> None:
        if _place(frame, event, 1) == moment[:2] and _place(frame, event) == moment:
            sys.setprofile(None)
            came.append(moment)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    return bool(came)


def _place(frame: Any, event: str, depth: int = 3) -> tuple:
    place: list[Any] = [event]
    while frame is not None and len(place) <= depth:
        place.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(place)

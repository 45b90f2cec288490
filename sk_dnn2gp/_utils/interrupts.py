"""How a fit ends before its end: with nothing changed, and as soon as it is asked to.

Python drops a KeyboardInterrupt that comes in a weak reference's callback or in a destructor, and
gives a RuntimeError in its place where it comes as a class is made; skorch takes it for a
callback's wish to stop. So a fit listens itself: it ends at its next step, and as what it is.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

__all__ = ["all_or_none", "end_if_asked", "whole_fit"]

Fit = TypeVar("Fit", bound=Callable[..., Any])


@contextmanager
def all_or_none(estimator: Any) -> Iterator[None]:
    """Leave the estimator as it was if the block fails or is interrupted."""
    before = dict(estimator.__dict__)
    try:
        with _interruptible():
            yield
    except GeneratorExit:  # an interrupt on the way in or out, where the block is not at work
        raise
    except BaseException:
        estimator.__dict__ = before  # at once: no second signal can come between
        raise


def whole_fit(fit: Fit) -> Fit:
    """A ``fit`` that sets its results all or none."""

    @wraps(fit)
    def called(self: Any, *given: Any, **more: Any) -> Any:
        with all_or_none(self):
            return fit(self, *given, **more)

    return called  # type: ignore[return-value]


class _Listener:
    """A handler of SIGINT: the one before it, and whether that raised KeyboardInterrupt."""

    def __init__(self, before: Any) -> None:
        self.before, self.was_asked = before, False

    def __call__(self, number: int, frame: Any) -> None:
        try:
            self.before(number, frame)
        except KeyboardInterrupt:
            self.was_asked = True
            raise


@contextmanager
def _interruptible() -> Iterator[None]:
    """A KeyboardInterrupt that a signal raises in the block ends it, and as itself."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    listener = _Listener(before)
    try:
        signal.signal(signal.SIGINT, listener)
        yield
        end_if_asked()
    except Exception as error:
        if listener.was_asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        _put_back(listener)


def _put_back(listener: _Listener) -> None:
    present: Any = signal.getsignal(signal.SIGINT)
    if present is not listener:  # someone else's affair
        return
    try:
        signal.signal(signal.SIGINT, listener.before)
    except KeyboardInterrupt:  # it came just now, and nothing was put back
        signal.signal(signal.SIGINT, listener.before)
        raise


def end_if_asked() -> None:
    """Raise a KeyboardInterrupt that was lost on its way out of such a block."""
    listener: Any = signal.getsignal(signal.SIGINT)
    was_asked = isinstance(listener, _Listener) and listener.was_asked
    if was_asked and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt

"""What a fit says of itself while it runs: a line a stage, and tasks to scikit-learn's callbacks.

The tasks are fit → stage → step. A callback that answers the end of a task with True ends the level
that the task is of: the steps of a stage, or the stages of the fit, with the best so far kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .interrupts import end_if_asked

__all__ = ["Bar", "CallbackSupport", "Progress", "Stage"]

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupport
except ImportError:  # scikit-learn before 1.9

    class CallbackSupport:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""


class Stage:
    """A part of a fit, of steps; ``evidence`` is for the line that tells of its end."""

    def __init__(self, estimator: Any, context: Any) -> None:
        self.estimator, self.context = estimator, context
        self.step: Any = None
        self.evidence: float | None = None
        self.stopped = False

    def begin_step(self) -> None:
        """A step begins."""
        end_if_asked()
        if self.context is not None:
            self.step = self.context.subcontext(task_name="step")
            self.step.call_on_fit_task_begin(estimator=self.estimator)

    def end_step(self) -> bool:
        """A step ends; whether it is to be the stage's last."""
        if self.step is not None:
            step, self.step = self.step, None
            self.stopped |= bool(step.call_on_fit_task_end(estimator=self.estimator))
        return self.stopped


class Progress:
    """Lines for ``verbose`` fits and tasks for callbacks, of an estimator and its root task.

    ``offset`` takes evidences to the units of y.
    """

    def __init__(self, verbose: Any = 0, estimator: Any = None, context: Any = None) -> None:
        self.verbose, self.estimator, self.context = verbose, estimator, context
        self.offset, self.stopped = 0.0, False
        self.current = Stage(None, None)

    @contextmanager
    def stage(self, name: str, max_steps: int | None = None) -> Iterator[Stage]:
        """A stage of at most so many steps; its line is printed when it ends."""
        outer, context, began = self.current, None, time.perf_counter()
        if self.context is not None:
            context = self.context.subcontext(task_name=name, max_subtasks=max_steps)
            context.call_on_fit_task_begin(estimator=self.estimator)
        self.current = stage = Stage(self.estimator, context)
        try:
            yield stage
        finally:
            self.current = outer
        if stage.step is not None:  # it was cut off by its own end
            stage.end_step()
        if context is not None:
            self.stopped |= bool(context.call_on_fit_task_end(estimator=self.estimator))
        if self.verbose:
            seconds = time.perf_counter() - began
            evidence = ""
            if stage.evidence is not None:
                evidence = f", evidence {stage.evidence + self.offset:.2f}"
            print(f"[sk_dnn2gp] {name}: {seconds:.1f} s{evidence}", flush=True)


class Bar:
    """A bar on standard error for ``verbose`` work: what part is done and the time still needed."""

    def __init__(self, what: str, verbose: Any, total: int) -> None:
        self.what, self.on, self.total, self.done = what, bool(verbose), max(total, 1), 0
        self.start = self.shown = time.monotonic()

    def add(self, done: int) -> None:
        """So much more of the total is done."""
        self.done += done
        now = time.monotonic()
        if self.on and now - self.shown > 0.5:
            self.shown, part = now, min(1.0, self.done / self.total)
            left = (now - self.start) * (1 / part - 1)
            bar = "#" * int(30 * part)
            sys.stderr.write(f"\r{self.what} [{bar:<30}] {part:4.0%}, {left:.0f} s left ")
            sys.stderr.flush()

    def end(self) -> None:
        """All of it is done."""
        if self.on:
            seconds = time.monotonic() - self.start
            sys.stderr.write(f"\r{self.what} [{'#' * 30}] 100%, {seconds:.1f} s\n")

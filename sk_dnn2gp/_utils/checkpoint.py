"""What a fit has done so far, in a file, from which it goes on after a kill to the same result.

A fit is a chain of steps, each decided by those before it. What took long in a step is recorded; a
fit that begins with a file takes the records in their order for the steps it comes to, until they
are used up, and goes on by itself. A state, as of an optimiser between epochs, replaces the one
before it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._version import __version__
from .tensor_file import Reader, Writer, read, whole_or_not_at_all, write

__all__ = ["Checkpoint", "digest"]

# Seconds between two writings.
_INTERVAL = 1.0


def digest(value: Any) -> str:
    """A short text that tells arrays, or tensors by name, from others."""
    found = hashlib.sha256()
    for name, array in value.items() if isinstance(value, Mapping) else [("", value)]:
        numbers = np.ascontiguousarray(torch.as_tensor(array).detach().cpu().double().numpy())
        found.update(f"{name} {numbers.shape} ".encode() + numbers.tobytes())
    return found.hexdigest()[:16]


class Checkpoint:
    """The records and states of one fit, which ``identity`` tells from all others.

    Nothing is kept where ``path`` is None. ValueError if the file is of another fit, or of none.
    """

    def __init__(self, path: Any = None, identity: Mapping[str, str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        versions = {"the version of sk_dnn2gp": __version__, "that of torch": torch.__version__}
        self.identity = {**versions, **(identity or {})}
        self.records: list[Any] = []
        self.states: dict[str, Any] = {}
        self._place, self._written = 0, time.monotonic()
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        name = os.fspath(path)
        with open(path, "rb") as stream:
            try:
                content, tensors = read(stream)
                theirs, reader = dict(content["identity"]), Reader(tensors)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"checkpoint={name!r} is none of a fit: {error}") from error
        others = [key for key, value in self.identity.items() if theirs.get(key) != value]
        if others:
            raise ValueError(
                f"checkpoint={name!r} is of another fit: {', '.join(others)} differ(s). Delete the "
                "file, or give another path."
            )
        self.records, self.states = (
            reader.value(content["records"]),
            reader.value(content["states"]),
        )

    def recall(self) -> Any:
        """The record of the step that comes next; None where there is none."""
        if self._place == len(self.records):
            return None
        self._place += 1
        return self.records[self._place - 1]

    def keep(self, record: Any) -> None:
        """Add the record of the step that was taken."""
        if self.path is not None:
            self.records.append(record)
            self._place += 1
            self._write_in_time()

    def keep_state(self, name: str, state: Any) -> None:
        """Put a state in the place of the one before it."""
        if self.path is not None:
            self.states[name] = state
            self._write_in_time()

    def _write_in_time(self) -> None:
        if time.monotonic() - self._written >= _INTERVAL:
            self.write()
            self._written = time.monotonic()

    def write(self) -> None:
        """Put all of it into the file, whole or not at all."""
        assert self.path is not None
        writer = Writer()
        content = {
            "identity": self.identity,
            "records": writer.value(self.records, "records"),
            "states": writer.value(self.states, "states"),
        }
        with whole_or_not_at_all(self.path) as stream:
            write(stream, content, writer.tensors)

    def remove(self) -> None:
        """Take the file away: the fit is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

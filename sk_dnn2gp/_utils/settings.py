"""Checks of the settings that an object holds, by name."""

from __future__ import annotations

from typing import Any

__all__ = ["require"]


def require(
    owner: Any, name: str, kind: type, least: float, what: str, open_end: bool = False
) -> None:
    """Raise ValueError unless the setting is a ``kind`` of number, at least ``least``.

    ``open_end``: and not equal to it; ``what`` says so in the message.
    """
    value = getattr(owner, name)
    fine = isinstance(value, kind) and not isinstance(value, bool) and value >= least  # type: ignore[operator]
    if not fine or (open_end and value == least):
        raise ValueError(f"{type(owner).__name__}: {name} must be {what}, got {value!r}.")

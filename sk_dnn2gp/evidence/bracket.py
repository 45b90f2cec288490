"""Where a smooth function of one variable is highest, from its slopes at a few points."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Bracket", "Sample", "secant"]

# Where the value leaps over so little of θ, a branch of it ends there.
_LEAP = 0.02


class Sample(NamedTuple):
    """A value and its slope at one θ."""

    theta: float
    value: float
    slope: float


def secant(step: float, slope: float, new: float) -> float:
    """Newton's next step where the function bent down along the last one; uphill otherwise.

    Parameters
    ----------
    step : float
        The last one.
    slope, new : float
        Before and after it.

    Returns
    -------
    float
        Within ±1.
    """
    change = (new - slope) / step
    following = -new / change if change < 0 else math.copysign(2.0 * abs(step), new)
    return max(-1.0, min(1.0, following))


class Bracket:
    """The nearest samples that rise, to the left of the best θ, and that fall, to its right."""

    def __init__(self) -> None:
        self.rising: Sample | None = None
        self.falling: Sample | None = None

    def tighten(self, sample: Sample) -> None:
        """Take a sample as one end; an end on its wrong side was of another branch."""
        if sample.slope > 0:
            self.rising = sample
            if self.falling is not None and self.falling.theta <= sample.theta:
                self.falling = None
        else:
            self.falling = sample
            if self.rising is not None and self.rising.theta >= sample.theta:
                self.rising = None

    def within(self, theta: float, step: float) -> float:
        """The step from θ, or half the way to the end that it would pass."""
        end = self.rising if step < 0 else self.falling
        if end is None or end.theta == theta or abs(step) < abs(end.theta - theta):
            return step
        return 0.5 * (end.theta - theta)

    @property
    def leaps(self) -> bool:
        """Whether the value differs by more between near ends than their slopes explain."""
        if self.rising is None or self.falling is None:
            return False
        width = self.falling.theta - self.rising.theta
        explained = 2.0 * width * max(abs(self.rising.slope), abs(self.falling.slope))
        return width < _LEAP and abs(self.falling.value - self.rising.value) > explained

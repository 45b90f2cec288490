"""Where a smooth function of one variable is highest, from its slopes at a few points."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any, NamedTuple

__all__ = ["Bracket", "Sample", "secant"]

# Part of the difference of two slopes, over the distance, by which a value may miss what they say.
_SPARE = 0.5
# Nats beyond that which tell of another branch.
_LEAP = 0.01
# Nats to gain on the way to where a branch ends, for which no further step is worth its cost.
_NOTHING = 0.1


class Sample(NamedTuple):
    """A value and its slope at one θ, and what they are of."""

    theta: float
    value: float
    slope: float
    of: Any = None

    def leap_from(self, other: Sample) -> float:
        """How far the value is above (or below, if negative) what one smooth branch allows.

        Between two points a value changes by what the slopes between them add up to: where they
        are monotone, by no more than the larger and no less than the smaller of the two at the
        ends, times the distance. Half of the difference is given on top of it.

        Parameters
        ----------
        other : Sample

        Returns
        -------
        float
            0 where both may be of one branch.
        """
        width = self.theta - other.theta
        ends = width * self.slope, width * other.slope
        spare = _SPARE * (max(ends) - min(ends))
        change = self.value - other.value
        return max(0.0, change - max(ends) - spare) + min(0.0, change - min(ends) + spare)


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
    """The nearest samples that rise, to the left of the best θ, and that fall, to its right.

    ``wall``: a θ that the branch does not reach.
    """

    def __init__(self, wall: float = math.nan) -> None:
        self.rising: Sample | None = None
        self.falling: Sample | None = None
        self.wall = wall

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

    def within(self, sample: Sample, step: float) -> float:
        """The step from a sample, or half the way to the end that it would pass.

        0 where there is next to nothing to gain on the way to the wall.
        """
        theta, to_wall = sample.theta, self.wall - sample.theta
        if to_wall * step > 0:
            if abs(to_wall * sample.slope) < _NOTHING:
                return 0.0
            step = math.copysign(min(abs(step), 0.5 * abs(to_wall)), step)
        end = self.rising if step < 0 else self.falling
        if end is None or end.theta == theta or abs(step) < abs(end.theta - theta):
            return step
        return 0.5 * (end.theta - theta)

    def leaps(self, new: Sample, last: Sample) -> tuple[Sample | None, bool]:
        """The sample of a better branch that ``new`` fell off, if any; and whether it leapt up.

        Looked at are the last sample and the end beyond the best θ, seen from the new one.
        """
        if not math.isfinite(new.slope):
            return last, False
        end = self.rising if new.slope <= 0 else self.falling
        each = [(new.leap_from(one), one) for one in (last, end) if one is not None]
        better = [one for leap, one in each if leap < -_LEAP and one.value > new.value]
        highest = max(better, key=attrgetter("value"), default=None)
        return highest, any(leap > _LEAP for leap, _ in each)

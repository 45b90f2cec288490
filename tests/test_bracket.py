"""The bracket and the secants against functions whose maximum is known."""

import math
from types import SimpleNamespace

import pytest

from sk_dnn2gp.evidence.bracket import Bracket, Sample, secant
from sk_dnn2gp.evidence.search import _stationary

FUNCTIONS = {
    # name: (value, slope, where the maximum is)
    "parabola": (lambda t: -((t - 1.3) ** 2), lambda t: -2 * (t - 1.3), 1.3),
    "hyperbola": (lambda t: -math.cosh(t + 2), lambda t: -math.sinh(t + 2), -2.0),
    # Convex far from the maximum: Newton's steps alone run away there.
    "bell": (lambda t: math.exp(-t * t), lambda t: -2 * t * math.exp(-t * t), 0.0),
}


def maximum(value, slope, theta, n=40):
    """Secants within a bracket, as a search does them."""
    bracket, here = Bracket(), Sample(theta, value(theta), slope(theta))
    step = math.copysign(0.3, here.slope)
    for _ in range(n):
        if abs(here.slope) < 1e-9:
            break
        bracket.tighten(here)
        step = bracket.within(here, step)
        there = Sample(here.theta + step, value(here.theta + step), slope(here.theta + step))
        for end in (bracket.rising, bracket.falling):
            assert end is None or (end.theta - there.theta) * end.slope < 0  # never past an end
        step = secant(step, here.slope, there.slope)
        here = there
    return here.theta


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("start", [-3.0, 0.4, 2.5])
def test_the_maximum_is_found(name, start):
    value, slope, best = FUNCTIONS[name]
    # |slope| < 1e-9, over a second derivative of at least 1.
    assert maximum(value, slope, start) == pytest.approx(best, abs=1e-9)


def test_a_secant_is_newtons_step_of_a_parabola_and_at_most_one():
    assert secant(0.5, 2.0, 1.0) == pytest.approx(0.5)  # slope 2 - 2t: from t = 0.5 to 1
    assert secant(0.5, 1.0, 2.0) == 1.0  # bends up: twice as far
    assert secant(-0.1, -1.0, -1.5) == pytest.approx(-0.2)
    assert secant(0.1, 1.0, 0.99) == 1.0


def test_an_end_of_another_branch_is_forgotten():
    bracket = Bracket()
    bracket.tighten(Sample(1.0, 0.0, -1.0))
    bracket.tighten(Sample(2.0, 5.0, 1.0))  # rises to the right of what fell: another branch
    assert bracket.falling is None and bracket.rising.theta == 2.0
    bracket.tighten(Sample(1.5, 0.0, -1.0))
    assert bracket.rising is None and bracket.falling.theta == 1.5


@pytest.mark.parametrize(
    ("value", "leap"),
    [
        # From slope 1 to -1 over 0.2 a smooth branch changes by 0.2 at most, and half of what the
        # slopes differ by, 0.2 again, is given on top.
        (0.39, 0.0),
        (0.5, 0.1),
        (-0.39, 0.0),
        (-1.0, -0.6),
    ],
)
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_leap_is_what_slopes_do_not_explain(value, leap, side):
    one, other = Sample(0.0, 0.0, side), Sample(0.2 * side, value, -side)
    assert other.leap_from(one) == pytest.approx(leap, abs=1e-12)
    assert Sample(0.2, 0.2, 1.0).leap_from(Sample(0.0, 0.0, 1.0)) == pytest.approx(0.0, abs=1e-12)


class Branches:
    """A stands for θ < 1 alone; from there on minima are B's, which goes on to the left of it."""

    freedom = SimpleNamespace(room=lambda objective: (-9.0, 9.0))
    scale, left = 1.0, 100

    def __init__(self, a, b):
        self.branch = {"A": a, "B": b}  # the height of each and where it is highest
        self.steps = 0

    def trial(self, theta, name):
        height, top = self.branch[name]
        evidence = height - (theta - top) ** 2
        return SimpleNamespace(theta=theta, evidence=evidence, name=name, objective=None)

    def moved(self, before, step, exact=False):
        theta = before.theta + step
        self.steps += 1
        return self.trial(theta, "B" if before.name == "B" or theta >= 1.0 else "A")

    def slope(self, trial, roughly=False):
        return 2.0 * (self.branch[trial.name][1] - trial.theta)


@pytest.mark.parametrize(
    ("a", "b", "best"),
    [
        ((0.0, 0.5), (-3.0, 0.0), "A"),  # A has its maximum: B is never seen
        ((0.0, 1.2), (-3.0, 0.0), "A"),  # A ends on its way up, and B is lower
        ((0.0, 1.2), (1.0, 0.4), "B"),  # B is higher where A ends: followed, back to the left
        ((0.0, 1.2), (1.0, 1.5), "B"),
        ((0.0, -0.5), (5.0, 2.0), "A"),  # what is never met is never known
    ],
)
def test_branches_of_minima(a, b, best):
    minima = Branches(a, b)
    trial, slope = _stationary(minima, minima.trial(0.0, "A"))
    height, top = minima.branch[best]
    assert trial.name == best
    if best == "B" or top < 1.0:
        # 7e-4 of slope over a second derivative of 2.
        assert trial.theta == pytest.approx(top, abs=3.5e-4)
        assert abs(slope) < 7e-4
    else:
        assert slope > 0  # to where A ends, but for a tenth of a nat
        assert trial.evidence > height - (top - 1.0) ** 2 - 0.1
    assert minima.steps <= 6

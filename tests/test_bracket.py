"""The bracket and the secants against functions whose maximum is known."""

import math

import pytest

from sk_dnn2gp.evidence.bracket import Bracket, Sample, secant

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
        step = bracket.within(here.theta, step)
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
    ("width", "gap", "leaps"), [(0.01, 1.0, True), (0.01, 0.01, False), (1, 9, False)]
)
def test_a_leap_is_what_slopes_do_not_explain(width, gap, leaps):
    bracket = Bracket()
    bracket.tighten(Sample(0.0, 0.0, 1.0))
    assert not bracket.leaps  # one end tells nothing
    bracket.tighten(Sample(width, -gap, -1.0))
    assert bracket.leaps is leaps

"""300 random cases: each correct or a named error, nothing else (``make fuzz`` runs more)."""

from __future__ import annotations

import numpy as np
import pytest

from .cases import draw
from .check import outcome

N_CASES = 300


@pytest.mark.slow
@pytest.mark.parametrize("number", range(N_CASES))
def test_case(number):
    """Number ``number`` of seed 0; ``python -m tests.fuzz number`` runs it alone."""
    outcome(draw(number))


def test_a_number_is_one_case():
    """The same data and settings in every call, others under another number or seed."""
    one, again = draw(7), draw(7)
    np.testing.assert_array_equal(one.X, again.X)
    assert one.words == again.words
    assert draw(8).words != one.words
    assert draw(7, seed=1).words != one.words


def test_the_cases_reach_every_kind():
    """Every data set, network, noise, posterior, solver and inference is among the suite's."""
    cases = [draw(number) for number in range(N_CASES)]
    for name, least in {
        "data": 11, "weight": 5, "likelihood": 4, "posterior": 12, "solver": 8, "inference": 5,
        "groups": 4, "net": 8, "noise": 8,
    }.items():  # fmt: skip
        assert len({case.words[name] for case in cases if name in case.words}) == least, name

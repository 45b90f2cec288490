"""Factorisations name their failures, and variances are never clipped in silence."""

import pytest
import torch
from numpy.linalg import LinAlgError

from sk_dnn2gp._utils.linalg import CholeskyJitterWarning, cholesky, nonnegative_variance
from sk_dnn2gp._utils.memory import limit_in_bytes
from sk_dnn2gp._utils.threads import few_threads


def test_jitter_is_reported():
    a = torch.ones(3, 1, dtype=torch.float64)
    with pytest.warns(CholeskyJitterWarning, match=r"K needed jitter 1e-1\d times the mean"):
        L = cholesky(a @ a.T - 1e-14 * torch.eye(3, dtype=torch.float64), "K")
    torch.testing.assert_close(L @ L.T, a @ a.T, rtol=0, atol=1e-8)


def test_failures_say_what_to_change():
    with pytest.raises(LinAlgError, match="A is not positive definite.*Raise it"):
        cholesky(-torch.eye(2, dtype=torch.float64), "A", "Raise it.")
    with pytest.raises(LinAlgError, match="A holds NaN"):
        cholesky(torch.full((2, 2), torch.nan, dtype=torch.float64), "A")


def test_negative_variances():
    scale = torch.ones(2, dtype=torch.float64)
    rounding = torch.tensor([-1e-12, 0.5], dtype=torch.float64)
    assert nonnegative_variance(rounding, scale).tolist() == [0.0, 0.5]
    with pytest.raises(LinAlgError, match="negative by 1.0e-03"):
        nonnegative_variance(torch.tensor([-1e-3, 0.5], dtype=torch.float64), scale)


def test_memory_limit_must_be_positive():
    with pytest.raises(ValueError, match="memory_limit must be a positive"):
        limit_in_bytes(-1)


def test_threads_come_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with few_threads(1e6):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with few_threads(1e12):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

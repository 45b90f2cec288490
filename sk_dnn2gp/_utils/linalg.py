"""Factorisations in float64 whose failures are named, never silent (:ref:`math-numerics`)."""

from __future__ import annotations

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from .warn import warn

__all__ = ["CholeskyJitterWarning", "cholesky", "nonnegative_variance", "symmetric_eigenvalues"]

# Jitter relative to the mean diagonal: from rounding size, by tens, to a visible change.
_JITTERS = (1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)
# A variance below -1e-8 of its scale is an error and not rounding (math-numerics).
_VARIANCE_TOLERANCE = 1e-8


class CholeskyJitterWarning(UserWarning):
    """A Cholesky factorisation succeeded only after jitter was added to the diagonal."""


def cholesky(A: Tensor, what: str = "the matrix", advice: str = "") -> Tensor:
    """Lower Cholesky factor of A (n, n), with a reported jitter where rounding asks for it.

    Only A's lower triangle is read. ``what`` and ``advice`` name the matrix, and say what to
    change, in the message of the LinAlgError where A is not finite or not positive definite.
    """
    L, info = torch.linalg.cholesky_ex(A)
    if not info.any() and bool(torch.isfinite(L.diagonal(dim1=-2, dim2=-1)).all()):
        return L
    if not bool(torch.isfinite(A).all()):
        raise LinAlgError(f"{what} holds NaN or infinite entries. {advice}".strip())
    mean_diagonal = A.diagonal().mean()
    for relative in _JITTERS:
        jittered = A.clone()
        jittered.diagonal().add_(relative * mean_diagonal)
        L, info = torch.linalg.cholesky_ex(jittered)
        if not info.any():
            warn(
                f"The Cholesky factorisation of {what} needed jitter {relative:.0e} times the "
                f"mean of its diagonal ({float(mean_diagonal):.3g}). {advice}".strip(),
                CholeskyJitterWarning,
            )
            return L
    raise LinAlgError(
        f"{what} is not positive definite, not even with jitter {_JITTERS[-1]:.0e} times the mean "
        f"of its diagonal. {advice}".strip()
    )


def nonnegative_variance(variance: Tensor, scale: Tensor, what: str = "the variance") -> Tensor:
    """Round tiny negative variances to zero (:ref:`math-numerics`).

    They are differences of larger numbers; LinAlgError where one lies below -1e-8 times ``scale``,
    the prior variance.
    """
    if bool((variance < -_VARIANCE_TOLERANCE * scale).any()):
        worst = float((variance / scale.clamp_min(torch.finfo(variance.dtype).tiny)).min())
        raise LinAlgError(
            f"{what} is negative by {-worst:.1e} of its prior scale, more than rounding explains. "
            "The model is too badly conditioned: raise prior_precision or noise_std, or "
            "standardise the inputs."
        )
    return variance.clamp_min(0.0)


def symmetric_eigenvalues(A: Tensor) -> Tensor:
    """Eigenvalues of a positive semi-definite matrix, ascending, rounding below zero removed."""
    return torch.linalg.eigvalsh(A).clamp_min(0.0)

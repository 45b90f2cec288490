"""Laplace's approximation of a Gaussian process classifier with C classes and one kernel.

C latent functions, a priori independent with covariance K (n, n), and softmax probabilities π;
Rasmussen & Williams 2006, section 3.5, whose symbols these are: f, y, π are (n, C),
D_c = diag π_c, E_c = (K + D_c⁻¹)⁻¹, and with R the C identities one over the other

    (K + W⁻¹)⁻¹ = E - E R (Σ_c E_c)⁻¹ Rᵀ E        |I + K W| = Π_c |I + D_c^½ K D_c^½| · |Σ_c E_c|

(their algorithm 3.3 leaves the last factor out of the evidence).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._utils.warn import warn

__all__ = ["Mode", "find_mode", "latent"]

_MAX_ITER = 100
_HALVINGS = 30


class Mode(NamedTuple):
    """Where the posterior density is largest, and the curvature there."""

    a: Tensor  # K⁻¹ f, which is y - π at the mode: (n, C)
    E: Tensor  # (C, n, n)
    M: Tensor  # Cholesky factor of Σ_c E_c
    evidence: float
    n_iter: int


def _curvature(K: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E, the Cholesky factor of its sum, and ½ log |I + K W|."""
    root = p.mT.sqrt()  # (C, n)
    inner = root[:, :, None] * K * root[:, None, :]
    inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
    L = torch.linalg.cholesky(inner)
    E = root[:, :, None] * torch.cholesky_inverse(L) * root[:, None, :]
    M = torch.linalg.cholesky(E.sum(0))
    half = L.diagonal(dim1=-2, dim2=-1).log().sum() + M.diagonal().log().sum()
    return E, M, half


def _objective(a: Tensor, f: Tensor, Y: Tensor) -> float:
    """log p(y | f) - ½ fᵀ K⁻¹ f."""
    return float((Y * f).sum() - f.logsumexp(1).sum() - 0.5 * (a * f).sum())


def _newton(K: Tensor, f: Tensor, p: Tensor, Y: Tensor, E: Tensor, M: Tensor) -> Tensor:
    """a of the whole step (R&W algorithm 3.3)."""
    b = p * f - p * (p * f).sum(1, keepdim=True) + Y - p
    c = torch.einsum("cij,jc->ic", E, K @ b)
    shared = torch.cholesky_solve(c.sum(1, keepdim=True), M)
    return b - c + (E @ shared)[..., 0].mT


def find_mode(K: Tensor, Y: Tensor, tol: float = 1e-10) -> Mode:
    """The mode by Newton's method with halved steps; the objective is concave.

    K (n, n); Y (n, C), one-hot labels. It stops where a step raises the objective by less than
    ``tol`` for each sample; a ConvergenceWarning if 100 steps do not suffice.
    """
    a = torch.zeros_like(Y)
    f, value = a, _objective(a, a, Y)
    for n_iter in range(1, _MAX_ITER + 1):  # noqa: B007
        p = f.softmax(1)
        E, M, _ = _curvature(K, p)
        step = _newton(K, f, p, Y, E, M) - a
        before, t = value, 1.0
        for _ in range(_HALVINGS):
            tried = a + t * step
            f_tried = K @ tried
            value = _objective(tried, f_tried, Y)
            if value >= before:
                a, f = tried, f_tried
                break
            t /= 2
        value = max(value, before)
        if value - before < tol * len(K):
            break
    else:
        warn(f"The mode was not reached in {_MAX_ITER} Newton steps.",
                      ConvergenceWarning)  # fmt: skip
    E, M, half = _curvature(K, f.softmax(1))
    return Mode(a, E, M, value - float(half), n_iter)


def latent(mode: Mode, K_new: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (m, C) and covariance (m, C, C) of the latent functions at new samples (R&W algorithm
    3.4).

    ``K_new`` (m, n); ``prior`` (m,) is K(x, x) of the new samples.
    """
    Ek = mode.E @ K_new.mT  # (C, n, m)
    half = torch.linalg.solve_triangular(mode.M, Ek, upper=False)
    V = torch.einsum("cnm,dnm->mcd", half, half)
    own = prior[:, None] - torch.einsum("mn,cnm->mc", K_new, Ek)
    V.diagonal(dim1=-2, dim2=-1).add_(own)
    return K_new @ mode.a, V

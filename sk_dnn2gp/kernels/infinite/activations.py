"""Dual activations F = E[φ(u)φ(v)] with their partial derivatives (:ref:`math-infinite`).

(u, v) is Gaussian with variances k11, k22 and covariance k12. All are torch tensors that
broadcast: what belongs to the left arguments as (..., n, 1), to the right ones as (..., 1, m),
k12 as (..., n, m). ``D`` is ∂F/∂k12 = E[φ'(u)φ'(v)] (Price's theorem). What depends on one
argument alone (its variance, the coefficients of a series) is a `Side`, prepared once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from ..._utils.warn import warn

__all__ = ["Dual", "dual_activation"]

# Variances below it are those of zero rows; what is divided by them is zero there.
_TINY = 1e-14
# Trapezoidal rule on |z| <= 14 at spacing 0.04: for an integrand analytic in a strip of half width
# d its error is exp(-2πd/0.04), for tanh(√k z) 1e-107 at k = 4 and 2e-11 at k = 100.
_REACH, _NODES = 14.0, 701
_DROP = 1e-14  # of E[φ²]: terms n²a_n² below it are left out
_STATED = 1e-6  # a relative error above it is warned of


class Moments(NamedTuple):
    """F, its partials in k12 (D), k11, k22, and those of D (None unless asked for)."""

    F: Tensor
    D: Tensor
    F11: Tensor
    F22: Tensor
    D12: Any = None
    D11: Any = None
    D22: Any = None


@dataclass
class Side:
    """One argument: variances ``k`` (..., n), and ``A`` (terms, ..., n) where a series is used.

    ``span``: the least variance that is not of a zero row, and the largest.
    """

    k: Tensor
    A: Any = None
    span: tuple[float, float] = (0.0, math.inf)

    def at(self, view: Callable[[Tensor], Tensor]) -> Side:
        """The same with a view taken of each tensor's last axes."""
        return Side(view(self.k), None if self.A is None else view(self.A), self.span)

    @staticmethod
    def cat(parts: Sequence[Side]) -> Side:
        """Of samples one after the other; coefficients that one of them left out are zero."""
        k, A, (low, high) = torch.cat([p.k for p in parts], -1), None, parts[0].span
        for p in parts[1:]:
            low, high = min(low, p.span[0]), max(high, p.span[1])
        if parts[0].A is not None:
            terms = max(len(p.A) for p in parts)
            full = [p.A.new_zeros((terms, *p.k.shape)) for p in parts]
            for target, p in zip(full, parts, strict=True):
                target[: len(p.A)] = p.A
            A = torch.cat(full, -1)
        return Side(k, A, (low, high))


def _over(a: Tensor, b: Tensor) -> Tensor:
    """a / b, zero where b is."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


class Dual:
    """One activation; a subclass gives ``value``, ``derivative`` and ``moments``."""

    def side(self, k: Tensor) -> Side:
        """What depends on one argument alone, from its variances."""
        return Side(k)

    def value(self, k12: Tensor, left: Side, right: Side) -> Tensor:
        """F, in memory of its own."""
        return self.moments(k12, left, right).F

    def pair(self, k12: Tensor, left: Side, right: Side) -> tuple[Tensor, Tensor]:
        """F and D."""
        m = self.moments(k12, left, right)
        return m.F, m.D

    def moments(self, k12: Tensor, left: Side, right: Side, second: bool = False) -> Moments:
        """F with its partials, and those of D if ``second``."""
        raise NotImplementedError

    def diagonal(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F, D at k12 = k11 = k22 = k and their derivatives in k."""
        m = self.moments(k, Side(k), Side(k), second=True)
        return m.F, m.D, m.D + m.F11 + m.F22, m.D12 + m.D11 + m.D22


class LeakyReLU(Dual):
    """φ(x) = max(x, slope·x): arc-cosine kernel (Cho & Saul 2009); slope 1 is linear."""

    def __init__(self, slope: float) -> None:
        self.slope, self.b = slope, (1 - slope) ** 2 / (2 * math.pi)

    def side(self, k: Tensor) -> Side:
        low = torch.where(k > 0, k, math.inf).min().clamp_max(1.0)
        return Side(k, span=(float(low), float(k.max())))

    def _angles(self, k12: Tensor, left: Side, right: Side) -> tuple[Tensor, Tensor]:
        """q = √(k11 k22) sin θ and π - θ, the angle from q, so that in F their errors cancel."""
        k11, k22 = left.k, right.k
        small, large = (a * b for a, b in zip(left.span, right.span, strict=True))
        range_ = torch.finfo(k12.dtype)
        if small > 1e8 * range_.tiny and large < 1e-8 * range_.max:
            q = (k11 * k22).addcmul_(k12, k12, value=-1.0).clamp_min_(0.0).sqrt_()
        else:  # squares would leave the range of floating point
            S = k11.sqrt() * k22.sqrt()
            q = (S - k12).clamp_min_(0.0).sqrt_() * (S + k12).clamp_min_(0.0).sqrt_()
        angle = k12.neg()
        return q, torch.atan2(q, angle, out=angle)

    def value(self, k12: Tensor, left: Side, right: Side) -> Tensor:
        if self.slope == 1:
            return k12.clone()
        q, angle = self._angles(k12, left, right)
        F = q.addcmul_(k12, angle).mul_(self.b)
        return F.add_(k12, alpha=self.slope) if self.slope else F

    def pair(self, k12: Tensor, left: Side, right: Side) -> tuple[Tensor, Tensor]:
        q, angle = self._angles(k12, left, right)
        F = q.addcmul_(k12, angle).mul_(self.b).add_(k12, alpha=self.slope)
        return F, angle.mul_(self.b).add_(self.slope)

    def moments(self, k12: Tensor, left: Side, right: Side, second: bool = False) -> Moments:
        k11, k22 = left.k, right.k
        q, angle = self._angles(k12, left, right)
        D = self.slope + self.b * angle
        F = self.slope * k12 + self.b * (q + angle * k12)
        F11, F22 = (self.b * _over(q, 2 * k) for k in (k11, k22))
        if not second:
            return Moments(F, D, F11, F22)
        D12 = _over(torch.full_like(q, self.b), q)
        return Moments(F, D, F11, F22, D12, *(-_over(k12 * D12, 2 * k) for k in (k11, k22)))

    def diagonal(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half = torch.full_like(k, (1 + self.slope**2) / 2)
        return half * k, half, half, torch.zeros_like(k)


class Erf(Dual):
    """φ = erf (Williams 1997)."""

    def value(self, k12: Tensor, left: Side, right: Side) -> Tensor:
        c = (1 + 2 * left.k).rsqrt() * (1 + 2 * right.k).rsqrt()
        return c.mul_(k12).mul_(2.0).clamp_(-1.0, 1.0).asin_().mul_(2 / math.pi)

    def moments(self, k12: Tensor, left: Side, right: Side, second: bool = False) -> Moments:
        p, r = 1 + 2 * left.k, 1 + 2 * right.k
        Q = p * r - 4 * k12**2
        D = 4 / math.pi / Q.sqrt()
        F = self.value(k12, left, right)
        first = Moments(F, D, -k12 * D / p, -k12 * D / r)
        if not second:
            return first
        return Moments(*first[:4], 4 * k12 * D / Q, -r * D / Q, -p * D / Q)


class Sine(Dual):
    """φ = sin or cos: exp(-(k11 + k22)/2) times sinh or cosh of k12."""

    def __init__(self, cosine: bool) -> None:
        self.cosine = cosine

    def moments(self, k12: Tensor, left: Side, right: Side, second: bool = False) -> Moments:
        m = (left.k + right.k) / 2
        up, down = (k12 - m).exp() / 2, (-k12 - m).exp() / 2
        F, D = (up + down, up - down) if self.cosine else (up - down, up + down)
        return Moments(F, D, -F / 2, -F / 2, F, -D / 2, -D / 2)


class GELU(Dual):
    """φ(x) = x·P(Z < x) (Tsuchida et al. 2021); second partials by automatic differentiation."""

    @staticmethod
    def _first(k12: Tensor, k11: Tensor, k22: Tensor) -> tuple[Tensor, Tensor]:
        p = (1 + k11) * (1 + k22)
        delta2 = p - k12**2
        delta, arc = delta2.sqrt(), (k12 / p.sqrt()).asin()
        F = (k12**2 + k11 * k22 * delta2) / (p * delta) + k12 * arc
        slope = k12 / delta * (1 / delta2 + (1 - k11 * k22) / p + 1)
        return k12 / 4 + F / (2 * math.pi), 0.25 + (arc + slope) / (2 * math.pi)

    def value(self, k12: Tensor, left: Side, right: Side) -> Tensor:
        return self._first(k12, left.k, right.k)[0]

    def pair(self, k12: Tensor, left: Side, right: Side) -> tuple[Tensor, Tensor]:
        return self._first(k12, left.k, right.k)

    def moments(self, k12: Tensor, left: Side, right: Side, second: bool = False) -> Moments:
        full = [t.broadcast_to(k12.shape).clone() for t in (k12, left.k, right.k)]
        with torch.enable_grad():
            args = [t.requires_grad_() for t in full]
            F, D = self._first(*args)
            partials = torch.autograd.grad(F.sum(), args, retain_graph=second)
            seconds = torch.autograd.grad(D.sum(), args) if second else ()
        return Moments(F.detach(), D.detach(), *partials[1:], *seconds)


class Normaliser(Dual):
    """A layer normalisation: k12/√((k11 + eps)(k22 + eps)), the mean being zero."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def moments(self, k12: Tensor, left: Side, right: Side, second: bool = False) -> Moments:
        p, r = left.k + self.eps, right.k + self.eps
        D = p.rsqrt() * r.rsqrt()
        F = k12 * D
        D11, D22 = -D / (2 * p), -D / (2 * r)
        return Moments(F, D.broadcast_to(F.shape).clone(), -F / (2 * p), -F / (2 * r), 0.0 * D,
                       D11, D22)  # fmt: skip


class Hermite(Dual):
    """Any elementwise φ: F = Σ a_n(k11) a_n(k22) cⁿ in normalised Hermite polynomials.

    Coefficients by the trapezoidal rule, terms up to the degree ``terms`` or until n²a_n² falls
    below 1e-14 of E[φ²]. ``error`` states the relative error of F at c = 1 (where it is largest),
    from Parseval's identity; above 1e-6 a warning says so. For tanh with 300 terms: 3e-12 at k = 4,
    3e-8 at k = 10, 8e-6 at k = 25.
    """

    def __init__(self, phi: Callable, terms: int = 300) -> None:
        self.phi, self.terms = phi, terms
        self.z = np.linspace(-_REACH, _REACH, _NODES)
        root = np.exp(-(self.z**2) / 4)
        rows = [root, self.z * root]
        for n in range(1, terms + 2):
            rows.append((self.z * rows[n] - np.sqrt(n) * rows[n - 1]) / np.sqrt(n + 1))
        step = self.z[1] - self.z[0]
        self.w = root**2 * step / math.sqrt(2 * math.pi)
        self.h = np.array(rows) * root * (step / math.sqrt(2 * math.pi))  # degrees 0 to terms + 2
        self.parity = self._parity()

    def _parity(self) -> int | None:
        """0 for an even φ, 1 for an odd one, else None; raises unless φ is elementwise."""
        probe = self.z[::-10].reshape(1, -1)
        v, flat = np.asarray(self.phi(probe)), np.asarray(self.phi(probe.ravel()[:7]))
        same = v.shape == probe.shape and np.allclose(v[0, :7], flat, rtol=1e-9, atol=1e-12)
        if not same:
            raise ValueError(
                "activation must act on every element by itself, and this one does not."
            )
        mirrored = np.asarray(self.phi(-probe))
        size = np.abs(v).max()
        for parity, sign in ((0, 1.0), (1, -1.0)):
            if np.abs(v - sign * mirrored).max() <= 1e-15 * size:
                return parity
        return None

    def _phi(self, u: NDArray) -> NDArray:
        v = np.asarray(self.phi(u), dtype=np.float64)
        if not np.isfinite(v).all():
            raise ValueError("activation gives NaN or infinity at inputs of this size.")
        return v

    def _slope(self, u: NDArray, h: float = 1e-3) -> NDArray:
        """φ' by differences of fourth order: error of the size of rounding."""
        f = [self._phi(u + j * h) for j in (-2, -1, 1, 2)]
        return (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * h)

    def error(self, k: float) -> float:
        """Relative error of F at k11 = k22 = k12 = k: what the series lacks, and the quadrature."""
        phi = self._phi(math.sqrt(k) * self.z)
        total, coarse = phi**2 @ self.w, 2 * phi[::2] ** 2 @ self.w[::2]
        a = self.h[: self.terms + 1] @ phi
        # The trapezoidal rule errs by a third of what halving its step changes, or far less.
        return float((abs(total - a @ a) + abs(total - coarse) / 3) / total) if total > 0 else 0.0

    def _warn(self, k: float) -> None:
        error = self.error(k)
        if error > _STATED:
            warn(
                f"The Hermite series of activation has a relative error of up to {error:.0e} at "
                f"variance {k:.3g}: more terms (terms={self.terms}) or smaller sigma_w2 help where "
                "the activation is smooth.",
                UserWarning,
            )

    def side(self, k: Tensor) -> Side:
        flat = k.detach().reshape(-1).double().cpu().numpy().clip(_TINY)
        self._warn(float(flat.max()))
        A = np.empty((self.terms + 3, len(flat)))
        for start in range(0, len(flat), 2048):
            part = slice(start, start + 2048)
            A[:, part] = self.h @ self._phi(np.sqrt(flat[part]) * self.z[:, None])
        A = A[: self._kept(A) + 3]
        return Side(k, torch.from_numpy(A).to(k).reshape(len(A), *k.shape))

    def _kept(self, A: NDArray) -> int:
        """Highest degree whose term is worth its work."""
        n = np.arange(len(A))
        size = n * np.abs(A).max(1)
        total = np.sqrt((A**2).sum(0).max())
        kept = np.flatnonzero(size > math.sqrt(_DROP) * total)
        return min(int(kept[-1]) if len(kept) else 1, self.terms)

    def _correlation(self, k12: Tensor, left: Side, right: Side) -> tuple[Tensor, Tensor, Tensor]:
        s, t = left.k.clamp_min(_TINY).sqrt(), right.k.clamp_min(_TINY).sqrt()
        return (k12 / s / t).clamp_(-1.0, 1.0), s, t

    def _sum(self, c: Tensor, f: Callable, T: int, shift: int = 0) -> Tensor:
        """Σ over degrees n <= T of P_n Q_n c^(n - shift), (P_n, Q_n) = f(n), by Horner's rule."""
        first, step = (shift, 1) if self.parity is None else (self.parity, 2)
        first += 2 if first < shift else 0
        x = c if step == 1 else c * c
        out = torch.zeros_like(c)
        for n in reversed(range(first, T + 1, step)):
            P, Q = f(n)
            out.mul_(x).addcmul_(P, Q)
        return out.mul_(c) if first > shift else out

    def value(self, k12: Tensor, left: Side, right: Side) -> Tensor:
        c, _, _ = self._correlation(k12, left, right)
        A, B = left.A, right.A
        return self._sum(c, lambda n: (A[n], B[n]), self._degree(left, right))

    @staticmethod
    def _degree(left: Side, right: Side) -> int:
        return min(len(left.A), len(right.A)) - 3

    def pair(self, k12: Tensor, left: Side, right: Side) -> tuple[Tensor, Tensor]:
        c, s, t = self._correlation(k12, left, right)
        A, B, T = left.A, right.A, self._degree(left, right)
        D = self._sum(c, lambda n: (n * A[n], B[n]), T, shift=1)
        return self._sum(c, lambda n: (A[n], B[n]), T), D.div_(s).div_(t)

    def moments(self, k12: Tensor, left: Side, right: Side, second: bool = False) -> Moments:
        # One derivative on both sides, or two on one, is a shift of the coefficients.
        c, s, t = self._correlation(k12, left, right)
        A, B, T = left.A, right.A, self._degree(left, right)
        r = [math.sqrt((n + 1) * (n + 2)) for n in range(T + 1)]
        F, D = self.pair(k12, left, right)
        F11 = self._sum(c, lambda n: (r[n] / 2 * A[n + 2], B[n]), T) / s**2
        F22 = self._sum(c, lambda n: (r[n] / 2 * A[n], B[n + 2]), T) / t**2
        if not second:
            return Moments(F, D, F11, F22)
        D12 = self._sum(c, lambda n: (r[n] ** 2 * A[n + 2], B[n + 2]), T) / s**2 / t**2
        D11 = self._sum(c, lambda n: (n * r[n] / 2 * A[n + 2], B[n]), T, shift=1) / s**3 / t
        D22 = self._sum(c, lambda n: (n * r[n] / 2 * A[n], B[n + 2]), T, shift=1) / s / t**3
        return Moments(F, D, F11, F22, D12, D11, D22)

    def diagonal(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        flat = k.detach().reshape(-1).double().cpu().numpy().clip(_TINY)
        out = np.empty((4, len(flat)))
        for start in range(0, len(flat), 2048):
            part = slice(start, start + 2048)
            out[:, part] = self._quadrature(flat[part])
        return tuple(torch.from_numpy(a).to(k).reshape(k.shape) for a in out)  # type: ignore[return-value]

    def _quadrature(self, k: NDArray) -> tuple[NDArray, ...]:
        """The diagonal itself needs no series."""
        u = np.sqrt(k) * self.z[:, None]
        f, g = self._phi(u), self._slope(u)
        dF = (self.w * self.z) @ (f * g) / np.sqrt(k)
        return self.w @ f**2, self.w @ g**2, dF, (self.w * (self.z**2 - 1)) @ g**2 / (2 * k)


_SERIES = {"tanh": np.tanh, "sigmoid": expit, "swish": lambda x: x * expit(x)}


def dual_activation(activation: Any, *, slope: float = 0.01, terms: int = 300) -> Dual:
    """The dual of an activation given by name or as an elementwise callable on arrays.

    "relu", "leaky_relu" (of ``slope``), "linear", "erf", "sin", "cos", "gelu" in closed form;
    "tanh", "sigmoid", "swish" and callables by Hermite series of up to ``terms``. ValueError if the
    name is unknown, ``terms`` is no whole number above 1, or a callable is not elementwise.
    """
    closed = {
        "relu": lambda: LeakyReLU(0.0),
        "leaky_relu": lambda: LeakyReLU(slope),
        "linear": lambda: LeakyReLU(1.0),
        "erf": Erf,
        "sin": lambda: Sine(False),
        "cos": lambda: Sine(True),
        "gelu": GELU,
    }
    if not isinstance(terms, int | np.integer) or terms < 2:
        raise ValueError(f"terms must be a whole number above 1, got {terms!r}.")
    if isinstance(activation, str) and activation in closed:
        return closed[activation]()
    if callable(activation):
        return Hermite(activation, terms)
    if isinstance(activation, str) and activation in _SERIES:
        return Hermite(_SERIES[activation], terms)
    names = sorted([*closed, *_SERIES])
    raise ValueError(f"activation must be a callable or one of {names}, got {activation!r}.")

"""What kernels of infinitely wide networks share: checks, blocks, memory, parallel work.

The matrix is cut into panels whose marginals fit the memory limit (the unit of parallel work),
these into blocks that stay in the processor's cache. Inputs are (positions..., n_samples,
n_channels), so that dense and convolutional networks run the same code.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel
from torch import Tensor

from ..._utils.memory import batches, limit_in_bytes
from ..._utils.threads import few_threads, over_threads
from .activations import Hermite
from .walk import Activation, Mean, Residual, State, Tape, Walk

__all__ = ["InfiniteKernel", "Plan", "checked"]

# Bytes of a block over all positions: its few temporaries stay in cache.
_BLOCK = 2**20
_TEMPORARIES = {False: 10, True: 40}  # without and with gradients
_CHOICES = {torch.float32, torch.float64}


@dataclass
class Plan:
    """A network laid out: steps, positions at its widest and in all its activations together."""

    steps: tuple
    n_positions: int = 1
    n_marginals: int = 1
    spatial: bool = False
    joint: bool = False  # covariances between positions (global pooling)

    def walk(self, kernel: InfiniteKernel, gradient: bool, joint: bool) -> Walk:
        """The walk of pairs (``joint``: positions told apart) or marginals."""
        axes = (((0, 2), (1, 3)) if joint else ((0,), (1,))) if self.spatial else ()
        divide = getattr(kernel, "divide_by_filter_size", True)
        args = (float(kernel.sigma_w2), float(kernel.sigma_b2), gradient, kernel._tangent)
        return Walk(*args, divide, axes)

    @property
    def alone(self) -> tuple:
        """The steps that marginals can take."""
        ends = [i for i, s in enumerate(self.steps) if isinstance(s, Mean)] if self.joint else []
        return self.steps[: ends[0]] if ends else self.steps


class InfiniteKernel(Kernel):
    """Prior covariance of an infinitely wide network; a subclass says which."""

    _tangent = False

    def _plan(self, X: Any) -> Plan:
        """The network as steps, for inputs as `_input` gives them."""
        raise NotImplementedError

    def _input(self, X: ArrayLike, name: str) -> Tensor:
        """X checked, as (positions..., n_samples, n_channels)."""
        raise NotImplementedError

    @property
    def hyperparameter_sigma_w2(self) -> Hyperparameter:
        """σ_w² as scikit-learn's optimiser sees it."""
        return Hyperparameter("sigma_w2", "numeric", self.sigma_w2_bounds)

    @property
    def hyperparameter_sigma_b2(self) -> Hyperparameter:
        """σ_b² as scikit-learn's optimiser sees it."""
        return Hyperparameter("sigma_b2", "numeric", self.sigma_b2_bounds)

    def __call__(
        self, X: ArrayLike, Y: ArrayLike | None = None, eval_gradient: bool = False
    ) -> Any:
        """Kernel matrix, and its exact gradient in the logs of the free variances on request.

        Parameters
        ----------
        X : array-like of shape (n_samples_X, n_features)
        Y : array-like of shape (n_samples_Y, n_features), optional
            None is X.
        eval_gradient : bool
            Only with ``Y=None``.

        Returns
        -------
        K : ndarray of shape (n_samples_X, n_samples_Y)
        K_gradient : ndarray of shape (n_samples_X, n_samples_X, n_free)

        Raises
        ------
        ValueError
            If ``eval_gradient`` is asked for with Y, or a value is out of its range.
        """
        if eval_gradient and Y is not None:
            raise ValueError("Gradient can only be evaluated when Y is None.")
        x = self._input(X, "X")
        y = None if Y is None else self._input(Y, "Y")
        if y is not None and (x.shape[:-2], x.shape[-1]) != (y.shape[:-2], y.shape[-1]):
            raise ValueError(
                f"X and Y must have the same features, got {_shape(x)} for X and {_shape(y)} for Y."
            )
        K, G = self._matrix(x, y, eval_gradient)
        return (K, np.moveaxis(G[self._free()], 0, -1)) if eval_gradient else K

    def diag(self, X: ArrayLike) -> NDArray:
        """Diagonal of ``self(X)``, of shape (n_samples,), without the matrix."""
        x = self._input(X, "X")
        plan = self._checked_plan(x)
        out = np.empty(x.shape[-2])
        for r in batches(len(out), self._panel_length(plan, False)):
            part = x[..., r, :]
            out[r] = _numpy(self._own(plan, part, self._tape(plan, part, False), False)[0])
        return out

    def is_stationary(self) -> bool:
        """Whether K(x, x') depends on x - x' alone: no."""
        return False

    def _free(self) -> list[int]:
        # scikit-learn orders hyperparameters by name: sigma_b2 first, as the tangents here.
        pair = (self.hyperparameter_sigma_b2, self.hyperparameter_sigma_w2)
        return [j for j, h in enumerate(pair) if not h.fixed]

    def _checked_plan(self, x: Tensor) -> Plan:
        if not 0 < self.sigma_w2 < math.inf:
            raise ValueError(f"sigma_w2 must be positive and finite, got {self.sigma_w2!r}.")
        if not 0 <= self.sigma_b2 < math.inf:
            raise ValueError(f"sigma_b2 must be >= 0 and finite, got {self.sigma_b2!r}.")
        if self.sigma_b2 == 0 and not self.hyperparameter_sigma_b2.fixed:
            raise ValueError("sigma_b2=0 has no logarithm: give sigma_b2_bounds='fixed' with it.")
        return self._plan(x)

    def _matrix(self, x: Tensor, y: Tensor | None, gradient: bool) -> tuple[NDArray, NDArray]:
        plan, symmetric = self._checked_plan(x), y is None
        other = x if y is None else y
        n, m = x.shape[-2], other.shape[-2]
        K, G = np.empty((n, m)), np.empty((2 if gradient else 0, n, m))
        n_workers, length = effective_n_jobs(self.n_jobs), self._panel_length(plan, gradient)
        if n_workers > 1:
            length = min(length, max(1, -(-max(n, m) // (2 * n_workers))))
        rows, columns = list(batches(n, length)), list(batches(m, length))
        tasks = [(r, c) for r in rows for c in columns if not (symmetric and c.start < r.start)]
        progress = _Progress(self.verbose, n * m // 2 if symmetric else n * m)
        if n_workers == 1:
            for r, c in tasks:
                out = (K[r, c], G[:, r, c])
                self._panel(x[..., r, :], _columns(other, r, c, symmetric), gradient, out, progress)
        else:
            parts = Parallel(n_jobs=self.n_jobs, verbose=10 * bool(self.verbose))(
                delayed(_task)(self, x[..., r, :], _columns(other, r, c, symmetric), gradient)
                for r, c in tasks
            )
            for (r, c), (k, g) in zip(tasks, parts, strict=True):
                K[r, c], G[:, r, c] = k, g
        for r, c in tasks if symmetric else []:
            if r != c:
                K[c, r], G[:, c, r] = K[r, c].T, G[:, r, c].transpose(0, 2, 1)
        progress.end()
        return K, G

    def _panel(
        self, x: Tensor, y: Tensor | None, gradient: bool, out: tuple, progress: _Progress
    ) -> None:
        """Fill K and G of a panel; ``y=None`` is a panel on the diagonal."""
        plan, (K, G), symmetric = self._checked_plan(x), out, y is None
        left = self._tape(plan, x, gradient)
        right = left if y is None else self._tape(plan, y, gradient)
        walk, other = plan.walk(self, gradient, plan.joint), x if y is None else y

        def fill(r: slice, c: slice) -> None:
            state = walk.pairs(
                plan.steps,
                _products(x[..., r, :], other[..., c, :], plan.joint),
                left.at(partial(_left, r=r, joint=plan.joint)),
                right.at(partial(_right, c=c)),
            )
            _store(K, G, *self._value(state), r, c, symmetric)
            progress.add((r.stop - r.start) * (c.stop - c.start))

        side = self._block_side(plan, gradient)
        rows, columns = (list(batches(t.shape[-2], side)) for t in (x, other))
        blocks = [(r, c) for r in rows for c in columns if not (symmetric and c.start < r.start)]
        over_threads(fill, blocks)
        if symmetric:
            k, dk = self._own(plan, x, left, gradient)
            np.fill_diagonal(K, _numpy(k))
            for g, d in zip(G, dk, strict=True):
                np.fill_diagonal(g, _numpy(d))

    def _tape(self, plan: Plan, x: Tensor, gradient: bool) -> Tape:
        raw = (x * x).mean(-1)
        if not bool(torch.isfinite(raw).all()):
            raise ValueError("The kernel overflows: X is too large in size. Scale the inputs.")
        with few_threads(0.0):  # many short steps
            tape = plan.walk(self, gradient, False).marginals(plan.alone, raw)
        if not bool(torch.isfinite(tape.last.k).all()):  # type: ignore[union-attr]
            raise ValueError("The kernel overflows: X or sigma_w2 is too large, or depth.")
        return tape

    def _own(self, plan: Plan, x: Tensor, tape: Tape, gradient: bool) -> tuple:
        """K(x, x) of each sample and its tangents."""
        if not plan.joint:
            return self._value(tape.last)  # type: ignore[arg-type]
        walk, parts = plan.walk(self, gradient, True), []
        for r in batches(x.shape[-2], max(1, self._block_side(plan, gradient) ** 2)):
            mine, take = x[..., r, :], partial(_take, r=r)
            left = tape.at(partial(_right, c=r)).at(partial(torch.unsqueeze, dim=-2))
            left.after = [s.map(take) for s in tape.after]
            raw = torch.einsum("hwnc,xync->hwxyn", mine, mine) / x.shape[-1]
            state = walk.pairs(plan.steps, raw, left, tape.at(take), fix=True)
            parts.append(self._value(state))
        k = torch.cat([p[0] for p in parts])
        return k, tuple(torch.cat(d) for d in zip(*(p[1] for p in parts), strict=True))

    def _value(self, state: State) -> tuple[Tensor, tuple[Tensor, ...]]:
        return (state.T, state.dT) if self._tangent else (state.k, state.dk)  # type: ignore[return-value]

    def _panel_length(self, plan: Plan, gradient: bool) -> int:
        """Samples whose marginals, twice, take a quarter of the memory."""
        series = max((len_of_series(s) for s in _activations(plan.steps)), default=0)
        numbers = plan.n_marginals * (series + (16 if gradient else 6))
        limit = limit_in_bytes(self.memory_limit) / 8  # bytes of a quarter, twice
        return max(1, int(limit / 8 / numbers))

    def _block_side(self, plan: Plan, gradient: bool) -> int:
        positions = plan.n_positions ** (2 if plan.joint else 1)
        each = 16 * _TEMPORARIES[gradient] * torch.get_num_threads()  # half of the memory
        limit = limit_in_bytes(self.memory_limit) / each
        block = _BLOCK / self.dtype.itemsize
        return max(1, int(math.sqrt(min(block, limit) / positions)))


def len_of_series(step: Activation) -> int:
    """Coefficients that an activation keeps for each marginal."""
    return step.dual.terms + 3 if isinstance(step.dual, Hermite) else 0


def _activations(steps: Any) -> list[Activation]:
    found: list[Activation] = []
    for step in steps:
        if isinstance(step, Activation):
            found.append(step)
        elif isinstance(step, Residual):
            found += _activations((*step.shortcut, *step.body))
    return found


def _task(kernel: Any, x: Tensor, y: Tensor | None, gradient: bool) -> tuple[NDArray, NDArray]:
    n, m = x.shape[-2], (x if y is None else y).shape[-2]
    K, G = np.empty((n, m)), np.empty((2 if gradient else 0, n, m))
    kernel._panel(x, y, gradient, (K, G), _Progress(False, 1))
    return K, G


def _columns(other: Tensor, r: slice, c: slice, symmetric: bool) -> Tensor | None:
    return None if symmetric and r == c else other[..., c, :]


def _left(t: Tensor, r: slice, joint: bool) -> Tensor:
    return t[..., None, None, r, None] if joint else t[..., r, None]


def _right(t: Tensor, c: slice) -> Tensor:
    return t[..., None, c]


def _take(t: Tensor, r: slice) -> Tensor:
    return t[..., r]


def _products(x: Tensor, y: Tensor, joint: bool) -> Tensor:
    """x·y/C at every position, or at every pair of them."""
    if joint:
        return torch.einsum("hwrc,xysc->hwxyrs", x, y) / x.shape[-1]
    if x.shape[-1] == 1:
        return x * y.mT
    return (x @ y.mT).div_(x.shape[-1])


def _store(K: Any, G: Any, k: Tensor, g: Any, r: slice, c: slice, symmetric: bool) -> None:
    for target, block in ((K, k), *zip(G, g, strict=True)):
        values = _numpy(block)
        if symmetric and r == c:  # rounding may differ between the triangles
            values = np.triu(values) + np.triu(values, 1).T
        target[r, c] = values
        if symmetric and r != c:
            target[c, r] = values.T


def _numpy(t: Tensor) -> NDArray:
    return t.double().cpu().numpy()


def _shape(x: Tensor) -> str:
    return f"{tuple(x.shape[:-2])} positions of {x.shape[-1]} features"


def checked(X: ArrayLike, name: str, dtype: Any, device: Any) -> Tensor:
    """X as a finite tensor of the working dtype on the device.

    Parameters
    ----------
    X : array-like
    name : str
        For messages.
    dtype : torch.dtype
        float32 or float64.
    device : str or torch.device

    Returns
    -------
    Tensor

    Raises
    ------
    ValueError
        If X is empty or not finite, or the dtype is no other.
    """
    if dtype not in _CHOICES:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}.")
    X = np.asarray(X, dtype=np.float64)
    if 0 in X.shape:
        raise ValueError(f"{name} must be non-empty, got shape {X.shape}.")
    if not np.isfinite(X).all():
        raise ValueError(f"{name} contains NaN or infinity.")
    return torch.tensor(X, dtype=dtype, device=device)


class _Progress:
    """A bar on standard error for ``verbose`` kernels: parts done and the time still needed."""

    def __init__(self, verbose: Any, total: int) -> None:
        self.on, self.total, self.done = bool(verbose), max(total, 1), 0
        self.start = self.shown = time.monotonic()

    def add(self, entries: int) -> None:
        self.done += entries
        now = time.monotonic()
        if self.on and now - self.shown > 0.5:
            self.shown, part = now, min(1.0, self.done / self.total)
            left = (now - self.start) * (1 / part - 1)
            bar = "#" * int(30 * part)
            sys.stderr.write(f"\rkernel [{bar:<30}] {part:4.0%}, {left:.0f} s left ")
            sys.stderr.flush()

    def end(self) -> None:
        if self.on:
            sys.stderr.write(f"\rkernel [{'#' * 30}] 100%, {time.monotonic() - self.start:.1f} s\n")

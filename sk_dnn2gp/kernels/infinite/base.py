"""What kernels of infinitely wide networks share: checks, blocks, memory, parallel work.

The matrix is cut into panels whose marginals fit the memory limit (the unit of parallel work),
these into blocks that stay in the processor's cache. Inputs are (positions..., n_samples,
n_channels), so that dense and convolutional networks run the same code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel
from sklearn.utils import gen_batches
from torch import Tensor

from ..._utils.memory import limit_in_bytes
from ..._utils.progress import Bar
from ..._utils.threads import few_threads, over_threads
from .activations import Hermite
from .steps import Activation, Node, Weights
from .walk import Plan, Tape, Variances, Walk

__all__ = ["InfiniteKernel", "checked", "laid_out", "shaped"]

# Bytes of a block over all positions: three or four temporaries of a step stay in 2 MiB of cache.
_BLOCK = 2**19
_CHOICES = {torch.float32, torch.float64}


class InfiniteKernel(Kernel):
    """Prior covariance, or tangent kernel, of an infinitely wide network; a subclass says which.

    It stores what its constructor takes (`_keep`) and gives ``_nodes()``, the network, and
    ``_input()``, which lays X out.
    """

    sigma_w2: Any
    sigma_b2: Any
    sigma_w2_bounds: Any
    sigma_b2_bounds: Any
    dtype: Any
    device: Any
    memory_limit: float | None
    n_jobs: int | None
    verbose: int
    kind: str = "nngp"

    def _keep(self, given: dict[str, Any]) -> None:
        """Store the constructor's arguments, untouched."""
        self.__dict__.update({k: v for k, v in given.items() if k not in ("self", "__class__")})

    def _nodes(self) -> Sequence[Node]:
        """The network."""
        raise NotImplementedError

    def _input(self, X: ArrayLike, name: str) -> Tensor:
        """X checked, as (positions..., n_samples, n_channels)."""
        raise NotImplementedError

    @property
    def hyperparameter_sigma_w2(self) -> Hyperparameter:
        """σ_w² as scikit-learn's optimiser sees it."""
        return _hyperparameter("sigma_w2", self.sigma_w2, self.sigma_w2_bounds)

    @property
    def hyperparameter_sigma_b2(self) -> Hyperparameter:
        """σ_b² as scikit-learn's optimiser sees it."""
        return _hyperparameter("sigma_b2", self.sigma_b2, self.sigma_b2_bounds)

    def __call__(
        self, X: ArrayLike, Y: ArrayLike | None = None, eval_gradient: bool = False
    ) -> Any:
        """Kernel matrix (n_X, n_Y) (Y of None: X), and on request its exact gradient.

        The gradient (n_X, n_X, n_free) is in the logs of the free variances; ValueError if it is
        asked for with Y, or a value is out of its range.
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
        return (K, np.moveaxis(G, 0, -1)) if eval_gradient else K

    def diag(self, X: ArrayLike) -> NDArray:
        """Diagonal of ``self(X)``, (n_samples,), without the matrix; ValueError as calls."""
        x = self._input(X, "X")
        walk = self._walk(x, False)
        out = np.empty(x.shape[-2])
        for r in gen_batches(len(out), self._panel_length(walk)):
            out[r] = _numpy(walk.value(self._tape(walk, x[..., r, :]).last)[0])
        return out

    def is_stationary(self) -> bool:
        """Whether K(x, x') depends on x - x' alone: no."""
        return False

    def _layers(self, nodes: Sequence[Node]) -> tuple[Any, Any]:
        """(σ_w², σ_b²): one number, or one for every layer (every bias)."""
        return self.sigma_w2, self.sigma_b2

    def _variances(self, nodes: Sequence[Node]) -> list[Variances]:
        """Checked, layer by layer, with the places of the free ones in θ (biases come first)."""
        layers = [node.step for node in nodes if isinstance(node.step, Weights)]
        w, b = self._layers(nodes)
        free_b = not self.hyperparameter_sigma_b2.fixed
        w = _each_layer(w, "sigma_w2", len(layers), "layer")
        b = _each_layer(b, "sigma_b2", sum(layer.bias for layer in layers), "bias")
        if not all(0 < v < math.inf for v in w[0]):
            raise ValueError(f"sigma_w2 must be positive and finite, got {self.sigma_w2!r}.")
        if not all(0 <= v < math.inf for v in b[0]):
            raise ValueError(f"sigma_b2 must be >= 0 and finite, got {self.sigma_b2!r}.")
        if 0 in b[0] and free_b:
            raise ValueError("sigma_b2=0 has no logarithm: give sigma_b2_bounds='fixed' with it.")
        first = self.hyperparameter_sigma_b2.n_elements if free_b else 0
        place_w = None if self.hyperparameter_sigma_w2.fixed else first
        biases = iter(zip(*_numbered(b, 0 if free_b else None), strict=True))
        out = []
        for layer, v, i in zip(layers, *_numbered(w, place_w), strict=True):
            bias, j = next(biases) if layer.bias else (0.0, None)
            out.append(Variances(v, bias, i, j))
        return out

    def _walk(self, x: Tensor, gradient: bool) -> Walk:
        if self.kind not in ("nngp", "ntk"):
            raise ValueError(f"kind must be 'nngp' or 'ntk', got {self.kind!r}.")
        nodes = self._nodes()
        if self.kind == "ntk" and any(getattr(node.step, "gains", False) for node in nodes):
            raise ValueError(
                "The tangent kernel of a normalisation's own trained gains is not implemented: "
                "give LayerNorm elementwise_affine=False, GroupNorm affine=False."
            )
        plan = Plan(nodes, self._variances(nodes), tuple(x.shape[:-2]))
        return Walk(plan, gradient, self.kind == "ntk")

    def _matrix(self, x: Tensor, y: Tensor | None, gradient: bool) -> tuple[NDArray, NDArray]:
        walk, symmetric = self._walk(x, gradient), y is None
        other = x if y is None else y
        n, m = x.shape[-2], other.shape[-2]
        K, G = self._empty(n, m, gradient)
        n_workers, length = effective_n_jobs(self.n_jobs), self._panel_length(walk)
        if n_workers > 1:
            length = min(length, max(1, -(-max(n, m) // (2 * n_workers))))
        rows, columns = list(gen_batches(n, length)), list(gen_batches(m, length))
        tasks = [(r, c) for r in rows for c in columns if not (symmetric and c.start < r.start)]
        progress = Bar("kernel", self.verbose, n * m // 2 if symmetric else n * m)
        if n_workers == 1:
            for r, c in tasks:
                out = (K[r, c], G[:, r, c])
                self._panel(walk, x[..., r, :], _columns(other, r, c, symmetric), out, progress)
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

    def _empty(self, n: int, m: int, gradient: bool) -> tuple[NDArray, NDArray]:
        return np.empty((n, m)), np.empty((self.n_dims if gradient else 0, n, m))

    def _panel(self, walk: Walk, x: Tensor, y: Tensor | None, out: tuple, progress: Bar) -> None:
        """Fill K and G of a panel; ``y=None`` is a panel on the diagonal."""
        (K, G), symmetric, other = out, y is None, x if y is None else y
        left = self._tape(walk, x)
        right = left if y is None else self._tape(walk, y)

        def fill(r: slice, c: slice) -> None:
            _store(K, G, *walk.pairs(x, other, left, right, r, c), r, c, symmetric)
            progress.add((r.stop - r.start) * (c.stop - c.start))

        side = self._block_side(walk)
        rows, columns = (list(gen_batches(t.shape[-2], side)) for t in (x, other))
        blocks = [(r, c) for r in rows for c in columns if not (symmetric and c.start < r.start)]
        over_threads(fill, blocks)
        if symmetric:
            k, dk = walk.value(left.last)
            np.fill_diagonal(K, _numpy(k))
            for j, g in enumerate(G):
                np.fill_diagonal(g, _numpy(dk[j]) if j in dk else 0.0)

    def _tape(self, walk: Walk, x: Tensor) -> Tape:
        if not bool(torch.isfinite((x * x).mean(-1)).all()):
            raise ValueError("The kernel overflows: X is too large in size. Scale the inputs.")
        length = x.shape[-2] if not any(walk.plan.joint) else max(1, self._block_side(walk) ** 2)
        with few_threads(0.0):  # many short steps
            tape = Tape.cat([walk.alone(x[..., r, :]) for r in gen_batches(x.shape[-2], length)])
        if not bool(torch.isfinite(tape.last.k).all()):
            raise ValueError("The kernel overflows: X or sigma_w2 is too large, or depth.")
        return tape

    def _panel_length(self, walk: Walk) -> int:
        """Samples whose marginals, twice, take a quarter of the memory."""
        nodes, n_tangents = walk.plan.nodes, self.n_dims if walk.gradient else 0
        numbers = 0
        for i in walk.plan.met:
            count = math.prod(walk.plan.shapes[i])
            numbers += count * (len_of_series(nodes[i].step) + 6 + 5 * n_tangents)
        limit = limit_in_bytes(self.memory_limit) / 8  # bytes of a quarter, twice
        return max(1, int(limit / 8 / max(1, numbers)))

    def _block_side(self, walk: Walk) -> int:
        temporaries = 10 + (15 * self.n_dims if walk.gradient else 0)
        each = 16 * temporaries * torch.get_num_threads()  # half of the memory
        limit = limit_in_bytes(self.memory_limit) / each
        block = _BLOCK / self.dtype.itemsize
        return max(1, int(math.sqrt(min(block, limit) / walk.plan.n_positions)))


def _hyperparameter(name: str, value: Any, bounds: Any) -> Hyperparameter:
    if isinstance(value, str):
        return Hyperparameter(name, "numeric", "fixed")
    return Hyperparameter(name, "numeric", bounds, max(1, np.size(value)))


def _each_layer(value: Any, name: str, n: int, what: str) -> tuple[list[float], bool]:
    """One value for each of n layers, and whether each has its own."""
    if np.ndim(value) == 0:
        return [float(value)] * n, False
    values = [float(v) for v in value]
    if len(values) != n:
        raise ValueError(f"{name} must be one number or {n}, one for each {what}: {value!r}.")
    return values, True


def _numbered(each: tuple[list[float], bool], first: int | None) -> tuple[list[float], list]:
    """The values with the places of their hyperparameters (None: fixed)."""
    values, own = each
    if first is None:
        return values, [None] * len(values)
    return values, [first + i * own for i in range(len(values))]


def len_of_series(step: Any) -> int:
    """Coefficients that a step keeps for each marginal."""
    if not isinstance(step, Activation):
        return 0
    return step.dual.terms + 3 if isinstance(step.dual, Hermite) else 0


def _task(kernel: Any, x: Tensor, y: Tensor | None, gradient: bool) -> tuple[NDArray, NDArray]:
    out = kernel._empty(x.shape[-2], (x if y is None else y).shape[-2], gradient)
    kernel._panel(kernel._walk(x, gradient), x, y, out, Bar("kernel", False, 1))
    return out


def _columns(other: Tensor, r: slice, c: slice, symmetric: bool) -> Tensor | None:
    return None if symmetric and r == c else other[..., c, :]


def _store(K: Any, G: Any, k: Tensor, dk: Any, r: slice, c: slice, symmetric: bool) -> None:
    blocks = [(g, dk[j] if j in dk else torch.zeros_like(k)) for j, g in enumerate(G)]
    for target, block in ((K, k), *blocks):
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
    """X as a tensor of the working dtype on the device; ValueError if it is empty or not finite."""
    if dtype not in _CHOICES:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}.")
    X = np.asarray(X, dtype=np.float64)
    if 0 in X.shape:
        raise ValueError(f"{name} must be non-empty, got shape {X.shape}.")
    if not np.isfinite(X).all():
        raise ValueError(f"{name} contains NaN or infinity.")
    return torch.tensor(X, dtype=dtype, device=device)


def shaped(x: Tensor, shape: Any, name: str, option: str) -> Tensor:
    """Samples in the shape that an option states, if it does."""
    if shape is None:
        return x
    shape = tuple(int(s) for s in shape)
    if min(shape, default=0) < 1:
        raise ValueError(f"{option} must hold positive sizes, channels first, got {shape}.")
    if tuple(x.shape[1:]) != shape and (x.ndim != 2 or x.shape[1] != math.prod(shape)):
        raise ValueError(
            f"{name} has samples of shape {tuple(x.shape[1:])}, {option}={shape} needs that, or "
            f"{math.prod(shape)} features."
        )
    return x.reshape(len(x), *shape)


def laid_out(x: Tensor, name: str) -> Tensor:
    """Samples (n, channels, positions...) as (h, w, n, channels); rows of features as they are."""
    if x.ndim == 2:
        return x
    if x.ndim not in (3, 4):
        raise ValueError(f"{name} must be rows, sequences or images, got shape {tuple(x.shape)}.")
    return (x if x.ndim == 4 else x[:, :, None]).permute(2, 3, 0, 1).contiguous()

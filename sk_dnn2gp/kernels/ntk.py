"""The neural tangent kernel of a network for scikit-learn (:ref:`math-laplace`, :ref:`math-ntk`).

K(x, x') = J(x) J(x')ᵀ / δ: one unscaled Gram matrix serves every δ that an optimiser tries, so the
last one is kept, in a slot that clones share. Arrays are (n_samples, n_features), as scikit-learn
has them; ``input_shape`` gives images and sequences their shape back.
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
from torch import Tensor, nn

from .._utils.memory import MIB, limit_in_bytes
from ..linearize import Linearization

__all__ = ["NTKKernel", "network_module"]


def network_module(network: Any) -> nn.Module:
    """The module of a module, a fitted skorch net or a fitted estimator; else TypeError."""
    if isinstance(network, nn.Module):
        return network
    inner = getattr(network, "estimator", network)  # FrozenEstimator keeps its own there
    for candidate in (network, inner):
        module = getattr(candidate, "module_", None)
        if isinstance(module, nn.Module):
            return module
    raise TypeError(
        "network must be a torch.nn.Module, or an estimator or skorch net with a fitted module_; "
        f"got {type(network).__name__}. Fit it first."
    )


class _Slot:
    """The last unscaled Gram matrix with what it belongs to; shared by clones, never pickled."""

    def __init__(self) -> None:
        self.key: Any = None
        self.gram: Any = None
        self.n_computed = 0

    def __reduce__(self) -> tuple:
        return _Slot, ()


class NTKKernel(Kernel):
    """K(x, x') = J(x) J(x')ᵀ / δ: the tangent kernel of a network at its present weights.

    The prior covariance of the Gaussian process that a trained network is (:ref:`math-laplace`;
    Khan et al. 2019, theorem 1; Jacot et al. 2018). The network may be untrained, or at any point
    of training.

    Its matrix has a rank of at most n_params for each output. On more samples than that it is
    singular, and the evidence of a ``GaussianProcessRegressor`` with its default ``alpha=1e-10``
    meaningless, of the size of -1e10: add the noise, ``NTKKernel(...) + WhiteKernel()``. A kernel
    is not told what it is added to, so no warning says this.

    Parameters
    ----------
    network : torch.nn.Module, skorch net or fitted estimator with ``module_``
        Never modified.
    prior_precision : float, default=1.0
        δ.
    prior_precision_bounds : pair of float or "fixed", default=(1e-5, 1e5)
        Bounds of δ for an optimiser.
    output : "sum" or int, default="sum"
        The trace over the network's outputs, or one output's kernel.
    normalize : bool, default=False
        The correlation K(x, x') / √(K(x, x) K(x', x')); then δ cancels and is no hyperparameter.
    dtype : torch.dtype, default=torch.float64
        Precision of the work; the network's weights are converted. None: the network's own.
    input_shape : tuple of int, default=None
        Shape of one example, where the network does not take a vector of features.
    memory_limit : float, default=None
        MiB for temporary work; None is scikit-learn's ``working_memory``.
    n_jobs : int, default=None
        Processes or threads, as joblib has it, that share the blocks of the Gram matrix.

    Raises
    ------
    TypeError
        If ``network`` holds no torch module.
    ValueError
        If a parameter is out of its range, or X does not fit the network.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sk_dnn2gp.kernels import NTKKernel
    >>> NTKKernel(torch.nn.Linear(1, 1), prior_precision=2.0)(np.ones((1, 1))).item()
    1.0
    """

    def __init__(
        self,
        network: Any,
        *,
        prior_precision: float = 1.0,
        prior_precision_bounds: Any = (1e-5, 1e5),
        output: str | int = "sum",
        normalize: bool = False,
        dtype: torch.dtype | None = torch.float64,
        input_shape: Sequence[int] | None = None,
        memory_limit: float | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.network = network
        self.prior_precision = prior_precision
        self.prior_precision_bounds = prior_precision_bounds
        self.output = output
        self.normalize = normalize
        self.dtype = dtype
        self.input_shape = input_shape
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs
        self._slot = _Slot()  # not a parameter: what clones share

    @property
    def hyperparameter_prior_precision(self) -> Hyperparameter:
        """δ as scikit-learn's optimiser sees it."""
        bounds = "fixed" if self.normalize else self.prior_precision_bounds
        return Hyperparameter("prior_precision", "numeric", bounds)

    def __sklearn_clone__(self) -> NTKKernel:
        """A kernel of the same network (not of a copy), sharing the last Gram matrix."""
        twin = type(self)(**self.get_params(deep=False))
        twin._slot = self._slot
        return twin

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; those of the network are its own affair."""
        return super().get_params(deep=False)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return False
        mine, theirs = self.get_params(), other.get_params()
        pair = mine.pop("network"), theirs.pop("network")
        same = all(np.array_equal(mine[name], theirs[name]) for name in mine)
        return same and _same_network(*pair)

    def __hash__(self) -> int:
        return hash((type(self), str(self.output), bool(self.normalize), self.input_shape_))

    @property
    def input_shape_(self) -> tuple[int, ...] | None:
        """``input_shape`` as a tuple."""
        return None if self.input_shape is None else tuple(int(s) for s in self.input_shape)

    def __repr__(self) -> str:
        name = type(network_module(self.network)).__name__
        return f"{type(self).__name__}({name}, prior_precision={self.prior_precision:.3g})"

    def __call__(
        self, X: ArrayLike, Y: ArrayLike | None = None, eval_gradient: bool = False
    ) -> Any:
        """Kernel matrix (n_X, n_Y) (Y of None: X), and its gradient ∂K/∂log δ = -K on request.

        The gradient is of shape (n_X, n_X, 0 or 1). ValueError if it is asked for with Y, or X is
        not finite or does not fit.
        """
        if eval_gradient and Y is not None:
            raise ValueError("Gradient can only be evaluated when Y is None.")
        delta, Y = self._delta(), None if Y is X else Y
        X = self._checked(X, "X")
        unscaled = self._cached_gram(X) if Y is None else self._gram(X, self._checked(Y, "Y"))
        K = unscaled / delta  # always a new array: the callers add noise to it in place
        if not eval_gradient:
            return K
        if self.hyperparameter_prior_precision.fixed:
            return K, np.empty((*K.shape, 0))
        return K, -K[:, :, None]

    def diag(self, X: ArrayLike) -> NDArray:
        """Diagonal of ``self(X)``, of shape (n_samples,), without the matrix."""
        X = self._checked(X, "X")
        return np.ones(len(X)) if self.normalize else self._diagonal(X) / self._delta()

    def full(self, X: ArrayLike, Y: ArrayLike | None = None) -> NDArray:
        """The whole kernel: every output of every sample with every other.

        The ``full`` kernel of Khan et al.'s code; its blocks ``[:, k, :, k]`` are the kernels per
        output, and the sum over them is ``output="sum"``.

        Parameters
        ----------
        X, Y : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples_X, n_outputs, n_samples_Y, n_outputs)
        """
        lin = self._linearization()
        X_, Y_ = self._tensor(self._checked(X, "X")), None
        if Y is not None:
            Y_ = self._tensor(self._checked(Y, "Y"))
        K = lin.gram(X_, Y_).cpu().numpy() / self._delta()
        n = len(X_)
        return K.reshape(n, -1, n if Y_ is None else len(Y_), lin.n_outputs)

    def output_kernels(self, X: ArrayLike, Y: ArrayLike | None = None) -> NDArray:
        """One kernel per output (the ``diag`` aggregation of Khan et al.'s code).

        Parameters
        ----------
        X, Y : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_outputs, n_samples_X, n_samples_Y)
        """
        lin = self._linearization()
        X_ = self._tensor(self._checked(X, "X"))
        Y_ = None if Y is None else self._tensor(self._checked(Y, "Y"))
        K = lin.outputs(X_).shape[1]
        grams = [lin.gram_output(X_, Y_, k).cpu().numpy() for k in range(K)]
        return np.stack(grams) / self._delta()

    def is_stationary(self) -> bool:
        """Whether K(x, x') depends on x - x' alone: no."""
        return False

    def _delta(self) -> float:
        delta = float(self.prior_precision)
        if not 0 < delta < math.inf:
            raise ValueError(f"prior_precision must be positive and finite, got {delta!r}.")
        return 1.0 if self.normalize else delta

    def _check_output(self) -> None:
        if self.output != "sum" and (
            isinstance(self.output, bool) or not isinstance(self.output, int | np.integer)
        ):
            raise ValueError(f"output must be 'sum' or the index of one, got {self.output!r}.")

    def _linearization(self) -> Linearization:
        self._check_output()
        module = network_module(self.network)
        return Linearization(module, dtype=self.dtype, memory_limit=self.memory_limit)

    def _checked(self, X: ArrayLike, name: str) -> NDArray:
        X = np.asarray(X)
        if X.dtype.kind not in "fiub":
            X = X.astype(np.float64)
        if X.ndim < 2 or len(X) == 0:
            raise ValueError(
                f"{name} must be an array (n_samples, n_features) with at least one sample, got "
                f"shape {X.shape}."
            )
        if X.dtype.kind == "f" and not np.isfinite(X).all():
            raise ValueError(f"{name} contains NaN or infinity.")
        return X

    def _tensor(self, X: NDArray) -> Tensor:
        """X as the network takes it: in its shape, as integers where it looks up tokens."""
        module = network_module(self.network)
        weight = next(module.parameters())
        tensor = torch.tensor(X, device=weight.device)
        if _takes_tokens(module):
            tensor = _whole_numbers(tensor)
        elif not tensor.is_floating_point():
            tensor = tensor.to(torch.float64)
        shape = self.input_shape_
        if shape is None:
            return tensor
        if tensor[0].numel() != math.prod(shape):
            raise ValueError(
                f"X has {tensor[0].numel()} features, input_shape={shape} needs {math.prod(shape)}."
            )
        return tensor.reshape(len(tensor), *shape)

    def _cached_gram(self, X: NDArray) -> NDArray:
        """The unscaled Gram matrix, from the slot where X and the weights are the same."""
        slot = self._slot
        module = network_module(self.network)
        options = (id(module), self.output, self.normalize, self.dtype, self.input_shape_)
        found = slot.key is not None and slot.key[0] == options
        if not (
            found
            and np.array_equal(slot.key[1], X)
            and _same_tensors(slot.key[2], _tensors(module))
        ):
            slot.gram = self._gram(X, None)
            slot.key = (options, X.copy(), [t.clone() for t in _tensors(module)])
            slot.n_computed += 1
        return slot.gram

    def _gram(self, X: NDArray, Y: NDArray | None) -> NDArray:
        self._check_output()
        x, y = self._tensor(X), None if Y is None else self._tensor(Y)
        task = (network_module(self.network), self.dtype, self.output)
        K = _parallel_gram(task, x, y, self.memory_limit, self.n_jobs)
        if not self.normalize:
            return K
        d = np.sqrt(K.diagonal() if Y is None else self._diagonal(X))
        d2 = d if Y is None else np.sqrt(self._diagonal(Y))
        K /= np.outer(_positive(d), _positive(d2))  # one division: symmetry stays exact
        if Y is None:
            np.fill_diagonal(K, 1.0)
        return K

    def _diagonal(self, X: NDArray) -> NDArray:
        x, lin = self._tensor(X), self._linearization()
        if self.output == "sum":
            blocks = lin.diagonal_blocks(x)
            return blocks.diagonal(dim1=-2, dim2=-1).sum(-1).cpu().numpy()
        unit = lin.unit_cotangents(int(self.output))
        return lin.diagonal_blocks(x, cotangents=unit)[:, 0, 0].cpu().numpy()


def _positive(d: NDArray) -> NDArray:
    """Norms, checked: an example whose Jacobian vanishes has no correlation with anything."""
    if not (d > 0).all():
        raise ValueError(
            f"normalize=True needs a positive K(x, x), but it is zero for {(d <= 0).sum()} samples."
        )
    return d


def _gram_block(task: tuple, x: Tensor, y: Tensor | None, memory_limit: float | None) -> NDArray:
    module, dtype, output = task
    lin = Linearization(module, dtype=dtype, memory_limit=memory_limit)
    K = lin.gram_trace(x, y) if output == "sum" else lin.gram_output(x, y, int(output))
    return K.cpu().numpy()


def _parallel_gram(
    task: tuple, x: Tensor, y: Tensor | None, memory_limit: float | None, n_jobs: int | None
) -> NDArray:
    """The Gram matrix by blocks of rows and columns, each a task for joblib."""
    n_workers = effective_n_jobs(n_jobs)
    if n_workers == 1 or len(x) < 2 * n_workers:
        return _gram_block(task, x, y, memory_limit)
    limit = limit_in_bytes(memory_limit) / MIB / n_workers
    rows = list(gen_batches(len(x), -(-len(x) // (2 * n_workers))))
    columns = rows if y is None else [slice(0, len(y))]
    pairs = [(r, c) for r in rows for c in columns if y is not None or c.start >= r.start]
    other = x if y is None else y
    blocks = Parallel(n_jobs=n_jobs)(
        delayed(_gram_block)(task, x[r], None if y is None and r == c else other[c], limit)
        for r, c in pairs
    )
    K = np.empty((len(x), len(other)))
    for (r, c), block in zip(pairs, blocks, strict=True):
        K[r, c] = block
        if y is None and r != c:
            K[c, r] = block.T
    return K


def _takes_tokens(module: nn.Module) -> bool:
    """Whether the first layer with weights looks them up by integers."""
    for layer in module.modules():
        if layer._parameters:
            return isinstance(layer, nn.Embedding)
    return False


def _whole_numbers(tensor: Tensor) -> Tensor:
    tokens = tensor.long()
    if not bool((tokens == tensor).all()):
        raise ValueError("network looks its input up in an Embedding: X must hold whole numbers.")
    return tokens


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*module.parameters(), *module.buffers())]


def _same_tensors(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        s.shape == t.shape and s.dtype == t.dtype and bool(torch.equal(s, t))
        for s, t in zip(a, b, strict=True)
    )


def _same_network(a: Any, b: Any) -> bool:
    a, b = network_module(a), network_module(b)
    if a is b:
        return True
    return repr(a) == repr(b) and _same_tensors(_tensors(a), _tensors(b))

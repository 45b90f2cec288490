"""Rows that are read a part at a time: as much of a Tensor's face as the rooms read.

Every room asks of its inputs ``len``, ``shape``, ``dtype``, ``device`` and parts by a slice or by
indices. A Tensor has them, and so has :class:`Streamed`, whose parts are read when they are asked
for: from an array on disk (``numpy.memmap``), from a torch Dataset by the loader of a network, or
from a Tensor in another precision. Nobody makes an array of all rows.

Shapes: rows (n_samples, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import gen_batches
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from .memory import chunk_length

__all__ = ["Loaded", "Streamed", "as_rows", "is_mapped", "moments", "rows_where"]

# Examples that a Dataset's loader is asked for at a time, unless it is the network's own.
_BATCH = 1024
_NO_TARGETS = "The Dataset's items hold no y: give pairs (x, y), or y itself beside it."


def input_tensor(X: NDArray) -> Tensor:
    """Copy to a tensor: float32 as it is, float64, or int64 for whole numbers (token indices)."""
    whole = np.issubdtype(X.dtype, np.integer)
    dtype = np.int64 if whole else np.float32 if X.dtype == np.float32 else np.float64
    return torch.tensor(np.ascontiguousarray(X, dtype=dtype))


def is_mapped(X: Any) -> bool:
    """Whether an array lies in a file (``numpy.memmap``, or a view of one)."""
    while isinstance(X, np.ndarray):
        if isinstance(X, np.memmap):
            return True
        X = X.base
    return False


def as_rows(X: Any) -> Any:
    """Rows for the rooms: of an array a copy, for it may change; what is rows already, itself."""
    return X if isinstance(X, (Streamed, Tensor)) else input_tensor(X)


def rows_where(X: Any, chosen: NDArray) -> Any:
    """The rows where ``chosen`` is true: of an array a copy, unless it is all of them."""
    if chosen.all():
        return X
    return X.take(np.flatnonzero(chosen)) if isinstance(X, Streamed) else X[chosen]


class _FromArray:
    """Reads rows of an array or a Tensor."""

    def __init__(self, X: Any) -> None:
        self.X = X

    def __call__(self, positions: range | NDArray) -> Tensor:
        at: Any = positions
        if isinstance(positions, range):  # neighbours: no copy but the one that is returned
            at = slice(positions.start, positions.stop, positions.step)
        return self.X[at] if isinstance(self.X, Tensor) else input_tensor(self.X[at])


class Loaded:
    """Reads rows of a Dataset through a loader: the first of each item is x, the second y.

    A DataLoader lends its Dataset, how it collates and its workers: order and batches are ours.
    ``loader`` makes an iterable of batches of a Dataset, as a skorch net's own ``get_iterator``.
    TypeError if the Dataset has no length or gives no tensors.
    """

    def __init__(self, dataset: Any, loader: Callable[[Any], Iterable] | None = None) -> None:
        if isinstance(dataset, DataLoader):
            loader = partial(
                DataLoader,
                batch_size=dataset.batch_size or _BATCH,
                collate_fn=dataset.collate_fn,
                num_workers=dataset.num_workers,
            )
            dataset = dataset.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{type(dataset).__name__} has no length and no order that can be repeated, and "
                "a fit reads its rows many times. Write them to a numpy.memmap, or give a Dataset "
                "with __len__ and __getitem__."
            )
        self.dataset, self.loader = dataset, loader

    def __call__(self, positions: Iterable[int]) -> Tensor:
        """x of these rows; ValueError where it is not finite."""
        rows = torch.cat([_part_of(item, 0) for item in self._items(positions)])
        if rows.is_floating_point() and not bool(torch.isfinite(rows).all()):
            raise ValueError("Input X contains NaN or infinity: clean it where items are made.")
        return rows

    def targets(self) -> NDArray:
        """y of all rows; ValueError if the items hold none."""
        if getattr(self.dataset, "y", self) is None:  # skorch's gives zeros then
            raise ValueError(_NO_TARGETS)
        items = self._items(range(len(self.dataset)))
        return torch.cat([_part_of(item, 1) for item in items]).numpy()

    def _items(self, positions: Iterable[int]) -> Iterator[Any]:
        """Batches of these rows; ValueError if they end early, or are more."""
        wanted = [int(i) for i in positions]
        subset = Subset(self.dataset, wanted)
        load = self.loader
        batches_ = DataLoader(subset, batch_size=_BATCH) if load is None else load(subset)
        found = 0
        try:
            for item in batches_:
                found += len(_part_of(item, 0))
                yield item
        except (IndexError, KeyError) as error:
            raise self._short(found, wanted) from error
        if found != len(wanted):
            raise self._short(found, wanted)

    def _short(self, found: int, wanted: list[int]) -> ValueError:
        return ValueError(
            f"{type(self.dataset).__name__} says that it has {len(self.dataset)} rows, and of the "
            f"{len(wanted)} rows asked for (from {wanted[0]} on) {found} came. Its __len__ must be "
            "the number of items, and its loader must give each once: no drop_last, no sampler."
        )


def _part_of(item: Any, place: int) -> Tensor:
    """x (0) or y (1) of a batch, as a Tensor."""
    if not isinstance(item, (tuple, list)):
        item = (item,)
    if place >= len(item):
        raise ValueError(_NO_TARGETS)
    if not isinstance(item[place], Tensor):
        what = "x" if place == 0 else "y"
        raise TypeError(
            f"The Dataset's {what} must be numbers, arrays or tensors of one shape, got "
            f"{type(item[place]).__name__} in a batch."
        )
    return item[place]


class Streamed:
    """Rows that are read when a part of them is asked for.

    Parameters
    ----------
    read : callable
        Positions (a range or an array of int) -> Tensor of those rows.
    positions : range or ndarray of int
        Which rows of the source these are.
    shape, dtype, device
        Of one row; and what parts are given in.
    """

    def __init__(
        self, read: Any, positions: Any, shape: tuple, dtype: torch.dtype, device: Any = "cpu"
    ) -> None:
        self._read, self._positions = read, positions
        self.shape = torch.Size((len(positions), *shape))
        self.dtype, self.device = dtype, torch.device(device)

    @classmethod
    def of(cls, X: Any) -> Streamed:
        """Rows of a Tensor or an array, which is not copied, or of a :class:`Loaded` Dataset."""
        if isinstance(X, Streamed):
            return X
        read = X if isinstance(X, Loaded) else _FromArray(X)
        n = len(X.dataset if isinstance(X, Loaded) else X)
        if n == 0:
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        one = _as_input(read(range(1)))
        device = X.device if isinstance(X, Tensor) else "cpu"
        return cls(read, range(n), tuple(one.shape[1:]), one.dtype, device)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Dimensions, that of the rows among them."""
        return len(self.shape)

    def __getitem__(self, part: Any) -> Tensor:
        """The rows of a slice or of indices, or one row."""
        if isinstance(part, (int, np.integer)) or getattr(part, "ndim", 1) == 0:
            return self[[int(part)]][0]
        return _as_input(self._read(self._at(part))).to(self.device, self.dtype)

    def take(self, part: Any) -> Streamed:
        """Some of the rows, not read yet."""
        return Streamed(self._read, self._at(part), tuple(self.shape[1:]), self.dtype, self.device)

    def _at(self, part: Any) -> Any:
        if isinstance(part, slice):
            return self._positions[part]
        part = part.cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
        return np.asarray(self._positions)[part]

    def to(self, *target: Any) -> Streamed:
        """The same rows on another device or in another precision, once they are read."""
        dtype, device = self.dtype, self.device
        for one in target:
            if isinstance(one, torch.dtype):
                dtype = one
            else:
                device = one
        return Streamed(self._read, self._positions, tuple(self.shape[1:]), dtype, device)

    def is_floating_point(self) -> bool:
        """Whether parts are of real numbers."""
        return self.dtype.is_floating_point

    def double(self) -> Streamed:
        """In float64."""
        return self.to(torch.float64)

    def detach(self) -> Streamed:
        """Itself: rows have no graph."""
        return self

    def cpu(self) -> Tensor:
        """All rows, read."""
        return self[:].cpu()


def _as_input(rows: Tensor) -> Tensor:
    """Of a kind of number that networks take, as :func:`input_tensor`."""
    if rows.is_floating_point():
        return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    return rows.long()


def moments(X: Any, weight: NDArray) -> tuple[NDArray, NDArray]:
    """Weighted mean and standard deviation of every feature, in chunks of the working memory."""
    total = weight.sum()
    mean, squares = np.zeros(X.shape[1:]), np.zeros(X.shape[1:])
    length = chunk_length(8 * 4 * float(np.prod(X.shape[1:])), None)
    parts = [(weight[part], part) for part in gen_batches(len(X), length)]
    for w, part in parts:
        mean = mean + w @ np.asarray(X[part], dtype=np.float64) / total
    for w, part in parts:
        squares = squares + w @ (np.asarray(X[part], dtype=np.float64) - mean) ** 2
    return mean, np.sqrt(squares / total)

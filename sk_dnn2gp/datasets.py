"""Data for examples and tests: small generators, and fetchers of the papers' data sets.

The fetchers read a local copy where there is one: an ``.npz`` file in the folder ``folder``, or in
the one named by the environment variable ``SK_DNN2GP_DATA``. Otherwise they ask scikit-learn's
:func:`~sklearn.datasets.fetch_openml`, which keeps what it fetched in its own cache.

Shapes: X (n_samples, n_features), y (n_samples,), images (n_samples, height, width[, 3]).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml
from sklearn.utils import Bunch, check_random_state

__all__ = [
    "fetch_cifar10",
    "fetch_mnist",
    "fetch_wine_quality_red",
    "make_ring_and_core",
    "make_sine_with_gap",
]

VARIABLE = "SK_DNN2GP_DATA"


def make_sine_with_gap(
    n_samples: int = 100,
    *,
    gap: tuple[float, float] = (-1.0, 1.5),
    noise: float = 0.1,
    random_state: Any = None,
) -> tuple[NDArray, NDArray]:
    """Noisy sine on [-4, 4] with no inputs inside a gap, after the paper's figure 3.

    Parameters
    ----------
    n_samples : int, default=100
    gap : tuple of two floats, default=(-1.0, 1.5)
        The open interval without inputs, inside [-4, 4].
    noise : float, default=0.1
        Standard deviation of the noise, in the units of y.
    random_state : int, RandomState or None, default=None

    Returns
    -------
    X : ndarray of shape (n_samples, 1)
        Sorted.
    y : ndarray of shape (n_samples,)

    Raises
    ------
    ValueError
        If the gap is not an interval inside [-4, 4], or ``noise`` is negative.

    Examples
    --------
    >>> from sk_dnn2gp.datasets import make_sine_with_gap
    >>> X, y = make_sine_with_gap(20, random_state=0)
    >>> X.shape, bool(((X < -1) | (X > 1.5)).all())
    ((20, 1), True)
    """
    low, high = gap
    if not -4 <= low < high <= 4 or high - low >= 8:
        raise ValueError(f"gap must be (low, high) with -4 <= low < high <= 4, got {gap!r}.")
    if noise < 0:
        raise ValueError(f"noise is a standard deviation and cannot be negative, got {noise!r}.")
    rng = check_random_state(random_state)
    x = np.sort(rng.uniform(0, 8 - (high - low), n_samples))  # along both sides, laid end to end
    x = np.where(x < low + 4, x - 4, x - 4 + (high - low))
    return x[:, None], np.sin(1.5 * x) + noise * rng.standard_normal(n_samples)


def make_ring_and_core(
    n_samples: int = 200, *, noise: float = 0.2, random_state: Any = None
) -> tuple[NDArray, NDArray]:
    """Two classes in the plane: a core around the origin and a ring of radius 2 about it.

    Parameters
    ----------
    n_samples : int, default=200
        The first half (rounded down) is the core.
    noise : float, default=0.2
        Standard deviation of the radius; the core's coordinates have twice it.
    random_state : int, RandomState or None, default=None

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
    y : ndarray of shape (n_samples,)
        0 in the core, 1 on the ring.

    Raises
    ------
    ValueError
        If ``noise`` is negative.

    Examples
    --------
    >>> from sk_dnn2gp.datasets import make_ring_and_core
    >>> X, y = make_ring_and_core(10, random_state=0)
    >>> X.shape, y.tolist()
    ((10, 2), [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """
    if noise < 0:
        raise ValueError(f"noise is a standard deviation and cannot be negative, got {noise!r}.")
    rng = check_random_state(random_state)
    n_core = n_samples // 2
    core = 2 * noise * rng.standard_normal((n_core, 2))
    angle = rng.uniform(0, 2 * np.pi, n_samples - n_core)
    radius = 2 + noise * rng.standard_normal(n_samples - n_core)
    ring = radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return np.vstack([core, ring]), np.repeat([0, 1], [n_core, n_samples - n_core])


def fetch_wine_quality_red(
    *, folder: str | os.PathLike | None = None, data_home: str | None = None
) -> Bunch:
    """UCI Red Wine Quality (1599 × 11), the data of the paper's figures 5 and 6.

    The local copy is ``uci_wine-quality-red.npz`` with arrays ``X`` and ``y``, and, if they are
    there, row indices ``train`` and ``test`` of shape (n_splits, n_rows).

    Parameters
    ----------
    folder : path, default=None
        Where a local copy may lie; None is the environment variable ``SK_DNN2GP_DATA``.
    data_home : str, default=None
        Cache of :func:`~sklearn.datasets.fetch_openml`.

    Returns
    -------
    Bunch
        ``data`` (1599, 11), ``target`` (1599,) quality from 3 to 8 as floats, and ``train`` and
        ``test`` if the local copy has them.

    Raises
    ------
    OSError
        If there is no local copy and OpenML cannot be reached.
    ValueError
        If a local copy lacks an array, or what was fetched is not what was asked for.

    Examples
    --------
    A local copy, here of two wines, is read without the network:

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sk_dnn2gp.datasets import fetch_wine_quality_red
    >>> folder = tempfile.TemporaryDirectory()
    >>> np.savez(Path(folder.name) / "uci_wine-quality-red.npz", X=np.ones((2, 11)), y=[5, 6])
    >>> fetch_wine_quality_red(folder=folder.name).data.shape
    (2, 11)
    >>> folder.cleanup()
    """
    local = _local("uci_wine-quality-red.npz", folder, ("X", "y"))
    if local is not None:
        rest = {name: local[name] for name in ("train", "test") if name in local}
        return Bunch(data=local["X"], target=local["y"].astype(float), **rest)
    data, labels = _openml("wine-quality-red", "uci_wine-quality-red.npz", data_home)
    return Bunch(data=data, target=_quality(labels))


def fetch_mnist(
    *,
    subset: str = "all",
    folder: str | os.PathLike | None = None,
    data_home: str | None = None,
) -> Bunch:
    """MNIST's handwritten digits as images of 28 × 28 bytes.

    The local copy is ``mnist.npz`` (all 70,000, test images last), or ``mnist_t10k.npz`` for the
    test images alone, with arrays ``images`` and ``labels``.

    Parameters
    ----------
    subset : {"all", "test"}, default="all"
        All 70,000 images, or the last 10,000, which are MNIST's test set.
    folder : path, default=None
        Where a local copy may lie; None is the environment variable ``SK_DNN2GP_DATA``.
    data_home : str, default=None
        Cache of :func:`~sklearn.datasets.fetch_openml`.

    Returns
    -------
    Bunch
        ``images`` uint8 (n_samples, 28, 28), ``data`` the same flattened to (n_samples, 784),
        ``target`` int64 (n_samples,).

    Raises
    ------
    OSError
        If there is no local copy and OpenML cannot be reached.
    ValueError
        If ``subset`` is neither of the two or a local copy lacks an array.

    Examples
    --------
    A local copy, here of two images, is read without the network:

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sk_dnn2gp.datasets import fetch_mnist
    >>> folder = tempfile.TemporaryDirectory()
    >>> images = np.ones((2, 28, 28))
    >>> np.savez(Path(folder.name) / "mnist_t10k.npz", images=images, labels=np.arange(2))
    >>> fetch_mnist(subset="test", folder=folder.name).images.shape
    (2, 28, 28)
    >>> folder.cleanup()
    """
    if subset not in ("all", "test"):
        raise ValueError(f"subset must be 'all' or 'test', got {subset!r}.")
    file = "mnist_t10k.npz" if subset == "test" else "mnist.npz"
    local = _local(file, folder, ("images", "labels"))
    if local is not None:
        return _image_bunch(local["images"], local["labels"])
    data, labels = _openml("mnist_784", file, data_home)
    last = slice(-10_000 if subset == "test" else None, None)
    return _image_bunch(data[last].reshape(-1, 28, 28), labels[last])


def fetch_cifar10(
    *, folder: str | os.PathLike | None = None, data_home: str | None = None
) -> Bunch:
    """CIFAR-10 as images of 32 × 32 × 3 bytes.

    The local copy is ``cifar10.npz`` with arrays ``images`` (n_samples, 32, 32, 3) and ``labels``.

    Parameters
    ----------
    folder : path, default=None
        Where a local copy may lie; None is the environment variable ``SK_DNN2GP_DATA``.
    data_home : str, default=None
        Cache of :func:`~sklearn.datasets.fetch_openml`.

    Returns
    -------
    Bunch
        ``images`` uint8 (n_samples, 32, 32, 3), ``data`` the same flattened to (n_samples, 3072),
        ``target`` int64 (n_samples,).

    Raises
    ------
    OSError
        If there is no local copy and OpenML cannot be reached.
    ValueError
        If a local copy lacks an array.

    Examples
    --------
    A local copy, here of two pictures, is read without the network:

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sk_dnn2gp.datasets import fetch_cifar10
    >>> folder = tempfile.TemporaryDirectory()
    >>> images = np.ones((2, 32, 32, 3))
    >>> np.savez(Path(folder.name) / "cifar10.npz", images=images, labels=np.arange(2))
    >>> fetch_cifar10(folder=folder.name).images.shape
    (2, 32, 32, 3)
    >>> folder.cleanup()
    """
    local = _local("cifar10.npz", folder, ("images", "labels"))
    if local is not None:
        return _image_bunch(local["images"], local["labels"])
    data, labels = _openml("CIFAR_10", "cifar10.npz", data_home)
    # OpenML keeps CIFAR's own order: all of red, then green, then blue.
    return _image_bunch(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _local(file: str, folder: Any, needed: tuple[str, ...]) -> dict[str, NDArray] | None:
    """Arrays of the local copy, or None where there is none."""
    place = folder if folder is not None else os.environ.get(VARIABLE)
    if not place or not (Path(place) / file).is_file():
        return None
    with np.load(Path(place) / file) as content:
        arrays = dict(content)
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"{Path(place) / file} lacks {missing}; it has {sorted(arrays)}.")
    return arrays


def _openml(name: str, file: str, data_home: str | None) -> tuple[NDArray, NDArray]:
    try:
        found = fetch_openml(
            name, version=1, as_frame=False, parser="liac-arff", data_home=data_home
        )
    except OSError as error:
        raise OSError(
            f"OpenML could not be reached for {name!r} ({error}). Put a local copy named {file} "
            f"into a folder and name that folder in the argument `folder` or in the environment "
            f"variable {VARIABLE}."
        ) from error
    return np.asarray(found.data), np.asarray(found.target)


def _quality(labels: NDArray) -> NDArray:
    """Wine quality 3..8; the copy on OpenML may number its six grades from 1."""
    grades = labels.astype(float)
    lowest, highest = grades.min(), grades.max()
    if (lowest, highest) == (1.0, 6.0):
        return grades + 2
    if (lowest, highest) != (3.0, 8.0):
        raise ValueError(f"Wine quality from 3 to 8 was expected, found {lowest} to {highest}.")
    return grades


def _image_bunch(images: NDArray, labels: NDArray) -> Bunch:
    images = np.ascontiguousarray(images).astype(np.uint8)
    data = images.reshape(len(images), -1)
    return Bunch(images=images, data=data, target=labels.astype(np.int64))

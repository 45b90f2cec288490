"""From what users give to the rows of a fit or a prediction: arrays, files, Datasets.

Everything is checked once, as scikit-learn checks it, and comes to the network as a tensor on its
device, or as rows that are read a part at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_consistent_length, gen_batches
from sklearn.utils.validation import (
    _check_sample_weight,
    _check_y,
    check_is_fitted,
    validate_data,
)
from skorch import NeuralNet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .._utils.progress import Bar
from .._utils.rows import Loaded, Streamed, as_rows, is_mapped, rows_where

__all__: list[str] = []

# Rows of a part of a prediction, beyond which ``verbose`` shows a bar.
_MANY = 1000


class RowsMixin:
    """How an estimator reads X, y and the weights of rows."""

    net: Any
    verbose: Any
    _result: Any

    def _validated(self, X: Any, y: Any = "no_validation", **check: Any) -> Any:
        """X (and y) checked as scikit-learn does; rows in a file or a Dataset are left there."""
        # Before scipy 1.13 one kind of sparse matrix is a dict; scikit-learn refuses it below.
        if isinstance(X, Mapping) and not issparse(X):
            raise ValueError(
                f"X is a dict of {list(X)}, and inputs here are one array: put its parts side by "
                "side, and take them apart in the network's forward."
            )
        own = self.net is not None
        if isinstance(X, (Dataset, DataLoader)):
            return self._validated_rows(Loaded(X, self._loader()), y, own, **check)
        mapped = is_mapped(X)
        numbers = "numeric" if own or mapped else np.float64
        checked = validate_data(self, X, y, dtype=numbers, allow_nd=own, **check)
        if not mapped:
            return checked
        alone = isinstance(y, str)
        return Streamed.of(checked) if alone else (Streamed.of(checked[0]), checked[1])

    def _validated_rows(self, loaded: Loaded, y: Any, own: bool, **check: Any) -> Any:
        """Rows of a Dataset, and its own y where None is given: the first row stands for all."""
        rows = Streamed.of(loaded)
        reset = check.get("reset", True)
        validate_data(self, rows[:1].numpy(), dtype="numeric", allow_nd=own, reset=reset)
        if isinstance(y, str):
            return rows
        y = _check_y(
            loaded.targets() if y is None else y,
            multi_output=check.get("multi_output", False),
            y_numeric=check.get("y_numeric", False),
            estimator=self,
        )
        check_consistent_length(rows, y)
        return rows, y

    def _loader(self) -> Any:
        """How a skorch net of the user's reads a Dataset when it predicts."""
        net = self.net.estimator if self._is_frozen else self.net
        return partial(net.get_iterator, training=False) if isinstance(net, NeuralNet) else None

    def _checked_training_set(
        self, X: Any, y: Any, sample_weight: ArrayLike | None, **check: Any
    ) -> tuple[Any, NDArray, NDArray]:
        """X, y and weights."""
        X, y = self._validated(
            X, y, ensure_min_samples=2, y_numeric=check.pop("y_numeric", True), **check
        )
        if sample_weight is None:
            weight = np.ones(len(X))
        else:
            weight = _check_sample_weight(
                sample_weight, y, dtype=np.float64, ensure_non_negative=True
            )
        return X, y, weight

    @staticmethod
    def _without_zeros(X: Any, y: NDArray, weight: NDArray) -> tuple[Any, NDArray, NDArray]:
        """The rows of positive weight."""
        X, y, weight = (rows_where(rows, weight > 0) for rows in (X, y, weight))
        if len(X) < 2:
            raise ValueError(
                f"sample_weight and class_weight leave {len(X)} sample(s) with a positive weight; "
                "2 are needed."
            )
        return X, y, weight

    def _checked_inputs(self, X: Any) -> Any:
        """Test inputs as the rows that the linearisation takes."""
        check_is_fitted(self)
        return self._as_inputs(self._validated(X, reset=False))

    def _as_inputs(self, X: Any) -> Any:
        """On the network's device; of the kind of number that it was trained with."""
        trained = self._result.model.X
        tensor = as_rows(X)
        if trained.is_floating_point() and not tensor.is_floating_point():
            tensor = tensor.to(trained.dtype)
        return tensor.to(trained.device)

    def _in_parts(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """``function`` of all inputs; of many, where ``verbose``, a part at a time under a bar."""
        if not self.verbose or len(inputs) <= _MANY:
            return function(inputs)
        bar, parts = Bar("prediction", True, len(inputs)), []
        for part in gen_batches(len(inputs), _MANY):
            parts.append(function(inputs[part]))
            bar.add(len(parts[-1]))
        bar.end()
        return torch.cat(parts)

    @property
    def _is_frozen(self) -> bool:
        return isinstance(self.net, FrozenEstimator)

"""The split for scores that need no held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import _num_samples

__all__ = ["TrainingSetSplit"]


class TrainingSetSplit:
    """One split whose training set and test set are both all of the data.

    For scores that need no held-out data, such as :data:`marginal_likelihood_scorer`. Any other
    score computed with it is a training score. A halving search draws rows anew for training and
    for scoring unless its ``random_state`` is an integer: give it one.

    Examples
    --------
    >>> from sk_dnn2gp.model_selection import TrainingSetSplit
    >>> [(train.tolist(), test.tolist()) for train, test in TrainingSetSplit().split([5, 6, 7])]
    [([0, 1, 2], [0, 1, 2])]
    """

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[NDArray, NDArray]]:
        """Yield the one split.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like, default=None
            Not used.
        groups : array-like, default=None
            Not used: nothing is separated.

        Yields
        ------
        train, test : ndarray of shape (n_samples,)
            All indices, twice.
        """
        yield np.arange(_num_samples(X)), np.arange(_num_samples(X))

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return 1.

        Parameters
        ----------
        X, y, groups : object, default=None
            Not used.

        Returns
        -------
        int
        """
        return 1

    def __repr__(self) -> str:
        return "TrainingSetSplit()"

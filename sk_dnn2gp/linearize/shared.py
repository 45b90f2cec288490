"""A linearisation's sums over rows by several workers, where joblib offers them.

A network is sent once, and every other time only its weights w; the rows are sent once, or not at
all where they lie in a file. Shapes as in :mod:`.linearization`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .._utils.parallel import Kept, kept_rows, n_workers, over_workers, shards, state

__all__ = ["SharedPass", "add", "by_workers", "on_rows", "workers_of"]


def add(results: list[Any]) -> Any:
    """Their sum."""
    return sum(results[1:], start=results[0])


# How results of the shards become that of all rows.
_COMBINED: dict[str, Callable] = {"cat": torch.cat, "sum": add}


def workers_of(linearization: Any, X: Any, n_columns: float = 1.0, plan: Any = None) -> int:
    """Workers for a forward and a backward pass over X, with products of so many columns.

    ``plan``, where it is at hand, is that for data like X.
    """
    n = len(X)
    if linearization.device.type != "cpu" or n < 2:
        return 1
    plan = linearization._prepared(X)[1] if plan is None else plan
    return min(n, n_workers(6.0 * n * plan.n_outputs * linearization.n_params * n_columns))


def family_of(linearization: Any) -> tuple[Kept, Tensor]:
    """The network that stays with the workers, and the weights that make it this one."""
    fixed = linearization if linearization._flat is not None else linearization._family()
    if fixed._flat is None:
        fixed = fixed.at(linearization.weights())
    shared = fixed._shared
    if shared.kept is None:
        shared.kept = Kept(fixed)
    return shared.kept, linearization.weights()


def on_rows(function: Callable[..., Any], linearization: Any, X: Any, n: int, *each: list) -> list:
    """function(rows, network, w, *arguments) for every shard; ``each``: lists with one a shard."""
    family, w = family_of(linearization)
    rows = kept_rows(X, n)
    return over_workers(function, [(x, family, w, *a) for x, *a in zip(rows, *each, strict=True)])


def by_workers(*how: str, row_by_row: bool = False, columns: str = "") -> Callable:
    """Let workers share the rows X of a method (X, argument=None) and add or join their results.

    ``how``: "cat" or "sum" for each result; ``row_by_row``: whether the argument is split as X is;
    ``columns``: the attribute that tells how many columns each row is multiplied with.
    """

    def decorate(method: Callable) -> Callable:
        name = method.__name__

        @wraps(method)
        def call(self: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
            n = workers_of(self, X, float(getattr(self, columns)) if columns else 1.0)
            if n < 2:
                return method(self, X, *args, **kwargs)
            parts = shards(len(X), n)
            names, keywords = [name] * len(parts), [next(iter(kwargs), None)] * len(parts)
            value: Any = next(iter((*args, *kwargs.values())), None)
            split = row_by_row and isinstance(value, Tensor)
            values = [value[part] if split else value for part in parts]
            return _combined(on_rows(_method, self, X, n, names, keywords, values), how)

        return call

    return decorate


def _combined(found: list[Any], how: tuple[str, ...]) -> Any:
    if len(how) == 1:
        return _COMBINED[how[0]](found)
    each = zip(*found, strict=True)
    return tuple(_COMBINED[one](list(parts)) for one, parts in zip(how, each, strict=True))


def _method(X: Any, family: Any, w: Tensor, name: str, keyword: str | None, value: Any) -> Any:
    method = getattr(family.at(w), name)
    if keyword is not None:
        return method(X, **{keyword: value})
    return method(X) if value is None else method(X, value)


class SharedPass:
    """A :class:`~.passes.Pass` of which every worker keeps a part: outputs, Jᵀu, Hessian products.

    A worker that has lost its part makes it anew.
    """

    def __init__(self, linearization: Any, X: Any, n: int) -> None:
        self._of, self._X, self._n = linearization, X, len(shards(len(X), n))
        self._parts, self._stamp = shards(len(X), n), uuid.uuid4().hex
        self.outputs = torch.cat(self._each(_outputs))

    def _each(self, function: Callable, *each: list) -> list[Tensor]:
        n = self._n
        return on_rows(function, self._of, self._X, n, [self._stamp] * n, [*range(n)], *each)

    def rows(self, C: Tensor) -> None:
        """None: rows are not sent; the workers sum their products."""

    def pull(self, u: Tensor) -> Tensor:
        """Σ_i J_iᵀ u_i, of shape (n_params,), float64."""
        return add(self._each(_pull, [u[part] for part in self._parts]))

    def hessian_products(self, loss: Any) -> Callable[[Tensor], Tensor]:
        """v -> H v of a loss that can be had ``of`` a part of the rows."""
        losses = [Kept(loss.of(part)) for part in self._parts]

        def product(v: Tensor) -> Tensor:
            return add(self._each(_product, losses, [v] * self._n))

        return product


def _passed(X: Any, family: Any, w: Tensor, stamp: str, k: int) -> Any:
    return state(("pass", k), stamp, lambda: family.at(w).forward(X))


def _outputs(X: Any, family: Any, w: Tensor, stamp: str, k: int) -> Tensor:
    return _passed(X, family, w, stamp, k).outputs


def _pull(X: Any, family: Any, w: Tensor, stamp: str, k: int, u: Tensor) -> Tensor:
    return _passed(X, family, w, stamp, k).pull(u)


def _product(X: Any, family: Any, w: Tensor, stamp: str, k: int, loss: Any, v: Tensor) -> Tensor:
    def make() -> Any:
        return _passed(X, family, w, stamp, k).hessian_products(loss)

    return state(("product", k), stamp, make)(v)

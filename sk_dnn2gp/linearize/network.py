"""A network at weights: which are w, whose they are, and the copy of the module that runs.

The weights are the module's own, which may change between calls, or those of :meth:`Network.at`,
which never do. What is known of the module is kept once for all that come of one another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._utils.copies import copied
from .._utils.rows import Streamed
from .choice import chosen_names, last_layer
from .layers import has_rule
from .plan import RulePlan, make_plan, slots_of
from .tape import Twin, whole_copy

__all__ = ["Network"]

Own = TypeVar("Own", bound="Network")


class _Shared:
    """What linearisations of one network share: the copy that runs, and a plan per kind of data."""

    def __init__(self) -> None:
        self.twin: Any = None  # a Twin, once data has been seen
        self.plans: dict[tuple, RulePlan] = {}
        self.kept: Any = None  # the network as workers keep it
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple:
        return _Shared, ()


class Network:
    """What a :class:`Linearization` runs; see there for its parameters and attributes.

    TypeError if ``module`` is no module.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: str | Sequence[str] | None,
        dtype: torch.dtype | None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}.")
        own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
        self._source = module if dtype is not None and dtype != own else None
        self._module = module if self._source is None else copied(module).to(dtype)
        self._shared = _Shared()
        self._flat: Tensor | None = None  # w where it is given, in the working precision
        self._cache: dict[str, Any] = {}
        names = chosen_names(self._module, parameters)
        named = dict(self._module.named_parameters())
        some = next(iter(named.values()))
        self.dtype, self.device = some.dtype, some.device
        if names is not None:
            self._set_names(names)

    def _set_names(self, names: tuple[str, ...]) -> None:
        named = dict(self._module.named_parameters())
        self.parameter_names = names
        self._shapes = [named[name].shape for name in names]
        self.parameter_sizes = tuple(shape.numel() for shape in self._shapes)
        self.n_params = sum(self.parameter_sizes)

    def __getattr__(self, name: str) -> Any:
        if name == "n_outputs":
            raise AttributeError("n_outputs is known after the first call with data: outputs(X).")
        if name in ("parameter_names", "parameter_sizes", "n_params"):
            raise AttributeError(
                f"{name} is known after the first call with data, e.g. outputs(X): which layer "
                "of this module is called last shows only then."
            )
        raise AttributeError(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def at(self: Own, w: Tensor) -> Own:
        """The same network at given weights (P,), in the order of ``parameter_names``, for good.

        Nothing is copied but w: all linearisations that come of one another by this method share
        one copy of the network and what is known of it. The weights that are not w, and buffers,
        are those of the module now; later changes of the module are not seen. The result is
        immutable, and safe to use from several threads. ValueError if w is not of that shape.
        """
        if w.shape != (self.n_params,):
            raise ValueError(f"w must have shape ({self.n_params},), got {tuple(w.shape)}.")
        found = object.__new__(type(self))
        found.__dict__.update(self._family().__dict__)
        found._flat = w.detach().to(self.device, self.dtype, copy=True)
        found._cache = {}
        return found

    @property
    def _named(self) -> dict[str, Tensor] | None:
        """The given weights by name, views of w; None where they are the module's own."""
        if self._flat is None:
            return None
        if "named" not in self._cache:
            parts = self._flat.split_with_sizes(self.parameter_sizes)
            each = zip(self.parameter_names, parts, self._shapes, strict=True)
            self._cache["named"] = {name: part.view(shape) for name, part, shape in each}
        return self._cache["named"]

    def _family(self: Own) -> Own:
        """A linearisation of a copy of the network that no one else holds."""
        if self._flat is not None:
            return self
        module = self._module if self._source is None else self._source
        chosen = set(self.parameter_names)
        others = [p for name, p in module.named_parameters() if name not in chosen]
        key = tuple((id(t), t._version) for t in (*others, *module.buffers()))
        if key != self._cache.get("key"):
            self._refresh()
            frozen = object.__new__(type(self))
            frozen.__dict__.update(self.__dict__, _source=None, _shared=_Shared(), _cache={})
            frozen._module = whole_copy(self._module)
            plans = self._plans.items()  # a chain knows the buffers of the layers it was made from
            frozen._plans.update((key, plan) for key, plan in plans if plan.chain is None)
            self._cache = {"key": key, "family": frozen}
        return self._cache["family"]

    @property
    def module(self) -> nn.Module:
        """A module at these weights; see the class."""
        if self._flat is None:
            return self._module
        if "module" not in self._cache:
            module = whole_copy(self._module)
            mine = dict(module.named_parameters())
            with torch.no_grad():
                for name, value in (self._named or {}).items():
                    mine[name].copy_(value)
            self._cache["module"] = module
        return self._cache["module"]

    @property
    def _twin(self) -> Any:
        return self._shared.twin

    @property
    def _plans(self) -> dict[tuple, RulePlan]:
        return self._shared.plans

    @property
    def n_outputs(self) -> int:
        """K, once the module has seen data; AttributeError before that."""
        for plan in list(self._plans.values()):
            return plan.n_outputs
        raise AttributeError("n_outputs is known after the first call with data, e.g. outputs(X).")

    def weights(self) -> Tensor:
        """w, of shape (n_params,), float64: in the order of ``parameter_names``."""
        if self._flat is not None:
            return self._flat.to(torch.float64, copy=True)
        self._refresh()
        named = dict(self._module.named_parameters())
        return torch.cat([named[n].detach().flatten() for n in self.parameter_names]).double()

    def leaves(self) -> dict[str, Tensor]:
        """The weights, to be differentiated in."""
        named = self._named or dict(self._twin.net.named_parameters())
        return {name: named[name].detach().requires_grad_() for name in self.parameter_names}

    @contextmanager
    def running(
        self, plan: RulePlan, weights: dict[str, Tensor] | None = None
    ) -> Iterator[Callable[[Tensor], Tensor]]:
        """The network as a function, at these weights or at tensors that stand for them.

        Chains need no turn at the shared copy.
        """
        if weights is not None:
            with self._twin.holding(weights) as net:
                yield net
        elif plan.chain is not None and self._flat is not None:
            yield partial(plan.chain.outputs, weights=self.chain_weights(plan))
        else:
            with self._twin.holding(self._named) as net:
                yield net

    def chain_weights(self, plan: RulePlan) -> list:
        """Weights of the layers of a plan's chain; given ones are found once."""
        assert plan.chain is not None
        named = self._named
        if named is None:
            return plan.chain.weights()
        if "chain" not in self._cache:
            self._cache["chain"] = plan.chain.weights([*named.values()], plan.places)
        return self._cache["chain"]

    def _refresh(self) -> None:
        """Bring a copy in another precision up to date with the module's present weights."""
        if self._source is None:
            return
        with torch.no_grad():
            for tensors in ("parameters", "buffers"):
                mine = list(getattr(self._module, tensors)())
                theirs = [t.detach() for t in getattr(self._source, tensors)()]
                if mine:
                    torch._foreach_copy_([t.detach() for t in mine], theirs)

    def _prepared(self, X: Tensor) -> tuple[Tensor, RulePlan]:
        """X in the working precision, part by part, and the plan for data of its kind."""
        if not isinstance(X, (Tensor, Streamed)):
            raise TypeError(f"X must be a torch.Tensor, got {type(X).__name__}.")
        X = X.detach()
        if X.ndim == 0 or len(X) == 0:
            raise ValueError(f"X must hold at least one example, got shape {tuple(X.shape)}.")
        if X.is_floating_point() and X.dtype != self.dtype:
            X = Streamed.of(X).to(self.dtype)  # type: ignore[assignment]
        self._refresh()
        key = (X.dtype, *X.shape[1:])
        if not self._has_twin() or key not in self._plans:
            with self._shared.lock:
                self._look_at(X, key)
        return X, self._plans[key]

    def _has_twin(self) -> bool:
        """Whether there is a copy to run, of the very weights that the module has."""
        twin = self._twin
        return twin is not None and (self._flat is not None or twin.is_current())

    def _look_at(self, X: Tensor, key: tuple) -> None:
        """Copy the module where that is due, and plan for data like X."""
        shared = self._shared
        if not self._has_twin():
            if shared.twin is not None:
                shared.plans = {}
            twin = Twin(self._module)
            if "parameter_names" not in self.__dict__:
                self._set_names(last_layer(twin, X))
            twin.watch(has_rule)
            shared.twin = twin
        if key not in shared.plans:
            slots = slots_of(self.parameter_names, self.parameter_sizes)
            with shared.twin.holding(self._named):
                shared.plans[key] = make_plan(shared.twin, slots, X)

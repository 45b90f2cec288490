"""What one call of a training closure shows of the network, seen through hooks.

The closure zeroes the gradients, calls the module on a batch, and returns the mean negative
log-likelihood after ``backward``. While it runs, hooks keep the inputs X, the outputs f, the
residuals r = ∂Σℓ/∂f, and for every layer with a rule its input a and the derivative g of its
output: the factors of :ref:`math-ntk`, from the closure's own two passes. All hooks are gone
afterwards.

Shapes: X (n, ...); f, r (n, K); sums of squares (P,) in the order of the optimiser's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_forward_pre_hook

from .._utils.warn import warn
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..linearize import Linearization
from ..linearize.factors import Slot
from ..linearize.layers import has_rule
from ..linearize.plan import RulePlan, factors_from_calls, make_plan, slots_of
from ..linearize.tape import Call, Twin, backward

__all__ = ["Observation", "Watcher", "check_reduction", "order_in", "parameter_names"]

# Numbers of a convolution's patches made at a time: 1 MiB in single precision.
_CACHED = 2**18

_PROTOCOL = (
    "The closure must zero the gradients, call the module once on the batch, and return the mean "
    "negative log-likelihood after loss.backward()."
)


@dataclass
class Observation:
    """One call of the closure at one set of weights."""

    loss: Tensor
    X: Tensor
    f: Tensor
    residual: Tensor
    squares: Tensor | None = None


@dataclass
class _Pass:
    """What the hooks have seen so far."""

    n_data: int
    X: Any = None
    f: Any = None
    output_derivative: Tensor | None = None
    calls: list[Call] = field(default_factory=list)
    derivatives: list[Tensor | None] = field(default_factory=list)
    squares: Tensor | None = None

    @property
    def scale(self) -> float:
        """N/n."""
        return self.n_data / len(self.f)

    def release(self) -> None:
        """Let go of the graph, whose hooks hold this pass: a cycle that no collector sees."""
        self.calls.clear()
        self.derivatives.clear()


class Watcher:
    """Calls closures and keeps what the network did meanwhile.

    The order of ``params`` is that of every flat vector. ``module``: the network; None takes the
    outermost module, called by the closure, that owns them all. ``factor``: outputs f -> L (n, K,
    K), and sums of squares are those of the rows LᵀJ; None: those of the per-example gradients.
    ``diagonal``: whether sums of squares are wanted.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        module: nn.Module | None,
        factor: Callable[[Tensor], Tensor] | None,
        diagonal: bool,
    ) -> None:
        self.params, self.module, self.factor = list(params), module, factor
        self.diagonal = diagonal
        self._plan: RulePlan | None = None
        self._layers: list[nn.Module] = []
        self._explicit: Linearization | None = None

    def observe(self, closure: Callable[[], Tensor], n_data: int) -> Observation:
        """Call the closure at the present weights; sums of squares are scaled to n_data examples.

        ValueError if it does not call the module once, or does not call ``backward``.
        """
        seen, handles = _Pass(n_data), []  # type: ignore[var-annotated]
        if self.module is None or (self.diagonal and self._plan is None):
            handles.append(register_module_forward_pre_hook(self._finder(seen, handles)))
        else:
            handles += self._install(seen)
        try:
            try:
                with torch.enable_grad():
                    loss = closure()
            finally:
                for handle in handles:
                    handle.remove()
            self._check(loss, seen)
            n = len(seen.f)
            r = seen.output_derivative * n  # type: ignore[operator]
            observation = Observation(loss.detach(), seen.X, seen.f, r)  # type: ignore[arg-type]
            if self.diagonal:
                observation.squares = self._squares(seen, observation)
            return observation
        finally:
            seen.release()

    def _finder(self, seen: _Pass, handles: list) -> Callable:
        """Hook on every module's call: takes the first that owns all the weights."""
        busy: list = []
        wanted = {id(p) for p in self.params}

        def find(module: nn.Module, args: tuple) -> None:
            if busy or (self.module is not None and module is not self.module):
                return
            if not wanted <= {id(p) for p in module.parameters()}:
                return
            busy.append(True)
            self.module = module
            if self.diagonal:
                self._make_plan(_first_tensor(args))
            handles.extend(self._install(seen))
            _keep_input(seen, args)

        return find

    def _make_plan(self, X: Tensor) -> None:
        """Look once at the network: which weights have a layer rule; the rest is explicit."""
        module = self.module
        assert module is not None
        names = parameter_names(module, self.params)
        twin = Twin(module)
        twin.watch(has_rule)
        slots = slots_of(names, [p.numel() for p in self.params])
        with torch.no_grad():
            plan = make_plan(twin, slots, X.detach())
        if plan.explicit:
            self._explicit = Linearization(module, parameters=names)
            warn(
                f"No layer rule serves {list(plan.explicit)}: the curvature of this network is "
                "taken from explicit derivatives of every example, a second forward pass and rows "
                "of the size of those weights in each step.",
                UserWarning,
            )
        self._layers = [layer for layer in module.modules() if has_rule(layer)]
        self._plan = plan

    def _install(self, seen: _Pass) -> list:
        module = self.module
        assert module is not None
        handles = []
        if self._plan is not None and self._explicit is None:
            for number, layer in enumerate(self._layers):
                if self._plan.serves[number]:
                    handles.append(layer.register_forward_hook(self._keeper(number, seen)))
        # After the layers' own, so that a module that is a layer itself is seen as one first.
        handles += [
            module.register_forward_pre_hook(lambda _, args: _keep_input(seen, args)),
            module.register_forward_hook(lambda _, __, f: self._keep_output(seen, f)),
        ]
        return handles

    def _keeper(self, number: int, seen: _Pass) -> Callable:
        by_gradient = self.factor is None

        def keep(_: nn.Module, args: tuple, z: Any) -> None:
            if not (isinstance(z, Tensor) and z.requires_grad):
                return
            edge = get_gradient_edge(z)
            place = len(seen.calls)
            seen.calls.append(Call(number, args[0].detach(), edge))
            seen.derivatives.append(None)
            if by_gradient:
                z.register_hook(lambda g: _store(seen.derivatives, place, g))

        return keep

    def _keep_output(self, seen: _Pass, f: Any) -> None:
        if not (isinstance(f, Tensor) and f.requires_grad):
            return
        if seen.f is not None:
            raise ValueError(f"The closure called the module twice. {_PROTOCOL}")
        seen.f = f.detach()
        if self.diagonal and self.factor is not None and self._explicit is None:
            C = self.factor(seen.f)
            gs = backward(f, seen.calls, C.to(f) * math.sqrt(seen.scale), keep_graph=True)
            seen.squares = self._sum_of_squares(seen.calls, gs)

        def keep(g: Tensor) -> None:
            seen.output_derivative = g.detach()

        f.register_hook(keep)

    def _squares(self, seen: _Pass, observation: Observation) -> Tensor:
        if self._explicit is not None:
            r = observation.residual[..., None]
            C = r if self.factor is None else self.factor(observation.f)
            total = self._explicit.ggn_diagonal(observation.X, cotangents=C.to(observation.f))
            order = order_in(self._explicit, parameter_names(self.module, self.params))  # type: ignore[arg-type]
            return total.to(self.params[0].dtype)[order].mul_(seen.scale)
        if seen.squares is not None:
            return seen.squares
        # The closure's loss is a mean: its derivatives are 1/n of each example's own.
        n = len(observation.f) * math.sqrt(seen.scale)
        gs = [None if g is None else g.detach()[:, None] * n for g in seen.derivatives]
        return self._sum_of_squares(seen.calls, gs)

    def _sum_of_squares(self, calls: list[Call], gs: Sequence[Tensor | None]) -> Tensor:
        assert self._plan is not None
        total = torch.empty(
            sum(p.numel() for p in self.params),
            dtype=self.params[0].dtype,
            device=self.params[0].device,
        )
        slots = self._plan.slots
        unused = {slot for pair in slots for slot in pair if slot is not None}
        with torch.no_grad():
            for group, derivatives in _groups(calls, gs, slots):
                for part in _parts(group, derivatives, self._layers):
                    some = [replace(call, x=call.x[part]) for call in group]
                    some_gs = [None if g is None else g[part] for g in derivatives]
                    for factor in factors_from_calls(some, some_gs, self._layers, slots):
                        _begin(total, unused & set(factor.slots))  # zeros that are in the cache
                        unused -= set(factor.slots)
                        factor.add_squares(total)
            _begin(total, unused)
        return total

    def _check(self, loss: Any, seen: _Pass) -> None:
        if seen.f is None:
            raise ValueError(
                "The closure did not call a module that holds the optimiser's weights, with "
                f"gradients enabled. {_PROTOCOL}"
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"The closure returned {type(loss).__name__}, not a loss. {_PROTOCOL}")
        if seen.output_derivative is None or all(p.grad is None for p in self.params):
            raise ValueError(f"The closure did not call loss.backward(). {_PROTOCOL}")


def check_reduction(
    seen: Observation, likelihood: Likelihood | None, sample_weight: Tensor | None
) -> None:
    """Raise ValueError where a loss is no mean negative log-likelihood, as far as derivatives tell.

    A residual p - e_y lies between -1 and 1: more comes of a sum over the batch. A Gaussian's, (f -
    y)/σ², tells what the mean is, without its constant.
    """
    wrong = "The closure's loss is not the batch's mean negative log-likelihood: "
    if isinstance(likelihood, Bernoulli | Categorical) and sample_weight is None:
        largest = float(seen.residual.abs().max())
        if 1.0 + 1e-3 < largest < math.inf:
            raise ValueError(
                f"{wrong}its derivative in an output is {largest:.3g} times what one example of "
                "the mean can have. Take reduction='mean', and no weights."
            )
    if isinstance(likelihood, Gaussian):
        s = torch.ones(()) if sample_weight is None else sample_weight[:, None]
        told = 0.5 * likelihood.noise_std**2 * float((seen.residual**2 / s).sum(1).mean())
        constant = seen.f.shape[1] * likelihood.log_normaliser() * float(s.mean())
        nearest = max(abs(float(seen.loss) - c) for c in (0.0, constant))
        # Twice what the loss can be: a sum over a batch is less by the square of its length.
        if 2.0 * nearest + 1e-3 * (1.0 + abs(constant)) < told < math.inf:
            raise ValueError(
                f"{wrong}it is {float(seen.loss):.4g}, and its derivatives tell of {told:.4g}, "
                "without the constant. Sum (f - y)²/2σ² over the outputs and take the mean over "
                "the batch."
            )


def _keep_input(seen: _Pass, args: tuple) -> None:
    seen.X = _first_tensor(args).detach()


def _store(derivatives: list, place: int, g: Tensor) -> None:
    earlier = derivatives[place]
    derivatives[place] = g if earlier is None else earlier + g


def _first_tensor(args: tuple) -> Tensor:
    if not args or not isinstance(args[0], Tensor):
        raise ValueError("The module must be called with the batch as its first argument.")
    return args[0]


def parameter_names(module: nn.Module, params: Sequence[Tensor]) -> list[str]:
    """Names of the optimiser's parameters in the module, in the optimiser's order."""
    names = {id(p): name for name, p in module.named_parameters()}
    return [names[id(p)] for p in params]


def order_in(linearization: Linearization, names: Sequence[str]) -> Tensor:
    """Places of the optimiser's weights in the linearisation's flat vector."""
    places, start = {}, 0
    for name, size in zip(
        linearization.parameter_names, linearization.parameter_sizes, strict=True
    ):
        places[name] = torch.arange(start, start + size, device=linearization.device)
        start += size
    return torch.cat([places[name] for name in names])


def _begin(total: Tensor, slots: Iterable[Slot]) -> None:
    for slot in slots:
        total[slot.place] = 0.0


def _groups(
    calls: Sequence[Call], gs: Sequence[Tensor | None], slots: Sequence[tuple]
) -> Iterator[tuple[list[Call], list[Tensor | None]]]:
    """Each call on its own, but all calls together where any two share a weight."""
    used = [slot for call in calls for slot in slots[call.layer] if slot is not None]
    if len(used) > len(set(used)):
        yield list(calls), list(gs)
        return
    for call, g in zip(calls, gs, strict=True):
        yield [call], [g]


def _parts(
    calls: Sequence[Call], gs: Sequence[Tensor | None], layers: Sequence[nn.Module]
) -> Iterator[slice]:
    """The examples in chunks whose patches stay in the cache, where a layer has any."""
    n = len(calls[0].x)
    most = max(_patch_numbers(layers[c.layer], g) for c, g in zip(calls, gs, strict=True))
    size = max(1, _CACHED // most) if most else n
    yield from gen_batches(n, size)


def _patch_numbers(layer: Any, g: Tensor | None) -> int:
    """Numbers in the patches of one example; 0 for a layer that makes none."""
    if g is None or not hasattr(layer, "kernel_size"):
        return 0
    positions = g[0, 0, 0].numel()
    return positions * layer.groups * layer.weight[0].numel()

"""What is known of a network once it has seen a few examples: which rule serves which weight.

A weight takes a layer rule only if the graph shows it used by recorded calls of such layers and
nowhere else, and if the rule's gradient equals autograd's on the examples. All others take the
explicit way: rows by ``torch.func``, or by one backward pass per example and row where the
network cannot be vectorised (GRU, LSTM).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .chain import Chain
from .factors import Factor, Rows, Slot
from .ggn import Size, size_of
from .layers import combine, factors_of
from .reverse import NotByExample
from .small import SmallChain, small_chain
from .tape import Call, Twin, backward

__all__ = ["RulePlan", "explicit_rows", "factors_from_calls", "make_plan"]

# Relative disagreement that rounding may cause, generously: a wrong rule errs in the first digit.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}


@dataclass
class RulePlan:
    """Which rule serves which weight, and what an example costs in memory."""

    slots: list[tuple[Slot | None, Slot | None]]
    explicit: tuple[str, ...]
    explicit_slots: tuple[Slot, ...]
    vectorised: bool = True
    by_example: bool = False
    is_twice_differentiable: bool = False  # until that is checked
    chain: Chain | None = None
    small: SmallChain | None = None
    n_outputs: int = 0
    n_params: int = 0
    sizes: tuple[Size, ...] = ()
    graph_bytes: float = 0.0
    pass_row_bytes: float = 0.0
    example_bytes: float = 0.0
    row_bytes: float = 0.0

    def pass_bytes(self, n_rows: int) -> float:
        """Bytes that an example takes while its ``n_rows`` rows are made into factors."""
        rows = 2 * (self.pass_row_bytes + self.row_bytes)
        return 2 * self.graph_bytes + self.example_bytes + n_rows * rows

    def held_bytes(self, n_rows: int) -> float:
        """Bytes of an example's factors."""
        return self.example_bytes + n_rows * self.row_bytes

    @cached_property
    def places(self) -> list:
        """Where W and b of each dense layer of a chain stand in w."""
        return [] if self.chain is None else [self.slots[i] for i in self.chain.numbers]

    @cached_property
    def is_whole(self) -> bool:
        """Whether w is W and b of every dense layer of a chain, one after the other."""
        slots = [slot for pair in self.places for slot in pair]
        ends = [0, *(slot.stop for slot in slots if slot is not None)]
        starts = [None if slot is None else slot.start for slot in slots]
        return starts == ends[:-1] and ends[-1] == self.n_params

    @cached_property
    def serves(self) -> list[bool]:
        """Whether calls of each layer are needed."""
        return [any(slot is not None for slot in pair) for pair in self.slots]


def slots_of(names: Sequence[str], sizes: Sequence[int]) -> dict[str, Slot]:
    """Place of each named parameter in the flat weight vector."""
    slots, start = {}, 0
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        slots[name] = Slot(start, start + size, index)
        start += size
    return slots


def make_plan(twin: Twin, slots: dict[str, Slot], X: Tensor) -> RulePlan:
    """Look at the network on up to four examples of X and choose the rules.

    ValueError if it does not return a row of outputs per example, mixes examples or is random.
    """
    # One example alone would hide what mixes several, and so would one twice.
    sample = X[:4]
    if len(X) == 1:
        other = 0.5 * sample + 0.25 if sample.is_floating_point() else sample
        sample = torch.cat([sample, other])
    layers = twin.layers
    check_independent(twin.net, sample)
    named = dict(twin.net.named_parameters())
    leaves = {n: named[n].detach().requires_grad_() for n in slots}
    meter = _Meter(leaves.values())
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda t: t):
        f, calls = twin.record(lambda: functional_call(twin.net, leaves, (sample,)))
    places = _places(twin.net, layers, slots)
    plan = _choose(f, calls, layers, places, leaves, slots)
    plan.graph_bytes = meter.total / len(sample)
    plan.n_params = sum(slot.size for slot in slots.values())
    if plan.explicit:
        plan.vectorised = _can_vectorise(twin, plan, sample)
    if twin.chain is not None and sample.ndim == 2 and not plan.explicit:
        plan.chain = twin.chain if _chain_agrees(twin.chain, sample, f, calls) else None
        if plan.chain is not None:
            plan.chain.numbers = [call.layer for call in calls]
            plan.small = small_chain(plan.chain, plan.slots)
    _count_memory(plan, f, calls, layers)
    return plan


def _count_memory(plan: RulePlan, f: Tensor, calls: list[Call], layers: list[nn.Module]) -> None:
    """Fill in the bytes: of a pass per example and row, of the factors kept after it."""
    size, n, K = f.element_size(), len(f), f.shape[1]
    plan.n_outputs = K
    calls = [call for call in calls if plan.serves[call.layer]]
    plan.by_example = plan.chain is None and _walks_by_example(f, calls)
    gs = backward(f, calls, torch.ones_like(f)[..., None])
    plan.pass_row_bytes = sum(g.numel() for g in gs if g is not None) * size / n
    factors = factors_from_calls(calls, gs, layers, plan.slots)
    plan.graph_bytes += sum(g.a.numel() for g in factors if hasattr(g, "a")) * size / n
    held = [factor.held_numbers(K) for factor in factors]
    plan.sizes = () if plan.explicit else tuple(size_of(factor) for factor in factors)
    n_explicit = sum(slot.stop - slot.start for slot in plan.explicit_slots)
    plan.example_bytes = size * sum(of_example for of_example, _ in held)
    plan.row_bytes = size * (n_explicit + sum(of_row for _, of_row in held))
    if plan.explicit:  # the vectorised pass holds every row's graph at once
        plan.pass_row_bytes += plan.graph_bytes


def _chain_agrees(chain: Chain, X: Tensor, f: Tensor, calls: list[Call]) -> bool:
    """Whether the chain gives the derivatives that autograd gives."""
    if not f.requires_grad:
        return False
    C = torch.linspace(0.5, 1.5, 2 * f.numel()).to(f).view(*f.shape, 2)
    true = backward(f, calls, C, keep_graph=True)
    weights = chain.weights()
    return _all_agree(true, chain.backward(C, chain.forward(X, weights)[1], weights))


def _all_agree(true: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> bool:
    largest = max((float(g.abs().max()) for g in true if g is not None), default=0.0)
    return len(true) == len(found) and all(
        (t is None and g is None)
        or (t is not None and g is not None and t.shape == g.shape)
        and _agree(t, g.flatten(), largest)
        for t, g in zip(true, found, strict=True)
    )


def _walks_by_example(f: Tensor, calls: list[Call]) -> bool:
    """Whether all rows can go backward at once, and it agrees with autograd."""
    if not calls or not f.requires_grad:
        return False
    C = torch.linspace(0.5, 1.5, 2 * f.numel()).to(f).view(*f.shape, 2)
    true = backward(f, calls, C, keep_graph=True)
    same = C[:1].expand_as(C)
    try:
        found = backward(f, calls, C, by_example=True)
        found_same = backward(f, calls, same, by_example=True, same=True)
    except (NotByExample, AttributeError, RuntimeError, TypeError):
        return False
    true_same = backward(f, calls, same, keep_graph=True)
    return _all_agree(true, found) and _all_agree(true_same, found_same)


class _Meter:
    """Adds up what a forward pass keeps for its backward pass, weights aside."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = {p.data_ptr() for p in weights}
        self.total = 0

    def pack(self, t: Tensor) -> Tensor:
        if t.data_ptr() not in self.weights:
            self.total += t.numel() * t.element_size()
        return t


def check_independent(net: nn.Module, sample: Tensor) -> None:
    """Raise ValueError where outputs for an example depend on the others, or on chance."""
    together = sample
    if len(sample) == 1 and sample.is_floating_point():
        together = torch.cat([sample, 0.5 * sample + 0.25])
    with torch.no_grad():
        f = checked_outputs(net, together)
        alone = torch.cat([checked_outputs(net, together[i : i + 1]) for i in range(len(sample))])
    f = f[: len(sample)]
    finite = torch.isfinite(f) & torch.isfinite(alone)
    scale = torch.where(finite, f, 0).abs().max() + torch.finfo(f.dtype).tiny
    tolerance = TOLERANCE.get(f.dtype, 2e-2)
    if bool(((f - alone).abs()[finite] > tolerance * scale).any()):
        raise ValueError(
            "module gives an example other outputs beside other examples than alone: it mixes "
            "examples (BatchNorm with batch statistics, an operation over the batch axis) or is "
            "random in eval mode. Its Jacobian per example is not defined. Use LayerNorm or "
            "GroupNorm, BatchNorm with running statistics, or F.dropout(training=self.training)."
        )


def checked_outputs(net: nn.Module, X: Tensor) -> Tensor:
    """f(X); ValueError if the module does not take X, or does not return (n_samples, n_outputs)."""
    try:
        f = net(X)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"module does not take X of shape {tuple(X.shape)} and dtype {X.dtype}: {error}"
        ) from error
    if not isinstance(f, Tensor):
        raise ValueError(
            f"module must return one tensor (n_samples, n_outputs), got {type(f).__name__}: wrap "
            "it in a module that returns the part to linearise."
        )
    if f.ndim != 2 or len(f) != len(X) or not f.is_floating_point():
        raise ValueError(
            f"module must return floating point outputs (n_samples, n_outputs) = ({len(X)}, K), "
            f"got shape {tuple(f.shape)} of {f.dtype}."
        )
    return f


def _places(
    net: nn.Module, layers: list[nn.Module], slots: dict[str, Slot]
) -> list[tuple[str | None, str | None]]:
    """Names of each layer's weight and bias among the chosen parameters (shared: one name)."""
    names = {id(p): n for n, p in net.named_parameters() if n in slots}
    found = []
    for layer in layers:
        weight, bias = (layer._parameters.get(role) for role in ("weight", "bias"))
        found.append((names.get(id(weight)), names.get(id(bias))))
    return found


def _choose(
    f: Tensor,
    calls: list[Call],
    layers: list[nn.Module],
    places: list[tuple[str | None, str | None]],
    leaves: dict[str, Tensor],
    slots: dict[str, Slot],
) -> RulePlan:
    expected = dict.fromkeys(slots, 0)
    for call in calls:
        for name in places[call.layer]:
            if name is not None:
                expected[name] += 1
    uses = _count_uses(f, leaves)
    good = {n for n in slots if uses[n] == expected[n]}
    pairs = _pairs(places, slots, good)
    good -= _disagreeing(f, calls, layers, pairs, {n: leaves[n] for n in good}, slots)
    pairs = _pairs(places, slots, good)
    rest = tuple(n for n in slots if n not in good)
    return RulePlan(pairs, rest, tuple(slots[n] for n in rest))


def _pairs(
    places: list[tuple[str | None, str | None]], slots: dict[str, Slot], good: set[str]
) -> list[tuple[Slot | None, Slot | None]]:
    """Slots of each layer's weight and bias, where the layer's rule serves them."""
    served: dict[str | None, Slot] = {n: slots[n] for n in good}
    return [(served.get(weight), served.get(bias)) for weight, bias in places]


def _count_uses(f: Tensor, leaves: dict[str, Tensor]) -> dict[str, int]:
    """How many operations of the graph use each leaf."""
    names = {id(p): n for n, p in leaves.items()}
    uses = dict.fromkeys(leaves, 0)
    seen, stack = set(), [f.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for after, _ in node.next_functions:
            name = names.get(id(getattr(after, "variable", None)))
            if name is not None:
                uses[name] += 1
            stack.append(after)
    return uses


def _disagreeing(
    f: Tensor,
    calls: list[Call],
    layers: list[nn.Module],
    pairs: list[tuple[Slot | None, Slot | None]],
    leaves: dict[str, Tensor],
    slots: dict[str, Slot],
) -> set[str]:
    """Names of the parameters whose rule gives another gradient than autograd."""
    if not leaves or not f.requires_grad:
        return set()
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(f.shape, generator=generator).to(f) + 0.5
    with torch.enable_grad():
        total = (f * u).sum()
    true = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
    gs = backward(f, calls, u[..., None], keep_graph=True)
    found: dict[Slot, Tensor] = {}
    for factor in factors_from_calls(calls, gs, layers, pairs):
        for rows in factor.explicit():
            found[rows.slots[0]] = rows.values.sum((0, 1))
    largest = max((float(t.abs().max()) for t in true if t is not None), default=0.0)
    return {
        name
        for name, t in zip(leaves, true, strict=True)
        if not _agree(t, found.get(slots[name]), largest)
    }


def _agree(true: Tensor | None, found: Tensor | None, largest: float) -> bool:
    """Whether two gradients agree to rounding, which is of the size of the largest gradient."""
    if true is None or found is None:
        other = true if found is None else found
        return other is None or not bool(other.any())
    t = true.flatten()
    relative = TOLERANCE.get(t.dtype, 5e-2) * float(t.abs().max())
    allowed = max(relative, 100 * torch.finfo(t.dtype).eps * largest)
    return not bool(((t - found).abs() > allowed).any())


def factors_from_calls(
    calls: Sequence[Call],
    gs: Sequence[Tensor | None],
    layers: Sequence[nn.Module],
    pairs: Sequence[tuple[Slot | None, Slot | None]],
) -> list[Factor]:
    """Factors of every parameter with a rule, each parameter in one factor."""
    found: list[Factor] = []
    for call, g in zip(calls, gs, strict=True):
        weight, bias = pairs[call.layer]
        if g is not None and (weight is not None or bias is not None):
            found += factors_of(layers[call.layer], call.x, g, weight, bias)
    return combine(found)


def explicit_rows(
    twin: Twin, plan: RulePlan, X: Tensor, C: Tensor, weights: Mapping[str, Tensor] | None
) -> Rows:
    """Rows of the parameters without a rule."""
    how = _vectorised_rows if plan.vectorised else _looped_rows
    with twin.holding(weights) as net:
        named = dict(net.named_parameters()) if weights is None else weights
        leaves = {n: named[n].detach() for n in plan.explicit}
        return Rows(how(net, leaves, X, C), plan.explicit_slots)


def _vectorised_rows(net: nn.Module, leaves: dict[str, Tensor], X: Tensor, C: Tensor) -> Tensor:
    def one(x: Tensor, c: Tensor) -> Tensor:
        pull = vjp(lambda w: functional_call(net, w, (x[None],))[0], leaves)[1]
        rows = vmap(lambda row: pull(row)[0])(c.mT)
        return torch.cat([rows[n].reshape(c.shape[1], -1) for n in leaves], dim=1)

    with plain_attention():
        return vmap(one)(X, C).detach()


# The flags of attention are those of the whole process: how many are inside, and what undoes it.
_FLAGS = threading.Lock()
_INSIDE: dict[str, Any] = {"count": 0, "undo": ExitStack()}


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by matrix products: its fused kernels have no rule for vmap.

    Of several threads the first sets the flags, and the last puts them back.
    """
    with _FLAGS:
        if _INSIDE["count"] == 0:
            _INSIDE["undo"].enter_context(_plain_flags())
        _INSIDE["count"] += 1
    try:
        yield
    finally:
        with _FLAGS:
            _INSIDE["count"] -= 1
            if _INSIDE["count"] == 0:
                _INSIDE["undo"].close()


@contextmanager
def _plain_flags() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # Operations without a rule for vmap run one by one: slower, still faster than a loop.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _looped_rows(net: nn.Module, leaves: dict[str, Tensor], X: Tensor, C: Tensor) -> Tensor:
    leaves = {n: p.requires_grad_() for n, p in leaves.items()}
    n_weights = sum(p.numel() for p in leaves.values())
    R = C.shape[2]
    out = C.new_zeros(len(X), R, n_weights)
    with torch.enable_grad():
        for i in range(len(X)):
            f = functional_call(net, leaves, (X[i : i + 1],))
            for r in range(R if f.requires_grad else 0):
                gs = torch.autograd.grad(
                    f, list(leaves.values()), C[i : i + 1, :, r], retain_graph=r + 1 < R,
                    allow_unused=True, materialize_grads=True,
                )  # fmt: skip
                torch.cat([g.flatten() for g in gs], out=out[i, r])
    return out


def _can_vectorise(twin: Twin, plan: RulePlan, sample: Tensor) -> bool:
    """Whether vmap takes the network, and agrees with one backward pass per example."""
    x = sample[:2]
    named = dict(twin.net.named_parameters())
    leaves = {n: named[n].detach() for n in plan.explicit}
    with torch.no_grad():
        f = twin.net(x)
    C = torch.linspace(0.5, 1.5, f.numel()).to(f).view(*f.shape, 1)
    try:
        fast = _vectorised_rows(twin.net, leaves, x, C)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return False
    slow = _looped_rows(twin.net, leaves, x, C)
    if fast.shape != slow.shape:  # torch 2.13: of PReLU's weight, once for each example
        return False
    return _agree(slow, fast.flatten(), float(slow.abs().max()))

"""A network at its present weights as a linear map: f(x) and J(x) = ∂f/∂w (MATH 6).

One forward pass keeps, for every dense layer called once on one vector per example, its input a
and its output z; one backward pass per cotangent c gives g = ∂(cᵀf)/∂z. The layer's part of a row
cᵀJ is then the outer product g aᵀ, and of a Gram matrix (a·a' + 1)(g·g'), without any row. All
other parameters take the explicit way: rows by ``torch.func``, in chunks.

Shapes: X (n_samples, ...); f (n_samples, n_outputs); cotangents C (n_samples, n_outputs, n_rows);
rows Cᵀ J (n_samples, n_rows, n_params). Rows of a Gram matrix are ordered example by example.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from .._memory import batches, chunk_length
from .layers import has_rule, output_positions, patches

__all__ = ["Linearization"]

# Layers that compute the same in both modes; all others are put into eval mode.
_SAME_IN_EVAL = (
    nn.Sequential, nn.Linear, nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.Identity, nn.Conv2d,
    nn.MaxPool2d, nn.Flatten,
)  # fmt: skip

Cotangents = Tensor | Callable[[Tensor], Tensor] | None


@dataclass
class _Call:
    """One call of a layer: positions a (n, T, d_in) and g (n, n_rows, T, d_out)."""

    layer: nn.Module
    a: Tensor
    g: Tensor


@dataclass
class _Trace:
    """One pass over a chunk: f, the cotangents, and the calls of the layers that have a rule."""

    outputs: Tensor
    cotangents: Tensor
    calls: list[_Call]


class Linearization:
    """The network as a linear map at its present weights.

    Parameters
    ----------
    module : torch.nn.Module
        Left as found: mode, hooks, gradients. Run in eval mode.
    parameters : None, "last_layer" or sequence of str, default=None
        Which weights are w: all that require a gradient, those of the last layer with weights, or
        those named.
    dtype : torch.dtype, default=None
        None works with the module itself, whose weights may change between calls; another
        precision works with a copy in it, fixed at its present weights.
    memory_limit : float, default=None
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Raises
    ------
    ValueError
        If the module has no such weights.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linearize import Linearization
    >>> net = torch.nn.Linear(2, 1, dtype=torch.float64)
    >>> Linearization(net).gram(torch.ones(1, 2, dtype=torch.float64)).item()  # x·x + 1
    3.0
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        parameters: str | Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        memory_limit: float | None = None,
    ) -> None:
        own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
        if dtype is not None and dtype != own:
            module = copy.deepcopy(module).to(dtype)
        self.module, self.memory_limit = module, memory_limit
        named = dict(module.named_parameters())
        self.parameter_names = _chosen(named, parameters)
        self._parameters = [named[name] for name in self.parameter_names]
        self.parameter_sizes = tuple(p.numel() for p in self._parameters)
        self.n_params = sum(self.parameter_sizes)
        self.dtype, self.device = self._parameters[0].dtype, self._parameters[0].device
        chosen = {id(p) for p in self._parameters}
        self._layers = [
            layer
            for layer in module.modules()
            if has_rule(layer) and any(id(p) in chosen for p in layer.parameters(recurse=False))
        ]
        ruled = {id(p) for layer in self._layers for p in layer.parameters(recurse=False)}
        self._n_outputs: int | None = None
        self._explicit = [i for i, p in enumerate(self._parameters) if id(p) not in ruled]

    def weights(self) -> Tensor:
        """w, of shape (n_params,), float64: in the order of ``parameter_names``."""
        return torch.cat([p.detach().flatten() for p in self._parameters]).double()

    def outputs(self, X: Tensor) -> Tensor:
        """f(X), of shape (n_samples, n_outputs), in eval mode and without a graph."""
        X = self._cast(X)
        with torch.no_grad(), _eval_mode(self.module):
            return torch.cat([self.module(X[part]) for part in batches(len(X), 4096)])

    def rows(self, X: Tensor, cotangents: Cotangents = None) -> Tensor:
        """Cᵀ J for one chunk, of shape (n_samples, n_rows, n_params).

        Parameters
        ----------
        X : Tensor of shape (n_samples, ...)
        cotangents : Tensor of shape (n_samples, n_outputs, n_rows), callable or None
            C; a callable is given f (n_samples, n_outputs); None is the identity.

        Returns
        -------
        Tensor
        """
        return self.outputs_and_rows(X, cotangents)[1]

    def outputs_and_rows(self, X: Tensor, cotangents: Cotangents = None) -> tuple[Tensor, Tensor]:
        """f(X) and :meth:`rows` from one forward pass."""
        X = self._cast(X)
        trace = self._trace(X, cotangents)
        parts = self._parts(X, trace)
        return trace.outputs, torch.cat([part.flatten(2) for part in parts], dim=2)

    def iter_rows(
        self, X: Tensor, cotangents: Cotangents = None, dtype: torch.dtype = torch.float64
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield (slice, rows of that slice) in chunks that fit the memory limit."""
        for part, _, rows in self._iter(X, cotangents):
            yield part, rows.to(dtype)

    def gram(
        self,
        X: Tensor,
        X2: Tensor | None = None,
        *,
        cotangents: Cotangents = None,
        cotangents2: Cotangents = None,
        parameter_scale: Sequence[float] | None = None,
    ) -> Tensor:
        """C(X)ᵀ J(X) diag(s) J(X2)ᵀ C(X2), of shape (n n_rows, n2 n_rows2), float64.

        Parameters
        ----------
        X, X2 : Tensor of shape (n, ...), (n2, ...)
            ``X2=None`` is X itself.
        cotangents, cotangents2 : Tensor of shape (n, n_outputs, n_rows), callable or None
        parameter_scale : sequence of float, optional
            s, one positive factor per named parameter.

        Returns
        -------
        Tensor
        """
        left = [part for _, _, part in self._iter(X, cotangents, parameter_scale)]
        if X2 is None:
            rows = torch.cat([part.flatten(0, 1) for part in left]).double()
            return rows @ rows.mT
        right = [part for _, _, part in self._iter(X2, cotangents2, parameter_scale)]
        join = [torch.cat([p.flatten(0, 1) for p in side]).double() for side in (left, right)]
        return join[0] @ join[1].mT

    def diagonal_blocks(
        self,
        X: Tensor,
        *,
        cotangents: Cotangents = None,
        parameter_scale: Sequence[float] | None = None,
    ) -> Tensor:
        """Cᵀ J diag(s) Jᵀ C per example, of shape (n_samples, n_rows, n_rows), float64."""
        chunks = self._iter(X, cotangents, parameter_scale)
        return torch.cat([rows.double() @ rows.double().mT for _, _, rows in chunks])

    def ggn(self, X: Tensor, *, cotangents: Cotangents = None) -> Tensor:
        """Σ_i rows_iᵀ rows_i = ΦᵀΦ, of shape (n_params, n_params), float64."""
        return self.outputs_and_ggn(X, cotangents=cotangents)[1]

    def outputs_and_ggn(self, X: Tensor, *, cotangents: Cotangents = None) -> tuple[Tensor, Tensor]:
        """f(X) and :meth:`ggn` from one forward pass per chunk."""
        outputs, total = [], None
        for _, f, rows in self._iter(X, cotangents):
            flat = rows.flatten(0, 1).double()
            total = flat.mT @ flat if total is None else total.addmm_(flat.mT, flat)
            outputs.append(f)
        return torch.cat(outputs), total

    def ggn_diagonal(self, X: Tensor, *, cotangents: Cotangents = None) -> Tensor:
        """diag(ΦᵀΦ), of shape (n_params,), float64."""
        total = torch.zeros(self.n_params, dtype=torch.float64, device=self.device)
        for _, _, rows in self._iter(X, cotangents):
            total += rows.flatten(0, 1).double().square().sum(0)
        return total

    def squared_gradients(self, X: Tensor, residual: Tensor) -> Tensor:
        """Σ_i (J_iᵀ r_i)², elementwise, of shape (n_params,)."""
        return self.ggn_diagonal(X, cotangents=residual[..., None])

    def jvp(self, X: Tensor, v: Tensor) -> Tensor:
        """J v, of shape (n_samples, n_outputs), or (…, n_vectors) for v (n_params, n_vectors)."""
        return torch.cat([rows.double() @ v for _, _, rows in self._iter(X, None)])

    def vjp(self, X: Tensor, u: Tensor) -> Tensor:
        """Σ_i J_iᵀ u_i, of shape (n_params,), float64, for u (n_samples, n_outputs)."""
        X = self._cast(X)
        total = torch.zeros(self.n_params, dtype=torch.float64, device=self.device)
        with torch.enable_grad(), _eval_mode(self.module):
            for part in batches(len(X), 4096):
                f = self.module(X[part])
                grads = torch.autograd.grad(f, self._parameters, u[part].to(f), allow_unused=True)
                total += torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).flatten().double()
                        for g, p in zip(grads, self._parameters, strict=True)
                    ]
                )
        return total

    def _cast(self, X: Tensor) -> Tensor:
        return X.to(self.dtype) if X.is_floating_point() else X

    def _iter(
        self, X: Tensor, cotangents: Cotangents, scale: Sequence[float] | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        X = self._cast(X)
        n_outputs = self._count_outputs(X)
        length = chunk_length(4 * 8 * self.n_params * n_outputs, self.memory_limit)
        for part in batches(len(X), length):
            c = cotangents[part] if isinstance(cotangents, Tensor) else cotangents
            f, rows = self.outputs_and_rows(X[part], c)
            if scale is not None:
                factor = torch.tensor(scale, dtype=rows.dtype, device=rows.device).sqrt()
                rows = rows * factor.repeat_interleave(torch.tensor(self.parameter_sizes))
            yield part, f, rows

    def _count_outputs(self, X: Tensor) -> int:
        if self._n_outputs is None and len(X):
            self._n_outputs = self.outputs(X[:1]).shape[1]
        return self._n_outputs or 1

    def _trace(self, X: Tensor, cotangents: Cotangents) -> _Trace:
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def keep(layer: nn.Module, args: tuple, z: Tensor) -> Tensor:
            z = z if z.requires_grad else z.requires_grad_()
            calls.append((layer, args[0].detach(), z))
            return z

        handles = [layer.register_forward_hook(keep) for layer in self._layers]
        try:
            with torch.enable_grad(), _eval_mode(self.module):
                f = self.module(X)
        finally:
            for handle in handles:
                handle.remove()
        C = _evaluated(cotangents, f.detach())
        zs = [z for _, _, z in calls]
        per_row = [
            torch.autograd.grad(f, zs, C[:, :, r], retain_graph=r + 1 < C.shape[2])
            for r in range(C.shape[2])
        ]
        stacked = [torch.stack(g) for g in zip(*per_row, strict=True)]
        return _Trace(
            f.detach(),
            C,
            [
                _Call(layer, patches(layer, x), output_positions(layer, g))
                for (layer, x, _), g in zip(calls, stacked, strict=True)
            ],
        )

    def _parts(self, X: Tensor, trace: _Trace) -> list[Tensor]:
        """Rows of every chosen parameter, each (n, n_rows, numel)."""
        parts: dict[int, Tensor] = {}
        for call in trace.calls:
            for p, rows in _call_rows(call):
                parts[id(p)] = parts[id(p)] + rows if id(p) in parts else rows
        for i, rows in self._explicit_rows(X, trace.cotangents):
            parts[id(self._parameters[i])] = rows
        shape = trace.cotangents.shape
        return [
            parts.get(
                id(p), X.new_zeros(1, 1, 1, dtype=self.dtype).expand(shape[0], shape[2], p.numel())
            )
            for p in self._parameters
        ]

    def _explicit_rows(self, X: Tensor, C: Tensor) -> Iterator[tuple[int, Tensor]]:
        if not self._explicit:
            return
        names = [self.parameter_names[i] for i in self._explicit]
        values = {
            n: self._parameters[i].detach() for n, i in zip(names, self._explicit, strict=True)
        }

        def one(values: dict[str, Tensor], x: Tensor, c: Tensor) -> Tensor:
            return functional_call(self.module, values, (x[None],))[0] @ c

        with _eval_mode(self.module):
            jacobians = vmap(jacrev(one), (None, 0, 0))(values, X, C)
        for name, i in zip(names, self._explicit, strict=True):
            yield i, jacobians[name].flatten(2)


def _call_rows(call: _Call) -> Iterator[tuple[Tensor, Tensor]]:
    weight, bias = call.layer.weight, call.layer.bias
    if call.a.shape[1] == 1:
        g = call.g[:, :, 0]
        yield weight, (g[..., None] * call.a[:, :, None]).flatten(2)
    else:
        g = call.g.sum(2)
        yield weight, torch.einsum("nrto,nti->nroi", call.g, call.a).flatten(2)
    if bias is not None:
        yield bias, g


def _evaluated(cotangents: Cotangents, f: Tensor) -> Tensor:
    if cotangents is None:
        return torch.eye(f.shape[1], dtype=f.dtype, device=f.device).expand(len(f), -1, -1)
    C = cotangents(f) if callable(cotangents) else cotangents
    return C.to(f)


def _chosen(named: dict[str, Tensor], parameters: str | Sequence[str] | None) -> tuple[str, ...]:
    names = [name for name, p in named.items() if p.requires_grad]
    if parameters == "last_layer":
        last = names[-1].rpartition(".")[0] if names else ""
        names = [name for name in names if name.rpartition(".")[0] == last]
    elif parameters is not None:
        unknown = set(parameters) - set(named)
        if unknown:
            raise ValueError(f"module has no parameters named {sorted(unknown)}.")
        names = [name for name in named if name in set(parameters)]
    if not names:
        raise ValueError("module has no weights to linearise in (none requires a gradient).")
    return tuple(names)


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    # A network that trains flips between modes at every step: leave those that cannot tell alone.
    modes = [(m, m.training) for m in module.modules() if m.training]
    if all(isinstance(m, _SAME_IN_EVAL) for m, _ in modes):
        yield
        return
    try:
        module.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training

"""A network at given weights as a linear map: f(x) and J(x) = ∂f/∂w (:ref:`math-ntk`).

One forward pass keeps the input a of every layer with a rule; one backward pass per cotangent c
gives g = ∂(cᵀf)/∂(layer output). The layer's part of a row cᵀJ is the outer product g aᵀ, of a
Gram matrix (a·a' + 1)(g·g'), without any row. Weights without a rule take explicit rows.

Shapes: X (n_samples, ...); f (n_samples, n_outputs); cotangents C (n_samples, n_outputs, n_rows);
rows Cᵀ J (n_samples, n_rows, n_params). Rows of a Gram matrix are ordered example by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from sklearn.utils import gen_batches
from torch import Tensor, nn

from .._utils.memory import chunk_length, joined_parts, limit_in_bytes
from .factors import Factor
from .ggn import Products, pairs_by_factors
from .gram import GramSide, add_products, gram_matrix, mirrored
from .network import Network
from .passes import ChainPass, GraphPass, Pass
from .plan import RulePlan
from .recording import Recording
from .shared import SharedPass, by_workers, workers_of
from .tape import Cotangents

__all__ = ["Linearization"]

# Rows of a forward pass without a graph: enough for full speed.
_ROWS = 4096


class Linearization(Network):
    """The network as a linear map: at the module's present weights, or ``at`` given ones.

    Parameters
    ----------
    module : torch.nn.Module
        Never modified: a structural copy that shares its weights runs in eval mode.
    parameters : None, "last_layer" or sequence of str, default=None
        Which weights are w: all that require a gradient, those of the layer with weights that is
        called last, or those named.
    dtype : torch.dtype, default=None
        None works with the module's own weights, which may change between calls; another
        precision works with a copy in it, brought up to date at every call.
    memory_limit : float, default=None
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Attributes
    ----------
    module : torch.nn.Module
        The module, or its copy in ``dtype``. Of a linearisation ``at`` given weights: a module
        of its own that holds them, made when it is first asked for.
    n_params : int
        P.
    parameter_names, parameter_sizes : tuple
        Names and numbers of weights, in the order of the flat vector w.
    n_outputs : int
        K, known after the first data.
    dtype, device : torch.dtype, torch.device
        Where the work is done.

    Raises
    ------
    TypeError
        If ``module`` is no module or cannot be copied.
    ValueError
        If the module has no such weights, or weights of several precisions.

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
        super().__init__(module, parameters, dtype)
        self.memory_limit = memory_limit

    @by_workers("cat")
    def outputs(self, X: Tensor) -> Tensor:
        """f(X), of shape (n_samples, n_outputs), in eval mode and without a graph."""
        X, plan = self._prepared(X)
        length = min(_ROWS, chunk_length(2 * plan.graph_bytes, self.memory_limit))
        with torch.no_grad(), self.running(plan) as run:
            return joined_parts((run(X[part]) for part in gen_batches(len(X), length)), len(X))

    def rows(self, X: Tensor, cotangents: Cotangents = None) -> Tensor:
        """Cᵀ J for one chunk, of shape (n_samples, n_rows, n_params).

        C is a Tensor (n_samples, n_outputs, n_rows), a callable of f, or None, the identity.
        """
        return self.outputs_and_rows(X, cotangents)[1]

    def outputs_and_rows(self, X: Tensor, cotangents: Cotangents = None) -> tuple[Tensor, Tensor]:
        """f(X) and :meth:`rows` from one forward pass."""
        X, plan = self._prepared(X)
        recording = Recording(self, _read(X), plan)
        return recording.outputs, recording.rows(cotangents)

    def recording(self, X: Tensor) -> Recording | None:
        """One forward pass, whose rows are made if asked for; None where they do not fit twice."""
        X, plan = self._prepared(X)
        if chunk_length(2 * self._row_bytes(plan, plan.n_outputs), self.memory_limit) < len(X):
            return None
        return Recording(self, _read(X), plan)

    def forward(self, X: Tensor) -> Pass | SharedPass:
        """One pass over X, kept for products: f(X), Jᵀu, and exact Hessian products.

        >>> import torch
        >>> from sk_dnn2gp.linearize import Linearization
        >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> of_X = Linearization(net).forward(torch.tensor([[2.0]], dtype=torch.float64))
        >>> product = of_X.hessian_products(lambda f, part: 0.5 * f.square().sum())
        >>> product(torch.ones(1, dtype=torch.float64)).item()  # x²
        4.0
        """
        if self._flat is None:  # what moves with a module would change under the products
            self._prepared(X)
            return self.at(self.weights()).forward(X)
        whole, (X, plan) = X, self._prepared(X)
        n = workers_of(self, X, plan=plan)
        if n > 1:
            return SharedPass(self, whole, n)
        parts = list(gen_batches(len(X), chunk_length(6 * plan.graph_bytes, self.memory_limit)))
        if plan.chain is not None and plan.chain.can_bend:
            return Pass(lambda part: ChainPass(Recording(self, X[part], plan), plan), parts, plan)

        def run(leaves: dict[str, Tensor], part: slice) -> Tensor:
            with self._twin.holding(leaves) as net:
                return net(X[part])

        return Pass(lambda part: GraphPass(partial(run, part=part), self.leaves()), parts, plan)

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
        """C(X)ᵀ J(X) diag(s) J(X2)ᵀ C(X2), (n n_rows, n2 n_rows2), float64, example by example.

        X2 of None is X itself: half the work, an exactly symmetric result. C as for :meth:`rows`; s
        is one positive factor per named parameter.
        """
        return self._gram(X, X2, cotangents, cotangents2, parameter_scale)

    def gram_trace(
        self, X: Tensor, X2: Tensor | None = None, *, parameter_scale: Sequence[float] | None = None
    ) -> Tensor:
        """Σ_k of the Gram matrix's (k, k) parts, of shape (n, n2), float64.

        The sum over outputs is taken inside the products, so that the NK × NK matrix never is.
        """
        return self._gram(X, X2, None, None, parameter_scale, trace=True)

    def gram_output(
        self,
        X: Tensor,
        X2: Tensor | None = None,
        k: int = 0,
        *,
        parameter_scale: Sequence[float] | None = None,
    ) -> Tensor:
        """Gram matrix (n, n2) of output k alone, float64; ValueError without an output k."""

        unit = self.unit_cotangents(k)
        return self.gram(X, X2, cotangents=unit, cotangents2=unit, parameter_scale=parameter_scale)

    @staticmethod
    def unit_cotangents(k: int) -> Callable[[Tensor], Tensor]:
        """Cotangents that pick output k: a callable of f, with one row.

        It raises ValueError, when called, if the network has no output k.
        """

        def unit(f: Tensor) -> Tensor:
            if not -f.shape[1] <= k < f.shape[1]:
                raise ValueError(f"The network has {f.shape[1]} outputs, none of number {k}.")
            C = torch.zeros_like(f)[..., None]
            C[:, k] = 1.0
            return C

        return unit

    def diagonal_blocks(
        self,
        X: Tensor,
        *,
        cotangents: Cotangents = None,
        parameter_scale: Sequence[float] | None = None,
    ) -> Tensor:
        """Cᵀ J diag(s) Jᵀ C per example, of shape (n_samples, n_rows, n_rows), float64."""
        scale = self._scale(parameter_scale)
        return joined_parts(
            (
                torch.stack([factor.diagonal_blocks(scale) for factor in factors]).sum(0)
                for _, _, factors in self._iter_factors(X, cotangents)
            ),
            len(X),
        )

    def ggn(self, X: Tensor, *, cotangents: Cotangents = None) -> Tensor:
        """Σ_i rows_iᵀ rows_i = ΦᵀΦ, of shape (n_params, n_params), float64."""
        return self.outputs_and_ggn(X, cotangents=cotangents)[1]

    @by_workers("cat", "sum", row_by_row=True, columns="n_params")
    def outputs_and_ggn(self, X: Tensor, *, cotangents: Cotangents = None) -> tuple[Tensor, Tensor]:
        """f(X) and :meth:`ggn` from one forward pass per chunk.

        By layers' factors or by explicit rows, whichever takes fewer operations for each pair of
        layers.
        """
        X, plan = self._prepared(X)
        R = _n_rows(cotangents, plan)
        by_factors = pairs_by_factors(plan.sizes, R)
        products = Products(plan.sizes, by_factors) if by_factors else None
        total: Any = None
        if products is None:
            total = torch.zeros(2 * (self.n_params,), dtype=torch.float64, device=self.device)

        def passes() -> Iterator[Tensor]:
            if products is not None:
                length = chunk_length(products.bytes_per_example(R), self.memory_limit)
                for _, f, factors in self._iter_factors(X, cotangents):
                    products.add(factors, length)
                    yield f
            else:
                for _, f, rows in self._iter(X, cotangents):
                    add_products(rows.flatten(0, 1).double(), total)
                    yield f

        outputs = joined_parts(passes(), len(X))
        return outputs, mirrored(total) if products is None else products.result(self.n_params)

    @by_workers("sum", row_by_row=True)
    def ggn_diagonal(self, X: Tensor, *, cotangents: Cotangents = None) -> Tensor:
        """diag(ΦᵀΦ), of shape (n_params,), float64, from layer factors (:ref:`math-ntk`)."""
        total: Any = None
        for _, _, factors in self._iter_factors(X, cotangents):
            if total is None:
                total = torch.zeros(self.n_params, dtype=torch.float64, device=self.device)
            for factor in factors:
                factor.add_squares(total)
        return total

    def squared_gradients(self, X: Tensor, residual: Tensor) -> Tensor:
        """Σ_i (J_iᵀ r_i)², elementwise, of shape (n_params,), for r (n_samples, n_outputs)."""
        return self.ggn_diagonal(X, cotangents=residual[..., None])

    @by_workers("cat")
    def jvp(self, X: Tensor, v: Tensor) -> Tensor:
        """J v, (n_samples, n_outputs), or (…, n_vectors) for v (n_params, n_vectors).

        ValueError if v has not one row for each weight.
        """
        V = v[:, None] if v.ndim == 1 else v
        self._prepared(X)
        if len(V) != self.n_params:
            raise ValueError(f"v must have {self.n_params} rows, got {len(V)}.")
        V = V.to(self.device, torch.float64)
        total = joined_parts(
            (
                sum((factor.apply(V) for factor in factors), V.new_zeros(*f.shape, V.shape[1]))
                for _, f, factors in self._iter_factors(X, None)
            ),
            len(X),
        )
        return total[..., 0] if v.ndim == 1 else total

    @by_workers("sum", row_by_row=True)
    def vjp(self, X: Tensor, u: Tensor) -> Tensor:
        """Σ_i J_iᵀ u_i, of shape (n_params,), float64, for u (n_samples, n_outputs).

        For u (n_samples, n_outputs, n_vectors) the shape is (n_params, n_vectors).
        """
        X, plan = self._prepared(X)
        length = chunk_length(4 * plan.graph_bytes, self.memory_limit)
        U = u[..., None] if u.ndim == 2 else u
        total = torch.zeros(U.shape[2], self.n_params, dtype=torch.float64, device=self.device)
        for part in gen_batches(len(X), length):
            self._pull(X[part], U[part], total)
        return total[0] if u.ndim == 2 else total.mT

    def _pull(self, X: Tensor, U: Tensor, total: Tensor) -> None:
        """Add the products of a chunk to ``total`` (n_vectors, n_params)."""
        leaves = self.leaves()
        with torch.enable_grad(), self._twin.holding(leaves) as net:
            f = net(X)
        if not f.requires_grad:
            return
        for number in range(len(total)):
            grads = torch.autograd.grad(
                f, list(leaves.values()), U[..., number].to(f),
                retain_graph=number + 1 < len(total), allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            total[number] += torch.cat([g.flatten() for g in grads])

    def _small(
        self, X: Tensor, X2: Tensor | None, scale: list[float] | None, trace: bool
    ) -> Tensor | None:
        """A small Gram matrix the quickest way, where there is one."""
        X, plan = self._prepared(X)
        n, n2 = len(X), len(X if X2 is None else X2)
        if plan.small is None or not plan.small.is_small(n, n2):
            return None
        if 24 * n * n2 * plan.n_outputs**2 > limit_in_bytes(self.memory_limit):
            return None
        X2 = None if X2 is None else _read(self._prepared(X2)[0])
        return plan.small.gram(_read(X), X2, self.chain_weights(plan), scale, trace)

    def _gram(
        self,
        X: Tensor,
        X2: Tensor | None,
        c: Cotangents,
        c2: Cotangents,
        parameter_scale: Sequence[float] | None,
        trace: bool = False,
    ) -> Tensor:
        scale = self._scale(parameter_scale)
        small = self._small(X, X2, scale, trace) if c is None and c2 is None else None
        if small is not None:
            return small
        left = self._side(X, c)
        right = None if X2 is None else self._side(X2, c2)
        return gram_matrix(left, right, scale, self.memory_limit, trace)

    def _side(self, X: Tensor, cotangents: Cotangents) -> GramSide:
        X, plan = self._prepared(X)

        def factors(part: slice) -> list[Factor]:
            return Recording(self, X[part], plan).factors(_part_of(cotangents, part))

        R = _n_rows(cotangents, plan)
        return GramSide(len(X), R, factors, plan.pass_bytes(R), plan.held_bytes(R))

    def _iter_factors(
        self, X: Tensor, cotangents: Cotangents
    ) -> Iterator[tuple[slice, Tensor, list[Factor]]]:
        """Yield (slice, f, factors) in chunks whose rows of the largest parameter fit."""
        X, plan = self._prepared(X)
        R = _n_rows(cotangents, plan)
        per_row = plan.pass_bytes(R) + 24 * R * max(self.parameter_sizes)
        for part in gen_batches(len(X), chunk_length(per_row, self.memory_limit)):
            recording = Recording(self, X[part], plan)
            yield part, recording.outputs, recording.factors(_part_of(cotangents, part))

    def _iter(self, X: Tensor, cotangents: Cotangents) -> Iterator[tuple[slice, Tensor, Tensor]]:
        X, plan = self._prepared(X)
        R = _n_rows(cotangents, plan)
        length = chunk_length(self._row_bytes(plan, R), self.memory_limit)
        for part in gen_batches(len(X), length):
            recording = Recording(self, X[part], plan)
            yield part, recording.outputs, recording.rows(_part_of(cotangents, part))

    def _row_bytes(self, plan: RulePlan, n_rows: int) -> float:
        """Bytes that an example takes while its ``n_rows`` rows are formed."""
        return plan.pass_bytes(n_rows) + 24 * n_rows * self.n_params

    def _scale(self, scale: Sequence[float] | None) -> list[float] | None:
        if scale is None:
            return None
        scale = [float(s) for s in scale]
        if len(scale) != len(self.parameter_names) or not all(0 < s < math.inf for s in scale):
            raise ValueError(
                f"parameter_scale must be {len(self.parameter_names)} positive numbers, one per "
                f"named parameter, got {scale}."
            )
        return scale


def _read(X: Any) -> Tensor:
    """All rows, where they lie in a file; tensors as they are."""
    return X if isinstance(X, Tensor) else X[:]


def _part_of(cotangents: Cotangents, part: slice) -> Cotangents:
    return cotangents[part] if isinstance(cotangents, Tensor) else cotangents


def _n_rows(cotangents: Cotangents, plan: RulePlan) -> int:
    """Rows of an example; of a callable, that of the outputs at most."""
    return cotangents.shape[2] if isinstance(cotangents, Tensor) else plan.n_outputs

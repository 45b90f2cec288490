"""One forward pass of a linearisation, and the rows that its graph gives (:ref:`math-ntk`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .factors import Factor, Rows
from .plan import RulePlan, explicit_rows, factors_from_calls
from .tape import Cotangents, backward, evaluated, run_chain

__all__ = ["Recording"]


class Recording:
    """One forward pass of a linearisation, kept for its rows.

    Valid until the module's weights change, and for good at given weights. Made by
    :meth:`Linearization.recording`.

    Parameters
    ----------
    linearization : Linearization
    X : Tensor of shape (n_samples, ...)
        In the working precision.
    plan : RulePlan
        For data of this kind.

    Attributes
    ----------
    outputs : Tensor of shape (n_samples, n_outputs)
        f(X), without a graph.
    weights, kept : list
        Of a chain alone: its weights, and what every step left for the way back.
    """

    def __init__(self, linearization: Any, X: Tensor, plan: RulePlan) -> None:
        self._of, self._twin, self._plan, self._X = linearization, linearization._twin, plan, X
        if plan.chain is not None:
            self.weights = linearization.chain_weights(plan)
            self._f, self.kept, self._calls = run_chain(plan.chain, X, self.weights)
        else:
            with self._twin.holding(linearization._named) as net:
                self._f, calls = self._twin.record(lambda: net(X))
            self._calls = [call for call in calls if plan.serves[call.layer]]
        self.outputs = self._f.detach()

    def factors(self, cotangents: Cotangents = None) -> list[Factor]:
        """The rows Cᵀ J as factors; the graph is used up."""
        C = evaluated(cotangents, self.outputs)
        plan = self._plan
        if plan.chain is not None:
            gs: list = plan.chain.backward(C, self.kept, self.weights, same=cotangents is None)
        else:
            gs = backward(
                self._f, self._calls, C, by_example=plan.by_example, same=cotangents is None
            )
        factors = factors_from_calls(self._calls, gs, self._twin.layers, plan.slots)
        if plan.explicit:
            factors.append(explicit_rows(self._twin, plan, self._X, C, self._of._named))
        if not factors:  # no weight reaches the outputs: rows of zeros
            factors = [Rows(self.outputs.new_zeros(len(self._X), C.shape[2], 0), ())]
        return factors

    def rows(self, cotangents: Cotangents = None) -> Tensor:
        """Cᵀ J, of shape (n_samples, n_rows, n_params); the graph is used up."""
        factors = self.factors(cotangents)
        P = self._of.n_params
        whole = sum(factor.n_weights for factor in factors) == P
        make = self.outputs.new_empty if whole else self.outputs.new_zeros
        out = make(len(self._X), factors[0].n_rows, P)
        for factor in factors:
            factor.write_rows(out)
        return out

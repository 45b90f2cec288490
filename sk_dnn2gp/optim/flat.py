"""A torch optimiser that sees its weights as one vector, in the order of its parameters.

Shapes: w (P,).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["FlatOptimizer"]


class FlatOptimizer(torch.optim.Optimizer):
    """Weights and settings as vectors; all state lies under the first parameter."""

    @property
    def _params(self) -> list[Tensor]:
        return [p for g in self.param_groups for p in g["params"] if p.requires_grad]

    @property
    def _state(self) -> dict[str, Any]:
        return self.state[self._params[0]]

    def _mean(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self._params])

    def _split(self, w: Tensor) -> list[Tensor]:
        params = self._params
        pieces = w.split([p.numel() for p in params])
        return [piece.view(p.shape) for piece, p in zip(pieces, params, strict=True)]

    def _set(self, w: Tensor) -> None:
        torch._foreach_copy_([p.detach() for p in self._params], self._split(w))

    def _per_weight(self, name: str) -> Any:
        """A group's number, or one per weight where the groups differ."""
        values = [float(g[name]) for g in self.param_groups]
        if len(set(values)) == 1:
            return values[0]
        p = self._params[0]
        pieces = [
            torch.full((sum(q.numel() for q in g["params"] if q.requires_grad),), v)
            for g, v in zip(self.param_groups, values, strict=True)
        ]
        return torch.cat(pieces).to(p)

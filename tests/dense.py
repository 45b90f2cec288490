"""The MAP loss of a small network and its evidence, dense and in float64, by ``torch.func`` alone.

Written from docs/mathematics.rst without the package's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev


class Dense:
    """loss(w), its derivatives, its minima and the Laplace evidence there.

    ``kind`` is "gaussian" (y of shape (N, K)), "bernoulli" (y (N, 1)) or "categorical" (y (N,)).
    """

    def __init__(
        self, module: nn.Module, X: Tensor, y: Tensor, kind: str, s: Tensor | None = None
    ) -> None:
        self.module, self.X, self.y, self.kind = module, X, y, kind
        self.s = torch.ones(len(X), dtype=torch.float64) if s is None else s
        self.shapes = {n: p.shape for n, p in module.named_parameters() if p.requires_grad}

    @property
    def start(self) -> Tensor:
        named = dict(self.module.named_parameters())
        return torch.cat([named[n].detach().double().flatten() for n in self.shapes])

    def f(self, w: Tensor) -> Tensor:
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        pieces = zip(self.shapes.items(), w.split(sizes), strict=True)
        return functional_call(
            self.module, {n: piece.view(shape) for (n, shape), piece in pieces}, (self.X,)
        )

    def nll(self, f: Tensor, sigma: float) -> Tensor:
        """Σ s ℓ."""
        if self.kind == "gaussian":
            one = 0.5 * ((f - self.y) / sigma) ** 2 + 0.5 * math.log(2 * math.pi * sigma**2)
            return self.s @ one.sum(1)
        if self.kind == "bernoulli":
            return self.s @ (torch.log1p(f.exp()) - self.y * f)[:, 0]
        picked = f.gather(1, self.y[:, None])[:, 0]
        return self.s @ (f.logsumexp(1) - picked)

    def loss(self, delta: Tensor | float, sigma: float = 1.0) -> Callable[[Tensor], Tensor]:
        def loss(w: Tensor) -> Tensor:
            return self.nll(self.f(w), sigma) + 0.5 * (delta * w * w).sum()

        return loss

    def gradient(self, w: Tensor, delta: Tensor | float, sigma: float = 1.0) -> Tensor:
        w = w.detach().requires_grad_()
        return torch.autograd.grad(self.loss(delta, sigma)(w), w)[0]

    def hessian(self, w: Tensor, delta: Tensor | float, sigma: float = 1.0) -> Tensor:
        return jacrev(jacrev(self.loss(delta, sigma)))(w)

    def minimum(self, w: Tensor, delta: Tensor | float, sigma: float = 1.0) -> Tensor:
        """The minimum next to w, by dense Newton steps to rounding."""
        for _ in range(30):
            g, H = self.gradient(w, delta, sigma), self.hessian(w, delta, sigma)
            torch.linalg.cholesky(H)  # a minimum, and no saddle
            step = torch.linalg.solve(H, g)
            w = w - step
            if float(step.norm()) < 1e-11 * (1 + float(w.norm())):
                return w
        raise AssertionError("Newton's steps do not end: w is not next to a minimum.")

    def ggn(self, w: Tensor, sigma: float = 1.0) -> Tensor:
        """Σ s Jᵀ Λ J."""
        J, f = jacrev(self.f)(w), self.f(w)
        if self.kind == "gaussian":
            Lambda = torch.eye(f.shape[1], dtype=f.dtype).expand(len(f), -1, -1) / sigma**2
        elif self.kind == "bernoulli":
            p = torch.sigmoid(f)
            Lambda = (p * (1 - p))[:, :, None]
        else:
            p = torch.softmax(f, 1)
            Lambda = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("nkp,nkl,nlq,n->pq", J, Lambda, J, self.s)

    def evidence(self, w: Tensor, delta: Tensor | float, sigma: float = 1.0) -> float:
        delta = torch.as_tensor(delta, dtype=torch.float64).expand(len(w))
        A = self.ggn(w, sigma) + torch.diag(delta)
        log_det = torch.linalg.slogdet(A)[1] - delta.log().sum()
        return float(-self.loss(delta, sigma)(w) - 0.5 * log_det)

    def squares(self, w: Tensor) -> float:
        """Σ s ‖y - f‖²."""
        return float(self.s @ ((self.f(w) - self.y) ** 2).sum(1))

"""Brute force in float64, written from MATH's formulas without the package's code.

Dense Jacobians one output and one example at a time by ``torch.autograd.grad``; every matrix is
formed and inverted as it stands in the formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def jacobian(module: nn.Module, X: Tensor) -> Tensor:
    """J, of shape (n_samples * n_outputs, n_params)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    rows = []
    for x in X:
        f = module(x[None])[0]
        for k in range(len(f)):
            grads = torch.autograd.grad(f[k], parameters, retain_graph=True, allow_unused=True)
            pieces = [
                (torch.zeros_like(p) if g is None else g).flatten()
                for g, p in zip(grads, parameters, strict=True)
            ]
            rows.append(torch.cat(pieces))
    return torch.stack(rows)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


class GaussianReference:
    """Theorem 1 for Gaussian noise: models A, B and C with explicit matrices."""

    def __init__(self, module: nn.Module, X: Tensor, y: Tensor, delta: float, sigma: float) -> None:
        self.module, self.X, self.delta, self.sigma = module, X, delta, sigma
        self.J = jacobian(module, X)
        self.w = weights(module)
        with torch.no_grad():
            self.f = module(X).flatten()
        self.y = y.flatten()
        self.P, self.NK = len(self.w), len(self.f)
        self.Sigma = torch.linalg.inv(
            self.J.T @ self.J / sigma**2 + delta * torch.eye(self.P, dtype=torch.float64)
        )
        # ỹ = J w* - Λ⁻¹ r with r = (f - y)/σ²
        self.targets = self.J @ self.w - (self.f - self.y)

    def gradient(self) -> Tensor:
        return self.J.T @ (self.f - self.y) / self.sigma**2 + self.delta * self.w

    def covariance_A(self, X: Tensor) -> Tensor:
        J = jacobian(self.module, X)
        return J @ self.Sigma @ J.T

    def mean_B(self) -> Tensor:
        return self.Sigma @ self.J.T @ self.targets / self.sigma**2

    def process_C(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of f(X) under the Gaussian process of the transformed targets."""
        J = jacobian(self.module, X)
        K = self.J @ self.J.T / self.delta
        noisy = K + self.sigma**2 * torch.eye(self.NK, dtype=torch.float64)
        cross = J @ self.J.T / self.delta
        gain = torch.linalg.solve(noisy, cross.T).T
        return gain @ self.targets, J @ J.T / self.delta - gain @ cross.T

    def log_evidence_dual(self) -> float:
        K = self.J @ self.J.T / self.delta
        noisy = K + self.sigma**2 * torch.eye(self.NK, dtype=torch.float64)
        quadratic = self.targets @ torch.linalg.solve(noisy, self.targets)
        constant = self.NK * math.log(2 * math.pi)
        return float(-0.5 * (quadratic + torch.linalg.slogdet(noisy)[1] + constant))

    def log_evidence_laplace(self) -> float:
        loss = 0.5 * ((self.y - self.f) ** 2).sum() / self.sigma**2
        loss += 0.5 * self.NK * math.log(2 * math.pi * self.sigma**2)
        loss += 0.5 * self.delta * (self.w @ self.w)
        log_A = -torch.linalg.slogdet(self.Sigma)[1]
        return float(-loss - 0.5 * (log_A - self.P * math.log(self.delta)))

"""What every likelihood is."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..predictive import Predictive, Quadrature

__all__ = ["LOG_2PI", "Likelihood", "identities"]

LOG_2PI = math.log(2.0 * math.pi)


class Likelihood:
    """The contract of every likelihood: five pointwise functions and the predictive moments.

    Where Λ depends on y it is its mean over y given f, the Fisher information, which is never
    negative. For regression there is more: :meth:`predictive` needs nothing else, but :meth:`cdf`
    for quantiles and :meth:`sample` for draws. Outputs are independent given f.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Bernoulli
    >>> f, y = torch.zeros(1, 1), torch.ones(1, 1)
    >>> Bernoulli().residual(f, y).item()
    -0.5
    """

    # Whether Λ is positive definite for every f in floating point too, so that u = L⁻¹ r.
    is_definite: ClassVar[bool] = False
    # Whether y is f and noise of mean zero: then y may be standardised, and E[y] is f.
    is_additive: ClassVar[bool] = False
    # Whether y is a whole number.
    is_discrete: ClassVar[bool] = False
    # Of the network: f holds the first output of all targets, then the second of all, and so on.
    outputs_per_target: ClassVar[int] = 1

    @property
    def sigma(self) -> float | None:
        """σ of the noise of every target, where it is Gaussian and one number says it; or None."""
        return None

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        """ℓ = -log p(y | f), of shape (n_samples,), differentiable in f."""
        raise NotImplementedError

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        """r = ∂ℓ/∂f, of shape (n_samples, n_outputs): the opposite of "y minus prediction"."""
        raise NotImplementedError

    def noise_precision(self, f: Tensor) -> Tensor:
        """Λ = ∂²ℓ/∂f², of shape (n_samples, n_outputs, n_outputs)."""
        raise NotImplementedError

    def mean_noise_precision(self, f: Tensor, nodes: Tensor) -> Tensor:
        """Λ̄ (n_samples, n_outputs, n_outputs): mean of Λ over f (n_samples, S, n_outputs).

        ``nodes`` (S,) are the weights of the mean.
        """
        Lambda = self.noise_precision(f.flatten(0, 1)).unflatten(0, f.shape[:2])
        return torch.einsum("nskl,s->nkl", Lambda, nodes)

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        """L with L Lᵀ = Λ, of shape (n_samples, n_outputs, n_outputs)."""
        raise NotImplementedError

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        """u = L⁺ r, of shape (n_samples, n_outputs), from its own formula and not by a division."""
        raise NotImplementedError

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        """log of the pseudo-determinant of Λ/2π per example, of shape (n_samples,)."""
        raise NotImplementedError

    def mean(self, f: Tensor) -> Tensor:
        """E[y | f], of shape (n_samples, n_outputs)."""
        raise NotImplementedError

    def aleatoric(self, f: Tensor) -> Tensor:
        """Noise part of Var[y], of shape (n_samples, n_outputs, n_outputs).

        Mathematics: :ref:`math-predicting`.
        """
        raise NotImplementedError

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        """Ignorance part of Var[y] when f has covariance V (n_samples, n_outputs, n_outputs)."""
        raise NotImplementedError

    def check_targets(self, y: Tensor) -> None:
        """Refuse targets that cannot be: ValueError. Here, none."""

    def centred(self, y: Tensor, sample_weight: Tensor) -> Likelihood:
        """The same likelihood with f = 0 in the middle of the targets, under ``normalize_y``."""
        return self

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        """P(target ≤ y | f) of each target, of shape (n_samples, n_outputs)."""
        raise NotImplementedError(f"{type(self).__name__} has no cdf(f, y), which quantiles need.")

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw y given f, of the shape of f, whatever it is."""
        raise NotImplementedError(f"{type(self).__name__} has no sample(f, generator).")

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        """Distribution of each target where f has this mean and these variances.

        Both (n_samples, n_outputs); by quadrature, where no closed form is known. Where a target
        has several outputs, V is their covariance, (n_samples, n_outputs, n_outputs).
        """

        def moments(f: NDArray) -> tuple[NDArray, NDArray]:
            at = torch.tensor(f)
            variance = self.aleatoric(at).diagonal(dim1=-2, dim2=-1)
            return self.mean(at).numpy(), variance.numpy()

        def log_density(f: NDArray, y: NDArray) -> NDArray:
            pairs = zip(torch.tensor(f).split(1, 1), torch.tensor(y).split(1, 1), strict=True)
            columns = [self.negative_log_likelihood(one, its) for one, its in pairs]
            return -torch.stack(columns, dim=1).numpy()

        def cdf(f: NDArray, y: NDArray) -> NDArray:
            return self.cdf(torch.tensor(f), torch.tensor(y)).numpy()

        n_nodes = self.n_nodes(float(V.max()))
        return Quadrature(
            f.numpy(), V.numpy(), moments, log_density, cdf, self.is_discrete, n_nodes
        )

    def n_nodes(self, variance: float) -> int:
        """Nodes of :class:`~sk_dnn2gp.predictive.Quadrature` for variances of f up to this one.

        More where p(y | f) changes much within √V.
        """
        return 97


def identities(f: Tensor) -> Tensor:
    """Return one K×K identity per example."""
    eye = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    return eye.expand(len(f), -1, -1)

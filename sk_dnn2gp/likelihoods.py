"""Likelihoods: pointwise functions of the network's output f and the target y.

Mathematics: :ref:`math-likelihoods` and :ref:`math-predicting`.

A likelihood knows nothing of weights, networks or Gaussian processes, so a new one edits this
file alone. Each is a small frozen object; every method is a formula of the table under
:ref:`math-likelihoods`:

    ℓ = -log p(y | f)     r = ∂ℓ/∂f     Λ = ∂²ℓ/∂f²     L Lᵀ = Λ     u = L⁺ r  (so L u = r)

Nothing here inverts Λ: the categorical Λ has rank K-1, and every classification Λ vanishes as the
network becomes certain. Softmax and sigmoid are in their log forms, so logits of any size are safe.

A regressor takes any likelihood (``DNN2GPRegressor(likelihood=...)``), one of your own too: the
contract below, whose identities ``tests/likelihood_contract.py`` checks for any object.

Shapes: f (n_samples, n_outputs); y (n_samples, n_outputs), but (n_samples,) integer classes for the
Categorical; ℓ (n_samples,); r, u (n_samples, n_outputs);
Λ, L, V (n_samples, n_outputs, n_outputs). Where a target has several outputs
(``outputs_per_target``), y, E[y] and Var[y] are of the targets, and the others of the outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from torch import Generator, Tensor

from .predictive import (
    Normal,
    NormalLognormal,
    PoissonLognormal,
    Predictive,
    Quadrature,
    StudentNormal,
)

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "Poisson",
    "StudentT",
]

_LOG_2PI = math.log(2.0 * math.pi)


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

        return Quadrature(f.numpy(), V.numpy(), moments, log_density, cdf, self.is_discrete)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Gaussian noise of standard deviation σ on every output, independent.

    Mathematics: :ref:`math-likelihoods`.

    Parameters
    ----------
    noise_std : float, default=1.0
        σ > 0, in the units of y as the network sees it.

    Raises
    ------
    ValueError
        If ``noise_std`` is not a positive finite number.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> Gaussian(0.5).residual(torch.ones(1, 1), torch.zeros(1, 1)).item()
    4.0
    """

    noise_std: float = 1.0
    is_definite: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.noise_std > 0 and math.isfinite(self.noise_std)):
            raise ValueError(f"noise_std must be a positive finite number, got {self.noise_std!r}.")

    @property
    def sigma(self) -> float:
        return self.noise_std

    def with_noise_std(self, noise_std: float) -> Gaussian:
        """Return the same likelihood with another σ."""
        return replace(self, noise_std=noise_std)

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        squares = ((y - f) ** 2).sum(-1)
        return squares / (2 * self.noise_std**2) + f.shape[-1] * self.log_normaliser()

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self.noise_std**2

    def noise_precision(self, f: Tensor) -> Tensor:
        return _identities(f) / self.noise_std**2

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return _identities(f) / self.noise_std

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self.noise_std

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return f.new_full((len(f),), -2 * f.shape[-1] * self.log_normaliser())

    def mean(self, f: Tensor) -> Tensor:
        return f

    def aleatoric(self, f: Tensor) -> Tensor:
        return _identities(f) * self.noise_std**2

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        return V

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.special.ndtr((y - f) / self.noise_std)

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        return f + self.noise_std * torch.randn(f.shape, dtype=f.dtype, generator=generator)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        return Normal(f.numpy(), np.full(V.shape, self.noise_std**2), V.numpy())

    def log_normaliser(self) -> float:
        """½ log 2πσ², of one output."""
        return 0.5 * _LOG_2PI + math.log(self.noise_std)


@dataclass(frozen=True)
class DiagonalGaussian(Likelihood):
    """Gaussian noise with a standard deviation for each target (:ref:`math-likelihoods`).

    Parameters
    ----------
    noise_stds : tuple of float
        σ > 0 of each target, in the units of y as the network sees it.

    Raises
    ------
    ValueError
        If one is not a positive finite number.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import DiagonalGaussian
    >>> DiagonalGaussian((0.5, 2.0)).residual(torch.ones(1, 2), torch.zeros(1, 2)).tolist()
    [[4.0, 0.25]]
    """

    noise_stds: tuple[float, ...]
    is_definite: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not all(std > 0 and math.isfinite(std) for std in self.noise_stds):
            raise ValueError(
                f"noise_stds must be positive finite numbers, got {self.noise_stds!r}."
            )

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        sigma = self._sigma(f)
        return (0.5 * ((y - f) / sigma) ** 2 + sigma.log() + 0.5 * _LOG_2PI).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self._sigma(f) ** 2

    def noise_precision(self, f: Tensor) -> Tensor:
        return _identities(f) / self._sigma(f) ** 2

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return _identities(f) / self._sigma(f)

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (f - y) / self._sigma(f)

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return -(2.0 * self._sigma(f).log() + _LOG_2PI).sum().expand(len(f))

    def mean(self, f: Tensor) -> Tensor:
        return f

    def aleatoric(self, f: Tensor) -> Tensor:
        return _identities(f) * self._sigma(f) ** 2

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        return V

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.special.ndtr((y - f) / self._sigma(f))

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        return f + self._sigma(f) * torch.randn(f.shape, dtype=f.dtype, generator=generator)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        return Normal(f.numpy(), np.tile(np.square(self.noise_stds), (len(f), 1)), V.numpy())

    def _sigma(self, f: Tensor) -> Tensor:
        return torch.tensor(self.noise_stds, dtype=f.dtype, device=f.device)


@dataclass(frozen=True)
class HeteroscedasticGaussian(Likelihood):
    """Gaussian noise whose size depends on x (:ref:`math-heteroscedastic`).

    Two outputs per target, the means m of all targets and then their g = log s/σ. Λ is the Fisher
    information: the Hessian's mean over y, which is never negative.

    Parameters
    ----------
    scale : float, default=1.0
        σ > 0, the noise where g = 0: a network near zero begins at it.

    Raises
    ------
    ValueError
        If ``scale`` is not a positive finite number.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import HeteroscedasticGaussian
    >>> f, y = torch.zeros(1, 2), torch.full((1, 1), 3.0)
    >>> HeteroscedasticGaussian().residual(f, y).tolist()  # m shall rise, and the noise too
    [[-3.0, -8.0]]
    """

    scale: float = 1.0
    is_definite: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True
    outputs_per_target: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be a positive finite number, got {self.scale!r}.")

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        m, log_s = self._parts(f)
        z = (y - m) * torch.exp(-log_s)
        return (0.5 * z * z + log_s + 0.5 * _LOG_2PI).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        m, log_s = self._parts(f)
        z = (y - m) * torch.exp(-log_s)
        return torch.cat([-z * torch.exp(-log_s), 1.0 - z * z], -1)

    def noise_precision(self, f: Tensor) -> Tensor:
        return self.noise_precision_factor(f) ** 2

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        _, log_s = self._parts(f)
        root_two = torch.full_like(log_s, math.sqrt(2.0))
        return torch.diag_embed(torch.cat([torch.exp(-log_s), root_two], -1))

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        m, log_s = self._parts(f)
        z = (y - m) * torch.exp(-log_s)
        return torch.cat([-z, (1.0 - z * z) / math.sqrt(2.0)], -1)

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return (math.log(2.0) - 2.0 * (self._parts(f)[1] + _LOG_2PI)).sum(-1)

    def mean(self, f: Tensor) -> Tensor:
        return self._parts(f)[0]

    def aleatoric(self, f: Tensor) -> Tensor:
        return torch.diag_embed(torch.exp(2.0 * self._parts(f)[1]))

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        K = f.shape[-1] // 2
        return V[..., :K, :K]

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        m, log_s = self._parts(f)
        return torch.special.ndtr((y - m) * torch.exp(-log_s))

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        m, log_s = self._parts(f)
        return m + log_s.exp() * torch.randn(m.shape, dtype=m.dtype, generator=generator)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        m, log_s = (part.numpy() for part in self._parts(f))
        K = m.shape[-1]
        of_both = V.diagonal(dim1=-2, dim2=-1).numpy()
        between = V[..., :K, K:].diagonal(dim1=-2, dim2=-1).numpy()
        return NormalLognormal(m, log_s, of_both[:, :K], of_both[:, K:], between)

    def _parts(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """m and log s of every target."""
        m, g = f.chunk(2, -1)
        return m, g + math.log(self.scale)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """One logit f, p = sigmoid(f), y in {0, 1} (:ref:`math-likelihoods`).

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Bernoulli
    >>> Bernoulli().noise_precision(torch.zeros(1, 1)).item()
    0.25
    """

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        # softplus(-f) for y = 1 and softplus(f) for y = 0: neither loses digits at |f| = 40.
        return (y * F.softplus(-f) + (1 - y) * F.softplus(f)).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        return (1 - y) * torch.sigmoid(f) - y * torch.sigmoid(-f)

    def noise_precision(self, f: Tensor) -> Tensor:
        return (torch.sigmoid(f) * torch.sigmoid(-f))[..., None]

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return self._root(f)[..., None]

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        # (p - y)/√(p(1-p)) is -e^{-f/2} for y = 1 and e^{f/2} for y = 0.
        return (1 - y) * torch.exp(f / 2) - y * torch.exp(-f / 2)

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return (F.logsigmoid(f) + F.logsigmoid(-f)).sum(-1) - _LOG_2PI

    def mean(self, f: Tensor) -> Tensor:
        return torch.sigmoid(f)

    def aleatoric(self, f: Tensor) -> Tensor:
        return self.noise_precision(f)

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        return self.noise_precision(f) ** 2 * V

    @staticmethod
    def _root(f: Tensor) -> Tensor:
        return torch.exp(0.5 * (F.logsigmoid(f) + F.logsigmoid(-f)))


@dataclass(frozen=True)
class Categorical(Likelihood):
    """K logits f, p = softmax(f), y a class index (:ref:`math-likelihoods`).

    Λ = diag p - p pᵀ is singular: a shift of all logits changes nothing. Its factor
    L = diag √p - p √pᵀ is square, and the whitened residual is taken as u = √p - e_y/√p_y.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Categorical
    >>> Categorical().residual(torch.zeros(1, 2), torch.tensor([0])).tolist()
    [[-0.5, 0.5]]
    """

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(f, y, reduction="none")

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        p = torch.softmax(f, -1)
        # p_y - 1 as minus the sum of the others, so that a certain network keeps its digits.
        others = p.scatter(-1, y[:, None], 0.0)
        return others.scatter(-1, y[:, None], -others.sum(-1, keepdim=True))

    def noise_precision(self, f: Tensor) -> Tensor:
        L = self.noise_precision_factor(f)
        return L @ L.mT

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        log_p = torch.log_softmax(f, -1)
        p, root = log_p.exp(), (0.5 * log_p).exp()
        off_diagonal = -p[:, :, None] * root[:, None, :]
        # The diagonal is √p (1 - p); 1 - p as the sum of the others keeps its digits.
        complement = _complement(p)
        return off_diagonal.diagonal_scatter(root * complement, dim1=-2, dim2=-1)

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        log_p = torch.log_softmax(f, -1)
        root = (0.5 * log_p).exp()
        log_p_y = log_p.gather(-1, y[:, None])
        p_not_y = torch.expm1(log_p_y).neg()
        # √p_y - 1/√p_y = -(1 - p_y)/√p_y
        return root.scatter(-1, y[:, None], -p_not_y * torch.exp(-0.5 * log_p_y))

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        # The K-1 nonzero eigenvalues of diag p - p pᵀ multiply to K Π p_k.
        K = f.shape[-1]
        log_p = torch.log_softmax(f, -1)
        return log_p.sum(-1) + math.log(K) - (K - 1) * _LOG_2PI

    def mean(self, f: Tensor) -> Tensor:
        return torch.softmax(f, -1)

    def aleatoric(self, f: Tensor) -> Tensor:
        return self.noise_precision(f)

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        Lambda = self.noise_precision(f)
        return Lambda @ V @ Lambda


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts of rate e^f, whose noise grows with them (:ref:`math-likelihoods`).

    Under f ~ N(m, V) the mean is exp(m + V/2).

    Parameters
    ----------
    exposure : float, default=1.0
        What multiplies every rate. Under ``normalize_y`` the mean count is taken in, so that a
        network near zero begins at it.

    Raises
    ------
    ValueError
        If ``exposure`` is not a positive finite number.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Poisson
    >>> f, y = torch.zeros(1, 1), torch.full((1, 1), 3.0)
    >>> Poisson(2.0).residual(f, y).item()  # rate less count
    -1.0
    """

    exposure: float = 1.0
    is_discrete: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.exposure > 0 and math.isfinite(self.exposure)):
            raise ValueError(f"exposure must be a positive finite number, got {self.exposure!r}.")

    def check_targets(self, y: Tensor) -> None:
        """Refuse what is no count: ValueError."""
        if bool(((y < 0) | (y != y.floor())).any()):
            raise ValueError(
                "likelihood=Poisson() is of counts: y must hold whole numbers, none negative."
            )

    def centred(self, y: Tensor, sample_weight: Tensor) -> Poisson:
        """With the mean count in the exposure."""
        mean = float((sample_weight[:, None] * y).mean() / sample_weight.mean())
        return replace(self, exposure=self.exposure * mean) if mean > 0 else self

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        log_rate = self._log_rate(f)
        return (log_rate.exp() - y * log_rate + torch.lgamma(y + 1.0)).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        return self.mean(f) - y

    def noise_precision(self, f: Tensor) -> Tensor:
        return torch.diag_embed(self.mean(f))

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return torch.diag_embed((0.5 * self._log_rate(f)).exp())

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        half = 0.5 * self._log_rate(f)
        return half.exp() - y * (-half).exp()

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return (self._log_rate(f) - _LOG_2PI).sum(-1)

    def mean(self, f: Tensor) -> Tensor:
        return self._log_rate(f).exp()

    def aleatoric(self, f: Tensor) -> Tensor:
        return self.noise_precision(f)

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        rate = self.noise_precision(f)
        return rate @ V @ rate

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        count = y.floor()
        below = torch.special.gammaincc(count.clamp_min(0.0) + 1.0, self.mean(f))
        return torch.where(count >= 0, below, 0.0)

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.poisson(self.mean(f), generator=generator)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        return PoissonLognormal(self._log_rate(f).numpy(), V.numpy())

    def _log_rate(self, f: Tensor) -> Tensor:
        return f + math.log(self.exposure)


@dataclass(frozen=True)
class StudentT(Likelihood):
    """Noise with heavy tails, robust to outliers (:ref:`math-likelihoods`).

    y = f + s t, with t Student's of ν degrees of freedom. At z = (y - f)/s the Hessian is
    (ν+1)(ν - z²)/(ν + z²)²/s², negative for outliers; Λ is its mean over y, the Fisher information
    (ν+1)/((ν+3) s²).

    Parameters
    ----------
    scale : float
        s > 0, in the units of y as the network sees it (standardised under ``normalize_y``). A
        search chooses it by the evidence, as any parameter.
    df : float, default=4.0
        ν > 2, so that the noise has a variance, s² ν/(ν - 2). The larger, the more Gaussian.

    Raises
    ------
    ValueError
        If ``scale`` is not positive or ``df`` not above 2, or one is not finite.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import StudentT
    >>> f, y = torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [100.0]])
    >>> StudentT(1.0).residual(f, y).abs().argmax().item()  # the outlier pulls less than y = 2
    1
    """

    scale: float
    df: float = 4.0
    is_definite: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be a positive finite number, got {self.scale!r}.")
        if not (self.df > 2 and math.isfinite(self.df)):
            raise ValueError(f"df must be a finite number above 2, got {self.df!r}.")

    def negative_log_likelihood(self, f: Tensor, y: Tensor) -> Tensor:
        nu = self.df
        z = (y - f) / self.scale
        constant = math.lgamma(0.5 * nu) - math.lgamma(0.5 * (nu + 1.0))
        constant += 0.5 * math.log(nu * math.pi) + math.log(self.scale)
        return (0.5 * (nu + 1.0) * torch.log1p(z * z / nu) + constant).sum(-1)

    def residual(self, f: Tensor, y: Tensor) -> Tensor:
        z = (f - y) / self.scale
        return (self.df + 1.0) * z / (self.df + z * z) / self.scale

    def noise_precision(self, f: Tensor) -> Tensor:
        return _identities(f) * self._root**2

    def noise_precision_factor(self, f: Tensor) -> Tensor:
        return _identities(f) * self._root

    def whitened_residual(self, f: Tensor, y: Tensor) -> Tensor:
        return self.residual(f, y) / self._root

    def log_noise_determinant(self, f: Tensor) -> Tensor:
        return f.new_full((len(f),), f.shape[-1] * (2.0 * math.log(self._root) - _LOG_2PI))

    def mean(self, f: Tensor) -> Tensor:
        return f

    def aleatoric(self, f: Tensor) -> Tensor:
        return _identities(f) * (self.scale**2 * self.df / (self.df - 2.0))

    def epistemic(self, f: Tensor, V: Tensor) -> Tensor:
        return V

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.tensor(stdtr(self.df, ((y - f) / self.scale).numpy()))

    def sample(self, f: Tensor, generator: Generator | None = None) -> Tensor:
        uniform = torch.rand(f.shape, dtype=torch.float64, generator=generator)
        # In the middle of a draw's cell: at 0 the quantile is infinite.
        quantile = stdtrit(self.df, uniform.numpy() * (1.0 - 2**-52) + 2**-53)
        return f + self.scale * torch.tensor(quantile).to(f)

    def predictive(self, f: Tensor, V: Tensor) -> Predictive:
        return StudentNormal(f.numpy(), V.numpy(), self.scale, self.df)

    @property
    def _root(self) -> float:
        return math.sqrt((self.df + 1.0) / (self.df + 3.0)) / self.scale


def _identities(f: Tensor) -> Tensor:
    """Return one K×K identity per example."""
    eye = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    return eye.expand(len(f), -1, -1)


def _complement(p: Tensor) -> Tensor:
    """1 - p without cancellation where p is close to one: the sum of the other classes."""
    K = p.shape[-1]
    others = 1.0 - torch.eye(K, dtype=p.dtype, device=p.device)
    return p @ others

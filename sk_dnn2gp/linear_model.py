"""The network as a linear model: the one home of theorem 1 and theorem 2.

(:ref:`math-laplace` and :ref:`math-variational`.)

At weights w* the generalised Gauss-Newton approximation turns the network into

    ỹ_i = J_i w + ε_i,   ε_i ~ N(0, Λ_i⁻¹),   w ~ N(0, diag(δ)⁻¹),      ỹ_i = J_i w* - Λ_i⁻¹ r_i

whose posterior is the Laplace posterior N(w*, Σ), and whose function-space view is a Gaussian
process with the neural tangent kernel (Khan et al. 2019, theorem 1). Λ⁻¹ need not exist, so the
model is kept whitened: features Φ_i = L_iᵀ J_i, targets t_i = Φ_i w* - u_i.

Shapes: X (n_samples, ...); noise_factor L (n_samples, n_outputs, n_outputs);
whitened_residual u (n_samples, n_outputs); weights w* (n_params,).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .likelihoods import Likelihood
from .linearize import Linearization
from .linearize.tape import Cotangents

__all__ = ["IterationModel", "LinearModel"]


@dataclass(frozen=True)
class LinearModel:
    """A linear model in the network's weights, with whitened data (:ref:`math-laplace`, model B).

    Parameters
    ----------
    linearization : Linearization
        The network as a linear map at w*.
    X : Tensor of shape (n_samples, ...)
        Training inputs.
    noise_factor : Tensor of shape (n_samples, n_outputs, n_outputs), float64
        L_i with L_i L_iᵀ = s_i Λ_i, where s_i is the sample weight.
    whitened_residual : Tensor of shape (n_samples, n_outputs), float64
        u_i = L_i⁺ r_i.
    weights : Tensor of shape (n_params,), float64
        w*, the weights the network is linearised at.
    prior_precision : Tensor of shape (n_params,), float64
        δ, one per weight: one number for all is broadcast where a model is made.
    log_likelihood : float
        Σ s_i log p(y_i | f(x_i)), a weight s counting its example s times.
    log_noise_determinant : float
        Σ s_i log det(Λ_i / 2π), on the range of Λ where it is singular.
    residual : Tensor of shape (n_samples, n_outputs), optional
        s_i r_i, finite where u is not (a network that is surely wrong); None is L u.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.linear_model import LinearModel
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.linearize import Linearization
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> _ = torch.nn.init.constant_(net.weight, 0.5)
    >>> X = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    >>> model = LinearModel.from_laplace(Linearization(net), X, X, Gaussian(1.0), 1.0)
    >>> model.gradient.tolist()  # Jᵀ r + δ w = -2.5 + 0.5
    [-2.0]
    """

    linearization: Linearization
    X: Tensor
    noise_factor: Tensor
    whitened_residual: Tensor
    weights: Tensor
    prior_precision: Tensor
    log_likelihood: float
    log_noise_determinant: float
    residual: Tensor | None = None

    @classmethod
    def from_laplace(
        cls,
        linearization: Linearization,
        X: Tensor,
        y: Tensor,
        likelihood: Likelihood,
        prior_precision: float | Tensor,
        sample_weight: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> LinearModel:
        """Theorem 1: the linear model whose posterior is the Laplace posterior at these weights.

        ``y`` as ``likelihood`` wants it; δ > 0 for all weights or one each (P,); ``sample_weight``
        (n,) says how many times each example counts; ``outputs`` (n, K) is f(X) where the caller
        has it already. ValueError if ``prior_precision`` is not positive and finite.
        """
        f = (linearization.outputs(X) if outputs is None else outputs).double()
        y = y.double() if y.is_floating_point() else y
        L = likelihood.noise_precision_factor(f)
        u, r = likelihood.whitened_residual(f, y), likelihood.residual(f, y)
        log_p = -likelihood.negative_log_likelihood(f, y)
        log_det = likelihood.log_noise_determinant(f)
        if sample_weight is not None:
            s = sample_weight.double()
            root = s.sqrt()
            L, u, r = L * root[:, None, None], u * root[:, None], r * s[:, None]
            log_p, log_det = s * log_p, s * log_det
        return cls(
            linearization=linearization,
            X=X,
            noise_factor=L,
            whitened_residual=u,
            weights=linearization.weights(),
            prior_precision=_checked_precision(prior_precision, linearization),
            log_likelihood=float(log_p.sum()),
            log_noise_determinant=float(log_det.sum()),
            residual=r,
        )

    @staticmethod
    def from_variational(
        linearizations: Sequence[Linearization],
        X: Tensor,
        noise_factor: Tensor,
        residual: Tensor,
        mean: Tensor,
        precision: Tensor,
        prior_precision: float | Tensor,
        rate: float,
        scale: float = 1.0,
    ) -> IterationModel:
        """Theorem 2: the linear model whose posterior is VOGGN's next iterate.

        Its prior is N(m_t, V_t) with V_t⁻¹ = (1-β)Σ_t⁻¹ + βδI and m_t = (1-β) V_t Σ_t⁻¹ μ_t; its
        data, for every example and draw, ỹ_is = J_s μ_t - Λ_s⁻¹ r_s with noise precision βΛ_s/M
        (:ref:`math-variational`).

        The network at each of the M draws w_s; of the batch X, L_s with L_s L_sᵀ = Λ_s (M, n, K, K)
        and r_s = ∂ℓ/∂f (M, n, K); ``mean`` μ_t (P,), ``precision`` Σ_t⁻¹ (P, P) or its diagonal
        (P,), all float64; ``rate`` β of both the mean and the precision; ``scale`` is N/n of a
        minibatch, whose examples stand for so many each.
        """
        delta = torch.as_tensor(prior_precision, dtype=torch.float64).expand(len(mean))
        kept = (1.0 - rate) * precision
        dense = torch.diag(kept) if kept.ndim == 1 else kept
        V_inverse = dense + rate * torch.diag(delta.to(mean.device))
        pull = dense @ mean
        return IterationModel(
            linearizations=tuple(linearizations),
            X=X,
            noise_factor=noise_factor,
            data_weight=rate * scale / len(linearizations),
            residual=residual,
            mean=mean,
            prior_mean=torch.linalg.solve(V_inverse, pull),
            prior_precision=V_inverse,
        )

    @property
    def n_rows(self) -> int:
        """NK: the number of whitened rows."""
        return self.whitened_residual.numel()

    @property
    def n_params(self) -> int:
        """P: the number of weights."""
        return len(self.weights)

    @property
    def squared_norm(self) -> float:
        """wᵀδw, the squared norm of x -> J(x)w under the kernel J Jᵀ/δ (:ref:`math-norm`)."""
        return float((self.prior_precision * self.weights**2).sum())

    @cached_property
    def data_gradient(self) -> Tensor:
        """Σ_i J_iᵀ r_i = Φᵀu, of shape (n_params,): the gradient of the loss without the prior."""
        return self.linearization.vjp(self.X, self._residuals)

    @property
    def _residuals(self) -> Tensor:
        """s_i r_i, of shape (n_samples, n_outputs)."""
        if self.residual is not None:
            return self.residual
        return (self.noise_factor @ self.whitened_residual[..., None])[..., 0]

    @cached_property
    def gradient(self) -> Tensor:
        """∇loss(w*) = Φᵀu + δ w*, of shape (n_params,): zero at a true minimum."""
        return self.data_gradient + self.prior_precision * self.weights

    @cached_property
    def whitened_targets(self) -> Tensor:
        """t_i = Φ_i w* - u_i, of shape (n_samples, n_outputs)."""
        Jw = self.linearization.jvp(self.X, self.weights).double()
        return (self.noise_factor.mT @ Jw[..., None])[..., 0] - self.whitened_residual

    def transformed_targets(self) -> Tensor:
        """ỹ_i = J_i w* - Λ_i⁺ r_i, of shape (n_samples, n_outputs): theorem 1's data.

        Where Λ_i is singular its pseudo-inverse is meant: the part of ỹ_i that the noise model
        can see. Examples of weight zero carry no data; their target is J_i w*.
        """
        Jw = self.linearization.jvp(self.X, self.weights).double()
        # Λ⁺ r = (L Lᵀ)⁺ L u = (Lᵀ)⁺ u
        step = torch.linalg.pinv(self.noise_factor.mT) @ self.whitened_residual[..., None]
        return Jw - step[..., 0]

    def with_prior_precision(self, prior_precision: float | Tensor) -> LinearModel:
        """Return the same model under another δ, nothing recomputed; ValueError if δ ≤ 0."""
        delta = _checked_precision(prior_precision, self.linearization)
        changed = replace(self, prior_precision=delta)
        for name in ("data_gradient", "whitened_targets"):
            if name in self.__dict__:
                changed.__dict__[name] = self.__dict__[name]
        return changed

    def with_gradients(self, sample_weight: Tensor) -> LinearModel:
        """The model whose features are the examples' gradients: φ_i = ∇ℓ_i, D_i = 1 in eq. 5.

        One row for an example, whatever K is (:ref:`math-gradients`); ``sample_weight`` (n,) as in
        :meth:`from_laplace`, all positive.
        """
        root = sample_weight.to(self.weights).sqrt()[:, None]
        return replace(
            self,
            noise_factor=(self._residuals / root)[..., None],
            whitened_residual=root,
            log_noise_determinant=-float(sample_weight.sum()) * math.log(2.0 * math.pi),
        )

    def prior_gram(
        self,
        X: Tensor,
        X2: Tensor | None = None,
        *,
        cotangents: Cotangents = None,
        cotangents2: Cotangents = None,
    ) -> Tensor:
        """Cᵀ J D⁻¹ J₂ᵀ C₂ with D = diag(δ): prior covariances of f (:ref:`math-groups`).

        X2 of None is X itself; C (n, K, n_rows) of either side, or a callable; None is the identity
        on both. Of X alone, C₂ is C. Result (n n_rows, n2 n_rows2), float64.
        """
        if X2 is None:
            cotangents2 = None
        variances = self._prior_variances
        if isinstance(variances, Tensor):
            return self._gram_of_rows(X, X2, cotangents, cotangents2)
        gram = self.linearization.gram(
            X,
            X2,
            cotangents=cotangents,
            cotangents2=cotangents2,
            parameter_scale=None if isinstance(variances, float) else variances,
        )
        return gram.mul_(variances) if isinstance(variances, float) else gram

    def prior_blocks(self, X: Tensor, *, cotangents: Cotangents = None) -> Tensor:
        """Cᵀ J D⁻¹ Jᵀ C per example, of shape (n_samples, n_rows, n_rows), float64."""
        linearization, variances = self.linearization, self._prior_variances
        if isinstance(variances, Tensor):
            parts = linearization.iter_rows(X, cotangents)
            return torch.cat([(rows * variances) @ rows.mT for _, rows in parts])
        if isinstance(variances, float):
            return linearization.diagonal_blocks(X, cotangents=cotangents).double() * variances
        return linearization.diagonal_blocks(
            X, cotangents=cotangents, parameter_scale=variances
        ).double()

    @cached_property
    def _prior_variances(self) -> float | list[float] | Tensor:
        """1/δ: of all weights, of each tensor, or of each weight, as few as there are."""
        variances = 1.0 / self.prior_precision
        if bool((variances == variances[0]).all()):
            return float(variances[0])
        pieces = variances.split(list(self.linearization.parameter_sizes))
        if all(bool((piece == piece[0]).all()) for piece in pieces):
            return [float(piece[0]) for piece in pieces]
        return variances

    def _gram_of_rows(self, X: Tensor, X2: Tensor | None, C: Cotangents, C2: Cotangents) -> Tensor:
        """:meth:`prior_gram` where δ varies inside a tensor: rows scaled by D^(-1/2), in chunks.

        Where the rows of one side do not fit, those of the columns are made anew for each chunk.
        """
        bands = []
        for left in self._scaled_rows(X, C):
            others = self._scaled_rows(X, C) if X2 is None else self._scaled_rows(X2, C2)
            bands.append(torch.cat([left @ right.mT for right in others], dim=1))
        K = torch.cat(bands)
        return K if X2 is not None else torch.add(K, K.mT).mul_(0.5)

    def _scaled_rows(self, X: Tensor, C: Cotangents) -> Iterator[Tensor]:
        """Chunks of Cᵀ J D^(-1/2), of shape (n n_rows, n_params)."""
        root = self.prior_precision.rsqrt()
        for _, rows in self.linearization.iter_rows(X, C):
            yield rows.flatten(0, 1) * root


@dataclass(frozen=True)
class IterationModel:
    """One variational iteration as a linear model and as a Gaussian process (theorem 2).

    See :ref:`math-variational`. Rows are ordered draw by draw, example by example, output by
    output. A row's features are the Jacobian at that draw. Dense: for networks of up to a few
    thousand weights.

    Parameters
    ----------
    linearizations : tuple of Linearization
        The network at each draw w_s.
    X : Tensor of shape (n_samples, ...)
    noise_factor : Tensor of shape (n_draws, n_samples, n_outputs, n_outputs)
        L_s.
    data_weight : float
        βN/(nM): what a row of the batch counts for.
    residual : Tensor of shape (n_draws, n_samples, n_outputs)
        r_s.
    mean : Tensor of shape (n_params,)
        μ_t.
    prior_mean : Tensor of shape (n_params,)
        m_t.
    prior_precision : Tensor of shape (n_params, n_params)
        V_t⁻¹.
    """

    linearizations: tuple[Linearization, ...]
    X: Tensor
    noise_factor: Tensor
    data_weight: float
    residual: Tensor
    mean: Tensor
    prior_mean: Tensor
    prior_precision: Tensor

    @cached_property
    def jacobian(self) -> Tensor:
        """J_s(x_i), of shape (n_draws n_samples n_outputs, n_params)."""
        return self.features(self.X)

    def features(self, X: Tensor) -> Tensor:
        """Jacobians of other inputs at every draw, of shape (n_draws len(X) n_outputs, P)."""
        rows = [part.flatten(0, 1) for lin in self.linearizations for _, part in lin.iter_rows(X)]
        return torch.cat(rows)

    def transformed_targets(self) -> Tensor:
        """ỹ = J_s μ_t - Λ_s⁺ r_s, of shape (n_draws, n_samples, n_outputs)."""
        Lambda = self.noise_factor @ self.noise_factor.mT
        step = torch.linalg.pinv(Lambda, hermitian=True) @ self.residual[..., None]
        return (self.jacobian @ self.mean).view(self.residual.shape) - step[..., 0]

    def noise_precision(self) -> Tensor:
        """βΛ_s/M (times N/n), of shape (n_draws, n_samples, n_outputs, n_outputs)."""
        return self.data_weight * self.noise_factor @ self.noise_factor.mT

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean (P,) and precision (P, P) of the linear model's weights: the next iterate."""
        Phi = self._whitened(self.jacobian)
        A = self.prior_precision + Phi.mT @ Phi
        b = self.prior_precision @ self.prior_mean + Phi.mT @ self._whitened_targets()
        return torch.linalg.solve(A, b), A

    def prior_process(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean J m_t and covariance J V_t Jᵀ of the Gaussian process at X (the paper's eq. 14)."""
        J = self.features(X)
        return J @ self.prior_mean, J @ torch.linalg.solve(self.prior_precision, J.mT)

    def predict(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (n_draws n K,) and covariance at X given the data, by kernels alone."""
        J = self.features(X)
        half = torch.linalg.solve(self.prior_precision, self.jacobian.mT)
        # Whitened data, Lᵀ(ỹ - Jm) with unit noise: Λ⁻¹ is never formed.
        cross = self._whitened((J @ half).mT).mT
        B = self._whitened(self._whitened(self.jacobian @ half).mT)
        B.diagonal().add_(1.0)
        expected = self._whitened((self.jacobian @ self.prior_mean)[:, None])[:, 0]
        innovation = self._whitened_targets() - expected
        gain = torch.linalg.solve(B, cross.mT).mT
        mean, covariance = self.prior_process(X)
        return mean + gain @ innovation, covariance - gain @ cross.mT

    def _whitened(self, rows: Tensor) -> Tensor:
        """√(βN/(nM)) Lᵀ on rows (n_draws n_samples n_outputs, p): their noise is then one."""
        blocks = rows.reshape(*self.residual.shape, -1)
        return self.data_weight**0.5 * (self.noise_factor.mT @ blocks).flatten(0, 2)

    def _whitened_targets(self) -> Tensor:
        """Whitened ỹ: Lᵀ J μ - L⁺ r, where no Λ⁻¹ is formed."""
        u = torch.linalg.pinv(self.noise_factor) @ self.residual[..., None]
        Jmu = self._whitened((self.jacobian @ self.mean)[:, None])[:, 0]
        return Jmu - self.data_weight**0.5 * u.flatten()


def _checked_precision(prior_precision: float | Tensor, linearization: Linearization) -> Tensor:
    """δ of every weight, of shape (n_params,)."""
    delta, P = torch.as_tensor(prior_precision, dtype=torch.float64), linearization.n_params
    if delta.ndim > 0 and delta.shape != (P,):
        raise ValueError(
            f"prior_precision must be one number or one per weight ({P}), "
            f"got shape {tuple(delta.shape)}."
        )
    if not bool((torch.isfinite(delta) & (delta > 0)).all()):
        raise ValueError(f"prior_precision must be positive and finite, got {prior_precision!r}.")
    return delta.to(linearization.device).expand(P).contiguous()

"""VOGGN, VOGN, OGGN, OGN: optimisers whose every iteration is a Gaussian process (MATH 5).

{expectations at samples of q, at its mean} × {full, diagonal precision} of one update, which is
written once in ``_variational``. Between steps the parameters hold the mean μ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..likelihoods import Likelihood
from .structure import Diagonal, Full
from .update import GaussianWeights, Variational

__all__ = ["OGGN", "OGN", "VOGGN", "VOGN", "GaussianWeights"]


class VOGGN(Variational):
    """Variational online Gauss-Newton with a full covariance (MATH 5; the paper's eq. 13).

    Each step is the posterior of a linear model, and so of a Gaussian process with the neural
    tangent kernel of that iteration (Khan et al. 2019, theorem 2; :meth:`dual_gp`). For networks
    of up to a few thousand weights.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Weights, or param_groups with their own ``lr``, ``momentum`` and ``prior_precision``.
    lr : float, default=0.1
        α, the rate of the mean. The gradient and the curvature are sums over all N examples, so
        that the step is a part α of a Newton step.
    n_data : int
        N, the number of examples in the whole training set.
    likelihood : Likelihood
        Its noise precision Λ(f) is the curvature of the loss in f.
    prior_precision : float, default=1.0
        δ of the prior N(0, I/δ), which this optimiser adds: no weight decay in the closure.
    beta : float, default=None
        β, the rate of the precision; None is lr, with which theorem 2 is exact.
    momentum : float, default=0.0
        Decay of a running mean of the gradient, corrected for its start as Adam's.
    mc_samples : int, default=1
        M, the draws of the weights in a step; the closure is called once for each.
    initial_precision : float, optional
        S₀ + δ; None is N + δ, weights known to about 1/√N.
    bias_correction : bool, default=False
        Take what is left of S₀ out of S, as Adam does.
    curvature : {"ggn", "gradient"}, default="ggn"
        Σ_i JᵀΛJ, or the sum over examples of squared gradients (Khan et al. 2018).
    module : torch.nn.Module, optional
        The network; None finds it when the closure first calls it.
    random_state : int, optional
        Seed of the draws; None takes one from torch's global generator.
    keep_iteration : bool, default=False
        Keep what each step saw, for :meth:`dual_gp`.
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Raises
    ------
    ValueError
        If a number is out of range, or ``likelihood`` is missing where it is needed.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.optim import VOGGN
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> x = torch.ones(3, 1, dtype=torch.float64)
    >>> optimizer = VOGGN(
    ...     net.parameters(), lr=1.0, n_data=3, likelihood=Gaussian(1.0), random_state=0
    ... )
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * (net(x) - 4.0).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> round(net.weight.item(), 1) != 3.0  # gradient at a draw: a noisy step towards 3
    True
    >>> optimizer.posterior().precision.item()  # 3 + 1
    4.0
    """

    _structure = Full
    _sampled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        n_data: int,
        likelihood: Likelihood,
        prior_precision: float = 1.0,
        beta: float | None = None,
        momentum: float = 0.0,
        mc_samples: int = 1,
        initial_precision: float | None = None,
        bias_correction: bool = False,
        curvature: str = "ggn",
        module: nn.Module | None = None,
        random_state: int | None = None,
        keep_iteration: bool = False,
        memory_limit: float | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            n_data=n_data,
            likelihood=likelihood,
            prior_precision=prior_precision,
            beta=beta,
            momentum=momentum,
            mc_samples=mc_samples,
            initial_precision=initial_precision,
            bias_correction=bias_correction,
            curvature=curvature,
            module=module,
            random_state=random_state,
            keep_iteration=keep_iteration,
            memory_limit=memory_limit,
        )


class OGGN(Variational):
    """Online Gauss-Newton with a full precision: VOGGN with expectations at the mean (MATH 5).

    A fixed point is a stationary point of the loss Σℓ + δ/2 ‖w‖².

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Weights, or param_groups with their own ``lr``, ``momentum`` and ``prior_precision``.
    lr : float, default=0.1
        α, the rate of the mean. The gradient and the curvature are sums over all N examples, so
        that the step is a part α of a Newton step.
    n_data : int
        N, the number of examples in the whole training set.
    likelihood : Likelihood
        Its noise precision Λ(f) is the curvature of the loss in f.
    prior_precision : float, default=1.0
        δ of the prior N(0, I/δ), which this optimiser adds: no weight decay in the closure.
    beta : float, default=None
        β, the rate of the precision; None is lr, with which theorem 2 is exact.
    momentum : float, default=0.0
        Decay of a running mean of the gradient, corrected for its start as Adam's.
    initial_precision : float, optional
        S₀ + δ; None is N + δ, weights known to about 1/√N.
    bias_correction : bool, default=False
        Take what is left of S₀ out of S, as Adam does.
    curvature : {"ggn", "gradient"}, default="ggn"
        Σ_i JᵀΛJ, or the sum over examples of squared gradients (Khan et al. 2018).
    module : torch.nn.Module, optional
        The network; None finds it when the closure first calls it.
    keep_iteration : bool, default=False
        Keep what each step saw, for :meth:`dual_gp`.
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Raises
    ------
    ValueError
        If a number is out of range, or ``likelihood`` is missing where it is needed.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.optim import OGGN
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> x = torch.ones(3, 1, dtype=torch.float64)
    >>> optimizer = OGGN(
    ...     net.parameters(), lr=1.0, n_data=3, likelihood=Gaussian(1.0), prior_precision=1.0
    ... )
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * (net(x) - 4.0).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> round(net.weight.item(), 6)  # 3 * 4 / (3 + 1), in one step
    3.0
    """

    _structure = Full
    _sampled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        n_data: int,
        likelihood: Likelihood,
        prior_precision: float = 1.0,
        beta: float | None = None,
        momentum: float = 0.0,
        initial_precision: float | None = None,
        bias_correction: bool = False,
        curvature: str = "ggn",
        module: nn.Module | None = None,
        keep_iteration: bool = False,
        memory_limit: float | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            n_data=n_data,
            likelihood=likelihood,
            prior_precision=prior_precision,
            beta=beta,
            momentum=momentum,
            mc_samples=1,
            initial_precision=initial_precision,
            bias_correction=bias_correction,
            curvature=curvature,
            module=module,
            random_state=0,
            keep_iteration=keep_iteration,
            memory_limit=memory_limit,
        )


class VOGN(Variational):
    """Variational online Gauss-Newton with a diagonal covariance (MATH 5; Khan et al. 2018).

    Costs about two Adam steps on the same batch, with ``mc_samples=1`` and
    ``curvature="gradient"``. In a skorch net: ``NeuralNet(module, criterion=nn.CrossEntropyLoss,
    optimizer=VOGN, optimizer__n_data=len(X), lr=0.01)``.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Weights, or param_groups with their own ``lr``, ``momentum`` and ``prior_precision``.
    lr : float, default=0.01
        α, the rate of the mean. The gradient and the curvature are sums over all N examples, so
        that the step is a part α of a Newton step.
    n_data : int
        N, the number of examples in the whole training set.
    likelihood : Likelihood, optional
        Its noise precision Λ(f) is the curvature of the loss in f; needed for
        ``curvature="ggn"``.
    prior_precision : float, default=1.0
        δ of the prior N(0, I/δ), which this optimiser adds: no weight decay in the closure.
    beta : float, default=0.01
        β, the rate of the precision; None is lr.
    momentum : float, default=0.9
        Decay of a running mean of the gradient, corrected for its start as Adam's.
    mc_samples : int, default=1
        M, the draws of the weights in a step; the closure is called once for each.
    initial_precision : float, optional
        S₀ + δ; None is N + δ, weights known to about 1/√N.
    bias_correction : bool, default=False
        Take what is left of S₀ out of S, as Adam does.
    curvature : {"ggn", "gradient"}, default="gradient"
        Σ_i JᵀΛJ, or the sum over examples of squared gradients (Khan et al. 2018),
        which needs no more than the closure's own backward pass.
    module : torch.nn.Module, optional
        The network; None finds it when the closure first calls it.
    random_state : int, optional
        Seed of the draws; None takes one from torch's global generator.
    keep_iteration : bool, default=False
        Keep what each step saw, for :meth:`dual_gp`.
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Raises
    ------
    ValueError
        If a number is out of range, or ``likelihood`` is missing where it is needed.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.optim import VOGN
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> x = torch.ones(3, 1, dtype=torch.float64)
    >>> optimizer = VOGN(
    ...     net.parameters(), lr=0.1, n_data=3,
    ...     likelihood=Gaussian(1.0), curvature="ggn", beta=1.0
    ... )
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * (net(x) - 4.0).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> optimizer.posterior().precision.tolist()  # the sum of x² plus δ
    [4.0]
    """

    _structure = Diagonal
    _sampled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        n_data: int,
        likelihood: Likelihood | None = None,
        prior_precision: float = 1.0,
        beta: float | None = 0.01,
        momentum: float = 0.9,
        mc_samples: int = 1,
        initial_precision: float | None = None,
        bias_correction: bool = False,
        curvature: str = "gradient",
        module: nn.Module | None = None,
        random_state: int | None = None,
        keep_iteration: bool = False,
        memory_limit: float | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            n_data=n_data,
            likelihood=likelihood,
            prior_precision=prior_precision,
            beta=beta,
            momentum=momentum,
            mc_samples=mc_samples,
            initial_precision=initial_precision,
            bias_correction=bias_correction,
            curvature=curvature,
            module=module,
            random_state=random_state,
            keep_iteration=keep_iteration,
            memory_limit=memory_limit,
        )


class OGN(Variational):
    """Online Gauss-Newton with a diagonal precision: VOGN with expectations at the mean (MATH 5).

    A fixed point is a stationary point of the loss Σℓ + δ/2 ‖w‖².

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Weights, or param_groups with their own ``lr``, ``momentum`` and ``prior_precision``.
    lr : float, default=0.01
        α, the rate of the mean. The gradient and the curvature are sums over all N examples, so
        that the step is a part α of a Newton step.
    n_data : int
        N, the number of examples in the whole training set.
    likelihood : Likelihood, optional
        Its noise precision Λ(f) is the curvature of the loss in f; needed for
        ``curvature="ggn"``.
    prior_precision : float, default=1.0
        δ of the prior N(0, I/δ), which this optimiser adds: no weight decay in the closure.
    beta : float, default=0.01
        β, the rate of the precision; None is lr.
    momentum : float, default=0.9
        Decay of a running mean of the gradient, corrected for its start as Adam's.
    initial_precision : float, optional
        S₀ + δ; None is N + δ, weights known to about 1/√N.
    bias_correction : bool, default=False
        Take what is left of S₀ out of S, as Adam does.
    curvature : {"ggn", "gradient"}, default="gradient"
        Σ_i JᵀΛJ, or the sum over examples of squared gradients (Khan et al. 2018),
        which needs no more than the closure's own backward pass.
    module : torch.nn.Module, optional
        The network; None finds it when the closure first calls it.
    keep_iteration : bool, default=False
        Keep what each step saw, for :meth:`dual_gp`.
    memory_limit : float, optional
        MiB for temporary work; None is scikit-learn's ``working_memory``.

    Raises
    ------
    ValueError
        If a number is out of range, or ``likelihood`` is missing where it is needed.

    Examples
    --------
    >>> import torch
    >>> from sk_dnn2gp.likelihoods import Gaussian
    >>> from sk_dnn2gp.optim import OGN
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> x = torch.ones(3, 1, dtype=torch.float64)
    >>> optimizer = OGN(
    ...     net.parameters(), lr=1.0, n_data=3, momentum=0.0,
    ...     likelihood=Gaussian(1.0), curvature="ggn", beta=1.0
    ... )
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * (net(x) - 4.0).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> _ = optimizer.step(closure)
    >>> round(net.weight.item(), 6)
    3.0
    """

    _structure = Diagonal
    _sampled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        n_data: int,
        likelihood: Likelihood | None = None,
        prior_precision: float = 1.0,
        beta: float | None = 0.01,
        momentum: float = 0.9,
        initial_precision: float | None = None,
        bias_correction: bool = False,
        curvature: str = "gradient",
        module: nn.Module | None = None,
        keep_iteration: bool = False,
        memory_limit: float | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            n_data=n_data,
            likelihood=likelihood,
            prior_precision=prior_precision,
            beta=beta,
            momentum=momentum,
            mc_samples=1,
            initial_precision=initial_precision,
            bias_correction=bias_correction,
            curvature=curvature,
            module=module,
            random_state=0,
            keep_iteration=keep_iteration,
            memory_limit=memory_limit,
        )

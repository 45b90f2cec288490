"""VOGGN, VOGN, OGGN, OGN: optimisers whose every iteration is a Gaussian process.

{expectations at samples of q, at its mean} × {full, diagonal precision} of one update, which is
written once, with its parameters, in :class:`VariationalOptimizer` (:ref:`math-variational`).
"""

from __future__ import annotations

from ..posterior.precision import GaussianWeights
from .update import VariationalOptimizer

__all__ = ["OGGN", "OGN", "VOGGN", "VOGN", "GaussianWeights", "VariationalOptimizer"]


class VOGGN(VariationalOptimizer):
    """Variational online Gauss-Newton with a full covariance (the paper's equation 13).

    Each step is the posterior of a linear model, and so of a Gaussian process with the neural
    tangent kernel of that iteration (Khan et al. 2019, theorem 2; :meth:`dual_gp`). For networks
    of up to a few thousand weights. Parameters are those of :class:`VariationalOptimizer`.

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

    _diagonal, _sampled = False, True


class OGGN(VariationalOptimizer):
    """Online Gauss-Newton with a full precision: VOGGN with expectations at the mean.

    A fixed point is a stationary point of the loss Σℓ + δ/2 ‖w‖². Parameters are those of
    :class:`VariationalOptimizer`, without ``mc_samples`` and ``random_state``.

    Examples
    --------
    Its steps are taken as in the example of :class:`VOGGN`. Before the first, weights are known
    to about 1/√N:

    >>> import torch
    >>> from sk_dnn2gp.optim import OGGN
    >>> optimizer = OGGN([torch.nn.Parameter(torch.zeros(2))], n_data=3, curvature="gradient")
    >>> optimizer.posterior().precision.diagonal().tolist()  # N + δ
    [4.0, 4.0]
    """

    _diagonal, _sampled = False, False


class VOGN(VariationalOptimizer):
    """Variational online Gauss-Newton with a diagonal covariance (Khan et al. 2018).

    Costs about two Adam steps on the same batch, with ``mc_samples=1`` and
    ``curvature="gradient"``. In a skorch net: ``NeuralNet(module, criterion=nn.CrossEntropyLoss,
    optimizer=VOGN, optimizer__n_data=len(X), lr=0.01)``. Parameters are those of
    :class:`VariationalOptimizer`.

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

    _diagonal, _sampled = True, True


class OGN(VariationalOptimizer):
    """Online Gauss-Newton with a diagonal precision: VOGN with expectations at the mean.

    A fixed point is a stationary point of the loss Σℓ + δ/2 ‖w‖². Parameters are those of
    :class:`VariationalOptimizer`, without ``mc_samples`` and ``random_state``.

    Examples
    --------
    Its steps are taken as in the example of :class:`VOGN`. Before the first, weights are known
    to about 1/√N:

    >>> import torch
    >>> from sk_dnn2gp.optim import OGN
    >>> optimizer = OGN([torch.nn.Parameter(torch.zeros(2))], n_data=3, curvature="gradient")
    >>> optimizer.posterior().precision.tolist()  # N + δ
    [4.0, 4.0]
    """

    _diagonal, _sampled = True, False

"""What every likelihood for regression must hold, whoever wrote it: run ``check`` on an object.

Everything is a sum or an integral over y on a grid that the caller gives: whole numbers, or the
nodes of a fine rule with their weights. Nothing is compared with a formula of the likelihood's own.
"""

import numpy as np
import torch


def support(likelihood, low, high, n=400_001):
    """Targets and weights of Σ or ∫ over y, each (n,)."""
    if likelihood.is_discrete:
        y = torch.arange(low, high + 1.0, dtype=torch.float64)
        return y, torch.ones_like(y)
    y = torch.linspace(low, high, n, dtype=torch.float64)
    return y, torch.full_like(y, (high - low) / (n - 1))


def check(likelihood, f, low, high, tol=1e-9):
    """The contract at the values f (n,) of one output; [low, high] holds all of y but ``tol``.

    Where a target has several outputs, f is (n, outputs_per_target), and the predictive has a test
    of its own.
    """
    y, weight = support(likelihood, low, high)
    f = torch.as_tensor(f, dtype=torch.float64)
    for one in f:
        at = one.reshape(1, -1).expand(len(y), -1)
        _check_sums(likelihood, at, y[:, None], weight, tol)
        _check_derivatives(likelihood, at, y[:, None])
    _check_several_targets(likelihood, f.reshape(len(f), -1), y)
    if likelihood.outputs_per_target == 1:
        _check_predictive(likelihood, f, y, weight, tol)
    _check_sample(likelihood, f.reshape(len(f), -1))


def _check_sums(likelihood, at, y, weight, tol):
    """Densities sum to one; the score has mean zero and covariance Λ; mean, variance, cdf."""
    p = weight * torch.exp(-likelihood.negative_log_likelihood(at, y))
    total = p.cumsum(0)
    assert abs(total[-1] - 1) < tol
    r, Lambda = likelihood.residual(at, y), likelihood.noise_precision(at)[0]
    scale = Lambda.diagonal().sqrt()
    assert ((p @ r).abs() < tol * scale).all()
    assert ((r.mT @ (p[:, None] * r) - Lambda).abs() < tol * 10 * scale * scale[:, None]).all()
    mean, variance = likelihood.mean(at)[0, 0], likelihood.aleatoric(at)[0, 0, 0]
    width = variance.sqrt()
    # Moments weigh the tails more than the sum does: a factor of the range over the width.
    reach = float((y[-1] - y[0]) / width)
    assert abs(p @ y[:, 0] - mean) < tol * reach * width
    assert abs(p @ (y[:, 0] - mean) ** 2 - variance) < tol * reach**2 * variance
    cdf = likelihood.cdf(at, y)[:, 0]
    middle = total if likelihood.is_discrete else total - 0.5 * p
    # The running sum's error is the grid's, the density's slope times the step squared over 12.
    grid = 0.0 if likelihood.is_discrete else float(p.diff().abs().max()) / 12
    torch.testing.assert_close(cdf, middle, rtol=0, atol=tol + 2 * grid)


def _check_derivatives(likelihood, at, y):
    """r by differences of ℓ; L Lᵀ = Λ, L u = r; log det Λ/2π."""
    some = torch.linspace(0, len(y) - 1, 50).long()
    f, y, h = at[some], y[some], 1e-5
    r = likelihood.residual(f, y)
    for k, step in enumerate(h * torch.eye(f.shape[1], dtype=f.dtype)):
        up, down = (likelihood.negative_log_likelihood(f + s * step, y) for s in (1, -1))
        # Rounding of ℓ over 2h, and a third derivative of the size of ℓ times h².
        size = 1 + float(up.abs().max())
        torch.testing.assert_close((up - down) / (2 * h), r[:, k], rtol=1e-7, atol=1e-9 * size)
    L, Lambda = likelihood.noise_precision_factor(f), likelihood.noise_precision(f)
    torch.testing.assert_close(L @ L.mT, Lambda, rtol=1e-12, atol=0)
    u = likelihood.whitened_residual(f, y)
    torch.testing.assert_close((L @ u[..., None])[..., 0], r, rtol=1e-10, atol=1e-12)
    log_det = torch.logdet(Lambda / (2 * torch.pi))
    torch.testing.assert_close(likelihood.log_noise_determinant(f), log_det, rtol=1e-9, atol=1e-9)


def _check_several_targets(likelihood, f, y):
    """Targets are independent given f: sums and blocks of those of one."""
    K, per_target = f.shape
    some = y[:: max(1, len(y) // 7)][:7]
    targets = some[:, None].expand(len(some), K)
    at = f.T.reshape(1, -1).expand(len(some), -1)
    own = [torch.arange(k, K * per_target, K) for k in range(K)]
    ones = [likelihood.negative_log_likelihood(at[:, own[k]], targets[:, [k]]) for k in range(K)]
    nll = likelihood.negative_log_likelihood(at, targets)
    torch.testing.assert_close(nll, sum(ones), rtol=1e-12, atol=1e-12)
    Lambda = torch.zeros(len(some), *2 * [K * per_target], dtype=torch.float64)
    for index in own:
        Lambda[:, index[:, None], index] = likelihood.noise_precision(at[:, index])
    torch.testing.assert_close(likelihood.noise_precision(at), Lambda)
    V = torch.eye(K * per_target, dtype=torch.float64).expand(Lambda.shape) * 0.3
    slope = torch.autograd.functional.jacobian(lambda f: likelihood.mean(f).sum(0), at)
    J = slope.permute(1, 0, 2)
    torch.testing.assert_close(likelihood.epistemic(at, V), J @ V @ J.mT)


def _check_predictive(likelihood, f, y, weight, tol):
    """Under f ~ N(m, V): the law of total variance, densities, quantiles; V → 0 is p(y | f)."""
    z, w = np.polynomial.hermite_e.hermegauss(120)
    w = torch.tensor(w / w.sum())
    m, V = f[:, None], torch.full((len(f), 1), 0.05, dtype=torch.float64)
    law = likelihood.predictive(m, V)
    for i in range(len(f)):
        nodes = f[i] + 0.05**0.5 * torch.tensor(z)[:, None]
        means = likelihood.mean(nodes)[:, 0]
        noise = w @ likelihood.aleatoric(nodes)[:, 0, 0]
        spread = w @ (means - w @ means) ** 2
        np.testing.assert_allclose(law.mean[i, 0], w @ means, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(law.aleatoric[i, 0], noise, rtol=1e-9)
        np.testing.assert_allclose(law.epistemic[i, 0], spread, rtol=1e-8)
        some = y[:: max(1, len(y) // 2000)]
        one = likelihood.predictive(m[i].expand(len(some), 1), V[i].expand(len(some), 1))
        targets = some[:, None].expand(-1, len(z))
        at = nodes[:, 0].expand(len(some), -1)
        nll = likelihood.negative_log_likelihood(at.reshape(-1, 1), targets.reshape(-1, 1))
        p = torch.exp(-nll).view(at.shape) @ w
        np.testing.assert_allclose(np.exp(one.log_density(some[:, None]))[:, 0], p, atol=1e-9)
        below = likelihood.cdf(at.reshape(-1, 1), targets.reshape(-1, 1)).view(at.shape) @ w
        np.testing.assert_allclose(one.cdf(some[:, None])[:, 0], below, atol=1e-9)
    for q in (0.01, 0.5, 0.975):
        found = law.quantile(q)
        if likelihood.is_discrete:
            assert (law.cdf(found) >= q).all() and (law.cdf(found - 1) < q).all()
        else:
            np.testing.assert_allclose(law.cdf(found), q, rtol=1e-9)


def _check_sample(likelihood, f):
    """40,000 draws at each f: five standard errors of the distribution function at its middle."""
    n, K = 40_000, len(f)
    at = f.T.reshape(1, -1).expand(n, -1)
    draws = likelihood.sample(at, torch.Generator().manual_seed(0))
    assert draws.shape == (n, K)
    again = likelihood.sample(at, torch.Generator().manual_seed(0))
    assert torch.equal(draws, again)
    for k in range(K):
        centre = likelihood.mean(f[[k]]).round()
        expected = float(likelihood.cdf(f[[k]], centre))
        found = float((draws[:, k] <= centre).double().mean())
        assert abs(found - expected) < 5 * (expected * (1 - expected) / n) ** 0.5 + 1e-12

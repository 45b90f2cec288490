"""Likelihoods against automatic differentiation and explicit matrices.

Mathematics: math-likelihoods and math-predicting.
"""

import pytest
import torch

from sk_dnn2gp.likelihoods import Bernoulli, Categorical, Gaussian

torch.manual_seed(0)
F3 = 3 * torch.randn(6, 3, dtype=torch.float64)
Y3 = torch.tensor([0, 1, 2, 0, 1, 2])
F1 = 3 * torch.randn(6, 1, dtype=torch.float64)
Y1 = torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)[:, None]
CASES = [
    pytest.param(Gaussian(0.7), F3, F3.flip(0), id="gaussian"),
    pytest.param(Bernoulli(), F1, Y1, id="bernoulli"),
    pytest.param(Categorical(), F3, Y3, id="categorical"),
]


@pytest.mark.parametrize(("likelihood", "f", "y"), CASES)
def test_derivatives_and_factors(likelihood, f, y):
    def total(f):
        return likelihood.negative_log_likelihood(f, y).sum()

    r = torch.autograd.functional.jacobian(total, f)
    hessian = torch.autograd.functional.hessian(total, f)
    Lambda = torch.stack([hessian[i, :, i] for i in range(len(f))])
    L, u = likelihood.noise_precision_factor(f), likelihood.whitened_residual(f, y)
    close = torch.testing.assert_close
    close(likelihood.residual(f, y), r, rtol=1e-9, atol=1e-12)
    close(likelihood.noise_precision(f), Lambda, rtol=1e-9, atol=1e-12)
    close(L @ L.mT, Lambda, rtol=1e-9, atol=1e-12)
    close((L @ u[..., None])[..., 0], r, rtol=1e-9, atol=1e-12)
    close((torch.linalg.pinv(L) @ r[..., None])[..., 0], u, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("likelihood", "f", "y"), CASES)
def test_pseudo_determinant(likelihood, f, y):
    eigenvalues = torch.linalg.eigvalsh(likelihood.noise_precision(f))
    nonzero = torch.where(eigenvalues > 1e-12, eigenvalues / (2 * torch.pi), 1.0)
    expected = nonzero.log().sum(-1)
    torch.testing.assert_close(likelihood.log_noise_determinant(f), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("likelihood", "f", "y"), CASES)
def test_predictive_moments(likelihood, f, y):
    K = f.shape[1]
    V = torch.eye(K, dtype=torch.float64).expand(len(f), K, K) * 0.3
    J = torch.autograd.functional.jacobian(lambda f: likelihood.mean(f).sum(0), f)
    J = J.permute(1, 0, 2)  # d mean_k / d f, per example
    torch.testing.assert_close(likelihood.epistemic(f, V), J @ V @ J.mT, rtol=1e-9, atol=1e-12)
    assert (likelihood.aleatoric(f).diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("logit", [40.0, 800.0])
def test_saturated_outputs_stay_finite(logit):
    certain = torch.tensor([[logit, -logit]], dtype=torch.float64)
    categorical = Categorical()
    for y, loss in ((0, 0.0), (1, 2 * logit)):
        target = torch.tensor([y])
        assert categorical.negative_log_likelihood(certain, target).item() == pytest.approx(loss)
        assert torch.isfinite(categorical.residual(certain, target)).all()
    assert torch.isfinite(categorical.noise_precision_factor(certain)).all()
    f, one = certain[:, :1], torch.ones(1, 1, dtype=torch.float64)
    assert torch.isfinite(Bernoulli().noise_precision_factor(f)).all()
    assert Bernoulli().negative_log_likelihood(f, one).item() == pytest.approx(0.0, abs=1e-15)
    assert Bernoulli().residual(-f, one).item() == pytest.approx(-1.0)


def test_bad_noise():
    with pytest.raises(ValueError, match="noise_std must be a positive"):
        Gaussian(0.0)

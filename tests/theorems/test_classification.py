"""Theorem 1 for classification against brute force with explicit Λ and pseudo-inverses.

Mathematics: math-likelihoods to math-predicting. The reference forms every K × K matrix Λ_i and its
pseudo-inverse, the dense Jacobian and the P × P posterior, in float64, from the formulas alone.
"""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.evidence import EvidenceSpectrum, log_marginal_likelihood
from sk_dnn2gp.likelihoods import Bernoulli, Categorical
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import FunctionSpacePosterior, WeightSpacePosterior, make_posterior
from sk_dnn2gp.training import NewtonCG
from tests.reference import (
    SOBOL_ERROR,
    ClassificationReference,
    jacobian,
    softmax_moments,
    weights,
)

# Matrices of condition up to 1e5 in double precision: 1e-8 leaves three digits of room.
RTOL = 1e-8


def close(a, b, rtol=RTOL):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


CASES = [  # classes, hidden widths, examples, δ: NK on both sides of P
    (2, (4,), 50, 0.5),
    (2, (9,), 12, 1.0),
    (3, (4,), 40, 0.7),
    (4, (6, 5), 9, 0.3),
]


def labelled(n_classes, n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 2))
    score = X[:, 0] + 0.7 * np.sin(2 * X[:, 1]) + 0.3 * rng.standard_normal(n)
    cuts = np.quantile(score, np.linspace(0, 1, n_classes + 1)[1:-1])
    return X, np.searchsorted(cuts, score)


EXACT = NewtonCG(max_iter=3000, tol=1e-12)


def fitted(n_classes, hidden, n, delta, **options):
    X, y = labelled(n_classes, n)
    model = DNN2GPClassifier(
        hidden_layer_sizes=hidden, prior_precision=delta, random_state=0, solver=EXACT,
        **options,
    ).fit(X, y)  # fmt: skip
    return model, ClassificationReference(model.module_, torch.tensor(X), torch.tensor(y), delta)


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request):
    return fitted(*request.param)


X_NEW = torch.tensor([[-1.5, 0.2], [0.0, 0.0], [0.9, -1.9], [6.0, 6.0]], dtype=torch.float64)


def test_latent_covariance(pair):
    model, reference = pair
    expected = reference.covariance_blocks(X_NEW)
    close(model._result.covariance(X_NEW), expected)
    for space in (WeightSpacePosterior, FunctionSpacePosterior):
        close(space(model.linear_model_).covariance(X_NEW), expected)


def test_models_b_and_c(pair):
    """Linear model and process on the range of Λ have the network's weights and covariance."""
    model, reference = pair
    assert model.gradient_norm_ < 1e-8 * (1 + abs(model.loss_curve_[-1]))
    close(reference.mean_B(), model.linear_model_.weights, rtol=1e-7)
    mean_C, covariance_C = reference.process_C(X_NEW)
    close(model.posterior_.joint_covariance(X_NEW), covariance_C)
    linear = model.linear_model_
    close(linear.linearization.jvp(X_NEW, linear.weights).flatten(), mean_C, rtol=1e-7)


def test_model_b_away_from_the_minimum():
    """Its mean is w* - A⁻¹g and not w*: the reference solves for it from targets and precisions."""
    X, y = (torch.tensor(a) for a in labelled(3, 15))
    torch.manual_seed(0)
    module = MLP(2, (4,), 3)
    reference = ClassificationReference(module, X, y, 0.5)
    model = LinearModel.from_laplace(Linearization(module), X, y, Categorical(), 0.5)
    assert float((reference.mean_B() - reference.w).norm()) > 0.1 * float(reference.w.norm())
    close(model.gradient, reference.gradient())
    for space in (WeightSpacePosterior, FunctionSpacePosterior):
        close(model.weights - space(model).solve(model.gradient), reference.mean_B())


def test_transformed_targets(pair):
    model, reference = pair
    close(model.linear_model_.transformed_targets().flatten(), reference.targets)


def test_both_evidences(pair):
    model, reference = pair
    close(model.log_marginal_likelihood(), reference.log_evidence_laplace())
    close(model.log_marginal_likelihood(kind="dual"), reference.log_evidence_dual())
    close(model.posterior_.log_determinant, reference.log_det_B())


@pytest.mark.parametrize("kind", ["laplace", "dual"])
def test_evidence_gradient(pair, kind):
    model, _ = pair
    theta = np.log([model.prior_precision_])
    value, gradient = model.log_marginal_likelihood(theta, eval_gradient=True, kind=kind)
    h = 1e-5
    up, down = (model.log_marginal_likelihood(theta + s, kind=kind) for s in (h, -h))
    # Central differences: the error is h² times a third derivative of order one, and rounding / h.
    np.testing.assert_allclose(gradient, [(up - down) / (2 * h)], rtol=1e-6, atol=1e-6)
    assert value == pytest.approx(model.log_marginal_likelihood(kind=kind), rel=1e-10)


def test_aleatoric_and_epistemic(pair):
    model, reference = pair
    with torch.no_grad():
        f = model.module_(X_NEW)
    Lambda, V = reference.noise_precision(f), reference.covariance_blocks(X_NEW)
    epistemic = Lambda @ V @ Lambda
    signs = torch.tensor([[1.0, -1], [-1, 1]], dtype=torch.float64) if reference.K == 1 else 1.0
    parts = model.predict_uncertainty(X_NEW.numpy(), full=True)
    close(parts.aleatoric, Lambda * signs)
    close(parts.epistemic, epistemic * signs)
    close(parts.total, (Lambda + epistemic) * signs)
    diagonals = model.predict_uncertainty(X_NEW.numpy())
    close(diagonals.epistemic, np.diagonal(parts.epistemic, axis1=1, axis2=2).copy())
    close(model.predict_std(X_NEW.numpy()), np.sqrt(diagonals.epistemic))


def test_links(pair):
    model, reference = pair
    with torch.no_grad():
        f = model.module_(X_NEW)
    V = reference.covariance_blocks(X_NEW)
    close(model.predict_proba(X_NEW.numpy(), "map"), reference.probabilities(f))
    shrunk = f / (1 + math.pi / 8 * V.diagonal(dim1=1, dim2=2)).sqrt()
    close(model.predict_proba(X_NEW.numpy(), "probit"), reference.probabilities(shrunk))
    found = model.predict_proba(X_NEW.numpy(), "mc")
    expected = [softmax_moments(a, b)[0] for a, b in zip(f.numpy(), V.numpy(), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=SOBOL_ERROR[reference.K])


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_certain_logits_break_nothing(n_classes, scale):
    """Logits of ±40: Λ of 1e-17 beside 1, and nothing inverts it."""
    X, y = (torch.tensor(a) for a in labelled(n_classes, 15))
    K = 1 if n_classes == 2 else n_classes
    torch.manual_seed(0)
    module = MLP(2, (4,), K)
    with torch.no_grad():
        module[-1].weight.mul_(scale / module(X).abs().max())
        module[-1].bias.mul_(0.0)
        assert float(module(X).abs().max()) > 0.5 * scale
    likelihood = Bernoulli() if K == 1 else Categorical()
    targets = y[:, None].double() if K == 1 else y
    model = LinearModel.from_laplace(Linearization(module), X, targets, likelihood, 0.5)
    J, w = jacobian(module, X), weights(module)
    with torch.no_grad():
        f = module(X)
    p = torch.sigmoid(f) if K == 1 else torch.softmax(f, 1)
    # p(1-p) with the complement from the opposite logit keeps its digits where 1-p would round.
    q = torch.sigmoid(-f) if K == 1 else None
    Lambda = (p * q)[:, :, None] if K == 1 else torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    A = J.T @ torch.block_diag(*Lambda) @ J + 0.5 * torch.eye(len(w), dtype=torch.float64)
    for space in (WeightSpacePosterior, FunctionSpacePosterior):
        posterior = space(model)
        J_new = jacobian(module, X_NEW)
        close(posterior.joint_covariance(X_NEW), J_new @ torch.linalg.solve(A, J_new.T), rtol=1e-7)
        log_p = F_log(f, y, K)
        penalty = 0.25 * float(w @ w)
        log_det = float(torch.linalg.slogdet(A)[1]) - len(w) * math.log(0.5)
        close(log_marginal_likelihood(posterior), float(log_p) - penalty - 0.5 * log_det)
        assert math.isfinite(log_marginal_likelihood(posterior, "dual"))
    spectrum = EvidenceSpectrum.from_posterior(make_posterior(model))
    close(spectrum.log_marginal_likelihood(0.5), float(log_p) - penalty - 0.5 * log_det)


def F_log(f, y, K):
    if K == 1:
        sign = 2.0 * y[:, None] - 1.0
        return -torch.log1p(torch.exp(-sign * f)).where(sign * f > -30, -sign * f).sum()
    return torch.log_softmax(f, 1)[range(len(f)), y].sum()


class TwoLogits(torch.nn.Module):
    """(0, f): a softmax network that is a logistic one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, X):
        f = self.inner(X)
        return torch.cat([torch.zeros_like(f), f], dim=1)


def test_bernoulli_is_the_categorical_of_two_classes():
    """The same function with one logit or two, under the same prior: all the same numbers."""
    X, y = labelled(2, 30)
    torch.manual_seed(3)
    inner = MLP(2, (5,), 1)
    options = {"prior_precision": 0.8, "solver": EXACT}
    one = DNN2GPClassifier(inner, **options).fit(X, y)
    two = DNN2GPClassifier(TwoLogits(inner), **options).fit(X, y)
    # Both trained from the same weights to gradients of 1e-10: the same minimum to about 1e-9.
    close(one.predict_proba(X, "map"), two.predict_proba(X, "map"), rtol=1e-6)
    V_one, V_two = (m._result.covariance(X_NEW) for m in (one, two))
    difference = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    close(V_one[:, 0, 0], difference @ V_two @ difference, rtol=1e-6)
    close(one.log_marginal_likelihood(), two.log_marginal_likelihood(), rtol=1e-7)
    for name in ("aleatoric", "epistemic"):
        a, b = (getattr(m.predict_uncertainty(X, full=True), name) for m in (one, two))
        close(a, b, rtol=1e-6)


def test_integer_weights_are_repetitions():
    X, y = labelled(3, 20)
    rng = np.random.default_rng(0)
    s = rng.integers(0, 4, len(X))
    s[:3] = 1
    model = DNN2GPClassifier(
        hidden_layer_sizes=(4,), prior_precision=1.0, random_state=0, solver=EXACT
    )
    a = clone(model).fit(X, y, sample_weight=s)
    b = clone(model).fit(X.repeat(s, axis=0), y.repeat(s))
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=1e-6, atol=1e-9)
    close(a.log_marginal_likelihood(), b.log_marginal_likelihood(), rtol=1e-7)

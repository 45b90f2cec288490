"""Theorem 1 for classification against brute force with explicit Λ and pseudo-inverses (MATH 2-4).

The references form every K × K matrix Λ_i and its pseudo-inverse, the dense Jacobian and the P × P
posterior, in float64, from the formulas alone.
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
from sk_dnn2gp.posterior import FunctionSpacePosterior, WeightSpacePosterior
from tests.reference import jacobian, weights

# Matrices of condition up to 1e5 in double precision: 1e-8 leaves three digits of room.
RTOL = 1e-8


def close(a, b, rtol=RTOL):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


class Reference:
    """Λ by its definition, its pseudo-inverse, and everything that MATH 3 and 4 make of them."""

    def __init__(self, module, X, y, delta):
        self.module, self.X, self.delta = module, X, delta
        self.J, self.w = jacobian(module, X), weights(module)
        with torch.no_grad():
            f = module(X)
        self.f, (self.n, self.K) = f, f.shape
        self.p = torch.sigmoid(f) if self.K == 1 else torch.softmax(f, 1)
        blocks = self.Lambda(self.p)
        self.Lambda_all = torch.block_diag(*blocks)
        onehot = y.double() if self.K == 1 else torch.eye(self.K, dtype=f.dtype)[y]
        self.r = (self.p - onehot).flatten()
        p_y = (y * self.p + (1 - y) * (1 - self.p)) if self.K == 1 else self.p[range(self.n), y]
        self.log_likelihood = float(p_y.log().sum())
        A = self.J.T @ self.Lambda_all @ self.J + delta * torch.eye(len(self.w), dtype=f.dtype)
        self.Sigma = torch.linalg.inv(A)
        self.log_det_B = float(torch.linalg.slogdet(A)[1]) - len(self.w) * math.log(delta)
        pinv = torch.block_diag(*[torch.linalg.pinv(b, rtol=1e-10) for b in blocks])
        self.targets = self.J @ self.w - pinv @ self.r
        self.eigenvalues = [torch.linalg.eigvalsh(b) for b in blocks]

    @staticmethod
    def Lambda(p):
        if p.shape[1] == 1:
            return (p * (1 - p))[:, :, None]
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

    def covariance(self, X):
        J = jacobian(self.module, X)
        V = (J @ self.Sigma @ J.T).reshape(len(X), self.K, len(X), self.K)
        return torch.stack([V[i, :, i] for i in range(len(X))])

    def laplace(self):
        return (
            self.log_likelihood - 0.5 * self.delta * float(self.w @ self.w) - 0.5 * self.log_det_B
        )

    def dual(self):
        """log N(ỹ | 0, K + Λ⁺) on the range of Λ, by the definition of a degenerate density."""
        roots, columns = [], []
        for i, block in enumerate(self.Lambda(self.p)):
            values, vectors = torch.linalg.eigh(block)
            keep = values > 1e-12 * max(1.0, float(values.max()))
            keep = keep if self.K > 1 else torch.ones_like(keep)
            for value, vector in zip(values[keep], vectors.T[keep], strict=True):
                column = torch.zeros(self.n * self.K, dtype=torch.float64)
                column[i * self.K : (i + 1) * self.K] = vector
                columns.append(column)
                roots.append(value)
        Q, lam = torch.stack(columns, 1), torch.stack(roots)
        noisy = Q.T @ (self.J @ self.J.T / self.delta) @ Q + torch.diag(1 / lam)
        t = Q.T @ self.targets
        quadratic = t @ torch.linalg.solve(noisy, t)
        constant = len(t) * math.log(2 * math.pi)
        return float(-0.5 * (quadratic + torch.linalg.slogdet(noisy)[1] + constant))


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


def fitted(n_classes, hidden, n, delta, **options):
    X, y = labelled(n_classes, n)
    model = DNN2GPClassifier(
        hidden_layer_sizes=hidden, prior_precision=delta, random_state=0, tol=1e-12, max_iter=3000,
        **options,
    ).fit(X, y)  # fmt: skip
    targets = torch.tensor(y)[:, None].double() if n_classes == 2 else torch.tensor(y)
    return model, Reference(model.module_, torch.tensor(X), targets, delta)


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request):
    return fitted(*request.param)


X_NEW = torch.tensor([[-1.5, 0.2], [0.0, 0.0], [0.9, -1.9], [6.0, 6.0]], dtype=torch.float64)


def test_latent_covariance(pair):
    model, reference = pair
    expected = reference.covariance(X_NEW)
    close(model._latent_covariance(X_NEW), expected)
    for space in (WeightSpacePosterior, FunctionSpacePosterior):
        close(space(model.linear_model_).covariance(X_NEW), expected)


def test_models_b_and_c(pair):
    """Linear model and process on the range of Λ have the network's weights and covariance."""
    model, reference = pair
    assert model.gradient_norm_ < 1e-8 * (1 + abs(model.loss_curve_[-1]))
    mean = reference.Sigma @ reference.J.T @ reference.Lambda_all @ reference.targets
    close(mean, reference.w, rtol=1e-7)
    J = jacobian(model.module_, X_NEW)
    K, cross, prior = (
        a @ b.T / reference.delta for a, b in ((reference.J, reference.J), (J, reference.J), (J, J))
    )
    values, vectors = torch.linalg.eigh(reference.Lambda_all)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    B = torch.eye(len(K), dtype=torch.float64) + root @ K @ root
    half = cross @ root
    covariance_C = prior - half @ torch.linalg.solve(B, half.T)
    close(model.posterior_.joint_covariance(X_NEW), covariance_C)
    mean_C = half @ torch.linalg.solve(B, root @ reference.targets)
    close(mean_C, J @ reference.w, rtol=1e-7)


def test_transformed_targets(pair):
    model, reference = pair
    close(model.linear_model_.transformed_targets().flatten(), reference.targets)


def test_both_evidences(pair):
    model, reference = pair
    close(model.log_marginal_likelihood(), reference.laplace())
    close(model.log_marginal_likelihood(kind="dual"), reference.dual())
    close(model.posterior_.log_determinant, reference.log_det_B)


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
    p = torch.sigmoid(f) if reference.K == 1 else torch.softmax(f, 1)
    Lambda, V = reference.Lambda(p), reference.covariance(X_NEW)
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
    V = reference.covariance(X_NEW)

    def probabilities(f):
        two = torch.cat([torch.zeros_like(f), f], -1) if reference.K == 1 else f
        return torch.softmax(two, -1)

    close(model.predict_proba(X_NEW.numpy(), "map"), probabilities(f))
    shrunk = f / (1 + math.pi / 8 * V.diagonal(dim1=1, dim2=2)).sqrt()
    close(model.predict_proba(X_NEW.numpy(), "probit"), probabilities(shrunk))
    rng = np.random.default_rng(0)
    for i in range(len(X_NEW)):
        draws = rng.multivariate_normal(f[i].numpy(), V[i].numpy(), size=200_000)
        expected = probabilities(torch.tensor(draws)).mean(0)
        # 1,000 draws of a number in [0, 1]: four standard errors of at most 0.5/√1000.
        found = model.predict_proba(X_NEW[i : i + 1].numpy(), "mc")[0]
        np.testing.assert_allclose(found, expected, atol=4 * 0.5 / math.sqrt(1000))


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
    Lambda = (p * q)[:, :, None] if K == 1 else Reference.Lambda(p)
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
    spectrum = EvidenceSpectrum.from_model(model)
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
    options = {"prior_precision": 0.8, "tol": 1e-12, "max_iter": 3000}
    one = DNN2GPClassifier(inner, **options).fit(X, y)
    two = DNN2GPClassifier(TwoLogits(inner), **options).fit(X, y)
    # Both trained from the same weights to gradients of 1e-10: the same minimum to about 1e-9.
    close(one.predict_proba(X, "map"), two.predict_proba(X, "map"), rtol=1e-6)
    V_one, V_two = (m._latent_covariance(X_NEW) for m in (one, two))
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
        hidden_layer_sizes=(4,), prior_precision=1.0, random_state=0, tol=1e-12, max_iter=3000
    )
    a = clone(model).fit(X, y, sample_weight=s)
    b = clone(model).fit(X.repeat(s, axis=0), y.repeat(s))
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=1e-6, atol=1e-9)
    close(a.log_marginal_likelihood(), b.log_marginal_likelihood(), rtol=1e-7)

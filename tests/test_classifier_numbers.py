"""DNN2GPClassifier: its numbers against brute force, and its promises to a user.

Mathematics: math-likelihoods to math-predicting.
"""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, make_moons
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet
from torch import nn

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.links import (
    contrast_log_softmax,
    mean_log_softmax,
    mean_uncertainty,
    of_difference,
    probit_log_softmax,
)
from sk_dnn2gp.networks import MLP, LeNet5
from sk_dnn2gp.posterior import SubsetOfData
from sk_dnn2gp.training import FirstOrder, NewtonCG
from tests.reference import SOBOL_ERROR, ClassificationReference, jacobian, softmax_moments

X3, Y3 = load_iris(return_X_y=True)
X3 = StandardScaler().fit_transform(X3)[::3]
Y3 = Y3[::3]
X2, Y2 = make_moons(60, noise=0.2, random_state=0)
FIXED = {"hidden_layer_sizes": (4,), "prior_precision": 0.5, "random_state": 0}
EXACT = NewtonCG(tol=1e-11)
CASES = {"bernoulli": (X2, Y2), "categorical": (X3, Y3)}


def fit(X, y, **options):
    defaults = {**FIXED, "solver": EXACT}
    if "net" in options:
        del defaults["hidden_layer_sizes"]
    return DNN2GPClassifier(**{**defaults, **options}).fit(X, y)


@pytest.fixture(scope="module", params=list(CASES))
def fitted(request):
    X, y = CASES[request.param]
    model = fit(X, y)
    codes = torch.tensor(y.astype(int))
    reference = ClassificationReference(model.module_, torch.tensor(X), codes, 0.5)
    return model, reference, X, y


def softmax(f):
    return np.exp(f) / np.exp(f).sum(1, keepdims=True)


# ---------------------------------------------------------------------- numbers by brute force


def test_predictions_are_those_of_brute_force(fitted):
    model, reference, X, _ = fitted
    X_new = torch.tensor(X[:7]) * 1.5
    with torch.no_grad():
        f = model.module_(X_new)
    V = reference.covariance_blocks(X_new)
    variance = V.diagonal(dim1=1, dim2=2)
    np.testing.assert_allclose(
        model.predict_std(X_new, "latent"), variance.sqrt(), rtol=1e-8, atol=0
    )
    p = ClassificationReference.probabilities(f)
    np.testing.assert_allclose(model.predict_proba(X_new, "map"), p, rtol=1e-10)
    moderated = f / torch.sqrt(1 + torch.pi / 8 * variance)
    expected = ClassificationReference.probabilities(moderated)
    np.testing.assert_allclose(model.predict_proba(X_new, "probit"), expected, rtol=1e-8)
    # By default the network's own: the Laplace posterior is too wide where it is sure.
    np.testing.assert_allclose(model.predict_proba(X_new), p, rtol=1e-10)
    Lambda = reference.class_precision(f)
    if reference.K == 1:  # the class is (1 - y, y)
        signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        epistemic = (p[:, 0] * p[:, 1])[:, None, None] ** 2 * V * signs
    else:
        epistemic = Lambda @ V @ Lambda
    parts = model.predict_uncertainty(X_new, full=True)
    scale = float(epistemic.abs().max())
    np.testing.assert_allclose(parts.aleatoric, Lambda, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(parts.epistemic, epistemic, rtol=1e-8, atol=1e-8 * scale)
    np.testing.assert_allclose(parts.total, parts.aleatoric + parts.epistemic)
    diagonals = model.predict_uncertainty(X_new)
    for name in ("aleatoric", "epistemic", "total"):
        np.testing.assert_allclose(diagonals[name], np.einsum("ikk->ik", parts[name]))
    np.testing.assert_allclose(model.predict_std(X_new), np.sqrt(diagonals.epistemic))
    np.testing.assert_allclose(model.predict_std(X_new, "y"), np.sqrt(diagonals.total))


def test_evidence_and_targets_are_those_of_brute_force(fitted):
    model, reference, X, y = fitted
    expected = reference.log_evidence_laplace()
    assert model.log_marginal_likelihood() == pytest.approx(expected, rel=1e-8)
    assert model.log_marginal_likelihood(X=X, y=y) == pytest.approx(expected, rel=1e-8)
    dual = model.log_marginal_likelihood(kind="dual")
    assert dual == pytest.approx(reference.log_evidence_dual(), rel=1e-8)
    np.testing.assert_allclose(model.transformed_targets_.ravel(), reference.targets, rtol=1e-8)
    assert model.gradient_norm_ < 1e-8
    theta = np.log([0.5])
    for kind in ("laplace", "dual"):
        gradient = model.log_marginal_likelihood(theta, eval_gradient=True, kind=kind)[1]
        up, down = (model.log_marginal_likelihood(theta + s, kind=kind) for s in (1e-5, -1e-5))
        assert gradient == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-6)


def test_mc_is_the_average_over_the_gaussian_process(fitted):
    """Against quadrature, as close as 1,024 points of a Sobol sequence come, whatever the seed."""
    model, reference, X, _ = fitted
    X_new = torch.tensor(X[:4]) * 2.0
    with torch.no_grad():
        f = model.module_(X_new).numpy()
    V = reference.covariance_blocks(X_new).numpy()
    expected = np.array([softmax_moments(a, b)[0] for a, b in zip(f, V, strict=True)])
    bound = SOBOL_ERROR[reference.K]
    found = [model.predict_proba(X_new, "mc")]
    found += [mean_log_softmax(torch.tensor(f), torch.tensor(V), s).exp() for s in range(3)]
    for p in found:
        np.testing.assert_allclose(p, expected, rtol=0, atol=bound)
    # The average is far from the network's own softmax: by more than the tolerance.
    assert np.abs(model.predict_proba(X_new, "map") - expected).max() > 5 * bound


def test_contrast_link_knows_only_differences(fitted):
    model, reference, X, _ = fitted
    X_new = torch.tensor(X[:7]) * 1.5
    with torch.no_grad():
        f = model.module_(X_new)
    V = reference.covariance_blocks(X_new)
    if reference.K == 1:  # two classes: the probit of the one difference
        expected = model.predict_proba(X_new, "probit")
    else:
        expected = np.empty((7, 3))
        for i, k in np.ndindex(7, 3):
            c = torch.full((3,), -0.5, dtype=torch.float64)
            c[k] = 1.0
            moderated = 2 / 3 * (c @ f[i]) / torch.sqrt(1 + torch.pi / 8 * (c @ V[i] @ c))
            expected[i, k] = torch.exp(moderated)
        expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(X_new, "contrast"), expected, rtol=1e-8)


def test_joint_samples_have_the_covariance_of_the_process(fitted):
    model, reference, X, _ = fitted
    X_new = torch.tensor(X[:3])
    n = 20_000
    draws = model.sample_y(X_new, n, random_state=1, target="latent").reshape(-1, n)
    covariance = reference.covariance_A(X_new).numpy()
    with torch.no_grad():
        f = model.module_(X_new).flatten().numpy()
    std = np.sqrt(np.diag(covariance))
    # Five standard errors of a mean and of a covariance of n draws.
    assert (np.abs(draws.mean(1) - f) < 5 * std / np.sqrt(n)).all()
    bound = 5 * np.sqrt(2.0 / n) * np.outer(std, std)
    assert (np.abs(np.cov(draws) - covariance) < bound).all()
    labels = model.sample_y(X_new, n, random_state=1)
    p = model.sample_y(X_new, n, random_state=1, target="p").mean(-1)
    assert labels.shape == (3, n)
    for k, label in enumerate(model.classes_):
        np.testing.assert_allclose((labels == label).mean(1), p[:, k], atol=5 * 0.5 / np.sqrt(n))


def test_one_logit_and_two_are_the_same_model_under_the_same_prior():
    """A linear softmax of two outputs with δ is a logistic regression with δ/2."""
    one = fit(X2, Y2, net=MLP(2, (), 1, "identity"))
    two = fit(X2, Y2, net=MLP(2, (), 2, "identity"), prior_precision=1.0)
    assert one.linear_model_.whitened_residual.shape[1] == 1
    assert two.linear_model_.whitened_residual.shape[1] == 2
    X_new = 1.5 * X2
    for link in ("map", "probit", "mc"):
        # The same draws of the one difference too, as both have the same random_state.
        a, b = (model.predict_proba(X_new, link) for model in (one, two))
        np.testing.assert_allclose(a, b, rtol=1e-7)
    V = two.posterior_.covariance(torch.tensor(X_new)).numpy()
    difference = V[:, 0, 0] + V[:, 1, 1] - 2 * V[:, 0, 1]
    np.testing.assert_allclose(one.predict_std(X_new, "latent")[:, 0] ** 2, difference, rtol=1e-7)
    for name in ("aleatoric", "epistemic"):
        a, b = (model.predict_uncertainty(X_new, full=True)[name] for model in (one, two))
        np.testing.assert_allclose(a, b, rtol=1e-7)
    np.testing.assert_allclose(
        one.decision_function(X_new), two.decision_function(X_new), rtol=1e-7, atol=1e-9
    )
    # The sum direction of the logits keeps its prior: it adds nothing to log|B|.
    assert one.log_marginal_likelihood() == pytest.approx(two.log_marginal_likelihood(), rel=1e-9)


def test_saturated_networks_stay_finite():
    """Separable data under a vanishing prior, and logits in the hundreds."""
    model = fit(X3 * 3, Y3, prior_precision=1e-5, solver=NewtonCG(max_iter=2000, tol=1e-6))
    module = MLP(4, (), 3, "identity")
    with torch.no_grad():
        module[0].weight.mul_(2000.0)
    net = NeuralNet(module, nn.CrossEntropyLoss, verbose=0).initialize()
    hard = DNN2GPClassifier(FrozenEstimator(net), prior_precision=1.0).fit(X3, Y3)
    assert np.abs(hard.predict_log_proba(X3, "map")).max() > 500
    for estimator in (model, hard):
        for link in ("map", "probit", "mc"):
            p = estimator.predict_proba(X3, link)
            np.testing.assert_allclose(p.sum(1), 1.0)
            assert np.isfinite(estimator.predict_log_proba(X3, link)).all()
        assert np.isfinite(estimator.predict_uncertainty(X3).total).all()
        assert np.isfinite(estimator.log_marginal_likelihood())


def test_linear_network_is_logistic_regression():
    model = fit(X3, Y3, hidden_layer_sizes=(), prior_precision=2.0)
    # scikit-learn leaves the intercept out of the penalty: a constant column puts it in.
    Z = (X3 - X3.mean(0)) / X3.std(0)  # as the network's first layer does
    ones = np.c_[Z, np.ones(len(Z))]
    sk = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=5000).fit(ones, Y3)
    np.testing.assert_allclose(
        model.predict_proba(X3, "map"), sk.predict_proba(ones), rtol=1e-4, atol=1e-6
    )


# ---------------------------------------------------------------------- approximations by name


def test_independent_outputs_are_one_process_per_class():
    joint, model = fit(X3, Y3), fit(X3, Y3, posterior="independent")
    reference = ClassificationReference(model.module_, torch.tensor(X3), torch.tensor(Y3), 0.5)
    X_new = torch.tensor(X3[:5]) * 1.4
    J_new, log_det = jacobian(model.module_, X_new), 0.0
    for k in range(3):
        J, J_k = reference.J[k::3], J_new[k::3]
        noise = torch.diag(reference.blocks[:, k, k])
        A = J.T @ noise @ J + 0.5 * torch.eye(reference.P, dtype=torch.float64)
        V = J_k @ torch.linalg.solve(A, J_k.T)
        std = model.predict_std(X_new, "latent")[:, k]
        np.testing.assert_allclose(std, V.diagonal().sqrt(), rtol=1e-8)
        joint_of_k = model.posterior_.joint_covariance(X_new)[k::3, k::3]
        np.testing.assert_allclose(joint_of_k, V, rtol=1e-7, atol=1e-8 * float(V.max()))
        log_det += torch.linalg.slogdet(A)[1] - reference.P * np.log(0.5)
    expected = reference.log_p - 0.25 * (reference.w @ reference.w) - 0.5 * log_det
    assert model.log_marginal_likelihood() == pytest.approx(float(expected), rel=1e-8)
    theta = np.log([0.5])
    value, gradient = model.log_marginal_likelihood(theta, eval_gradient=True)
    assert value == pytest.approx(float(expected), rel=1e-8)
    up, down = (model.log_marginal_likelihood(theta + s) for s in (1e-5, -1e-5))
    assert gradient == pytest.approx((up - down) / 2e-5, rel=1e-6)
    assert model.posterior_.covariance(X_new)[:, 0, 1].abs().max() == 0
    np.testing.assert_allclose(model.predict_proba(X3, "map"), joint.predict_proba(X3, "map"))
    assert np.isnan(model.newton_decrement_)
    assert "posterior='independent'" in repr(model)
    assert model.sample_y(X3[:3], 4, target="latent").shape == (3, 3, 4)
    with pytest.raises(ValueError, match="kind='dual' is not defined"):
        model.log_marginal_likelihood(kind="dual")
    with pytest.raises(ValueError, match="posterior='independent' needs a number"):
        fit(X3, Y3, posterior="independent", prior_precision="auto")


def test_subset_of_the_data_is_the_process_of_those_rows():
    whole, model = fit(X3, Y3), fit(X3, Y3, posterior=SubsetOfData(20))
    rows = model.posterior_indices_
    assert len(np.unique(rows)) == 20
    np.testing.assert_allclose(model.predict_proba(X3, "map"), whole.predict_proba(X3, "map"))
    reference = ClassificationReference(
        model.module_, torch.tensor(X3[rows]), torch.tensor(Y3[rows]), 0.5
    )
    expected = reference.covariance_blocks(torch.tensor(X3)).diagonal(dim1=1, dim2=2).sqrt()
    np.testing.assert_allclose(model.predict_std(X3, "latent"), expected, rtol=1e-8)
    assert (model.predict_std(X3, "latent") > whole.predict_std(X3, "latent")).all()
    assert model.log_marginal_likelihood() == pytest.approx(reference.log_evidence_laplace())
    assert model.gradient_norm_ < 1e-8  # of the loss over all rows
    assert "SubsetOfData(n_samples=20)" in repr(model)


@pytest.mark.parametrize("posterior", ["diag", "last_layer"])
def test_other_posteriors(posterior):
    model, full = fit(X3, Y3, posterior=posterior), fit(X3, Y3)
    reference = ClassificationReference(model.module_, torch.tensor(X3), torch.tensor(Y3), 0.5)
    ggn = reference.J.T @ reference.Lambda @ reference.J
    eye = torch.eye(reference.P, dtype=torch.float64)
    if posterior == "diag":
        precision, used = torch.diag(ggn.diagonal()) + 0.5 * eye, slice(None)
    else:
        precision, used = (ggn + 0.5 * eye)[-15:, -15:], slice(-15, None)
    J = reference.J[:, used]
    V = (J @ torch.linalg.solve(precision, J.T)).diagonal().reshape(-1, 3)
    np.testing.assert_allclose(model.predict_std(X3, "latent") ** 2, V, rtol=1e-8)
    np.testing.assert_allclose(model.predict_proba(X3, "map"), full.predict_proba(X3, "map"))


# ---------------------------------------------------------------------- labels and weights


def test_a_weight_counts_an_example_that_often():
    weight = np.random.default_rng(0).integers(0, 4, len(X3)).astype(float)
    weighted = DNN2GPClassifier(**FIXED, solver=EXACT).fit(X3, Y3, weight)
    times = weight.astype(int)
    repeated = fit(np.repeat(X3, times, axis=0), np.repeat(Y3, times))
    np.testing.assert_allclose(
        weighted.predict_proba(X3), repeated.predict_proba(X3), rtol=1e-6, atol=1e-9
    )
    for kind in ("laplace", "dual"):
        assert weighted.log_marginal_likelihood(kind=kind) == pytest.approx(
            repeated.log_marginal_likelihood(kind=kind), rel=1e-8
        )


# ---------------------------------------------------------------------- as an estimator


@pytest.mark.parametrize(("X", "y"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("link", ["probit", "contrast", "mc", "map"])
def test_scores_agree(X, y, link):
    model = fit(X, y, link=link)
    p, scores = model.predict_proba(X), model.decision_function(X)
    np.testing.assert_allclose(p, model.predict_proba(X, link))
    np.testing.assert_allclose(np.log(p), model.predict_log_proba(X), rtol=1e-9, atol=1e-12)
    if scores.ndim == 1:
        scores = np.c_[np.zeros(len(X)), scores]
    np.testing.assert_allclose(softmax(scores), p, rtol=1e-9)
    np.testing.assert_array_equal(model.predict(X), model.classes_[p.argmax(1)])
    one_by_one = np.vstack([model.predict_proba(x[None]) for x in X[:5]])
    np.testing.assert_allclose(one_by_one, p[:5], rtol=1e-9)


def test_probabilities_are_humbler_away_from_the_data():
    model = fit(X2, Y2)
    far = 20 * X2
    map_, probit, mc = (model.predict_proba(far, link).max(1) for link in ("map", "probit", "mc"))
    assert (probit < map_).all()
    assert mc.mean() < map_.mean()
    assert model.predict_std(far, "latent").mean() > 2 * model.predict_std(X2, "latent").mean()


# ---------------------------------------------------------------------- images


def images(n, rng, size=28):
    """Bright bars: upright in class 0, lying in class 1, crossed in class 2."""
    X = 0.1 * rng.standard_normal((n, 1, size, size)).astype(np.float32)
    y = rng.integers(0, 3, n)
    for i, label in enumerate(y):
        at = rng.integers(6, size - 6)
        if label != 1:
            X[i, 0, 4:-4, at : at + 2] += 1.0
        if label != 0:
            X[i, 0, at : at + 2, 4:-4] += 1.0
    return X, y


def test_convolutional_network_in_single_precision_by_minibatches():
    X, y = images(240, np.random.default_rng(0))
    model = DNN2GPClassifier(
        LeNet5(3),
        solver=FirstOrder(learning_rate=3e-3, max_iter=8, batch_size=32),
        prior_precision=1.0,
        posterior=SubsetOfData(40),
        random_state=0,
    ).fit(X, y)
    assert next(model.module_.parameters()).dtype == torch.float32
    X_new, y_new = images(60, np.random.default_rng(1))
    assert model.score(X_new, y_new) > 0.9
    # The Gaussian process is in double precision: brute force on the module in double precision.
    module = LeNet5(3, dtype=torch.float64)
    module.load_state_dict(model.module_.state_dict())
    rows = model.posterior_indices_
    double = torch.tensor(X[rows], dtype=torch.float64)
    J = jacobian(module, double)
    J_new = jacobian(module, torch.tensor(X_new[:2], dtype=torch.float64))
    reference = ClassificationReference.__new__(ClassificationReference)
    with torch.no_grad():
        Lambda = torch.block_diag(*reference.noise_precision(module(double)))
    K, cross = J @ J.T, J_new @ J.T
    eye = torch.eye(len(K), dtype=torch.float64)
    V = J_new @ J_new.T - cross @ Lambda @ torch.linalg.solve(eye + K @ Lambda, cross.T)
    std = model.predict_std(X_new[:2], "latent")
    np.testing.assert_allclose(std.ravel() ** 2, V.diagonal(), rtol=1e-8)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(50)}, "one class only"),
        ({"y": np.linspace(0, 1, 50)}, "Unknown label type"),
        ({"y": np.where(np.arange(50) == 3, np.nan, 1.0)}, "NaN"),
        ({"X": np.where(np.arange(200).reshape(50, 4) == 3, np.nan, X3)}, "Input X contains NaN"),
        ({"X": X3[:, :, None, None]}, "dim 4"),
        ({"net": MLP(4, (3,), 2)}, r"shape \(n_samples, 3\).*returned \(2, 2\)"),
        ({"net": MLP(7, (3,), 3)}, "net does not take X of shape"),
        ({"net": nn.Sequential(MLP(4, (3,), 3), nn.Softmax(1))}, "returns probabilities"),
        ({"net": nn.Sequential(MLP(4, (3,), 3), nn.Sigmoid())}, "returns probabilities"),
        ({"link": "logit"}, "'link' parameter"),
        ({"class_weight": "even"}, "'class_weight' parameter"),
        ({"posterior": SubsetOfData(0)}, "SubsetOfData: n_samples must be .* got 0"),
        ({"posterior": "separate"}, "posterior must be one of .* got 'separate'"),
        ({"prior_precision": 0.0}, "'prior_precision' parameter"),
    ],
)
def test_bad_input(change, message):
    X, y = change.pop("X", X3), change.pop("y", Y3)
    with pytest.raises(ValueError, match=message):
        fit(X, y, **change)


def test_probabilities_of_a_functional_sigmoid_are_noticed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = MLP(2, (3,), 1)

        def forward(self, x):
            return torch.sigmoid(self.layer(x)[:, 0])[:, None]

    with pytest.raises(ValueError, match="remove the softmax or sigmoid"):
        fit(X2, Y2, net=Net)


def test_rare_and_unseen_labels():
    y = Y3.copy()
    y[0] = 9  # a class with one example
    model = fit(X3, y)
    assert model.predict_proba(X3).shape == (50, 4)
    assert model.score(X3, np.full(50, 77)) == 0
    with pytest.raises(ValueError, match=r"labels that fit has not seen: \[77\]"):
        model.log_marginal_likelihood(X=X3, y=np.full(50, 77))
    with pytest.raises(ValueError, match="one class only"):
        DNN2GPClassifier(**FIXED).fit(X3, Y3, (Y3 == 1).astype(float))
    with pytest.raises(ValueError, match="link must be 'auto' or one of"):
        model.predict_proba(X3, link="exact")
    with pytest.raises(ValueError, match="target must be"):
        model.predict_std(X3, target="f")
    with pytest.raises(NotFittedError):
        DNN2GPClassifier().predict(X3)


def test_contrast_ignores_a_shift_of_all_logits_and_is_the_probit_of_two():
    generator = torch.Generator().manual_seed(0)
    for K in (2, 5):
        f = torch.randn(4, K, dtype=torch.float64, generator=generator)
        R = torch.randn(4, K, K, dtype=torch.float64, generator=generator)
        V = R @ R.mT
        p = contrast_log_softmax(f, V)
        np.testing.assert_allclose(contrast_log_softmax(f + 3.0, V + 50.0), p, atol=1e-11)
        if K == 2:
            np.testing.assert_allclose(p, probit_log_softmax(*of_difference(f, V)), atol=1e-12)


@pytest.mark.parametrize("K", [1, 3])
def test_the_integrated_uncertainty_is_that_of_quadrature(K):
    rng = np.random.default_rng(K)
    f, R = 2 * rng.normal(size=(5, K)), rng.normal(size=(5, K, K))
    V = R @ R.transpose(0, 2, 1) + 0.1 * np.eye(K)
    noise, ignorance = mean_uncertainty(torch.tensor(f), torch.tensor(V), seed=0)
    for i in range(5):
        mean, second = softmax_moments(f[i], V[i])
        # p(1 - p) of one logit rises and falls by 1/4: half the bound of a range of 1.
        bound = SOBOL_ERROR[K] / (2 if K == 1 else 1)
        np.testing.assert_allclose(noise[i], np.diag(mean) - second, rtol=0, atol=bound)
        expected = second - np.outer(mean, mean)
        np.testing.assert_allclose(ignorance[i], expected, rtol=0, atol=SOBOL_ERROR[K])


@pytest.mark.parametrize("case", list(CASES))
def test_the_integrated_uncertainty_adds_up_and_has_the_first_order_as_its_limit(case):
    X, y = CASES[case]
    model = fit(X, y)
    parts = model.predict_uncertainty(X, full=True, link="mc")
    p = model.predict_proba(X, "mc")
    total = p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None]
    np.testing.assert_allclose(parts.total, total, atol=1e-13)
    np.testing.assert_allclose(
        np.einsum("ikk->ik", parts.epistemic), model.predict_uncertainty(X, link="mc").epistemic
    )
    # Under a strong prior V is so small that the first order is all.
    certain = fit(X, y, prior_precision=1e6)
    first, whole = (certain.predict_uncertainty(X, link=link) for link in (None, "mc"))
    np.testing.assert_allclose(whole.epistemic, first.epistemic, rtol=2e-2)
    np.testing.assert_allclose(whole.aleatoric, first.aleatoric, rtol=1e-4)
    with pytest.raises(ValueError, match="link must be None or 'mc'"):
        model.predict_uncertainty(X, link="probit")

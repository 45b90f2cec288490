"""A prior precision for each layer or input feature, inside ``fit``."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from skorch import NeuralNet
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.posterior import LastLayer
from tests.reference import jacobian

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 4))
# x1 and x3 do not matter.
Y = np.sin(2 * X[:, 0]) + np.sin(1.5 * X[:, 2]) + 0.1 * RNG.normal(size=100)
LABELS = np.where(X[:, 1] > 0.3 * RNG.normal(size=100), "up", "down")
OPTIONS = {"hidden_layer_sizes": (5,), "n_restarts": 4, "random_state": 0, "normalize_y": False}


@pytest.fixture(scope="module")
def fits():
    return {
        groups: DNN2GPRegressor(prior_groups=groups, **OPTIONS).fit(X, Y)
        for groups in ("all", "layer", "feature")
    }


def prior_of_weights(model):
    """δ of each weight, in the order of the network's parameters."""
    deltas, named = [], model.prior_precisions_
    for number, layer in enumerate(m for m in model.module_ if isinstance(m, nn.Linear)):
        whole = named.get(f"layer {number}")
        of_inputs = [named[f"x{i}"] if whole is None else whole for i in range(layer.in_features)]
        columns = torch.tensor(of_inputs, dtype=torch.float64)
        deltas.append(columns.expand_as(layer.weight).flatten())
        deltas.append(torch.full_like(layer.bias, named["biases"]))
    return torch.cat(deltas).detach()


@pytest.mark.parametrize("groups", ["layer", "feature"])
def test_it_is_the_network_with_that_prior(fits, groups):
    """Function, gradient of the loss, error bars and evidence of dense algebra."""
    model = fits[groups]
    net, delta = model.module_, prior_of_weights(model)
    inputs, y = torch.tensor(X), torch.tensor(Y)
    f = net(inputs)[:, 0].detach()
    np.testing.assert_allclose(model.predict(X), f, rtol=1e-10, atol=1e-12)
    sigma2, J = model.noise_std_**2, jacobian(net, inputs)
    w = torch.cat([p.detach().flatten() for p in net.parameters()])
    data_gradient = J.T @ (f - y) / sigma2
    log_likelihood = -0.5 * ((y - f) ** 2).sum() / sigma2 - 50 * np.log(2 * np.pi * sigma2)
    S = J @ (J / delta).T / sigma2
    # The solver's tolerance, and the rounding of this sum.
    loss = float(0.5 * (delta * w**2).sum() - log_likelihood)
    gradient = float((data_gradient + delta * w).norm())
    assert gradient < 1e-8 * (1 + abs(loss)) + 1e-12 * float(data_gradient.norm())
    B = torch.eye(100, dtype=torch.float64) + S
    evidence = log_likelihood - 0.5 * (delta * w**2).sum() - 0.5 * torch.logdet(B)
    # log|B| is known to ε κ(B): 3e-9 where κ is 1.4e7.
    close = torch.finfo(torch.float64).eps * float(torch.linalg.cond(B))
    assert model.log_marginal_likelihood_value_ == pytest.approx(float(evidence), rel=0, abs=close)
    V = (sigma2 * (S - S @ torch.linalg.solve(B, S))).diagonal()
    np.testing.assert_allclose(model.predict_std(X, "latent"), V.sqrt(), rtol=1e-7)


def test_more_groups_have_more_evidence_and_find_the_idle_features(fits):
    values = [fits[g].log_marginal_likelihood_value_ for g in ("all", "layer", "feature")]
    assert values[0] - 1e-2 <= values[1] < values[2]
    found = fits["feature"].prior_precisions_
    assert list(found) == ["x0", "x1", "x2", "x3", "layer 1", "biases"]
    assert min(found["x1"], found["x3"]) > 10 * max(found["x0"], found["x2"])
    assert fits["all"].prior_precisions_ == {"all": fits["all"].prior_precision_}


def test_names_of_a_frame_a_classifier_and_clones():
    frame = pd.DataFrame(X, columns=list("abcd"))
    options = {"hidden_layer_sizes": (3,), "n_restarts": 1, "random_state": 0}
    model = clone(DNN2GPClassifier(prior_groups="feature", **options)).fit(frame, LABELS)
    found = model.prior_precisions_
    assert found["b"] < min(found[name] for name in "acd")
    common = DNN2GPClassifier(**options).fit(frame, LABELS)
    assert model.log_marginal_likelihood_value_ >= common.log_marginal_likelihood_value_ - 1e-2


def test_a_fixed_noise_stays():
    model = DNN2GPRegressor(prior_groups="layer", noise_std=0.3, **OPTIONS).fit(X, Y)
    assert model.noise_std_ == 0.3


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"prior_precision": 1.0}, "prior_precision=1.0 \\(needed: 'auto'\\)"),
        ({"solver": "adam"}, "solver='adam' \\(needed: one that sees all examples\\)"),
        ({"net": NeuralNet(nn.Linear, nn.MSELoss)}, "a skorch net of its own"),
        ({"posterior": "diag"}, "posterior='diag' \\(needed: 'full'\\)"),
        ({"posterior": LastLayer()}, "posterior=LastLayer\\(\\) \\(needed: 'full'\\)"),
        ({"inference": "vi"}, "leave prior_groups='all'"),
        ({"prior_groups": "tensor"}, "prior_groups must be .* got 'tensor'"),
        ({"prior_groups": {"first": ["9.weight"]}}, "names '9.weight', which is no trainable"),
        ({"prior_groups": {"a": ["1.bias"], "b": "1.bias"}}, "names '1.bias' in 'a' and 'b'"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        DNN2GPRegressor(**{"prior_groups": "layer", **wrong}).fit(X, Y)

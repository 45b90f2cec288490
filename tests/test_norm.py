"""squared_rkhs_norm and wᵀδw (math-norm), against dense pseudo-inverses and least squares."""

import numpy as np
import pytest
import torch

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor, NNGPKernel, NTKKernel
from sk_dnn2gp.exceptions import ApproximationWarning
from sk_dnn2gp.kernels import squared_rkhs_norm
from sk_dnn2gp.likelihoods import Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from tests.reference import jacobian

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (20, 2))
Y = np.sin(X.sum(1)) + 0.1 * RNG.standard_normal(20)


def test_under_an_infinite_kernel_it_is_the_quadratic_form():
    K = NNGPKernel(depth=2, activation="relu")(X)
    f = np.c_[Y, X[:, 0]]
    expected = [float(g @ np.linalg.solve(K, g)) for g in f.T]
    assert squared_rkhs_norm(K, Y) == pytest.approx(expected[0], rel=1e-9)
    assert squared_rkhs_norm(K, f) == pytest.approx(sum(expected), rel=1e-9)
    # Of a function of the space, Σ a_i k(·, x_i), it is aᵀKa; more points can only raise it.
    a = RNG.standard_normal(20)
    assert squared_rkhs_norm(K, K @ a) == pytest.approx(a @ K @ a, rel=1e-9)
    norms = [squared_rkhs_norm(K[:n, :n], Y[:n]) for n in range(2, 21, 3)]
    assert (np.diff(norms) > 0).all()


@pytest.mark.parametrize("width", [3, 12], ids=["more rows than weights", "fewer"])
def test_it_is_that_of_the_shortest_weights(width):
    """min {vᵀδv : Jv = Jw} by dense least squares, and no more than wᵀδw of any w; δ a vector."""
    torch.manual_seed(0)
    net, inputs = MLP(2, (width,), 1), torch.tensor(X)
    delta = torch.rand(sum(p.numel() for p in net.parameters())).double() + 0.5
    model = LinearModel.from_laplace(
        Linearization(net), inputs, torch.tensor(Y)[:, None], Gaussian(0.3), delta
    )
    J, w = jacobian(net, inputs).numpy(), model.weights.numpy()
    root = np.sqrt(delta.numpy())
    shortest = np.linalg.lstsq(J / root, J @ w, rcond=None)[0]  # √δ v
    K = model.prior_gram(inputs).numpy()
    norm = squared_rkhs_norm(K, J @ w)
    assert norm == pytest.approx(shortest @ shortest, rel=1e-6)
    assert model.squared_norm == pytest.approx((root * w) @ (root * w), rel=1e-12)
    bound = model.squared_norm * (1 + 1e-9)
    assert norm < 0.9 * bound if width == 12 else norm <= bound


@pytest.mark.parametrize("make", [DNN2GPRegressor, DNN2GPClassifier])
def test_at_a_minimum_the_trained_weights_are_the_shortest(make):
    target = Y if make is DNN2GPRegressor else np.digitize(Y, [-0.5, 0.5])
    noise = {"noise_std": 0.3} if make is DNN2GPRegressor else {}
    model = make(hidden_layer_sizes=(20,), prior_precision=0.5, random_state=0, **noise)
    linear = model.fit(X, target).linear_model_
    f = linear.linearization.jvp(linear.X, linear.weights).numpy()
    K = NTKKernel(model.module_, prior_precision=0.5).full(X)
    assert linear.n_rows < linear.n_params
    # To the gradient that is left, over the smallest eigenvalues.
    assert squared_rkhs_norm(K, f) == pytest.approx(linear.squared_norm, rel=1e-6)


def test_values_that_no_function_of_the_space_has():
    K = X @ X.T  # linear functions of two inputs
    assert squared_rkhs_norm(K, X @ [3.0, -4.0]) == pytest.approx(25.0, rel=1e-9)
    with pytest.warns(ApproximationWarning, match="No function of this kernel's space"):
        near = squared_rkhs_norm(K, Y)
    w = np.linalg.lstsq(X, Y, rcond=None)[0]
    assert near == pytest.approx(w @ w, rel=1e-9)
    assert squared_rkhs_norm(K, np.zeros(20)) == 0.0


def test_what_does_not_fit_is_refused():
    for wrong in (np.ones((3, 2)), np.ones(3), np.triu(np.ones((3, 3)))):
        with pytest.raises(ValueError, match="K must be a finite symmetric matrix"):
            squared_rkhs_norm(wrong, np.ones(3))
    with pytest.raises(ValueError, match="f must have a value for each row"):
        squared_rkhs_norm(np.eye(3), np.ones(4))
    with pytest.raises(ValueError, match="f must have a value for each row"):
        squared_rkhs_norm(np.eye(6).reshape(3, 2, 3, 2), np.ones(3))
    with pytest.raises(ValueError, match="f must be finite"):
        squared_rkhs_norm(np.eye(3), [1.0, np.nan, 0.0])

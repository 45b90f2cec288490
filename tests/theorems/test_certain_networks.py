"""Networks that are certain, logits of ±40 where p is 0 or 1 in floating point.

Mathematics: math-likelihoods, math-laplace. The reference works in 250 digits, where Λ is as far
from singular as it is on paper.
"""

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp

from sk_dnn2gp.evidence import log_marginal_likelihood
from sk_dnn2gp.likelihoods import Bernoulli, Categorical
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.posterior import FunctionSpacePosterior, WeightSpacePosterior

# As for regression: matrices of condition up to 1e5 leave three digits of room.
RTOL = 1e-8


def close(a, b):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    torch.testing.assert_close(a, b, rtol=RTOL, atol=RTOL * float(b.abs().max()))


def mp_matrix(values):
    return mpmath.matrix(np.asarray(values, dtype=float).tolist())


def as_array(matrix):
    return np.array(matrix.tolist(), dtype=float)


def exact_model(X, W, codes, delta):
    """f = W (x, 1) in 250 digits: Λ⁺ r, Σ, the Newton step, both evidences."""
    K = W.shape[0]
    n_classes = max(K, 2)
    A, gradient = mp.eye(W.size) * delta, mp_matrix(W.flatten()[:, None]) * delta
    log_p, log_noise, squares, targets = mp.mpf(0), mp.mpf(0), mp.mpf(0), []
    for x, code in zip(X, codes, strict=True):
        row = mp_matrix(np.append(x, 1.0)[None])
        J = mp.zeros(K, W.size)
        for k in range(K):
            for d in range(row.cols):
                J[k, k * row.cols + d] = row[d]
        f = J * mp_matrix(W.flatten()[:, None])
        logits = [mp.mpf(0), f[0]] if K == 1 else list(f)
        total = mp.fsum(mp.exp(v) for v in logits)
        p = [mp.exp(v) / total for v in logits]
        if K == 1:
            Lambda, r = mp.matrix([[p[0] * p[1]]]), mp.matrix([[p[1] - int(code)]])
            inverse, pseudo_det = Lambda**-1, Lambda[0, 0]
        else:
            Lambda = mp.diag(p) - mp.matrix(p) * mp.matrix(p).T
            r = mp.matrix([q - int(k == code) for k, q in enumerate(p)])
            null = mp.ones(K) / K
            inverse = (Lambda + null) ** -1 - null  # 1 spans the null space
            pseudo_det = mp.det(Lambda + null)
        A += J.T * Lambda * J
        gradient += J.T * r
        log_p += mp.log(p[int(code)])
        log_noise += mp.log(pseudo_det) - (n_classes - 1) * mp.log(2 * mp.pi)
        squares += (r.T * inverse * r)[0, 0]
        targets.append((f - inverse * r).T.tolist()[0])
    penalty = delta * mp.fsum(mp.mpf(float(w)) ** 2 for w in W.flatten())
    log_B = mp.log(mp.det(A)) - W.size * mp.log(delta)
    decrement = (gradient.T * A**-1 * gradient)[0, 0]
    return {
        "Sigma": as_array(A**-1),
        "targets": np.array(targets, dtype=float),
        "laplace": float(log_p - penalty / 2 - log_B / 2),
        "dual": float(log_noise / 2 - log_B / 2 - (squares + penalty - decrement) / 2),
    }


@pytest.mark.parametrize("n_outputs", [1, 2, 3, 4])
def test_logits_of_forty_keep_all_digits(n_outputs):
    """Wrong and right labels at ±40, where p is 0 or 1 in floating point, against 250 digits."""
    rng = np.random.default_rng(n_outputs)
    X = np.r_[rng.uniform(-1, 1, (6, 2)), [[1.0, 0.5], [-1.0, -0.5]]]
    W = rng.uniform(-1, 1, (n_outputs, 3))
    W[0] = [40.0, 0.0, 0.0]
    if n_outputs > 1:
        W[1] = [-40.0, 0.0, 0.0]
    codes = rng.integers(0, max(2, n_outputs), len(X))
    module = torch.nn.Linear(2, n_outputs, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(W[:, :2]))
        module.bias.copy_(torch.tensor(W[:, 2]))
    # The module's weights come first, its biases last.
    order = np.r_[np.arange(W.size).reshape(W.shape)[:, :2].flatten(), np.arange(n_outputs) * 3 + 2]
    with mp.workdps(250):
        exact = exact_model(X, W, codes, mp.mpf("0.5"))
    likelihood = Bernoulli() if n_outputs == 1 else Categorical()
    tensor, y = torch.tensor(X), torch.tensor(codes)
    y = y[:, None].double() if n_outputs == 1 else y
    model = LinearModel.from_laplace(Linearization(module), tensor, y, likelihood, 0.5)
    assert float(model.linearization.outputs(tensor).abs().max()) >= 40
    targets = model.transformed_targets().numpy()
    # ỹ reaches 1e34 at a wrong certain label; every entry is compared with its own size.
    np.testing.assert_allclose(targets, exact["targets"], rtol=1e-7)
    Sigma = exact["Sigma"][np.ix_(order, order)]
    eye = torch.eye(W.size, dtype=torch.float64)
    for space in (WeightSpacePosterior, FunctionSpacePosterior):
        posterior = space(model)
        solved = torch.stack([posterior.solve(e) for e in eye])
        close(solved, Sigma)
        close(log_marginal_likelihood(posterior, "laplace"), exact["laplace"])
        close(log_marginal_likelihood(posterior, "dual"), exact["dual"])

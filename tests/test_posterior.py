"""The contract of every posterior, against dense matrices in float64, δ one per weight.

The weights are no minimum of anything and the prior precisions are random: nothing cancels that
a formula could leave out.
"""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sk_dnn2gp.evidence import log_marginal_likelihood
from sk_dnn2gp.likelihoods import Categorical, Gaussian
from sk_dnn2gp.linear_model import LinearModel
from sk_dnn2gp.linearize import Linearization
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import (
    Automatic,
    Diagonal,
    DiagonalPosterior,
    Full,
    FunctionSpacePosterior,
    IndependentOutputs,
    IndependentPosterior,
    LastLayer,
    SubsetOfData,
    SubsetOfWeights,
    WeightSpacePosterior,
    make_posterior,
    resolve_posterior,
)
from tests.reference import jacobian, weights

EXACT = (WeightSpacePosterior, FunctionSpacePosterior)
ALL = (*EXACT, DiagonalPosterior, IndependentPosterior)
# Matrices of condition up to 1e4: rounding reaches 1e-12 of the largest entry.
TOLERANCE = 1e-10


def close(a, b, scale=None):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    assert a.shape == b.shape
    scale = b.abs().max() if scale is None else scale
    assert float((a - b).abs().max()) <= TOLERANCE * float(scale)


def precisions(kind, sizes, generator):
    """δ of every weight: one number, one a tensor, or one a weight; between 0.3 and 3."""
    counts = {"number": [sum(sizes)], "tensor": sizes, "weight": [1] * sum(sizes)}[kind]
    deltas = 0.3 * 10 ** torch.rand(len(counts), generator=generator, dtype=torch.float64)
    return deltas.repeat_interleave(torch.tensor(counts))


class Problem:
    """A network, a linear model and the dense matrices of it."""

    def __init__(self, K, kind, n=9):
        generator = torch.Generator().manual_seed(10 * K + len(kind))
        draw = torch.randn(n + 4, 3, generator=generator, dtype=torch.float64)
        X, self.X_new = draw[:n], draw[n:]
        with torch.random.fork_rng():
            torch.manual_seed(K)
            net = MLP(3, (4,), K)
        likelihood = Gaussian(0.6) if K == 1 else Categorical()
        y = draw[:n, :1].sin() if K == 1 else torch.arange(n) % K
        sizes = [p.numel() for p in net.parameters()]
        delta = self.delta = precisions(kind, sizes, generator)
        given = float(delta[0]) if kind == "number" else delta
        self.model = LinearModel.from_laplace(Linearization(net), X, y, likelihood, given)
        self.K, self.n, self.w = K, n, weights(net)
        self.J, self.J_new = jacobian(net, X), jacobian(net, self.X_new)
        f = net(X).detach()
        self.blocks = likelihood.noise_precision(f)
        self.r = likelihood.residual(f, y)
        self.Lambda = torch.block_diag(*self.blocks)
        self.log_p = -likelihood.negative_log_likelihood(f, y).sum()
        self.A = self.J.T @ self.Lambda @ self.J + torch.diag(delta)

    def covariance(self, space):
        """V_* over all test examples and outputs, of shape (n K, n K)."""
        if space is IndependentPosterior:
            return self.independent()
        A = torch.diag(self.A.diagonal()) if space is DiagonalPosterior else self.A
        return self.J_new @ torch.linalg.inv(A) @ self.J_new.T

    def independent(self):
        joint = torch.zeros(len(self.J_new), len(self.J_new), dtype=torch.float64)
        for k in range(self.K):
            J, J_new = self.J[k :: self.K], self.J_new[k :: self.K]
            A = J.T @ torch.diag(self.blocks[:, k, k]) @ J + torch.diag(self.delta)
            joint[k :: self.K, k :: self.K] = J_new @ torch.linalg.inv(A) @ J_new.T
        return joint


@pytest.fixture(params=["number", "tensor", "weight"])
def kind(request):
    return request.param


@pytest.fixture(params=[1, 3])
def problem(request, kind):
    return Problem(request.param, kind)


@pytest.mark.parametrize("space", ALL)
def test_covariances_are_brute_force(problem, space):
    posterior, expected = space(problem.model), problem.covariance(space)
    n, K = len(problem.X_new), problem.K
    close(posterior.joint_covariance(problem.X_new), expected)
    blocks = torch.stack([expected.view(n, K, n, K)[i, :, i] for i in range(n)])
    close(posterior.covariance(problem.X_new), blocks)
    close(posterior.variance(problem.X_new), blocks.diagonal(dim1=1, dim2=2))
    assert posterior.is_exact == (space in EXACT)


@pytest.mark.parametrize("space", ALL)
def test_the_variance_is_the_covariances_diagonal_whatever_the_memory(problem, space):
    whole = space(problem.model)
    # A third of a KiB: a few examples, or one, at a time.
    small = Linearization(problem.model.linearization.module, memory_limit=3e-4)
    tight = space(LinearModel(**{**vars_of(problem.model), "linearization": small}))
    tight.memory_limit = 3e-4
    expected = whole.covariance(problem.X_new).diagonal(dim1=1, dim2=2)
    close(whole.variance(problem.X_new), expected)
    close(tight.variance(problem.X_new), expected)
    close(tight.joint_covariance(problem.X_new), whole.joint_covariance(problem.X_new))


def vars_of(model):
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


@pytest.mark.parametrize("space", [*EXACT, DiagonalPosterior])
def test_what_is_said_of_the_weights_is_brute_force(problem, space):
    posterior = space(problem.model)
    A = torch.diag(problem.A.diagonal()) if space is DiagonalPosterior else problem.A
    Sigma, delta = torch.linalg.inv(A), problem.delta
    v = torch.linspace(-1, 1, len(delta), dtype=torch.float64)
    close(posterior.solve(v), Sigma @ v)
    close(posterior.inverse_diagonal, Sigma.diagonal())
    close(posterior.log_determinant, torch.linalg.slogdet(A)[1] - delta.log().sum())
    P = len(delta)
    close(posterior.effective_dimension, P - (delta * Sigma.diagonal()).sum(), scale=P)
    g = problem.J.T @ problem.r.flatten() + delta * problem.w
    close(posterior.newton_decrement, g @ Sigma @ g)


@pytest.mark.parametrize("space", [*EXACT, DiagonalPosterior])
def test_draws_of_weights_have_the_posterior_covariance(problem, space):
    """Of n draws the whitened sample covariance is off by sqrt(2/n) at most on its diagonal.

    Entries are normal with variances 2/n and 1/n; five standard deviations, of 300 entries.
    """
    n, generator = 500, torch.Generator().manual_seed(0)
    draws = space(problem.model).sample_weights(n, generator)
    A = torch.diag(problem.A.diagonal()) if space is DiagonalPosterior else problem.A
    white = draws @ torch.linalg.cholesky(A)
    error = white.T @ white / n - torch.eye(len(A), dtype=torch.float64)
    assert float(error.abs().max()) <= 5 * (2 / n) ** 0.5
    assert float(white.mean(0).abs().max()) <= 5 / n**0.5


@pytest.mark.parametrize("space", EXACT)
def test_the_evidence_with_a_precision_for_each_weight(problem, space):
    posterior, D = space(problem.model), torch.diag(problem.delta)
    penalty = problem.w @ D @ problem.w
    log_B = torch.linalg.slogdet(problem.A)[1] - problem.delta.log().sum()
    laplace = problem.log_p - 0.5 * (penalty + log_B)
    close(log_marginal_likelihood(posterior, "laplace"), laplace)
    if problem.K == 1:
        noise = torch.linalg.inv(problem.Lambda)
        targets = problem.J @ problem.w - noise @ problem.r.flatten()
        covariance = problem.J @ torch.linalg.inv(D) @ problem.J.T + noise
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(targets), covariance)
        close(log_marginal_likelihood(posterior, "dual"), normal.log_prob(targets))


def test_independent_outputs_have_no_common_weights():
    posterior = IndependentPosterior(Problem(3, "number").model)
    for use in (
        lambda: posterior.inverse_diagonal,
        lambda: posterior.newton_decrement,
        lambda: posterior.sample_weights(1),
    ):
        with pytest.raises(ValueError, match="no common posterior precision"):
            use()


def test_strings_are_shorthand_for_objects():
    kinds = {"auto": Automatic, "full": Full, "diag": Diagonal, "last_layer": LastLayer}
    for name, made in kinds.items():
        assert type(resolve_posterior(name)) is made
    own = Diagonal(memory_limit=7.0)
    assert resolve_posterior(own, 9.0) is own
    assert resolve_posterior("full", 9.0).memory_limit == 9.0
    shared = Full()
    assert resolve_posterior(shared, 9.0).memory_limit == 9.0 and shared.memory_limit is None
    for wrong in ("fulll", 3, None, Full):
        with pytest.raises(ValueError, match="posterior must be one of 'auto', 'full'"):
            resolve_posterior(wrong)


@pytest.mark.parametrize(
    ("specification", "space"),
    [
        (Full(), FunctionSpacePosterior),
        (Diagonal(), DiagonalPosterior),
        (LastLayer(), FunctionSpacePosterior),
        (IndependentOutputs(), IndependentPosterior),
        (SubsetOfData(5, "diag"), DiagonalPosterior),
        (SubsetOfWeights(("0.weight",)), FunctionSpacePosterior),
    ],
    ids=lambda v: type(v).__name__,
)
def test_specifications_build_their_posterior(specification, space):
    model = Problem(1, "number").model  # P = 21 weights, NK = 9 rows
    specification.validate()
    assert type(specification.build(model)) is space
    assert type(make_posterior(model, clone(specification))) is space
    assert specification.is_network_process == (type(specification) is Full)


def test_a_part_of_the_weights_or_of_the_data():
    assert LastLayer().parameters == "last_layer" and Full().parameters is None
    assert SubsetOfWeights(["a"]).parameters == ["a"]
    assert SubsetOfData(4, LastLayer()).parameters == "last_layer"
    assert Full().rows(10) is None and SubsetOfData(10).rows(10) is None
    rows = SubsetOfData(4).rows(10, random_state=3)
    assert (
        np.array_equal(rows, np.unique(rows)) and len(rows) == 4 and 0 <= rows[0] <= rows[-1] < 10
    )
    assert np.array_equal(rows, SubsetOfData(4, random_state=3).rows(10, random_state=7))
    assert not np.array_equal(rows, SubsetOfData(4).rows(10, random_state=4))
    assert not SubsetOfData(4, IndependentOutputs()).has_common_precision


@pytest.mark.parametrize(
    ("specification", "match"),
    [
        (Full(memory_limit=-1), "Full: memory_limit must be a positive .* got -1"),
        (Diagonal(memory_limit="1"), "Diagonal: memory_limit .* got '1'"),
        (SubsetOfWeights(), r"SubsetOfWeights: parameters must be names .* got \(\)"),
        (SubsetOfWeights("0.weight"), "SubsetOfWeights: parameters must be names"),
        (SubsetOfWeights(("a", "a")), "names some twice"),
        (SubsetOfData(0), "SubsetOfData: n_samples must be a positive .* got 0"),
        (SubsetOfData(2, SubsetOfData(1)), "must not be a SubsetOfData again"),
        (SubsetOfData(2, "fulll"), "posterior must be one of"),
        (SubsetOfData(2, Full(memory_limit=0)), "Full: memory_limit"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(specification, match):
    with pytest.raises(ValueError, match=match):
        specification.validate()


def test_a_factor_that_does_not_fit_says_what_would():
    model = Problem(1, "number").model
    with pytest.raises(MemoryError, match=r"min\(P, NK\) <= 8"):
        Full(memory_limit=1e-3).build(model)

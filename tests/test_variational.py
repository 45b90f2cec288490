"""The variational optimisers against brute force, and as torch optimisers ."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn

from sk_dnn2gp.likelihoods import Bernoulli, Categorical, Gaussian
from sk_dnn2gp.linearize.tape import Call
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.optim import OGGN, OGN, VOGGN, VOGN
from sk_dnn2gp.optim import closure as closure_module
from tests.cases import CASES, trained
from tests.reference import jacobian, weights

ALL = {"VOGGN": VOGGN, "VOGN": VOGN, "OGGN": OGGN, "OGN": OGN}


class Scale(nn.Module):
    """A raw parameter: no layer rule."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([1.3, 0.7], dtype=torch.float64))
        self.body = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x):
        return self.body(x) * self.factor


class Twice(nn.Module):
    """One layer called twice: its per-example gradients add before they are squared."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3, dtype=torch.float64)
        self.outer = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip


def mixed():
    return nn.Sequential(
        nn.Conv1d(1, 2, 2), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(), nn.LayerNorm(4),
        nn.Linear(4, 3),
    ).double()  # fmt: skip


NETWORKS = {
    "linear": (lambda: nn.Linear(3, 2, dtype=torch.float64), (3,), 2),
    "mlp": (lambda: MLP(3, (5, 4), 3), (3,), 3),
    "conv": (convolutional, (1, 4, 4), 3),
    "mixed": (mixed, (1, 3), 3),
    "twice": (Twice, (3,), 2),
}


def problem(name, n=7, seed=0):
    make, shape, K = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make()
        X = torch.randn(n, *shape, dtype=torch.float64)
        y = torch.randint(K, (n,))
    return net, X, y


def closure_of(net, optimizer, X, y, likelihood):
    def closure():
        optimizer.zero_grad()
        loss = likelihood.negative_log_likelihood(net(X), y).mean()
        loss.backward()
        return loss

    return closure


def brute_diagonal(net, X, y, likelihood, curvature):
    J = jacobian(net, X)
    f = net(X).detach()
    if curvature == "ggn":
        return (J.T @ torch.block_diag(*likelihood.noise_precision(f)) @ J).diagonal()
    r = likelihood.residual(f, y)
    per_example = torch.einsum("nk,nkp->np", r, J.view(*f.shape, -1))
    return per_example.square().sum(0)


@pytest.mark.parametrize("cached", [1, 2**18], ids=["by example", "whole batch"])
@pytest.mark.parametrize("curvature", ["ggn", "gradient"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_diagonal_curvature_is_brute_force(name, curvature, cached, monkeypatch):
    monkeypatch.setattr(closure_module, "_CACHED", cached)
    net, X, y = problem(name)
    reference, before = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    optimizer = OGN(
        net.parameters(), 1e-9, n_data=14, likelihood=Categorical(), beta=1.0, curvature=curvature
    )
    optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
    # n_data is twice the batch, whose curvature then counts twice.
    expected = 2 * brute_diagonal(reference, X, y, Categorical(), curvature)
    found = optimizer.corrected_curvature()
    # Sums of at most a few hundred products: rounding is below 1e-13 of the largest entry.
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert all(torch.allclose(net.state_dict()[k], before[k], atol=1e-6) for k in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("curvature", ["ggn", "gradient"])
def test_a_parameter_without_a_rule_is_explicit_and_says_what_it_costs(curvature):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, X = Scale(), torch.randn(6, 3, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    expected = brute_diagonal(net, X, y, Categorical(), curvature)
    optimizer = OGN(
        net.parameters(), 1e-9, n_data=6, likelihood=Categorical(), beta=1.0, curvature=curvature
    )
    with pytest.warns(UserWarning, match="explicit derivatives"):
        optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
    found = optimizer.corrected_curvature()
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.max())


@pytest.mark.parametrize("curvature", ["ggn", "gradient"])
def test_the_full_curvature_in_the_optimisers_own_order(curvature):
    net, X, y = problem("mlp")
    J, f = jacobian(net, X), net(X).detach()
    order = list(net.parameters())[::-1]
    optimizer = OGGN(order, 1e-9, n_data=7, likelihood=Categorical(), beta=1.0, curvature=curvature)
    if curvature == "ggn":
        H = J.T @ torch.block_diag(*Categorical().noise_precision(f)) @ J
    else:
        r = Categorical().residual(f, y)
        G = torch.einsum("nk,nkp->np", r, J.view(*f.shape, -1))
        H = G.T @ G
    sizes = [p.numel() for p in net.parameters()]
    places = list(torch.arange(sum(sizes)).split(sizes))[::-1]
    permutation = torch.cat(places)
    optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
    expected = H[permutation][:, permutation]
    found = optimizer.corrected_curvature()
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def map_gradient(net, X, y, likelihood, delta):
    net.zero_grad()
    loss = likelihood.negative_log_likelihood(net(X), y).sum()
    loss = loss + 0.5 * delta * sum(p.square().sum() for p in net.parameters())
    loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()]), loss.item()


@pytest.mark.parametrize("cls", [OGGN, OGN])
def test_fixed_points_are_the_stationary_points_of_the_loss(cls):
    case = CASES[0]
    net, X, y = trained(case)  # gradient below 1e-12 (1 + |loss|)
    net.train()
    likelihood = Gaussian(case.sigma)
    options = {} if cls is OGGN else {"momentum": 0.0, "curvature": "ggn"}

    def optimizer():
        return cls(
            net.parameters(), 0.3, n_data=len(X), likelihood=likelihood,
            prior_precision=case.delta, beta=0.3, **options,
        )  # fmt: skip

    def weights():
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    minimum, at_minimum = weights(), optimizer()
    for _ in range(30):
        at_minimum.step(closure_of(net, at_minimum, X, y, likelihood))
    # Each step is 0.3 A^-1 g, with g at rounding: thirty of them stay there.
    torch.testing.assert_close(weights(), minimum, rtol=0, atol=1e-9)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.01)
    before, elsewhere = weights(), optimizer()
    elsewhere.step(closure_of(net, elsewhere, X, y, likelihood))
    assert float((weights() - before).norm()) > 1e-4


def test_oggn_reaches_a_stationary_point():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(15, 2, generator=generator, dtype=torch.float64)
    y = torch.sin(X.sum(1, keepdim=True))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(2, (4,), 1)
    likelihood, delta = Gaussian(0.3), 0.5
    optimizer = OGGN(net.parameters(), 0.3, n_data=15, likelihood=likelihood, prior_precision=delta)
    closure = closure_of(net, optimizer, X, y, likelihood)
    for _ in range(300):
        optimizer.step(closure)
    gradient, loss = map_gradient(net, X, y, likelihood, delta)
    # The step is a part of the gradient: it stops moving where the gradient is rounding.
    assert float(gradient.norm()) < 1e-6 * (1 + abs(loss))


def linear_gaussian():
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    X[:, 1] += 0.8 * X[:, 0]
    y = X @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    y = y + 0.5 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    A = X.T @ X / 0.25 + 1.5 * torch.eye(3, dtype=torch.float64)
    return X, y, A, torch.linalg.solve(A, X.T @ y / 0.25)[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("cls", [VOGGN, VOGN])
def test_a_linear_gaussian_model_gives_the_exact_posterior_or_mean_field(cls):
    """Curvature does not depend on the draw here, so S converges to rounding at rate (1-β)^t.

    μ keeps the noise of the draws e ~ N(0, B⁻¹), B the precision of q. Summed over T steps, the
    update μ ← μ - α B⁻¹[A(μ - μ*) + (A - δ) ē_t] says what an average of μ is off by:

        mean(μ - μ*) = -(I - δA⁻¹) ē - A⁻¹B (μ_T - μ_0)/(αT),      ē ~ N(0, B⁻¹/TM)

    The second term is known; the first is within four of its standard deviations.
    """
    X, y, A, exact = linear_gaussian()
    net = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    alpha, delta, M, T = 0.05, 1.5, 16, 2500
    optimizer = cls(
        net.parameters(), alpha, n_data=30, likelihood=Gaussian(0.5), prior_precision=delta,
        beta=0.05, curvature="ggn", momentum=0.0, mc_samples=M, random_state=0,
    )  # fmt: skip
    closure = closure_of(net, optimizer, X, y, Gaussian(0.5))
    means = []
    for step in range(500 + T):
        if step >= 500:
            means.append(weights(net).clone())
        optimizer.step(closure)
    B = A if cls is VOGGN else torch.diag(A.diagonal())
    precision = optimizer.posterior().precision
    found = precision if cls is VOGGN else torch.diag(precision)
    assert float((found - B).abs().max()) <= 1e-10 * float(A.max())
    known = torch.linalg.solve(A, B @ (weights(net) - means[0])) / (alpha * T)
    C = torch.eye(3, dtype=torch.float64) - delta * torch.linalg.inv(A)
    std = (C @ torch.linalg.inv(B) @ C.T).diagonal().div(T * M).sqrt()
    error = torch.stack(means).mean(0) - exact
    assert bool(((error + known).abs() <= 4 * std).all())
    assert float(error.abs().max()) <= 1e-3


@pytest.mark.parametrize("name", ALL)
def test_a_saved_state_resumes_bit_for_bit(name):
    X, y = problem("mlp")[1:]

    def start():
        net = problem("mlp")[0].float()
        optimizer = ALL[name](
            net.parameters(), 0.05, n_data=7, likelihood=Categorical(), momentum=0.5
        )
        return net, optimizer, closure_of(net, optimizer, X.float(), y, Categorical())

    net, optimizer, closure = start()
    for _ in range(3):
        optimizer.step(closure)
    buffer = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    for _ in range(3):
        optimizer.step(closure)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    again, resumed, closure = start()
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(3):
        resumed.step(closure)
    assert torch.equal(weights(net), weights(again))
    assert torch.equal(optimizer.corrected_curvature(), resumed.corrected_curvature())


def test_pickled_with_its_network_it_goes_on_alike():
    net, X, y = problem("mlp")
    optimizer = VOGN(net.parameters(), n_data=7)
    optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
    net2, optimizer2 = pickle.loads(pickle.dumps((net, optimizer)))
    optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
    optimizer2.step(closure_of(net2, optimizer2, X, y, Categorical()))
    assert torch.equal(weights(net), weights(net2))


def test_draws_leave_the_global_generator_alone_and_depend_on_random_state():
    results = []
    for seed in (0, 0, 1):
        net, X, y = problem("mlp")
        optimizer = VOGN(net.parameters(), n_data=7, random_state=seed)
        before = torch.get_rng_state()
        optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
        assert torch.equal(before, torch.get_rng_state())
        results.append(weights(net))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_scheduler_and_param_groups_change_the_step():
    net, X, y = problem("mlp")
    groups = [
        {"params": [*net[0].parameters()], "lr": 1e-12},
        {"params": [*net[2].parameters(), *net[4].parameters()], "prior_precision": 3.0},
    ]
    optimizer = VOGN(groups, lr=0.05, n_data=7)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1e-12)
    closure = closure_of(net, optimizer, X, y, Categorical())
    first, last = net[0].weight.detach().clone(), net[4].weight.detach().clone()
    optimizer.step(closure)
    assert torch.allclose(first, net[0].weight, atol=1e-9)
    assert not torch.allclose(last, net[4].weight, atol=1e-4)
    scheduler.step()
    last = net[4].weight.detach().clone()
    optimizer.step(closure)
    assert torch.allclose(last, net[4].weight, atol=1e-9)


def test_bias_correction_takes_the_start_out():
    net, X, y = problem("mlp")
    expected = brute_diagonal(net, X, y, Categorical(), "gradient")
    optimizer = OGN(net.parameters(), 1e-12, n_data=7, beta=0.1, bias_correction=True)
    optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
    found = optimizer.corrected_curvature()
    # S is the difference of numbers ten times larger than what is left.
    assert float((found - expected).abs().max()) <= 1e-12 * 100


def test_elbo_is_below_the_evidence_and_reaches_it_for_a_linear_gaussian_model():
    X, y, A, exact = linear_gaussian()
    net = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    optimizer = OGGN(
        net.parameters(), 1.0, n_data=30, likelihood=Gaussian(0.5), prior_precision=1.5
    )
    optimizer.step(closure_of(net, optimizer, X, y, Gaussian(0.5)))
    q = optimizer.posterior()
    # E_q Σℓ in closed form: the loss at the mean and ½ tr(XᵀX/σ² A⁻¹).
    at_mean = Gaussian(0.5).negative_log_likelihood(net(X).detach(), y).sum()
    spread = 0.5 * torch.trace(X.T @ X / 0.25 @ torch.linalg.inv(q.precision))
    elbo = optimizer.elbo(float(at_mean + spread))
    covariance = X @ X.T / 1.5 + 0.25 * torch.eye(30, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(30).double(), covariance)
    assert elbo == pytest.approx(float(normal.log_prob(y[:, 0])), rel=1e-10)
    assert optimizer.elbo(float(at_mean + spread) + 1.0) < elbo


def test_in_a_skorch_net():
    from skorch import NeuralNetClassifier

    X, y = problem("mlp", n=40)[1:]
    net = NeuralNetClassifier(
        MLP(3, (5, 4), 3, dtype=torch.float32), criterion=nn.CrossEntropyLoss, optimizer=VOGN,
        optimizer__n_data=40, lr=0.01, max_epochs=3, batch_size=10, train_split=None, verbose=0,
    )  # fmt: skip
    net.fit(X.float().numpy(), y.numpy())
    assert net.optimizer_.state_dict()["state"][0]["step"] == 12
    assert not any(m._forward_hooks for m in net.module_.modules())


@pytest.mark.parametrize("name", ALL)
def test_nan_keeps_what_was_before_it(name):
    net, X, y = problem("mlp")
    optimizer = ALL[name](net.parameters(), 0.05, n_data=7, likelihood=Categorical())
    optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
    before, state = weights(net).clone(), copy.deepcopy(optimizer.state_dict())
    bad = X.clone()
    bad[0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite.*step 2 .*after step 1"):
        optimizer.step(closure_of(net, optimizer, bad, y, Categorical()))
    assert torch.equal(before, weights(net))
    kept, found = state["state"][0], optimizer.state_dict()["state"][0]
    assert torch.equal(kept["curvature"], found["curvature"]) and found["step"] == 1
    assert torch.equal(kept["generator"], found["generator"])


def test_bad_input_is_named():
    net, X, y = problem("mlp")
    params = list(net.parameters())
    for wrong, match in (
        ({"n_data": 0}, "n_data must be a positive integer"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"prior_precision": float("nan")}, "prior_precision must be positive"),
        ({"momentum": 1.0}, "momentum must lie"),
        ({"beta": 1.5}, "beta must lie"),
        ({"curvature": "hessian"}, "curvature must be"),
        ({"curvature": "ggn"}, "needs the likelihood"),
        ({"initial_precision": 0.5}, "at least prior_precision"),
        ({"mc_samples": 0}, "mc_samples must be"),
    ):
        with pytest.raises(ValueError, match=match):
            VOGN(params, **{"n_data": 7, **wrong})
    optimizer = VOGN(params, n_data=7)
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(ValueError, match="did not call a module"):
        optimizer.step(lambda: torch.tensor(0.0))
    with pytest.raises(ValueError, match="backward"):
        optimizer.step(lambda: net(X).sum())
    with pytest.raises(ValueError, match="n_data=3 is less than the 7 examples"):
        small = VOGN(params, n_data=3)
        small.step(closure_of(net, small, X, y, Categorical()))
    with pytest.raises(ValueError, match="twice"):
        optimizer.step(lambda: (net(X) + net(X)).sum())
    with pytest.raises(RuntimeError, match="needs a step first"):
        VOGN(params, n_data=7).elbo()
    for cls in (OGN, OGGN):
        for draws in ({"mc_samples": 2}, {"random_state": 0}):
            with pytest.raises(ValueError, match=f"draws nothing.* take V{cls.__name__}"):
                cls(params, n_data=7, likelihood=Categorical(), **draws)


def test_defaults_are_those_of_the_structure():
    params = list(problem("mlp")[0].parameters())
    for cls in ALL.values():
        made = cls(params, n_data=7, likelihood=Categorical())
        group = [made.param_groups[0][name] for name in ("lr", "beta", "momentum")]
        full = cls in (VOGGN, OGGN)
        assert group == ([0.1, None, 0.0] if full else [0.01, 0.01, 0.9])
        assert made.curvature == ("ggn" if full else "gradient")


@pytest.mark.parametrize("name", ["VOGGN", "VOGN"])
def test_a_loss_is_estimated_at_the_present_gaussian(name):
    """For a linear model and Gaussian noise E_q Σℓ is known: ½ Σ (r² + x' A⁻¹ x)/σ² + constant.

    Each draw's loss is a quadratic form in a normal variable, whose variance is known too.
    """
    X, y, _, _ = linear_gaussian()
    net, likelihood = nn.Linear(3, 1, bias=False, dtype=torch.float64), Gaussian(0.5)
    optimizer = ALL[name](
        net.parameters(), 0.5, n_data=30, likelihood=likelihood, curvature="ggn", random_state=0
    )
    closure = closure_of(net, optimizer, X, y, likelihood)
    optimizer.step(closure)
    before, state = weights(net).clone(), copy.deepcopy(optimizer.state_dict())
    n = 4000
    found = optimizer.estimate_loss(closure, n, random_state=1)
    assert torch.equal(weights(net), before)
    assert torch.equal(
        optimizer.state_dict()["state"][0]["generator"], state["state"][0]["generator"]
    )
    assert found == optimizer.estimate_loss(closure, n, random_state=1)
    q = optimizer.posterior()
    A = q.precision if q.precision.ndim == 2 else torch.diag(q.precision)
    H, Sigma = X.T @ X / 0.25, torch.linalg.inv(A)
    at_mean = likelihood.negative_log_likelihood(net(X).detach(), y).sum()
    g = X.T @ (net(X).detach() - y) / 0.25
    expected = float(at_mean + 0.5 * torch.trace(H @ Sigma))
    variance = float((g.T @ Sigma @ g).sum() + 0.5 * torch.trace(H @ Sigma @ H @ Sigma))
    assert abs(found - expected) <= 4 * (variance / n) ** 0.5


@pytest.mark.parametrize("name", ALL)
def test_a_step_can_be_taken_back_and_again(name):
    net, X, y = problem("mlp")
    optimizer = ALL[name](net.parameters(), 0.05, n_data=7, likelihood=Categorical(), beta=0.1)
    closure = closure_of(net, optimizer, X, y, Categorical())
    optimizer.step(closure)
    before, kept = weights(net).clone(), optimizer.snapshot()
    curvature = optimizer.corrected_curvature()
    results = []
    for _ in range(2):
        optimizer.step(closure)
        results.append((weights(net).clone(), optimizer.corrected_curvature()))
        optimizer.restore(kept)
        assert torch.equal(weights(net), before)
        assert torch.equal(optimizer.corrected_curvature(), curvature)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    optimizer.param_groups[0]["lr"] *= 0.5
    optimizer.step(closure)
    whole, half = results[0][0] - before, weights(net) - before
    # The same draws and the same precision: half the rate is half the step, to rounding.
    assert float((half - 0.5 * whole).abs().max()) <= 1e-12 * float(before.abs().max())


@pytest.mark.parametrize("curvature", ["ggn", "gradient"])
def test_nothing_of_a_step_outlives_it(curvature):
    """A graph's hooks and what they keep are a cycle through C++, which no collector sees."""
    net, X, y = problem("conv")
    optimizer = VOGN(
        net.parameters(), lr=0.1, n_data=7, likelihood=Categorical(), curvature=curvature,
        random_state=0,
    )  # fmt: skip

    def fails():
        net(X).sum().backward()
        raise KeyboardInterrupt

    for _ in range(3):
        optimizer.step(closure_of(net, optimizer, X, y, Categorical()))
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(fails)
    gc.collect()
    assert not [kept for kept in gc.get_objects() if type(kept) is Call]


def test_bernoulli_minibatches_train():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    y = (X[:, :1] * X[:, 1:] > 0).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(2, (16,), 1)
    optimizer = VOGN(net.parameters(), lr=0.1, n_data=200, prior_precision=0.1, random_state=0)
    for _ in range(60):
        for part in torch.randperm(200, generator=generator).split(50):
            optimizer.step(closure_of(net, optimizer, X[part], y[part], Bernoulli()))
    with torch.no_grad():
        accuracy = ((net(X) > 0) == (y > 0.5)).double().mean()
    assert float(accuracy) > 0.9


@pytest.mark.parametrize("curvature", ["ggn", "gradient"])
def test_a_summed_loss_is_refused_and_nothing_is_changed(curvature):
    """Residuals p - e_y of a mean lie in [-1, 1]; of a sum over seven they do not."""
    net, X, y = problem("mlp")
    before = weights(net)
    optimizer = VOGN(
        net.parameters(), lr=0.1, n_data=7, likelihood=Categorical(), curvature=curvature,
        random_state=0,
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(X), y, reduction="sum")
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="not the batch's mean"):
        optimizer.step(closure)
    assert bool((weights(net) == before).all())


@pytest.mark.parametrize("constant", [0.0, 1.0], ids=["plain", "normalised"])
@pytest.mark.parametrize("noise_std", [0.1, 1.0])
def test_a_gaussian_closure_must_be_the_mean(noise_std, constant):
    net, X, _ = problem("mlp")
    y = torch.linspace(-2, 2, 21, dtype=torch.float64).view(7, 3)
    likelihood = Gaussian(noise_std)
    optimizer = VOGN(net.parameters(), lr=1e-3, n_data=7, likelihood=likelihood, random_state=0)

    def take(reduce):
        def closure():
            optimizer.zero_grad()
            nll = (net(X) - y).square().sum(1) / (2 * noise_std**2)
            loss = reduce(nll + constant * 3 * likelihood.log_normaliser())
            loss.backward()
            return loss

        optimizer.step(closure)

    take(torch.mean)
    before = weights(net).clone()
    with pytest.raises(ValueError, match="not the batch's mean .* tell of"):
        take(torch.sum)
    assert torch.equal(weights(net), before)

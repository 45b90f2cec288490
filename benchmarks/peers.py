"""Intervals beside those of other packages: same data, same folds, an environment for each.

    python benchmarks/peers.py ours

and in its place gp, gpytorch, ngboost, mapie, bde, neural-tangents, laplace, and laplace-torch's
posteriors in function space: laplace-functional, laplace-ella, laplace-valla.

A peer's environment is made below ``.venv-peers`` at its first call. Three folds of the oblique
front of README and of diabetes; RMSE, negative log predictive density (where there is a density),
coverage and mean width of the 90% intervals, and processor seconds for a fit with its predictions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import venv
import warnings
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What is installed for each; ours is this checkout, in the environment that runs the script.
NEEDS = {
    "ours": [],
    "gp": ["scikit-learn==1.9.1"],
    "gpytorch": ["torch==2.13.0", "gpytorch==1.15.2", "scikit-learn==1.9.1"],
    "ngboost": ["ngboost==0.5.11"],
    "mapie": ["mapie==1.6.0"],
    "bde": ["sklearn-contrib-bde==1.0.2"],
    # Later ones lack names that it imports.
    "neural-tangents": ["neural-tangents==0.6.5", "jax==0.4.30", "jaxlib==0.4.30", "scikit-learn"],
    "laplace": ["torch==2.13.0", "laplace-torch==0.3", "scikit-learn==1.9.1"],
}
POSTERIORS = ("laplace-functional", "laplace-ella", "laplace-valla")


def data() -> dict[str, tuple[Any, Any]]:
    """Two sets of inputs and targets."""
    import numpy as np
    from sklearn.datasets import load_diabetes

    rng = np.random.RandomState(0)
    X = rng.uniform(-2, 2, (150, 3))
    y = np.tanh(2 * (X[:, 0] + X[:, 1] - X[:, 2])) + 0.1 * rng.randn(150)
    return {"oblique front": (X, y), "diabetes": load_diabetes(return_X_y=True)}


def ours(X, y, X_new):
    """With the defaults of README's first example."""
    from sk_dnn2gp import DNN2GPRegressor

    model = DNN2GPRegressor(hidden_layer_sizes=(8,), random_state=0).fit(X, y)
    return normal(*model.predict(X_new, return_std=True))


def gp(X, y, X_new):
    """Scikit-learn's process, a length scale for each input."""
    import numpy as np
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    kernel = ConstantKernel() * RBF(np.ones(X.shape[1])) + WhiteKernel()
    model = GaussianProcessRegressor(kernel, normalize_y=True).fit(X, y)
    return normal(*model.predict(X_new, return_std=True))


def ngboost(X, y, X_new):
    """Natural gradient boosting of a normal, with its defaults."""
    from ngboost import NGBRegressor

    found = NGBRegressor(verbose=False, random_state=0).fit(X, y).pred_dist(X_new)
    return normal(found.loc, found.scale)


def mapie(X, y, X_new):
    """Cross-conformal intervals of a random forest: a guarantee, and no density."""
    from mapie.regression import CrossConformalRegressor
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(random_state=0)
    model = CrossConformalRegressor(forest, confidence_level=0.9, cv=5).fit_conformalize(X, y)
    mean, interval = model.predict_interval(X_new)
    return mean, interval[:, 0, 0], interval[:, 1, 0], None


def gpytorch(X, y, X_new):
    """Its exact process, a length scale for each input: 200 steps of Adam on the evidence."""
    import torch
    from gpytorch import distributions, kernels, likelihoods, means, mlls, models

    class Process(models.ExactGP):
        def __init__(self, *given):
            super().__init__(*given)
            self.mean = means.ConstantMean()
            self.kernel = kernels.ScaleKernel(kernels.RBFKernel(ard_num_dims=X.shape[1]))

        def forward(self, X):
            return distributions.MultivariateNormal(self.mean(X), self.kernel(X))

    noise = likelihoods.GaussianLikelihood()
    X, X_new, target = (torch.tensor(part) for part in (X, X_new, (y - y.mean()) / y.std()))
    model = Process(X, target, noise).double()
    evidence = mlls.ExactMarginalLogLikelihood(noise, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (-evidence(model(X), target)).backward()
        optimizer.step()
    model.eval(), noise.eval()
    with torch.no_grad():
        found = noise(model(X_new))
    return normal(found.mean.numpy(), found.stddev.numpy(), y)


def bde(X, y, X_new):
    """Chains of eight networks with two layers of 16, and the settings of its README."""
    import numpy as np
    from bde import BdeRegressor
    from scipy.special import logsumexp
    from scipy.stats import norm

    model = BdeRegressor(
        hidden_layers=[16, 16], n_members=8, epochs=200, patience=10, warmup_steps=5000,
        n_samples=2000, n_thinning=2,
    )  # fmt: skip
    shift, scale = y.mean(), y.std()
    model.fit(X, ((y - shift) / scale)[:, None])
    mean, ends = model.predict(X_new, credible_intervals=[0.05, 0.95])
    draws = np.asarray(model.predict(X_new, raw=True), dtype=float).reshape(-1, len(X_new), 2)
    f, s = draws[..., 0], np.logaddexp(0.0, draws[..., 1]) + 1e-6  # as its own predictions do

    def log_density(target):
        each = norm.logpdf((target - shift) / scale, f, s) - np.log(scale)
        return logsumexp(each, axis=0) - np.log(len(f))

    return *(np.asarray(part) * scale + shift for part in (mean, *ends)), log_density


def neural_tangents(X, y, X_new):
    """The process of an infinitely wide layer of erf; variances by the evidence, over a grid."""
    from itertools import product

    import jax
    import numpy as np
    from neural_tangents import predict, stax
    from scipy.stats import multivariate_normal

    jax.config.update("jax_enable_x64", True)
    target, found = (y - y.mean()) / y.std(), []
    for wide, out in product((0.3, 1.0, 3.0, 10.0), (0.5, 1.0, 2.0, 4.0)):
        layers = stax.Dense(1, wide, wide), stax.Erf(), stax.Dense(1, out, 0.1)
        kernel = stax.serial(*layers)[2]
        K = np.asarray(kernel(X, None, "nngp"))
        for noise in (0.003, 0.01, 0.03, 0.1, 0.3, 0.6):
            law = multivariate_normal(cov=K + noise * np.eye(len(K)))
            found.append((law.logpdf(target), kernel, noise))
    _, kernel, noise = max(found, key=lambda entry: entry[0])
    options = {"diag_reg": noise, "diag_reg_absolute_scale": True}
    law = predict.gradient_descent_mse_ensemble(kernel, X, target[:, None], **options)
    mean, covariance = law(x_test=X_new, get="nngp", compute_cov=True)
    std = np.sqrt(np.diag(covariance) + noise)
    return normal(np.asarray(mean)[:, 0], std, y)


def laplace(X, y, X_new, posterior="laplace"):
    """Our network, δ and σ by its evidence during 1,000 epochs; then one of its posteriors."""
    import torch
    from laplace import marglik_training
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    tensors = [torch.tensor(part).float() for part in (X, (y - y.mean()) / y.std(), X_new)]
    rows = TensorDataset(tensors[0], tensors[1][:, None])
    loader = DataLoader(rows, batch_size=len(X), shuffle=True)
    net = nn.Sequential(nn.Linear(X.shape[1], 8), nn.Tanh(), nn.Linear(8, 1))
    model, net, *_ = marglik_training(
        net, loader, "regression", hessian_structure="full", prior_structure="scalar",
        n_epochs=1000, optimizer_kwargs={"lr": 1e-2}, n_epochs_burnin=10, n_hypersteps=20,
        marglik_frequency=5,
    )  # fmt: skip
    if posterior in POSTERIORS:
        model = in_function_space(posterior, net, model, loader)
    f, variance = (part.detach().numpy().ravel() for part in model(tensors[2]))
    return normal(f, (variance + float(model.sigma_noise) ** 2) ** 0.5, y)


def in_function_space(posterior, net, model, loader):
    """Laplace-torch's posterior of that name, of the same network."""
    from laplace.baselaplace import ELLA, FunctionalLaplace, VaLLA
    from laplace.curvature import CurvlinopsGGN

    options = {
        "sigma_noise": model.sigma_noise.item(), "prior_precision": model.prior_precision.item(),
        "backend": CurvlinopsGGN,
    }  # fmt: skip
    if posterior == "laplace-functional":
        found = FunctionalLaplace(net, "regression", len(loader.dataset), **options)
        found.fit(loader)
    elif posterior == "laplace-ella":
        found = ELLA(net, "regression", len(loader.dataset), 20, **options)
        found.fit(loader)
    else:
        found = VaLLA(net, "regression", "kmeans", 20, **options)
        found.fit(loader, iterations=1000, lr=1e-2)
    return found


def normal(mean, std, y=None):
    """Mean, ends of the central 90%, log density; y brings them back from its own units."""
    from scipy.stats import norm

    if y is not None:
        mean, std = mean * y.std() + y.mean(), std * y.std()
    return mean, *norm.interval(0.9, mean, std), partial(norm.logpdf, loc=mean, scale=std)


def scores(y, mean, low, high, log_density) -> list[float]:
    """RMSE, NLPD, coverage, width."""
    import numpy as np

    density = np.nan if log_density is None else -np.mean(log_density(y))
    inside = (low <= y) & (y <= high)
    return [np.sqrt(np.mean((y - mean) ** 2)), density, inside.mean(), np.mean(high - low)]


def run(peer: str) -> None:
    """The peer's table."""
    import numpy as np
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import StandardScaler

    name = peer.replace("-", "_")
    fit = partial(laplace, posterior=peer) if peer in POSTERIORS else globals()[name]
    print(f"{peer:18s}{'RMSE':>8s}{'NLPD':>8s}{'90%':>8s}{'width':>8s}{'seconds':>9s}")
    for name, (X, y) in data().items():
        rows = []
        for train, test in KFold(3, shuffle=True, random_state=0).split(X):
            scaler = StandardScaler().fit(X[train])
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = fit(scaler.transform(X[train]), y[train], scaler.transform(X[test]))
            rows.append([*scores(y[test], *found), time.process_time() - start])
        print(f"{name:18s}" + "{:8.3f}{:8.3f}{:8.2f}{:8.2f}{:9.2f}".format(*np.mean(rows, axis=0)))


def environment(peer: str) -> Path:
    """The interpreter of the peer's environment, which is made where it is not there."""
    folder = ROOT / ".venv-peers" / peer
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NEEDS[peer]], check=True)
    return python


def main() -> None:
    """In the peer's environment, the table; anywhere else, that environment first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=[*NEEDS, *POSTERIORS])
    parser.add_argument("--here", action="store_true", help="in the environment that runs this")
    given = parser.parse_args()
    needs = "laplace" if given.peer in POSTERIORS else given.peer
    if given.here or not NEEDS[needs]:
        run(given.peer)
        return
    python = environment(needs)
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [str(python), __file__, given.peer, "--here"]
    sys.exit(subprocess.run(command, env={**os.environ, **threads}, check=False).returncode)


if __name__ == "__main__":
    main()

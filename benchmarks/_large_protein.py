"""Protein (41,157 rows) by two hidden layers of 200 (P = 42,401), for ``large.py``.

One network, trained once by Adam with early stopping on a tenth of the rows; then, as it stands,
the posterior in a low rank, of the last layer, by Kronecker factors, δ and σ by the evidence; and
scikit-learn's Gaussian process on 2,000 rows. Scores are in the units of y, as in
the literature (deep ensembles, Lakshminarayanan et al. 2017, table 1: RMSE 4.71, NLL 2.83).
"""

from __future__ import annotations

import time
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from _uci_data import splits
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import nn

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.exceptions import ApproximationWarning
from sk_dnn2gp.posterior import LowRank
from sk_dnn2gp.training import FirstOrder

EPOCHS, BATCH, RATE, SIGMA, DELTA = 60, 128, 2e-3, 0.5, 5.0


@cache
def data() -> tuple[NDArray, NDArray, NDArray, NDArray, float, float]:
    """X, y, X_test and y_test of the first split, standardised on its training part; y's units."""
    X, y, X_test, y_test = next(splits("protein", 1))
    mean, std = X.mean(0), X.std(0)
    shift, scale = float(y.mean()), float(y.std())
    return (X - mean) / std, (y - shift) / scale, (X_test - mean) / std, y_test, shift, scale


def network() -> nn.Sequential:
    """Two hidden layers of 200."""
    hidden = [nn.Linear(9, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(200, 1))


@cache
def trained() -> DNN2GPRegressor:
    """By Adam, δ and σ given; its diagonal posterior is not looked at."""
    torch.manual_seed(0)
    X, y = data()[:2]
    solver = FirstOrder(
        "adam", max_iter=EPOCHS, learning_rate=RATE, learning_rate_schedule="cosine",
        batch_size=BATCH,
    )  # fmt: skip
    model = DNN2GPRegressor(
        network(), prior_precision=DELTA, noise_std=SIGMA, posterior="diag", solver=solver,
        normalize_y=False, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X.astype(np.float32), y)


def store(path: str) -> None:
    """The trained weights and the standardised data, for a peer."""
    X, y, X_test, y_test, shift, scale = data()
    tensors = [torch.tensor(part).float() for part in (X, y, X_test)]
    weights = trained().module_.float().state_dict()
    torch.save([weights, *tensors, torch.tensor(y_test), shift, scale], path)


def scored(mean: NDArray, std: NDArray) -> dict[str, float]:
    """RMSE, NLL and coverage of the central 95 % in the units of y, from standardised ones."""
    y_test, shift, scale = data()[3:]
    mean, std = mean * scale + shift, std * scale
    z = (y_test - mean) / std
    return {
        "rmse": float(np.sqrt(np.mean((y_test - mean) ** 2))),
        "nll": float(np.mean(0.5 * z**2 + np.log(std) + 0.5 * np.log(2 * np.pi))),
        "coverage": float(np.mean(np.abs(z) < 1.96)),
    }


def posterior(specification: Any) -> dict:
    """A posterior of the trained network, δ and σ by the evidence; processor seconds."""
    X, y, X_test = data()[:3]
    model = DNN2GPRegressor(
        FrozenEstimator(trained().net_), posterior=specification, normalize_y=False, random_state=0
    )
    start = time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ApproximationWarning)
        model.fit(X.astype(np.float32), y)
        bounds = model.log_marginal_likelihood_bounds()
    fitted = time.process_time()
    mean, std = model.predict(X_test.astype(np.float32), return_std=True)
    found = {
        "fit_cpu_seconds": fitted - start,
        "predict_cpu_seconds": time.process_time() - fitted,
        "prior_precision": model.prior_precision_,
        "noise_std": model.noise_std_,
        "evidence": list(bounds),
        "effective_dimension": model.effective_dimension_,
        "warnings": [str(w.message) for w in said if w.category is ApproximationWarning],
        **scored(mean, std),
    }
    if hasattr(model.posterior_, "history"):
        found["rank"] = model.posterior_.rank
        found["curve"] = [(c.rank, (1 + c.bound) ** 0.5, c.kind) for c in model.posterior_.history]
    return found


def process(n_rows: int = 2000) -> dict:
    """scikit-learn's Gaussian process with a length scale for each input, on the first rows."""
    X, y, X_test = data()[:3]
    kernel = ConstantKernel(1.0) * RBF(np.ones(X.shape[1])) + WhiteKernel(0.5)
    model = GaussianProcessRegressor(kernel, random_state=0)
    start = time.process_time()
    mean, std = model.fit(X[:n_rows], y[:n_rows]).predict(X_test, return_std=True)
    return {"cpu_seconds": time.process_time() - start, "rows": n_rows, **scored(mean, std)}


def ours(rank: int, memory: float) -> dict:
    """Every row of the table but the peer's."""
    start = time.process_time()
    model = trained()
    found: dict[str, Any] = {"training_cpu_seconds": time.process_time() - start}
    X_test = torch.tensor(data()[2]).float()
    with torch.no_grad():
        mean = model.module_.float()(X_test)[:, 0].double().numpy()
    residual = model.module_(torch.tensor(data()[0]).float())[:, 0].detach().numpy() - data()[1]
    found["network"] = scored(mean, np.full(len(mean), residual.std()))
    low_rank = LowRank(tol=1.25, max_rank=rank, memory_limit=memory, random_state=0)
    cases = {"low_rank": low_rank, "last_layer": "last_layer", "kronecker": "kronecker"}
    for name, specification in cases.items():
        found[name] = posterior(specification)
        print(name, found[name], flush=True)
    found["gaussian_process"] = process()
    found["deep_ensembles_of_the_literature"] = {"rmse": 4.71, "nll": 2.83}
    return found

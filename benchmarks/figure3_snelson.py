"""The paper's figure 3, right: error bars inside a gap of the data, by VI, its network, and RBF.

Snelson's one-dimensional set without 1.5 < x < 3; one hidden layer of 32 sigmoid units, σ = 0.286
in the units of y, δ = 0.1 as in the authors' script. DNN2GP-VI is the Gaussian process of the
converged variational network, prior N(0, I/δ), Jacobians and residuals at its mean μ, conditioned
on its transformed targets (math-variational); DNN-VI the network with weights drawn from q; GP-RBF
scikit-learn's process, its kernel chosen by its evidence. The process with q's own covariance, the
estimator's ``predict_std``, is printed too, and so are those of the Laplace posterior, of gradients
in the place of Jacobians (math-gradients) and of SWAG (math-swag).

    python benchmarks/figure3_snelson.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from _common import picture, save
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.inference import Laplace, Variational

NOISE = 0.286


def main() -> None:
    """Fit the three, print the standard deviations in the gap, draw."""
    folder = os.environ.get("SK_DNN2GP_DATA")
    if not folder:
        raise SystemExit("Snelson's set: name the folder of the data in SK_DNN2GP_DATA.")
    with np.load(Path(folder) / "snelson.npz") as data:
        x, y = data["x_train"].ravel().astype(float), data["y_train"].ravel().astype(float)
    keep = (x <= 1.5) | (x >= 3)
    X, y = x[keep, None], y[keep]
    grid = np.linspace(x.min() - 1, x.max() + 1, 300)[:, None]
    gap = (grid[:, 0] > 1.5) & (grid[:, 0] < 3)
    settings = {
        "hidden_layer_sizes": (32,), "activation": "sigmoid", "normalize_y": False,
        "random_state": 0, "prior_precision": 0.1, "noise_std": NOISE,
    }  # fmt: skip
    model = DNN2GPRegressor(**settings, inference=Variational(max_iter=1000, n_samples=8))
    model.fit(X, y)
    _, process_std = model.to_gaussian_process().predict(grid, return_std=True)
    kernel = ConstantKernel(1.0) * RBF(1.0) + WhiteKernel(NOISE**2, "fixed")
    rbf = GaussianProcessRegressor(kernel, n_restarts_optimizer=5, random_state=0).fit(X, y)
    rbf_mean, rbf_std = rbf.predict(grid, return_std=True)
    draws = model.sample_network(grid, 2000)[:, 0]
    curves = {
        "DNN2GP-VI": (model.predict(grid), process_std),
        "DNN-VI": (draws.mean(1), draws.std(1)),
        "GP-RBF": (rbf_mean, np.sqrt(np.maximum(rbf_std**2 - NOISE**2, 0.0))),
    }
    print(f"δ = {model.prior_precision_:.3g}, ELBO {np.mean(model.elbo_curve_[-50:]):.2f}")
    inside = {name: float(std[gap].max()) for name, (_, std) in curves.items()}
    inside["q's own"] = float(model.predict_std(grid, "latent")[gap].max())
    for name, inference in (
        ("Laplace", "laplace"), ("gradients", Laplace("gradient")), ("SWAG", "swag"),
    ):  # fmt: skip
        other = DNN2GPRegressor(**settings, inference=inference).fit(X, y)
        curves[name] = other.predict(grid), other.predict_std(grid, "latent")
        inside[name] = float(curves[name][1][gap].max())
    for name, value in inside.items():
        print(f"{name:10} largest latent standard deviation in the gap: {value:.3f}")
    save("figure3_snelson", {"largest_std_in_gap": inside, "delta": model.prior_precision_})
    with picture("figure3_snelson", 2, 3) as axes:
        for axis, (name, (mean, std)) in zip(axes.flat, curves.items(), strict=True):
            axis.plot(X[:, 0], y, "k.", markersize=3)
            axis.plot(grid[:, 0], mean)
            total = np.sqrt(std**2 + NOISE**2)
            axis.fill_between(grid[:, 0], mean - 2 * std, mean + 2 * std, alpha=0.4)
            axis.fill_between(grid[:, 0], mean - 2 * total, mean + 2 * total, alpha=0.2)
            axis.set(title=name, ylim=(-4, 4))


if __name__ == "__main__":
    main()

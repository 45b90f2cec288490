"""
Bayesian optimisation with a network
====================================

Twelve looks find the narrow, higher hill of an unknown function to three
thousandths of its height. Each look is where mean plus two standard deviations
is largest. The error bar is that of the curve (figure 3 of Khan et al. 2019),
from the network's own Gaussian process.

Takes 15 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.plotting import PredictiveDisplay
from sk_dnn2gp.training import GaussNewtonLM


def unknown(x):
    """Two hills; the higher one is narrow."""
    return np.exp(-((x - 2) ** 2) / 0.2) + 0.7 * np.exp(-((x + 1) ** 2) / 1.0)


grid = np.linspace(-4, 4, 400)[:, None]
looked = [-3.5, -0.5, 3.5]
figure, axes = plt.subplots(
    2, 2, figsize=(7, 5.4), sharex=True, sharey=True, layout="constrained"
)
pictures = dict(zip((3, 6, 9, 14), axes.flat, strict=True))
for n in range(3, 15):
    X = np.array(looked)[:, None]
    y = unknown(X[:, 0])
    model = DNN2GPRegressor(
        hidden_layer_sizes=(30,),
        prior_precision=0.02,
        noise_std=0.02,
        normalize_y=False,
        solver=GaussNewtonLM(tol=1e-3),
        random_state=0,
    ).fit(X, y)
    mean, std = model.predict(grid), model.predict_std(grid, "latent")
    if n in pictures:
        axis = pictures[n]
        PredictiveDisplay.from_estimator(model, X, y, grid=grid, ax=axis)
        axis.plot(grid, unknown(grid), "k--", lw=1, label="unknown function")
        axis.set(title=f"{n} looks", ylim=(-1.5, 2.5))
        axis.get_legend().remove()
    looked.append(float(grid[(mean + 2 * std).argmax(), 0]))
names = axes[0, 0].get_legend_handles_labels()
figure.legend(*names, loc="outside upper center", ncols=3)
best = max(looked, key=unknown)
print(f"after {len(looked)} looks the largest value seen is")
print(f"{unknown(best):.3f} at {best:.2f}")
plt.show()

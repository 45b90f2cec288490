"""
Noise and ignorance in classification
=====================================

The noise is high along the boundary between two classes, wherever it runs; the
ignorance is low among the data and grows along the boundary away from them. A
classifier can be unsure for two reasons: the classes overlap there, or no data
were seen there. The Gaussian process of a trained network tells them apart
(Khan et al. 2019, appendix B and figure 2): ``Var[y] = Λ + ΛVΛ``, with
Λ = p(1-p) the noise and V the variance of the logit. That variance itself
grows in all directions, so that the probability that averages over it is
humble where the network's own is sure.

Takes 2 seconds.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

from sk_dnn2gp import DNN2GPClassifier

OUTPUT = Path("outputs") / "classification_uncertainty.png"

# %%
# Two half moons, and a network whose prior precision the evidence has chosen
# ---------------------------------------------------------------------------

X, y = make_moons(200, noise=0.3, random_state=0)
model = DNN2GPClassifier(
    hidden_layer_sizes=(10,), n_restarts=4, random_state=0
).fit(X, y)
print(
    f"accuracy {model.score(X, y):.2f}, "
    f"prior precision {model.prior_precision_:.3g}, "
    f"log evidence {model.log_marginal_likelihood_value_:.1f}"
)

# %%
# The variance of the logit by the distance from the nearest example
# -------------------------------------------------------------------

axis = np.linspace(-4, 5, 90)
grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
std = model.predict_std(grid, target="latent")[:, 0]
distance = np.sqrt(((grid[:, None] - X) ** 2).sum(-1)).min(1)
for low, high in ((0, 0.5), (0.5, 1), (1, 2), (2, 4), (4, 8)):
    ring = (distance >= low) & (distance < high)
    middle = np.median(std[ring])
    print(f"distance {low:3} to {high:3}: median deviation {middle:.2f}")

# %%
# The network's probability, the averaged one, and the parts of the variance
# --------------------------------------------------------------------------

parts = model.predict_uncertainty(grid)
maps = {
    "network's own p (map)": model.predict_proba(grid, "map")[:, 1],
    "averaged p (probit)": model.predict_proba(grid, "probit")[:, 1],
    "noise Λ (aleatoric)": parts.aleatoric[:, 1],
    "ignorance ΛVΛ (epistemic)": parts.epistemic[:, 1],
}
figure, axes = plt.subplots(2, 2, figsize=(7, 5.8), layout="constrained")
for ax, (title, values) in zip(axes.flat, maps.items(), strict=True):
    of_p = title.endswith(("(map)", "(probit)"))
    image = ax.pcolormesh(
        axis,
        axis,
        values.reshape(len(axis), -1),
        cmap="cividis" if of_p else "viridis",
        vmin=0 if of_p else None,
        vmax=1 if of_p else None,
    )
    figure.colorbar(image, ax=ax)
    for label, marker in ((0, "o"), (1, "^")):
        ax.scatter(
            *X[y == label].T,
            marker=marker,
            s=9,
            c="white",
            edgecolors="k",
            linewidths=0.5,
        )
    ax.set_title(title, fontsize=11)
OUTPUT.parent.mkdir(exist_ok=True)
figure.savefig(OUTPUT, dpi=150)
print(f"written: {OUTPUT}")

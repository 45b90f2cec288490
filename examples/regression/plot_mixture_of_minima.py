"""
A fan of minima in the gap
==========================

A network's loss has many minima. From eight starts two hidden layers end in
eight of them, which agree where there are data and go ways of their own where
there are none: in the gap of the sine their means are up to 1.7 apart. Each
minimum's own process knows that it does not know: the best one's standard
deviation is 1.5 there. The mixture of all counts what the others do not know,
and their disagreement, and has 2.5. On Snelson's data it is 1.3 and 1.2, as
the best minimum is one of the least sure.

One hidden layer of the default's kind, under the prior that the evidence
chooses, ends from seven of eight starts at the same evidence to 0.02 nats on
this sine: then a mixture has little to add.

Takes 25 seconds.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sk_dnn2gp import DNN2GPRegressor, MixtureRegressor
from sk_dnn2gp.plotting import PredictiveDisplay


def draw(X, y, gap, noise, title):
    """The best of eight minima, and all of them with their mixture."""
    member = DNN2GPRegressor(
        hidden_layer_sizes=(10, 10),
        prior_precision=0.1,
        noise_std=noise / y.std(),
    )
    mixture = MixtureRegressor(member, n_estimators=8, random_state=0)
    mixture.fit(X, y)
    grid = np.linspace(X.min() - 0.5, X.max() + 0.5, 300)[:, None]
    inside = np.linspace(*gap, 50)[:, None]
    figure, axes = plt.subplots(
        1, 2, figsize=(7, 3.2), sharey=True, layout="constrained"
    )
    models = (mixture.best_estimator_, mixture)
    for ax, model in zip(axes, models, strict=True):
        PredictiveDisplay.from_estimator(model, X, y, grid=grid, ax=ax)
        ax.get_legend().remove()
        std = model.predict_std(inside, "latent").max()
        print(f"{title}, {type(model).__name__}: std in the gap {std:.2f}")
    for each in mixture.estimators_:
        axes[1].plot(grid, each.predict(grid), color="C1", lw=0.8)
    axes[0].set_title("the minimum of the best evidence")
    axes[1].set_title("eight minima and their mixture")
    axes[0].set_ylim(y.min() - 2, y.max() + 2)
    figure.suptitle(title)
    plt.show()


# %%
# A sine that nobody has seen for three quarters of its period.

rng = np.random.default_rng(0)
x = np.r_[rng.uniform(-3.5, -1.2, 25), rng.uniform(1.2, 3.5, 25)]
y = np.sin(2.2 * x) + 0.1 * rng.standard_normal(50)
draw(x[:, None], y, (-1.2, 1.2), 0.1, "a sine with a gap")

# %%
# Snelson's data without 1.5 < x < 3, the paper's figure 3, where the folder of
# ``SK_DNN2GP_DATA`` has them.

file = Path(os.environ.get("SK_DNN2GP_DATA", "")) / "snelson.npz"
if file.exists():
    with np.load(file) as data:
        x, y = (data[name].ravel() for name in ("x_train", "y_train"))
    keep = (x <= 1.5) | (x >= 3)
    draw(x[keep, None].astype(float), y[keep], (1.5, 3.0), 0.286, "Snelson")

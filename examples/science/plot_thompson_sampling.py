"""
Thompson sampling: several looks at a time
==========================================

Four rounds of three looks find the narrow, higher hill of an unknown function.
Each look is the maximum of a curve drawn from the network's process: draws
differ where the data leave room, so that the looks of one round spread by
themselves, with nothing to set. ``sk_dnn2gp.integrations.BoTorchModel`` hands
the same process to BoTorch's optimisers, for inputs of many dimensions.

Takes 15 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np

from sk_dnn2gp import DNN2GPRegressor


def unknown(x):
    """Two hills; the higher one is narrow."""
    return np.exp(-((x - 2) ** 2) / 0.2) + 0.7 * np.exp(-((x + 1) ** 2) / 1.0)


grid = np.linspace(-4, 4, 400)[:, None]
looked = [-3.5, -2.0, -0.5, 1.0, 3.5]
figure, axes = plt.subplots(
    2, 2, figsize=(7, 5.4), sharex=True, sharey=True, layout="constrained"
)
for number, axis in enumerate(axes.flat):
    model = DNN2GPRegressor(
        hidden_layer_sizes=(30,),
        prior_precision=0.02,
        noise_std=0.02,
        normalize_y=False,
        random_state=0,
    ).fit(np.array(looked)[:, None], unknown(np.array(looked)))
    draws = model.sample_y(grid, 3, random_state=number, target="latent")
    new = grid[draws.argmax(axis=0), 0]
    axis.plot(grid, unknown(grid), "k--", lw=1, label="unknown function")
    axis.plot(grid, draws, lw=1)
    axis.plot(looked, unknown(np.array(looked)), "ko", ms=4, label="looks")
    axis.plot(new, draws.max(axis=0), "rv", label="next looks")
    axis.set(title=f"{len(looked)} looks", ylim=(-1.5, 3))
    looked += new.tolist()
names = axes[0, 0].get_legend_handles_labels()
figure.legend(*names, loc="outside upper center", ncols=3)
best = max(looked, key=unknown)
print(f"after {len(looked)} looks the largest value seen is")
print(f"{unknown(best):.3f} at {best:.2f}")
plt.show()

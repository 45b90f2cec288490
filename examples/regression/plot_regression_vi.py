"""
Error bars by Laplace and by variational inference
==================================================

Both posteriors open their error bars sixfold in a gap without data; the
network with weights drawn from the same posterior is not the process. Mirrors
figure 3 of Khan et al. (2019): a network of 20 units, and the Gaussian process
that it is at the minimum of its loss (Laplace) and after variational training
(VOGGN).

Takes 15 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.datasets import make_sine_with_gap
from sk_dnn2gp.inference import Variational
from sk_dnn2gp.plotting import PredictiveDisplay

X, y = make_sine_with_gap(80, random_state=0)
grid = np.linspace(X.min() - 1, X.max() + 1, 300)[:, None]
settings = {
    "hidden_layer_sizes": (20,),
    "prior_precision": 0.1,
    "noise_std": 0.3,
    "normalize_y": False,
    "random_state": 0,
}
models = {
    "DNN2GP-Laplace": DNN2GPRegressor(**settings),
    "DNN2GP-VI": DNN2GPRegressor(
        **settings, inference=Variational(max_iter=300)
    ),
}
figure, axes = plt.subplots(
    2, 2, figsize=(7, 5.4), sharex=True, sharey=True, layout="constrained"
)
laplace, vi, drawn, rest = axes.flat
for axis, (name, model) in zip((laplace, vi), models.items(), strict=True):
    model.fit(X, y)
    PredictiveDisplay.from_estimator(model, X, y, grid=grid, ax=axis)
    std = model.predict_std(grid, "latent")
    at_data = model.predict_std(X, "latent").mean()
    widest = std.max()
    axis.set_title(f"{name}\n{widest / at_data:.1f} times wider in the gap")
    axis.get_legend().remove()
    print(f"{name}: epistemic std at the data {at_data:.3f}, {widest:.3f}")
draws = models["DNN2GP-VI"].sample_network(grid, 500)[:, 0]
std = draws.std(1)
PredictiveDisplay.from_predictions(
    grid, draws.mean(1), std, np.sqrt(std**2 + 0.3**2), data=(X, y), ax=drawn
)
drawn.set(title="DNN-VI\nthe network with drawn weights", ylim=(-3, 3))
drawn.get_legend().remove()
vi.tick_params(labelbottom=True)
rest.set_axis_off()
rest.legend(*drawn.get_legend_handles_labels(), loc="center")
plt.show()

"""
The tangent kernel in GaussianProcessRegressor
==============================================

A network need not be trained to give a kernel: the tangent kernel of a random
tanh network stands in scikit-learn's own Gaussian process like any other. On a
smooth curve the RBF kernel has the larger evidence, and says so. Beside both,
the kernel of a network that was trained on these data. All three open their
error bars in the gap without data (as in figure 3 of Khan et al. 2019); the
evidence, by which one would choose, is in the titles.

Takes 3 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from sk_dnn2gp import DNN2GPRegressor, NTKKernel
from sk_dnn2gp.datasets import make_sine_with_gap
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.plotting import PredictiveDisplay

X, y = make_sine_with_gap(80, random_state=0)
grid = np.linspace(X.min() - 1, X.max() + 1, 300)[:, None]
torch.manual_seed(0)
trained = DNN2GPRegressor(
    hidden_layer_sizes=(20,), normalize_y=False, n_restarts=2, random_state=0
).fit(X, y)
kernels = {
    "RBF": ConstantKernel() * RBF(),
    "tangent kernel, random network": ConstantKernel()
    * NTKKernel(MLP(1, (50,), 1)),
    "tangent kernel, trained network": ConstantKernel()
    * NTKKernel(trained.module_),
}
figure, axes = plt.subplots(
    2, 2, figsize=(7, 5.4), sharex=True, sharey=True, layout="constrained"
)
for axis, (name, kernel) in zip(axes.flat, kernels.items(), strict=False):
    gp = GaussianProcessRegressor(kernel + WhiteKernel(0.1), random_state=0)
    gp.fit(X, y)
    mean, total = gp.predict(grid, return_std=True)
    noise = gp.kernel_.k2.noise_level
    epistemic = np.sqrt(np.maximum(total**2 - noise, 0.0))
    PredictiveDisplay.from_predictions(
        grid, mean, epistemic, total, data=(X, y), ax=axis
    )
    evidence = gp.log_marginal_likelihood_value_
    axis.set_title(f"{name}\nlog evidence {evidence:.1f}")
    axis.get_legend().remove()
    print(f"{name}: log evidence {evidence:.1f}, noise {noise**0.5:.2f}")
axes[0, 1].tick_params(labelbottom=True)
axes[1, 1].set_axis_off()
axes[1, 1].legend(*axis.get_legend_handles_labels(), loc="center")
plt.show()

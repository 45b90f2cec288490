"""
Bring your own skorch net
=========================

Trained inside ``DNN2GPRegressor`` or elsewhere, a skorch net gets the error
bars of its own Gaussian process, and its predictions stay as they are. It
comes with its optimiser, schedule, callbacks and batch size. Inside it is
trained as it would be, under the Gaussian likelihood and the prior; a trained
one goes in as ``FrozenEstimator``. The mean is the network's, as in figure 3
of Khan et al. (2019).

Takes 6 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNetRegressor
from skorch.callbacks import LRScheduler

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.datasets import make_sine_with_gap
from sk_dnn2gp.plotting import PredictiveDisplay


class Residual(torch.nn.Module):
    """A small network with a skip connection: any module will do."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.first = torch.nn.Linear(1, width)
        self.middle = torch.nn.Linear(width, width)
        self.last = torch.nn.Linear(width, 1)

    def forward(self, x):
        """Shape (n, 1) to (n, 1)."""
        h = torch.tanh(self.first(x))
        return self.last(h + torch.tanh(self.middle(h)))


X, y = make_sine_with_gap(100, random_state=0)
X, y = X.astype(np.float32), y.astype(np.float32)
net = NeuralNetRegressor(
    Residual,
    optimizer=torch.optim.Adam,
    lr=0.02,
    max_epochs=200,
    batch_size=20,
    train_split=None,
    callbacks=[LRScheduler("CosineAnnealingLR", T_max=200)],
    verbose=0,
)

# %%
# Trained here, with δ and σ chosen while it trains
# -------------------------------------------------

inside = DNN2GPRegressor(net, normalize_y=False, random_state=0).fit(X, y)
chosen = inside.prior_precision_, inside.noise_std_
print("trained here: δ = {:.3g}, σ = {:.3g}".format(*chosen))

# %%
# Trained elsewhere, used as it is
# --------------------------------

torch.manual_seed(0)
trained = net.fit(X, y[:, None])
frozen = DNN2GPRegressor(FrozenEstimator(trained), normalize_y=False).fit(X, y)
same = np.allclose(frozen.predict(X), trained.predict(X)[:, 0], atol=1e-5)
print(
    f"frozen: δ = {frozen.prior_precision_:.3g}, σ = {frozen.noise_std_:.3g}"
)
print(f"predictions as they were: {same}")

grid = np.linspace(X.min() - 1, X.max() + 1, 300, dtype=np.float32)[:, None]
figure, axes = plt.subplots(
    2, 1, figsize=(7, 6), sharex=True, sharey=True, layout="constrained"
)
for axis, (title, model) in zip(
    axes, {"trained inside": inside, "frozen": frozen}.items(), strict=True
):
    PredictiveDisplay.from_estimator(model, X, y, grid=grid, ax=axis)
    axis.set(title=title, ylim=(-4, 4))
plt.show()

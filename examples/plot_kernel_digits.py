"""
The kernel of a convolutional network on digits
===============================================

Mirrors figures 2c and 4a of Khan et al. (2019). The tangent kernel of a trained network says which
examples it holds to be alike. Sorted by class, its Gram matrix has blocks along the diagonal: a
digit is near to digits of its own class. The same network before training has hardly any.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from sk_dnn2gp import DNN2GPClassifier, NTKKernel
from sk_dnn2gp.plotting import KernelDisplay
from sk_dnn2gp.training import FirstOrder


class SmallCNN(nn.Sequential):
    """Images of shape (n, 1, 8, 8) to ten logits."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(48, 30), nn.ReLU(), nn.Linear(30, 10),
        )  # fmt: skip


# %%
# Images go straight through
# --------------------------
# X has shape (n_samples, channels, height, width), in single precision as the network is.

X, y = load_digits(return_X_y=True)
X = (X / 16 - 0.5).reshape(-1, 1, 8, 8).astype(np.float32)
model = DNN2GPClassifier(
    SmallCNN, solver=FirstOrder(max_iter=30, batch_size=100), prior_precision=1.0,
    posterior="last_layer", random_state=0,
).fit(X[:1000], y[:1000])  # fmt: skip
print(f"accuracy on new digits: {model.score(X[1000:], y[1000:]):.3f}")

# %%
# The kernel before and after training
# ------------------------------------
# The correlation form takes out that some digits have larger gradients than others.

torch.manual_seed(0)
few = slice(1000, 1250)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for axis, (title, network) in zip(
    axes, {"untrained": SmallCNN(), "trained": model.module_}.items(), strict=True
):
    K = NTKKernel(network)(X[few])
    scale = np.sqrt(np.diag(K))
    K = K / np.outer(scale, scale)
    same = y[few][:, None] == y[few]
    contrast = K[same].mean() - K[~same].mean()
    print(f"{title}: mean correlation within a class is higher by {contrast:.3f}")
    KernelDisplay.from_predictions(K, y[few], ax=axis)
    axis.set_title(f"{title}: within a class higher by {contrast:.2f}")
plt.show()

"""
Images through a convolutional network
======================================

Two thirds of a network's errors are among the tenth of the digits that its
process is least sure of. Any torch module becomes a Gaussian process, images
and all: X has the shape that the network takes, here (n_samples, channels,
height, width). The network is trained by Adam in minibatches and its last
layer is given a posterior, which costs next to nothing at any size; the prior
precision is chosen by the evidence. Mirrors the use of LeNet5 in figure 4 of
Khan et al. (2019).

Takes 6 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.training import FirstOrder


class SmallCNN(nn.Sequential):
    """Images of shape (n, 1, 8, 8) to ten logits."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        )


X, y = load_digits(return_X_y=True)
X = (X / 16 - 0.5).reshape(-1, 1, 8, 8).astype(np.float32)
model = DNN2GPClassifier(
    SmallCNN,
    solver=FirstOrder(learning_rate=3e-3, max_iter=30, batch_size=100),
    posterior="last_layer",
    link="contrast",
    random_state=0,
).fit(X[:1000], y[:1000])
print(f"accuracy on new digits {model.score(X[1000:], y[1000:]):.3f}")
print(f"prior precision chosen by the evidence {model.prior_precision_:.3g}")

# %%
# The least sure of 797 new digits, and the surest
# ------------------------------------------------

p = model.predict_proba(X[1000:])
predicted, confidence = model.classes_[p.argmax(1)], p.max(1)
wrong = predicted != y[1000:]
order = np.argsort(confidence)
among = wrong[order[:80]].sum()
print(f"errors {wrong.sum()}, of them among the least sure tenth {among}")
figure, axes = plt.subplots(2, 5, figsize=(7, 4), layout="constrained")
for row, which in zip(axes, (order[:5], order[-5:]), strict=True):
    for axis, i in zip(row, which, strict=True):
        axis.imshow(X[1000 + i, 0], cmap="gray_r")
        axis.set_title(
            f"{y[1000 + i]} taken for {predicted[i]}\np = {confidence[i]:.2f}",
            fontsize=10,
        )
        axis.set_axis_off()
figure.suptitle("least sure (above) and surest (below)")
plt.show()

"""
Digits of classes never seen, by VOGN
=====================================

The epistemic variance of a network that saw zeros and ones only tells the
other eight digits from new zeros and ones: area under the curve 0.87. Mirrors
figure 4c of Khan et al. (2019). A small convolutional network is trained by
VOGN, a variational optimiser whose every step is a Gaussian process; the
variance is that under its whole distribution (``link="mc"``).

Takes 18 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.inference import Variational
from sk_dnn2gp.training import FirstOrder


class SmallCNN(nn.Sequential):
    """Images of shape (n, 1, 8, 8) to one logit."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 3),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 1),
        )


X, y = load_digits(return_X_y=True)
X = (X / 16 - 0.5).reshape(-1, 1, 8, 8).astype(np.float32)
known = np.flatnonzero(y < 2)
train, new = known[:240], known[240:]
model = DNN2GPClassifier(
    SmallCNN,
    solver=FirstOrder(max_iter=60),
    prior_precision=1.0,
    inference=Variational(max_iter=100),
    posterior="diag",
    random_state=0,
).fit(X[train], y[train])
print(f"accuracy on new zeros and ones: {model.score(X[new], y[new]):.3f}")

# %%
# Epistemic variance of what was never seen
# -----------------------------------------

rows = np.concatenate([new, np.flatnonzero(y >= 2)])
ignorance = model.predict_uncertainty(X[rows], link="mc").epistemic[:, 1]
area = roc_auc_score(y[rows] >= 2, ignorance)
print(f"area under the curve of unseen classes {area:.3f}")
figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
axis.boxplot(
    [ignorance[y[rows] == digit] for digit in range(10)],
    positions=range(10),
    showfliers=False,
)
axis.axvspan(-0.5, 1.5, color="tab:blue", alpha=0.15, label="seen in training")
axis.set(xlabel="digit", ylabel="epistemic variance of p", yscale="log")
axis.set_title(f"area under the curve {area:.2f}")
axis.legend()
plt.show()

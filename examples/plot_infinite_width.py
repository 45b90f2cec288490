"""
The infinite network, and trained networks as they widen
========================================================

Mirrors figure 1 of Lee et al. (2018): as layers widen, trained networks approach the Gaussian
process of the infinite network. Accuracy of Adam-trained ReLU networks of growing width on digits,
mean and range over five starts, and of the process with the NNGP kernel of the same depth.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from sk_dnn2gp import NNGPClassifier, NNGPKernel

X, y = load_digits(return_X_y=True)
X = X / 16 - 0.5
train, test = slice(0, 300), slice(300, None)
infinite = NNGPClassifier(NNGPKernel(depth=1, activation="relu", sigma_w2=2.0, sigma_b2=0.1))
limit = infinite.fit(X[train], y[train]).score(X[test], y[test])

widths = [3, 10, 30, 100, 300, 1000]
scores = np.array(
    [
        [
            MLPClassifier((width,), max_iter=2000, tol=1e-3, random_state=seed)
            .fit(X[train], y[train])
            .score(X[test], y[test])
            for seed in range(5)
        ]
        for width in widths
    ]
)
figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
axis.plot(widths, scores.mean(1), "o-", color="tab:blue", label="trained networks")
axis.fill_between(widths, scores.min(1), scores.max(1), color="tab:blue", alpha=0.2)
axis.axhline(limit, color="tab:orange", linestyle="--", label="infinite width (NNGP)")
axis.set(xscale="log", xlabel="width", ylabel="accuracy")
axis.legend()
print(
    f"NNGP {limit:.3f}; trained networks", dict(zip(widths, scores.mean(1).round(3), strict=True))
)
plt.show()

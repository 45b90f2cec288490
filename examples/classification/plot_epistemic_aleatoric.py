"""
Noise and ignorance, class by class
===================================

A network that saw four eights is more than ten times as ignorant of new eights
as of other digits; given the missing examples, it is not. Mirrors figure 4d of
Khan et al. (2019): of Var[y] = Λ + Λ V Λ the first term is noise, that more
data cannot remove, the second ignorance.

Takes 12 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.plotting import UncertaintyDisplay

X, y = load_digits(return_X_y=True)
keep = y >= 5
X, y = X[keep] / 16 - 0.5, y[keep]
train, test = np.arange(400), np.arange(400, len(y))
few = np.concatenate([train[y[train] != 8], train[y[train] == 8][:4]])

figure, axes = plt.subplots(2, 1, figsize=(7, 6.4), layout="constrained")
for axis, (title, rows) in zip(
    axes,
    {"4 eights to learn from": few, "all eights": train}.items(),
    strict=True,
):
    model = DNN2GPClassifier(
        hidden_layer_sizes=(15,),
        prior_precision=1.0,
        inference="linearized-vi",
        random_state=0,
    ).fit(X[rows], y[rows])
    UncertaintyDisplay.from_estimator(model, X[test], y[test], ax=axis)
    axis.set_title(f"{title} (accuracy {model.score(X[test], y[test]):.2f})")
    parts = model.predict_uncertainty(X[test])
    eights = parts.epistemic[y[test] == 8].sum(1).mean()
    others = parts.epistemic[y[test] != 8].sum(1).mean()
    print(f"{title}: ignorance of eights {eights:.2f}, of others {others:.2f}")
plt.show()

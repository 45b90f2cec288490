"""
δ, σ and width by the evidence, in GridSearchCV
===============================================

The error on data that the search never sees is near its least where the log
marginal likelihood of the training set peaks: no validation data are needed.
Mirrors figures 5 and 6 of Khan et al. (2019).

Takes 45 seconds.
"""

# sphinx_gallery_thumbnail_number = 2

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sk_dnn2gp import (
    DNN2GPRegressor,
    TrainingSetSplit,
    marginal_likelihood_scorer,
)
from sk_dnn2gp.plotting import MarginalLikelihoodDisplay


def toy_data(n_samples, random_state):
    """The paper's toy set: three clusters, much noise in the middle one."""
    rng = np.random.default_rng(random_state)
    cluster = rng.choice(3, size=n_samples, p=[0.45, 0.1, 0.45])
    low, high = np.array([-3.5, -1.0, 1.5]), np.array([-1.5, 1.0, 3.5])
    x = rng.uniform(low[cluster], high[cluster])
    noise = np.where(cluster == 1, 1.0, 0.1) * rng.standard_normal(n_samples)
    return x[:, None], np.sin(x) + noise


X, y = toy_data(100, 0)
base = DNN2GPRegressor(
    hidden_layer_sizes=(20,),
    prior_precision=0.6,
    noise_std=1.0,
    normalize_y=False,
    random_state=0,
)

# %%
# Three lines each
# ----------------
# The scorer, the split that trains and scores on all rows, the search.
# A second metric beside the evidence is a training loss here: it falls with
# every weaker prior and every smaller noise, while the evidence has its peak.

grids = {
    "prior_precision": np.logspace(-2, 2, 13),
    "noise_std": np.logspace(-1, 0.5, 13),
    "hidden_layer_sizes": [(1,), (2,), (3,), (5,), (10,), (20,)],
}
scoring = {
    "evidence": marginal_likelihood_scorer,
    "mse": "neg_mean_squared_error",
}
figure, axes = plt.subplots(3, 1, figsize=(7, 7), layout="constrained")
for axis, (name, values) in zip(axes, grids.items(), strict=True):
    search = GridSearchCV(
        base,
        {name: values},
        scoring=scoring,
        refit="evidence",
        cv=TrainingSetSplit(),
    ).fit(X, y)
    MarginalLikelihoodDisplay.from_search(
        search, name, evidence="evidence", loss="mse", ax=axis
    )
    print(f"{name}: chosen {search.best_params_[name]}")
plt.show()

# %%
# On data that no search saw
# --------------------------
# Five data sets of the same kind: the mean evidence of each δ, the mean error
# on 1,000 new examples, and their standard errors. Where the evidence peaks,
# the error is near its least.

deltas = np.logspace(-2, 2, 9)
X_test, y_test = toy_data(1000, 99)
evidence, loss = np.empty((len(deltas), 5)), np.empty((len(deltas), 5))
for repeat in range(5):
    X, y = toy_data(100, repeat)
    for i, delta in enumerate(deltas):
        model = clone(base).set_params(prior_precision=delta).fit(X, y)
        evidence[i, repeat] = model.log_marginal_likelihood_value_
        loss[i, repeat] = np.mean((model.predict(X_test) - y_test) ** 2)
display = MarginalLikelihoodDisplay.from_predictions(
    deltas, evidence, test_loss=loss, name="prior_precision"
)
chosen = evidence.mean(1).argmax()
print(f"test error at the peak {loss[chosen].mean():.4f}")
print(f"the least test error   {loss.mean(1).min():.4f}")
plt.show()

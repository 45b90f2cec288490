"""
δ, σ and width by the evidence, in GridSearchCV
===============================================

Mirrors figures 5 and 6 of Khan et al. (2019). The log marginal likelihood is computed on the
training set; the error on data that the search never sees is near its least where it peaks.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sk_dnn2gp import DNN2GPRegressor, TrainingSetSplit, marginal_likelihood_scorer
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
X_test, y_test = toy_data(1000, 1)
base = DNN2GPRegressor(
    hidden_layer_sizes=(20,), prior_precision=0.6, noise_std=1.0, normalize_y=False, tol=1e-6,
    random_state=0,
)  # fmt: skip
grids = {
    "prior_precision": np.logspace(-2, 2, 13),
    "noise_std": np.logspace(-1, 0.5, 13),
    "hidden_layer_sizes": [1, 2, 3, 5, 10, 20, 40],
}

# %%
# Three lines each: the search, the scorer, the split that trains and scores on all rows
# --------------------------------------------------------------------------------------

figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
for axis, (name, values) in zip(axes, grids.items(), strict=True):
    search = GridSearchCV(
        base, {name: values}, scoring=marginal_likelihood_scorer, cv=TrainingSetSplit()
    ).fit(X, y)
    fits = [clone(base).set_params(**{name: value}).fit(X, y) for value in values]
    MarginalLikelihoodDisplay.from_predictions(
        values,
        search.cv_results_["mean_test_score"],
        test_loss=[np.mean((m.predict(X_test) - y_test) ** 2) for m in fits],
        name=name,
        ax=axis,
    )
    error = np.mean((search.predict(X_test) - y_test) ** 2)
    print(f"{name}: chosen {search.best_params_[name]:.3g}, test error {error:.4f}")
plt.show()

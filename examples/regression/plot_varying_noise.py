"""
Noise whose size depends on x
=============================

Where the noise grows from 0.05 to 0.8 along x, 90% intervals of constant noise
hold all of the targets on the quiet side and three in four on the loud one.
With ``noise_std="heteroscedastic"`` they hold 88% and 86%, and the density of
new targets is twice as high: the test negative log density falls from 0.79 to
0.08. The evidence says so without them: -159 against -17.

Takes 17 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.plotting import PredictiveDisplay

# %%
# A curve whose noise grows from 0.05 to 0.8, and none of it in a gap.

rng = np.random.RandomState(0)
x = np.sort(rng.uniform(0, 10, 240))
x = x[(x < 5) | (x > 6.5)]


def noise_at(x):
    return 0.05 + 0.75 / (1 + np.exp(-1.5 * (x - 5)))


y = np.sin(x) + 0.3 * x + noise_at(x) * rng.standard_normal(len(x))
X = x[:, None]
X_new = np.linspace(0, 10, 1000)[:, None]
y_new = np.sin(X_new[:, 0]) + 0.3 * X_new[:, 0]
y_new += noise_at(X_new[:, 0]) * rng.standard_normal(1000)

figure, axes = plt.subplots(
    1, 2, figsize=(7, 3.4), sharey=True, layout="constrained"
)
models = {}
for ax, noise_std in zip(axes, ("auto", "heteroscedastic"), strict=True):
    model = DNN2GPRegressor(
        noise_std=noise_std, hidden_layer_sizes=(20,), random_state=0
    ).fit(X, y)
    models[noise_std] = model
    PredictiveDisplay.from_estimator(model, X, y, grid=X_new, ax=ax)
    ax.set_title(f'noise_std="{noise_std}"')
    nll = -model.log_predictive_density(X_new, y_new).mean()
    evidence = model.log_marginal_likelihood()
    print(f"{noise_std}: evidence {evidence:.1f}, test NLL {nll:.3f}")
plt.show()

# %%
# The noise that was found, and how often intervals hold what they promise, on
# either side: the constant one is too wide on the left and too narrow on the
# right.

figure, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
ax.plot(X_new, noise_at(X_new[:, 0]), "k:", label="true noise")
for noise_std, model in models.items():
    parts = model.predict_uncertainty(X_new)
    ax.plot(X_new, np.sqrt(parts.aleatoric), label=noise_std)
    low, high = model.predict_interval(X_new, 0.9).T
    inside = (low <= y_new) & (y_new <= high)
    left = X_new[:, 0] < 5
    print(
        f"{noise_std}: 90% intervals hold {inside[left].mean():.2f} on the "
        f"left, {inside[~left].mean():.2f} on the right"
    )
ax.set(xlabel="x", ylabel="standard deviation", ylim=(0, None))
ax.legend()
plt.show()

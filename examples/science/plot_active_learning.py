"""
Active learning with epistemic variance
=======================================

Ten labels asked for where the network is most ignorant leave about half the
error of ten asked for at random. Which example to label next? The one with
the largest ``predict_std(X, "latent")``: the noise does not help to choose,
and a network without error bars has nothing else. This part of the variance
is the first term of figure 3 of Khan et al. (2019).

Takes 25 seconds.
"""

import matplotlib.pyplot as plt
import numpy as np

from sk_dnn2gp import DNN2GPRegressor
from sk_dnn2gp.training import GaussNewtonLM


def truth(x):
    """A curve with more to learn on the right."""
    return np.sin(1.5 * x) * (1 + (x > 0) * x)


rng = np.random.RandomState(0)
pool = rng.uniform(-3, 3, (200, 1))
labels = truth(pool[:, 0]) + 0.1 * rng.randn(200)
grid = np.linspace(-3, 3, 200)[:, None]


def run(choose, seed):
    """Errors on the grid while labels are asked for, one at a time."""
    known = list(np.random.RandomState(seed).permutation(200)[:6])
    errors = []
    for _ in range(10):
        model = DNN2GPRegressor(
            hidden_layer_sizes=(10,),
            prior_precision=0.1,
            noise_std=0.1,
            normalize_y=False,
            solver=GaussNewtonLM(tol=1e-3),
            random_state=0,
        ).fit(pool[known], labels[known])
        residual = model.predict(grid) - truth(grid[:, 0])
        errors.append(np.sqrt(np.mean(residual**2)))
        rng = np.random.RandomState(1000 * seed + len(known))
        known.append(choose(model, known, rng))
    return errors


def by_ignorance(model, known, rng):
    """The row of the pool with the largest epistemic standard deviation."""
    std = model.predict_std(pool, "latent")
    std[known] = 0.0
    return int(std.argmax())


def at_random(model, known, rng):
    """Any row that has no label yet."""
    return int(rng.choice(np.setdiff1d(np.arange(200), known)))


figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
for name, choose, color in (
    ("largest epistemic variance", by_ignorance, "tab:blue"),
    ("at random", at_random, "tab:orange"),
):
    curves = np.array([run(choose, seed) for seed in range(3)])
    axis.plot(np.arange(6, 16), curves.mean(0), color=color, label=name)
    axis.fill_between(
        np.arange(6, 16), curves.min(0), curves.max(0), color=color, alpha=0.2
    )
    print(f"{name}: error after 15 labels {curves[:, -1].mean():.3f}")
axis.set(xlabel="labels", ylabel="root mean squared error", yscale="log")
axis.legend()
plt.show()

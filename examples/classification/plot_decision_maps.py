"""
Maps of probability and of variance
===================================

The standard deviation of the logit is several times larger in far corners than
at the data, where the network's own probability is just as sure. Over the
plane of two half moons, as in figures 2a, 2d and 9 of Khan et al. (2019): the
probability of one class; the noise, high along the boundary wherever it runs;
the ignorance, low among the data; and the standard deviation of the logit.

Takes 1 second.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import make_moons

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.plotting import DecisionMapDisplay

X, y = make_moons(150, noise=0.25, random_state=0)
model = DNN2GPClassifier(
    hidden_layer_sizes=(10,),
    prior_precision=0.3,
    inference="linearized-vi",
    random_state=0,
).fit(X, y)
figure, axes = plt.subplots(2, 2, figsize=(7, 5.8), layout="constrained")
for axis, response in zip(
    axes.flat, ("probability", "aleatoric", "epistemic", "latent"), strict=True
):
    DecisionMapDisplay.from_estimator(
        model, X, y, response=response, margin=2.0, ax=axis
    )
    axis.set_title(response)
far = model.predict_std([[-2.5, -2.5], [4.0, 3.0]], "latent").mean()
near = model.predict_std(X, "latent").mean()
print("standard deviation of the logit")
print(f"{near:.2f} at the data, {far:.2f} in two far corners")
plt.show()

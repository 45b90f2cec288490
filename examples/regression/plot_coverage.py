"""
Do the error bars hold what they promise?
=========================================

On diabetes, intervals of 90% hold 89% of new targets, with the defaults of
``DNN2GPRegressor``. For each nominal probability the picture shows the part of
new targets inside the central interval: on the diagonal an error bar is
trustworthy. The epistemic part alone, without the noise, is far too narrow for
new observations, as figure 3 of Khan et al. (2019) has it: its bands are of
the curve. For classifiers scikit-learn's ``CalibrationDisplay`` does the same.

Takes 2 seconds.
"""

import matplotlib.pyplot as plt
from sklearn.calibration import CalibrationDisplay
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.plotting import CoverageDisplay

X, y = load_diabetes(return_X_y=True)
X, X_new, y, y_new = train_test_split(scale(X), y, random_state=0)
model = DNN2GPRegressor(
    hidden_layer_sizes=(10,), n_restarts=4, random_state=0
).fit(X, y)
figure, axes = plt.subplots(1, 2, figsize=(7, 3.6), layout="constrained")
display = CoverageDisplay.from_estimator(
    model, X_new, y_new, name="with noise", ax=axes[0]
)
curve = model.predict_std(X_new, "latent")
narrow = CoverageDisplay.from_predictions(y_new, model.predict(X_new), curve)
plt.close(narrow.figure_)
axes[0].plot(
    narrow.nominal,
    narrow.empirical,
    "--",
    color="tab:orange",
    label="curve alone",
)
axes[0].legend()
axes[0].set_title("regression: diabetes")
nearest = abs(display.nominal - 0.9).argmin()
print(f"coverage of 90% intervals: {display.empirical[nearest]:.2f}")

X, y = load_breast_cancer(return_X_y=True)
X, X_new, y, y_new = train_test_split(scale(X), y, random_state=0)
classifier = DNN2GPClassifier(
    hidden_layer_sizes=(5,),
    prior_precision=1.0,
    inference="linearized-vi",
    random_state=0,
).fit(X, y)
CalibrationDisplay.from_estimator(
    classifier, X_new, y_new, n_bins=5, ax=axes[1]
)
axes[1].set(xlabel="predicted probability", ylabel="fraction of positives")
axes[1].set_title("classification: breast cancer")
plt.show()

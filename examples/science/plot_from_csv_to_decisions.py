"""
From a CSV to decisions under uncertainty
=========================================

Whom to invite to a check-up: a rule that weighs how likely a bad year is costs
less than one that looks at the prediction alone, by a fifth, and a third less
than inviting everybody. This page goes the whole way: reading a file, a
pipeline, the fit, intervals, a search by the evidence, what the model does not
know, saving, serving.

Takes 7 seconds.
"""

import json
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import sk_dnn2gp
from sk_dnn2gp import (
    DNN2GPRegressor,
    TrainingSetSplit,
    marginal_likelihood_scorer,
)
from sk_dnn2gp.plotting import CoverageDisplay

# %%
# The file
# --------
# 442 people with diabetes: age in years, sex (1 or 2), body mass index, blood
# pressure and six blood values; the target is the progress of the disease one
# year on. The two files come with scikit-learn, in the units of the clinic.

NAMES = ["age", "sex", "bmi", "pressure", "s1", "s2", "s3", "s4", "s5", "s6"]
folder = files("sklearn.datasets.data")
with as_file(folder / "diabetes_data_raw.csv.gz") as path:
    table = pd.read_csv(path, sep=r"\s+", names=NAMES)
with as_file(folder / "diabetes_target.csv.gz") as path:
    progress = pd.read_csv(path, names=["progress"])["progress"]
people, later, y, y_later = train_test_split(table, progress, random_state=0)
print(people.describe().loc[["min", "mean", "max"]].round(1).T)

# %%
# A pipeline, and a fit
# ---------------------
# Columns to numbers; the network standardises them itself. Its prior precision
# and its noise are chosen inside ``fit`` by the marginal likelihood.


def columns(table):
    """Sex as 0 and 1; blood values whose logarithm is nearer to a normal."""
    return table.assign(sex=table["sex"] - 1, s6=np.log(table["s6"]))[NAMES]


def pipeline(**settings):
    """The columns, and a network behind them."""
    network = DNN2GPRegressor(random_state=0, **settings)
    return make_pipeline(FunctionTransformer(columns), network)


model = pipeline(hidden_layer_sizes=(5,)).fit(people, y)
mean, std = model.predict(later, return_std=True)
inside = np.abs(y_later - mean) < norm.ppf(0.95) * std
print(f"intervals of 90% hold {inside.mean():.0%} of the later people")

# %%
# How wide a network? The evidence says
# -------------------------------------
# A search without validation data: each width is scored on its own training
# set, by the log marginal likelihood.

search = GridSearchCV(
    pipeline(),
    {"dnn2gpregressor__hidden_layer_sizes": [(2,), (5,), (10,)]},
    scoring=marginal_likelihood_scorer,
    cv=TrainingSetSplit(),
).fit(people, y)
for setting, evidence in zip(
    search.cv_results_["params"],
    search.cv_results_["mean_test_score"],
    strict=True,
):
    print(*setting.values(), f"log evidence {evidence:.1f}")
model = search.best_estimator_
network = model[-1]

# %%
# A decision
# ----------
# Above 200 the year is a bad one. A check-up costs 1; a bad year without one
# costs 5. The cheapest decision invites whoever is above 200 with a
# probability of more than 1/5: that takes an error bar. A prediction alone can
# only ask whether its mean is above 200. All 442 people are judged, each by a
# model that has not seen them.

means, stds = np.empty((2, len(table)))
for train, test in KFold(5, shuffle=True, random_state=0).split(table):
    fold = clone(model).fit(table.iloc[train], progress.iloc[train])
    means[test], stds[test] = fold.predict(table.iloc[test], return_std=True)
chance = norm.sf(200, means, stds)
bad = progress.to_numpy() > 200
invited = {
    "nobody": np.zeros(len(table), bool),
    "everybody": np.ones(len(table), bool),
    "mean above 200": means > 200,
    "chance above 1/5": chance > 1 / 5,
}
for rule, who in invited.items():
    cost = np.where(who, 1, 5 * bad).mean()
    print(f"{rule:18s} invites {who.mean():4.0%}, costs {cost:.2f} a person")

figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
mean, std = model.predict(later, return_std=True)
order = np.argsort(mean)
rows = np.arange(len(order))
axes[0].errorbar(
    rows, mean[order], 2 * std[order], fmt="none", ecolor="tab:blue", alpha=0.3
)
axes[0].plot(rows, y_later.to_numpy()[order], "k.", ms=3)
axes[0].axhline(200, color="tab:orange")
axes[0].set(xlabel="people, by their mean", ylabel="progress")
axes[0].set_title("two standard deviations")
CoverageDisplay.from_estimator(model, later, y_later, ax=axes[1])
axes[1].set_title("held where promised?")
plt.show()

# %%
# What the model does not know
# ----------------------------
# The variance has two parts: noise, which more people would not remove, and
# ignorance, which they would. Someone unlike all whom it has seen has much of
# the second; that is a reason to ask a physician, not the model.

limit = np.quantile(network.predict_std(columns(people), "latent"), 0.95)
strange = people.iloc[[0]].assign(age=95, bmi=60.0, pressure=160.0)
for name, who in (("a later person", later.iloc[[0]]), ("strange", strange)):
    parts = network.predict_uncertainty(columns(who))
    noise, ignorance = parts.aleatoric[0] ** 0.5, parts.epistemic[0] ** 0.5
    print(f"{name}: noise {noise:.0f}, ignorance {ignorance:.0f}")
print(f"of those it has seen, one in twenty has more than {limit:.0f}")

# %%
# Saving and serving
# ------------------
# A file of numbers without code in it, read once where answers are given. The
# columns are code of yours, and stay so.

folder = Path(tempfile.mkdtemp())
sk_dnn2gp.save(network, folder / "progress.dnn2gp")
served = sk_dnn2gp.load(folder / "progress.dnn2gp")


def answer(request):
    """JSON of one person to JSON of a mean, an error bar and a decision."""
    row = columns(pd.DataFrame([json.loads(request)]))
    mean, std = served.predict(row, return_std=True)
    ignorance = served.predict_std(row, "latent")
    reply = {
        "progress": round(float(mean[0])),
        "plus_or_minus": round(float(2 * std[0])),
        "invite": bool(norm.sf(200, mean[0], std[0]) > 1 / 5),
        "ask_a_physician": bool(ignorance[0] > limit),
    }
    return json.dumps(reply)


print(answer(later.iloc[0].to_json()))
print(answer(strange.iloc[0].to_json()))

"""scikit-learn's own checks, none expected to fail."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor
from sk_dnn2gp.inference import SWAG, Variational
from sk_dnn2gp.posterior import SubsetOfData, SubsetOfWeights
from sk_dnn2gp.training import LBFGS, FirstOrder, GaussNewtonLM, NewtonCG

SMALL = {"hidden_layer_sizes": (5,), "n_restarts": 1}
REGRESSION = {**SMALL, "prior_precision": 1.0, "noise_std": 0.3}
CLASSIFICATION = {**SMALL, "prior_precision": 1.0}
# Variational training begins at the minimum that was found, and carries its error on: the checks
# compare numbers to 1e-7, so that minimum is asked for to more digits than the default's.
EXACT = NewtonCG(tol=1e-12)
VI = {"inference": Variational(max_iter=20), "solver": EXACT}


@pytest.mark.filterwarnings("ignore")  # the checks fit odd data on purpose
@parametrize_with_checks([DNN2GPRegressor(**SMALL), DNN2GPClassifier(**SMALL)])
def test_small_estimators(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        DNN2GPRegressor(**REGRESSION, posterior="diag"),
        DNN2GPRegressor(**REGRESSION, posterior="last_layer"),
        DNN2GPRegressor(**REGRESSION, posterior="independent"),
        DNN2GPRegressor(**REGRESSION, posterior=SubsetOfWeights(("1.weight",))),
        DNN2GPRegressor(**REGRESSION, posterior=SubsetOfData(10, random_state=0)),
        # Batches of weighted rows are others than those of repeated ones: steps too short to tell.
        DNN2GPRegressor(**REGRESSION, inference=SWAG(max_iter=2, learning_rate=1e-12)),
        DNN2GPRegressor(**REGRESSION, **VI),
        DNN2GPRegressor(**REGRESSION, **VI, posterior="diag"),
        DNN2GPClassifier(**CLASSIFICATION, **VI),
        DNN2GPClassifier(**CLASSIFICATION, **VI, posterior="diag"),
        DNN2GPClassifier(**CLASSIFICATION, inference="linearized-vi"),
        DNN2GPClassifier(**CLASSIFICATION, posterior="diag", link="mc"),
        DNN2GPClassifier(**CLASSIFICATION, posterior="last_layer", link="map"),
        DNN2GPClassifier(**CLASSIFICATION, posterior="independent", link="contrast"),
    ]
)
def test_other_posteriors(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        DNN2GPRegressor(**REGRESSION, solver=FirstOrder(max_iter=100)),
        DNN2GPRegressor(**REGRESSION, solver=LBFGS(tol=1e-10)),
        DNN2GPRegressor(**REGRESSION, solver=GaussNewtonLM(tol=1e-10)),
        DNN2GPClassifier(**CLASSIFICATION, solver=LBFGS(tol=1e-10)),
        DNN2GPClassifier(**CLASSIFICATION, solver=GaussNewtonLM(tol=1e-10)),
    ]
)
def test_other_solvers(estimator, check):
    check(estimator)

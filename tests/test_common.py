"""scikit-learn's own checks, none expected to fail."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor

VI = {"inference": "vi", "vi_epochs": 20, "tol": 1e-12}
SMALL = {"hidden_layer_sizes": (5,), "n_restarts": 1}


@pytest.mark.filterwarnings("ignore")  # the checks fit odd data on purpose
@parametrize_with_checks([DNN2GPRegressor(**SMALL), DNN2GPClassifier(**SMALL)])
def test_small_estimators(estimator, check):
    check(estimator)


# Variational training begins at the minimum that was found, and carries its error on: the checks
# compare numbers to 1e-7, so that minimum is asked for to more digits than the default's.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        DNN2GPRegressor(**SMALL, posterior="diag", prior_precision=1.0, noise_std=0.3),
        DNN2GPRegressor(**SMALL, posterior="last_layer", prior_precision=1.0, noise_std=0.3),
        DNN2GPRegressor(
            **SMALL, prior_precision=1.0, noise_std=0.3, inference="vi", vi_epochs=20, tol=1e-12
        ),
        DNN2GPClassifier(**SMALL, prior_precision=1.0, **VI),
        DNN2GPClassifier(**SMALL, prior_precision=1.0, inference="linearized-vi"),
        DNN2GPClassifier(**SMALL, posterior="diag", prior_precision=1.0, link="mc"),
        DNN2GPClassifier(**SMALL, posterior="last_layer", prior_precision=1.0, link="map"),
    ]
)
def test_other_posteriors(estimator, check):
    check(estimator)

"""DNN2GPClassifier as scikit-learn users meet it: labels, weights, networks, meta-estimators."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import StackingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet, NeuralNetClassifier
from torch import nn

from sk_dnn2gp import DNN2GPClassifier
from sk_dnn2gp.networks import MLP
from sk_dnn2gp.posterior import SubsetOfData
from sk_dnn2gp.training import FirstOrder, NewtonCG

SMALL = {"hidden_layer_sizes": (4,), "prior_precision": 1.0, "random_state": 0}


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True, as_frame=True)
    X = (X - X.mean()) / X.std()
    return X[::2], y[::2].map(dict(enumerate(["setosa", "versicolor", "virginica"])))


def binary(n=40, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2))
    return X, np.where(X[:, 0] + 0.5 * rng.standard_normal(n) > 0, "yes", "no")


def test_string_labels_and_probabilities(iris):
    X, y = iris
    model = DNN2GPClassifier(**SMALL).fit(X, y)
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert model.score(X, y) > 0.9
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.log(p), model.predict_log_proba(X), rtol=1e-10)
    assert model.decision_function(X).shape == (len(X), 3)
    assert model.predict_std(X, "latent").shape == (len(X), 3)
    assert (model.predict_std(X, "y") > model.predict_std(X, "p")).all()


def test_probabilities_do_not_depend_on_the_other_rows():
    X, y = binary()
    for link in ("probit", "mc", "map"):
        model = DNN2GPClassifier(**SMALL, link=link).fit(X, y)
        together = model.predict_proba(X)
        alone = np.vstack([model.predict_proba(x[None]) for x in X[:5]])
        np.testing.assert_allclose(alone, together[:5], rtol=1e-10)


def test_the_gp_is_less_sure_away_from_the_data():
    X, y = binary()
    model = DNN2GPClassifier(**SMALL).fit(X, y)
    V = model.predict_std([[0.5, 0.0], [50.0, 0.0]], target="latent")
    assert V[1] > V[0]
    sure, careful = (model.predict_proba([[50.0, 0.0]], link).max() for link in ("map", "probit"))
    assert careful < sure


def test_class_weight_is_sample_weight():
    X, y = binary()
    options = {**SMALL, "solver": NewtonCG(tol=1e-10)}
    by_class = DNN2GPClassifier(**options, class_weight={"no": 3.0, "yes": 1.0}).fit(X, y)
    by_sample = DNN2GPClassifier(**options).fit(X, y, sample_weight=np.where(y == "no", 3.0, 1.0))
    np.testing.assert_array_equal(by_class.predict_proba(X), by_sample.predict_proba(X))
    plain = DNN2GPClassifier(**options).fit(X, y)
    assert by_class.predict_proba(X)[:, 0].mean() > plain.predict_proba(X)[:, 0].mean()
    DNN2GPClassifier(**SMALL, class_weight="balanced").fit(X, y)


def test_auto_is_at_least_the_best_of_a_grid():
    X, y = binary(60)
    auto = DNN2GPClassifier(hidden_layer_sizes=(4,), random_state=0).fit(X, y)
    options = {"hidden_layer_sizes": (4,), "random_state": 0, "n_restarts": 1}
    grid = max(
        DNN2GPClassifier(**options, prior_precision=d).fit(X, y).log_marginal_likelihood_value_
        for d in np.logspace(-2, 2, 9)
    )
    assert auto.log_marginal_likelihood_value_ >= grid - 0.005 * abs(grid)


def test_evidence_of_other_data():
    X, y = binary()
    model = DNN2GPClassifier(**SMALL, solver=NewtonCG(tol=1e-10)).fit(X, y)
    assert model.log_marginal_likelihood(X=X, y=y) == pytest.approx(
        model.log_marginal_likelihood_value_, rel=1e-9
    )
    with pytest.raises(ValueError, match="labels that fit has not seen"):
        model.log_marginal_likelihood(X=X, y=np.full(len(X), "maybe"))


def test_to_gaussian_process():
    X, y = binary()
    model = DNN2GPClassifier(**SMALL, solver=NewtonCG(tol=1e-10)).fit(X, y)
    gp = model.to_gaussian_process()
    X_new = X[:7] + 0.3
    mean, std = gp.predict(X_new, return_std=True)
    np.testing.assert_allclose(std, model.predict_std(X_new, "latent")[:, 0], rtol=1e-6)
    J_w = model.linear_model_.linearization.jvp(torch.tensor(X_new), model.linear_model_.weights)
    np.testing.assert_allclose(mean, J_w[:, 0].numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="posterior='diag'"):
        DNN2GPClassifier(**SMALL, posterior="diag").fit(X, y).to_gaussian_process()


def test_several_logits_are_no_scikit_learn_process(iris):
    with pytest.raises(ValueError, match="is singular"):
        DNN2GPClassifier(**SMALL).fit(*iris).to_gaussian_process()


class Small(nn.Module):
    """Two convolutions for 8 × 8 images, in single precision."""

    def __init__(self, n_outputs=3):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, n_outputs)
        )

    def forward(self, X):
        return self.body(X)


def test_images_go_straight_through_a_convolutional_network():
    X, y = load_digits(n_class=3, return_X_y=True)
    X = X.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    model = DNN2GPClassifier(
        Small, solver=FirstOrder(max_iter=150), prior_precision=1.0, random_state=0
    ).fit(X[:150], y[:150])
    assert next(model.module_.parameters()).dtype == torch.float32
    assert model.score(X[150:300], y[150:300]) > 0.9
    assert model.posterior_.covariance(torch.tensor(X[:2])).dtype == torch.float64
    assert np.isfinite(model.log_marginal_likelihood_value_)


def test_a_part_of_the_data_for_the_posterior():
    X, y = binary(80)
    model = DNN2GPClassifier(**SMALL, posterior=SubsetOfData(20)).fit(X, y)
    whole = DNN2GPClassifier(**SMALL).fit(X, y)
    assert "SubsetOfData(n_samples=20)" in repr(model)
    assert len(model.posterior_indices_) == len(np.unique(model.posterior_indices_)) == 20
    assert whole.posterior_indices_ is None
    np.testing.assert_array_equal(model.linear_model_.X.numpy(), X[model.posterior_indices_])
    # The network is the same, trained on everything; the posterior knows less.
    np.testing.assert_allclose(
        model.predict_proba(X, "map"), whole.predict_proba(X, "map"), rtol=1e-9
    )
    assert (model.predict_std(X, "latent") >= whole.predict_std(X, "latent")).all()
    assert model.gradient_norm_ == pytest.approx(whole.gradient_norm_, abs=1e-9)


def test_two_logits_of_a_users_network_are_a_softmax():
    X, y = binary()
    one = DNN2GPClassifier(MLP(2, (3,), 1), prior_precision=1.0).fit(X, y)
    two = DNN2GPClassifier(MLP(2, (3,), 2), prior_precision=1.0).fit(X, y)
    assert one.linear_model_.noise_factor.shape[1:] == (1, 1)
    assert two.linear_model_.noise_factor.shape[1:] == (2, 2)
    for model in (one, two):
        assert model.decision_function(X).shape == (len(X),)
        assert ((model.decision_function(X) > 0) == (model.predict(X) == "yes")).all()
        f = model.module_(torch.tensor(X)).detach()
        p = torch.sigmoid(f)[:, 0] if f.shape[1] == 1 else torch.softmax(f, 1)[:, 1]
        np.testing.assert_allclose(model.predict_proba(X, "map")[:, 1], p, rtol=1e-12)


class WithSoftmax(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 1 if isinstance(last, nn.Sigmoid) else 2), last)

    def forward(self, X):
        return self.body(X)


@pytest.mark.parametrize("last", [nn.Softmax(dim=-1), nn.Sigmoid()], ids=str)
def test_probabilities_are_refused_as_outputs(last):
    X, y = binary()
    with pytest.raises(ValueError, match="remove the softmax or sigmoid"):
        DNN2GPClassifier(WithSoftmax(last).double()).fit(X, y)


def test_skorch_nets_trained_and_frozen():
    X, y = binary(60)
    net = NeuralNet(
        MLP, nn.MSELoss, module__n_features=2, module__hidden_layer_sizes=(4,),
        module__n_outputs=1, optimizer=torch.optim.Adam, lr=0.05, max_epochs=40, verbose=0,
    )  # fmt: skip
    model = DNN2GPClassifier(net, prior_precision=1.0, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.8
    classifier = NeuralNetClassifier(
        MLP, criterion=nn.CrossEntropyLoss, module__n_features=2, module__hidden_layer_sizes=(4,),
        module__n_outputs=2, lr=0.1, max_epochs=40, verbose=0, train_split=None,
    ).fit(X, (y == "yes").astype(np.int64))  # fmt: skip
    frozen = DNN2GPClassifier(FrozenEstimator(classifier), prior_precision=2.0).fit(X, y)
    with torch.no_grad():
        f = classifier.module_(torch.tensor(X))
    np.testing.assert_allclose(
        frozen.predict_proba(X, "map"), torch.softmax(f, 1).numpy(), rtol=1e-12
    )


def test_at_home_among_meta_estimators(iris):
    X, y = iris
    pipe = make_pipeline(StandardScaler(), DNN2GPClassifier(**SMALL))
    scores = ["accuracy", "neg_log_loss"]
    results = cross_validate(pipe, X, y, cv=2, scoring=scores)
    assert np.isfinite(results["test_neg_log_loss"]).all()
    search = GridSearchCV(
        pipe, {"dnn2gpclassifier__prior_precision": [0.3, 30.0]}, scoring=scores,
        refit="neg_log_loss", cv=2,
    ).fit(X, y)  # fmt: skip
    assert search.best_params_ == {"dnn2gpclassifier__prior_precision": 0.3}
    CalibratedClassifierCV(DNN2GPClassifier(**SMALL), cv=2).fit(X, y).predict_proba(X)
    stack = StackingClassifier(
        [("gp", DNN2GPClassifier(**SMALL)), ("linear", LogisticRegression())], cv=2
    )
    assert stack.fit(X, y).score(X, y) > 0.9


def test_pickle_clone_and_reproducibility():
    X, y = binary()
    model = DNN2GPClassifier(**SMALL, link="mc").fit(X, y)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X)
    )
    np.testing.assert_array_equal(clone(model).fit(X, y).predict_proba(X), model.predict_proba(X))


def test_samples_have_the_posterior_moments():
    X, y = binary()
    model = DNN2GPClassifier(**SMALL).fit(X, y)
    draws = model.sample_y(X[:3], 20_000, target="latent")[:, 0]
    std = model.predict_std(X[:3], "latent")[:, 0]
    # Standard errors: of a standard deviation 1/√(2n) of it; five of them.
    np.testing.assert_allclose(draws.std(1), std, rtol=5 / np.sqrt(40_000))


def test_bad_input(iris):
    X, y = binary()
    model = DNN2GPClassifier(**SMALL)
    with pytest.raises(ValueError, match="one class only, 'yes'"):
        model.fit(X, np.full(len(X), "yes"))
    with pytest.raises(ValueError, match="one class only"):
        model.fit(X, y, sample_weight=(y == "no").astype(float))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(X > 1, np.nan, X), y)
    with pytest.raises(ValueError, match="dim 4"):
        model.fit(np.zeros((40, 1, 2, 2)), y)
    with pytest.raises(ValueError, match=r"shape \(n_samples, 3\)"):
        DNN2GPClassifier(MLP(4, (3,), 5), prior_precision=1.0).fit(*iris)
    with pytest.raises(ValueError, match="Unknown label type"):
        model.fit(X, X[:, 0])
    with pytest.raises(ValueError, match="does not take X"):
        DNN2GPClassifier(MLP(3, (3,), 1), prior_precision=1.0).fit(X, y)
    with pytest.raises(ValueError, match="must return a tensor of logits"):
        DNN2GPClassifier(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()).fit(X, y)
    fitted = model.fit(X, y)
    with pytest.raises(ValueError, match="link must be 'auto' or one of"):
        fitted.predict_proba(X, "logit")
    with pytest.raises(ValueError, match="target must be"):
        fitted.predict_std(X, "f")


def test_a_class_with_one_example():
    X, y = binary()
    y = y.astype(object)
    y[0] = "rare"
    model = DNN2GPClassifier(**SMALL).fit(X, y.astype(str))
    assert model.classes_.tolist() == ["no", "rare", "yes"]
    assert np.isfinite(model.predict_proba(X)).all()

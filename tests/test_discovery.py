"""Tools that walk a package find the estimators, and the HTML display leads to their pages."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    RegressorMixin,
    TransformerMixin,
    clone,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr
from sklearn.utils.discovery import all_estimators

import sk_dnn2gp
from sk_dnn2gp import DNN2GPClassifier, DNN2GPRegressor, NTKFeatures

API = Path(__file__).parents[1] / "docs" / "api.rst"
ADDRESS = "https://pages.example/stable"


def found(kind=BaseEstimator):
    """What scikit-learn's ``all_estimators`` does in its own package, done in this one."""
    classes = {}
    for info in pkgutil.walk_packages(sk_dnn2gp.__path__, "sk_dnn2gp."):
        if "._" in info.name:
            continue
        for name, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            ours = cls.__module__.startswith("sk_dnn2gp.") and not name.startswith("_")
            if ours and issubclass(cls, kind) and not inspect.isabstract(cls):
                classes[name] = cls
    return classes


def listed():
    """Full names in the reference's tables."""
    return {f"sk_dnn2gp.{n}" for n in re.findall(r"^   ([A-Za-z_.0-9]+)$", API.read_text(), re.M)}


def test_a_walk_finds_the_estimators_by_kind():
    assert {"DNN2GPRegressor", "MixtureRegressor", "NNGPRegressor"} == set(found(RegressorMixin))
    assert {"DNN2GPClassifier", "MixtureClassifier", "NNGPClassifier"} == set(
        found(ClassifierMixin)
    )
    assert {"NTKFeatures", "NNGPFeatures"} == set(found(TransformerMixin))


@pytest.mark.parametrize("kind", [RegressorMixin, ClassifierMixin])
def test_what_is_found_is_made_without_arguments_and_cloned(kind):
    for cls in found(kind).values():
        assert clone(cls()).get_params(deep=False) == cls().get_params(deep=False)


def test_a_walk_runs_nothing_and_warns_of_nothing():
    code = (
        "import importlib, pkgutil, sk_dnn2gp\n"
        "for info in pkgutil.walk_packages(sk_dnn2gp.__path__, 'sk_dnn2gp.'):\n"
        "    importlib.import_module(info.name)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_scikit_learns_own_listing_is_as_it_was():
    assert not {name for name, cls in all_estimators() if cls.__module__.startswith("sk_dnn2gp")}


PUBLIC = [cls for name, cls in found().items() if name not in ("BaseDNN2GP",)]


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_the_link_of_every_class_is_a_page_of_the_reference(cls, monkeypatch):
    monkeypatch.setenv("SK_DNN2GP_DOCS", ADDRESS + "/")
    made = cls.__new__(cls)
    if cls.__name__ == "NTKFeatures":
        made.network = None
    link = made._get_doc_link()
    assert link.startswith(f"{ADDRESS}/generated/")
    assert link.removeprefix(f"{ADDRESS}/generated/").removesuffix(".html") in listed()


@pytest.mark.parametrize("made", [DNN2GPRegressor(), DNN2GPClassifier()])
def test_html_display_has_the_link(made, monkeypatch):
    monkeypatch.setenv("SK_DNN2GP_DOCS", ADDRESS)
    assert f'href="{made._get_doc_link()}"' in estimator_html_repr(make_pipeline(made))


def test_without_an_address_there_is_no_link(monkeypatch):
    monkeypatch.delenv("SK_DNN2GP_DOCS", raising=False)
    monkeypatch.setattr("sk_dnn2gp._utils.documentation.ADDRESS", "")
    assert DNN2GPRegressor()._get_doc_link() == ""
    text = estimator_html_repr(make_pipeline(StandardScaler(), DNN2GPRegressor()))
    assert "Documentation for StandardScaler" in text
    assert "Documentation for DNN2GPRegressor" not in text


def test_a_class_of_someone_else_does_not_lead_here(monkeypatch):
    class Mine(NTKFeatures):
        pass

    monkeypatch.setenv("SK_DNN2GP_DOCS", ADDRESS)
    assert Mine(None)._get_doc_link() == ""

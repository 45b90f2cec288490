"""Every public class and function is documented in numpydoc's form."""

import importlib
import inspect
import pkgutil

import pytest
from numpydoc.validate import validate

import sk_dnn2gp

# numpydoc's codes of what must be there: summary, parameters (all, no others, in order, with
# descriptions), returns. Layout of the first line and extended summaries are left to the writer.
REQUIRED = {"GL08", "SS01", "PR01", "PR02", "PR03", "RT01"}


INHERITED = {"get_params", "set_params", "diag", "is_stationary"}

# Modules whose names users import; the walk's own rooms (training, tuning) are for its builders.
INTERNAL = {"training", "tuning"}


def public_objects():
    for info in pkgutil.iter_modules(sk_dnn2gp.__path__):
        if info.name.startswith("_") or info.name in INTERNAL:
            continue
        module = importlib.import_module(f"sk_dnn2gp.{info.name}")
        for name in getattr(module, "__all__", []):
            thing = getattr(module, name)
            # A class without an __init__ of its own has no parameters of its own to document.
            bare = inspect.isclass(thing) and "__init__" not in vars(thing)
            bare = bare or getattr(thing, "_is_protocol", False)
            if (inspect.isclass(thing) and not bare) or inspect.isfunction(thing):
                yield f"{thing.__module__}.{thing.__qualname__}"


@pytest.mark.parametrize("name", sorted(set(public_objects())))
def test_docstring(name):
    if not name.startswith("sk_dnn2gp"):
        return
    found = [(code, text) for code, text in validate(name)["errors"] if code in REQUIRED]
    assert not found


@pytest.mark.parametrize("name", sk_dnn2gp.__all__)
def test_top_level_names_have_an_example_and_their_methods_are_documented(name):
    thing = getattr(sk_dnn2gp, name)
    if not inspect.isclass(thing):
        return
    assert "Examples\n" in inspect.getdoc(thing)
    for attribute, member in vars(thing).items():
        if attribute in INHERITED:  # scikit-learn documents them
            continue
        if inspect.isfunction(member) and not attribute.startswith("_"):
            path = f"{thing.__module__}.{name}.{attribute}"
            found = [(c, text) for c, text in validate(path)["errors"] if c in REQUIRED]
            assert not found, path

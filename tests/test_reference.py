"""The API reference lists every public name."""

import importlib
import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[1] / "docs" / "api.rst"
MODULES = [
    "", "training", "inference", "posterior", "model_selection", "kernels", "plotting", "datasets",
    "optim", "linearize", "linear_model", "likelihoods", "evidence", "networks", "exceptions",
]  # fmt: skip
# A table of names, a name that scikit-learn owns, and a string.
ELSEWHERE = {
    "networks.ACTIVATIONS", "exceptions.ConvergenceWarning", "__version__",
    "posterior.GaussianWeights",  # as optim.GaussianWeights
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module):
    listed = set(re.findall(r"^   ([\w.]+)$", REFERENCE.read_text(encoding="utf-8"), re.M))
    top = importlib.import_module("sk_dnn2gp")
    found = importlib.import_module(f"sk_dnn2gp.{module}" if module else "sk_dnn2gp")
    for name in found.__all__:
        full = f"{module}.{name}" if module else name
        at_top = getattr(top, name, None) is getattr(found, name)
        assert full in listed or full in ELSEWHERE or (at_top and name in listed), full

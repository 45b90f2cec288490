"""Imports go only to a lower room (docs/architecture.rst), and a bare import needs no extra."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sk_dnn2gp

ROOT = Path(sk_dnn2gp.__file__).parent
LEVELS = {
    0: ("_linalg", "_memory", "_random", "_threads", "_version", "datasets", "exceptions"),
    1: ("likelihoods", "networks", "linearize", "_links"),
    2: ("dual", "optim"),
    3: ("posterior", "evidence"),
    4: ("training", "tuning", "kernels", "_linearized_vi"),
    5: ("_source", "_prior_groups", "_fitting", "_vi", "_checks", "_base"),
    6: ("_regressor", "_classifier", "_nngp"),
    7: ("model_selection", "plotting"),
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}
# Rooms of one level that stand in a row: each may use those before it.
ORDER = (
    "_linalg",
    "exceptions",
    "dual",
    "optim",
    "posterior",
    "evidence",
    "training",
    "tuning",
    "_source",
    "_prior_groups",
    "_fitting",
    "_vi",
    "_checks",
    "_base",
    "_regressor",
    "_classifier",
    "model_selection",
    "plotting",
)


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from [node.module.split(".")[0]] if node.module else (a.name for a in node.names)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    here = room(path)
    if here == "__init__":
        return
    assert here in LEVEL, f"{here} has no level: add it to the table above"
    for other in imported_rooms(path):
        if other == here:
            continue
        in_a_row = here in ORDER and other in ORDER and ORDER.index(other) < ORDER.index(here)
        assert LEVEL[other] < LEVEL[here] or (LEVEL[other] == LEVEL[here] and in_a_row), (
            f"{here} (level {LEVEL[here]}) imports {other} (level {LEVEL[other]})"
        )


def test_public_names_are_importable():
    for name in sk_dnn2gp.__all__:
        assert hasattr(sk_dnn2gp, name)


def test_importing_draws_in_no_extra():
    code = "import sys, sk_dnn2gp; print('matplotlib' in sys.modules, 'pandas' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split()[0] == "False"

"""Imports go only to a lower room (docs/architecture.rst), and never in a circle of files."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sk_dnn2gp

ROOT = Path(sk_dnn2gp.__file__).parent
# From the ground up: a file imports from rooms further left, or from its own.
ROOMS = (
    "_version", "_utils", "exceptions", "datasets", "predictive", "likelihoods", "links",
    "networks", "linearize", "linear_model", "posterior", "optim", "training", "evidence",
    "kernels", "inference", "estimators", "model_selection", "plotting", "persistence",
    "integrations", "",
)  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path):
    """Dotted name below the package; that of a package is its __init__'s."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in FILES}


def imported(path):
    """Names of the package's files that a file imports from."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
        base = ".".join(part for part in base if part)
        for alias in node.names:
            inner = f"{base}.{alias.name}".lstrip(".")
            yield inner if inner in NAMES else base


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    room = name_of(path).split(".")[0]
    assert room in ROOMS, f"{room} has no place: add it to the table above"
    for other in imported(path):
        there = other.split(".")[0]
        assert ROOMS.index(there) <= ROOMS.index(room), f"{room} imports {there}, a higher room"


def test_no_file_imports_itself_by_way_of_others():
    graph = {name_of(path): set(imported(path)) - {name_of(path)} for path in FILES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle in it


def test_at_most_ten_files_at_the_root():
    assert len(list(ROOT.glob("*.py"))) + len(list(ROOT.glob("py.typed"))) <= 10


def test_public_names_are_importable():
    for name in sk_dnn2gp.__all__:
        assert hasattr(sk_dnn2gp, name)


def test_importing_draws_in_no_extra():
    code = "import sys, sk_dnn2gp; print('matplotlib' in sys.modules, 'pandas' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split()[0] == "False"

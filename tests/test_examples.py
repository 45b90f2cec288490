"""Every example of the gallery runs, without a warning, and draws."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "examples"
EXAMPLES = sorted(str(path.relative_to(GALLERY)) for path in GALLERY.rglob("plot_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(GALLERY / name)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_page_begins_with_what_was_found_and_says_its_time(name):
    text = ast.get_docstring(ast.parse((GALLERY / name).read_text(encoding="utf-8")))
    title, rule, empty, claim = text.splitlines()[:4]
    assert (set(rule), len(rule), empty) == ({"="}, len(title), "")
    assert not claim.startswith(("Mirrors", "This example"))
    (seconds,) = re.findall(r"^Takes (\d+) seconds?\.$", text, re.M)
    assert 0 < int(seconds) < 60


@pytest.mark.parametrize("name", EXAMPLES)
def test_figures_are_drawn_for_the_column_that_shows_them(name):
    text = (GALLERY / name).read_text(encoding="utf-8")
    widths = [float(width) for width in re.findall(r"figsize=\(([\d.]+),", text)]
    assert all(width <= 7.2 for width in widths)


def test_every_section_has_a_page_and_a_place_in_the_order():
    sections = {path.parent.name for path in GALLERY.glob("*/README.rst")}
    assert sections == {Path(name).parent.name for name in EXAMPLES}
    configuration = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    assert all(f'"{section}"' in configuration for section in sections)

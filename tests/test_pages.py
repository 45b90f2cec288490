"""The code on the front pages runs as it stands, and the pages know each other."""

import re
import runpy
import textwrap
from pathlib import Path

import numpy as np
import pytest

import sk_dnn2gp

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def landing_code():
    text = (DOCS / "index.rst").read_text(encoding="utf-8")
    (block,) = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text)
    return textwrap.dedent(block)


def test_the_landing_page_has_some_ten_lines_that_run():
    code = landing_code()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names = {}
    exec(compile(code, "index.rst", "exec"), names)
    assert names["mean"].shape == names["std"].shape == (5,)
    assert (names["std"] > 0).all() and (names["parts"].epistemic > 0).all()


@pytest.mark.slow
def test_the_code_of_readme_runs_from_top_to_bottom():
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    for number, block in enumerate(blocks):
        exec(compile(block, "README.md", "exec"), names)
        if not number:
            model, X = names["model"], names["X"]
            apart = np.abs(model.predict(X) - names["gp"].predict(X))
            apart = (apart / model.predict_std(X, "latent")).max()
            assert apart == pytest.approx(15, abs=1) and "up to 15 standard deviations" in block
    assert names["probabilities"].shape == (3, 3)


def test_the_landing_page_has_a_picture_and_four_cards():
    text = (DOCS / "index.rst").read_text(encoding="utf-8")
    assert text.count(".. container:: card-of-page") == 4
    (picture,) = re.findall(r"\.\. image:: (\S+)", text)
    assert (DOCS / picture).exists()


def test_code_of_the_guide_is_no_wider_than_its_box():
    for page in (DOCS / "user_guide").glob("*.rst"):
        lines = re.findall(r"^ *(?:>>>|\.\.\.) .*$", page.read_text(encoding="utf-8"), re.M)
        assert max(map(len, lines), default=0) <= 80, page.name


def test_every_page_of_the_guide_is_in_its_table_of_contents():
    guide = DOCS / "user_guide"
    entries = re.findall(r"^   (\w+)$", (guide / "index.rst").read_text(encoding="utf-8"), re.M)
    assert sorted(entries) == sorted(p.stem for p in guide.glob("*.rst") if p.stem != "index")


def test_the_reference_lists_each_name_once_and_every_public_one():
    names = re.findall(r"^   ([A-Za-z_.0-9]+)$", (DOCS / "api.rst").read_text("utf-8"), re.M)
    assert len(names) == len(set(names))
    assert set(sk_dnn2gp.__all__) - {"__version__"} <= set(names)


def test_every_group_of_the_reference_begins_with_a_sentence():
    text = (DOCS / "api.rst").read_text(encoding="utf-8")
    text = re.sub(r"^\.\. (module|currentmodule)::.*\n+", "", text, flags=re.M)
    for group in re.split(r"^-+\n", text, flags=re.M)[1:]:
        first = group.strip().split("\n\n")[0]
        assert first.endswith((".", ":")) and not first.startswith("..")


def test_formulas_are_of_names_of_the_reference_and_balanced():
    names = re.findall(r"^   ([A-Za-z_.0-9]+)$", (DOCS / "api.rst").read_text("utf-8"), re.M)
    table = runpy.run_path(str(DOCS / "formulas.py"))["table"]()
    assert set(table) <= {f"sk_dnn2gp.{name}" for name in names}
    for formula in table.values():
        assert formula.count("{") == formula.count("}") and not {"\n", "%"} & set(formula)


def test_every_page_of_the_reference_leads_on_and_back():
    names = re.findall(r"^   ([A-Za-z_.0-9]+)$", (DOCS / "api.rst").read_text("utf-8"), re.M)
    related = runpy.run_path(str(DOCS / "related.py"))["table"]()
    assert set(related) == {f"sk_dnn2gp.{name}" for name in names}
    assert all(name in related[other] for name, others in related.items() for other in others)

"""Every reference to a formula leads to a section of docs/mathematics.rst."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mathematics.rst"
TEXT = {".py", ".rst", ".md", ".toml", ".cfg", ".txt", ""}
# A reference, in a role or plain; a label ends in a letter.
REFERENCE = re.compile(r"\bmath-[a-z]+(?:-[a-z]+)*")
# The sections' numbers in a document that is not part of the project. ``SDPBackend.MATH`` is not.
NUMBERED = re.compile(r"(?<![.\w])MATH(\.md)?\b")


def texts():
    """Path and content of every file that git knows, generated ones left out."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in sorted(set(names.splitlines())):
        path = ROOT / name
        if path.suffix in TEXT and path.is_file() and path != Path(__file__):
            yield name, path.read_text(encoding="utf-8")


def labels():
    return set(re.findall(r"^\.\. _(math-[a-z-]+):$", PAGE.read_text(encoding="utf-8"), re.M))


def test_every_reference_has_its_section():
    known, dead, seen = labels(), [], set()
    for name, text in texts():
        found = set(REFERENCE.findall(text))
        seen |= found
        dead += [(name, label) for label in sorted(found - known)]
    assert not dead
    # Were the labels not found in the page, or no file read, there would be nothing to compare.
    assert "math-laplace" in seen & known


def test_a_label_stands_before_a_heading():
    text = PAGE.read_text(encoding="utf-8")
    headed = re.findall(r"^\.\. _(math-[a-z-]+):\n\n.+\n[-~]+$", text, re.M)
    assert sorted(headed) == sorted(labels())
    assert len(headed) == len(set(headed))


def test_no_section_is_cited_by_number():
    numbered = [
        (name, number)
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if NUMBERED.search(line)
    ]
    assert not numbered

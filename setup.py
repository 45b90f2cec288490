"""All of the packaging is in pyproject.toml; here README becomes a page that stands by itself."""

import os
import re
from pathlib import Path

from setuptools import setup

# Address of the files of a release, without a slash at its end; "" while there is none. The
# workflow that publishes sets it to those of its tag.
FILES = os.environ.get("SK_DNN2GP_FILES", "").rstrip("/")


def for_index(text: str, files: str = FILES) -> str:
    """README with absolute links; while there is no address, without its relative ones."""
    relative = r"\[([^\]]*)\]\((?!https?://|#)([^)]+)\)"
    if files:
        return re.sub(relative, rf"[\1]({files}/\2)", text)
    return re.sub(relative, r"\1", re.sub("!" + relative, "", text))


setup(
    long_description=for_index((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)

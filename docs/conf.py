"""Sphinx: the API reference. Nothing is fetched; a warning is an error in ``make docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import sk_dnn2gp

project = "sk_dnn2gp"
version = release = sk_dnn2gp.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
# Every example is run in the build, and one that fails, fails the build.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sk_dnn2gp",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
}
suppress_warnings = ["config.cache"]
html_theme = "pydata_sphinx_theme"
autosummary_generate = True
numpydoc_show_class_members = False
autodoc_default_options = {"members": True, "show-inheritance": True}
exclude_patterns = ["generated/README*", "*.md"]
templates_path = ["_templates"]
# Written by scikit-learn, with links into its own user guide.
inherited = ["score", "get_metadata_routing"]
inherited += [
    f"set_{method}_request"
    for method in (
        "fit",
        "partial_fit",
        "predict",
        "predict_proba",
        "predict_log_proba",
        "predict_std",
        "score",
    )
]
autodoc_default_options["exclude-members"] = ",".join(inherited)

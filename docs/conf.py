"""Sphinx: guide, gallery and reference. Nothing is fetched; a warning is an error in ``make docs``.

``SK_DNN2GP_DOCS``, the address at which the pages will stand (no slash at its end), turns the
switch between versions on; it reads ``switcher.json`` there.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import formulas
import related

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
    # Sections in the order in which a reader meets them.
    "subsection_order": [
        f"../examples/{name}"
        for name in (
            "regression",
            "classification",
            "kernels",
            "tuning",
            "your_own_network",
            "science",
        )
    ],
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("sk_dnn2gp",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    # Drawn 700 pixels wide, the width of the column; twice that for sharp screens.
    "image_srcset": ["2x"],
    "thumbnail_size": (640, 448),
}
suppress_warnings = ["config.cache"]
html_theme = "pydata_sphinx_theme"
html_title = project
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_theme_options: dict = {"show_prev_next": False, "footer_end": [], "show_toc_level": 2}
address = os.environ.get("SK_DNN2GP_DOCS", "").rstrip("/")
if address:
    html_theme_options |= {
        "switcher": {"json_url": f"{address}/switcher.json", "version_match": version},
        "check_switcher": False,
        "navbar_end": ["version-switcher", "theme-switcher", "navbar-icon-links"],
    }
# Formulas by the pages' own copy: no other host is asked.
mathjax_path = "mathjax/tex-chtml.js"
html_static_path = ["_static"]
html_css_files = ["style.css"]
autosummary_generate = True
autosummary_context = {"related": related.table(), "formulas": formulas.table()}
# Methods by their own names beside the page: with their class before it they are cut off.
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
# Members from our own bases are shown; what these foreign ones bring is documented at home.
foreign = (
    "BaseEstimator", "ClassifierMixin", "RegressorMixin", "TransformerMixin", "Kernel",
    "StationaryKernelMixin", "ClassNamePrefixFeaturesOutMixin", "Optimizer", "Module", "Sequential",
    "Protocol", "object", "Warning", "Exception",
)  # fmt: skip
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "inherited-members": ",".join(foreign),
}
# A name in a role, or in the type of an argument, that leads nowhere is a warning; foreign names
# have no inventory here, as nothing is fetched.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|numpy|scipy|sklearn|skorch|matplotlib|collections|os)\..*"),
    (r"py:.*", r"sk_dnn2gp\.(.*\.)?_.*"),  # private
    (r"py:.*", r"sk_dnn2gp\.linearize\.(plan|factors|network)\..*"),
    # Bases that are no public names.
    (r"py:class", r"sk_dnn2gp\.(estimators|kernels\.infinite)\.base\..*"),
    (r"py:class", r"sk_dnn2gp\.optim\.(update|flat)\..*"),
    (r"py:class", r"sk_dnn2gp\.estimators\.distributional\..*"),
    (r"py:class", r"sk_dnn2gp\.evidence\.spectrum\.(Data|OverPriorAndNoise)"),
]
autodoc_typehints = "none"  # docstrings say them in words
exclude_patterns = ["generated/README*", "*.md"]
templates_path = ["_templates"]
# Written by scikit-learn, with links into its own user guide.
inherited = ["score", "get_metadata_routing", "set_output"]
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


def copy_mathjax(app, error):
    """The script and its fonts, beside the pages' other files."""
    if error is not None or app.builder.format != "html":
        return
    there = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    source, target = there / "static" / "mathjax", Path(app.outdir) / "_static" / "mathjax"
    fonts = Path("output") / "chtml" / "fonts" / "woff-v2"
    (target / fonts).mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "tex-chtml.js", target)
    for font in (source / fonts).glob("*.woff"):
        shutil.copy(font, target / fonts)


def public_bases(app, name, obj, options, bases):
    """No private names beside a class, nor what lives in a private room."""
    seen = [b for b in bases if not b.__name__.startswith("_") and "._" not in b.__module__]
    bases[:] = seen or [object]


def setup(app):
    """Formulas after the pages."""
    app.connect("build-finished", copy_mathjax)
    app.connect("autodoc-process-bases", public_bases)

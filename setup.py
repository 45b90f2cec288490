"""Packaging of sk_dnn2gp. The version lives in ``sk_dnn2gp/_version.py``."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = {}
exec((ROOT / "sk_dnn2gp" / "_version.py").read_text(), VERSION)

PLOT = ["matplotlib>=3.7"]
TEST = [
    "pytest>=7.4",
    "distributed>=2024.1",
    "pytest-cov",
    "hypothesis>=6.90",
    "pandas>=2.0",
    "numpydoc>=1.6",
    "ruff",
    "mypy",
]
DOCS = ["sphinx>=7.2", "sphinx-gallery>=0.15", "pydata-sphinx-theme>=0.15", "numpydoc>=1.6"]

setup(
    name="sk_dnn2gp",
    version=VERSION["__version__"],
    description="Trained deep networks as Gaussian processes, for scikit-learn",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    packages=find_packages(include=["sk_dnn2gp", "sk_dnn2gp.*"]),
    package_data={"sk_dnn2gp": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.24",
        "scipy>=1.10",
        "scikit-learn>=1.6",
        "torch>=2.2",
        "skorch>=1.0",
    ],
    extras_require={
        "plot": PLOT,
        "test": TEST + PLOT,
        "docs": DOCS + PLOT,
        "benchmark": PLOT + ["pandas>=2.0"],
        "dev": TEST + DOCS + PLOT,
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: BSD License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

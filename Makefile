# Each target sets up all that it needs, in a virtual environment of its own folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# More for Sphinx: -D plot_gallery=0 leaves the examples unrun.
SPHINXOPTS ?=
# Torch first and pinned: without the pin another package could draw a different build of it.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: example test test-slow fuzz lint docs clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: $(BIN)/python constraints.txt
	$(INSTALL) torch
	touch $@

$(VENV)/.example: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e ".[plot]"
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e ".[test]"
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(INSTALL) -e ".[docs]"
	touch $@

example: $(VENV)/.example
	$(BIN)/python examples/regression/plot_regression_uncertainty.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow"

# Further checks, of minutes each.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow tests

# FUZZ_CASES (10000), FUZZ_FIRST (0) and FUZZ_SEED (0) choose the cases.
fuzz: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going $(SPHINXOPTS) -b html docs docs/_build/html

clean:
	rm -rf $(VENV) outputs build docs/_build docs/generated *.egg-info

# Each target sets up all that it needs, in a virtual environment of its own folder; make help
# lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# More for Sphinx: -D plot_gallery=0 leaves the examples unrun.
SPHINXOPTS ?=
# More for pytest in test-oldest and test-newest: -x, -k NAME, a file.
TESTOPTS ?= -m "not slow"
# An environment each for the oldest and the newest versions.
OLDEST ?= .venv-oldest
NEWEST ?= .venv-newest
# Torch first and pinned: without the pin another package could draw a different build of it.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help example test test-slow test-oldest test-newest fuzz lint docs docs-check dev dist clean

help:
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' Makefile | expand -t 14

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

$(VENV)/.docs-check: $(VENV)/.docs
	$(INSTALL) -e ".[docs-check]"
	touch $@

$(VENV)/.dist: $(BIN)/python pyproject.toml
	$(INSTALL) build twine
	touch $@

example: $(VENV)/.example ## two data sets beside scikit-learn's models, and a picture
	$(BIN)/python examples/regression/plot_regression_uncertainty.py

# A process for each of two cores; one thread is faster for problems of the size of tests.
test: $(VENV)/.test ## the tests, but for the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.test ## further checks, of minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests

# Old torch tells of features that are new to it, which no later one does. PYTHON is 3.10 or 3.11.
test-oldest: ## the tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt torch
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[test]"
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -W "ignore:Lazy modules" $(TESTOPTS)

test-newest: ## the tests with the newest versions that can be installed
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade -e ".[test]"
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest $(TESTOPTS)

# FUZZ_CASES (10000), FUZZ_FIRST (0) and FUZZ_SEED (0) choose the cases.
fuzz: $(VENV)/.test ## random fits against dense algebra
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

lint: $(VENV)/.test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs ## user guide, gallery (every example is run) and reference
	$(BIN)/python -m sphinx -W --keep-going $(SPHINXOPTS) -b html docs docs/_build/html

# With Chromium on the path, or named by CHROMIUM; without it the pages are read, not opened.
docs-check: $(VENV)/.docs-check ## dead links, missing pictures, and every page in a browser
	test -d docs/_build/html || $(MAKE) docs
	$(BIN)/python docs/check_pages.py docs/_build/html

dev: $(VENV)/.test $(VENV)/.docs ## all that a contributor needs, and the hooks of pre-commit
	$(INSTALL) pre-commit
	-$(BIN)/pre-commit install
	@echo "Ready: make test, make lint, make docs; $(BIN)/python is the interpreter."

dist: $(VENV)/.dist ## sdist and wheel in dist/, checked as an index page will show them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean: ## everything that these commands made
	rm -rf $(VENV) $(OLDEST) $(NEWEST) outputs build dist docs/_build docs/generated docs/auto_examples
	rm -rf *.egg-info

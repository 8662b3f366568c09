# Needs Python 3.11 or newer and pip; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check wheel clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# The stamp makes set-up idempotent: pip runs again only when the dependencies may have changed.
.venv/.ready: pyproject.toml setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

setup: .venv/.ready ## make .venv and install everything (about 6 GB, PyTorch for the most part)

demo: setup ## the main job end to end on an embedded corpus: runs/demo/report.html
	$(BIN)/openqwen2vl demo out=runs/demo overwrite=true

test: setup ## the whole test suite, slow ones included
	$(BIN)/python -m pytest

test-fast: setup ## the tests that take seconds
	$(BIN)/python -m pytest -m 'not slow'

check: setup ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

wheel: setup ## build dist/*.whl
	$(BIN)/python -m build --wheel --outdir dist

clean: ## remove what was made, .venv and runs/demo included
	rm -rf .venv runs/demo build dist *.egg-info

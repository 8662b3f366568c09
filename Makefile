# Needs Python 3.11 or newer and pip; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-lmms side check wheel clean

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

# An older transformers beside .venv's, for the tests that load exported folders in it.
.side/transformers-4.57/.ready: .venv/.ready
	rm -rf .side/transformers-4.57
	$(BIN)/python -m pip install --quiet --no-deps --target .side/transformers-4.57 \
		'transformers==4.57.6' 'huggingface-hub==0.36.2' 'tokenizers==0.22.2'
	touch $@

side: .side/transformers-4.57/.ready ## transformers 4.57, for the tests of export (135 MB)

# Most tests keep one core busy; those of several processes take turns with them.
test: setup side ## the whole test suite, slow ones included
	OPENQWEN2VL_SIDE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup ## the tests that take seconds
	$(BIN)/python -m pytest -m 'not slow'

# lmms-eval brings 150 packages; PyTorch and ours it takes from .venv.
.venv-lmms/.ready: .venv/.ready
	$(BIN)/python -m venv --clear .venv-lmms
	$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
		> "$$(.venv-lmms/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz_main_environment.pth"
	.venv-lmms/bin/python -m pip install --quiet --editable '.[lmms]' pytest hypothesis
	touch $@

test-lmms: .venv-lmms/.ready ## scores and prompts beside lmms-eval's, in an environment of its own (650 MB)
	.venv-lmms/bin/python -m pytest tests/lmms

check: setup ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

wheel: setup ## build dist/*.whl
	$(BIN)/python -m build --wheel --outdir dist

clean: ## remove what was made, .venv and runs/demo included
	rm -rf .venv .venv-lmms .side runs/demo build dist *.egg-info

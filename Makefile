PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS)

# The tests start many processes; without bytecode each would compile the whole package again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest check lint style types layers fix microworld dist clean
.DELETE_ON_ERROR:

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) CONSTRAINTS=$(CONSTRAINTS) WORKERS=$(WORKERS) (test processes) PYTEST_ARGS"

setup: $(VENV)/.installed-dev  ## make the virtual environment with all that development needs

demo: $(VENV)/.installed  ## install what running needs and train a Malayalam adapter for the embedded model
	$(BIN)/python train.py lang=ml

test: $(VENV)/.installed-dev  ## install what testing needs and run the fast tests: a few minutes, all that guards a number
	$(PYTEST) --dist worksteal -m "not slow" $(PYTEST_ARGS) tests/unit tests/properties
	$(PYTEST) --dist loadfile -m "not slow" $(PYTEST_ARGS) --jaxtyping-packages= tests/conf tests/flows tests/fuzz tests/gates  # whole jobs: without checks of shapes

test-all: $(VENV)/.installed-dev  ## run all tests, the slow ones too: an hour or two
	$(PYTEST) --dist worksteal $(PYTEST_ARGS)

test-oldest:  ## run the fast tests with the oldest versions that pyproject.toml allows, in an environment of their own
	$(MAKE) test VENV=$(VENV)-oldest CONSTRAINTS=constraints-oldest.txt PYTEST_ARGS="-W default $(PYTEST_ARGS)"  # old libraries warn of each other

check: lint style types layers  ## lint, format, types, import layers; changes no file

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --no-cache

style: $(VENV)/.installed-dev
	$(BIN)/ruff format --no-cache --check

types: $(VENV)/.installed-dev
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-cache

fix: $(VENV)/.installed-dev  ## fix lint and format where that is automatic
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

microworld: $(VENV)/.installed  ## rebuild the embedded texts, model, SAEs and benchmarks from the seed; goes on where it was interrupted
	$(BIN)/python -m lingact.microworld.build

dist: | $(BIN)/python  ## build the wheel and the source archive into dist/ and check them
	rm -rf build dist
	$(PIP_INSTALL) build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove the virtual environments and all caches
	rm -rf $(VENV) $(VENV)-oldest build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "lingact needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# A stamp is as new as the last installation; a newer pyproject.toml or file of constraints calls for another one.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $@

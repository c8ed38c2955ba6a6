PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check lint style types layers fix microworld clean
.DELETE_ON_ERROR:

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) (test processes) PYTEST_ARGS"

setup: $(VENV)/.installed-dev  ## make the virtual environment with all that development needs

demo: $(VENV)/.installed  ## install what running needs and train a Malayalam adapter for the embedded model
	$(BIN)/python train.py lang=ml

test: $(VENV)/.installed-dev  ## install what testing needs and run the tests, but for the slowest
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev  ## run all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

check: lint style types layers  ## lint, format, types, import layers; changes no file

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --no-cache

style: $(VENV)/.installed-dev
	$(BIN)/ruff format --no-cache --check

types: $(VENV)/.installed-dev
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-cache

fix: $(VENV)/.installed-dev  ## mend lint and format where that is automatic
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

microworld: $(VENV)/.installed  ## rebuild the embedded texts, model, SAEs and benchmarks from the seed; goes on where it was interrupted
	$(BIN)/python -m lingact.microworld.build

clean:  ## remove the virtual environment and all caches
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "lingact needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# A stamp is as new as the last installation; a newer pyproject.toml or constraints.txt calls for another one.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed $@

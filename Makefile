# make demo   create the environment if need be and run `vitrim demo`
# make test   create the environment if need be and run the tests
# make check  all that CI does: tests, format, lint, types
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types check
.DEFAULT_GOAL := test

demo: $(INSTALLED)
	$(BIN)/vitrim demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

check: test lint types

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitrim needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@echo "Installing into $(VENV): torch (with CUDA on Linux), torchvision, timm, accelerate and tools."
	@echo "About 6 GB on disk and 3 GB of downloads; one to two minutes besides the downloads."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# make demo         run `vitrim demo`
# make test         run the tests
# make browser-test  run the tests of the report's page in Chromium; they are also part of make test
# make deploy-test  run the tests of the export formats, which need their runtimes
# make docs         build the site of the documentation into site/; open it with python3 -m http.server -d site
# make docs-test    run the code of all pages with small models, build the site and follow its links
# make fuzz         try the readers of recipes, plans and other files with 20,000 inputs for each test
# make bench-smoke  run every arm of the benchmark on a tiny cell, and make its tables
# make speed-smoke  run every section of the measurement of costs on tiny models
# make timebox-smoke  run the time-boxed benchmark with a tiny model
# make torture-quick  interrupt, damage and misuse vitrim some times, about two minutes
# make torture      the same, over a thousand times, an hour or more; a rerun goes on; not part of CI
# make lint         check format and lint
# make types        check types
# make check        all that CI does: tests, deploy-test, docs-test, the smoke runs of the benchmarks, torture-quick, format, lint, types
# make test-lowest  run the tests with the oldest packages that pyproject.toml allows
# make test-newest  run the tests with the newest packages of the package index
#
# Each of them creates .venv first, if it does not exist. The last two create an environment of their own for each version
# of Python, such as .venv-lowest-3.12: make test-lowest PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SMOKE := runs/bench-smoke
FUZZ_EXAMPLES ?= 20000

# Tests start processes. Without bytecode, each process compiles the package again, and pytest rewrites all tests again.
unexport PYTHONDONTWRITEBYTECODE

UV ?= .venv-uv/bin/uv
PYTHON_VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PRINT_VERSIONS := import platform, torch, timm; print("Python", platform.python_version(), "torch", torch.__version__, "timm", timm.__version__)

.PHONY: demo test browser-test deploy-test docs docs-test fuzz bench-smoke speed-smoke timebox-smoke torture torture-quick lint types check test-lowest test-newest
.DEFAULT_GOAL := test

demo: $(INSTALLED)
	$(BIN)/vitrim demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

browser-test: $(INSTALLED)
	$(BIN)/python -m pytest -n 0 -m browser tests/browser

deploy-test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m deploy tests/programs tests/exporting tests/test_verifying.py tests/test_deploy_examples.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=src $(BIN)/python -m mkdocs build --quiet --strict

docs-test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m docs tests/docs

fuzz: $(INSTALLED)
	VITRIM_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz

bench-smoke: $(INSTALLED)
	rm -rf $(SMOKE)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.run benchmarks/configs/smoke.toml -o $(SMOKE)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ablation benchmarks/configs/smoke.toml -o $(SMOKE)
	$(BIN)/python -m benchmarks.table $(SMOKE) --docs $(SMOKE)/docs

speed-smoke: $(INSTALLED)
	rm -rf $(SMOKE)-speed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --smoke -o $(SMOKE)-speed --docs $(SMOKE)-speed/docs

timebox-smoke: $(INSTALLED)
	rm -rf $(SMOKE)-timebox
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.timebox --seconds 120 --max-epochs 1 --model smoke --data digits -o $(SMOKE)-timebox
	$(BIN)/python -m benchmarks.table $(SMOKE)-timebox/cell --docs $(SMOKE)-timebox/docs

torture-quick: $(INSTALLED)
	rm -rf $(SMOKE)-torture
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.torture --quick -o $(SMOKE)-torture

torture: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.torture -o runs/torture

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

check: test deploy-test docs-test bench-smoke speed-smoke timebox-smoke torture-quick lint types

test-lowest test-newest: test-%: $(UV)
	test -e .venv-$*-$(PYTHON_VERSION) || $(PYTHON) -m venv .venv-$*-$(PYTHON_VERSION)
	$(UV) pip install --no-cache --python .venv-$*-$(PYTHON_VERSION)/bin/python $(RESOLUTION) --editable '.[test]'
	.venv-$*-$(PYTHON_VERSION)/bin/python -c '$(PRINT_VERSIONS)'
	.venv-$*-$(PYTHON_VERSION)/bin/python -m pytest

test-lowest: RESOLUTION = --resolution lowest-direct --upgrade
test-newest: RESOLUTION = --resolution highest --upgrade

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "vitrim needs Python 3.11.4 or newer; try make PYTHON=python3.11")'
	@echo "Installing into $(VENV): torch (with CUDA on Linux), torchvision, timm, accelerate and tools."
	@echo "About 6 GB on disk and 3 GB of downloads; one to two minutes besides the downloads."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --no-cache --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	@touch $@

# make demo         run `vitrim demo`
# make test         run the tests
# make bench-smoke  run every arm of the benchmark on a tiny cell, and make its tables
# make speed-smoke  run every section of the measurement of costs on tiny models
# make timebox-smoke  run the time-boxed benchmark with a tiny model
# make lint         check format and lint
# make types        check types
# make check        all that CI does: tests, the smoke runs of the benchmarks, format, lint, types
#
# Each of them creates .venv first, if it does not exist.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SMOKE := runs/bench-smoke

.PHONY: demo test bench-smoke speed-smoke timebox-smoke lint types check
.DEFAULT_GOAL := test

demo: $(INSTALLED)
	$(BIN)/vitrim demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

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

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

check: test bench-smoke speed-smoke timebox-smoke lint types

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitrim needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@echo "Installing into $(VENV): torch (with CUDA on Linux), torchvision, timm, accelerate and tools."
	@echo "About 6 GB on disk and 3 GB of downloads; one to two minutes besides the downloads."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

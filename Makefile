# Every target sets up .venv by itself on a fresh machine; it takes Python 3.11 or newer and nothing else.
#   make demo        see it work: fit a small shop, one list before and after, a table of systems
#   make test        all tests but the slow ones
#   make check       what must pass before a commit: lint, types, test
#   make test-slow   the tests that take minutes: the wheel in a clean environment, the network off
#   make benchmark DATASET=amazon_scientific DATA=../shared/data    one table of one data set, on its validation split
# Another interpreter: make PYTHON=python3.12 test. Options for installing torch, say an index of CPU builds:
# make TORCH_OPTIONS='--index-url ...' demo.

PYTHON ?= python3
VENV ?= .venv
TORCH_OPTIONS ?=
WORKERS ?= 2
DATASET ?= sample
DATA ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One thread a process: on few cores the workers of pytest would otherwise fight for them.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check lint types format benchmark wheel clean

help:
	@sed -n 's/^#   //p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	  'llm_rerank needs Python 3.11 or newer, $(PYTHON) is %d.%d; name another: make PYTHON=python3.11' % sys.version_info[:2])"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_OPTIONS) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/llm-rerank demo

test: $(READY)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(READY)
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -m slow

check: lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(READY)
	$(BIN)/python -m benchmarks.ranking --dataset $(DATASET) $(if $(DATA),--data-dir $(DATA))

wheel: $(READY)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

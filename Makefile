# Everything a developer needs: `make help` lists it. Nothing but Python >= 3.11 with venv and pip, make and git is
# expected; all else goes into .venv.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := $(VENV)/gymnasium-1.2.2
RUFF := $(BIN)/ruff
PYTEST := $(BIN)/python -m pytest

# Small matrices: one thread each is fastest. Use processes for cores.
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO_SCENARIO ?= chat-bursty
DEMO_TIMESTEPS ?= 2000000
DEMO_LOADS ?= 0.6 0.8 1.0
DEMO_SEEDS ?= 16
# rivals that are tuned too: the best fixed budget on chat-bursty, found on validation seeds, and the adaptive rule
DEMO_TUNED ?= moore-hodgson:288 adaptive@tuned
WORKERS ?= 2
# groups of benchmarks whose speed is a gate: the others take long, or hardly any of what they take is this project's
GUARDED ?= kernel env vector backlog decision

.PHONY: help setup test lint format typecheck pytest pytest-boundscheck pytest-nojit pytest-oldest demo docs bench bench-guard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything for development

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 was found; name one: make setup PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): a minute or more'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# One after the other, the quickest first; `make -j` does not change that.
test: $(READY) ## all gates: lint, format, types, tests; again with bounds checks, in plain Python, on the oldest Gymnasium; speed
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory typecheck
	@$(MAKE) --no-print-directory pytest
	@$(MAKE) --no-print-directory pytest-boundscheck
	@$(MAKE) --no-print-directory pytest-nojit
	@$(MAKE) --no-print-directory pytest-oldest
	@$(MAKE) --no-print-directory bench-guard

lint: $(READY) ## ruff: rules and format, nothing is changed
	$(RUFF) check .
	$(RUFF) format --check .

format: $(READY) ## ruff: fix what can be fixed, then format
	$(RUFF) check --fix .
	$(RUFF) format .

typecheck: $(READY) ## pyright
	$(BIN)/pyright

pytest: $(READY) ## the tests, as two processes
	$(PYTEST) -n $(WORKERS) --dist worksteal

pytest-boundscheck: $(READY) ## the kernel's tests once more; a read or write past an array's end fails
	NUMBA_BOUNDSCHECK=1 $(PYTEST) -n $(WORKERS) --dist worksteal -m kernel

pytest-nojit: $(READY) ## the small kernel tests once more, in plain Python without the compiler
	NUMBA_DISABLE_JIT=1 $(PYTEST) -n $(WORKERS) --dist worksteal -m nojit

pytest-oldest: $(READY) ## the environments' tests once more, with the oldest Gymnasium that is supported
	@test -d $(OLDEST) || $(BIN)/python -m pip install --quiet --no-deps --target $(OLDEST) gymnasium==1.2.2
	PYTHONPATH=$(OLDEST) $(PYTEST) -n $(WORKERS) --dist worksteal tests/test_env.py tests/test_vec_env.py

demo: $(READY) ## train briefly, compare with every baseline on identical workloads, print the table, write plots
	$(BIN)/python train.py --scenario $(DEMO_SCENARIO) --timesteps $(DEMO_TIMESTEPS) --seed 0 --out runs/demo --overwrite
	$(BIN)/python evaluate.py --scenario $(DEMO_SCENARIO) --agents runs/demo --baselines all $(DEMO_TUNED) \
		--loads $(DEMO_LOADS) --seeds $(DEMO_SEEDS) --out results/demo

bench: $(READY) ## how fast everything is, beside peers and targets: about ten minutes
	$(BIN)/python -m benchmarks

bench-guard: $(READY) ## half a minute; fails where something stays more than twice as slow as benchmarks/baseline.json says
	$(BIN)/python -m benchmarks --quick --only $(GUARDED) --compare benchmarks/baseline.json --out results/bench-guard

docs: $(READY) ## write the pages that are made from the code
	$(BIN)/python docs/make_pages.py

clean: ## remove .venv, caches and builds; runs/ and results/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Coupon Clock. `make help` lists what there is; nothing but Python 3.11+, make and a network is needed.

PYTHON ?= python3
BROKER ?= rocketmq
SECONDS ?= 60
BIN    := .venv/bin
# Tests wait more than they compute: one process has those on RocketMQ, the other the rest.
SIDE_BY_SIDE := -n 2 --dist loadgroup
PACKAGES := cli domain importing infrastructure local_servers maintenance projections testing
SOURCES := $(sort $(wildcard *.py) $(shell find $(PACKAGES) -name '*.py' -o -name '*.sql' -o -name '*.txt' -o -name '*.java'))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-long chaos mutants compare lint format docs clean check-python

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: .venv/installed  ## Make .venv with everything in it.

demo: setup  ## Watch 40 coupon templates end on time, on a real RocketMQ (BROKER=memory: without).
	@$(BIN)/python examples/demo --broker $(BROKER)

test: setup lint  ## Run all tests, on real PostgreSQL and RocketMQ.
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: setup  ## Run all tests that need no RocketMQ.
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not rocketmq"

test-long: setup  ## Run what takes long, and all versions (RUNS="words": only these); docs/tested.md keeps the results.
	@$(BIN)/python docs/keep_tested.py $(RUNS)

chaos: setup  ## Break all there is by a seeded schedule, and check the promise (SECONDS=60 SEED=1 BROKER=memory PROMOTION=1).
	@PYTHONPATH=tests $(BIN)/python -m chaos.run --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) --broker $(BROKER) $(if $(PROMOTION),--promotion)

mutants: setup  ## Put each known bug back, and see which test finds it (NAMES="words": only these).
	@$(BIN)/python tests/mutants/run.py $(NAMES)

compare: setup  ## Run the same job on what else ends things on time; results go into docs/benchmarks/.
	@$(BIN)/python benchmarks/compare/run.py

lint: setup  ## Check style, types and the direction of imports.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Run 'make format'."; exit 1; }
	@$(BIN)/mypy
	@MYPYPATH=examples/demo $(BIN)/mypy --explicit-package-bases examples
	@$(BIN)/lint-imports --no-cache | tail -n 1

format: setup  ## Bring all files into the one style.
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

docs: setup  ## Make docs/api.md from the code.
	@$(BIN)/python docs/make_api.py

clean:  ## Remove all that make has made; stops the local servers first.
	@for folder in .local .demo; do if [ -d $$folder ] && [ -x $(BIN)/coupon-clock ]; then $(BIN)/coupon-clock local down --dir $$folder; fi; done
	@rm -rf .compare .venv build .local .demo .tested *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ── the environment, in steps that are repeated only when their inputs changed ───────────────────

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Coupon Clock needs Python 3.11 or newer, and '$(PYTHON)' is not: run make PYTHON=/path/to/python3.11"; exit 2; }
	@case "$$(uname -s)-$$(uname -m)" in Linux-x86_64|Linux-aarch64|Darwin-x86_64|Darwin-arm64) ;; *) \
	  echo "The embedded servers run on Linux and macOS, on x86-64 and ARM, not on $$(uname -s) $$(uname -m): use your own PostgreSQL and RocketMQ (README.md)."; exit 2;; esac

.venv/made: | check-python
	@$(PYTHON) -m venv --clear .venv || { echo "Python's venv module is missing: install it (on Debian: apt install python3-venv)."; exit 2; }
	@touch $@

.venv/dependencies: .venv/made pyproject.toml constraints.txt
	@echo "Installing the pinned dependencies into .venv (once) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools && \
	 $(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *(d for e in p["optional-dependencies"].values() for d in e), sep="\n")' > .venv/wanted && \
	 $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r .venv/wanted || \
	  { echo "Some dependencies could not be installed: see above; check the network and run make again."; exit 2; }
	@touch $@

# A strict editable install links files one by one (mypy needs it), so it is repeated when files come or go.
.venv/installed: .venv/dependencies .venv/files
	@rm -rf build
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . --config-settings editable_mode=strict 2>.venv/log || \
	  { cat .venv/log; exit 2; }
	@touch $@

.venv/files: .venv/made FORCE
	@echo "$(SOURCES)" | cmp -s - $@ || echo "$(SOURCES)" > $@

FORCE:

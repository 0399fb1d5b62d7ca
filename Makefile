# Everything a person or CI does with this project. Each target sets up what it needs: a CPython 3.12 or 3.13 and make suffice.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check bench load run kafka set-up lock clean

# The interpreter .venv is made with; found by scripts/find-python.sh when not given.
export PYTHON

BIN := .venv/bin
# More for pytest: make test PYTEST_ARGS="tests/unit -k stamp"; with "-n 0" one test after another
PYTEST_ARGS ?=
# Tests wait much, for servers and clocks: half as many processes again as processors, and 6 at most
TEST_PROCESSES ?= $(shell n=$$(($$(getconf _NPROCESSORS_ONLN) * 3 / 2)); echo $$((n > 6 ? 6 : n)))

help: ## Show this help
	@echo "OmniNode Bridge: make TARGET [PYTHON=/path/to/python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/  \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do printf '%-10s %s\n' "$$target" "$$text"; done

demo: set-up ## Stamp real files, show the totals, verify, show drift after a change
	@scripts/demo.sh

test: set-up ## Check, then run all tests (installs what scripts/system-needs.sh names, on Debian as root)
	@scripts/system-needs.sh
	@scripts/kafka.sh jars
	@$(MAKE) --no-print-directory check
	@echo "==> pytest"
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

check: set-up ## Lint, formatting, types and import rules
	@echo "==> ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --quiet --diff .
	@echo "==> mypy (strict)"
	@$(BIN)/mypy
	@echo "==> import rules"
	@$(BIN)/lint-imports --no-logo

bench: set-up ## Run the benchmarks against their counterparts
	@scripts/system-needs.sh
	@scripts/set-up.sh bench
	@$(BIN)/omninode-bridge bench

load: set-up ## Let 1,000 users at it for a minute, then reckon (LOAD_USERS, LOAD_SECONDS, LOAD_SEED)
	@scripts/load.sh

run: set-up ## Run the bridge with everything embedded (omninode-bridge up)
	@exec $(BIN)/omninode-bridge up

kafka: ## Run an Apache Kafka on 127.0.0.1:9092 in the foreground, without Docker (needs Java 17 and mvn)
	@exec scripts/kafka.sh run

set-up: ## Build .venv from the pinned requirements (instant when up to date)
	@scripts/set-up.sh

lock: set-up ## Recompile requirements/*.txt from pyproject.toml (LOCK_ARGS=--upgrade moves the pins)
	@scripts/lock.sh $(LOCK_ARGS)
	@scripts/set-up.sh

clean: ## Remove .venv, caches, builds, the demo's data and Kafka with its data
	rm -rf .venv .venv-quix .kafka build dist demo-data .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests $(wildcard benchmarks) -name __pycache__ -prune -exec rm -rf {} +

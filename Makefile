.DEFAULT_GOAL := help
.PHONY: help demo lint test clean
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

PYTHON ?= python3
BASE := $(VENV)/.base

# torch comes first and pinned: a looser requirement may pull gigabytes of CUDA libraries.
$(BASE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch numpy
	$(BIN)/pip install -q -c constraints.txt -e '.[demo]'
	@touch $(BASE)

$(READY): $(BASE)
	$(BIN)/pip install -q -c constraints.txt -e '.[test,lint]'
	@touch $(READY)

demo: $(BASE) ## train a small vision transformer on real digits and compress it (about two minutes)
	$(BIN)/python examples/digits.py --out build/demo

lint: $(READY) ## check style, types and the floors of the house
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## run the whole suite
	$(BIN)/python -m pytest -q

clean: ## remove what was built
	rm -rf build .pytest_cache .mypy_cache .ruff_cache

.DEFAULT_GOAL := help
.PHONY: help lint test clean
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0 numpy
	$(BIN)/pip install -q -c constraints.txt -e '.[test,lint]'
	touch $(READY)

lint: $(READY) ## check style
	$(BIN)/ruff check src tests

test: $(READY) ## run the whole suite
	$(BIN)/python -m pytest -q

clean: ## remove what was built
	rm -rf build .pytest_cache .mypy_cache .ruff_cache

# Targets for people and for .ci/run alike; `make` alone lists them.
#   make test VENV=/tmp/other PYTHON=python3.12     another environment, another Python

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest lint type format bench check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## draw a picture with the bundled model and recipe, on any machine
	$(BIN)/cachedit run demo

test: $(READY) ## run the tests: no network, no GPU
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

test-oldest: ## run the tests of the models with the oldest versions that are supported (torchao of that time warns)
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt \
	  PYTEST_ARGS="-W 'ignore:Importing :DeprecationWarning' tests/adapters tests/engine tests/test_recipes_models.py tests/test_cli_inspect.py \
	  tests/test_cli_models.py tests/test_plugins_cli.py tests/test_detect.py tests/test_api.py tests/test_guidance.py"

lint: $(READY) ## check style, layers and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY) ## check the types, strictly
	$(BIN)/mypy

format: $(READY) ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(READY) ## measure what the wrappers cost (minutes)
	for script in bench/*.py; do $(BIN)/python $$script || exit 1; done

check: lint type test ## everything that a change has to pass

clean: ## remove the environment, caches and builds; outputs/ stays
	rm -rf .venv .venv-oldest build dist *.egg-info .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, made once and reused until what it is made from changes.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned versions in $(CONSTRAINTS) need Python >= 3.11: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

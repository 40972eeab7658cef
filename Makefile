# make demo | check | test | matrix | lint | types | docs: each sets up .venv first, unless it is up to date.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo check test matrix lint types docs setup clean

demo: setup
	$(BIN)/python cli.py fit --strategy hybrid

# Long files and classes come first, as tests/conftest.py orders them, and none is split: its tests share fixtures. One
# process more than there are cores: some tests wait for others that they have started.
PYTEST = $(BIN)/python -m pytest -n $(shell expr `getconf _NPROCESSORS_ONLN` + 1) --dist loadscope --no-loadscope-reorder

check: lint types
	$(PYTEST) -m "not slow" --ignore=tests/whole_program $(PYTEST_ARGS)

test: setup
	$(PYTEST) $(PYTEST_ARGS)

matrix: setup
	$(BIN)/python -m pytest -n auto --matrix -o 'python_files=test_*.py */matrix/*.py' $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# As an installation has it, with strategies and tasks inside the package.
types: setup
	rm -rf build/types && mkdir -p build/types && cp -r bplightning build/types && cp -r strategies tasks build/types/bplightning
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info

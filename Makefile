# Needs GNU make and Python 3.11, 3.12 or 3.13; everything else goes into .venv.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow test-browser bench docs lint format clean

PYTHON ?= python3.11 python3.12 python3.13 python3
# One test process per core, as most of a test is compiling, which is serial; 8 at most, as each holds its own JAX. A file
# stays in one process: its tests share what they trained.
WORKERS ?= auto
PYTEST = .venv/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile
PIP_INSTALL = .venv/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: .venv/installed-demo  ## train a learning curve of many heads and draw it
	.venv/bin/python examples/learning_curve.py

test: .venv/installed-dev  ## run the tests; ARGS="-k parity" picks some
	$(PYTEST) $(ARGS)

test-slow: .venv/installed-dev  ## run the longer forms of the tests
	$(PYTEST) -m slow $(ARGS)

test-browser: .venv/installed-dev  ## look at TensorBoard in a browser; needs Chromium and ChromeDriver
	$(PYTEST) -m browser $(ARGS)

bench: .venv/installed-bench  ## measure speed; ARGS="--quick" is a small form, PyTorch takes part where it is installed
	.venv/bin/python benchmarks/engine.py $(ARGS)

docs: .venv/installed-docs  ## make HTML of docs/ and of the docstrings, in build/docs
	.venv/bin/python -m sphinx -W --keep-going -q docs build/docs $(ARGS)
	@echo "build/docs/index.html"

lint: .venv/installed-dev  ## check style, format and types
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

format: .venv/installed-dev  ## rewrite to the project's format
	.venv/bin/python -m ruff check --fix .
	.venv/bin/python -m ruff format .

clean:  ## remove .venv, builds and caches
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@for python in $(PYTHON); do \
	  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue; \
	  echo "Making .venv with $$python"; \
	  "$$python" -m venv .venv && exit 0; \
	  rm -rf .venv; \
	done; \
	echo "No usable Python: make looked for $(PYTHON). Got none that makes an environment, expected 3.11, 3.12 or 3.13." \
	  "Fix: install Python 3.11 with its venv module, or name one: make PYTHON=/path/to/python3.11 test" >&2; exit 1

# The stamps lie in .venv, so they go when it goes.
.venv/installed-demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing Hydrax with what the demo needs (a minute or two, once)"
	$(PIP_INSTALL) -e '.[plots,examples]'
	@touch $@

.venv/installed-bench: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing Hydrax with what the benchmarks need (a minute or two, once)"
	$(PIP_INSTALL) -e '.[bench]'
	@touch $@

.venv/installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing Hydrax with what its documentation needs (a minute or two, once)"
	$(PIP_INSTALL) -e '.[docs]'
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing Hydrax with the developers' tools (a minute or two, once)"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ .venv/installed-demo .venv/installed-bench .venv/installed-docs

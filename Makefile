# Needs GNU make and Python 3.11, 3.12 or 3.13; everything else goes into .venv.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow test-browser bench docs lint format clean

PYTHON ?= python3.11 python3.12 python3.13 python3
# One test process per core, because most of a test is compilation, which is serial; at most 8, because each holds its own
# JAX. The tests of a file stay in one process, because they share what they train.
WORKERS ?= auto
PYTEST = .venv/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile
PIP_INSTALL = .venv/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: .venv/installed-demo  ## train and draw a learning curve of many heads
	.venv/bin/python examples/learning_curve.py

test: .venv/installed-dev  ## run the tests; ARGS="-k parity" selects some
	$(PYTEST) $(ARGS)

test-slow: .venv/installed-dev  ## run the longer forms of the tests
	$(PYTEST) -m slow $(ARGS)

test-browser: .venv/installed-dev  ## test TensorBoard in a browser; needs Chromium and ChromeDriver
	$(PYTEST) -m browser $(ARGS)

bench: .venv/installed-bench  ## measure speed; ARGS="--quick" is a small form; includes PyTorch if it is installed
	.venv/bin/python benchmarks/engine.py $(ARGS)

docs: .venv/installed-docs  ## build HTML from docs/ and the docstrings, in build/docs
	.venv/bin/python -m sphinx -W --keep-going -q docs build/docs $(ARGS)
	@echo "build/docs/index.html"

lint: .venv/installed-dev  ## check style, format and types
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

format: .venv/installed-dev  ## format the source
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
	echo "No usable Python: $(PYTHON). Got none that can create an environment, expected Python 3.11, 3.12 or 3.13." \
	  "Fix: install Python 3.11 with its venv module, or pass one: make PYTHON=/path/to/python3.11 test" >&2; exit 1

# The stamps are inside .venv, so removing it removes them.
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

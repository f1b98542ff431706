# `make demo` sets everything up and runs the main job; `make test` runs the tests.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: demo test test-slow lint docs figures site bench wheel clean

demo: $(STAMP)
	$(BIN)/fer demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What takes minutes: whole runs, several processes.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes docs/cli.md from the commands' help; CI fails when it is stale.
docs: $(STAMP)
	$(BIN)/python tests/write_cli_reference.py docs/cli.md

# The figures of docs/method.md.
figures: $(STAMP)
	$(BIN)/python docs/figures.py

# The documentation as a site, SITE/index.html; a warning is an error, and so is a page that asks another host.
SITE ?= build/site
site: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -d $(SITE).doctrees docs $(SITE)
	$(BIN)/python tests/check_site.py $(SITE)

# The table of docs/results.md, "The cache": about five minutes.
bench: $(STAMP)
	$(BIN)/python benchmarks/cache_files.py

wheel: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/check_wheel.py dist/*.whl

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist

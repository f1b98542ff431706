# `make demo` sets everything up and runs the main job; `make test` runs the tests.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
# The packages are installed without bytecode: the first start writes it, else each would compile torch for 5 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-processes test-web web torture rubbish flips determinism lint docs figures site bench wheel clean

demo: $(STAMP)
	$(BIN)/fer demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=5

# What takes minutes: whole runs, several processes.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

# What starts torchrun, SLURM's processes and Dask's workers: a minute or two.
test-processes: $(STAMP)
	$(BIN)/python -m pytest -m "processes and not slow"

# The tables of docs/reliability.md: every stage stopped at random moments, at every rename, and by a full disk.
torture: $(STAMP)
	$(BIN)/python tests/torture.py --kills 200
	$(BIN)/python tests/torture.py --renames --faces 120
	$(BIN)/python tests/torture.py --starved --kills 80 --faces 120

# The table of docs/reliability.md, "Rubbish in": some 3,000 damaged, absurd and forged files, about three minutes.
rubbish: $(STAMP)
	$(BIN)/python tests/rubbish.py

# The tables of docs/reliability.md, "Flipped bytes" and "Determinism": some five minutes each.
flips: $(STAMP)
	$(BIN)/python tests/flipped.py
determinism: $(STAMP)
	$(BIN)/python tests/determinism.py

# The page of `make web` in a browser: about a minute. Needs npm, chromium and chromedriver, and skips aloud without.
test-web: $(STAMP)
	$(BIN)/python -m pytest -m "" tests/test_web.py

# A static page that runs a student in the browser; npm fetches onnxruntime-web. make web STUDENT=runs/first/students/ldl
STUDENT ?= runs/demo/students/ldl
web: $(STAMP)
	$(BIN)/python examples/web/build.py $(STUDENT) examples/web/dist

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

# The tables of docs/performance.md, of docs/results.md ("The cache", of three), of docs/scaling.md and of
# docs/reliability.md ("Long runs") at smaller sizes. For ten million faces: benchmarks/scale.py --faces 10000000
bench: $(STAMP)
	$(BIN)/python benchmarks/alignment.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/cache_files.py --repeats 3
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/labelling.py
	$(BIN)/python benchmarks/long.py

wheel: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/check_wheel.py dist/*.whl

# without compiling all of 6 GB, of which little is imported: 144 instead of 252 s on one core
$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist examples/web/node_modules examples/web/dist

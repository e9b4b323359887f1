# Every target does its own set-up: `make` and a Python that pyproject.toml admits are enough.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
PORT ?= 8000
DEVICE ?= cuda
OUT ?= build/gpu
LIMIT ?= 275
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
# What rests on rounding, where a processor without wide vectors rounds otherwise: the records, and
# the chapters that train while they are read. `make portable` does so with every test.
ROUNDED := tests/experiments/test_records_are_current.py \
	$(addprefix tests/book/test_notebooks.py::test_a_new_run_confirms_the_outputs, \
	[01_residual_steps] [10_pendulum] [13_refinement])
CORE := tests/core tests/models tests/data tests/train tests/analysis tests/theory

.PHONY: help environment book serve test notebooks check bench gpu \
	weekly portable lock oldest newest clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z ]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

environment: ## make .venv, or bring it up to date; the other targets do so themselves
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found. Install Python (README.md \
	says which), or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) tools/environment.py

book: environment ## build the HTML book (warnings are errors) and say where to open it
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo "Open file://$(CURDIR)/_build/html/index.html   (or: make serve)"

serve: ## serve the book on http://localhost:8000 as it was built; build it if it never was
	@test -f _build/html/index.html || $(MAKE) --no-print-directory book
	$(PYTHON) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: environment ## run every check (the tests build the book themselves)
	$(MAKE) --no-print-directory check
	$(PYTEST)
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -q -n $(JOBS) $(ROUNDED)

notebooks: environment ## re-execute the notebooks whose outputs are stale
	$(BIN)/python tools/notebooks.py sync

check: environment ## the quick gate: lint, format, types, notebook pairs and freshness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/notebooks.py check

bench: environment ## measure the speed page's ratios anew (fifteen minutes)
	$(BIN)/python -m benchmarks

# With the machine's own Python and its torch, scipy, scikit-learn, torchdiffeq and pytest: no .venv.
gpu: ## on a GPU machine: test the core there, measure memory and time into OUT, in five minutes
	$(PYTHON) tools/gpu.py --device $(DEVICE) --out $(OUT) --limit $(LIMIT) $(if $(SHORT),--short)

# What the weekly workflow runs beside `test`, all of it from zero.

weekly: environment ## compute everything anew: no recorded result answers, no stamp saves a run
	COMPANION_FRESH=1 $(PYTEST)

portable: environment ## every test again, as a processor without wide vectors rounds
	ATEN_CPU_CAPABILITY=default $(PYTEST)

lock: environment ## ask the package index whether the lock holds on every supported Python
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install -q uv
	$(BIN)/python tools/lock.py resolve build/uv/bin/uv

oldest newest: environment ## the tests of the package on the oldest, or newest, packages it allows
	$(PYTHON) -m venv --clear build/$@
	$(BIN)/python tools/lock.py requirements $@ > build/$@/requirements.txt
	build/$@/bin/python -m pip install -q -r build/$@/requirements.txt
	build/$@/bin/python -m pip install -q --no-deps -e .
	build/$@/bin/python -m pytest -n $(JOBS) --dist loadfile $(CORE)

clean: ## remove what the other targets built (not .venv)
	rm -rf _build build dist .pytest_cache .mypy_cache .ruff_cache

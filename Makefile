# Every target does its own set-up: `make` and a Python that pyproject.toml admits are enough.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
PORT ?= 8000

.PHONY: help environment book serve test notebooks check bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

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
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

notebooks: environment ## re-execute the notebooks whose outputs are stale
	$(BIN)/python tools/notebooks.py sync

check: environment ## the quick gate: lint, format, types, notebook pairs and freshness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/notebooks.py check

bench: environment ## measure the speed page's ratios anew (fifteen minutes)
	$(BIN)/python -m benchmarks

clean: ## remove what the other targets built (not .venv)
	rm -rf _build build dist .pytest_cache .mypy_cache .ruff_cache

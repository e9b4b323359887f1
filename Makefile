# Every target does its own set-up: a machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2

.PHONY: help book serve test notebooks check bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[book,test]'
	@touch $@

book: .venv/.installed ## build the HTML book (warnings are errors) and say where to open it
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo "Open file://$(CURDIR)/_build/html/index.html   (or: make serve)"

serve: book ## build the book and serve it on http://localhost:8000
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

test: .venv/.installed ## run every check (the tests build the book themselves)
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

notebooks: .venv/.installed ## re-execute the notebooks whose outputs are stale
	$(BIN)/python tools/notebooks.py sync

check: .venv/.installed ## the quick gate: lint, format, types, notebook pairs and freshness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/notebooks.py check

bench: .venv/.installed ## measure the speed page's ratios anew (fifteen minutes)
	$(BIN)/python -m benchmarks

clean: ## remove what the other targets built (not .venv)
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache

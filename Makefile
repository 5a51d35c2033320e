# Everything runs from .venv, which the first target builds; no activation needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.installed
# Whose weights `make weights` makes.
RECIPE ?= digits

.DEFAULT_GOAL := help
.PHONY: help demo test browser notebooks gpu faults lint docs weights clean

help:
	@echo "make demo   noise to images in one forward pass, with a report, and a page that samples in a browser"
	@echo "make test   the test suite (ARGS='-k solve' selects)"
	@echo "make browser  the pages of dsno web and dsno app in a real browser (needs Chromium)"
	@echo "make notebooks  the notebooks from top to bottom (5 minutes; ARGS=restore-and-bridge selects)"
	@echo "make gpu    one GPU in eight minutes: tests, speeds, a recipe (ARGS='--data fashion.npz')"
	@echo "make faults  damage, attacks, kills and full disks by the hundred (15 minutes)"
	@echo "make lint   style, types and the import contract"
	@echo "make weights  the shipped weights, from nothing (30 minutes; RECIPE=digits-classes for those that are told classes)"
	@echo "make docs   the documentation, in site/"
	@echo "make clean  remove what these targets wrote, except .venv"

demo: $(READY)
	$(BIN)/dsno demo
# Beside the report; without the package that browsers run, and a network to fetch it, there is only that.
	@$(BIN)/dsno web digits-classes --overwrite || true

# One thread per worker: two workers with all cores each are slower than either alone.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

browser: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/web tests/app $(ARGS)

notebooks: $(READY)
	$(BIN)/python notebooks/run.py $(ARGS)

# From .venv where it is built, else by `python3` as it is: there may be no network to build it.
gpu:
	$(if $(wildcard $(BIN)/python),PYTHON=$(BIN)/python) sh benchmarks/gpu.sh $(ARGS)

faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The shipped weights are what the recipe makes, nothing else.
weights: $(READY)
	$(BIN)/dsno reproduce $(RECIPE) --out runs/$(RECIPE)
	$(BIN)/python -c "from dsno.runs.shipped import ship; ship('runs/$(RECIPE)', 'src/dsno/weights/$(RECIPE)')"

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks docs notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 on PATH: install Python 3.11 or pass PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old: dsno needs Python 3.11 or newer, pass PYTHON=/path/to/python"; exit 1; }
	@echo "==> virtual environment in .venv ($(PYTHON))"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "==> torch, the one large download"
# On its own and first: the resolver then starts from the pinned build instead of looking at newer ones.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@echo "==> dsno with its extras, pinned by constraints.txt"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,docs]'
	@touch $@

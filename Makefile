# demo, test, lint, docs, bench: each sets up what it needs, in .venv, and reuses it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := sda_core sda_lorenz sda_kolmogorov plugins/sda-mlp plugins/sda-transformer \
	plugins/sda-unet plugins/sda-dps plugins/sda-wandb plugins/sda-tensorboard plugins/sda-ray
# The last two are the extras of sda-ray.
TOOLS := build cftime editables hatchling hypothesis import-linter jaxtyping beartype mypy pytest pytest-xdist ruff scipy zarr \
	cmaes ray[default]
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint format docs bench clean

demo: $(READY)  ## simulate, train, assimilate and evaluate noisy Lorenz-63
	$(BIN)/sda run lorenz63-forecast

test: $(READY) lint  ## formatting, lint, types, import contracts, generated docs, and the tests
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)  ## the statistical and reproduction tests, which take minutes
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## rewrite the generated parts of the documentation
	$(BIN)/python docs/generate.py

bench: $(READY)  ## list the benchmarks; each prints one table
	@ls benchmarks/[!_]*.py

clean:
	rm -rf $(VENV) runs

$(READY): constraints.txt Makefile $(DISTRIBUTIONS:=/pyproject.toml)
	@echo "Setting up $(VENV), once: a minute or two, most of it the download of torch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --constraint constraints.txt torch $(TOOLS)
	$(BIN)/pip install --constraint constraints.txt --no-build-isolation \
		$(foreach d,$(DISTRIBUTIONS),--editable $(d))
	touch $@

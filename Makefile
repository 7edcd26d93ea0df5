# make help lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run paper docs test test-slow bench coverage atlases check format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	# pip compiles in one process. (Some packages carry files that are no Python of this version.)
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

setup: $(READY) ## make the virtual environment .venv with everything pinned

run: $(READY) ## train the default ensemble and open its record (OVERRIDES="members=32 ...")
	$(BIN)/kgon train $(OVERRIDES)

paper: $(READY) ## repeat the paper number by number, an hour; QUICK=1 ten minutes; writes docs/paper
	$(BIN)/kgon paper $(if $(QUICK),quick=true) $(OVERRIDES)

docs: $(READY) ## make the pages as a site that needs no network: site/index.html
	$(BIN)/python -m kgon.cli.reference > docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo site/index.html

test: $(READY) ## run the tests, but for the slow ones
	$(BIN)/pytest -m "not slow"

test-slow: $(READY) ## run the slow tests: sweeps, a real Slurm, kills, a browser, long sampling
	$(BIN)/pytest -m slow

bench: ## measure speed against the peers, in an environment of its own; writes docs/benchmarks.md
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet -c constraints.txt -e '.[nuts]' pytest-benchmark tms-kit==0.4.1 occhio==0.2.3 blackjax==1.7.1
	.venv-bench/bin/pytest -c bench/pytest.ini --benchmark-json=.venv-bench/results.json bench
	.venv-bench/bin/python bench/table.py .venv-bench/results.json docs

coverage: $(READY) ## measure how often a verdict is right, an hour; writes docs/coverage.md
	PYTHONPATH=bench $(BIN)/python -m verdicts.measure docs

atlases: $(READY) ## search all sizes for critical points again, hours; rewrites src/kgon/theory/atlases
	$(BIN)/python -m kgon.landscape.catalogue src/kgon/theory/atlases

check: $(READY) ## lint, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the virtual environment, the site and caches
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache $(shell find src -name __pycache__)

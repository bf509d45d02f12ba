# `make demo` and `make test` set everything up by themselves; PYTHON names another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := sdk device_agent targets tests tools examples
SETUP := pyproject.toml tools/setup/constraints.txt tools/setup/make_venv.py

.DEFAULT_GOAL := help
.PHONY: help demo examples test test-all check lint format docs bench bench-full dist clean

help: ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## the whole way on a bundled example: train, quantise, deploy to a local device, measure
	@$(BIN)/kedge demo

examples: $(patsubst examples/%/run.py,example-%,$(wildcard examples/*/run.py)) ## the five worked examples, one after another; example-NAME runs one

example-%: $(VENV)/.examples
	@$(BIN)/python examples/$*/run.py $(if $(OUT),--out "$(OUT)")

test: $(VENV)/.dev ## the tests that take a moment each; what this machine cannot run is skipped with the reason
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/.dev ## all tests, as CI runs them: KEDGE_REQUIRE turns skips for what it names into failures
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 --ignore tests/loopback/test_examples.py
	@$(BIN)/python -m pytest -q -n 0 --durations=5 tests/loopback/test_examples.py # by themselves: their gates measure times

check: $(VENV)/.dev lint ## formatting, lint, types, import rules, target profiles
	@$(BIN)/mypy sdk device_agent targets
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python tools/check_targets.py

lint: $(VENV)/.dev ## formatting and lint alone
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)

format: $(VENV)/.dev ## rewrite the sources in the one format
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

docs: $(VENV)/.dev ## the documentation site, strictly, with all of its links checked: build/site
	@$(BIN)/python -m tools.docs

bench: $(VENV)/.dev ## every benchmark at a size that ends within 15 minutes; benchmarks/README.md
	@$(BIN)/python -m tools.bench --smoke

bench-full: $(VENV)/.dev ## every benchmark at its full size, in hours; what may say "met"
	@$(BIN)/python -m tools.bench

dist: $(VENV)/.dev ## wheels and source archive, checked and installed in empty environments; SBOM, licences, known vulnerabilities
	@$(BIN)/python -m tools.release

clean: ## remove the environment and what was built
	rm -rf $(VENV) dist build docs/generated .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

# The stamps come last in their recipes: an interrupted set-up is begun again.
$(VENV)/.demo: $(SETUP)
	@$(PYTHON) tools/setup/make_venv.py $(VENV) --extras optimize,agent
	@touch $@

$(VENV)/.examples: $(SETUP)
	@$(PYTHON) tools/setup/make_venv.py $(VENV) --extras optimize,agent,examples
	@touch $(VENV)/.demo $@

$(VENV)/.dev: $(SETUP)
	@$(PYTHON) tools/setup/make_venv.py $(VENV) --extras optimize,agent,dev
	@touch $(VENV)/.demo $(VENV)/.examples $@

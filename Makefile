# urlhealth: plain `make` prints a line of help for each target.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
PIP_AUDIT_VERSION := 2.9.0

# With its bytecode kept, each of the many processes starts sooner.
unexport PYTHONDONTWRITEBYTECODE
# Third parties' usage reports stay off in everything that make starts.
export BENTOML_DO_NOT_TRACK := True
export FEAST_USAGE := False
export MLFLOW_DISABLE_TELEMETRY := true
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo run test faults check bench docs screenshots client lock sbom audit clean

help: ## print this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make .venv and install the locked dependencies

$(VENV)/.installed: requirements.lock pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . --editable clients/python
	@touch $@

demo: setup ## do the whole job on a sample web and show it (SEED=n, PORT=n, EXIT=1 to stop after the table)
	$(BIN)/python -m demo $(if $(SEED),--seed $(SEED)) $(if $(PORT),--port $(PORT)) $(if $(EXIT),--exit)

run: setup ## the platform alone, on URLHEALTH_HOME (default ./var)
	$(BIN)/urlhealth serve

test: setup ## run the suite, in two processes; with URLHEALTH_REQUIRE_SERVICES=1 also what needs all services
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: setup ## kill, cut and restart parts of a platform of several processes, three times each (some minutes)
	URLHEALTH_REQUIRE_SERVICES=1 FAULTS=all FAULT_SEEDS=3 $(BIN)/python -m pytest tests/faults

check: setup ## ruff, mypy, import rules, bandit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config .importlinter
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src serving models

bench: setup ## side-by-side measurements against peers
	$(BIN)/python -m benchmarks

docs: setup ## build the documentation as a site, into site/
	$(BIN)/python -m mkdocs --quiet build --strict

screenshots: setup ## photograph the pages of a demo in chromium, for README and docs (some minutes)
	$(BIN)/python -m demo.screenshots

client: setup ## make what of the Python client is derived from the OpenAPI document
	PYTHONPATH=. $(BIN)/python clients/python/generate.py

lock: setup ## resolve requirements.lock anew (universal, with hashes, without index addresses)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--group dev --extra scale --no-annotate --no-header --output-file requirements.lock pyproject.toml

sbom: setup ## write sbom.json (CycloneDX) and licences.txt of the locked packages that are installed
	$(BIN)/python -m benchmarks.sbom requirements.lock sbom.json licences.txt

audit: setup ## ask for known weaknesses of the locked packages (needs the network)
	$(BIN)/uv tool run pip-audit==$(PIP_AUDIT_VERSION) --requirement requirements.lock --require-hashes --disable-pip

clean: ## remove the installation and the caches (not var/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache site

# Everything runs in .venv, made from the pinned requirements. Only git, Python 3.11 or later and make are
# needed; after the first `make venv` nothing here asks the network for anything.

# The first of these that is 3.11 or later; `make venv PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$python"; break; }; done)

# How long `make soak` plays the simulated world after the properties.
SECONDS ?= 3600

# How many races `make races` runs.
REPEATS ?= 20

# What `make chaos` and `make races` use: sqlite or mongodb (a private server); chaos also the URL of an empty database.
STORE ?= sqlite

BIN := .venv/bin
STAMP := .venv/.stamp
CHECKED := $(wildcard src tests examples benchmarks)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The pinned pyright runs as installed, on the pinned node: it looks for no newer release of either.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench docs soak chaos races mutants lock clean

help: ## Say what each target does.
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 15

venv: $(STAMP) ## Make .venv, once.

$(STAMP): pyproject.toml requirements/dev.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed and was not found; name one: make venv PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python 3.11 or later" >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $(STAMP)

demo: $(STAMP) ## See a workflow survive a crash.
	$(BIN)/streamline demo

test: $(STAMP) ## Run every test.
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP) ## Lint, format, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/pyright --pythonpath $(BIN)/python --warnings $(CHECKED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes streamline_trio --ignoreexternal
	$(BIN)/python -m pytest -q tests/architecture

bench: $(STAMP) ## Measure; the numbers are for this machine.
	$(BIN)/python -m benchmarks

docs: $(STAMP) ## Run every example of the documentation.
	$(BIN)/python -m pytest -q tests/docs
	@echo "The documentation: docs/index.md"

soak: $(STAMP) ## Search for counterexamples for a long time (SECONDS=3600).
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest tests/properties
	$(BIN)/python -m streamline_trio.testing.world --seconds $(SECONDS)

chaos: $(STAMP) ## Kill and freeze worker processes, check every promise (STORE=mongodb: kill the server too).
	$(BIN)/python -m tests.chaos --store $(STORE) --runs 500 --kills 60 --freezes 10

races: $(STAMP) ## Start runs from four processes at once, kill some, count exactly (STORE=mongodb, REPEATS=20).
	$(BIN)/python -m tests.races --store $(STORE) --repeats $(REPEATS)

mutants: $(STAMP) ## Plant faults in copies of the sources, and see that tests and seeds notice each.
	$(BIN)/python -m tests.mutants

lock: $(STAMP) ## Pin the newest allowed requirements (needs the network).
	test -x .venv-lock/bin/pip-compile || { "$(PYTHON)" -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet pip-tools==7.6.2; }
	CUSTOM_COMPILE_COMMAND="make lock" PIP_CONFIG_FILE=/dev/null .venv-lock/bin/pip-compile --quiet --upgrade \
		--generate-hashes --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--extra cli --extra mongo --extra dev --output-file requirements/dev.txt pyproject.toml

clean: ## Remove everything that was made here.
	rm -rf .venv .venv-lock .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

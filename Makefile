# Rushes: every command a newcomer or a developer needs. `make generate` and `make test` start from a bare clone.
PYTHON  ?= python3.11
PROMPT  ?= a red circle moves left over the blue sea
ARGS    ?=
VENV    := .venv
BIN     := $(VENV)/bin
STUBS   := $(wildcard protos/rushes/v1/*.proto) protos/buf/validate/validate.proto

# torch is installed first and on its own, so that nothing else decides which build of it comes.
TORCH   := torch==2.13.0

# Many processes share the cores during the tests: threads of torch must not spin while they wait.
ALONE   := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup generate browser test check fix protos up bench soak clean

help: ## List the commands.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "Rushes needs Python 3.11 or newer: set PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q $(TORCH)
	@touch $@

$(VENV)/run: $(VENV)/pip pyproject.toml
	@echo "Installing Rushes ..."
	@$(BIN)/pip install -q -e '.[all]'
	@touch $@

$(VENV)/dev: $(VENV)/pip pyproject.toml
	@echo "Installing Rushes and its development tools ..."
	@$(BIN)/pip install -q -e '.[dev]'
	@touch $@ $(VENV)/run

setup: $(VENV)/dev ## Install everything, development tools included.

generate: $(VENV)/run ## Make a clip: make generate PROMPT="a blue star falls downward in the snow"
	@$(BIN)/rushes generate "$(PROMPT)" $(ARGS)

up: $(VENV)/run ## Run all services as separate processes.
	@$(BIN)/rushes up $(ARGS)

# The player is tested in a real browser, which is no Python package.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	 && echo "Installing Chromium ..." && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
	 || echo "no Chromium and no way to install it: the browser's test will skip"

test: $(VENV)/dev browser ## Run the tests.
	@$(ALONE) $(BIN)/pytest -q -n 2 --dist loadfile -m 'not soak' $(ARGS)

soak: $(VENV)/dev ## Run the long forms of the fault and load tests.
	@$(ALONE) $(BIN)/pytest -q -m soak $(ARGS)

check: $(VENV)/dev ## Style, types, walls, protos.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code --path protos/rushes
	@if git rev-parse -q --verify origin/main >/dev/null; then $(BIN)/buf breaking --against '.git#ref=origin/main'; \
	 else echo "buf breaking: no origin/main to compare with"; fi
	@$(BIN)/python scripts/stubs.py --check
	@$(BIN)/python scripts/configuration.py --check

fix: $(VENV)/dev ## Apply what style can mend by itself.
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q . ; $(BIN)/buf format -w --path protos/rushes ; $(BIN)/python scripts/configuration.py

protos: $(VENV)/dev ## Regenerate the stubs beside the .proto files.
	@$(BIN)/python scripts/stubs.py

bench: $(VENV)/dev ## Measure every figure that the README quotes.
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove the virtual environment and caches.
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

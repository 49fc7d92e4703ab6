# Everything is built inside the checkout: .venv, node_modules, .farm (state), .cache. `make help` says what there is.
PYTHON ?= python3
PORT ?=
STATE ?= .farm
UP_ARGS ?=
PYTEST_ARGS ?=
# Two workers: tests start whole farms, each worth a core.
PYTEST_WORKERS ?= 2
BIN := .venv/bin
PATHS := agentfarm_sdk jupyterhub_agentfarm tests benchmarks scripts jupyterhub_config.py

.DEFAULT_GOAL := help
.PHONY: help farm setup code-server test lint lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo "  PYTHON=python3.11, PORT=8001 (farm), STATE=DIR (farm), PYTEST_ARGS='-k ledger' (test) may follow."

farm: setup ## set up what is missing, then run a farm on this machine until Ctrl-C
	@$(BIN)/python -m jupyterhub_agentfarm.cli up --state "$(STATE)" $(if $(PORT),--port $(PORT)) $(UP_ARGS)

setup: ## only set up
	@$(PYTHON) scripts/setup.py farm

code-server: ## install code-server for agents' workspaces (600 MB, compiled here)
	@$(PYTHON) scripts/setup.py code-server
	@echo "code-server is offered to whoever may open an agent's server; servers that run offer it after a restart"

test: ## set up what the tests need; then ruff, mypy, pytest
	@$(PYTHON) scripts/setup.py test
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: ## ruff and mypy alone
	@$(PYTHON) scripts/setup.py test
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)
	$(BIN)/mypy

lock: ## resolve the dependencies anew: requirements/*.lock, package-lock.json
	$(PYTHON) -m venv .cache/lock
	.cache/lock/bin/python -m pip install -q "uv>=0.8"
	PATH="$(CURDIR)/.cache/lock/bin:$$PATH" sh scripts/lock.sh

clean: ## remove what was built; the farm's state in .farm stays
	rm -rf .venv node_modules labextension/node_modules jupyterhub_agentfarm/labextension jupyterhub_agentfarm/pages/build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis test-artefacts

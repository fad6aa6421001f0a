# Set-up, tests and documentation. Everything is installed into $(VENV), from constraints.txt.
#   make quickstart              make test              make PYTHON=python3.12 VENV=.venv312 test-all
PYTHON ?= python3
VENV ?= .venv
SITE ?= site
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help quickstart test test-all lint docs clean

help: ## Show the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed ## Install, then run recipes/quickstart.yaml (or show its result if it is complete).
	$(BIN)/egd run recipes/quickstart.yaml --resume

test: $(VENV)/.installed-dev ## Install what the tests need, then run all but the slow ones: minutes.
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-dev ## The same with the slow ones, as CI runs them.
	$(PYTEST)

lint: $(VENV)/.installed-dev ## Check style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev ## Build the documentation into $(SITE)/; a warning is an error.
	$(BIN)/mkdocs build --strict --site-dir "$(abspath $(SITE))"

clean: ## Remove the virtual environment, the built site and the tools' caches. Runs are kept.
	rm -rf $(VENV) $(SITE) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.created:
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "error: no program '$(PYTHON)'; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: egd needs Python >= 3.11, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); name another: make PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	@touch $@

$(VENV)/.installed: $(VENV)/.created constraints.txt pyproject.toml
	$(PIP) install -c constraints.txt -e ".[rl]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created constraints.txt pyproject.toml
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.installed $@

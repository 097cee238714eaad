# Every target does its own set-up: the first one that runs makes .venv and installs the project into it.
# Variables: PYTHON (an interpreter >= 3.11), PIP_ARGS (e.g. --extra-index-url https://download.pytorch.org/whl/cpu
# for a torch without CUDA), JOBS (test processes), QUICK=1 (short benchmarks), ARGS (passed on to the tool).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=
JOBS ?= 2
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready

# No output of ours reaches a server of MLflow's makers, and no run's URL is printed between our lines.
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT := true

.PHONY: help setup demo test check format-check lint types docs format bench mutants torture compat screenshots cli-reference constraints

help:
	@echo "make demo         train small real runs, export them to MLflow and TensorBoard, say how to look at them"
	@echo "make test         the tests (not the slow ones)"
	@echo "make check        everything that CI checks: format, lint, types, docs, tests"
	@echo "make format       format the code"
	@echo "make docs         build the documentation into site/"
	@echo "make bench        benchmarks beside other tools (QUICK=1: a few minutes)"
	@echo "make mutants      break the code in named places; each must turn a test red"
	@echo "make torture      minutes of training, exporting and killing at random"
	@echo "make compat       older MLflow and Lightning, and a new user's first minutes, in environments of their own"
	@echo "make screenshots  take the pictures of the docs again"
	@echo "make cli-reference  write what is made from the options: cli.md, the table in config.md, the JSON schemas"
	@echo "make constraints  take the newest versions that fit, and write them down"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@echo "Setting up .venv (a few minutes, once)" >&2
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/bridge demo demo-runs
	$(BIN)/bridge export demo-runs --to tensorboard --logdir out/tb
	$(BIN)/bridge export demo-runs --to mlflow --tracking-uri sqlite:///out/mlflow.db --experiment demo
	@echo
	@echo "Look at the run directories themselves (each page opens in the browser; Ctrl-C ends it):"
	@echo
	@echo "  in the terminal   $(BIN)/bridge ls demo-runs"
	@echo "  in TensorBoard    $(BIN)/bridge view demo-runs --to tensorboard"
	@echo "  in MLflow         $(BIN)/bridge view demo-runs --to mlflow"
	@echo
	@echo "Look at what was exported:"
	@echo
	@echo "  $(BIN)/bridge view demo-runs --to tensorboard --logdir out/tb"
	@echo "  $(BIN)/bridge view demo-runs --to mlflow --tracking-uri sqlite:///out/mlflow.db --experiment demo"
	@echo
	@echo "The same without the bridge:"
	@echo
	@echo "  $(BIN)/tensorboard --logdir out/tb --samples_per_plugin=images=9999,text=9999,audio=9999,scalars=100000"
	@echo "  $(BIN)/mlflow server --backend-store-uri sqlite:///out/mlflow.db --port 5000"
	@echo "      then http://localhost:5000/#/experiments/1/runs?workflowType=machine_learning"

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow and not compat" $(ARGS)

# The tests come last, so that their summary is the last thing to read.
check: format-check lint types docs test

format-check: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	QUICK=$(QUICK) $(BIN)/python -m tests.benchmarks $(ARGS)

mutants: $(READY)
	$(BIN)/python -m tests.mutants $(ARGS)

torture: $(READY)
	$(BIN)/python -m tests.torture $(ARGS)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m slow

compat: $(READY)
	$(BIN)/python -m pytest -m compat $(ARGS)

screenshots: $(READY)
	$(BIN)/python -m docs.screenshots $(ARGS)

cli-reference: $(READY)
	$(BIN)/python -m tests.docs.cli_reference

# Not needed by any other target: it writes what they all read.
constraints:
	fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(PYTHON) -m venv "$$fresh" && "$$fresh"/bin/pip install --quiet $(PIP_ARGS) -e '.[dev]' && \
	"$$fresh"/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

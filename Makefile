# make demo: set up and run the whole road.  make test: set up and run the tests.
# Where the interpreter already has a CUDA torch, that torch is kept; without a GPU the pinned versions are installed.
# PIP_ARGS reaches pip, for example --extra-index-url with PyTorch's index of CPU wheels.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints/cpu.txt constraints/cuda.txt .ci/setup
	.ci/setup "$(PYTHON)" "$(VENV)" $(PIP_ARGS)

demo: setup
	$(BIN)/pgolf run --preset demo --out runs/demo

# Tests start pgolf some hundred times, so that it pays to keep it compiled, whatever the environment says.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: setup
	$(PYTEST) -m "not slow and not gpu"

test-all: setup
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info

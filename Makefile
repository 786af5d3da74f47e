# flextools: set-up, checks and reproduction targets. `make demo` and `make test` are the two to know.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
SIZE ?= small
# faiss-gpu where an NVIDIA GPU answers, faiss-cpu elsewhere: both provide `faiss`, so exactly one is installed
FAISS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
RUN_ENV = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

# every recipe of pipelines/ is a target: `make less`, `make tsds`, ...
RECIPES := $(basename $(notdir $(wildcard pipelines/*.yaml)))

.PHONY: setup demo test lint format types imports tests golden e2e bench clean $(RECIPES)

setup: $(BIN)/flextools

$(BIN)/flextools: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,demo,$(FAISS)]'
	@touch $@

demo: setup  ## LESS 5 % against two random controls on real text, SIZE=small (default) or SIZE=real
	$(BIN)/python pipelines/demo/run.py --size $(SIZE)

$(RECIPES): %: pipelines/%.yaml setup  ## score, train and evaluate with that recipe, on the demo's pool and model
	$(BIN)/python pipelines/demo/run.py --inputs-only
	$(BIN)/flextools run $<

test: lint types imports tests  ## everything a change must keep true

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

imports: setup  ## the floors of docs/design.md
	$(BIN)/lint-imports

tests: setup
	$(RUN_ENV) $(BIN)/python -m pytest -n 2

golden: setup  ## results that must stay bit-identical
	$(RUN_ENV) $(BIN)/python -m pytest tests/golden

e2e: setup  ## slow: killed runs, several processes, the whole chain
	$(RUN_ENV) $(BIN)/python -m pytest -m e2e

bench: setup  ## side-by-side ratios; run with nothing else on the machine
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/memory.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# flextools: set-up, checks and reproduction targets. `make demo` and `make test` are the two to know.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
SIZE ?= small
# faiss-gpu where an NVIDIA GPU answers, faiss-cpu elsewhere: both provide `faiss`, so exactly one is installed
FAISS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
RUN_ENV = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

# every recipe of pipelines/ is a target: `make less`, `make tsds`, ...; recipes that pack text are mixtures: `make doremi`, ...
MIXTURES := $(basename $(notdir $(shell grep -ls '^  pack:' pipelines/*.yaml)))
RECIPES := $(filter-out $(MIXTURES),$(basename $(notdir $(wildcard pipelines/*.yaml))))
BASELINE = natural
SCALE ?= small
PAPER = slimpajama-$(patsubst paper-%,%,$(SCALE:paper=paper-6b))
SDPA = --set common.model.attn_implementation=sdpa --set stages.score.model.attn_implementation=sdpa
HAS_FLASH = $(BIN)/python -c "import importlib.util as u, sys; sys.exit(not u.find_spec('flash_attn'))"

.PHONY: help inputs setup demo test lint format types imports tests golden e2e bench clean $(RECIPES) $(MIXTURES)

help:  ## what there is to make
	@grep -hE '^[a-z0-9_$$()%: -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([^:]*):.*## */\1\t/' | expand -t 24
	@echo "recipes:                $(RECIPES)"
	@echo "mixtures:               $(MIXTURES)"

setup: $(BIN)/flextools  ## the environment, .venv

$(BIN)/flextools: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,demo,$(FAISS)]'
	@touch $@

demo: setup  ## LESS 5 % against two random controls on real text, SIZE=small (default) or SIZE=real
	$(BIN)/python pipelines/demo/run.py --size $(SIZE)

inputs: setup  ## the demo's pool, target and model, which flextools.yaml and the recipes read
	$(BIN)/python pipelines/demo/run.py --size $(SIZE) --inputs-only

$(RECIPES): %: pipelines/%.yaml setup  ## score, train and evaluate with that recipe, on the demo's pool and model
	$(BIN)/python pipelines/demo/run.py --inputs-only
	$(BIN)/flextools run $<

dynamic_moe: BASELINE = natural_moe

$(MIXTURES): %: pipelines/%.yaml setup  ## that mixture against natural proportions, SCALE=small, paper or paper-30b
ifeq ($(SCALE),small)
	$(BIN)/python pipelines/mixture/make_inputs.py
	$(BIN)/flextools run $<
	$(BIN)/flextools evaluate runs/mix/$(BASELINE) $(filter-out runs/mix/$(BASELINE),runs/mix/$@)
	$(BIN)/flextools inspect artifacts/mix/$@ --picture runs/mix/$@-weights.png
else
	@test -f pipelines/paper/$(PAPER)-$@.yaml || { echo "error: $@ has no recipe for SCALE=$(SCALE); doremi has" >&2; exit 2; }
	$(LAUNCH) $(BIN)/flextools run pipelines/paper/$(PAPER)-$@.yaml $$($(HAS_FLASH) || echo "$(SDPA)")
	$(BIN)/flextools evaluate runs/paper/$(PAPER)/natural runs/paper/$(PAPER)/$@
	$(BIN)/flextools inspect artifacts/paper/$(PAPER)/$@ --picture runs/paper/$(PAPER)/$@-weights.png
endif

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
	$(BIN)/python benchmarks/mixture_sampler.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .demo .mix
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

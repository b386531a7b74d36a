# Two commands from nothing: `make demo`, `make test`. `make help` lists the rest.
PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What pip installs as torch. On Linux that is the CUDA build; for a CPU wheel:
#   make demo TORCH="torch --index-url <PyTorch's CPU wheel index>"
TORCH ?= torch
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
ARGS ?=
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)
# One thread a worker: the workers are the parallelism.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help setup demo test check docs docs-check edit run nb export clean readme lab hooks bench distclean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

# ---- set-up: a stamp file a set of packages, so that a second run installs nothing ----

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The pinned versions need Python 3.11 or newer; $(PY) is $$($(PY) --version 2>&1). Try: make PY=python3.11 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) (once; a minute or two, longer where torch has to be downloaded)"
	@test -x $(BIN)/python || $(PY) -m venv $(VENV) || { \
	  echo "$(PY) -m venv failed. On Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "  1/2 torch"
	@if [ -t 1 ]; then $(subst -qq,,$(PIP)) $(TORCH); else $(PIP) $(TORCH); fi  # a person sees the download move
	@echo "  2/2 ltx_nb and what it needs"
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "  the notebook and test tools"
	@$(PIP) -e ".[dev,docs]"
	@touch $@

# The oracles run beside our model in the parity tests. ltx-core asks for torchaudio, which would bring another torch:
# hence --no-deps, and what it really needs by name.
$(VENV)/.oracle: $(VENV)/.dev
	@echo "  the oracles of the parity tests"
	@$(PIP) -e ".[oracle]"
	@$(PIP) --no-deps ltx-core
	@touch $@

setup: $(VENV)/.dev  ## install what an author needs (demo and test do their own set-up)

# ---- the two commands ----

demo: $(VENV)/.base  ## clips in, a LoRA and before/after clips with sound out, on the tiny model
	@$(BIN)/ltx-nb demo $(ARGS)

test: $(VENV)/.oracle  ## every chapter and every test; ends with 'N passed'
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# ---- the habits of an author; NB=nbs/1_model/00_latents.ipynb names the notebook ----

edit: $(VENV)/.dev  ## write the percent view of NB to .pct/, to edit in a text editor
	@$(BIN)/python tools/nb.py edit $(NB)

nb: $(VENV)/.dev  ## the view of NB back into the notebook: run, keep outputs, clean, export
	@$(ONE_THREAD) $(BIN)/python tools/nb.py sync $(NB)

run: $(VENV)/.dev  ## run NB in place and keep its outputs
	@$(ONE_THREAD) $(BIN)/python tools/nb.py run $(NB)

export: $(VENV)/.dev  ## clean every notebook and export the library
	@$(BIN)/python tools/nb.py export

clean: $(VENV)/.dev  ## clean the notebooks only
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_clean --fname tutorials

readme: $(VENV)/.dev  ## README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

lab: $(VENV)/.dev  ## JupyterLab on the notebooks
	@$(PIP) jupyterlab && $(BIN)/jupyter lab $(ARGS)

check: $(VENV)/.dev  ## quick: lint, notebooks clean, library in sync, floors in order
	@$(BIN)/ruff check
	@$(ONE_THREAD) $(BIN)/python -m pytest tests/test_repository.py $(ARGS)

hooks: $(VENV)/.dev  ## merge notebooks cell by cell in this clone
	@git config --local include.path ../.gitconfig && echo "git now merges notebooks with nbdev_merge"

# ---- the site ----

docs: $(VENV)/.dev  ## build the site into _docs/
	@$(ONE_THREAD) $(BIN)/python docs/build.py $(ARGS)

docs-check: docs  ## look at the built site with a headless browser, where there is one
	@$(BIN)/python docs/look.py $(ARGS)

bench: $(VENV)/.oracle  ## step time against the oracle, alternating in one process
	@set -e; found=; for script in benchmarks/*.py; do [ -e "$$script" ] || continue; found=1; \
	  echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done; [ -n "$$found" ] || echo "no benchmark in benchmarks/"

distclean:  ## remove what these commands made: .venv, the site, caches
	rm -rf $(VENV) _docs _proc build dist *.egg-info .pytest_cache .ruff_cache

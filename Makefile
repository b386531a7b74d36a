# Two commands from nothing: `make demo`, `make test`. `make help` lists the rest.
PY ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What pip installs as torch. Without a GPU, on Linux, PyTorch's CPU build is tried first: a few hundred MB instead of 5 GB.
# `make demo TORCH_CPU_INDEX=` takes the build that pip finds by itself; for another version than the pinned one say
# CONSTRAINTS=/dev/null TORCH=torch==2.14.1.
TORCH ?= torch
GPU := $(wildcard /dev/nvidiactl /proc/driver/nvidia/version)$(shell command -v nvidia-smi 2>/dev/null)
TORCH_CPU_INDEX ?= $(if $(GPU),,$(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu))
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
ARGS ?=
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS)
LOG := $(VENV)/install.log
# A step of the set-up: a person at a terminal sees it move, elsewhere it is quiet, and one that fails says why.
STEP = step() { if [ -t 1 ]; then "$$@"; else "$$@" > $(LOG) 2>&1 || { tail -n 25 $(LOG) >&2; \
  echo "The set-up failed at: $$*" >&2; exit 1; }; fi; }; step
# One thread a worker: the workers are the parallelism.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help setup demo test check check-install docs docs-check edit run nb export clean readme lab hooks bench gpu gpu-wheels distclean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

# ---- set-up: a stamp file a set of packages, so that a second run installs nothing ----

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The pinned versions need Python 3.11 or newer; $(PY) is $$($(PY) --version 2>&1). Try: make PY=python3.11 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) (once; a minute or two, longer where torch has to be downloaded)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PY) -m venv --clear $(VENV) || { \
	  echo "$(PY) -m venv failed. On Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "  1/2 torch"
	@if [ -n "$(TORCH_CPU_INDEX)" ]; then echo "      no GPU here: PyTorch's CPU build, if it is to be had"; \
	  CPU="$(PIP) --no-deps --retries 0 --timeout 10 --index-url $(TORCH_CPU_INDEX) $(TORCH)"; \
	  { if [ -t 1 ]; then $$CPU; else $$CPU > $(LOG) 2>&1; fi; } || \
	  echo "      it is not ($$(tail -n 1 $(LOG) 2>/dev/null)); taking the usual one"; fi
	@$(STEP) $(PIP) "$(TORCH)"
	@echo "  2/2 ltx_nb and what it needs"
	@$(STEP) $(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "  the notebook and test tools"
	@$(STEP) $(PIP) -e ".[dev,docs]"
	@touch $@

# The oracles run beside our model in the parity tests. ltx-core asks for torchaudio, which would bring another torch:
# hence --no-deps, and what it really needs by name.
$(VENV)/.oracle: $(VENV)/.dev
	@echo "  the oracles of the parity tests"
	@$(STEP) $(PIP) -e ".[oracle]"
	@$(STEP) $(PIP) --no-deps ltx-core
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
	@$(STEP) $(PIP) jupyterlab && $(BIN)/jupyter lab $(ARGS)

check: $(VENV)/.dev  ## quick: lint, format, notebooks clean, library in sync, floors in order
	@$(BIN)/ruff check -q
	@$(BIN)/ruff format -q --check
	@$(ONE_THREAD) $(BIN)/python -m pytest -q tests/test_repository.py $(ARGS)

check-install: $(VENV)/.base  ## can others install it: versions for every Python, the wheel in a clean environment
	@TORCH_CPU_INDEX="$(TORCH_CPU_INDEX)" $(BIN)/python tools/check_install.py $(ARGS)

hooks: $(VENV)/.dev  ## check at every commit what `make check` checks; merge notebooks cell by cell in this clone
	@git config --local include.path ../.gitconfig && echo "git now merges notebooks with nbdev_merge"
	@$(STEP) $(PIP) pre-commit && $(BIN)/pre-commit install

# ---- the site ----

docs: $(VENV)/.dev  ## build the site into _docs/
	@$(ONE_THREAD) $(BIN)/python docs/build.py $(ARGS)

docs-check: docs  ## look at the built site with a headless browser, where there is one
	@$(BIN)/python docs/look.py $(ARGS)

bench: $(VENV)/.oracle  ## step time against the oracle, alternating in one process
	@set -e; found=; for script in benchmarks/*.py; do [ -e "$$script" ] || continue; found=1; \
	  case "$$script" in */gpu.py|*/real_size.py) continue;; esac; echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done; [ -n "$$found" ] || echo "no benchmark in benchmarks/"

# With the PyTorch that is there, in an environment that sees it; what cannot be installed makes its part fail, and no other.
gpu:  ## what a CUDA GPU does with the library, in 8 minutes; results in benchmarks/results
	@[ -x $(VENV)-gpu/bin/python ] || $(PY) -m venv --system-site-packages $(VENV)-gpu
	@$(VENV)-gpu/bin/python -m pip install -q --disable-pip-version-check -e . pytest > $(VENV)-gpu/install.log 2>&1 || \
	  echo "not everything could be installed (see $(VENV)-gpu/install.log); going on with what is here" >&2
	@$(VENV)-gpu/bin/python -m benchmarks.gpu $(ARGS)

# For a machine that reaches no registry. PYTHON_THERE is the version of its Python.
GPU_WHEELS = annotated-types pydantic pydantic-core typing-inspection typing-extensions PyYAML av safetensors accelerate psutil \
  packaging tqdm transformers tokenizers huggingface-hub regex requests urllib3 certifi charset-normalizer idna \
  httpx2 httpcore2 truststore h11 anyio sniffio peft typer click rich markdown-it-py mdurl pygments shellingham pytest pluggy iniconfig
PYTHON_THERE ?= 3.12
gpu-wheels:  ## packages for `python -m benchmarks.gpu` on a machine without a network, into build/gpu-wheels
	@rm -rf build/gpu-wheels && mkdir -p build/gpu-wheels
	$(BIN)/python -m pip download -q --no-deps --only-binary :all: --platform manylinux_2_28_x86_64 \
	  --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --python-version $(PYTHON_THERE) \
	  -d build/gpu-wheels -c constraints.txt $(GPU_WHEELS)
	@du -sh build/gpu-wheels

distclean:  ## remove what these commands made: .venv, the site, caches
	rm -rf $(VENV) $(VENV)-gpu _docs _proc build dist *.egg-info .pytest_cache .ruff_cache

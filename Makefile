# make repro: install, then the whole pipeline.  make test: install, then the tests.
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
export PATH := $(BIN):$(PATH)

.PHONY: setup repro test test-long lint docs faults

setup: $(STAMP)

# Reused as long as what it was made from has not changed.
$(STAMP): pyproject.toml constraints.txt rfpp_core/rng/noise.c
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rfpp needs Python 3.11 or newer with venv (Debian: apt install python3-venv); set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

repro: setup
	dvc repro

test: setup
	python -m pytest -n 2 --dist worksteal -m "not long"

# The whole runs that `make test` leaves out.
test-long: setup
	python -m pytest -n 2 --dist worksteal -m long

lint: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports

# The site, into site/; `python -m http.server -d site` serves it with its search.
docs: $(STAMP)-docs
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

$(STAMP)-docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

ROUNDS ?= 200
SEED ?= 0

faults: setup
	python -m tests.faults.harness --rounds $(ROUNDS) --seed $(SEED) $(if $(FAULTS),--home $(FAULTS))

# make demo    set up, then train, certify, attack and report on the embedded digits
# make test    set up, then run the tests
# make check   format, lint, types, direction of imports
# make wheel   build the wheel into dist/
# make evidence   the long counts and benchmarks, into benchmarks/results/

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check wheel evidence clean

setup: $(STAMP)

# torch goes first and pinned, so that no resolver picks another build. auto_LiRPA 0.3 declares torch < 1.13 and runs with
# the present one: hence --no-deps, and the few packages that it needs by name. certkit works without it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "certkit needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt tqdm appdirs pyyaml packaging ninja
	$(BIN)/python -m pip install --quiet --no-deps auto_LiRPA==0.3
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/certkit demo --out demo

test: $(STAMP)
	$(BIN)/python -Im pytest --numprocesses auto

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy attacks
	$(BIN)/mypy reports
	PYTHONPATH=. $(BIN)/lint-imports

wheel: $(STAMP)
	rm -rf dist build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

evidence: $(STAMP)
	mkdir -p benchmarks/results
	$(BIN)/python -m benchmarks.fuzz --cases 1000000 > benchmarks/results/fuzz.json
	$(BIN)/python -m benchmarks.digits > benchmarks/results/digits.json
	$(BIN)/python -m benchmarks.constraints > benchmarks/results/constraints.json
	$(BIN)/python -m benchmarks.muon_step > benchmarks/results/muon_step.json
	$(BIN)/python -m benchmarks.spectral > benchmarks/results/spectral.json
	$(BIN)/python -m benchmarks.report > benchmarks/results/report.json
	$(BIN)/python -m benchmarks.throughput > benchmarks/results/throughput.json
	$(BIN)/python -m benchmarks.attacks > benchmarks/results/attacks.json
	$(BIN)/python -m benchmarks.violations > benchmarks/results/violations.json
	$(BIN)/python -m benchmarks.mutants > benchmarks/results/mutants.json
	$(BIN)/python -m benchmarks.foreign > benchmarks/results/foreign.json
	$(BIN)/python -m benchmarks.elementary --out benchmarks/results/elementary.json

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

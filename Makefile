# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make demo    explain the shipped model's picture
#   make test    lint, types, tests; then `make cudasim`: the tests that run kernels as a card would, without one
# One tells which of ONNX's own backend tests pass, and why the others do not count:
#   make conformance
# One has every kernel call's arrays between pages that nobody may touch, on three kinds of processor; GUARD takes
# options (--help lists them):
#   make guard GUARD="--every 20"
# And one compares gbp with other libraries, those that are installed; BENCH_PYTHON names an environment that has
# numba and them, BENCH takes options (--help lists them):
#   make bench BENCH_PYTHON=python BENCH=--bars

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

BENCH_PYTHON ?= $(BIN)/python

.PHONY: demo test cudasim conformance guard lint bench clean

demo: .venv/installed
	@mkdir -p out
	$(BIN)/gbp explain models/demo.onnx models/demo.png --rule all -o out/demo.png
	@echo "The explanation is the picture $(CURDIR)/out/demo.png"

test: lint
	$(BIN)/python -m pytest
	$(MAKE) cudasim

cudasim: .venv/installed-dev
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest tests/test_card.py tests/kernels

conformance: .venv/installed-dev
	$(BIN)/python tests/conformance.py

guard: .venv/installed-dev
	$(BIN)/python tests/guard.py $(GUARD)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	PYTHONPATH=. $(BENCH_PYTHON) benchmarks/networks.py $(BENCH)

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "gbp needs Python 3.11 or newer; name it with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv out build *.egg-info

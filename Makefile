# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make demo    explain the shipped model's picture
#   make test    all tests, those of the CPU on two processes; beside them those that run the CUDA kernels in Numba's
#                simulator, without a card, and lint and types
# While one works:
#   make check   lint, types and a fast part of the tests, in less than 90 seconds once the kernels are compiled
# By hand, before a release: the fast tests on every Python at hand, with the lowest and the newest dependencies that
# pyproject.toml allows; each result goes to .ci/matrix.md, and a run that was stopped goes on where it was:
#   make matrix
# One prints which of ONNX's own backend tests pass, and why the others do not count:
#   make conformance
# One has the arrays of every kind of kernel call between pages that nobody may touch, on three kinds of processor;
# GUARD takes options (--help lists them):
#   make guard GUARD="--every 20"
# One makes the pages of the documentation, in out/site:
#   make docs
# And one compares gbp with other libraries, those that are installed; BENCH_PYTHON names an environment that has
# numba and them, BENCH takes options (--help lists them):
#   make bench BENCH_PYTHON=python BENCH=--bars

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
# uv installs with a third of pip's CPU time.  It knows nothing of pip's settings, so where it finds no packages pip
# does, and where pip finds no uv.  Most modules are never imported, so bytecode is made of those that are, when they are.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
UV := $(BIN)/python -m uv pip install --quiet --constraint constraints.txt --python $(BIN)/python
unexport PYTHONDONTWRITEBYTECODE

# Processes that run tests; each computes in one thread, except where threads are the subject.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Runs at once print one after the other, where this make knows how.
BESIDE := $(MAKE) --no-print-directory --jobs 3 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

BENCH_PYTHON ?= $(BIN)/python

.PHONY: demo test check cpu kernels cudasim matrix conformance guard docs lint bench clean

demo: .venv/installed
	@mkdir -p out
	$(BIN)/gbp explain models/demo.onnx models/demo.png --rule all -o out/demo.png
	@echo "The explanation is the picture $(CURDIR)/out/demo.png"

test:
	$(BESIDE) cudasim lint cpu

check: lint
	$(PYTEST) -m fast

cpu: .venv/installed-dev kernels
	$(PYTEST)

# Needs no other packages, so it runs while they are installed.
kernels: .venv/installed
	$(BIN)/python tests/compile_kernels.py

# Needs few packages, so it begins while the others are installed; with what needs no kernels of the CPU, which are
# being compiled then.  Those of the CPU go first, so that it still has something to do when one of them only waits.
cudasim: .venv/installed-test
	NUMBA_ENABLE_CUDASIM=1 nice -n 2 $(BIN)/python -m pytest tests/kernels tests/test_card.py

matrix: .venv/installed-dev
	$(BIN)/python .ci/matrix.py

conformance: .venv/installed-dev
	$(BIN)/python tests/conformance.py

guard: .venv/installed-dev
	$(BIN)/python tests/guard.py $(GUARD)

docs: .venv/installed-dev
	$(BIN)/python -m mkdocs build --strict
	@echo "The documentation begins at $(CURDIR)/out/site/index.html"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	PYTHONPATH=. $(BENCH_PYTHON) benchmarks/networks.py $(BENCH)

# One after the other: two at once may disturb each other.
.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "gbp needs Python 3.11 or newer; name it with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	-$(PIP) uv
	$(UV) --editable . || $(PIP) --editable .
	@touch $@

.venv/installed-test: .venv/installed
.venv/installed-dev: .venv/installed-test
.venv/installed-%:
	$(UV) 'gbp-explain[$*]' || $(PIP) 'gbp-explain[$*]'
	@touch $@

clean:
	rm -rf .venv out build dist *.egg-info

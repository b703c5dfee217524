# `make run` and `make test` do everything on a fresh machine with Python 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without compiling all 19,000 modules: Python compiles the quarter that is imported, then. Images that forbid it to keep
# what it compiled would have every program compile everything again, for more than half of its start.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --no-compile

.PHONY: env run check test format bench nano-train nano-eval

env: $(VENV)/.runs

$(VENV)/.runs: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --requirement requirements.txt
	touch $@

$(VENV)/.tests: requirements-dev.txt $(VENV)/.runs
	$(INSTALL) --requirement requirements-dev.txt
	touch $@

run: $(VENV)/.runs  ## the app on http://127.0.0.1:7860
	$(BIN)/python app.py

check: $(VENV)/.tests  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(VENV)/.tests  ## all tests
	tests/install_programs.sh
	# Two processes of one thread: more of them would wait for each other on two cores. Whole files, since their tests
	# share apps, servers, models and Playwright's event loop, which must not run beside other tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# BENCH="--reference CHECKOUT --diffsynth FOLDER --dtype bfloat16" compares; python -m benchmarks.denoising --help says how
bench: $(VENV)/.tests  ## the denoising loop on a small twin of the 14B
	$(BIN)/python -m benchmarks.denoising $(BENCH)

nano-train: $(VENV)/.tests  ## train the small model from nothing, or go on where the last sitting ended
	$(BIN)/python -m training

nano-eval: $(VENV)/.tests  ## the shipped nano on held-out scenes: every effect, then two at a time
	$(BIN)/python -m training evaluate
	$(BIN)/python -m training evaluate --effects paired --out runs/evaluation/paired

# Both commands need nothing but Python and make: they set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-slow lint clean

demo: .venv/.demo
	$(BIN)/skvae demo --out skvae-demo

# Two processes with one thread each: more threads only wait for each other.
PYTEST := OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test: .venv/.test
	$(PYTEST) -m "not slow"

test-all: .venv/.test
	$(PYTEST)

test-slow: .venv/.test
	$(PYTEST) -m slow

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install -q -e '.[plot,progress]'
	touch $@

.venv/.test: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv skvae-demo

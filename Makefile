# Both commands need nothing but Python and make: they set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/.demo
	$(BIN)/skvae demo --out skvae-demo

test: .venv/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q

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

# Two commands on a fresh machine with Python 3.11+, pip and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow lint types format clean

setup: .venv/ready
	@$(BIN)/foreword models pull >/dev/null && echo "the built-in model is ready"

.venv/ready: pyproject.toml
	@echo "making .venv (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip --quiet
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/foreword demo

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check src tests examples
	$(BIN)/ruff format --check src tests examples

types: .venv/ready
	$(BIN)/pyright

format: .venv/ready
	$(BIN)/ruff check --fix src tests examples
	$(BIN)/ruff format src tests examples

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist

# Everything a newcomer needs: `make demo` and `make test`. Both build .venv once and find it again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint types install docs clean

help:
	@echo "make demo   adapt, audit and report on the built-in private set (runs/demo/report.html)"
	@echo "make test   lint, type-check and test"
	@echo "make docs   write the generated tables of docs/"
	@echo "make clean  remove .venv and caches"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('lorica needs Python 3.11 or newer; set PYTHON=...' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,inception,dp,ray,vision,onnx,parquet]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/lorica demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python tools/docs_tables.py

test: lint types
	$(BIN)/python tools/docs_tables.py --check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist

# The two commands: make demo, make test. Both set up their own environment in .venv. make proofs: slow tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test proofs lint wheel docs clean
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/calotype demo

test: lint
	$(BIN)/pytest -n 2 --dist loadfile

proofs: .venv/ready-dev
	$(BIN)/pytest tests/proofs

lint: .venv/ready-dev
	$(BIN)/ruff check src tests bench contrib docs
	$(BIN)/ruff format --check src tests bench contrib docs
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: .venv/ready-dev
	$(BIN)/python -m build

docs: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -q -W docs dist/docs

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Calotype needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv dist build

# The two commands: make demo, make test. Both set up their own environment in .venv. make proofs: slow tests, and those
# that need packages which `make test` does without.
PYTHON ?= python3
BIN := .venv/bin
DEMO_PAGE := runs/portraits-64-1/web
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WITH_PACKAGES := $(wildcard tests/test_export*.py) tests/test_foreign_autoencoders.py tests/test_frozen.py tests/test_networks.py

.PHONY: demo test proofs lint wheel docs clean
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/calotype demo

test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Here a skip for want of a package is a failure: see tests/conftest.py.
proofs: .venv/ready-proofs node_modules/onnxruntime-web
	FAIL_ON_SKIP=1 $(BIN)/pytest tests/proofs $(WITH_PACKAGES)

lint: .venv/ready-dev
	$(BIN)/ruff check src tests bench contrib docs
	$(BIN)/ruff format --check src tests bench contrib docs
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: .venv/ready-dev
	$(BIN)/python -m build

docs: .venv/ready
	$(INSTALL) -e '.[docs]'
	$(BIN)/sphinx-build -q -W docs dist/docs
	rm -rf dist/docs/demo
	if [ -d $(DEMO_PAGE) ]; then cp -R $(DEMO_PAGE) dist/docs/demo; fi

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Calotype needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/ready-dev: .venv/ready
	$(INSTALL) -e '.[dev]'
	touch $@

.venv/ready-proofs: .venv/ready-dev
	$(INSTALL) -e '.[dev,docs,hub,onnx,text,transformers]'
	$(INSTALL) --no-deps torch-fidelity==0.4.0  # one module of it; the others need torchvision
	touch $@

# For the exported page. Where npm is missing, its test says so.
node_modules/onnxruntime-web:
	if command -v npm; then npm install --prefix . --silent --no-save --no-package-lock onnxruntime-web@1.30.0; fi

clean:
	rm -rf .venv dist build node_modules

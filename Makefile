# make demo    sets everything up (a virtual environment in .venv) and runs the main job
# make test    formatting, lint, types, and the tests
# make emulate-all   every kernel of every ROCm target under ISA emulation, with a report: emulation.html (slow)
# make mutate  changes instructions of kernels one at a time, and says how many changes are noticed under emulation (slow)
# make test-deploy   the tests of what a deployment host does, in an environment without the compiler

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint test-deploy emulate-all mutate bench clean

demo: $(VENV)/ready
	$(BIN)/python examples/demo.py

test: $(VENV)/ready lint
	$(BIN)/pytest -n auto --dist loadgroup

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

emulate-all: $(VENV)/ready
	$(BIN)/iq compile --target rocm --out artifacts
	$(BIN)/iq verify artifacts --emulate --target rocm --report emulation.html

mutate: $(VENV)/ready
	$(BIN)/python tests/mutate.py

bench: $(VENV)/ready
	$(BIN)/python benchmarks/matmul.py

# Debian's python3 comes without venv; install it where we may.
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -m venv $(VENV) || { echo "installing python3-venv"; \
	    apt-get update -qq && apt-get install -y -qq python3-venv && rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) artifacts demo emulation.html

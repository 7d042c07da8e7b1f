# iq's tasks. `make help` lists them. Everything is set up by the first that needs it, in .venv; on Debian, missing system packages are
# installed where that may be done without asking (tools/system-packages), else named.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPLOY := .venv-deploy

# Kernels that tests compile are kept from one run to the next: what is unchanged is not compiled again.
export IQ_TEST_CACHE_DIR ?= $(CURDIR)/.test-cache

# Says which disassembler will be used, or why none will do.
DISASSEMBLER := $(BIN)/python -c 'import sys; from iq.inspect import Objdump; found = Objdump.find(); sys.exit(found if isinstance(found, str) else 0)'

# One format, on the CPU and on one emulated GPU; the rooms, the packaging and the check of waits.
QUICK ?= -k 'gfx1201-q4_0 or (q4_0 and not gfx and not any_shape) or imports or waits and not hardly' \
    $(addprefix tests/test_,emulated_kernels.py formats.py format_bytes.py kernels.py packaging.py imports.py waits.py)

TORCH ?= torch==2.13.0

# What `make emulate-all` runs: one processor of each generation, and gfx90a.
EMULATE ?= gfx90a,gfx942,gfx1030,gfx1100,gfx1201

# More for tools/kernels_diff.py: DIFF='--target gfx942 --format q4_k'.
DIFF ?=

# What runs on a deployment host, without any extra.
DEPLOY_TESTS := $(addprefix tests/test_,atomic.py buffer.py candle.py kernels.py packaging.py qtensor.py)

# What a GPU host without IREE's runtime installs beside iq itself.
SLIM := 'numpy>=2.1' 'ml-dtypes>=0.4' 'msgspec>=0.19'

.NOTPARALLEL:
.PHONY: help demo test quick lint fix test-deploy emulate-all mutate crash-test fuzz golden support kernels-diff bench emulator tools clean

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-14s %s\n", $$1, $$2 }'

demo: $(VENV)/ready ## write a GGUF file, compile bundles, run and check every op on the CPU; then a language model answers a question
	$(BIN)/python examples/demo.py
	@$(MAKE) --no-print-directory emulator
	IQ_BUNDLE_PATH=demo/artifacts $(BIN)/python examples/llm.py

test: tools lint ## formatting, lint, types, and the tests: what CI runs
	$(BIN)/pytest -n auto --dist loadgroup

quick: tools lint ## under a minute: lint, and the tests of one format on one GPU
	$(BIN)/pytest -q -n auto $(QUICK)

lint: $(VENV)/ready ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/ready ## format, and mend what lint can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-deploy: tools ## the tests that a deployment host can run, where iq is installed without extras; a GPU's kernels without IREE
	$(BIN)/iq compile --target $$($(BIN)/python -c 'import iq; print(iq.Device("cpu").target.id)') --out $(DEPLOY)/artifacts
	$(PYTHON) -m venv --clear $(DEPLOY)/venv
	$(DEPLOY)/venv/bin/pip install --quiet --disable-pip-version-check . pytest hypothesis
	IQ_BUNDLE_PATH=$(DEPLOY)/artifacts $(DEPLOY)/venv/bin/pytest -m 'not needs_extras' $(DEPLOY_TESTS)
	$(BIN)/iq compile --target gfx1100 --format q4_0 --out $(DEPLOY)/artifacts-gpu
	$(PYTHON) -m venv --clear $(DEPLOY)/slim
	$(DEPLOY)/slim/bin/pip install --quiet --disable-pip-version-check $(SLIM) pyelftools platformdirs
	$(DEPLOY)/slim/bin/pip install --quiet --disable-pip-version-check --no-deps .
	$(DEPLOY)/slim/bin/python tests/slim.py $(DEPLOY)/artifacts-gpu

emulate-all: tools ## every kernel of five gfx targets under ISA emulation, with a report: emulation.html (slow): make emulate-all EMULATE=gfx906
	$(BIN)/iq compile --target $(EMULATE) --out artifacts
	$(BIN)/iq verify artifacts --emulate --target $(EMULATE) --report emulation.html
	IQ_EMULATED_TARGETS=$(EMULATE) $(BIN)/pytest -q -n auto tests/test_isa.py

support: $(VENV)/ready ## write docs/formats.md from the declarations
	$(BIN)/python tools/support_tables.py

mutate: tools ## change instructions of kernels one at a time, and say how many changes emulated runs notice (slow)
	$(BIN)/python tests/mutate.py

crash-test: tools ## plant 1000 failures in every kind of call, and see that the interpreter survives (half a minute)
	IQ_CACHE_DIR=$(IQ_TEST_CACHE_DIR) $(BIN)/python -X faulthandler tests/crash.py 1000

fuzz: tools ## feed 100,000 damaged manifests, executables and bundles to what reads them (a minute): make fuzz COUNT=1000000
	IQ_CACHE_DIR=$(IQ_TEST_CACHE_DIR) $(BIN)/python tests/fuzz_bundle.py $(COUNT)

golden: $(VENV)/ready ## render again what tests/golden keeps to be read, and review the diff
	$(BIN)/python tools/golden_renders.py

kernels-diff: tools ## what the working tree's templates and schedules make of the kernels at a revision: make kernels-diff BASE=main
	@test -n "$(BASE)" || { echo "name a revision: make kernels-diff BASE=main"; exit 2; }
	$(BIN)/python tools/kernels_diff.py $(BASE) $(DIFF)

bench: $(VENV)/ready ## time matrix products on the CPU
	$(BIN)/python benchmarks/matmul.py

# What the emulator needs beside Python: a C compiler, and a disassembler that decodes the kernels. With them the extension that launches
# kernels is built, which an older $(VENV) may lack.
emulator:
	@tools/system-packages python headers cc objdump
	@$(MAKE) --no-print-directory $(VENV)/ready
	@$(BIN)/python hatch_build.py
	@$(DISASSEMBLER) 2>/dev/null || { tools/system-packages llvm-22 && $(DISASSEMBLER); }

# What most tests need.
tools: emulator $(VENV)/torch

# torch's CPU build, for tests; where its own index cannot be reached, whatever build the package index gives.
$(VENV)/torch: $(VENV)/ready
	@echo "installing $(TORCH)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu $(TORCH) \
	    2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

$(VENV)/ready: pyproject.toml
	@tools/system-packages python
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean: ## remove everything that was set up or made
	rm -rf $(VENV) $(DEPLOY) .test-cache artifacts demo emulation.html

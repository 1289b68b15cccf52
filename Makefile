PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-long check kernel-table gpu-check bench-peers reference docs pictures clean

# The stamp makes a second call quick; it is older than pyproject.toml when dependencies changed.
setup: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "BatchLLM needs Python 3.11 or newer; name one with: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# A real batch on a real model through a real server and the openai SDK.
demo: setup
	$(BIN)/python docs/examples/demo.py

# One thread each: two test processes with two threads each would wait for one another on two cores.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Slow proofs: exactness on a real file, hits at random moments, builds for every card.
test-long: setup
	$(BIN)/python -m pytest -m long --timeout 1500

# Registers, shared memory and instructions of the attention kernels, from builds that need no GPU.
kernel-table: setup
	$(BIN)/python -m benchmarks.kernel_report --write docs/kernels.md

# Other engines beside ours, each in an environment of its own under build/peers; hours, on a quiet machine.
bench-peers: setup
	$(BIN)/python -m benchmarks.bench_peers --plot build/peers/peers.png

# On a machine with a GPU: are the kernels right there, and how fast.
gpu-check: setup
	$(BIN)/python -m benchmarks.gpu_check

# docs/guide/reference-*.md, from the code.
reference: setup
	$(BIN)/python -m docs.reference

# The documentation as a site, in build/site; a broken link or anchor fails.
docs: setup
	$(BIN)/zensical build --clean --strict

# docs/pictures, of a real job; needs tmux and Chromium.
pictures: setup
	$(BIN)/python -m docs.take_pictures

# What a reviewer would run first: style, types, who imports whom.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache build demo-output

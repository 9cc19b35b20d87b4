# `make demo` and `make test` need Python 3.11 or newer, a C/C++ compiler and cmake; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_OUT ?= demo-out

.PHONY: demo test lint types docs check bench bench-litert gate fuzz kills bare board setup clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@echo "Installing; llama-cpp-python is compiled once, which takes about 7 minutes on 2 cores."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	rm -rf $(DEMO_OUT)
	$(BIN)/edgec demo -o $(DEMO_OUT)

test: $(READY)
	$(BIN)/python -P -m pytest tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# The site in docs/_build. Every warning is an error, a stale table too.
docs: $(READY)
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

check: lint types docs test

# Long: our commands beside the peers' own, interleaved. Prints ratios.
bench: $(READY) bench-litert
	$(BIN)/python -P -m benchmarks.peers.build_cost
	$(BIN)/python -P -m benchmarks.peers.harness_cost
	$(BIN)/python -P -m benchmarks.peers.encoder_latency
	$(BIN)/python -P -m benchmarks.peers.kl_agreement
	$(BIN)/python -P -m benchmarks.peers.help_cost
	$(BIN)/python -P -m benchmarks.peers.gptq
	$(BIN)/python -P -m benchmarks.peers.coreml
	$(BIN)/python -P -m benchmarks.peers.calibration
	$(BIN)/python -P -m benchmarks.peers.fleet
	$(BIN)/python tests/fleet.py
	$(BIN)/python -P -m benchmarks.peers.needs
	$(BIN)/python -P -m benchmarks.peers.billion
	$(BIN)/python -P -m benchmarks.peers.aws

# About half an hour: every figure of LiteRT.
bench-litert: $(READY)
	$(BIN)/python -P -m benchmarks.peers.litert
	$(BIN)/python -P -m benchmarks.peers.litert_encoder
	$(BIN)/python -P -m benchmarks.peers.litert_convert

# About half an hour: a fixed set of packages from a commit and from the working tree, compared file by file.
gate: $(READY)
	@test -n "$(REVISION)" || { echo 'Name the commit: make gate REVISION=abc123'; exit 2; }
	$(BIN)/python tests/gate.py $(REVISION) -o .gate.json
	$(BIN)/python tests/gate.py --against .gate.json

# About 20 minutes: damaged input for every parser.
fuzz: $(READY)
	$(BIN)/python tests/fuzz.py --inputs 200000

# About an hour: builds, verifications and measurements killed at random moments.
kills: $(READY)
	$(BIN)/python tests/kills.py --kills 60

# About an hour and a half: packages on an emulated ARM64 board, then one matrix over two real models and three devices;
# docs/devices.md names the programs of Debian's that it needs.
board: $(READY)
	EDGEC_EMULATED=1 $(BIN)/python -P -m pytest tests/test_qemu.py -n0
	$(BIN)/python tests/three_devices.py -o board-out

# About 12 minutes: the README followed in a clean clone and a bare virtual environment.
bare: $(READY)
	$(BIN)/python tests/bare.py

clean:
	rm -rf $(VENV) $(DEMO_OUT) board-out docs/_build

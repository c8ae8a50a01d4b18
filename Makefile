# Every target starts from a bare checkout; stamps in $(VENV) make a second call quick.
PYTHON ?= python3
VENV ?= .venv
# Plain `torch` pulls several GB of CUDA packages; the pinned version gives the CPU build where the package index
# serves one.  Name another build with TORCH=... .
TORCH ?= torch==2.13.0
# Versions that go with it, resolved together.
VISION ?= torchvision==0.28.0
TRITON ?= triton==3.7.1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find specxai kernels csrc -type f ! -name '*.pyc' ! -name '*.so')

# What further models, photographs and the paper's systems need, with the builds that go with the pinned torch.
extras: $(VENV)/.stamp-demo
	$(PIP) ".[models,paper]" $(TORCH) $(VISION)

.PHONY: extras demo test test-kernels bench lint sanitize docs dev cuda clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-demo
	$(BIN)/python examples/explain_digits.py --out demo

# `pytest`, not `python -m pytest`: the checkout stays off sys.path, so that the installed package is what is tested.
test: $(VENV)/.stamp-test
	$(BIN)/pytest -q -n 2 --dist loadfile tests

# The GPU kernels without a GPU, in a few minutes: values in Triton's interpreter and in the emulation of the CUDA
# kernels, code generated for sm_80 and sm_90.
test-kernels: $(VENV)/.stamp-test
	TRITON_INTERPRET=1 $(BIN)/pytest -q tests/kernels
	$(BIN)/pytest -q tests/native/test_cuda.py tests/native/test_cuda_compiled.py
	$(BIN)/pytest -q tests/native/test_triton.py tests/native/test_triton_gemm.py --deselect \
		tests/native/test_triton.py::test_products_in_the_interpreter

bench: $(VENV)/.stamp-test
	mkdir -p build
	$(BIN)/pytest -q benchmarks --benchmark-json=build/bench.json
	$(BIN)/python -m specxai.bench.table build/bench.json --save benchmarks/results/latest

lint: $(VENV)/.stamp-test
	$(BIN)/ruff check .

# The kernels and their C++ tests under the address and undefined-behaviour sanitizers.
sanitize: $(VENV)/.stamp-torch
	$(PIP) cmake
	$(BIN)/cmake -S . -B build/sanitize -DSPECXAI_PYTHON=OFF -DSPECXAI_TESTS=ON -DSPECXAI_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize --parallel 2
	build/sanitize/stages_test
	build/sanitize/cuda_test

# The pages, into build/site: nothing is fetched when they are built or read.  The variable silences the theme's note
# about a later major version of mkdocs, which the `docs` extra excludes.
docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# An editable install for work on the Python files; run it again after a change to csrc/.
dev: $(VENV)/.stamp-torch
	$(PIP) $(VISION) $(TRITON) $(TORCH)
	$(PIP) -e ".[test]"
	rm -f $(VENV)/.stamp-test $(VENV)/.stamp-demo $(VENV)/.stamp-docs

# The same with the CUDA kernels, or an error that says why not; without this they are built where nvcc is found.
cuda: $(VENV)/.stamp-torch
	$(PIP) $(VISION) $(TRITON) $(TORCH)
	SPECXAI_CUDA=1 $(PIP) -e ".[test]"
	rm -f $(VENV)/.stamp-test $(VENV)/.stamp-demo $(VENV)/.stamp-docs

clean:
	rm -rf build dist *.egg-info specxai/_native*.so specxai/_cuda*.so .pytest_cache .ruff_cache .hypothesis demo out

$(VENV)/.stamp-torch:
	@echo "creating $(VENV) and installing $(TORCH)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	@touch $@

# build/lib goes first: setuptools would pack modules that have since been deleted.
$(VENV)/.stamp-demo: $(VENV)/.stamp-torch $(SOURCES)
	@echo "building specxai and installing it with what the demo needs"
	rm -rf build/lib*
	$(PIP) ".[demo]"
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-torch $(SOURCES)
	@echo "building specxai and installing it with what the tests need"
	rm -rf build/lib*
	$(PIP) $(TORCH) $(VISION) $(TRITON)
	$(PIP) ".[test]"
	@touch $@ $(VENV)/.stamp-demo

$(VENV)/.stamp-docs: $(VENV)/.stamp-torch $(SOURCES)
	@echo "building specxai and installing it with what the pages need"
	rm -rf build/lib*
	$(PIP) ".[docs]"
	@touch $@

# make demo · make test · make docs · make bench · make predict · make check · make fuzz · make gpu-check · make wheel · make compat
# make runtimes
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# cmake and ninja come from the environment where the machine has none.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Exactly this version: where a CPU build of it is at hand, pip takes that; a range would take the newest CUDA build.
TORCH ?= torch==2.13.0
# The one that belongs to it.
TORCHVISION ?= torchvision==0.28.*

.PHONY: install demo test docs check fuzz format bench predict wheel compat gpu-check runtimes clean

# Another nvcc than that on PATH, as in NVCC=/usr/local/cuda-12.8/bin/nvcc, for drivers of CUDA 12: PyPI's packages of
# CUDA 12 have no compiler, only ptxas. And other GPUs than csrc/CMakeLists.txt says, as in ARCHITECTURES=90-real: sm_90
# alone takes half of the time that all four take.
NVCC ?=
ARCHITECTURES ?=
ifneq ($(NVCC),)
export CUDACXX := $(NVCC)
endif
ifneq ($(ARCHITECTURES),)
export CMAKE_ARGS := $(CMAKE_ARGS) "-DLOSSREG_CUDA_ARCHITECTURES=$(ARCHITECTURES)"
endif

# The environment: torch first and alone, so that nothing else chooses its version.
$(BIN)/torch-installed:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH) numpy
	$(BIN)/pip install --quiet "scikit-build-core>=0.10" "cmake<4" ninja wheel
	touch $@

# The package, editable. The library is rebuilt when a C++ source is newer than it.
SOURCES := $(shell find csrc -type f) pyproject.toml
$(BIN)/opreg-installed: $(BIN)/torch-installed $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[test,demo,bench,dev]"
	touch $@

# What only tests need: pyproject's `onnx`, and its `models`, which would bring another torch (what timm and accelerate
# need besides it comes with transformers and psutil).
$(BIN)/tests-installed: $(BIN)/torch-installed
	$(BIN)/pip install --quiet onnx onnxscript onnxruntime transformers psutil
	$(BIN)/pip install --quiet --no-deps timm "$(TORCHVISION)" accelerate kernels tomlkit
	# the disassembler that tests/kernels/sass.py reads the CUDA kernels with: 10 MB, and no toolkit
	$(BIN)/pip install --quiet --no-deps nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	touch $@

install: $(BIN)/opreg-installed

demo: install
	$(BIN)/python examples/digits.py

test: install $(BIN)/tests-installed
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

$(BIN)/docs-installed: $(BIN)/opreg-installed
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[docs]"
	touch $@

# The site, in build/docs/index.html; a warning is an error.
docs: $(BIN)/docs-installed
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# the package as it is installed: with stubs, and meta/ is opreg.meta
	$(BIN)/python -m opreg stubs
	mkdir -p build/typing/opreg && ln -sfn $(CURDIR)/opreg/* build/typing/opreg/ && ln -sfn $(CURDIR)/meta build/typing/opreg/meta
	cd build/typing && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml
	$(BIN)/clang-format --dry-run --Werror $(shell git ls-files '*.h' '*.cpp' '*.cu')

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell git ls-files '*.h' '*.cpp' '*.cu')

# Hostile calls of every op, in a library built with the address and undefined-behaviour sanitizers.
CALLS ?= 10000
SEED ?= 0
fuzz: install
	cmake -S csrc -B build/sanitized -DLOSSREG_CUDA=OFF -DLOSSREG_SANITIZE=ON -DLOSSREG_TORCH_DIR=$$($(BIN)/python -c "import torch; print(torch.__path__[0])")
	cmake --build build/sanitized --parallel 2
	$(BIN)/python tests/every_op/hostile_calls.py --calls $(CALLS) --seed $(SEED) --sanitized build/sanitized

# The libraries whose losses the benchmark compares with, without what they ask for: that would bring another torch.
PEERS := kornia kornia_rs segmentation-models-pytorch pytorch-metric-learning monai "$(TORCHVISION)" timm
$(BIN)/peers-installed: $(BIN)/torch-installed
	$(BIN)/pip install --quiet --no-deps $(PEERS)
	$(BIN)/pip install --quiet huggingface_hub safetensors scipy pillow pyyaml tqdm packaging
	touch $@

# Everything, into benchmarks/results. BENCH="mish giou_loss --size large" measures less.
BENCH ?=
bench: install $(BIN)/peers-installed
	$(BIN)/python -m opreg bench $(BENCH) --threads 1 2 --sweep --steps --peers benchmarks/peers.py --output benchmarks/results

# The time of every op on a GPU, predicted from the machine code and from what the emulator counts.
predict: install $(BIN)/tests-installed
	$(BIN)/python benchmarks/predict.py --output benchmarks/results/predicted-sm90.json

wheel: $(BIN)/torch-installed
	rm -f dist/opreg-*.whl
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	# linux_x86_64 becomes manylinux_2_N_x86_64: the oldest glibc that has what this machine's compiler linked to
	$(BIN)/python .ci/tag_wheel.py dist

# That wheel in clean environments with other versions of torch: minutes, and gigabytes for each version that the index
# has no CPU build of. They stay in build/compat.
COMPAT ?= 2.11.0 newest
compat: install wheel
	OPREG_COMPAT="$(COMPAT)" $(BIN)/python -m pytest -m slow -rA tests/shipping/test_compat.py

# On a machine with a GPU, with that machine's own Python and torch: nothing is installed.
gpu-check:
	$(PYTHON) tests/gpu/gpu_check.py --output benchmarks/results

# What an exported program needs of other runtimes: ExecuTorch and OpenVINO, without what would bring another torch.
RUNTIMES := executorch "torchao<0.19" openvino
$(BIN)/runtimes-installed: $(BIN)/tests-installed
	$(BIN)/pip install --quiet --no-deps $(RUNTIMES)
	$(BIN)/pip install --quiet flatbuffers ruamel.yaml tabulate pyyaml openvino-telemetry
	touch $@

# Every op there, with eager's numbers.
runtimes: install $(BIN)/runtimes-installed
	$(BIN)/python -m pytest -m slow -rs tests/shipping/test_runtimes.py

clean:
	rm -rf build dist out $(VENV) opreg/*.pyi opreg/nn/__init__.pyi

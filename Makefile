# make demo · make test · make test-all · make docs · make bench · make predict · make check · make fuzz · make gpu-check · make wheel · make compat
# make runtimes · make cross · make recipes · make survey
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# cmake and ninja come from the environment where the machine has none.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Exactly this version: where a CPU build of it is at hand, pip takes that; a range would take the newest CUDA build.
TORCH ?= torch==2.13.0
# The one that belongs to it.
TORCHVISION ?= torchvision==0.28.*

.PHONY: install demo test test-all docs check fuzz format bench predict recipes wheel compat gpu-check runtimes cross survey clean

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
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=20 tests

# More ops, sizes and programs of the same tests.
test-all: install $(BIN)/tests-installed
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=20 -m "not slow" tests

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
PEERS := kornia kornia_rs segmentation-models-pytorch pytorch-metric-learning monai "$(TORCHVISION)" timm liger-kernel
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

# The curves of the guide of initialisers, optimizers and schedules.
recipes: install
	$(BIN)/python benchmarks/recipes.py

# WHEEL_BUILD=0cpu tells it from others of the same version and platform.
WHEEL_BUILD ?=
wheel: $(BIN)/torch-installed
	rm -f dist/opreg-*.whl
	$(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	# linux_x86_64 becomes manylinux_2_N_x86_64: the oldest glibc that has what this machine's compiler linked to
	$(BIN)/python .ci/tag_wheel.py dist $(if $(WHEEL_BUILD),--build $(WHEEL_BUILD))

# That wheel in clean environments with other versions of torch: minutes, and gigabytes for each version that the index
# has no CPU build of. They stay in build/compat.
COMPAT ?= 2.11.0 newest
compat: install wheel
	OPREG_COMPAT="$(COMPAT)" $(BIN)/python -m pytest -m slow -rA tests/shipping/test_compat.py

# On a machine with a GPU, with that machine's own Python and torch: nothing is installed.
gpu-check:
	$(PYTHON) tests/gpu/gpu_check.py --output benchmarks/results

# What an exported program needs of other runtimes: ExecuTorch and OpenVINO, without what would bring another torch; of
# Torch-TensorRT the generator of plugins alone, which its tests run without TensorRT.
RUNTIMES := executorch "torchao<0.19" openvino torch-tensorrt
$(BIN)/runtimes-installed: $(BIN)/tests-installed
	$(BIN)/pip install --quiet --no-deps $(RUNTIMES)
	$(BIN)/pip install --quiet flatbuffers ruamel.yaml tabulate pyyaml openvino-telemetry
	touch $@

# Every op there, with eager's numbers.
runtimes: install $(BIN)/runtimes-installed
	$(BIN)/python -m pytest -m "slow or not slow" -rs tests/shipping/test_runtimes.py tests/shipping/test_tensorrt.py

# For another processor: the C++ tests and the library, compiled by Debian's g++-aarch64-linux-gnu and run by qemu-user.
# The library is linked to torch's wheel for that processor, which is downloaded: 0.4 GB.
CROSS := build/aarch64
$(CROSS)/torch/version.py: | $(BIN)/torch-installed
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --dest $(CROSS) \
		--platform manylinux_2_28_aarch64 "$(TORCH)"
	$(BIN)/python -m zipfile --extract $(CROSS)/torch-*.whl $(CROSS)
	rm $(CROSS)/torch-*.whl
	touch $@
cross: install $(CROSS)/torch/version.py
	OPREG_AARCH64_TORCH=$(CURDIR)/$(CROSS)/torch $(BIN)/python -m pytest -m slow -rs tests/kernels/test_aarch64.py

# Libraries whose losses the rewrite is tried on, into a folder of their own and without what they ask for: what of that
# their losses do not need is a stand-in.
SURVEYED := allennlp balanced-loss catalyst effdet espnet fastai fastcore fasttransform plum-dispatch kornia lightly mmdet \
  mmpretrain mmsegmentation monai neuralforecast nnunetv2 open-clip-torch pytorch-toolbelt segmentation-models-pytorch \
  sentence-transformers simpletransformers speechbrain super-gradients torchtune trl ultralytics yolov5
build/survey/installed: $(BIN)/tests-installed
	$(BIN)/pip install --quiet --no-deps --target build/survey $(SURVEYED)
	touch $@

# The table of their loss sites: swapped, left, why.
survey: install build/survey/installed
	$(BIN)/python tests/rewrite/survey_sources.py --libraries build/survey --output benchmarks/results/survey.md

clean:
	rm -rf build dist out $(VENV) opreg/*.pyi opreg/nn/__init__.pyi

"""The kernel that ``python -m opreg hub`` writes, as the ``kernels`` package loads it: by another name than opreg."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import opreg
from conftest import ROOT
from opreg.hub import write_kernel, write_project
from opreg.registry import of_namespace

# In a process of its own, where no opreg is: what the loader imports has the kernel's id as its name.
LOADED = """
import sys
from pathlib import Path
import torch, torch.nn.functional as F
from kernels import LocalLayerRepository, Mode, get_local_kernel, kernelize
from kernels import use_kernel_forward_from_hub, use_kernel_mapping
from torchvision_for_cpu import torchvision
torchvision()
from transformers import activations
from transformers.loss import loss_for_object_detection as boxes, loss_utils

folder = Path(sys.argv[1])
kernel = get_local_kernel(folder, backend="cpu")
assert kernel.__name__.startswith("_opreg_cpu_") and not [m for m in sys.modules if m.split(".")[0] == "opreg"]
assert len(kernel.registered()) > 80 and all(op.own for op in kernel.registered())

def like(layer, function, *args, **kwargs):
    results = []
    for call in (function, layer):
        given = [a.clone().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
        value = call(*given, **kwargs)
        value.sum().backward()
        results.append([value, *(a.grad for a in given if torch.is_tensor(a) and a.requires_grad)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)

# transformers' layers, exchanged by the names that it has for them in a hub
OURS = {"SiLU": "SiLUActivation", "GeLU": "GELUActivation", "GeluTanh": "GELUTanh", "NewGELU": "NewGELUActivation",
        "FastGELU": "FastGELUActivation", "QuickGELU": "QuickGELUActivation"}
for name, of_transformers in OURS.items():
    native = getattr(activations, of_transformers)()
    repository = LocalLayerRepository(folder, layer_name=name)
    with use_kernel_mapping({name: {"cpu": repository}}, inherit_mapping=False):
        layer = use_kernel_forward_from_hub(name)(type(name, (getattr(activations, of_transformers),), {}))
        exchanged = kernelize(layer(), mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu")
    like(exchanged, native, torch.randn(4, 9))
    made = type(exchanged(torch.randn(3, requires_grad=True)).grad_fn).__name__
    assert "Value" in made, (name, made)

layers = kernel.layers
pair = torch.randn(4, 10)
like(layers.SiluAndMul(), lambda x: F.silu(x[:, :5]) * x[:, 5:], pair)
like(layers.GeluAndMul(), lambda x: F.gelu(x[:, :5]) * x[:, 5:], pair)
like(layers.GeluTanhAndMul(), lambda x: F.gelu(x[:, :5], approximate="tanh") * x[:, 5:], pair)
logits, labels = torch.randn(2, 7, 11), torch.randint(11, (2, 7))
labels[0, 3:] = -100
for count in (None, 9, torch.tensor(9)):
    like(layers.ForCausalLMLoss(), loss_utils.ForCausalLMLoss, logits, labels, 11, count)
like(layers.ForCausalLMLoss(), loss_utils.ForCausalLMLoss, logits, None, 11, shift_labels=labels)
hits = (torch.rand(2, 6, 4) > 0.7).float()
focal = lambda x, n: boxes.sigmoid_focal_loss(x, hits, n, 0.3, 1.5)
like(lambda x, n: layers.SigmoidFocalLoss()(x, hits, n, 0.3, 1.5), focal, torch.randn(2, 6, 4), 5)
masks = hits.flatten(1)
like(lambda x, n: layers.DiceLoss()(x, masks, n), lambda x, n: boxes.dice_loss(x, masks, n), torch.randn(2, 24), 5)
source, target = torch.rand(2, 5, 4) + 0.1
n = 3.0
like(lambda x: layers.L1BoxLoss()(x, target, n), lambda x: F.l1_loss(x, target, reduction="none").sum() / n, source)
def giou(x):
    corners = (boxes.center_to_corners_format(b) for b in (x, target))
    return (1 - torch.diag(boxes.generalized_box_iou(*corners))).sum() / n
like(lambda x: layers.GIoULoss()(x, target, n), giou, source)
for name in layers.__all__:
    layer = getattr(layers, name)
    assert (layer.has_backward, layer.can_torch_compile) == (True, True) and not list(layer().parameters())
compiled = torch.compile(layers.SiluAndMul(), fullgraph=True)
torch.testing.assert_close(compiled(pair), layers.SiluAndMul()(pair))
print("loaded")
"""


def test_the_loader_of_the_hub(tmp_path):
    pytest.importorskip("kernels", reason="kernels is not installed")
    pytest.importorskip("transformers")
    write_kernel(tmp_path)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("OPREG_LIBRARY", None)
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.strip() == "loaded", done.stdout + done.stderr


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a kernel's name of small letters, digits and -, got 'A b'"):
        write_kernel(tmp_path, "A b")
    write_kernel(tmp_path)
    with pytest.raises(FileExistsError, match="expected a folder that is not there yet"):
        write_kernel(tmp_path)
    with pytest.raises(FileExistsError, match="expected a folder that is not there yet"):
        write_project(tmp_path)


# What edition 5 of the builder's manifest has, after kernels-data/src/config/v5.rs of huggingface/kernels; True: must.
GENERAL = {"name": True, "version": True, "edition": True, "license": True, "backends": True, "hub": False}
TORCH = {"src": False, "include": False, "stable-abi": False, "cxx-flags": False, "pyext": False}
KERNEL = {"backend": True, "depends": True, "src": True, "include": False, "cxx-flags": False}
OF_CUDA = {"cuda-capabilities": False, "cuda-flags": False, "cuda-minver": False}


def check_table(table, known):
    assert set(table) <= set(known)
    assert {name for name, required in known.items() if required} <= set(table)


def test_the_builder_s_project(tmp_path):
    tomlkit = pytest.importorskip("tomlkit", reason="tomlkit, which kernels needs, reads the manifest")
    folder = tmp_path / "project"
    assert write_project(folder, "my-losses") == [folder / "build.toml"]
    read = tomlkit.parse((folder / "build.toml").read_text()).unwrap()
    assert set(read) == {"general", "torch", "kernel"}
    check_table(read["general"], GENERAL)
    check_table(read["torch"], TORCH)
    assert read["general"]["name"] == "my-losses"
    assert read["general"]["edition"] == 5
    assert (folder / "torch-ext" / "my_losses" / "__init__.py").is_file()
    assert (folder / "torch-ext" / "my_losses" / "meta" / "__init__.py").is_file()
    families = {path.stem for kind in ("formulas", "standalone") for path in (ROOT / "csrc" / kind).glob("*.h")}
    flags = (ROOT / "csrc" / "cxx_flags.txt").read_text().split()
    for name, kernel in read["kernel"].items():
        check_table(kernel, KERNEL | (OF_CUDA if kernel["backend"] == "cuda" else {}))
        units = [Path(source) for source in kernel["src"] if not source.endswith(".h")]
        endings = {".cpp"} if kernel["backend"] == "cpu" else {".cpp", ".cu"}
        assert {(unit.stem, unit.suffix) for unit in units} == {(f, e) for f in families for e in endings}, name
        assert kernel["cxx-flags"][:-1] == flags
    assert {kernel["backend"] for kernel in read["kernel"].values()} == set(read["general"]["backends"])
    for table in (read["torch"], *read["kernel"].values()):
        assert all((folder / source).is_file() for source in table["src"])
        assert all((folder / included).is_dir() for included in table.get("include", ()))
    # the version of torch is that of the stable ABI which the sources are written for
    target = re.search(r"TORCH_TARGET_VERSION=0x(\w\w)(\w\w)", (ROOT / "csrc/cmake/opregConfig.cmake").read_text())
    assert target is not None
    version = ".".join(str(int(part, 16)) for part in target.groups())
    assert read["torch"]["stable-abi"] == dict.fromkeys(read["general"]["backends"], version)


# The builder's layout: a module of Python's in the package's folder, of whose name the ops' namespace is.
BUILT = """
import sys
from pathlib import Path
import torch, opreg
from kernels import get_local_kernel

kernel = get_local_kernel(Path(sys.argv[1]), backend="cpu")
assert kernel is not opreg and kernel.__name__ != "opreg"
theirs, own = getattr(torch.ops, sys.argv[2]), torch.ops.lossreg
x = torch.randn(5, 7, requires_grad=True)
names = [op.short for op in kernel.registered() if op.own]
assert names == sys.argv[3].split(","), names
assert all(op.qualname.startswith(f"{sys.argv[2]}::") for op in kernel.registered() if op.own)
assert all(op.qualname.startswith("lossreg::") for op in opreg.registered() if op.own)
for name in names:
    for call in (lambda x: getattr(theirs, name)(x), torch.compile(lambda x: getattr(theirs, name)(x), fullgraph=True)):
        (got,), (want,) = (torch.autograd.grad(f(x).sum(), x) for f in (call, getattr(own, name)))
        torch.testing.assert_close(call(x), getattr(own, name)(x))
        torch.testing.assert_close(got, want)
like = kernel.layers.SiLU()(x)
torch.testing.assert_close(like, torch.nn.functional.silu(x))
print("both")
"""


def test_the_kernel_beside_the_package(tmp_path):
    """Made of the builder's project as its CMake makes it, of one family, and loaded where opreg is."""
    pytest.importorskip("kernels", reason="kernels is not installed")
    write_project(tmp_path / "project")
    identity = "_opreg_cpu_0123abc"
    torch_dir = Path(torch.__file__).parent
    variant = tmp_path / "built" / "build" / "torch-stable-abi211-cpu-x86_64-linux"
    (tmp_path / "project" / "torch-ext" / "opreg").rename(made := tmp_path / "package")
    variant.parent.mkdir(parents=True)
    made.rename(variant)
    facts = '{"id": "%s", "name": "opreg", "version": 0, "license": "BSD-3-Clause", "python-depends": [], %s}'
    (variant / "metadata.json").write_text(facts % (identity, '"backend": {"type": "cpu"}'))
    command = [
        "g++", "-std=c++17", "-shared", "-fPIC", "-O0", "-fopenmp-simd", "-fvisibility=hidden", "-Icsrc",
        f"-DTORCH_EXTENSION_NAME={identity}", "-DCPU_KERNEL", "-DTORCH_TARGET_VERSION=0x020b000000000000",
        # what the builder's CMake does not say: the library has one family alone
        "-DLOSSREG_PARTIAL=1",
        *(part for p in ("include", "include/torch/csrc/api/include") for part in ("-isystem", f"{torch_dir / p}")),
        "csrc/units/activation.cpp", "-o", f"{variant / identity}.abi3.so",
        f"-L{torch_dir / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "project")
    assert done.returncode == 0, done.stderr
    names = ",".join(op.short for op in of_namespace() if op.family == "activation")
    # opreg's library is told as it is here; the kernel has its own
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path),
        "OPREG_LIBRARY": str(opreg.library_path()),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", BUILT, str(tmp_path / "built"), identity, names],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == "both", done.stdout + done.stderr

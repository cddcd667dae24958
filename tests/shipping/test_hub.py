"""The kernel that ``python -m opreg hub`` writes, as the ``kernels`` package loads it: by another name than opreg."""

import os
import subprocess
import sys

import pytest

from opreg.hub import write_kernel

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

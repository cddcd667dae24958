"""The modules of opreg.nn with parameters or a state: margins, wise IoU, convolutions, averages, the last layer."""

import copy
import inspect
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_nn import arguments_of, needs
from torch import Tensor

import opreg
from conftest import DEVICE
from opreg.faces.modules import OpModule
from opreg.nn._wide_buffers import WideBuffers


def near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def doubles(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, device=DEVICE)


@needs("arcface_loss", "amsoftmax_loss")
@pytest.mark.parametrize("name", ["AMSoftmax", "ArcFace"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_margin_softmax(name, reduction):
    """Row by row, angle by angle, in Python."""
    head = getattr(opreg.nn, name)(5, 4, scale=8.0, reduction=reduction, device=DEVICE, dtype=torch.float64)
    x, t = doubles(6, 5), torch.tensor([0, 3, -100, 1, 2, 1], device=DEVICE)
    x[3] = -head.weight[1].detach()  # the opposite of its centre: ArcFace's other branch
    losses = []
    for features, target in zip(x, t.tolist(), strict=True):
        if target == -100:
            losses.append(0.0)
            continue
        angles = [math.acos(max(-1.0, min(1.0, F.cosine_similarity(features, w, 0).item()))) for w in head.weight]
        scores = [math.cos(a) for a in angles]
        if name == "AMSoftmax":
            scores[target] -= 0.35
        elif angles[target] + 0.5 < math.pi:
            scores[target] = math.cos(angles[target] + 0.5)
        else:
            scores[target] -= 0.5 * math.sin(0.5)
        losses.append(math.log(sum(math.exp(8 * s) for s in scores)) - 8 * scores[target])
    want = {"none": losses, "mean": sum(losses) / 5, "sum": sum(losses)}[reduction]
    torch.testing.assert_close(head(x, t), torch.tensor(want, dtype=torch.float64, device=DEVICE), rtol=1e-6, atol=1e-6)
    near(head.logits(x), 8 * F.cosine_similarity(x.unsqueeze(1), head.weight.unsqueeze(0), -1))


@needs("arcface_loss", "amsoftmax_loss")
@pytest.mark.parametrize("name", ["AMSoftmax", "ArcFace"])
def test_margin_softmax_trains(name):
    """Centres and features get gradients; lengths are of no consequence; a row of zeros is finite in float16 too."""
    head = getattr(opreg.nn, name)(16, 3, scale=10.0).to(DEVICE)
    bound = math.sqrt(6 / (16 + 3))  # Xavier
    assert head.weight.abs().max() <= bound
    assert head.weight.abs().max() > 0.8 * bound
    assert head.state_dict().keys() == {"weight"}
    centres = torch.randn(3, 16, device=DEVICE)
    t = torch.arange(30, device=DEVICE) % 3
    x = (centres[t] + 0.3 * torch.randn(30, 16, device=DEVICE)).requires_grad_()
    torch.testing.assert_close(head(7 * x, t), head(x, t))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.3)
    for _ in range(30):
        optimizer.zero_grad()
        head(x, t).backward()
        optimizer.step()
    assert x.grad is not None
    assert (head.logits(x).argmax(1) == t).all()
    for dtype in (torch.float16, torch.bfloat16):
        low = copy.deepcopy(head).to(dtype)
        zeros = torch.zeros(2, 16, device=DEVICE, dtype=dtype, requires_grad=True)
        low(zeros, t[:2]).backward()
        assert zeros.grad.isfinite().all()
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), head(x, t))
    assert f"{name}(in_features=16, num_classes=3, margin=" in repr(head)


def boxes(n: int) -> Tensor:
    corner, size = torch.rand(n, 2, dtype=torch.float64), torch.rand(n, 2, dtype=torch.float64) + 0.5
    return torch.cat([corner, corner + size], 1).to(DEVICE)


def one_minus_iou(a: list[float], b: list[float]) -> float:
    overlap = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(q[2] - q[0]) * (q[3] - q[1]) for q in (a, b)]
    return 1 - overlap / (sum(areas) - overlap)


def wise_iou(a: list[float], b: list[float], mean: float | None) -> float:
    distance = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    loss = one_minus_iou(a, b)
    beta = None if mean is None else loss / mean
    return math.exp(distance / diagonal) * loss * (1 if beta is None else beta / (3 * 1.9 ** (beta - 3)))


@needs("iou_loss", "wiou_loss")
def test_wiou_keeps_the_running_mean():
    criterion = opreg.nn.WIoULoss(0.25).double().to(DEVICE)
    mean = 1.0
    for n in (5, 2, 7):
        a, b = boxes(n), boxes(n)
        mean = 0.75 * mean + 0.25 * sum(map(one_minus_iou, a.tolist(), b.tolist())) / n
        want = sum(wise_iou(p, q, mean) for p, q in zip(a.tolist(), b.tolist(), strict=True)) / n
        assert criterion(a, b).item() == pytest.approx(want, rel=1e-5)
        assert criterion.iou_mean.item() == pytest.approx(mean, rel=1e-5)
    criterion.eval()
    a, b = boxes(4), boxes(4)
    want = sum(wise_iou(p, q, mean) for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 4
    assert criterion(a, b).item() == pytest.approx(want, rel=1e-5)
    assert criterion.iou_mean.item() == pytest.approx(mean, rel=1e-5)
    other = opreg.nn.WIoULoss().double().to(DEVICE)
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other.iou_mean, criterion.iou_mean)


@needs("iou_loss", "wiou_loss")
def test_wiou_in_training():
    """Two losses before one backward pass; no boxes; no graph break; version 1, without a mean."""
    criterion = opreg.nn.WIoULoss(0.5).to(DEVICE)
    a, b = boxes(3).float().requires_grad_(), boxes(3).float()
    (criterion(a, b) + criterion(a, b)).backward()
    assert a.grad.abs().sum() > 0
    before = criterion.iou_mean.clone()
    assert criterion(a[:0], b[:0]).isnan()
    assert torch.equal(criterion.iou_mean, before)
    compiled = torch.compile(copy.deepcopy(criterion), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(a, b), criterion(a, b))
    torch.testing.assert_close(compiled.iou_mean, criterion.iou_mean)
    first = opreg.nn.WIoULoss(version="v1", reduction="none").to(DEVICE)
    want = [wise_iou(p, q, None) for p, q in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(first(a, b), torch.tensor(want, device=DEVICE), rtol=1e-4, atol=1e-5)
    assert first.iou_mean == 1


def wiou_step(criterion, dtype):
    """One batch whose mean of 1 − iou is 0.2."""
    target = torch.tensor([[0.0, 0.0, 4.0, 4.0]], dtype=dtype, device=DEVICE)
    criterion(torch.tensor([[0.0, 0.0, 4.0, 5.0]], dtype=dtype, device=DEVICE), target)


# a module whose state moves by small steps, one step, and the buffer
STATEFUL = {
    "WIoULoss": (lambda: opreg.nn.WIoULoss(), wiou_step, "iou_mean"),
    "DynamicConv2d": (
        lambda: opreg.nn.DynamicConv2d(4, 4, 3, anneal_epochs=1000),
        lambda m, dtype: m.anneal(),
        "temperature",
    ),
}


def half_by_dict(module, assign):
    low = {name: t.bfloat16() for name, t in module.state_dict().items()}
    module.load_state_dict(low, assign=assign)
    return module


CONVERSIONS = {
    "bfloat16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "to": lambda m: m.to(DEVICE, torch.bfloat16),
    "inside": lambda m: torch.nn.Sequential(m).bfloat16()[0],
    "twice": lambda m: copy.deepcopy(m.half()).bfloat16(),
    "double and back": lambda m: m.double().bfloat16(),
    "by way of meta": lambda m: m.bfloat16().to("meta").to_empty(device=DEVICE),
    "a low state dict": lambda m: half_by_dict(m, False),
    "a low state dict, assigned": lambda m: half_by_dict(m, True),
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("name", STATEFUL)
def test_state_is_float32_at_least(name, conversion):
    """What small steps add up to moves as in float32, whatever the module's dtype, and keeps its value there."""
    make, step, buffer = STATEFUL[name]
    module, same = make().to(DEVICE), make().to(DEVICE)
    for m in (module, same):
        for _ in range(3):
            step(m, torch.float32)
    before = getattr(module, buffer).clone()
    module = CONVERSIONS[conversion](module)
    state = getattr(module, buffer)
    assert state.dtype in (torch.float32, torch.float64)
    assert dict(module.named_buffers())[buffer] is state
    if "meta" in conversion:
        state.copy_(before)
    if "state dict" in conversion:
        before = before.bfloat16().float()
        getattr(same, buffer).copy_(before)
    assert state == before
    for _ in range(300):
        step(module, torch.bfloat16)
        step(same, torch.float32)
    assert abs(getattr(same, buffer) - before) > 0.02
    torch.testing.assert_close(getattr(module, buffer).float(), getattr(same, buffer), rtol=1e-3, atol=1e-3)


def test_every_module_with_a_state_is_listed():
    """The other buffers are class weights, which do not change."""
    constant = {"LinearCrossEntropyLoss"}
    classes = {n: getattr(opreg.nn, n) for n in opreg.nn.__all__ if not issubclass(getattr(opreg.nn, n), OpModule)}
    written_out = {n for n, cls in classes.items() if "register_buffer(" in inspect.getsource(cls)}
    assert written_out == constant | set(STATEFUL)
    assert all(issubclass(getattr(opreg.nn, n), WideBuffers) for n in STATEFUL)


def test_wiou_momentum():
    """The paper's: after t epochs of n batches the start has a weight of 5 %."""
    assert (1 - opreg.nn.WIoULoss(batches_per_epoch=100, epochs=20).momentum) ** 2000 == pytest.approx(0.05)
    assert (1 - opreg.nn.WIoULoss().momentum) ** 7000 == pytest.approx(0.05)
    for options, message in (
        ({"momentum": 1.5}, r"expected momentum in \(0, 1\], got 1.5"),
        ({"momentum": float("nan")}, r"expected momentum in \(0, 1\], got nan"),
        ({"momentum": 0.1, "epochs": 2, "batches_per_epoch": 2}, r"expected momentum, or .* got 0.1 and \(2, 2\)"),
        ({"epochs": 2}, r"expected momentum, or .* got None and \(None, 2\)"),
        ({"epochs": 0, "batches_per_epoch": 2}, r"expected batches_per_epoch >= 1 and epochs >= 1, got \(2, 0\)"),
        ({"version": "v2"}, r'expected version "v1" or "v3", got "v2"'),
    ):
        with pytest.raises(ValueError, match=f"WIoULoss: {message}"):
            opreg.nn.WIoULoss(**options)


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (0, 2), "dilation": (1, 2), "bias": False},
    {"padding": "same"},
    {"padding": "valid", "stride": (2, 1)},
    {"padding": "same", "kernel_size": (2, 4)},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": (2, 1), "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "replicate", "kernel_size": 2},
    {"groups": 2, "kernel_size": 1},
]


def convolution_of(options: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What torch.nn.Conv2d makes of these arguments, with this weight."""
    arguments = {"kernel_size": 3, **options, "bias": bias is not None}
    conv = torch.nn.Conv2d(x.shape[-3], weight.shape[0], **arguments, device=DEVICE, dtype=torch.float64)
    conv.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return conv(x)


@needs("coord_conv2d")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_coord_conv(options):
    layer = opreg.nn.CoordConv2d(4, 6, **{"kernel_size": 3, **options}).double().to(DEVICE)
    x = doubles(2, 4, 7, 5)
    rows = torch.tensor([-1 + 2 * i / 6 for i in range(7)], dtype=torch.float64, device=DEVICE)
    columns = torch.tensor([-1 + 2 * i / 4 for i in range(5)], dtype=torch.float64, device=DEVICE)
    planes = [rows.view(1, 1, 7, 1).expand(2, 1, 7, 5), columns.view(1, 1, 1, 5).expand(2, 1, 7, 5)]
    want = convolution_of(options, torch.cat([*planes, x], 1), layer.weight, layer.bias)
    near(layer(x), want)
    near(layer(x[0]), want[0])


@needs("coord_conv2d")
def test_coord_conv_is_a_conv():
    layer = opreg.nn.CoordConv2d(3, 8, 3, padding=1).to(DEVICE)
    assert isinstance(layer, torch.nn.Conv2d)
    assert {n: t.shape for n, t in layer.state_dict().items()} == {"weight": (8, 5, 3, 3), "bias": (8,)}
    assert repr(layer) == "CoordConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    assert arguments_of(opreg.nn.CoordConv2d) == arguments_of(torch.nn.Conv2d)
    single = layer(torch.zeros(1, 3, 1, 1, device=DEVICE))  # a single row and column sit at −1
    torch.testing.assert_close(single[0, :, 0, 0], layer.bias - layer.weight[:, :2, 1, 1].sum(1))
    x = torch.randn(2, 3, 8, 8, device=DEVICE, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        opreg.nn.CoordConv2d(3, 8, 3, groups=2)


@needs("dynamic_conv2d")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_dynamic_conv(options):
    """Sample by sample: mix the kernels, convolve."""
    layer = opreg.nn.DynamicConv2d(4, 6, **{"kernel_size": 3, **options}, num_kernels=3).double().to(DEVICE)
    x = doubles(3, 4, 7, 5)
    first, _, second = layer.attention
    for sample, got in zip(x, layer(x), strict=True):
        logits = second.weight @ (first.weight @ sample.mean((1, 2)) + first.bias).clamp(min=0) + second.bias
        attention = torch.exp(logits / 30) / torch.exp(logits / 30).sum()
        weight = sum(a * w for a, w in zip(attention, layer.weight, strict=True))
        bias = None if layer.bias is None else attention @ layer.bias
        near(got, convolution_of(options, sample, weight, bias))
        near(layer(sample), got)


@needs("dynamic_conv2d")
def test_dynamic_conv_trains():
    layer = opreg.nn.DynamicConv2d(8, 4, 3, padding=1).to(DEVICE)
    x = torch.randn(2, 8, 6, 6, device=DEVICE)
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert "kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)" in repr(layer)


def test_dynamic_conv_temperature():
    """From 30 to 1 in ten epochs, and no further; the state dict knows it."""
    layer = opreg.nn.DynamicConv2d(8, 4, 3)
    seen = []
    for _ in range(12):
        layer.anneal()
        seen.append(layer.temperature.item())
    assert seen == pytest.approx([27.1, 24.2, 21.3, 18.4, 15.5, 12.6, 9.7, 6.8, 3.9, 1.0, 1.0, 1.0], rel=1e-5)
    other = opreg.nn.DynamicConv2d(8, 4, 3)
    other.load_state_dict(layer.state_dict())
    assert other.temperature == layer.temperature
    assert {n: t.shape for n, t in layer.state_dict().items() if "attention" not in n} == {
        "weight": (4, 4, 8, 3, 3), "bias": (4, 4), "temperature": (),
    }  # fmt: skip
    bound = 1 / math.sqrt(8 * 9)  # that of Conv2d
    assert 0.9 * bound < layer.weight.abs().max() <= bound


def test_dynamic_conv_arguments():
    ours, theirs = arguments_of(opreg.nn.DynamicConv2d), arguments_of(torch.nn.Conv2d)
    assert ours[: len(theirs)] == theirs
    for name in ("num_kernels", "reduction", "temperature", "anneal_epochs"):
        with pytest.raises(ValueError, match=f"DynamicConv2d: expected {name} >= 1, got 0"):
            opreg.nn.DynamicConv2d(8, 4, 3, **{name: 0})
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        opreg.nn.DynamicConv2d(3, 4, 3, groups=2)


class Small(torch.nn.Module):
    """A tied weight, a buffer of numbers, one of integers."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3, device=DEVICE, dtype=dtype)
        self.second = torch.nn.Linear(3, 3, device=DEVICE, dtype=dtype)
        self.second.weight = self.first.weight
        self.register_buffer("running", torch.ones(3, device=DEVICE, dtype=dtype))
        self.register_buffer("count", torch.tensor(0, device=DEVICE))

    def change(self) -> None:
        with torch.no_grad():
            for p in (*self.parameters(), self.running):
                p.add_(torch.randn_like(p))
            self.count += 1


@needs("ema_update_")
@pytest.mark.parametrize("average_buffers", [False, True])
def test_ema(average_buffers):
    model = Small()
    ema = opreg.nn.EMA(model, alpha=0.35, average_buffers=average_buffers)
    assert list(ema.averages) == ["first.weight", "first.bias", "second.bias", "running", "count"]
    want = {n: t.clone() for n, t in model.state_dict().items()}
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 0.35, 0.35]):  # (step + 1)/(step + 10), up to alpha
        assert (ema.step, ema.decay) == (step, pytest.approx(decay))
        model.change()
        ema.update()
        for name in ema.averages:
            live = model.state_dict()[name]
            averaged = name != "count" and (average_buffers or name != "running")
            want[name] = decay * want[name] + (1 - decay) * live if averaged else live.clone()
            near(ema.averages[name], want[name])
    own = {n: t.clone() for n, t in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    with ema.averaged() as averaged_model:
        assert averaged_model is model
        for name, average in ema.averages.items():
            assert torch.equal(model.state_dict()[name], average)
        assert torch.equal(model.second.weight, model.first.weight)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    for name, t in model.state_dict().items():
        assert torch.equal(t, own[name])


@needs("ema_update_")
def test_ema_state():
    model = Small()
    ema = opreg.nn.EMA(model)
    for _ in range(3):
        model.change()
        ema.update()
    saved = copy.deepcopy(ema.state_dict())
    other = opreg.nn.EMA(model)
    other.load_state_dict(pickle.loads(pickle.dumps(saved)))
    model.change()
    for e in (ema, other):
        e.update()
    assert (ema.step, ema.decay) == (other.step, other.decay) == (4, 5 / 14)
    for name, t in ema.averages.items():
        assert torch.equal(t, other.averages[name])
    assert repr(ema) == "EMA(alpha=0.999, average_buffers=False, step=4)"


@needs("ema_update_")
def test_ema_of_low_precision_moves():
    """A thousandth of a difference is below what bfloat16 resolves: the averages are float32."""
    model = Small(torch.bfloat16)
    ema = opreg.nn.EMA(model)
    ema.step = 10**6
    before = ema.averages["first.bias"].clone()
    assert before.dtype == torch.float32
    with torch.no_grad():
        model.first.bias.copy_(before + 1)
    ema.update()
    live = model.first.bias.float()
    torch.testing.assert_close(ema.averages["first.bias"], 0.999 * before + 0.001 * live, rtol=1e-6, atol=1e-7)
    with ema.averaged():
        assert torch.equal(model.first.bias, ema.averages["first.bias"].bfloat16())


@needs("ema_update_")
def test_ema_errors():
    model = Small()
    ema = opreg.nn.EMA(model)
    with pytest.raises(RuntimeError, match=re.escape("EMA: expected apply() before restore()")):
        ema.restore()
    own = model.first.bias.detach().clone()
    model.change()
    ema.update()
    with ema.averaged():
        with pytest.raises(RuntimeError, match=re.escape("EMA: expected restore() before update()")):
            ema.update()
        with pytest.raises(RuntimeError, match=re.escape("EMA: expected restore() before another apply()")):
            ema.apply()
    with pytest.raises(ZeroDivisionError), ema.averaged():  # the weights come back from an error too
        _ = 1 / 0
    assert not torch.equal(model.first.bias, own)
    assert not torch.equal(model.first.bias, ema.averages["first.bias"])
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"EMA: expected alpha in \[0, 1\], got"):
            opreg.nn.EMA(model, alpha)
    with pytest.raises(ValueError, match=r"EMA: expected a state of this model, got a difference in \['weight'\]"):
        ema.load_state_dict({"step": 0, "averages": {**ema.averages, "weight": own}})
    model.extra = torch.nn.Parameter(own)
    with pytest.raises(ValueError, match=r"expected the model's tensors to stay .* difference in \['extra'\]"):
        ema.update()


LINEAR: list[tuple[dict[str, Any], Callable[[], Tensor]]] = [
    ({}, lambda: torch.randint(0, 6, (4,))),
    ({"bias": True, "reduction": "none", "ignore_index": 2}, lambda: torch.tensor([0, 2, 5, 1])),
    ({"weight": torch.rand(6).double(), "label_smoothing": 0.1}, lambda: torch.randint(0, 6, (4,))),
    ({"bias": True, "reduction": "sum"}, lambda: torch.randn(4, 6).softmax(1).double()),
    ({"bias": True, "out_features": (2, 3)}, lambda: torch.randint(0, 6, (4, 2, 3))),
    ({"out_features": (2,), "reduction": "none"}, lambda: torch.randn(4, 6, 2).softmax(1).double()),
]


@needs("linear_cross_entropy")
@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="not in this torch")
@pytest.mark.parametrize(("options", "target"), LINEAR, ids=lambda o: str(list(o)) if isinstance(o, dict) else "")
def test_linear_cross_entropy(options, target):
    """torch's module, with the same state."""
    theirs = torch.nn.LinearCrossEntropyLoss(5, 6, **options).double().to(DEVICE)
    ours = opreg.nn.LinearCrossEntropyLoss(5, 6, **options).double().to(DEVICE)
    ours.load_state_dict(theirs.state_dict())
    x, t = doubles(4, 5).requires_grad_(), target().to(DEVICE)
    got, want = ours(x, t), theirs(x, t)
    near(got, want)
    gradients = torch.autograd.grad(got.sum(), (x, *ours.parameters()))
    for a, b in zip(gradients, torch.autograd.grad(want.sum(), (x, *theirs.parameters())), strict=True):
        near(a, b)

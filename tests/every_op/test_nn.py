"""opreg.nn: a module for every op, with torch.nn's constructors and state, that compiles and exports whole."""

import copy
import inspect
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_functional import documented_arguments, run_examples
from torch import Tensor

import opreg
from conftest import DEVICE, samples_of
from opreg._library import OPS
from opreg.faces.modules import OpModule, derivable
from opreg.meta.schema import bind

DERIVED: list[type[OpModule]] = [c for c in (getattr(opreg.nn, n) for n in opreg.nn.__all__) if issubclass(c, OpModule)]


def needs(*ops: str) -> pytest.MarkDecorator:
    """For a module whose op another library might lack."""
    missing = [op for op in ops if not hasattr(OPS, op)]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} in this library")


def arguments_of(cls: type) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]


# the modules that are written out, and the ops they call
WRITTEN = {
    "AMSoftmax": ("amsoftmax_loss",),
    "ArcFace": ("arcface_loss",),
    "WIoULoss": ("iou_loss", "wiou_loss"),
    "CoordConv2d": ("coord_conv2d",),
    "DynamicConv2d": ("dynamic_conv2d",),
    "EMA": ("ema_update_",),
    "LinearCrossEntropyLoss": ("linear_cross_entropy",),
    "LinearLogProb": ("linear_log_prob",),
}


def test_every_op_has_a_module(op):
    if not derivable(op):
        pytest.skip("takes parameters, or returns nothing: written out")
    name = op.module or "".join(w.capitalize() for w in op.short.split("_"))
    cls = getattr(opreg.nn, name)
    assert name in opreg.nn.__all__
    assert (cls.__name__, cls.__qualname__) == (name, name)
    assert cls.__module__.startswith("opreg.nn")


def test_names():
    assert {
        "Swish", "HardSwish", "Mish", "L1Loss", "MSELoss", "SmoothL1Loss", "HuberLoss", "BCELoss", "BCEWithLogitsLoss",
        "FocalLoss", "PoissonNLLLoss", "GaussianNLLLoss", "KLDivLoss", "SoftMarginLoss", "HingeEmbeddingLoss",
        "MarginRankingLoss", "NLLLoss", "CrossEntropyLoss",
    } <= {c.__name__ for c in DERIVED}  # fmt: skip
    assert len(set(opreg.nn.__all__)) == len(opreg.nn.__all__)


@pytest.mark.parametrize("name", [n for n in opreg.nn.__all__ if hasattr(torch.nn, n)])
def test_constructor_is_torchs(name):
    """Names, order, defaults, kinds: what was positional there is so here. What torch does not have comes by name."""
    ours, torchs = arguments_of(getattr(opreg.nn, name)), arguments_of(getattr(torch.nn, name))
    assert ours[: len(torchs)] == torchs
    further = {"CrossEntropyLoss": ["softcap", "z_loss"], "LinearCrossEntropyLoss": ["softcap", "z_loss"]}
    assert [argument[0] for argument in ours[len(torchs) :]] == further.get(name, [])
    assert all(argument[1] is inspect.Parameter.KEYWORD_ONLY for argument in ours[len(torchs) :])


def test_signatures_in_words():
    assert str(inspect.signature(opreg.nn.FocalLoss)) == (
        "(alpha: float = 0.25, gamma: float = 2.0, reduction: str = 'mean') -> None"
    )
    assert list(inspect.signature(opreg.nn.CrossEntropyLoss).parameters) == [
        "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing", "softcap", "z_loss"
    ]  # fmt: skip
    calls = {c.__name__: list(inspect.signature(c.forward).parameters)[1:] for c in DERIVED}
    assert calls["CrossEntropyLoss"] == calls["FocalLoss"] == calls["PoissonNLLLoss"] == ["input", "target"]
    assert calls["GaussianNLLLoss"] == ["input", "target", "var"]
    assert calls["MarginRankingLoss"] == ["input1", "input2", "target"]
    assert calls["Swish"] == ["input"]


def module_and_tensors(op: opreg.Op, sample: opreg.Sample) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A sample's call, by its module: options to the constructor, the rest to the call."""
    cls = next(c for c in DERIVED if c.op is op)
    bound = bind(op.value, sample.args, sample.kwargs)
    options = {n: bound[n] for n in cls.options}
    return cls(**options), {n: a for n, a in bound.items() if n not in options and n != "dtype"}


def test_module_is_the_op(op, index):
    """Of every sample: the same bits."""
    if all(c.op is not op for c in DERIVED):
        pytest.skip("its module is written out: tested below")
    sample = samples_of(op)[index]
    module, tensors = module_and_tensors(op, sample)
    want = op.value(*sample.args, **sample.kwargs)
    torch.testing.assert_close(module(**tensors), want, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(module(*tensors.values()), want, rtol=0, atol=0, equal_nan=True)
    assert isinstance(module, getattr(torch.nn, type(module).__name__, torch.nn.Module))


@pytest.mark.parametrize("cls", DERIVED, ids=lambda c: c.__name__)
def test_copies(cls):
    """Pickle, deepcopy and a state dict bring back options and buffers; what is None is not in the state."""
    options = {n: torch.rand(3) + 0.1 for n in cls.options if n in cls.op.tensor_arguments}
    if "reduction" in cls.options:
        options["reduction"] = "sum"
    module = cls(**options).to(DEVICE)
    assert list(module.state_dict()) == [n for n in options if n != "reduction"]
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert type(other) is cls
        assert repr(other) == repr(module)
        assert other.state_dict().keys() == module.state_dict().keys()
    changed = cls(**{n: 2 * v if isinstance(v, Tensor) else v for n, v in options.items()}).to(DEVICE)
    changed.load_state_dict(module.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(getattr(changed, name), value)
        assert torch.equal(value, options[name].to(DEVICE))
        assert getattr(module.double(), name).dtype == torch.float64
    required = {p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty}
    if not required:
        assert cls().state_dict() == {}


def test_repr():
    assert repr(opreg.nn.FocalLoss(gamma=1.5)) == "FocalLoss(alpha=0.25, gamma=1.5, reduction='mean')"
    weighted = opreg.nn.CrossEntropyLoss(torch.ones(3), ignore_index=7)
    options = "ignore_index=7, reduction='mean', label_smoothing=0.0, softcap=0.0, z_loss=0.0"
    assert repr(weighted) == f"CrossEntropyLoss({options})"
    assert repr(opreg.nn.Mish()) == "Mish()"


def test_legacy_arguments():
    """Deprecated in torch, but positions count on them."""
    x, t = torch.randn(4, 3, device=DEVICE), torch.tensor([0, 1, 2, 1], device=DEVICE)
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        summed = opreg.nn.CrossEntropyLoss(None, False, 1)
    torch.testing.assert_close(summed(x, t), F.cross_entropy(x, t, ignore_index=1, reduction="sum"))
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        each = opreg.nn.MSELoss(reduce=False)
    assert each(x, x).shape == x.shape


def test_wrong_arguments_are_errors():
    """Of the constructor at once, as of the call."""
    with pytest.raises(
        TypeError, match="FocalLoss: expected arguments out of alpha, gamma, reduction, got one named b"
    ):
        opreg.nn.FocalLoss(beta=1.0)
    with pytest.raises(
        TypeError, match=r"FocalLoss: expected at most 3 by position \(alpha, gamma, reduction\), got 4"
    ):
        opreg.nn.FocalLoss(0.25, 2.0, "mean", 1)
    x = torch.randn(3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"FocalLoss: expected at most 2 by position .*got 3; options go to the con"):
        opreg.nn.FocalLoss()(x, x, 0.25)
    with pytest.raises(
        RuntimeError, match="FocalLoss: expected arguments out of input, target, dtype, got one named gam"
    ):
        opreg.nn.FocalLoss()(x, x, gamma=1.0)
    module = opreg.nn.FocalLoss()
    module.gamma = -1.0
    with pytest.raises(RuntimeError, match="focal_loss: expected finite gamma >= 0, got -1"):
        module(x, x.sigmoid())


def test_one_variance_for_all():
    x, t = torch.randn(4, 3, device=DEVICE), torch.randn(4, 3, device=DEVICE)
    torch.testing.assert_close(opreg.nn.GaussianNLLLoss()(x, t, 0.5), F.gaussian_nll_loss(x, t, 0.5))


def test_inplace_is_taken_but_not_done():
    x = torch.randn(5, device=DEVICE)
    before = x.clone()
    torch.testing.assert_close(opreg.nn.Mish(inplace=True)(x), F.mish(before))
    assert torch.equal(x, before)


@pytest.mark.parametrize("cls", DERIVED, ids=lambda c: c.__name__)
def test_compiles_and_exports(cls):
    """No graph break, and one node in an export that knows the arguments by name. No reset in between."""
    sample = next(s for s in samples_of(cls.op, dtype=torch.float32) if s.args[0].dim() >= 2)
    module, tensors = module_and_tensors(cls.op, sample)
    want = module(*tensors.values())
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors.values()), want)
    batched = [n for n, t in tensors.items() if cls.op.batch_dims.get(n, 0) == 0 and t.dim()]
    shapes = {n: {0: torch.export.Dim.AUTO} if n in batched else None for n in tensors}
    program = torch.export.export(module, (), tensors, dynamic_shapes=shapes)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [cls.op.value]
    torch.testing.assert_close(program.module()(**tensors), want)


def test_code_of_their_own():
    """Dynamo gives up on code that it has compiled eight times: one forward for all would soon be there."""
    assert len({c.forward.__code__ for c in DERIVED}) == len(DERIVED)


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs(*WRITTEN.get(n, ()))) for n in opreg.nn.__all__])
def test_documented(name):
    cls = getattr(opreg.nn, name)
    docstring = inspect.cleandoc(cls.__doc__)
    titles = re.findall(r"^([A-Z][a-z]+):$", docstring, re.M)
    assert {"Raises", "Example"} <= set(titles)
    known = documented_arguments(docstring)
    assert set(inspect.signature(cls).parameters) <= known
    if issubclass(cls, torch.nn.Module):
        assert {"Call", "Returns"} <= set(titles)
        assert set(list(inspect.signature(cls.forward).parameters)[1:]) <= known
    assert f"opreg.nn.{name}(" in docstring
    assert run_examples(docstring) > 0

"""opreg.fuse of a module: what Python decides in a forward is decided again, or the forward stays the module's own."""

import copy
import linecache
import math
import random  # noqa: F401  a forward below uses it
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import opreg

SMOOTHING = 0.1
OPTIONS = {"smoothing": 0.1}
NAMESPACE = types.SimpleNamespace(smoothing=0.1)
TABLE = torch.ones(3)
EXTRA = nn.Linear(4, 4)
X, T = torch.linspace(-4, 5, 20).reshape(5, 4) % 2.9 + torch.arange(5.0)[:, None] - 2, torch.tensor([0, 1, 2, 3, 1])


def of_global(x, t):
    return F.cross_entropy(x, t, label_smoothing=SMOOTHING)


def closure(smoothing):
    def loss(x, t):
        return F.cross_entropy(x, t, label_smoothing=smoothing)

    def change(value):
        nonlocal smoothing
        smoothing = value

    return loss, change


CLOSED, CHANGE_CLOSED = closure(0.1)


def with_default(x, t, options={"smoothing": 0.1}):  # noqa: B006  that it can be written to is the point
    return F.cross_entropy(x, t, label_smoothing=options["smoothing"])


class Schedule(nn.Module):
    of_class = 0.1

    def __init__(self):
        super().__init__()
        self.smoothing, self.options, self.list = 0.1, {"smoothing": 0.1}, [0.1, 0.2]
        self.nested = {"a": [{"smoothing": (0.1,)}]}
        self.function = F.silu
        self.gate = nn.Sigmoid()
        self.clip = nn.Hardtanh(0.0, 6.0)
        self.part = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.plain = torch.tensor(2.0)
        self.bias = None
        self.namespace = NAMESPACE
        self.register_buffer("scale", torch.tensor(3.0))

    @property
    def computed(self):
        return self.smoothing * 2

    def helper(self, x):
        return x * self.smoothing


def forward_of(text):
    """A module whose forward is this expression."""
    source, names = f"def forward(self, x, t):\n    return {text}\n", {**globals()}
    file = f"<forward {len(linecache.cache)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # a report names what the text calls
    exec(compile(source, file, "exec"), names)
    return type("Made", (Schedule,), {"forward": names["forward"]})().eval()


def set_attribute(name, value):
    def change(module):
        *path, last = name.split(".")
        for step in path:
            module = getattr(module, step)
        setattr(module, last, value)

    return change


def set_global(name, value):
    return lambda module: type(module).forward.__globals__.__setitem__(name, value)


# the forward, and what changes
DECIDED = {
    "an option": ("F.cross_entropy(x, t, label_smoothing=self.smoothing)", set_attribute("smoothing", 0.5)),
    "a factor": ("F.cross_entropy(x * self.smoothing, t)", set_attribute("smoothing", 0.5)),
    "a number that becomes none": ("F.cross_entropy(x, t) * self.smoothing", set_attribute("smoothing", math.nan)),
    "a branch": ("F.cross_entropy(x, t) * (2 if self.smoothing > 0.3 else 1)", set_attribute("smoothing", 0.5)),
    "a name that came": ("F.cross_entropy(x, t) * getattr(self, 'late', 1.0)", set_attribute("late", 2.0)),
    "whether there is one": ("F.cross_entropy(x, t) * (2 if hasattr(self, 'late') else 1)", set_attribute("late", 0)),
    "None": ("F.cross_entropy(x if self.bias is None else x + self.bias, t)", set_attribute("bias", torch.randn(4))),
    "a tensor that becomes None": (
        "F.cross_entropy(x if self.plain is None else x * self.plain, t)",
        set_attribute("plain", None),
    ),
    "a dictionary": (
        "F.cross_entropy(x, t, label_smoothing=self.options['smoothing'])",
        lambda m: m.options.update(smoothing=0.5),
    ),
    "a method of a dictionary": (
        "F.cross_entropy(x, t, label_smoothing=self.options.get('other', 0.0))",
        lambda m: m.options.update(other=0.5),
    ),
    "nested": (
        "F.cross_entropy(x, t, label_smoothing=self.nested['a'][0]['smoothing'][0])",
        lambda m: m.nested["a"][0].update(smoothing=(0.5,)),
    ),
    "a loop": ("sum([F.cross_entropy(x, t, label_smoothing=s) for s in self.list])", lambda m: m.list.append(0.3)),
    "of a part": ("F.cross_entropy(x, t) * self.part.in_features", set_attribute("part.in_features", 7)),
    "a property": ("F.cross_entropy(x, t, label_smoothing=self.computed)", set_attribute("smoothing", 0.3)),
    "a method": ("F.cross_entropy(self.helper(x), t)", set_attribute("smoothing", 0.5)),
    "another method": ("F.cross_entropy(self.helper(x), t)", set_attribute("helper", lambda x: x * 3)),
    "a class attribute": (
        "F.cross_entropy(x, t, label_smoothing=self.of_class)",
        lambda m: setattr(type(m), "of_class", 0.5),
    ),
    "over a class attribute": ("F.cross_entropy(x, t, label_smoothing=self.of_class)", set_attribute("of_class", 0.5)),
    "a function": ("F.cross_entropy(self.function(x), t)", set_attribute("function", torch.tanh)),
    "a global": ("F.cross_entropy(x, t, label_smoothing=SMOOTHING)", set_global("SMOOTHING", 0.5)),
    "a global function": ("of_global(x, t)", set_global("of_global", lambda x, t: F.cross_entropy(x, t))),
    "a global dictionary": (
        "F.cross_entropy(x, t, label_smoothing=OPTIONS['smoothing'])",
        set_global("OPTIONS", {"smoothing": 0.5}),
    ),
    "a closure": ("CLOSED(x, t)", lambda m: CHANGE_CLOSED(0.5)),
    "a default": ("with_default(x, t)", lambda m: with_default.__defaults__[0].update(smoothing=0.5)),
    "a module of a formula": ("F.cross_entropy(x * self.gate(x), t)", set_attribute("gate", nn.Tanh())),
    "an option of a module of a formula": (
        "F.cross_entropy(x * self.clip(x + 3) / 6, t)",
        set_attribute("clip.max_val", 5.0),
    ),
    "a hook": (
        "F.cross_entropy(x * self.gate(x), t)",
        lambda m: m.gate.register_forward_hook(lambda module, args, result: result * 2),
    ),
    "blocks": ("F.cross_entropy(sum([b(x) for b in self.blocks]), t)", lambda m: m.blocks.append(EXTRA)),
    "training of a part": (
        "F.cross_entropy(x, t) * (2 if self.part.training and not self.gate.training else 1)",
        lambda m: m.part.train(),
    ),
    "the forward itself": (
        "F.cross_entropy(x, t)",
        lambda m: setattr(type(m), "forward", lambda self, x, t: F.mse_loss(x, x * 2)),
    ),
}
LEFT = {
    "a buffer in Python": ("F.cross_entropy(x, t) * (2 if self.scale > 1 else 1)", "can't be traced"),
    "a number of a tensor": ("F.cross_entropy(x, t) * float(self.plain)", "can't be traced"),
    "random": ("F.cross_entropy(x, t, label_smoothing=random.random())", "calls random"),
    "a function of random": ("F.cross_entropy(x, t, label_smoothing=random.uniform(0, 1))", "reads random.uniform"),
    "torch's random": ("F.cross_entropy(x, t) * torch.rand(()).item()", "calls rand"),
    "the mode": ("F.cross_entropy(x, t) * (2 if torch.is_grad_enabled() else 1)", "calls is_grad_enabled"),
    "types": ("F.cross_entropy(x, t) * (2 if isinstance(x, torch.Tensor) else 1)", "calls isinstance"),
    "types by torch": ("F.cross_entropy(x, t) * (2 if torch.is_tensor(x) else 1)", "calls torch's is_tensor"),
    "identity": ("F.cross_entropy(x, t) * (2 if x is t else 1)", "whether two objects are one"),
    "a global tensor": ("F.cross_entropy(x, t) * TABLE.sum().item()", "makes tensors of its own"),
    "an object": ("F.cross_entropy(x, t, label_smoothing=self.namespace.smoothing)", "of type SimpleNamespace"),
    "a global object": ("F.cross_entropy(x, t, label_smoothing=NAMESPACE.smoothing)", "of type SimpleNamespace"),
    "its dictionary": ("F.cross_entropy(x, t, label_smoothing=self.__dict__['smoothing'])", "reads self.__dict__"),
    "its type": ("F.cross_entropy(x, t, label_smoothing=type(self).of_class)", "calls type"),
    "parameters": ("F.cross_entropy(x, t) + sum(p.sum() for p in self.parameters())", "tensors of its own"),
    "a write": ("(setattr(self, 'smoothing', 0.2), F.cross_entropy(x, t))[1]", "calls setattr"),
    "a write to a list": ("(self.list.append(0.3), F.cross_entropy(x, t))[1]", "writes to self.list"),
    "the environment": ("F.cross_entropy(x, t) * len(__import__('os').environ)", "calls __import__"),
}


@pytest.fixture(autouse=True)
def _as_before():
    kept = {**globals()}, Schedule.of_class
    yield
    globals().update(kept[0])
    Schedule.of_class = kept[1]
    CHANGE_CLOSED(0.1)
    with_default.__defaults__[0].update(smoothing=0.1)


@pytest.mark.parametrize("name", DECIDED)
def test_what_changes_counts(name):
    """Fused, a module computes what it would compute, before and after a change; copies, compiled and exported too."""
    text, change = DECIDED[name]
    module = forward_of(text)
    fused, report = opreg.fuse(module)
    assert report.swapped, str(report)
    torch.testing.assert_close(fused(X, T), module(X, T))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = copy.deepcopy(fused)
        torch.testing.assert_close(again(X, T), module(X, T))
    before = module(X, T)
    for m in (module, fused, again):
        change(m)
    want = module(X, T)
    assert not torch.equal(want, before), "the change is to be seen"
    with pytest.warns(UserWarning, match="is not what it was when"):
        torch.testing.assert_close(fused(X, T), want, equal_nan=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(again(X, T), want, equal_nan=True)
        refused, _ = opreg.fuse(fused)  # with what counts now
        torch.testing.assert_close(refused(X, T), want, equal_nan=True)


@pytest.mark.parametrize("name", LEFT)
def test_what_may_change_unseen_is_left(name):
    text, reason = LEFT[name]
    module = forward_of(text)
    fused, report = opreg.fuse(module)
    assert report.swapped == []
    assert [e.what for e in report.left] == ["cross_entropy"]
    assert reason in report.left[0].why, report.left[0].why
    assert "forward" not in vars(fused)
    assert fused.list == [0.1, 0.2]


def test_back_as_it_was():
    module = forward_of(DECIDED["an option"][0])
    fused, _ = opreg.fuse(module)
    for smoothing in (0.1, 0.5, 0.1):
        module.smoothing = fused.smoothing = smoothing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(fused(X, T), module(X, T))
    before, traced = torch.ops.lossreg.cross_entropy.default, []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            traced.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        fused(X, T)
    assert before in traced


def test_an_argument_that_is_no_tensor():
    module = forward_of("F.cross_entropy(x, t) if t is not None else x")
    fused, report = opreg.fuse(module)
    assert report.swapped
    assert torch.equal(fused(X, None), X)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_after_fuse(fullgraph):
    for name in ("an option", "a dictionary", "a function", "a global", "a closure", "a module of a formula"):
        torch._dynamo.reset()
        text, change = DECIDED[name]
        module = forward_of(text)
        fused, _ = opreg.fuse(module)
        compiled = torch.compile(fused, backend="eager", fullgraph=fullgraph)
        torch.testing.assert_close(compiled(X, T), module(X, T))
        assert name == "a closure" or "lossreg" in str(torch.export.export(fused, (X, T)).graph)
        change(module)
        change(fused)
        torch.testing.assert_close(compiled(X, T), module(X, T))


class Decorated(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.SiLU()

    def forward(self, x, t):
        return F.cross_entropy(x, t)

    forward = (lambda f, scale: lambda self, x, t: f(self, x, t) * scale)(forward, 2.0)


def test_a_decorated_forward():
    module = Decorated()
    fused, report = opreg.fuse(module)
    assert sorted(s.op for s in report.swapped) == ["cross_entropy", "swish"]
    torch.testing.assert_close(fused(X, T), module(X, T))

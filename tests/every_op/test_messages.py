"""Every wrong call, by whichever door: the message names the op and the argument, what was expected and what came."""

import copy
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import opreg
from conftest import DEVICE, samples_of
from opreg._library import NAMESPACE, OPS
from opreg._private import fake_mode
from opreg.attach import messages
from opreg.faces.modules import OpModule
from opreg.meta.schema import bind
from opreg.registry import of_namespace
from opreg.testing import Maker, joined

ALL = of_namespace()
MODULES: dict[str, type[OpModule]] = {
    cls.op.short: cls for cls in (getattr(opreg.nn, n) for n in opreg.nn.__all__) if issubclass(cls, OpModule)
}
TWO = torch.tensor([0.5, 2.0])

# by the type of a schema's argument: values that are none of it, and what the message must say of each
# (None for a flag is False to the dispatcher)
WRONG: dict[str, list[tuple[Any, str]]] = {
    "Tensor": [
        (None, "None"), (numpy.ones((2, 3)), "numpy.ndarray"), ([[0.5]], "a list"), ((1, 2), "a tuple"), (1.5, "1.5"),
        (True, "True"), ("float32", '"float32"'), ({}, "a dict"), (torch.float32, "torch.float32"),
    ],
    "List[Tensor]": [
        (None, "None"), (TWO, "tensor of shape [2]"), ([TWO, None], "None"), ([numpy.ones(2)], "numpy.ndarray"),
        ("a", '"a"'), (1.5, "1.5"),
    ],
    "float": [
        (None, "None"), ("2.0", '"2.0"'), ([0.5], "a list"), (numpy.ones(2), "numpy.ndarray"), ({}, "a dict"),
        (TWO, "tensor of shape [2]"), (1j, "1j"), (10**400, "1000"), (torch.tensor(1j), "complex64 tensor"),
    ],
    "int": [
        (None, "None"), ("2", '"2"'), ([2], "a list"), (1.5, "1.5"), (2**70, str(2**70)), (TWO, "tensor of shape [2]"),
        (numpy.float64(2), "2.0"), (torch.tensor(1.5), "float32 tensor"),
    ],
    "bool": [("yes", '"yes"'), ([True], "a list"), (TWO, "tensor of shape [2]")],
    "str": [(None, "None"), (1, "1, an int"), (["mean"], "a list"), (torch.float32, "torch.float32")],
    "List[int]": [(None, "None"), ("2", '"2"'), (1.5, "1.5"), (["2", 1], '"2"'), ([1, None], "None"), ({}, "a dict")],
    "List[bool]": [(None, "None"), ("a", '"a"'), (["a"], '"a"'), (1.5, "1.5")],
    "Optional[ScalarType]": [
        ("float32", '"float32", a str; pass torch.float32'), (numpy.float32, "numpy.float32; pass torch.float32"),
        ([torch.float32], "a list"), (1.5, "1.5"),
    ],
}  # fmt: skip
WRONG["Optional[Tensor]"] = WRONG["Tensor"][1:]


def wrong_values(argument: Any) -> list[tuple[Any, str]]:
    return WRONG[str(argument.real_type)]


def whole_call(op: opreg.Op) -> dict[str, Any]:
    sample = next(op.samples(Maker(torch.float32, DEVICE)))
    return dict(bind(op.value, sample.args, sample.kwargs))


def by_module(op: opreg.Op, *args: Any, **kwargs: Any) -> Any:
    cls = MODULES[op.short]
    options = {n: kwargs.pop(n) for n in cls.options if n in kwargs}
    return cls(**options)(*args, **kwargs)


def as_fake(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    mode = fake_mode()

    def fake(a: Any) -> Any:
        return mode.from_tensor(a) if isinstance(a, Tensor) and a.dim() != 1 else a

    with mode:
        return call(*map(fake, args), **{n: fake(a) for n, a in kwargs.items()})


def doors(op: opreg.Op) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield "packet", getattr(OPS, op.short)
    yield "overload", op.value
    yield "functional", getattr(opreg.functional, op.short)
    yield "fake", functools.partial(as_fake, op.value)
    if op.short in MODULES:
        yield "module", functools.partial(by_module, op)


def message_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises((RuntimeError, TypeError, ValueError)) as raised:
        call(*args, **kwargs)
    return str(raised.value)


def require(message: str, op: str, *parts: str) -> None:
    expected, got = message.split(", got ", 1)
    assert expected.startswith(f"{op}: expected "), message
    for part in parts[:-1]:
        assert part in expected, message
    assert parts[-1] in got, message
    for foreign in ("C++", "Declaration", f"{NAMESPACE}::", "Position"):
        assert foreign not in message


@pytest.fixture(params=ALL, ids=lambda op: op.short)
def any_op(request):
    return request.param


def test_wrong_type(any_op):
    call = whole_call(any_op)
    for door, function in doors(any_op):
        for a in any_op.value._schema.arguments:
            for value, got in wrong_values(a):
                if (
                    a.name in any_op.accepts
                    and door in ("functional", "module")
                    and isinstance(value, (int, float, list, tuple))
                ):
                    continue  # a number, or numbers, for lengths or a variance
                require(message_of(function, **{**call, a.name: value}), any_op.short, a.name, got)


def test_missing_argument(any_op):
    call = whole_call(any_op)
    required = [a.name for a in any_op.value._schema.arguments if not a.has_default_value()]
    for door, function in doors(any_op):
        for name in required:
            if door == "module" and name in MODULES[any_op.short].options:
                cls = MODULES[any_op.short]
                require(message_of(cls), cls.__name__, name, "no such argument")
            else:
                rest = {n: a for n, a in call.items() if n != name}
                require(message_of(function, **rest), any_op.short, name, "no such argument")


def test_names_and_counts(any_op):
    call = whole_call(any_op)
    positional = [call[n] for n in any_op.arguments if n != "dtype"]
    for door, function in doors(any_op):
        name = any_op.short
        require(message_of(function, **call, unknown=1), name, any_op.arguments[0], "one named unknown")
        if door == "module":
            continue  # below
        count = str(len(positional))
        require(message_of(function, *positional, 1), name, count, str(len(positional) + 1))
        first = any_op.arguments[0]
        require(message_of(function, *positional, **{first: call[first]}), name, first, "by position and by name")


@pytest.mark.parametrize("cls", MODULES.values(), ids=lambda c: c.__name__)
def test_names_and_counts_of_modules(cls):
    call, name = whole_call(cls.op), cls.__name__
    options = {n: call.pop(n) for n in cls.options}
    call.pop("dtype", None)
    require(message_of(cls, **options, unknown=1), name, *cls.options[:1], "one named unknown")
    require(message_of(cls, *range(12)), name, "at most", "12")
    module = cls(**options)
    require(message_of(module, *call.values(), 1), name, *call, str(len(call) + 1))
    for option in cls.options:
        require(message_of(module, **call, **{option: 1}), name, *call, f"one named {option}; options go to the constr")


def test_other_overloads(any_op):
    """``NAME_backward`` and ``NAME_forward``, which autograd and loaded programs call."""
    call = whole_call(any_op)
    tensors = {**dict.fromkeys(any_op.gradients_of_results, torch.ones(())), "state": torch.ones(1)}
    mask = {"needs_input_grad": [True] * len(any_op.differentiable)}
    for overload in any_op.overloads[1:]:
        name = overload._schema.name.split("::")[1]
        arguments = overload._schema.arguments
        whole = {a.name: {**tensors, **mask, **call}[a.name] for a in arguments}
        require(message_of(overload, **whole, unknown=1), name, arguments[0].name, "one named unknown")
        for a in arguments:
            if not a.has_default_value():
                rest = {n: v for n, v in whole.items() if n != a.name}
                require(message_of(overload, **rest), name, a.name, "no such argument")
            for value, got in wrong_values(a):
                require(message_of(overload, **{**whole, a.name: value}), name, a.name, got)


# Options whose domain depends on the tensors, so that no constructor can know it.
IN_CALL = {
    ("ctc_loss", "blank"),
    ("rnnt_loss", "blank"),
    ("affinity_loss", "kernel_size"),
    ("cross_entropy", "ignore_index"),
}


def test_option_out_of_domain(any_op):
    """Of all that the declaration lists: at once where there is a constructor."""
    for error in any_op.errors(Maker(torch.float32, DEVICE)):
        if len(error.kwargs) != 1 or error.kwargs.keys() & set(any_op.tensor_arguments):
            continue
        (option,) = error.kwargs
        call = bind(any_op.value, error.args, error.kwargs)
        for door, function in doors(any_op):
            if door == "fake" and error.values:
                continue
            assert re.search(error.message, message_of(function, **call))
        if any_op.short in MODULES and option in MODULES[any_op.short].options:
            cls = MODULES[any_op.short]
            others = {n: call[n] for n in cls.options if n in any_op.tensor_arguments}
            if (any_op.short, option) in IN_CALL:
                cls(**others, **error.kwargs)
            else:
                assert re.search(error.message, message_of(cls, **{**others, **error.kwargs}))


NUMBERS = [(op, a.name) for op in ALL for a in op.value._schema.arguments if str(a.real_type) == "float"]


@pytest.mark.parametrize(("numeric", "option"), NUMBERS, ids=[f"{op.short}-{name}" for op, name in NUMBERS])
def test_learnable_option(numeric, option):
    """The dispatcher makes a number of a tensor: a gradient would be lost without a word."""
    op, call = numeric, whole_call(numeric)
    number = torch.nn.Parameter(torch.tensor(float(call[option])))
    expected = (
        f"{op.short}: expected {option} that does not require grad (it is a number, a constant of this op), got one"
    )
    for door, function in doors(op):
        if door != "fake":
            assert message_of(function, **{**call, option: number}).startswith(expected), door
            positional = [number if n == option else a for n, a in call.items() if n != "dtype"]
            if door != "module":
                assert message_of(function, *positional).startswith(expected), door

    def of_option(t: Tensor) -> Any:
        return op.value(**{**call, option: t})

    assert message_of(torch.func.grad(of_option), number.detach()).startswith(expected)
    assert message_of(torch.func.jvp, of_option, (number.detach(),), (torch.ones(()),)).startswith(expected)
    assert "can't be read here" in message_of(torch.vmap(of_option), number.detach()[None])
    if op.short == "ema_update_":
        return
    with torch.no_grad():
        assert torch.equal(joined(of_option(number)), joined(op.value(**call)))
    assert torch.equal(joined(of_option(number.detach())), joined(op.value(**call)))


@pytest.mark.parametrize("layout", ["jagged", "nested", "sparse", "quantized", "mkldnn"])
def test_layouts(any_op, layout):
    """One that no kernel reads, at each tensor's place, beside ordinary ones."""
    if DEVICE != "cpu" and layout in ("quantized", "mkldnn"):
        pytest.skip("of the CPU")
    make = {
        "jagged": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)]),
        "sparse": lambda: torch.ones(2, 3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8),
        "mkldnn": lambda: torch.ones(2, 3).to_mkldnn(),
    }
    words = {"jagged": "nested", "sparse": "sparse_coo", "mkldnn": "torch._mkldnn"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: prototype, deprecated
        strange = make[layout]()
    call = whole_call(any_op)
    for name in any_op.tensor_arguments:
        value = [strange] * len(call[name]) if isinstance(call[name], list) else strange
        for door, function in doors(any_op):
            if door != "fake" and not (door == "module" and name in MODULES[any_op.short].options):
                require(message_of(function, **{**call, name: value}), any_op.short, name, words.get(layout, layout))


X, INDEX = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
IMAGE, MASK = torch.rand(2, 3, 5, 5), torch.randint(0, 2, (2, 5, 5))
ONE = IMAGE[:, :1]


@pytest.mark.parametrize(
    ("name", "args", "out"),
    [
        (
            "cross_entropy",
            (X, F.one_hot(INDEX, 3)),
            "target.argmax(1), class indices, or target.float(), probabilities",
        ),
        ("cross_entropy", (X, INDEX.float()), "target.long(), class indices"),
        ("cross_entropy", (IMAGE, MASK[:, None]), "target.squeeze(1)"),
        ("nll_loss", (X, F.one_hot(INDEX, 3)), "target.argmax(1), class indices"),
        ("nll_loss", (X, X), "target.argmax(1), class indices"),
        ("softmax_focal_loss", (X, INDEX.double()), "target.long(), class indices"),
        ("multi_margin_loss", (X, F.one_hot(INDEX, 3)), "target.argmax(1), class indices"),
        ("multilabel_margin_loss", (X, X), "target.long(), class indices"),
        ("affinity_loss", (IMAGE, MASK.float()), "target.long(), class indices"),
        ("lovasz_softmax_loss", (IMAGE, MASK[:, None]), "target.squeeze(1)"),
        ("focal_loss", (X, INDEX), "torch.nn.functional.one_hot(target, 3), one-hot rows"),
        ("focal_loss", (IMAGE, MASK), "torch.nn.functional.one_hot(target, 3).movedim(-1, 1), one-hot rows"),
        ("binary_cross_entropy_with_logits", (X[:, :1], X[:, 0]), "target.unsqueeze(1)"),
        ("dice_loss", (ONE, MASK[:, None]), "target.float(), probabilities"),
        ("dice_loss", (ONE, MASK), "target.unsqueeze(1).float(), probabilities"),
        ("dice_loss", (IMAGE, MASK[:, None]), "target.squeeze(1)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_way_out(name, args, out):
    """What the message says to pass is taken; in eager mode and by a fake."""
    message = message_of(getattr(torch.ops.lossreg, name), *args)
    assert message.endswith(f"; pass {out}")
    words = out.split(", ")[0] if "one_hot" not in out else out.split("), ")[0] + ")"
    target = eval(words, {"torch": torch}, {"target": args[1]})
    getattr(torch.ops.lossreg, name)(args[0], target)
    if "class index" not in message:  # values
        assert message_of(as_fake, getattr(torch.ops.lossreg, name), *args) == message


def test_probabilities_wanted():
    with pytest.raises(RuntimeError, match=r"in \[0, 1\], got 3; .* binary_cross_entropy_with_logits"):
        torch.ops.lossreg.binary_cross_entropy(torch.tensor([3.0]), torch.ones(1))


def test_in_compiled_code():
    def f(x: Tensor, t: Tensor) -> Tensor:
        return torch.ops.lossreg.focal_loss(x, t, gamma="2")

    with pytest.raises(Exception, match='focal_loss: expected gamma to be a number, got "2", a str'):
        torch.compile(f, backend="eager", fullgraph=True)(X, X)

    def g(x: Tensor, beta: Tensor) -> Tensor:
        return torch.ops.lossreg.swish(x, beta)

    compiled = torch.compile(g, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="swish: expected beta to be a number, got a tensor whose value can't be read"):
        compiled(X, torch.tensor(1.5))
    with pytest.raises(Exception, match="swish: expected beta that does not require grad"):
        compiled(X, torch.tensor(1.5, requires_grad=True))


def test_under_transforms_and_autocast():
    """The reference runs in the op's place there: in the op's words all the same."""
    with pytest.raises(
        RuntimeError, match=r"focal_loss: expected target of the shape of input, got \[4, 3\] and \[4\]"
    ):
        torch.func.grad(lambda x: torch.ops.lossreg.focal_loss(x, INDEX))(X)
    with (
        torch.autocast("cpu"),
        pytest.raises(RuntimeError, match=r"focal_loss: expected input of dtype float64, .* int64"),
    ):
        torch.ops.lossreg.focal_loss(INDEX, INDEX)


def test_the_ops_stay_what_they_are():
    """Their identity, their hash by which torch finds them, their schema; TorchScript and copies."""
    for op in ALL:
        packet = getattr(OPS, op.short)
        assert packet is getattr(OPS, op.short)
        assert packet.default is op.value
        assert type(op.value) is torch._ops.OpOverload
        assert hash(op.value) == hash(op.value_entry)
        assert copy.deepcopy(op.value) is op.value
    scripted = torch.jit.script(scripted_loss)
    assert torch.equal(scripted(X, X), scripted_loss(X, X))
    assert [n.kind() for n in scripted.graph.nodes()][-1] == "lossreg::mse_loss"


def scripted_loss(x: Tensor, t: Tensor) -> Tensor:
    return torch.ops.lossreg.mse_loss(x, t)


def test_other_types_of_an_op_of_ones_own():
    """A type that no op of ours has: the dispatcher's words stand, and all else is said as ever."""
    torch.library.define("test_messages::scaled", "(Tensor input, SymInt n, float[] by, Scalar s=1) -> Tensor")
    torch.library.impl("test_messages::scaled", "CPU", lambda input, n, by, s=1: input)
    op = opreg.Op(
        "test_messages::scaled", reference=lambda input, n, by, s=1: input, shape=opreg.meta.same("input"),
        samples=lambda make: iter(()), errors=lambda make: iter(()), source="",
    )  # fmt: skip
    messages.wrap_entries(op.value, lambda entry: messages.Entry(op, op.value, entry))
    call = torch.ops.test_messages.scaled
    assert call(X, 1, [0.5]) is not None
    require(message_of(call, X, 1, [0.5], t=1), "scaled", "input", "one named t")
    require(message_of(call, X), "scaled", "n", "no such argument")
    assert "for argument 'by'" in message_of(call, X, 1, "no")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda nn: nn.ArcFace(3, "4"), 'ArcFace: expected num_classes to be an integer of at least 1, got "4", a str'),
        (lambda nn: nn.ArcFace(0, 4), "ArcFace: expected in_features to be an integer of at least 1, got 0"),
        (lambda nn: nn.ArcFace(3, 4, scale=-1.0), "arcface_loss: expected finite scale > 0, got -1"),
        (lambda nn: nn.AMSoftmax(3, 4, margin=None), "amsoftmax_loss: expected margin to be a number, got None"),
        (lambda nn: nn.ArcFace(3, 4)(numpy.ones((2, 3)), INDEX), "ArcFace: expected features to be a tensor, got"),
        (lambda nn: nn.WIoULoss("a"), 'WIoULoss: expected momentum to be a number, got "a", a str'),
        (lambda nn: nn.WIoULoss(alpha=-1.0), "wiou_loss: expected finite alpha > 0, got -1"),
        (lambda nn: nn.WIoULoss(version=3), 'WIoULoss: expected version "v1" or "v3", got 3, an int'),
        (lambda nn: nn.WIoULoss()([0, 0, 1, 1], X), "WIoULoss: expected input to be a tensor, got a list"),
        (lambda nn: nn.CoordConv2d(3, 8, 3, stride=0), "coord_conv2d: expected stride of at least 1, got [0, 0]"),
        (lambda nn: nn.CoordConv2d(3, 8, "3"), 'CoordConv2d: expected kernel_size to be an integer of at least'),
        (lambda nn: nn.DynamicConv2d(3, 8, 3, dilation=0.5), "dynamic_conv2d: expected dilation to be an integer or"),
        (lambda nn: nn.DynamicConv2d(3, 8, 3)(numpy.ones(3)), "DynamicConv2d: expected input to be a tensor, got a"),
        (lambda nn: nn.DynamicConv2d(3, 8, 3, temperature="1"), 'DynamicConv2d: expected temperature to be a number'),
        (lambda nn: nn.LinearCrossEntropyLoss(4, 3, label_smoothing=2), "linear_cross_entropy: expected label_smooth"),
        (lambda nn: nn.LinearCrossEntropyLoss(4, 3, weight=[1.0]), "linear_cross_entropy: expected weight to be"),
        (lambda nn: nn.EMA("model"), 'EMA: expected model to be a torch.nn.Module, got "model", a str'),
        (lambda nn: nn.EMA(torch.nn.Linear(2, 2), None), "EMA: expected alpha to be a number, got None"),
    ],
)  # fmt: skip
def test_modules_that_are_written_out(make, message):
    assert message_of(make, opreg.nn).startswith(message)


def test_tensors_on_two_gpus_are_refused(op):
    """A launch has one device, and the others' memory is not its own. On fake tensors: no GPU is needed."""
    if len(op.tensor_arguments) == 1:
        pytest.skip("it has one tensor")
    sample = next(s for s in samples_of(op, dtype=torch.float32) if sum(isinstance(a, Tensor) for a in s.args) > 1)
    message = f"{op.short}: expected all tensors on one device, got cuda:0 and cuda:1"
    with FakeTensorMode(), torch.no_grad():
        args = [
            torch.empty(a.shape, dtype=a.dtype, device=f"cuda:{int(k == 1)}") if isinstance(a, Tensor) else a
            for k, a in enumerate(sample.args)
        ]
        with pytest.raises(RuntimeError, match=message):
            op.value(*args, **sample.kwargs)

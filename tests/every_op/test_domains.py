"""Values that no op was made for: an error on the CPU, NaN where nothing can raise, a warning where torch is silent."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import opreg
from conftest import DEVICE, samples_of
from opreg.meta.schema import bind
from opreg.registry import of_namespace

BEYOND_UNIT = (-0.5, 1.5, float("nan"), float("inf"))
# op, argument, what it must be, values that it isn't; every op whose native twin, or whose definition, refuses values
# that are not class indices
DOMAINS = [
    ("binary_cross_entropy", "input", r"input in \[0, 1\]", BEYOND_UNIT),
    ("binary_cross_entropy", "target", r"target in \[0, 1\]", BEYOND_UNIT),
    ("pc_softmax_cross_entropy", "class_prior", "class_prior > 0", (-1.0, 0.0, float("nan"))),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("name", "argument", "expected", "values"), DOMAINS)
def test_domain(name: str, argument: str, expected: str, values: tuple[float, ...], reduction: str, dtype: Any) -> None:
    """One such value, anywhere in a tensor of several chunks, is found; NaN on a GPU."""
    op = opreg.get(name)
    sample = samples_of(op, dtype=dtype)[0]
    args = {**bind(op.value, sample.args, sample.kwargs), "reduction": reduction}
    if args[argument].dim() > 1:
        args.update({n: a.repeat(2000, 1) for n, a in args.items() if n in ("input", "target")})
    good = args[argument]
    for value in values:
        for place in (0, good.numel() // 2, good.numel() - 1):
            bad = good.clone()
            bad.view(-1)[place] = value
            if DEVICE != "cpu":
                assert op.value(**{**args, argument: bad}).isnan().any()
                continue
            with pytest.raises(RuntimeError, match=f"{name}: expected {expected}, got {value:g}"):
                op.value(**{**args, argument: bad})


def test_integer_target_out_of_domain() -> None:
    x, t = torch.rand(3, device=DEVICE), torch.tensor([0, 1, 2], device=DEVICE)
    with pytest.raises(RuntimeError, match=r"binary_cross_entropy: expected target in \[0, 1\], got 2"):
        torch.ops.lossreg.binary_cross_entropy(x, t)


@pytest.mark.parametrize("argument", ["input", "target"])
@pytest.mark.parametrize("value", BEYOND_UNIT)
def test_gradient_out_of_domain_is_nan(argument: str, value: float) -> None:
    """The backward op may be called by itself: at the value's place no number comes back, elsewhere what should."""
    args = {"input": torch.full((4,), 0.25, device=DEVICE), "target": torch.full((4,), 0.5, device=DEVICE)}
    args[argument][2] = value
    ones = torch.ones(4, device=DEVICE)
    options: dict[str, Any] = {"reduction": "none", "needs_input_grad": [True, True]}
    for grad in torch.ops.lossreg.binary_cross_entropy_backward(ones, args["input"], args["target"], None, **options):
        assert grad.isnan().tolist() == [False, False, True, False]


# whose targets are classes, which are checked
CLASS_OPS = [op.short for op in of_namespace() if op.indices and op.family not in ("affinity", "sequence", "contrast")]


def with_a_wrong_class(op: opreg.Op, wrong: int) -> dict[str, Any]:
    for sample in samples_of(op, dtype=torch.float32):
        args = bind(op.value, sample.args, sample.kwargs)
        target = args[op.indices[0]]
        if target.numel() > 0 and not target.is_floating_point() and sample.args[0].numel() < 1000:
            target = target.long()
            target.view(-1)[0] = wrong  # the first entry of a list counts
            return {**args, op.indices[0]: target}
    raise AssertionError(op.short)


def refuses(function: Any, args: list[Tensor], wrong: str) -> bool:
    """By a message that says what came, or by NaN."""
    try:
        return bool(function(*args).isnan().any())
    except (RuntimeError, IndexError) as error:
        return wrong in str(error)


@pytest.mark.skipif(DEVICE != "cpu", reason="torch's own indexing ends a GPU's context")
@pytest.mark.parametrize("wrong", [97, -7])
@pytest.mark.parametrize("name", CLASS_OPS)
def test_wrong_class_under_vmap(name: str, wrong: int) -> None:
    """vmap runs the reference: an error as of the kernel, or NaN, and no number that looks right."""
    op = opreg.get(name)
    if name == "lovasz_hinge_loss":
        pytest.skip("whatever is not 1 is background")
    args = with_a_wrong_class(op, wrong)
    with pytest.raises(RuntimeError, match=f"{name}: expected a class index in"):
        op.value(**args)
    first, target = op.tensor_arguments[0], op.indices[0]
    both = {n: torch.stack([args[n], args[n]]) for n in (first, target)}
    for names in ((first,), (first, target)):

        def call(*tensors: Tensor, names: tuple[str, ...] = names) -> Tensor:
            return op.value(**{**args, **dict(zip(names, tensors, strict=True))})

        for function in (call, torch.func.grad(lambda *t, call=call: call(*t).sum())):
            assert refuses(torch.vmap(function), [both[n] for n in names], str(wrong)), names


ROW_OPS = [n for n in CLASS_OPS if opreg.get(n).family in ("categorical", "angular", "softmax")]


@pytest.mark.skipif(DEVICE != "cpu", reason="NaN there")
@pytest.mark.parametrize("name", ROW_OPS)
def test_wrong_class_in_the_backward_op(name: str) -> None:
    """Called by itself, with other targets than the forward pass had."""
    op = opreg.get(name)
    args = {**with_a_wrong_class(op, 0), "reduction": "sum"}
    dtype = args.pop("dtype")
    state = [] if op.forward is None else [op.forward(**args, dtype=dtype)[1]]
    mask = [k == 0 for k in range(len(op.differentiable))]
    wrong = {**args, op.indices[0]: with_a_wrong_class(op, 97)[op.indices[0]]}
    with pytest.raises(RuntimeError, match=f"{name}: expected a class index in"):
        op.backward(torch.ones(()), *state, **wrong, needs_input_grad=mask)


def suspicious_calls() -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...], str]]:
    """For each op that says something: a call of which it says nothing, one of which it does, and what."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    column, row, labels = normal(4, 1), normal(4), torch.tensor([0, 2, 1, 2])
    shapes = r"target of the shape of input, got \[4, 1\] and \[4\]"
    regression = ("l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss")
    calls: dict[str, Any] = dict.fromkeys(regression, ((column, column + 1), (column, row), shapes))
    cosines = normal(4, 3).tanh()
    for name in ("arcface_loss", "amsoftmax_loss"):
        calls[name] = ((cosines, labels), (9 * cosines, labels), r"cosine in \[-1, 1\]")
    corner, other = normal(4, 2), normal(4, 2)
    boxes, targets = (torch.cat([c, c + normal(4, 2).abs()], 1) for c in (corner, other))
    reversed_box = boxes.clone()
    reversed_box[2] = boxes[2, [2, 1, 0, 3]]
    for op in of_namespace():
        if op.family == "box":
            calls[op.short] = ((boxes, targets), (targets, reversed_box), "boxes x1, y1, x2, y2 with x1 <= x2")
    scores, labels = normal(20, 2, 5), torch.tensor([[1, 2], [3, 3]])
    lengths = torch.tensor([20, 18]), torch.tensor([2, 2])
    calls["ctc_loss"] = ((scores.log_softmax(-1), labels, *lengths), (9 + scores, labels, *lengths), "log_softmax")
    return calls


def report() -> None:
    """In a process of its own, because each op says it once a process."""
    import warnings

    said: dict[str, list[list[str]]] = {}
    for name, (right, wrong, _) in suspicious_calls().items():
        said[name] = []
        for args in (right, wrong, wrong):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                first = args[0].clone().requires_grad_()
                opreg.get(name).value(first, *args[1:])
            said[name].append([str(w.message) for w in caught])
    print(json.dumps(said))


@pytest.mark.skipif(DEVICE != "cpu", reason="nothing is looked at on a GPU")
def test_warnings_are_said_once() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "import test_domains; test_domains.report()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)

    for name, (_, _, expected) in suspicious_calls().items():
        nothing, once, again = said[name]
        assert nothing == [], name
        assert [bool(re.search(f"{name}: expected .*{expected}", w)) for w in once] == [True], (name, once)
        assert again == [], name

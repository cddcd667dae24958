"""What the report tells of formulas that a graph break divides, or that are nearly an op's; and writes past views."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

import opreg
from opreg import _private
from opreg.passes import Report

DIVIDED = "a formula that a graph break divides"


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def reported(function: Callable[..., Any], *inputs: Tensor) -> Report:
    """The report on all graphs of a function, whose results and gradients are those of eager mode."""
    report = Report()

    def backend(module: fx.GraphModule, example_inputs: Any) -> Any:
        new, found = opreg.fuse(module)
        report.swapped.extend(found.swapped)
        report.left.extend(found.left)
        return new

    def run(f: Callable[..., Any]) -> tuple[Any, list[Tensor]]:
        given = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        result = f(*given)
        leaves = [x for x in given if x.requires_grad]
        return result, list(torch.autograd.grad(result.sum(), leaves)) if result.requires_grad else []

    want, gradients = run(function)
    got, found = run(torch.compile(function, backend=backend))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(found, gradients)
    return report


def told(report: Report, what: str = "") -> str:
    return "; ".join(f"{left.what}: {left.why}" for left in report.left if what in left.what)


X, T = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
IMAGES, MASKS = torch.randn(3, 2, 4, 4, requires_grad=True), (torch.rand(3, 2, 4, 4) > 0.5).float()


def wing_by_masks(x: Tensor, t: Tensor, width: float = 5.0, curvature: float = 0.5) -> Tensor:
    d = (t - x).abs()
    loss = d.clone()
    near, far = d < width, d >= width
    loss[near] = width * torch.log(1 + d[near] / curvature)
    loss[far] = loss[far] - (width - width * math.log(1 + width / curvature))
    return loss.mean()


def wing_by_choice(x: Tensor, t: Tensor, width: float = 5.0, curvature: float = 0.5) -> Tensor:
    d = (t - x).abs()
    offset = width - width * math.log(1 + width / curvature)
    return torch.where(d < width, width * torch.log(1 + d / curvature), d - offset).mean()


def dice(x: Tensor, t: Tensor, over: list[int]) -> Tensor:
    p = torch.sigmoid(x)
    tp = (p * t).sum(over)
    fp, fn = p.sum(over) - tp, t.sum(over) - tp
    return (1 - (2 * tp + 1e-5) / (2 * (tp + fp + fn) + 1e-5)).mean()


def index_by_list_of_tensor(x: Tensor, t: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    over = torch.arange(2, x.dim()).tolist()
    tp = (p * t).sum(over)
    return (1 - (2 * tp + 1e-5) / (2 * (p.sum(over) + t.sum(over) - tp) + 1e-5)).mean()


def branching(x: Tensor, t: Tensor) -> Tensor:
    p = F.softmax(x, 1)
    if t.sum() == 0:
        return p.sum()
    return (p * t).sum()


def by_a_count(x: Tensor, t: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return (p * t).sum() / (len(t) - (t > 0).sum().item())


def explicit(x: Tensor, t: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    torch._dynamo.graph_break()
    return (p * t).sum()


@pytest.mark.parametrize(
    ("function", "inputs", "why"),
    [
        (wing_by_masks, (X, T), "choose by torch.where(mask, a, b)"),
        (index_by_list_of_tensor, (IMAGES, MASKS), "make that number, or that list, without a tensor"),
        (by_a_count, (X, T), "make that number, or that list, without a tensor"),
        (branching, (X, T), "the program branches on the value of a tensor there"),
        (explicit, (X, T), "write that in another way, or leave it out"),
    ],
)
def test_a_formula_that_a_break_divides(function, inputs, why):
    report = reported(function, *inputs)
    assert why in told(report, DIVIDED)
    places = [left.where for left in report.left if left.what == DIVIDED]
    assert all(p.startswith(f"{__file__}:") for p in places)
    assert len(places) == len(set(places))


def test_without_the_break_it_is_swapped():
    """What the report says to change is enough."""
    assert [s.op for s in reported(wing_by_choice, X, T).swapped] == ["wing_loss"]
    assert [s.op for s in reported(lambda x, t: dice(x, t, [2, 3]), IMAGES, MASKS).swapped] == ["jaccard_loss"]


def test_the_backend_tells_it_too():
    compiled = torch.compile(wing_by_masks, backend="opreg")
    torch.testing.assert_close(compiled(X, T), wing_by_masks(X, T))
    assert DIVIDED in {left.what for left in opreg.last_report(wing_by_masks).left}


def layers(x: Tensor, w: Tensor) -> Tensor:
    x = F.linear(x, w) + x
    torch._dynamo.graph_break()
    return F.silu(F.linear(x, w))


def an_op_before_the_break(x: Tensor, w: Tensor) -> Tensor:
    x = F.silu(F.linear(x, w))
    torch._dynamo.graph_break()
    return x.sum()


@pytest.mark.parametrize("function", [layers, an_op_before_the_break])
def test_other_breaks_are_nobodys_formula(function):
    assert DIVIDED not in told(reported(function, X, torch.randn(4, 4)))


def test_a_break_is_known_of_graphs_of_dynamo_alone():
    seen = []

    def backend(module: fx.GraphModule, example_inputs: Any) -> Any:
        seen.append(_private.graph_break(module))
        return module

    torch.compile(explicit, backend=backend)(X, T)
    text, lines = seen[0]
    assert text
    assert lines[-1][0] == __file__
    assert seen[1:] == [None]
    assert _private.graph_break(fx.symbolic_trace(torch.nn.ReLU())) is None


# near misses of libraries, with what the report says of each


def varifocal(x: Tensor, t: Tensor) -> Tensor:
    p = x.sigmoid()
    weight = t * (t > 0.0).float() + 0.75 * (p - t).abs().pow(2.0) * (t <= 0.0).float()
    return (F.binary_cross_entropy_with_logits(x, t, reduction="none") * weight).mean()


def asymmetric(x: Tensor, t: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    rest = (1 - p + 0.05).clamp(max=1)
    loss = t * torch.log(p.clamp(min=1e-8)) + (1 - t) * torch.log(rest.clamp(min=1e-8))
    return -(loss * torch.pow(1 - (p * t + rest * (1 - t)), 1 * t + 4 * (1 - t))).sum()


def asymmetric_of_comparison(x: Tensor, t: Tensor) -> Tensor:
    return asymmetric(x, (t > 0).float())


def without_infinite(x: Tensor, t: Tensor) -> Tensor:
    products = F.softmax(t, -1) * F.log_softmax(x, -1)
    return -products.masked_fill(torch.isinf(x), 0).sum(-1).mean()


def dice_bounded(x: Tensor, t: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    tp, fp, fn = ((a * b).sum((2, 3)) for a, b in ((p, t), (p, 1 - t), (1 - p, t)))
    return -((2 * tp + 1e-5) / torch.clip(2 * tp + fp + fn + 1e-5, 1e-8)).mean()


def tversky_of_probabilities(p: Tensor, t: Tensor) -> Tensor:
    tp, fp, fn = ((a * b).sum((2, 3)) for a, b in ((p, t), (p, 1 - t), (1 - p, t)))
    return (1 - (tp + 1.0) / (tp + 0.3 * fp + 0.7 * fn + 1.0)).mean()


def lovasz_of_images(x: Tensor, labels: Tensor) -> Tensor:
    hits = F.one_hot(labels, 4).permute(0, 2, 1).to(x.dtype)
    errors, order = torch.sort((x.softmax(1) - hits).abs(), dim=2, descending=True)
    seen = hits.gather(2, order)
    total = seen.sum(2, keepdim=True)
    steps = 1 - (total - seen.cumsum(2)) / (total + (1 - seen).cumsum(2))
    steps[..., 1:] = steps[..., 1:] - steps[..., :-1]
    return (errors * steps).sum(2).mean(0).mean()


@pytest.mark.parametrize(
    ("function", "inputs", "why"),
    [
        (varifocal, (X, T.sigmoid()), "no target is below 0 or NaN"),
        (asymmetric, (X, (T > 0).float()), "its logarithm has a floor"),
        (asymmetric_of_comparison, (X, T), "its logarithm has a floor"),
        (lambda x, t: asymmetric(x.clamp(-9, 9), t), (X, (T > 0).float()), "target of 0 and 1 only"),
        (without_infinite, (X, T), "leave the masked_fill out"),
        (dice_bounded, (IMAGES, MASKS), "does not show that no target is below 0"),
        (tversky_of_probabilities, (IMAGES.detach().sigmoid().requires_grad_(), MASKS), "its input is a probability"),
        (lovasz_of_images, (torch.randn(2, 4, 6, requires_grad=True), torch.randint(0, 4, (2, 6))), 'classes="all"'),
    ],
)
def test_near_misses_of_libraries(function, inputs, why):
    assert why in told(reported(function, *inputs))


@pytest.mark.parametrize(
    ("function", "inputs", "name"),
    [
        (lambda x, t: asymmetric_of_comparison(x.clamp(-9, 9), t), (X, T), "asymmetric_loss"),
        (lambda x, t: dice_bounded(x, (t > 0.5).float()), (IMAGES, MASKS), "dice_loss"),
    ],
)
def test_what_the_reasons_ask_for_is_enough(function, inputs, name):
    assert name in [s.op for s in reported(function, *inputs).swapped]


def test_a_floor_in_reach_is_kept():
    """At a floor the loss and its gradient stay: the op would go on."""
    x = torch.tensor([[-40.0, -20.0, -18.0, 0.0]]).requires_grad_()
    report = reported(asymmetric_of_comparison, x, torch.ones(1, 4))
    assert not report.swapped
    clamped = reported(lambda x, t: asymmetric_of_comparison(x.clamp(-30, 30), t), x, torch.ones(1, 4))
    assert not clamped.swapped


# writes past views


READS = ("", "s = v.sum()", "s = v.sigmoid().sum()", "w = v[..., :1]; s = w.sum()")
WRITES = ("y.mul_(2)", "y[..., 1:] = y[..., 1:] - y[..., :-1]", "y[..., 0] = 0.5", "y += 1")
LATER = ("", "s = s + v.sum()", "s = s + (v[..., :1] * 3).sum()", "v.add_(1)")
ENDS = ("r = F.silu(y)", "r = y * torch.sigmoid(y)", "r = (y - t) ** 2", "r = F.mse_loss(y, t)")


@pytest.mark.parametrize("end", ENDS)
def test_writes_past_views(end):
    """A view that is read after a write to its tensor sees it; one that is read before does not."""
    for read, write, later in random.Random(end).sample(list(itertools.product(READS, WRITES, LATER)), 16):
        lines = ["s = x.sum()", "y = x * 2", "v = y[..., :3]", read, write, later, end, "return r.sum() + s"]
        space: dict[str, Any] = {"F": F, "torch": torch}
        body = "".join(f"\n    {line}" for line in lines if line)
        exec(f"def program(x, t):{body}", space)
        torch._dynamo.reset()
        try:
            space["program"](X, T).backward()
        except RuntimeError:  # autograd refuses the program itself
            continue
        reported(space["program"], X, T)


FORMULAS = ("x * torch.sigmoid(x)", "(x * torch.sigmoid(x)).sum()", "((x - t) ** 2).mean(1)", "F.mse_loss(x, t)")
VIEWS = (
    "y.reshape(-1)", "y.flatten()[0]", "y.unsqueeze(0)[0]", "y.view(y.shape)", "y[...]", "y.expand(y.shape)",
    "y.squeeze()", "y.detach()", "y.to(y.dtype)", "y.contiguous()", "y.view_as(y)", "y.transpose(0, -1)",
    "y.reshape(-1).select(0, 0)", "y.unsqueeze(0).narrow(0, 0, 1)", "y.unsqueeze(-1).squeeze(-1)",
)  # fmt: skip
THROUGH = ("v.mul_(2)", "v.fill_(0.5)", "v.copy_(v * 3)", "v += 1", "y.mul_(2)", "y.reshape(-1)[0] = 0.5")


class Program(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.function(x, t)


@pytest.mark.parametrize("formula", FORMULAS)
def test_writes_through_views(formula):
    """A view that has a formula's value is its memory too: a write to either is seen by both."""
    every = list(itertools.product(VIEWS, THROUGH))
    chosen = random.Random(formula).sample(every, 24)
    for i, (view, write) in enumerate(chosen):
        space: dict[str, Any] = {"F": F, "torch": torch}
        exec(f"def program(x, t):\n    y = {formula}\n    v = {view}\n    {write}\n    return y, v", space)
        model, inputs = Program(space["program"]), (X.detach(), T)
        kind = ("export", "symbolic", "dynamo")[i % 3]
        if kind == "export":
            model = torch.export.export(model, inputs).module()
            new = opreg.fuse(model)[0]
        elif kind == "symbolic" and "] = " not in write:
            model = fx.symbolic_trace(model)
            new = opreg.fuse(model, example_inputs=inputs)[0]
        else:
            torch._dynamo.reset()
            new = torch.compile(model, backend=lambda module, _: opreg.fuse(module)[0])
        for got, want in zip(new(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(got, want, msg=lambda text, what=(kind, view, write): f"{what}: {text}")

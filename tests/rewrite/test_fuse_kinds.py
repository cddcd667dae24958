"""Kinds of programs whose losses once stayed for no reason, each walked through its members."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_fuse import INPUT, KINDS, LABELS, LOGITS, NATIVE, TARGET, X, Y, box_loss, dynamo, exported, near, swapped
from torch import fx

import opreg
from conftest import samples_of
from opreg.passes.graph.surgery import overload
from opreg.passes.graph.writes import fresh

IN_PYTHON = [op for op in NATIVE if not hasattr(torch.ops.aten, op.spellings[0].rsplit(".", 1)[1])]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("native", NATIVE, ids=lambda op: op.short)
def test_a_loss_that_is_added_to(native):
    """A loss that torch has in Python alone is a tensor of its own, as others are: ``loss += x`` hinders nothing."""
    function = getattr(F, native.spellings[0].rsplit(".", 1)[1])
    assert fresh(function.__name__) or function.__name__ in ("dropout",)
    seen = 0
    for sample in samples_of(native, dtype=torch.float32, requires_grad=True):
        given = [a for a in sample.args if isinstance(a, torch.Tensor)]
        if sample.kwargs or len(given) != len(sample.args) or any(t.numel() == 0 for t in given):
            continue
        try:
            want = function(*given) + 1
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # native refuses what the op accepts

        def program(*args, function=function):
            loss = function(*args)
            loss += 1
            return loss

        names = [f"a{i}" for i in range(len(given))]
        module = fx.symbolic_trace(eval(f"lambda f: lambda {', '.join(names)}: f({', '.join(names)})")(program))
        new, report = opreg.fuse(module, example_inputs=given)
        if any("the op would give" in e.why for e in report.left):
            continue  # torch's own fake says [1] of a row, where eager gives a number
        assert swapped([report]) == [native.short], str(report)
        torch.testing.assert_close(new(*given), want, equal_nan=True)
        seen += 1
    assert seen or native.short not in ("cross_entropy", "multilabel_soft_margin_loss")


def test_losses_in_python_alone():
    assert {"cross_entropy", "gaussian_nll_loss"} <= {op.short for op in IN_PYTHON}


def of_quotients(a, b, eps=1e-7):
    """Complete IoU by the angle of quotients, which no op computes; its parts are used on."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a.unbind(-1), b.unbind(-1)
    overlap = (torch.min(x2, u2) - torch.max(x1, u1)).clamp(0) * (torch.min(y2, v2) - torch.max(y1, v1)).clamp(0)
    iou = overlap / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap + eps)
    turn = 4 / math.pi**2 * (torch.atan((u2 - u1) / (v2 - v1)) - torch.atan((x2 - x1) / (y2 - y1))) ** 2
    return 1 - iou + turn * turn / (1 - iou + turn)


def gate(x, y):
    g = torch.sigmoid(x)
    return x * g + g * y


def inner_gate(x, y):
    """A part of a part is used on, so both stay."""
    e = F.softplus(x)
    g = torch.tanh(e)
    return x * g + g * y


@pytest.mark.parametrize("function", [of_quotients, gate, inner_gate], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_computed_twice(function, kind):
    """A formula whose parts all stay for others is left: the op would come on top."""
    given = (INPUT, TARGET) if function is of_quotients else (X, Y)
    got, reports = KINDS[kind](function, *given)
    torch.testing.assert_close(got, function(*given))
    assert swapped(reports) == []


@pytest.mark.parametrize("kind", ["dynamo", "exported"])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "multi_margin_loss"])
def test_rows_that_a_mask_chooses(name, kind):
    """A size that depends on values may be any other: the rehearsal of the kernel does not tell them apart."""
    mask, target = torch.tensor([True, False, True, True, False, True, True]), LABELS[:5]
    loss = getattr(F, name)
    function = lambda x, m, t: loss(x[m], t)  # noqa: E731
    got, reports = {"dynamo": dynamo, "exported": exported}[kind](function, LOGITS, mask, target)
    torch.testing.assert_close(got, function(LOGITS, mask, target))
    assert swapped(reports) == [name], [str(r) for r in reports]


def test_the_longest_formula_is_told_of():
    """Of several reasons at one place, the report has that of the formula of most calls."""
    _, report = opreg.fuse(fx.symbolic_trace(lambda a, b: of_quotients(a, b)), example_inputs=(INPUT, TARGET))
    assert all("sum() is missing" not in e.why for e in report.left)
    assert len({e.where for e in report.left}) == len(report.left)


@pytest.mark.parametrize(
    "reduce",
    [lambda y: y.reshape(-1).sum(), lambda y: y.sum(), lambda y: y.mean(), lambda y: y.flatten().mean()],
    ids=["flat sum", "sum", "mean", "flat mean"],
)
@pytest.mark.parametrize(
    "act",
    [lambda x: x * torch.sigmoid(x), lambda x: x * F.relu6(x + 3) / 6, lambda x: x * torch.tanh(F.softplus(x))],
    ids=["swish", "hard_swish", "mish"],
)
def test_an_activation_and_its_reduction(act, reduce):
    """In an exported graph, too, the sum that follows is ATen's of one argument."""
    x = X.detach() * 1.0137
    got, (report,) = exported(lambda x: reduce(act(x)), x)
    torch.testing.assert_close(got, reduce(act(x)))
    assert len(report.swapped) == 1
    assert report.left == []


def test_overloads():
    node = fx.Graph().placeholder("x")
    aten = torch.ops.aten
    assert overload(aten.sum, (node,), {}) is aten.sum.default
    assert overload(aten.mean, (node,), {}) is aten.mean.default
    assert overload(aten.mul, (node, 2.0), {}) is aten.mul.Scalar
    assert overload(aten.mul, (node, node), {}) is aten.mul.Tensor
    assert overload(aten.neg, (node,), {}) is aten.neg.default
    assert overload(aten.flatten, (node, 0, -2), {}) is aten.flatten.using_ints


COLUMNS = {
    "chunk": lambda b: b.chunk(4, -1),
    "split": lambda b: b.split(1, dim=-1),
    "slices": lambda b: [b[..., i : i + 1] for i in range(4)],
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("kind", ["dynamo", "exported"])
def test_columns_of_boxes(name, kind):
    """The corners as columns: the mean over pairs is that of the op."""

    def function(a, b, eps=1e-7):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = COLUMNS[name](a), COLUMNS[name](b)
        overlap = (torch.min(x2, u2) - torch.max(x1, u1)).clamp(0) * (torch.min(y2, v2) - torch.max(y1, v1)).clamp(0)
        union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
        hull = (torch.max(x2, u2) - torch.min(x1, u1)) * (torch.max(y2, v2) - torch.min(y1, v1))
        return (1 - (overlap / (union + eps) - (hull - union) / (hull + eps))).mean()

    got, reports = KINDS[kind](function, INPUT, TARGET)
    torch.testing.assert_close(got, function(INPUT, TARGET))
    torch.testing.assert_close(got, box_loss("giou")(INPUT, TARGET).mean())
    assert swapped(reports) == ["giou_loss"]
    # one row against all: columns broadcast where pairs do not
    _, ops = near(lambda a, b: function(a, b.unsqueeze(1)), INPUT.detach(), TARGET)
    assert ops == []


SCORES = torch.randn(2, 5, 7, requires_grad=True)
IDS, MASK = torch.randint(0, 7, (2, 5)), (torch.rand(2, 5) > 0.4).float()
TOKENS = {
    "unsqueeze": lambda x, t: F.log_softmax(x, -1).gather(-1, t.unsqueeze(-1)).squeeze(-1),
    "None": lambda x, t: x.log_softmax(-1).gather(2, t[:, :, None]).squeeze(2),
    "ellipsis": lambda x, t: torch.gather(torch.log_softmax(x, 2), -1, t[..., None])[..., 0],
    "view": lambda x, t: F.log_softmax(x, 2).gather(dim=2, index=t.view(2, 5, 1)).squeeze(-1),
}
USES = {
    "negative": lambda p, m: -p,
    "masked mean": lambda p, m: -(p * m).sum() / m.sum(),
    "of each sequence": lambda p, m: (p * m).sum(-1),
    "ratio": lambda p, m: torch.exp(p - p.detach()) * m,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", TOKENS)
def test_tokens(name, use, kind):
    """The log-probability of given tokens is a cross_entropy, whatever is made of it."""

    def function(x, t, m):
        return USES[use](TOKENS[name](x, t), m)

    want = function(SCORES, IDS, MASK)
    got, reports = KINDS[kind](function, SCORES, IDS, MASK)
    torch.testing.assert_close(got, want)
    (a,), (b,) = (torch.autograd.grad(y.sum(), [SCORES]) for y in (got, want))
    torch.testing.assert_close(a, b)
    assert swapped(reports) == ["cross_entropy"], [str(r) for r in reports]


OTHER_TOKENS = {
    "softmax over another dimension": lambda x, t: F.log_softmax(x, 1).gather(-1, t.unsqueeze(-1)).squeeze(-1),
    "several of each row": lambda x, t: F.log_softmax(x, -1).gather(-1, torch.stack([t, t], -1)).sum(-1),
    "along another dimension": lambda x, t: F.log_softmax(x, 1).gather(1, t.clamp(max=4).unsqueeze(-1)).squeeze(-1),
    "of scores": lambda x, t: x.gather(-1, t.unsqueeze(-1)).squeeze(-1),
    "squared": lambda x, t: F.log_softmax(x, -1).square().gather(-1, t.unsqueeze(-1)).squeeze(-1),
}


@pytest.mark.parametrize("name", OTHER_TOKENS)
def test_other_gathers(name):
    _, ops = near(OTHER_TOKENS[name], SCORES.detach(), IDS)
    assert ops == []


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_tokens_of_extreme_scores(value):
    x = SCORES.detach().clone()
    x[0, 0, 0], x[1, 1] = value, value
    for kind in KINDS.values():
        got, reports = kind(TOKENS["unsqueeze"], x, IDS)
        assert swapped(reports) == ["cross_entropy"]
        torch.testing.assert_close(got, TOKENS["unsqueeze"](x, IDS), equal_nan=True)

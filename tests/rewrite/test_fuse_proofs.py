"""What a rewrite proves of a graph before it swaps: that targets are 0 or 1, that variances are bounded, that nobody
reads the scores of a head."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_fuse import KINDS, exported, swapped
from torch import fx

import opreg
from opreg.passes.graph.ranges import Ranges
from opreg.passes.graph.view import GraphView
from opreg.passes.search.pool import Pool
from opreg.passes.search.search import matches

X, Y = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
MASK, COUNTS = torch.rand(4, 5) > 0.5, torch.randint(0, 2, (4, 5))


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def focal(x, t):
    """p_t as e^−ce, which it is for targets 0 and 1 alone."""
    ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


def written_through_a_view(y):
    t = (y > 0).float()
    t.view(-1)[0] = 0.3
    return t


def written(y, value):
    t = torch.zeros_like(y)
    t[y > 1] = value
    return t


# how a target is made, and whether it is shown to be 0 or 1
TARGETS = {
    "comparison": (lambda y: (y > 0).float(), True),
    "two comparisons": (lambda y: ((y > -1) & (y < 1)).to(torch.float32), True),
    "not": (lambda y: (~(y > 0)).float(), True),
    "one less": (lambda y: 1 - (y > 0).float(), True),
    "choice": (lambda y: torch.where(y > 0, 1.0, 0.0), True),
    "one_hot": (lambda y: F.one_hot(y.argmax(-1), 5).float(), True),
    "scatter": (lambda y: torch.zeros_like(y).scatter(1, y.argmax(-1, keepdim=True), 1.0), True),
    "masked": (lambda y: (y > 0).float() * (y < 1).float(), True),
    "ones": (lambda y: torch.ones_like(y), True),
    "filled": (lambda y: (y > 0).float().masked_fill(y > 1, 0.0), True),
    "counts below 2": (lambda y: y.long().clamp(0, 1).float(), True),
    "itself": (lambda y: y, False),
    "in between": (lambda y: y.sigmoid(), False),
    "clamped": (lambda y: y.clamp(0, 1), False),
    "smoothed": (lambda y: (y > 0).float() * 0.9 + 0.05, False),
    "another choice": (lambda y: torch.where(y > 0, 1.0, 0.5), False),
    "bits": (lambda y: ((y * 8).long() & 3).float(), False),
    "twice": (lambda y: (y > 0).float() + (y > 1).float(), False),
    "filled otherwise": (lambda y: (y > 0).float().masked_fill(y > 1, 0.3), False),
    "assigned otherwise": (lambda y: written(y, 0.5), False),
    "written through a view": (written_through_a_view, False),
    "its inverse": (lambda y: ((y > 0).float() + 1) ** -1, False),
    "a mean": (lambda y: (y > 0).float().mean(0, keepdim=True).expand(4, 5), False),
}


@pytest.mark.parametrize("kind", ["dynamo", "exported"])
@pytest.mark.parametrize("name", TARGETS)
def test_targets(name, kind):
    make, shown = TARGETS[name]
    function = lambda x, y: focal(x, make(y))  # noqa: E731
    got, reports = KINDS[kind](function, X, Y)
    want = function(X, Y)
    torch.testing.assert_close(got, want)
    (a,), (b,) = (torch.autograd.grad(z, [X]) for z in (got, want))
    torch.testing.assert_close(a, b)
    assert ("focal_loss" in swapped(reports)) == shown, [str(r) for r in reports]
    if not shown:
        assert any("of 0 and 1 only" in e.why for r in reports for e in r.left)


def test_masks_and_counts():
    """A mask that is cast is 0 or 1; whole numbers may be others."""
    for t, shown in ((MASK, True), (COUNTS, False)):
        got, (report,) = exported(lambda x, t: focal(x, t.float()), X, t)
        torch.testing.assert_close(got, focal(X, t.float()))
        assert ("focal_loss" in swapped([report])) == shown


RANGES = {
    "(x > 0).float()": (0, 1, True),
    "x.clamp(-2, 3)": (-2, 3, False),
    "x.clamp(min=1e-6)": (1e-6, math.inf, False),
    "x.clamp(-2, 3).exp()": (math.exp(-2), math.exp(3), False),
    "F.softplus(x) + 0.1": (0.1, math.inf, False),
    "torch.sigmoid(x) * 2 - 1": (-1, 1, False),
    "x.clamp(-2, 3) ** 2": (0, math.inf, False),
    "x.clamp(-2, 3).square()": (0, 9, False),
    "x.long().clamp(0, 5).float()": (0, 5, True),
    "x / x.abs()": (-math.inf, math.inf, False),
    "torch.cat([(x > 0).float(), torch.zeros_like(x)])": (0, 1, True),
    "(x > 0).float().sum()": (0, math.inf, False),
    "-x.clamp(1, 2)": (-2, -1, False),
    "x.clamp(3, 2)": (2, 2, False),
    "(x > 0).float() ** -1": (0, math.inf, False),
    "x.exp() - x.exp()": (-math.inf, math.inf, False),
}


@pytest.mark.parametrize("text", RANGES)
def test_ranges(text):
    module = fx.symbolic_trace(eval(f"lambda x: {text}", {"torch": torch, "F": F}))
    x = torch.cat([torch.randn(1000) * 10, torch.tensor([0.0, math.inf, -math.inf, math.nan, 1e30])])
    opreg.passes._fuse.propagate(module, (x,))
    root = module.graph.output_node().args[0]
    found = Ranges(GraphView(module.graph, module)).of(root)
    assert (found.low, found.high, found.whole) == pytest.approx(RANGES[text])
    values = module(x).double()
    values = values[~values.isnan()]
    assert not values.numel() or found.low - 1e-6 <= values.min() <= values.max() <= found.high + 1e-6
    if found.whole:
        assert (values == values.round()).all()


# heads

H, W, B = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True), torch.randn(11)
TOKENS, LABELS = torch.randn(2, 3, 8, requires_grad=True), torch.randint(0, 11, (6,))
HEADS = {
    "rows": (lambda h, w, y: F.cross_entropy(F.linear(h, w), y), H, True),
    "bias": (lambda h, w, y: F.cross_entropy(F.linear(h, w, B), y, ignore_index=3, label_smoothing=0.1), H, True),
    "tokens": (lambda h, w, y: F.cross_entropy(F.linear(h, w).view(-1, 11), y.view(2, 3).view(-1)), TOKENS, True),
    "log_softmax": (lambda h, w, y: F.nll_loss(F.log_softmax(F.linear(h, w), 1), y), H, False),
    "scores read": (lambda h, w, y: (lambda s: F.cross_entropy(s, y) + s.mean())(F.linear(h, w)), H, False),
    "scaled": (lambda h, w, y: F.cross_entropy(F.linear(h, w) * 2, y), H, False),
    "probabilities": (lambda h, w, y: F.cross_entropy(F.linear(h, w), F.one_hot(y, 11).float()), H, False),
    "other view": (lambda h, w, y: F.cross_entropy(F.linear(h, w).view(-1, 33), y[:2]), H, False),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    function, hidden, taken = HEADS[name]
    module = fx.symbolic_trace(lambda h, w, y: function(h, w, y))
    for heads in (False, True):
        new, report = opreg.fuse(module, heads=heads, example_inputs=(hidden, W, LABELS))
        assert ("linear_cross_entropy" in swapped([report])) == (heads and taken), str(report)
        got, want = new(hidden, W, LABELS), function(hidden, W, LABELS)
        torch.testing.assert_close(got, want)
        gradients = [torch.autograd.grad(y, [hidden, W]) for y in (got, want)]
        torch.testing.assert_close(*gradients)
        assert any(n.target is F.linear for n in new.graph.nodes) == (not (heads and taken))


def test_a_backend_takes_heads():
    function = HEADS["rows"][0]
    compiled = torch.compile(function, backend="opreg", options={"heads": True})
    torch.testing.assert_close(compiled(H, W, LABELS), function(H, W, LABELS))
    assert swapped([opreg.last_report(compiled)]) == ["linear_cross_entropy"]


def test_what_a_formula_nearly_is():
    """A long formula that differs in one place is told of, with that place."""

    def giou(a, b):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = a.unbind(-1), b.unbind(-1)
        overlap = (torch.min(x2, u2) - torch.max(x1, u1)).clamp(0) * (torch.min(y2, v2) - torch.max(y1, v1)).clamp(0)
        union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
        hull = (torch.max(x2, u2) - torch.min(x1, u1)) * (torch.max(y2, v2) - torch.min(y1, v1))
        return 1 - (overlap / (union + 1e-7) - (hull - union) / (hull + 1e-3))

    _, report = opreg.fuse(fx.symbolic_trace(giou), example_inputs=(torch.rand(3, 4), torch.rand(3, 4)))
    assert report.swapped == []
    assert any(e.what.startswith("giou_loss") and "has the coefficient" in e.why for e in report.left)


def bce(x, t):
    return F.binary_cross_entropy_with_logits(x, t, reduction="none")


# Losses of detectors that are others than the op's, and what the report says of each.
QUALITIES = {
    "quality, detached": (
        lambda x, t, y: (bce(x, t) * (t - x.sigmoid().detach()).abs() ** 1.5).sum(),
        "quality_focal_loss differentiates through it",
    ),
    "labels": (
        lambda x, t, y: (bce(x, t) * (0.75 * x.sigmoid() ** 1.5 * (1 - y) + t * y)).sum(),
        "varifocal_loss takes what has a quality above 0",
    ),
    "labels, detached": (
        lambda x, t, y: (bce(x, t) * (0.75 * x.sigmoid().detach() ** 1.5 * (1 - y) + t * y)).sum(),
        "varifocal_loss differentiates through it",
    ),
}


@pytest.mark.parametrize("name", QUALITIES)
def test_qualities_that_are_another_loss(name):
    program, why = QUALITIES[name]
    x, t, y = torch.randn(4, 3, requires_grad=True), torch.rand(4, 3), torch.randint(0, 2, (4, 3)).float()
    new, report = opreg.fuse(fx.symbolic_trace(program), example_inputs=(x, t, y))
    assert not {"quality_focal_loss", "varifocal_loss"} & set(swapped([report]))
    assert any(why in left.why for left in report.left)
    torch.testing.assert_close(new(x, t, y), program(x, t, y))


def test_a_formula_of_sums_under_a_mean():
    """The mean of sums is one sum: it is the pattern's, whatever number of the program is tried first."""
    rule = opreg.Rule("sums", lambda a, b, *, k: (torch.tanh(k * a) * b).sum(1), lambda a, b, *, k: a)
    module = fx.symbolic_trace(lambda a, b: (torch.tanh(3.0 * a) * b * 0.25).sum(1).mean())
    opreg.passes._fuse.propagate(module, [torch.randn(4, 5), torch.randn(4, 5)])
    root = module.graph.output_node().args[0]
    found = [(m.reduction, m.numbers, m.factor) for m in matches(Pool([rule]), GraphView(module.graph, module), root)]
    assert ("mean", {"k": 3.0}, 0.25) in found

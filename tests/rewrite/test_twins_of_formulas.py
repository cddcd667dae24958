"""What a model writes out by hand of somebody's row or region formula is found, and nothing else is.

The ops are declared as ``opreg.row`` and ``opreg.region`` declare them; their kernel is the reference, so that nothing
has to be compiled. tests/formulas has the compiled ones.
"""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import opreg
from opreg import registry
from opreg.formulas.declaring import region_op, row_op
from opreg.formulas.signature import Signature
from opreg.formulas.structs import schema_of_classes

_names = itertools.count()


@pytest.fixture(autouse=True)
def registry_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))


def declared(function, kind, domain=None):
    signature = Signature.of(function, domain or {})
    entropy = any(a.name == "entropy" for a in signature.tensors)
    name = f"twins{next(_names)}::{function.__name__}"
    if kind is row_op:
        schema = schema_of_classes(signature, weight=not entropy)
    else:
        schema = schema_of_classes(signature, "bool batch=False")
    op = kind(name, function, signature, "")
    options = {o.name: o for o in signature.numbers}

    def kernel(**args):
        for n, o in options.items():
            if args.get(n, o.default) not in o.domain:
                raise RuntimeError(f"{op.short}: expected {o.domain.said(n)}, got {args[n]:g}")
        return op.reference(**args)

    names = [part.split("=")[0].split()[-1] for part in schema.split(", ")]
    kernels = {"CPU": lambda *args, **kwargs: kernel(**dict(zip(names, args, strict=False)), **kwargs)}
    fields = {"schema": f"({schema}) -> Tensor", "kernels": kernels, "state": None}
    return opreg.register(replace(op, **fields))


def generalized_cross_entropy(nll: Tensor, *, q: float = 0.7) -> Tensor:
    return (1 - torch.exp(-nll) ** q) / q


def taylor(nll: Tensor, *, a: float = 1.0, b: float = 0.5, cubed: bool = False) -> Tensor:
    d = 1 - torch.exp(-nll)
    return nll + a * d + b * (d**3 if cubed else d**2)


def shifted(nll: Tensor, *, by: float = 0.5) -> Tensor:
    return torch.log(by + nll)


def rooted(nll: Tensor, *, scale: float = 2.0) -> Tensor:
    return scale * torch.sqrt(nll)


def confident(nll: Tensor, entropy: Tensor, *, beta: float = 0.1) -> Tensor:
    return nll**2 - beta * entropy


def log_tversky(tp: Tensor, fp: Tensor, fn: Tensor, *, alpha: float = 0.3, smooth: float = 1.0) -> Tensor:
    return -torch.log((tp + smooth) / (tp + alpha * fp + (1 - alpha) * fn + smooth))


def log_iou(intersection: Tensor, union: Tensor, *, smooth: float = 1.0, squared: bool = False) -> Tensor:
    loss = -torch.log((intersection + smooth) / (union + smooth))
    return loss**2 if squared else loss


def gathered(x, t, axis=1):
    return F.log_softmax(x, axis).gather(axis, t.unsqueeze(axis)).squeeze(axis)


def probability(x, t):
    return F.softmax(x, 1).gather(1, t.unsqueeze(1)).squeeze(1)


def ce(x, t, **options):
    return F.cross_entropy(x, t, reduction="none", **options)


ROWS, PIXELS, TOKENS = ((6, 5), (6,)), ((2, 5, 3, 4), (2, 3, 4)), ((2, 7, 5), (2, 7))
GCE, TAYLOR = (generalized_cross_entropy, {"q": "in (0, 1]"}), (taylor, None)
FOUND = {
    "gce of cross_entropy": (GCE, lambda x, t: ((1 - torch.exp(-ce(x, t)) ** 0.4) / 0.4).mean(), ROWS),
    "gce of exp(-q ce)": (GCE, lambda x, t: ((1 - (-0.4 * ce(x, t)).exp()) / 0.4).sum(), ROWS),
    "gce of probabilities": (GCE, lambda x, t: ((1 - probability(x, t) ** 0.4) / 0.4).mean(), ROWS),
    "gce of log-probabilities": (GCE, lambda x, t: (1 - (0.4 * gathered(x, t)).exp()) / 0.4, ROWS),
    "gce of nll_loss": (
        GCE,
        lambda x, t: ((1 - torch.exp(-F.nll_loss(x.log_softmax(1), t, reduction="none")) ** 0.4) / 0.4).mean(),
        ROWS,
    ),
    "gce of pixels": (GCE, lambda x, t: ((1 - torch.exp(-ce(x, t, ignore_index=2)) ** 0.4) / 0.4).mean(), PIXELS),
    "gce of tokens": (GCE, lambda x, t: ((1 - (0.4 * gathered(x, t, -1)).exp()) / 0.4).mean(), TOKENS),
    "polynomial": (
        TAYLOR,
        lambda x, t: (ce(x, t) + 2 * (1 - torch.exp(-ce(x, t))) + 0.25 * (1 - (-ce(x, t)).exp()) ** 2).mean(),
        ROWS,
    ),
    "polynomial with its flag": (
        TAYLOR,
        lambda x, t: (-gathered(x, t) + 2 * (1 - probability(x, t)) + 0.25 * (1 - probability(x, t)) ** 3).mean(),
        ROWS,
    ),
    "not 0 for an ignored row": ((shifted, None), lambda x, t: torch.log(0.25 - gathered(x, t)).mean(), ROWS),
    "with its entropy": (
        (confident, None),
        lambda x, t: (gathered(x, t) ** 2 + 0.3 * (F.softmax(x, 1) * F.log_softmax(x, 1)).sum(1)).mean(),
        ROWS,
    ),
}  # fmt: skip


def regions(x, t, dims):
    p = torch.sigmoid(x)
    return (p * t).sum(dims), (p * (1 - t)).sum(dims), ((1 - p) * t).sum(dims)


def of_overlap(tp, fp, fn, alpha=0.25):
    return -torch.log((tp + 2) / (tp + alpha * fp + (1 - alpha) * fn + 2))


TVERSKY = (log_tversky, {"alpha": "in [0, 1]", "smooth": "> 0"})
MASKS = ((2, 3, 4, 5), (2, 3, 4, 5))
FOUND_REGIONS = {
    "by sample": (TVERSKY, lambda x, t: of_overlap(*regions(x.flatten(1), t.flatten(1), 1)).mean()),
    "by channel": (TVERSKY, lambda x, t: of_overlap(*regions(x, t, (2, 3))).sum()),
    "of the batch": (TVERSKY, lambda x, t: of_overlap(*regions(x, t, (0, 1, 2, 3)))),
    "with its flag": (
        (log_iou, None),
        lambda x, t: (
            torch.log(
                ((x.sigmoid() * t).flatten(1).sum(1) + 2)
                / ((x.sigmoid().flatten(1).sum(1) + t.flatten(1).sum(1)) - (x.sigmoid() * t).flatten(1).sum(1) + 2)
            )
            ** 2
        ).mean(),
    ),
}


class Program(torch.nn.Module):
    def __init__(self, program):
        super().__init__()
        self.program = program

    def forward(self, x, t):
        return self.program(x, t)


def fused(program, x, t):
    """What is swapped and what is left; value and gradient stay."""
    new, report = opreg.fuse(torch.export.export(Program(program), (x, t)))
    require_same(new.module()(x, t), program(x, t), x)
    return [s.op for s in report.swapped], [left.why for left in report.left]


def require_same(got, want, x):
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in (got, want)))


def drawn(shapes):
    x, classes = torch.randn(shapes[0], requires_grad=True), shapes[0][-1 if shapes is TOKENS else 1]
    t = torch.randint(classes, shapes[1]) if len(shapes[1]) < len(shapes[0]) else torch.rand(shapes[1])
    return x, t


@pytest.mark.parametrize("case", FOUND)
def test_rows(case):
    (function, domain), program, shapes = FOUND[case]
    op = declared(function, row_op, domain)
    assert fused(program, *drawn(shapes)) == ([op.short], [])


@pytest.mark.parametrize("case", FOUND_REGIONS)
def test_regions(case):
    (function, domain), program = FOUND_REGIONS[case]
    op = declared(function, region_op, domain)
    assert fused(program, *drawn(MASKS)) == ([op.short], [])


def weighed(tp: Tensor, fp: Tensor, fn: Tensor, *, a: float, b: float, c: float, d: float, e: float) -> Tensor:
    return -torch.log((a * tp + e) / (b * tp + c * fp + d * fn + e))


def series(nll: Tensor, *, a: float, b: float, c: float, d: float, e: float) -> Tensor:
    p = torch.exp(-nll)
    return a * nll + b * p + c * p**2 + d * p**3 + e * p**4


@pytest.mark.parametrize("case", [*FOUND, *FOUND_REGIONS])
def test_the_formulas_of_others_take_no_work_from_one(case):
    """What is registered beside it, of many numbers, leaves a formula its chance to be read."""
    declared(weighed, region_op)
    declared(series, row_op)
    if case in FOUND:
        (function, domain), program, shapes = FOUND[case]
        op = declared(function, row_op, domain)
    else:
        ((function, domain), program), shapes = FOUND_REGIONS[case], MASKS
        op = declared(function, region_op, domain)
    swapped, _ = fused(program, *drawn(shapes))
    assert swapped == [op.short]


@pytest.mark.parametrize("kind", [row_op, region_op])
def test_in_a_compiled_model(kind):
    """Where Dynamo made the graph, the op is called in the twin's place too."""
    if kind is row_op:
        op, ((_, _), loss, shapes) = declared(*GCE[:1], row_op, GCE[1]), FOUND["gce of cross_entropy"]
    else:
        op, (_, loss), shapes = declared(TVERSKY[0], region_op, TVERSKY[1]), FOUND_REGIONS["by sample"], MASKS
    model = torch.nn.Tanh()
    x, t = drawn(shapes)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, t: loss(model(x), t), backend="opreg")
    require_same(compiled(x, t), loss(model(x), t), x)
    assert [s.op for s in opreg.last_report(compiled).swapped] == [op.short]


def test_ignored_targets():
    """Rows whose target is ignored: what a program computes of them stays, where the op does so too."""
    op = declared(generalized_cross_entropy, row_op, {"q": "in (0, 1]"})
    x, t = drawn(ROWS)
    t[:2] = -100
    assert fused(lambda x, t: ((1 - torch.exp(-ce(x, t)) ** 0.4) / 0.4).mean(), x, t)[0] == [op.short]
    t[:2] = 3
    program = lambda x, t: ((1 - torch.exp(-ce(x, t, ignore_index=3)) ** 0.4) / 0.4).sum()  # noqa: E731
    assert fused(program, x, t)[0] == [op.short]


def of_another_constant(x, t):
    return ((1.1 - torch.exp(-ce(x, t)) ** 0.4) / 0.4).mean()


def weighted(x, t):
    return ((1 - torch.exp(-ce(x, t, weight=torch.ones(5))) ** 0.4) / 0.4).mean()


def smoothed(x, t):
    return ((1 - torch.exp(-ce(x, t, label_smoothing=0.1)) ** 0.4) / 0.4).mean()


def detached(x, t):
    p = torch.exp(-ce(x, t)).detach()
    return ((1 - p**0.4) / 0.4 * ce(x, t)).mean()


def reduced_before(x, t):
    return (1 - torch.exp(-F.cross_entropy(x, t)) ** 0.4) / 0.4


def of_sigmoid(x, t):
    return ((1 - x.sigmoid().gather(1, t.unsqueeze(1)) ** 0.4) / 0.4).mean()


def of_other_axis(x, t):
    return ((1 - torch.exp(F.log_softmax(x, 0).gather(1, t.unsqueeze(1))) ** 0.4) / 0.4).mean()


def beyond_its_domain(x, t):
    return ((1 - torch.exp(-ce(x, t)) ** 1.5) / 1.5).mean()


@pytest.mark.parametrize(
    "program",
    [of_another_constant, weighted, smoothed, detached, reduced_before, of_sigmoid, of_other_axis, beyond_its_domain],
)
def test_near_misses_of_rows(program):
    op = declared(generalized_cross_entropy, row_op, {"q": "in (0, 1]"})
    swapped, left = fused(program, *drawn(ROWS))
    assert op.short not in swapped
    if program is beyond_its_domain:
        assert any("expected q in (0, 1], got 1.5" in why for why in left)


def test_probabilities_are_no_class_indices():
    op = declared(generalized_cross_entropy, row_op, {"q": "in (0, 1]"})
    x, t = torch.randn(6, 5, requires_grad=True), torch.rand(6, 5)
    assert op.short not in fused(lambda x, t: ((1 - torch.exp(-ce(x, t)) ** 0.4) / 0.4).mean(), x, t)[0]


@pytest.mark.parametrize(("function", "at_zero"), [(shifted, "-1.38629"), (rooted, "0")])
def test_what_an_ignored_row_would_add(function, at_zero):
    """Of a formula that is not 0 there, or has no slope, the rows of ignore_index would be others."""
    op = declared(function, row_op)
    program = {
        shifted: lambda x, t: torch.log(0.25 + ce(x, t)).mean(),
        rooted: lambda x, t: 3 * ce(x, t).sqrt(),
    }[function]
    swapped, left = fused(program, *drawn(ROWS))
    assert swapped in ([], ["cross_entropy"])
    assert any(f"a target of ignore_index adds {at_zero} here, and nothing in {op.short}" in why for why in left)


@pytest.mark.parametrize(
    "program",
    [
        lambda x, t: of_overlap(*regions(x.flatten(1), t.flatten(1), 0)).mean(),  # over the samples
        lambda x, t: of_overlap(
            (x * t).sum((1, 2, 3)), *regions(x.flatten(1), t.flatten(1), 1)[1:]
        ).mean(),  # no sigmoid
        lambda x, t: of_overlap(*regions(x.flatten(1), t.flatten(1), 1), alpha=1.25).mean(),  # out of its domain
    ],
)
def test_near_misses_of_regions(program):
    op = declared(log_tversky, region_op, {"alpha": "in [0, 1]", "smooth": "> 0"})
    x, t = drawn(MASKS)
    new, report = opreg.fuse(torch.export.export(Program(program), (x, t)))
    torch.testing.assert_close(new.module()(x, t), program(x, t), equal_nan=True)
    assert op.short not in [s.op for s in report.swapped]

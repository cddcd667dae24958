"""Random small programs around every spelling that opreg.fuse knows, for tests/rewrite/test_fuzz_rewrite.py.

A program is text: a forward of a few lines, which a failure prints. It holds one piece (a way to write an op), perhaps
a second one that shares tensors with the first, calls around them, and disturbances: writes in place, regions without
gradients or under autocast, results that others use too. A near miss is a piece with one change that no op computes.
"""

import itertools
import linecache
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


@dataclass
class Generator:
    """Writes one program. Methods emit lines and return the names of what these compute."""

    seed: int
    # the near miss that a piece is to have
    miss: str = ""
    dtype: torch.dtype = torch.float32
    inputs: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    # tensors of a shape and a range of values, for others to share
    shared: dict[tuple[str, tuple[int, ...]], list[str]] = field(default_factory=dict)
    # float tensors that may be written to
    floats: list[str] = field(default_factory=list)
    quiet: bool = False
    # kinds of program that torch does not make of this text
    not_for: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.data = torch.Generator().manual_seed(self.seed)
        self.names = itertools.count()

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def near(self, kind: str, right: Any, wrong: Any) -> Any:
        """What the piece needs, or what makes it a near miss."""
        return wrong if self.miss == kind else right

    # tensors from outside

    def input(self, kind: str, make: Callable[[], Tensor], grad: float, share: bool = True) -> str:
        """A new input, or one of the same sort that is there already."""
        value = make()
        others = self.shared.setdefault((kind, tuple(value.shape)), [])
        if share and others and self.chance(0.3):
            return str(self.one(*others))
        name = f"x{len(self.inputs)}"
        if value.is_floating_point():
            value = value.to(self.dtype)
            if value.dim() > 1 and self.chance(0.15):
                value = value.mT.contiguous().mT
            value.requires_grad_(self.chance(grad))
            if not value.requires_grad:
                self.floats.append(name)
        self.inputs[name] = value
        others.append(name)
        return name

    def real(self, *shape: int, grad: float = 0.8, share: bool = True) -> str:
        def make() -> Tensor:
            value = torch.randn(shape, generator=self.data)
            if value.numel() and self.chance(0.2):  # kinks
                value.reshape(-1)[0] = self.one(0.0, 3.0, -3.0, 1.0)
            return value

        return self.input("real", make, grad, share)

    def unit(self, *shape: int, grad: float = 0.8) -> str:
        name = self.input("unit", lambda: torch.rand(shape, generator=self.data) * 0.8 + 0.1, grad)
        return self.assigned(name, self.one(0.5, 0.25))

    def bits(self, *shape: int, whole: bool = False) -> str:
        bits = torch.randint(0, 2, shape, generator=self.data)
        return self.input(f"bits {whole}", lambda: bits if whole else bits.float(), 0.1)

    def signs(self, *shape: int) -> str:
        name = self.input("signs", lambda: torch.randint(0, 2, shape, generator=self.data) * 2.0 - 1, 0.1)
        return self.assigned(name, self.one(1, -1))

    def index(self, classes: int, *shape: int) -> str:
        name = self.input(f"of {classes}", lambda: torch.randint(0, classes, shape, generator=self.data), 0)
        return self.assigned(name, 0, whole=True)

    def boxes(self, *lead: int, grad: float = 0.8, share: bool = True) -> str:
        def make() -> Tensor:
            corner = torch.rand((*lead, 2), generator=self.data)
            boxes = torch.cat([corner, corner + 0.2 + torch.rand((*lead, 2), generator=self.data)], -1)
            if self.chance(0.3):  # at the border of an image, where sides coincide
                boxes[0, 0], boxes[-1, -1] = 0.1, 1.9
            return boxes

        return self.input("boxes", make, grad, share)

    def module(self, module: torch.nn.Module) -> str:
        name = f"m{len(self.modules)}"
        self.modules[name] = module
        return f"self.{name}"

    # lines

    def let(self, expression: str) -> str:
        name = f"v{next(self.names)}"
        self.lines.append(f"{name} = {expression}")
        self.floats.append(name)
        return name

    def do(self, line: str) -> None:
        self.lines.append(line)

    def assigned(self, x: str, value: Any, whole: bool = False) -> str:
        """The tensor, or a copy that is assigned to."""
        if self.quiet or not self.chance(0.05):
            return x
        name = self.let(self.one(f"{x}.clone()", f"{x} * 1"))
        self.do(self.assignment(name, value))
        if whole:
            self.floats.remove(name)
        return name

    def assignment(self, w: str, value: Any) -> str:
        """A number for some of the elements of a tensor, or for all."""
        by_statement = self.chance(0.5)  # which torch.fx can't trace
        items = self.one(f"{w} == {w}.max()", "...", "0", "-1", "slice(0, 2)", "(..., 0)", "slice(None, None, 2)",
                         f"torch.zeros_like({w}, dtype=torch.int64)")  # fmt: skip
        of = self.one(w, w, w, f"{w}[...]", f"{w}.view_as({w})", f"{w}.unsqueeze(0)[0]")
        return self.one(
            f"{of}[{items}] = {value}" if by_statement else f"{of}.__setitem__({items}, {value})",
            f"{of}[{items}] = {value}" if by_statement else f"{of}.__setitem__({items}, {value})",
            f"{w}.reshape(-1)[0] = {value}" if by_statement else f"{w}.reshape(-1)[0].fill_({value})",
            f"{w}.index_put_(({w} == {w}.min(),), {w}.new_zeros(()) + {value})",
            f"{w}.masked_fill_({w} == {w}.max(), {value})",
            f"{w}.scatter_(0, torch.zeros_like({w}, dtype=torch.int64), {value})",
            f"{w}.index_fill_(0, torch.zeros_like({w}.sum((), keepdim=True).reshape(-1), dtype=torch.int64), {value})",
            f"{w}.copy_({w}.flip(0))",
            f"{w}[0].fill_({value})",
            f"{w}.unbind(0)[0].copy_({w}[-1])",
            f"{w}.narrow(0, 0, 1).fill_({value})",
            f"torch.select({w}, 0, -1).fill_({value})",
            f"{w}.detach().view(-1)[:1].fill_({value})",
        )

    def arithmetic(self, w: str, other: str) -> str:
        """A write that computes, with another tensor perhaps, and with what is learnt."""
        out = self.one(w, f"{w}.detach()")
        return self.one(
            f"{w}.mul_(1.5)", f"{w}.add_(0.25)", f"{w}.clamp_(-2, 2)", f"{w}.neg_()", f"F.silu({w}, inplace=True)",
            f"{w}.mul_({w})", f"{w} *= 1.5", f"{w}.__iadd__(0.25)", f"torch._foreach_mul_([{w}], 1.5)",
            f"torch._foreach_add_([{w}, {w}.detach()], 0.25)", f"torch._foreach_neg_([{w}[0]])",
            f"torch.mul({out}, 1.5, out={out})", f"torch.clamp({out}, -1, 1, out={out})",
            f"torch.add({w}.detach(), 1, out={w}.detach())",
            f"{w}[0].mul_(2)", f"{w}.reshape(-1).add_(0.25)", f"{w}.reshape(-1)[1:].neg_()", f"{w}.chunk(2)[0].mul_(2)",
            f"{w}.unsqueeze(0).add_(0.25)", f"{w}.copy_({w}.sigmoid())", f"{w}[0] = {w}[-1] * 0.5",
            f"{w}.add_({other}.mean())", f"{w}[0].mul_({other}.sum())", f"{w}.__setitem__(0, {other}.mean())",
            f"{w}.masked_fill_({w} > 0, {other}.sum())", f"{w}[{w} > 0] = {other}.mean()",
            f"{w}.index_put_(({w} > 0,), {other}.mean())", f"{w}.lerp_({w}.flip(0), 0.5)",
        )  # fmt: skip

    def write(self, at: int) -> None:
        """A write in place to a tensor that is there before a line."""
        known = [n for n in self.floats if n.startswith("x") or any(f"{n} =" in line for line in self.lines[:at])]
        if known:
            line = self.lines[at] if at < len(self.lines) else ""
            w = self.one(*known)
            others = [n for n, x in self.inputs.items() if x.is_floating_point()]
            if self.chance(0.6):
                written = self.arithmetic(w, self.one(*known, *others))
            else:
                written = self.assignment(w, self.one(0.5, -1.0))
            self.lines.insert(at, " " * (len(line) - len(line.lstrip())) + written)

    def preludes(self) -> None:
        """Writes before, between and after the pieces."""
        for _ in range(self.one(1, 1, 2, 3)):
            self.write(self.one(0, self.random.randrange(len(self.lines) + 1), len(self.lines)))

    def call(self, name: str, x: str) -> str:
        """A function of one tensor, in one of its spellings."""
        spelled = {
            "sigmoid": ("torch.sigmoid({})", "{}.sigmoid()", "F.sigmoid({})", "torch.special.expit({})",
                        "torch.ops.aten.sigmoid.default({})", "1 / (1 + torch.exp(-{}))"),
            "tanh": ("torch.tanh({})", "{}.tanh()", "F.tanh({})"),
            "softplus": ("F.softplus({})", "torch._C._nn.softplus({})", "torch.log1p(torch.exp({}))",
                         "torch.log(1 + {}.exp())", "-F.logsigmoid(-{})", "F.softplus({}, beta=1, threshold=20)"),
            "relu6": ("F.relu6({})", "{}.clamp(0, 6)", "torch.clamp({}, min=0, max=6)", "F.hardtanh({}, 0.0, 6.0)",
                      "{}.clamp(min=0).clamp(max=6)", "torch.clip({}, 0, 6)"),
            "exp": ("torch.exp({})", "{}.exp()"),
            "neg": ("-{}", "torch.neg({})", "{}.neg()", "{} * -1", "0 - {}"),
        }[name]  # fmt: skip
        classes = {
            "sigmoid": torch.nn.Sigmoid,
            "tanh": torch.nn.Tanh,
            "softplus": torch.nn.Softplus,
            "relu6": torch.nn.ReLU6,
        }
        if name in classes and self.chance(0.15):
            return self.let(f"{self.module(classes[name]())}({x})")
        if name != "neg" and self.written(x):
            return self.let(f"{x}.{name}_()" if name in ("sigmoid", "tanh", "exp") else f"F.relu6({x}, inplace=True)")
        return self.let(self.one(*spelled).format(x))

    def times(self, a: Any, b: Any) -> str:
        if not isinstance(a, str):
            a, b = b, a
        if self.written(a):
            self.do(f"{a} *= {b}" if self.chance(0.5) else f"{a}.mul_({b})")
            return a
        swapped = (f"{b} * {a}",) + ((f"{b}.mul({a})",) if isinstance(b, str) else ())
        return self.let(self.one(f"{a} * {b}", f"torch.mul({a}, {b})", f"{a}.mul({b})", *swapped))

    def plus(self, a: Any, b: Any) -> str:
        if not isinstance(a, str):
            a, b = b, a
        if self.written(a):
            self.do(f"{a} += {b}" if self.chance(0.5) else f"{a}.add_({b})")
            return a
        return self.let(self.one(f"{a} + {b}", f"torch.add({a}, {b})", f"{a}.add({b})", f"{b} + {a}", f"{a} - -{b}"))

    def minus(self, a: Any, b: Any) -> str:
        choices = [f"{a} - {b}", f"-({b} - {a})", f"-{b} + {a}", f"{a} + -1 * {b}"]
        if isinstance(b, str):
            choices.append(f"torch.rsub({b}, {a})")
        if isinstance(a, str):
            choices += [f"torch.sub({a}, {b})", f"{a}.sub({b})", f"torch.add({a}, {b}, alpha=-1)"]
        return self.let(self.one(*choices))

    def over(self, a: str, b: Any) -> str:
        if self.written(a):
            self.do(f"{a} /= {b}")
            return a
        choices = [f"{a} / {b}", f"torch.div({a}, {b})", f"{a}.div({b})", f"{a} * (1 / {b})"]
        if isinstance(b, str):
            choices += [f"{a} * {b}.reciprocal()", f"{a} * {b} ** -1"]
        return self.let(self.one(*choices))

    def square(self, a: str) -> str:
        return self.let(self.one(f"{a} ** 2", f"{a} * {a}", f"{a}.pow(2)", f"torch.square({a})", f"torch.pow({a}, 2)"))

    def written(self, a: str) -> bool:
        """Write this result in place, for once?"""
        return not self.quiet and a.startswith("v") and a.isidentifier() and self.chance(0.03)

    # around a piece

    def before(self, x: str, shape: Sequence[int]) -> str:
        """The tensor, or something of its shape made of it."""
        x = self.assigned(x, self.one(0.5, -1.0, 0))
        if not self.chance(0.35):
            return x
        same, flat = tuple(shape), math.prod(shape)
        choices = [
            f"{x}.contiguous()", f"{x}.to({self.dtype})", f"{x}.clone()", f"{x}.reshape({same})", f"{x}.type_as({x})",
            f"{x}.reshape({flat}).reshape({same})", f"{x}.unsqueeze(0).squeeze(0)", f"{x} + 0.25", f"{x} * 1.5",
            f"F.dropout({x}, 0.5, False)", f"F.relu({x}) - 0.5", f"{x}.view_as({x})", f"{x}[...]", f"{x}.detach()",
        ]  # fmt: skip
        if len(shape) > 1:
            choices.append(f"{self.module(torch.nn.Linear(shape[-1], shape[-1], dtype=self.dtype))}({x})")
        return self.let(self.one(*choices))

    def after(self, y: str) -> None:
        """A result of the program."""
        y = self.let(
            self.one(
                y, y, f"{y}.mean()", f"torch.mean({y})", f"{y}.sum()", f"torch.sum({y})", f"{y}.mean(-1)", f"{y} * 2",
                f"{y}.reshape(-1).sum()", f"{y}.reshape(-1).mean(0)", f"{y}.to({self.dtype})", f"{y}.mean() * 0.5",
                f"{y}.sum() / 3", f"{y}.mean(dim=0, keepdim=True)", f"{y}.double().sum()", f"torch.relu({y})",
            )
        )  # fmt: skip
        self.results.append(y)

    def disturb(self) -> None:
        """Something between the lines, that a rewrite has to see."""
        kind = self.one("write", "write", "write to a view", "user", "user", "no_grad", "autocast", "write")
        at = self.random.randrange(len(self.lines) + 1)
        known = [n for n in self.floats if n.startswith("x") or any(f"{n} =" in line for line in self.lines[:at])]
        if kind in ("no_grad", "autocast"):
            first, last = sorted(self.random.choices(range(len(self.lines)), k=2))
            while self.lines[first].startswith(" "):  # whole blocks
                first -= 1
            while last + 1 < len(self.lines) and self.lines[last + 1].startswith(" "):
                last += 1
            with_ = "torch.no_grad()" if kind == "no_grad" else "torch.autocast('cpu', dtype=torch.bfloat16)"
            inside = [f"    {line}" for line in self.lines[first : last + 1]]
            self.lines[first : last + 1] = [f"with {with_}:", *inside]
        elif kind == "user":
            self.results.append(str(self.one(*self.floats, *self.inputs)))
        elif kind == "write":
            self.write(at)
        elif known:
            written = self.one(*known)
            written += self.one("[...]", ".detach()", ".unsqueeze(0)", ".reshape(-1)", ".ravel()", ".data")
            line = self.lines[at] if at < len(self.lines) else ""  # inside of a `with`, where that line is
            self.lines.insert(
                at,
                " " * (len(line) - len(line.lstrip()))
                + self.one(
                    f"{written}.mul_(1.5)", f"{written}.add_(0.25)", f"{written}.clamp_(-2, 2)", f"{written}.neg_()",
                    f"F.silu({written}, inplace=True)", f"{written}.mul_({written})", f"{written}[...] = 0.5",
                ),
            )  # fmt: skip

    @property
    def text(self) -> str:
        head = f"def forward(self, {', '.join(self.inputs)}):"
        return "\n    ".join([head, *self.lines, f"return ({', '.join(dict.fromkeys(self.results))},)"]) + "\n"

    def model(self) -> torch.nn.Module:
        """The program as a module; its source is where tracebacks and inspect look for it."""
        name = f"<program {self.seed}>"
        space: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, "math": math}
        exec(compile(self.text, name, "exec"), space)
        linecache.cache[name] = (len(self.text), None, self.text.splitlines(keepends=True), name)
        model = type("Program", (torch.nn.Module,), {"forward": space["forward"]})()
        for key, module in self.modules.items():
            model.add_module(key, module)
        return model  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Piece:
    """A way to write an op, with the near misses that it has."""

    op: str
    family: str
    write: Callable[[Generator], None]
    misses: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    # in the name of the rule that finds it, where a near miss holds a native call of the op
    rule: str = ""


PIECES: list[Piece] = []
ALL = (torch.float32, torch.float32, torch.float64, torch.bfloat16)
WIDE = (torch.float32, torch.float64)


def piece(
    op: str, family: str, *misses: str, dtypes: tuple[torch.dtype, ...] = ALL, rule: str = ""
) -> Callable[[Any], Any]:
    def add(write: Callable[[Generator], None]) -> Callable[[Generator], None]:
        PIECES.append(Piece(op, family, write, misses, dtypes, rule))
        return write

    return add


# activations


def activation(g: Generator, name: str, module: type[torch.nn.Module]) -> None:
    shape = g.one((5,), (2, 3), (2, 3, 4), (), (3, 1))
    x = g.before(g.real(*shape), shape) if g.miss != "a view is written" else g.let(f"{g.real(*shape)} * 2")
    seen = g.let(f"{x}.view_as({x})") if g.miss == "a view is written" else x
    in_place = [
        f"F.{name}({x}, inplace=True)",
        f"torch._C._nn.{name}_({x})",
        f"torch.ops.aten.{name}_.default({x})",
        f"{g.module(module(inplace=True))}({x})",
    ]
    plain = [f"F.{name}({x})", f"torch._C._nn.{name}({x})", f"torch.ops.aten.{name}.default({x})"]
    plain += [f"F.{name}(input={x})", f"{g.module(module())}({x})", f"F.{name}({x}, False)"]
    write = g.miss == "a view is written" or (x.startswith("v") and g.chance(0.3))
    y = g.let(g.one(*in_place) if write else g.one(*plain))
    g.after(y)
    if write:
        g.results.append(g.let(f"{seen} * 3"))


@piece("swish", "activations", "a view is written")
def silu(g: Generator) -> None:
    activation(g, "silu", torch.nn.SiLU)


@piece("hard_swish", "activations", "a view is written")
def hardswish(g: Generator) -> None:
    activation(g, "hardswish", torch.nn.Hardswish)


@piece("mish", "activations", "a view is written")
def mish(g: Generator) -> None:
    activation(g, "mish", torch.nn.Mish)


@piece("swish", "written activations", "another tensor", "a shift", "gate detached", "factor detached", "gate used")
def swish_written(g: Generator) -> None:
    shape = g.one((5,), (2, 3), (2, 3, 4))
    x = g.before(g.real(*shape), shape)
    other = g.near("another tensor", x, g.real(*shape, share=False)) if g.miss else x
    inner = g.times(other, g.one(1.702, 0.5, 2)) if g.chance(0.3) else other
    inner = g.near("a shift", inner, f"({inner} + 0.1)")
    if g.chance(0.25) and not g.miss:
        return g.after(g.let(g.one("{0} / (1 + torch.exp(-{1}))", "{0} / (torch.exp(-{1}) + 1)").format(x, inner)))
    gate = g.call("sigmoid", inner)
    if g.miss == "gate used":
        g.results.append(gate)
    return g.after(
        g.times(g.near("factor detached", x, f"{x}.detach()"), g.near("gate detached", gate, f"{gate}.detach()"))
    )


@piece("hard_swish", "written activations", "2.9", "5.9", "clamp 0..5", "another tensor", "gate detached", dtypes=WIDE)
def hard_swish_written(g: Generator) -> None:
    shape = g.one((5,), (2, 3), (2, 3, 4))
    # no input at a kink: clamp has the slope 1 at its bounds, hard_swish and relu6 have 0
    x = g.let(f"{g.before(g.real(*shape), shape)} * 1.0137")
    if not g.miss and g.chance(0.2):
        return g.after(g.times(x, g.let(f"F.hardsigmoid({x})")))
    shifted = g.plus(g.near("another tensor", x, g.real(*shape, share=False)) if g.miss else x, g.near("2.9", 3, 2.9))
    gate = g.call("relu6", shifted) if g.miss != "clamp 0..5" else g.let(f"{shifted}.clamp(0, 5)")
    gate = g.near("gate detached", gate, f"{gate}.detach()")
    six = g.near("5.9", 6, 5.9)
    if g.chance(0.5):
        return g.after(g.over(g.times(x, gate), six))
    return g.after(g.times(x, g.over(gate, six)))


@piece("mish", "written activations", "beta", "threshold", "another tensor", "a factor", "gate detached")
def mish_written(g: Generator) -> None:
    shape = g.one((5,), (2, 3), (2, 3, 4))
    x = g.before(g.real(*shape), shape)
    of = g.near("another tensor", x, g.real(*shape, share=False)) if g.miss else x
    if g.miss in ("beta", "threshold"):
        inner = g.let(f"F.softplus({of}, {g.near('beta', 1, 2)}, {g.near('threshold', 20, 1)})")
    else:
        inner = g.call("softplus", of)
    inner = g.near("a factor", inner, f"({inner} * 1.1)")
    gate = g.call("tanh", inner)
    g.after(g.times(x, g.near("gate detached", gate, f"{gate}.detach()")))


# torch's losses


def loss(
    g: Generator,
    name: str,
    tensors: Sequence[str],
    options: dict[str, Any],
    module: Any,
    raw: str,
    shapes_differ: bool = False,
) -> None:
    """A loss as a function, as a module, as torch's own function (``raw``, with the reduction's number) or in ATen.

    ATen's mean of mse_loss, smooth_l1_loss and huber_loss divides the gradient of the smaller of two tensors by its own
    number of elements, which is wrong: those are not written with ``raw`` where ``shapes_differ``.
    """
    reduction = options.pop("reduction", g.one(*REDUCTIONS))
    number = REDUCTIONS.index(reduction) if reduction in REDUCTIONS else None
    choices = []
    kwargs = "".join(f", {k}={v}" for k, v in options.items() if v is not None)
    spelled = "" if reduction == "mean" and g.chance(0.5) else f", reduction='{reduction}'"
    choices.append(f"F.{name}({', '.join(tensors)}{kwargs}{spelled})")
    legacy = {"none": "reduce=False", "mean": "size_average=True", "sum": "size_average=False"}.get(reduction)
    no_legacy = ("huber_loss", "gaussian_nll_loss", "ctc_loss", "linear_cross_entropy")
    if legacy and name not in no_legacy and g.chance(0.15):
        choices = [f"F.{name}({', '.join(tensors)}{kwargs}, {legacy})"]
    values = {k: v for k, v in options.items() if v is not None}
    if module is not None and all(
        not isinstance(v, str) or (v in g.inputs and g.miss != "weight requires grad") for v in values.values()
    ):
        made = {k: g.inputs[v].detach() if isinstance(v, str) else v for k, v in values.items()}
        instance = module(**made, reduction=reduction)
        if g.chance(0.4):
            choices = [f"{g.module(instance)}({', '.join(tensors)})"]
    if raw and number is not None and not (shapes_differ and reduction == "mean"):
        filled = raw.format(*tensors, reduction=number, **options)
        choices.append(filled)
        choices.append(f"torch.ops.aten.{filled.split('(')[0].split('.')[-1]}.default({filled.split('(', 1)[1]}")
    g.after(g.let(g.one(*choices)))


def pair(g: Generator, grad: float = 0.3) -> tuple[str, str, tuple[int, ...], bool]:
    """Two tensors, the shape of the first, and whether the second has another that broadcasts to it."""
    shape = g.one((5,), (2, 3), (2, 3, 4), ())
    x = g.before(g.real(*shape), shape)
    other = shape
    if len(shape) > 1 and g.chance(0.15):
        other = (1, *shape[1:])
    return x, g.before(g.real(*other, grad=grad), other), shape, other != shape


@piece("l1_loss", "regression", "weights")
def l1(g: Generator) -> None:
    x, t, shape, _ = pair(g)
    if g.miss:
        return g.after(g.let(f"F.l1_loss({x}, {t}, weight={g.unit(*shape)})"))
    loss(g, "l1_loss", (x, t), {}, torch.nn.L1Loss, "torch._C._nn.l1_loss({0}, {1}, {reduction})")


@piece("mse_loss", "regression", "weights")
def mse(g: Generator) -> None:
    x, t, shape, differ = pair(g)
    if g.miss:
        return g.after(g.let(f"F.mse_loss({x}, {t}, weight={g.unit(*shape)})"))
    raw = "torch._C._nn.mse_loss({0}, {1}, {reduction})"
    loss(g, "mse_loss", (x, t), {}, torch.nn.MSELoss, raw, shapes_differ=differ)


@piece("smooth_l1_loss", "regression")
def smooth_l1(g: Generator) -> None:
    x, t, _, differ = pair(g)
    raw = "torch._C._nn.smooth_l1_loss({0}, {1}, {reduction}, {beta})"
    loss(g, "smooth_l1_loss", (x, t), {"beta": g.one(1.0, 0.5, 2)}, torch.nn.SmoothL1Loss, raw, shapes_differ=differ)


@piece("huber_loss", "regression", "weights")
def huber(g: Generator) -> None:
    x, t, shape, differ = pair(g)
    if g.miss:
        return g.after(g.let(f"F.huber_loss({x}, {t}, weight={g.unit(*shape)})"))
    raw = "torch._C._nn.huber_loss({0}, {1}, {reduction}, {delta})"
    loss(g, "huber_loss", (x, t), {"delta": g.one(1.0, 0.5, 2)}, torch.nn.HuberLoss, raw, shapes_differ=differ)


def distances(g: Generator) -> tuple[str, str, str, float, float]:
    """A distance, the square of the difference, where the parts meet, and where the near miss says that they do."""
    shape = g.one((5,), (2, 3), (2, 3, 4))
    x, t = g.before(g.real(*shape), shape), g.before(g.real(*shape, grad=0.3, share=False), shape)
    if g.miss == "broadcast":
        t = g.let(f"{t}[:1] * 1")
    apart = g.let(g.one(f"{x} - {t}", f"torch.sub({x}, {t})", f"{t} - {x}"))
    d = g.let(g.one(f"{apart}.abs()", f"torch.abs({apart})"))
    square = g.let(g.one(f"{apart} ** 2", f"{d} ** 2", f"{d} * {d}", f"{apart}.pow(2)", f"torch.square({apart})"))
    square = g.near("detached", square, f"{square}.detach()")
    at = g.one(1.0, 0.5, 2.0)
    return d, square, g.near("another threshold", at, at * 1.1), at


def chosen(g: Generator, d: str, at: float, near: str, far: str) -> None:
    where = g.one("torch.where({0} < {1}, {2}, {3})", "torch.where({0} <= {1}, {2}, {3})",
                  "torch.where({0} > {1}, {3}, {2})", "torch.where({0} >= {1}, {3}, {2})",
                  "torch.where({1} > {0}, {2}, {3})")  # fmt: skip
    g.after(g.let(where.format(d, at, near, far)))


@piece("smooth_l1_loss", "regression", "broadcast", "another threshold", "detached", "a factor", dtypes=WIDE)
def smooth_l1_written(g: Generator) -> None:
    d, square, at, beta = distances(g)
    near = g.over(g.times(g.near("a factor", 0.5, 0.55), square), beta)
    chosen(g, d, at, near, g.minus(d, 0.5 * beta))


@piece("huber_loss", "regression", "broadcast", "another threshold", "detached", "a factor", "clamped", dtypes=WIDE)
def huber_written(g: Generator) -> None:
    d, square, at, delta = distances(g)
    delta, at = (0.7, at * 0.7 / delta)  # with 1 it is smooth_l1_loss
    half = g.near("a factor", 0.5, 0.55)
    if g.miss == "clamped":
        near = g.let(g.one(f"{d}.clamp(max={delta})", f"torch.clamp({d}, max={delta})", f"{d}.clamp_max({delta})"))
        return g.after(g.plus(g.times(half, g.square(near)), g.times(delta, g.minus(d, near))))
    chosen(g, d, at, g.times(half, square), g.times(delta, g.minus(d, 0.5 * delta)))


@piece("poisson_nll_loss", "likelihoods")
def poisson(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    log = g.chance(0.5)
    x, t = g.before((g.real if log else g.unit)(*shape), shape), g.unit(*shape, grad=0.2)
    options = {"log_input": log, "full": g.chance(0.4), "eps": g.one(1e-8, 1e-3)}
    if options["full"]:  # torch masks the logarithms of targets below 1, and 0 times that of a negative one's is NaN
        t = f"{t}.detach()"
    raw = "torch.poisson_nll_loss({0}, {1}, {log_input}, {full}, {eps}, {reduction})"
    loss(g, "poisson_nll_loss", (x, t), options, torch.nn.PoissonNLLLoss, raw)


@piece("gaussian_nll_loss", "likelihoods")
def gaussian(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    x, t = g.before(g.real(*shape), shape), g.real(*shape, grad=0.2)
    g.not_for.add("export")  # it looks at values
    var = g.unit(*g.one(shape, (*shape[:-1], 1), shape[:-1]) if len(shape) > 1 else shape)
    loss(
        g,
        "gaussian_nll_loss",
        (x, t, var),
        {"full": g.chance(0.4), "eps": g.one(1e-6, 1e-2)},
        torch.nn.GaussianNLLLoss,
        "",
    )


@piece("kl_div", "likelihoods")
def kl(g: Generator) -> None:
    shape = g.one((5,), (2, 3), (2, 3, 4))
    x = g.before(g.let(f"F.log_softmax({g.real(*shape)}, -1)"), shape)
    t = g.let(f"F.{g.one('log_softmax', 'softmax')}({g.real(*shape, grad=0.3)}, -1)")
    options = {"log_target": "log" in g.lines[-1], "reduction": g.one(*REDUCTIONS, "batchmean", "batchmean")}
    if options["reduction"] == "batchmean" and g.chance(0.5):
        call = f"F.kl_div({x}, {t}, reduction='sum', log_target={options['log_target']})"
        return g.after(g.let(f"{call} / {g.one(shape[0], f'{x}.size(0)', f'{x}.shape[0]')}"))
    loss(
        g, "kl_div", (x, t), options, torch.nn.KLDivLoss, "torch.kl_div({0}, {1}, {reduction}, log_target={log_target})"
    )


def weights(g: Generator, *shape: int, often: float = 0.35) -> str | None:
    if g.miss == "weight requires grad":
        return g.input("weights", lambda: torch.rand(shape, generator=g.data) + 0.2, 1.0, share=False)
    return g.input("weights", lambda: torch.rand(shape, generator=g.data) + 0.2, 0) if g.chance(often) else None


@piece("binary_cross_entropy", "binary")
def bce(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    x, t = g.unit(*shape), g.one(g.bits, g.unit)(*shape)
    options = {"weight": weights(g, *g.one(shape, shape[-1:]))}
    raw = "torch._C._nn.binary_cross_entropy({0}, {1}, {weight}, {reduction})"
    loss(g, "binary_cross_entropy", (x, t), options, torch.nn.BCELoss, raw)


@piece("binary_cross_entropy_with_logits", "binary")
def bce_with_logits(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    options = {
        "weight": weights(g, *g.one(shape, shape[-1:])),
        "pos_weight": weights(g, *g.one(shape, shape[-1:]), often=0.2),
    }
    raw = "torch.binary_cross_entropy_with_logits({0}, {1}, {weight}, {pos_weight}, {reduction})"
    loss(g, "binary_cross_entropy_with_logits", (x, t), options, torch.nn.BCEWithLogitsLoss, raw)


@piece("binary_cross_entropy_with_logits", "binary", "probability used", "any target")
def sigmoid_bce(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    p = g.call("sigmoid", x)
    if g.miss == "probability used":
        g.results.append(p)
    if g.miss != "any target":  # one that shows that it lies in [0, 1]
        t = g.let(g.one("{}.clamp(0, 1)", f"({{}} > 0.5).to({g.dtype})").format(t))
        g.floats.remove(t)
    options = {"weight": weights(g, *shape)}
    loss(
        g,
        "binary_cross_entropy",
        (p, t),
        options,
        torch.nn.BCELoss,
        "torch._C._nn.binary_cross_entropy({0}, {1}, {weight}, {reduction})",
    )


@piece("binary_cross_entropy_with_logits", "binary", "a factor", "another tensor", "detached")
def bce_written(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    of = g.near("another tensor", x, g.real(*shape, share=False)) if g.miss else x
    if g.chance(0.3) and not g.miss:
        x = g.let(f"{x} + 0.0137")  # none at the kink of clamp and abs, whose sum has none
        first = g.let(f"{x}.clamp(min=0) - {g.times(x, t)}")
        return g.after(g.plus(first, g.let(f"torch.log1p(torch.exp(-torch.abs({x})))")))
    if g.chance(0.3) and not g.miss:
        return g.after(g.let(f"-({t} * F.logsigmoid({x}) + (1 - {t}) * F.logsigmoid(-{x}))"))
    product = g.times(g.near("detached", x, f"{x}.detach()"), t)
    g.after(g.minus(g.call("softplus", of), g.near("a factor", product, f"1.1 * {product}")))


# margins


@piece("soft_margin_loss", "margins")
def soft_margin(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    x, t = g.before(g.real(*shape), shape), g.signs(*shape)
    loss(
        g,
        "soft_margin_loss",
        (x, t),
        {},
        torch.nn.SoftMarginLoss,
        "torch._C._nn.soft_margin_loss({0}, {1}, {reduction})",
    )


@piece("hinge_embedding_loss", "margins")
def hinge(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    x, t = g.before(g.real(*shape), shape), g.signs(*shape)
    raw = "torch.hinge_embedding_loss({0}, {1}, {margin}, {reduction})"
    loss(g, "hinge_embedding_loss", (x, t), {"margin": g.one(1.0, 0.3)}, torch.nn.HingeEmbeddingLoss, raw)


@piece("margin_ranking_loss", "margins")
def ranking(g: Generator) -> None:
    shape = g.one((5,), (2, 3))
    a, b, t = g.before(g.real(*shape), shape), g.before(g.real(*shape), shape), g.signs(*shape)
    raw = "torch.margin_ranking_loss({0}, {1}, {2}, {margin}, {reduction})"
    loss(g, "margin_ranking_loss", (a, b, t), {"margin": g.one(0.0, 0.3)}, torch.nn.MarginRankingLoss, raw)


@piece("triplet_margin_loss", "margins")
def triplet(g: Generator) -> None:
    a, b, c = (g.before(g.real(3, 4, share=False), (3, 4)) for _ in range(3))
    options = {"margin": g.one(1.0, 0.5), "p": g.one(2, 1, 3.0), "eps": g.one(1e-6, 1e-3), "swap": g.chance(0.3)}
    raw = "torch.triplet_margin_loss({0}, {1}, {2}, {margin}, {p}, {eps}, {swap}, {reduction})"
    loss(g, "triplet_margin_loss", (a, b, c), options, torch.nn.TripletMarginLoss, raw)


@piece("cosine_embedding_loss", "margins")
def cosine(g: Generator) -> None:
    a, b, t = g.before(g.real(3, 4), (3, 4)), g.before(g.real(3, 4), (3, 4)), g.signs(3)
    raw = "torch.cosine_embedding_loss({0}, {1}, {2}, {margin}, {reduction})"
    loss(g, "cosine_embedding_loss", (a, b, t), {"margin": g.one(0.0, 0.3)}, torch.nn.CosineEmbeddingLoss, raw)


@piece("multi_margin_loss", "margins", dtypes=WIDE)
def multi_margin(g: Generator) -> None:
    x, t = g.before(g.real(3, 4), (3, 4)), g.index(4, 3)
    options = {"p": g.one(1, 2), "margin": g.one(1.0, 0.5), "weight": weights(g, 4)}
    raw = "torch._C._nn.multi_margin_loss({0}, {1}, {p}, {margin}, {weight}, {reduction})"
    loss(g, "multi_margin_loss", (x, t), options, torch.nn.MultiMarginLoss, raw)


@piece("multilabel_margin_loss", "margins", dtypes=WIDE)
def multilabel_margin(g: Generator) -> None:
    x = g.before(g.real(3, 4), (3, 4))
    t = g.input("labels", lambda: torch.tensor([[0, 2, -1, 1], [3, -1, 0, 0], [-1, 1, 2, 3]]), 0)
    raw = "torch._C._nn.multilabel_margin_loss({0}, {1}, {reduction})"
    loss(g, "multilabel_margin_loss", (x, t), {}, torch.nn.MultiLabelMarginLoss, raw)


@piece("multilabel_soft_margin_loss", "margins", "weight requires grad")
def multilabel_soft_margin(g: Generator) -> None:
    x, t = g.before(g.real(3, 4), (3, 4)), g.bits(3, 4)
    loss(g, "multilabel_soft_margin_loss", (x, t), {"weight": weights(g, 4)}, torch.nn.MultiLabelSoftMarginLoss, "")


@piece("ctc_loss", "margins", dtypes=WIDE)
def ctc(g: Generator) -> None:
    x = g.let(f"F.log_softmax({g.real(6, 2, 4)}, {g.one(-1, 2)})")
    t = g.input("labels of ctc", lambda: torch.randint(1, 4, (2, 2), generator=g.data), 0)
    lengths = [g.input(f"length {n}", lambda n=n: torch.tensor([n, n - 1]), 0) for n in (6, 2)]
    options = {"blank": 0, "zero_infinity": g.chance(0.4)}
    raw = "torch.ctc_loss({0}, {1}, {2}, {3}, {blank}, {reduction}, {zero_infinity})"
    g.quiet = True
    g.not_for.add("export")  # its shape depends on values
    reduction = g.one(*REDUCTIONS)
    choices = [
        f"F.ctc_loss({x}, {t}, {', '.join(lengths)}, reduction='{reduction}', zero_infinity={options['zero_infinity']})"
    ]
    choices.append(raw.format(x, t, *lengths, reduction=REDUCTIONS.index(reduction), **options))
    module = g.module(torch.nn.CTCLoss(reduction=reduction, zero_infinity=options["zero_infinity"]))
    choices.append(f"{module}({x}, {t}, {', '.join(lengths)})")
    g.after(g.let(g.one(*choices)))


# classification


def rows(g: Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of logits, and that of class indices."""
    return g.one(((3, 4), (3,)), ((3, 4), (3,)), ((4,), ()), ((2, 4, 3), (2, 3)), ((2, 4, 2, 3), (2, 2, 3)))  # type: ignore[no-any-return]


def class_options(g: Generator) -> dict[str, Any]:
    return {"weight": weights(g, 4), "ignore_index": g.one(-100, 1, 255)}


@piece("nll_loss", "classification")
def nll(g: Generator) -> None:
    shape, index = rows(g)
    x, t = g.before(g.real(*shape), shape), g.index(4, *index)
    raw = "torch._C._nn.nll_loss_nd({0}, {1}, {weight}, {reduction}, {ignore_index})"
    loss(g, "nll_loss", (x, t), class_options(g), torch.nn.NLLLoss, raw)


@piece("cross_entropy", "classification")
def cross_entropy(g: Generator) -> None:
    shape, index = rows(g)
    x, t = g.before(g.real(*shape), shape), g.index(4, *index)
    if g.chance(0.2) and not g.miss:
        t = g.let(f"F.softmax({g.real(*shape, grad=0.4)}, {min(1, len(shape) - 1)})")
    options = {**class_options(g), "label_smoothing": g.one(0.0, 0.1)}
    if t.startswith("v"):
        options["ignore_index"] = -100
    if not g.miss and len(shape) == 2 and g.chance(0.2):  # a class dimension that is not where it was
        x = g.let(f"{g.let(f'{x}.transpose(0, 1).contiguous()')}.transpose(0, 1)")
    raw = "torch._C._nn.cross_entropy_loss({0}, {1}, {weight}, {reduction}, {ignore_index}, {label_smoothing})"
    loss(g, "cross_entropy", (x, t), options, torch.nn.CrossEntropyLoss, raw)


@piece("cross_entropy", "classification", "another dimension", "probabilities used", "a cast", "transposed")
def log_softmax_nll(g: Generator) -> None:
    shape, index = rows(g) if not g.miss else ((4, 4), (4,))
    dim = g.near("another dimension", min(1, len(shape) - 1), 0)
    dim = dim - len(shape) if g.chance(0.4) else dim
    x, t = g.before(g.real(*shape), shape), g.index(4, *index)
    wider = {torch.float32: "torch.float64"}.get(g.dtype, "torch.float32")
    y = g.let(
        g.near(
            "a cast",
            g.one(f"F.log_softmax({x}, {dim})", f"{x}.log_softmax({dim})", f"torch.log_softmax({x}, dim={dim})",
                  f"{g.module(torch.nn.LogSoftmax(dim))}({x})", f"torch.special.log_softmax({x}, {dim})"),
            f"F.log_softmax({x}, {dim}, dtype={wider})",
        )
    )  # fmt: skip
    if g.miss == "transposed":
        y = g.let(f"{y}.transpose(0, 1)")
    if g.miss == "probabilities used":
        g.results.append(y)
    options = class_options(g)
    if g.miss == "a cast":
        options["weight"] = None
    raw = "torch._C._nn.nll_loss_nd({0}, {1}, {weight}, {reduction}, {ignore_index})"
    loss(g, "nll_loss", (y, t), options, torch.nn.NLLLoss, raw)


@piece("linear_cross_entropy", "classification")
def linear_cross_entropy(g: Generator) -> None:
    x, w, t = g.before(g.real(3, 5), (3, 5)), g.real(4, 5), g.index(4, 3)
    options = {"ignore_index": g.one(-100, 1), "label_smoothing": g.one(0.0, 0.1), "reduction": g.one("mean", "sum")}
    loss(g, "linear_cross_entropy", (x, w, t), options, None, "")


def smoothing(g: Generator) -> tuple[str, str, float, float]:
    eps = g.one(0.1, 0.2, 0.05)
    return g.before(g.real(3, 4), (3, 4)), g.index(4, 3), eps, g.near("coefficients", 1 - eps, 0.93)


@piece("cross_entropy", "classification", "coefficients", "another dimension", "of other rows", "detached")
def smoothing_by_gather(g: Generator) -> None:
    x, t, eps, rest = smoothing(g)
    dim = g.near("another dimension", g.one(1, -1), 0)
    logp = g.let(g.one(f"F.log_softmax({x}, dim={dim})", f"{x}.log_softmax({dim})"))
    picked = g.let(g.one("-{}.gather({d}, {}.unsqueeze(1))", "-torch.gather({}, {d}, {}[:, None])",
                         "-{}.gather(dim={d}, index={}.unsqueeze(-1))").format(logp, t, d=g.one(1, -1)))  # fmt: skip
    picked = g.let(g.one(f"{picked}.squeeze(1)", f"{picked}.squeeze(-1)", f"{picked}[:, 0]"))
    other = g.near("of other rows", logp, f"F.log_softmax({g.real(3, 4, share=False)}, 1)") if g.miss else logp
    smooth = g.let(g.one(f"-{other}.mean(dim=-1)", f"-torch.mean({other}, 1)", f"-{other}.sum(-1) / 4"))
    smooth = g.near("detached", smooth, f"{smooth}.detach()")
    g.after(g.plus(g.times(picked, rest), g.times(smooth, eps)))


@piece("cross_entropy", "classification", "another dimension", "another factor", "detached")
def tokens(g: Generator) -> None:
    """Log-probabilities of given classes, as language models and their preference losses take them."""
    lead = g.one((3,), (2, 3))
    shape = (*lead, 4)
    x, t = g.before(g.real(*shape), shape), g.index(4, *lead)
    d = g.near("another dimension", g.one(-1, len(lead)), 0)
    logp = g.let(g.one(f"F.log_softmax({x}, dim={d})", f"{x}.log_softmax({d})", f"torch.log_softmax({x}, {d})"))
    logp = g.near("detached", g.near("another factor", logp, f"({logp} * {logp})"), f"{logp}.detach()")
    if len(lead) == 1 and g.chance(0.4):
        rows = g.one("torch.arange(3)", "[0, 1, 2]", "range(3)")
        picked = g.let(f"{logp}[{rows}, {t}]")
    else:
        column = g.one("{}.unsqueeze(-1)", "{}[..., None]", "{}.view({}, 1)", "{}[{}, None]")
        places = ", ".join(map(str, lead)) if "view" in column else ", ".join(":" for _ in lead)
        column = g.let(column.format(t, places))
        picked = g.let(g.one(f"{logp}.gather(-1, {column})", f"torch.gather({logp}, {len(lead)}, index={column})"))
        picked = g.let(g.one(f"{picked}.squeeze(-1)", f"{picked}[..., 0]"))
    if g.chance(0.6):
        picked = g.let(g.one(f"-{picked}", f"{picked} * -1", f"torch.neg({picked})"))
    if g.chance(0.4):
        mask = g.bits(*lead)
        return g.results.append(g.let(f"({picked} * {mask}).sum() / ({mask}.sum() + 1)"))
    g.after(picked)


@piece("nll_loss", "classification")
def smoothing_by_nll(g: Generator) -> None:
    # a target of ignore_index keeps its smoothing here, so nll_loss alone is an op's
    x, t, eps, rest = smoothing(g)
    logp = g.let(g.one(f"F.log_softmax({x}, dim=-1)", f"{x}.log_softmax(1)"))
    picked = g.let(f"F.nll_loss({logp}, {t}, ignore_index={g.one(-100, 1)}, reduction='none')")
    smooth = g.let(g.one(f"-{logp}.mean(dim=-1)", f"-torch.mean({logp}, 1)"))
    g.after(g.plus(g.times(picked, rest), g.times(smooth, eps)))


# focal losses


@piece("focal_loss", "focal", "two alphas", "another tensor", "detached", "exp", "broadcast", "weighted")
def focal(g: Generator) -> None:
    shape = g.one((5,), (2, 3), (2, 3, 4)) if not g.miss else (2, 3)
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    alpha, gamma = g.one(0.25, 0.5, 0.75), g.one(2, 2.0, 1.5, 1, 0.5, 3)
    p = g.call("sigmoid", g.near("another tensor", x, g.real(*shape, share=False)) if g.miss else x)
    p = g.near("detached", p, f"{p}.detach()")
    kwargs = g.near("weighted", "", f", weight={g.unit(*shape, grad=0)}") if g.miss else ""
    ce = g.let(f"F.binary_cross_entropy_with_logits({x}, {t}{kwargs}, reduction='none')")
    if g.miss == "broadcast":
        t = g.bits(1, shape[1])
    if g.miss == "exp":
        weight = g.let(f"(1 - torch.exp(-{ce})) ** {gamma}")
    elif g.chance(0.5):  # torchvision, DETR
        p_t = g.plus(g.times(p, t), g.times(g.minus(1, p), g.minus(1, t)))
        weight = g.let(g.one("(1 - {}) ** {}", "(1 - {}).pow({})", "torch.pow(1 - {}, {})").format(p_t, gamma))
    else:  # mmdet
        missed = g.plus(g.times(g.minus(1, p), t), g.times(p, g.minus(1, t)))
        weight = g.let(g.one(f"{missed} ** {gamma}", f"{missed}.pow({gamma})"))
    y = g.times(ce, weight)
    if g.chance(0.7) or g.miss == "two alphas":
        rest = g.near("two alphas", 1 - alpha, 0.6)
        alpha_t = g.plus(g.times(alpha, t), g.times(rest, g.minus(1, t)))
        y = g.times(alpha_t, y)
    g.after(g.let(f"{y}.mean(1).sum() / 3") if len(shape) > 1 and g.chance(0.15) else y)


@piece("softmax_focal_loss", "focal", "smoothed", "weighted", "reduced", "a factor", "another tensor")
def softmax_focal(g: Generator) -> None:
    shape, index = rows(g) if not g.miss else ((3, 4), (3,))
    x, t = g.before(g.real(*shape), shape), g.index(4, *index)
    gamma = g.one(2, 2.0, 1.5, 1, 3)
    kwargs = g.near("smoothed", "", ", label_smoothing=0.1") + g.one("", "", ", ignore_index=1")
    kwargs += g.near("weighted", "", f", weight={g.unit(4, grad=0)}") if g.miss else ""
    ce = g.let(f"F.cross_entropy({x}, {t}{kwargs}, reduction='{g.near('reduced', 'none', 'mean')}')")
    of = (
        g.near("another tensor", ce, g.let(f"F.cross_entropy({g.real(*shape, share=False)}, {t}, reduction='none')"))
        if g.miss
        else ce
    )
    p = g.let(g.one(f"torch.exp(-{of})", f"(-{of}).exp()") if g.miss != "a factor" else f"torch.exp(-{of} * 0.9)")
    y = g.times(g.let(g.one("(1 - {}) ** {}", "(1 - {}).pow({})").format(p, gamma)), ce)
    g.after(g.times(g.one(0.25, 2), y) if g.chance(0.3) else y)


# regions


@piece(
    "dice_loss",
    "regions",
    "two smooths",
    "a factor",
    "another dimension",
    "probabilities",
    "one square",
    "another tensor",
)
def dice(g: Generator) -> None:
    shape = g.one((3, 4), (2, 3, 4), (2, 1, 3, 2)) if g.miss != "another dimension" else (2, 3, 4)
    x, t = g.before(g.real(*shape), shape), g.one(g.bits, g.unit)(*shape)
    if g.chance(0.15):
        t = g.bits(*shape, whole=True)
    p = g.call("sigmoid", x) if g.miss != "probabilities" else g.unit(*shape)
    smooth = g.one(1, 1.0, 1e-3)
    by_sample = g.chance(0.6) or g.miss == "another dimension"
    if by_sample:
        flat = g.one("{}.flatten(1)", "{0}.reshape({1}, -1)", "torch.flatten({}, 1)")
        if g.miss != "another dimension":
            p, t = g.let(flat.format(p, shape[0])), g.let(flat.format(t, shape[0]))
        over = (
            g.one("{}.sum(1)", "{}.sum(-1)", "{}.sum(dim=1)", "torch.sum({}, 1)")
            if g.miss != "another dimension"
            else "{}.sum(1)"
        )
    else:
        if g.chance(0.5):
            p, t = g.let(f"{p}.reshape(-1)"), g.let(f"{t}.reshape(-1)")
        over = g.one("{}.sum()", "torch.sum({})")
    both = g.let(over.format(g.times(p, g.near("another tensor", t, f"{t}.flip(0)"))))
    top = g.plus(g.times(g.near("a factor", 2, 1.9), both), g.near("two smooths", smooth, 0.5))
    squares = g.chance(0.3) or g.miss == "one square"
    left, right = (g.square(p) if squares else p), (g.square(t) if squares and g.miss != "one square" else t)
    bottom = g.plus(g.plus(g.let(over.format(left)), g.let(over.format(right))), smooth)
    g.after(g.minus(1, g.over(top, bottom)))


# boxes


def overlap(g: Generator, form: str, lead: int) -> tuple[str, str, str, str, list[str]]:
    """Intersection, union, and width, height of the hull; coordinates."""
    a, b = g.boxes(lead), g.boxes(lead, grad=0.3, share=False)
    if form == "pairs":  # left top and right bottom at once
        clamp = g.near("not clamped", g.one(".clamp(min=0)", ".clamp_min(0)", ".relu()"), "")
        low = g.let(g.one("torch.max({}[:, :2], {}[:, :2])", "torch.maximum({}[..., :2], {}[..., :2])").format(a, b))
        high = g.let(g.one("torch.min({}[:, 2:], {}[:, 2:])", "torch.minimum({}[..., 2:], {}[..., 2:])").format(a, b))
        sides = g.let(f"({high} - {low}){clamp}")
        inter = g.let(f"{sides}[:, 0] * {sides}[:, 1]")
        areas = [g.let(f"({v}[:, 2] - {v}[:, 0]) * ({v}[:, 3] - {v}[:, 1])") for v in (a, b)]
        hull = g.let(f"torch.max({a}[:, 2:], {b}[:, 2:]) - torch.min({a}[:, :2], {b}[:, :2])")
        coordinates = [f"{v}[:, {i}]" for v in (a, b) for i in range(4)]
        return inter, g.minus(g.plus(*areas), inter), f"{hull}[:, 0]", f"{hull}[:, 1]", coordinates
    coordinates = []
    for v, letter in ((a, "p"), (b, "q")):
        names = [f"{letter}{next(g.names)}" for _ in range(4)]
        g.do(f"{', '.join(names)} = " + g.one("{}.unbind(-1)", "torch.unbind({}, dim=-1)", "{}.unbind(1)").format(v))
        coordinates += names
    x1, y1, x2, y2, u1, v1, u2, v2 = coordinates
    x, y = g.let(f"torch.max({x1}, {u1})"), g.let(f"torch.max({y1}, {v1})")
    z, w = g.let(f"torch.min({x2}, {u2})"), g.let(f"torch.min({y2}, {v2})")
    areas = [g.let(f"({x2} - {x1}) * ({y2} - {y1})"), g.let(f"({u2} - {u1}) * ({v2} - {v1})")]
    if form == "mask":  # torchvision
        inter = g.let(f"torch.zeros_like({x1})")
        mask = g.let(f"({w} > {y}) & ({z} > {x})")
        g.floats.remove(mask)
        g.do(f"{inter}[{mask}] = ({z}[{mask}] - {x}[{mask}]) * ({w}[{mask}] - {y}[{mask}])")
    else:
        inter = g.times(g.let(f"({z} - {x}).clamp(min=0)"), g.let(f"F.relu({w} - {y})"))
    width = g.let(f"torch.max({x2}, {u2}) - torch.min({x1}, {u1})")
    height = g.let(f"torch.max({y2}, {v2}) - torch.min({y1}, {v1})")
    return inter, g.minus(g.plus(*areas), inter), width, height, coordinates


BOX_MISSES = ("two eps", "not clamped", "a factor")


def box(g: Generator, op: str) -> None:
    form = "pairs" if g.miss == "not clamped" else g.one("pairs", "mask", "parts")
    inter, union, width, height, (x1, y1, x2, y2, u1, v1, u2, v2) = overlap(g, form, 3)
    eps = g.near("no eps", g.one(1e-7, 1e-6), 0)
    other_eps = g.near("two eps", eps, 1e-3)
    plus_eps = f" + {eps}" if eps else ""
    iou = g.let(f"{inter} / ({union}{plus_eps})")
    y = g.minus(1, iou)
    if op == "giou_loss":
        hull = g.let(f"{width} * {height}")
        extra = g.let(f"({hull} - {union}) / ({hull} + {other_eps})")
        y = g.minus(1, g.minus(iou, extra)) if g.chance(0.5) else g.plus(y, extra)
    elif op in ("diou_loss", "ciou_loss"):
        diagonal = g.let(f"{width} ** 2 + {height} ** 2 + {other_eps}")
        centers = g.one(
            f"(({x1} + {x2}) / 2 - ({u1} + {u2}) / 2) ** 2 + (({y1} + {y2}) / 2 - ({v1} + {v2}) / 2) ** 2",
            f"(({u1} + {u2} - {x1} - {x2}) ** 2 + ({v1} + {v2} - {y1} - {y2}) ** 2) / 4",
        )
        y = g.plus(y, g.let(f"({centers}) / {diagonal}"))
    if op == "ciou_loss":
        angle = g.near("atan of the quotient", "torch.atan2({}, {})", "torch.atan({} / ({}))")
        sides = [(f"{u2} - {u1}", f"{v2} - {v1}"), (f"{x2} - {x1}", f"{y2} - {y1}")]
        turn = " - ".join(angle.format(*(f"({side})" for side in pair)) for pair in sides)
        v = g.let(g.one("(4 / math.pi**2) * ({}) ** 2", "4 / math.pi**2 * torch.pow({}, 2)").format(turn))
        alpha = f"{v} / (1 - {iou} + {v}{plus_eps})"
        if g.miss == "alpha differentiated":
            alpha = g.let(alpha)
        elif g.chance(0.5):
            alpha = g.let(f"({alpha}).detach()")
        else:
            name = f"v{next(g.names)}"
            g.do("with torch.no_grad():")
            g.do(f"    {name} = {alpha}")
            alpha = name
        y = g.plus(y, g.times(alpha, v))
    if g.miss == "a factor" or (g.miss == "two eps" and op == "iou_loss"):
        y = g.minus(1, g.let(f"{iou} * 0.9"))
    g.after(y)


@piece("iou_loss", "boxes", "not clamped", "a factor", "no eps", dtypes=WIDE)
def iou_loss(g: Generator) -> None:
    box(g, "iou_loss")


@piece("giou_loss", "boxes", "two eps", "not clamped", "no eps", dtypes=WIDE)
def giou_loss(g: Generator) -> None:
    box(g, "giou_loss")


@piece("diou_loss", "boxes", "two eps", "not clamped", "no eps", dtypes=WIDE)
def diou_loss(g: Generator) -> None:
    box(g, "diou_loss")


@piece("ciou_loss", "boxes", "two eps", "alpha differentiated", "no eps", "atan of the quotient", dtypes=WIDE)
def ciou_loss(g: Generator) -> None:
    box(g, "ciou_loss")


# distillation, margins over a softmax


# Of bfloat16, torch's own program is off by 0.1 to 0.4 where it multiplies by the square of a temperature of 4.
@piece(
    "distillation_loss", "softmax margins", "two temperatures", "another dimension", "teacher learns", "mean", "ranks",
    dtypes=WIDE,
)  # fmt: skip
def distillation(g: Generator) -> None:
    shape = (4, 4) if g.miss != "ranks" else (2, 3, 4)
    student = g.before(g.real(*shape, share=False), shape)
    teacher = g.real(*shape, grad=g.near("teacher learns", 0.0, 1.0), share=False)
    t, dim = g.one(2, 4.0, 3, 1), g.near("another dimension", g.one(1, -1), 0)
    other, log = g.near("two temperatures", t, 5), g.chance(0.4)
    s = g.let(f"F.log_softmax({g.one(f'{student} / {t}', f'{student} * (1 / {t})')}, dim={dim})")
    p = g.let(f"F.{'log_softmax' if log else 'softmax'}({teacher} / {other}, dim={dim})")
    reduction = g.near("mean", g.one("batchmean", "sum", "batchmean"), "mean")
    y = g.let(f"F.kl_div({s}, {p}, reduction='{reduction}', log_target={log})")
    if reduction == "sum" and g.chance(0.3):
        y = g.let(f"{y} / {shape[0]}")
    g.after(g.times(y, g.one(t * t, t, 0.5, t**2)) if g.chance(0.8) else y)


def onehot(g: Generator, t: str, logits: str, classes: int) -> str:
    if g.chance(0.4):
        return g.let(f"F.one_hot({t}, {classes}).{g.one(f'to({g.dtype})', f'type_as({logits})')}")
    if g.chance(0.5):
        return g.let(f"torch.zeros_like({logits}).scatter_(1, {t}.view(-1, 1), 1.0)")
    y = g.let(f"torch.zeros_like({logits})")
    g.do(f"{y}.scatter_(1, {t}.unsqueeze(1), 1)")
    return y


def cosines(g: Generator) -> tuple[str, str]:
    x, w, t = g.before(g.real(3, 5), (3, 5)), g.real(4, 5), g.index(4, 3)
    return g.let(f"F.linear(F.normalize({x}), F.normalize({w})).clamp(-0.9, 0.9)"), t


@piece("amsoftmax_loss", "softmax margins", "another target", "smoothed", "detached", dtypes=WIDE)
def amsoftmax(g: Generator) -> None:
    c, t = cosines(g)
    margin, scale = g.one(0.35, 0.2), g.one(30.0, 8, 16.0)
    hot = onehot(g, t, c, 4)
    shift = g.times(hot, margin)
    logits = g.times(scale, g.minus(g.near("detached", c, f"{c}.detach()"), shift))
    if g.miss == "another target":
        t = g.let(f"({t} + 1) % 4")
        g.floats.remove(t)
    smooth = g.near("smoothed", "", ", label_smoothing=0.1")
    loss_ = f"F.cross_entropy({logits}, {t}, reduction='{g.one(*REDUCTIONS)}'{smooth})"
    g.after(g.let(loss_))


@piece(
    "arcface_loss", "softmax margins", "threshold", "another target", "two margins", "no floor",
    dtypes=(torch.float32,),
)  # fmt: skip
def arcface(g: Generator) -> None:
    c, t = cosines(g)
    m, scale = g.one(0.5, 0.3), g.one(30.0, 16.0)
    floorless = ("torch.sqrt(1 - {0} ** 2)", "torch.sqrt((1 - {0} ** 2).clamp(0, 1))")
    sines = (
        "torch.sqrt((1.0 - torch.pow({0}, 2)).clamp(min=1e-7))",
        "(1 - {0}.pow(2)).clamp(1e-7, 1).sqrt()",
    )
    sine = g.let(g.one(*g.near("no floor", sines, floorless)).format(c))
    phi = g.minus(g.times(c, math.cos(m)), g.times(sine, g.near("two margins", math.sin(m), math.sin(0.4))))
    threshold = math.cos(math.pi - m)
    phi = g.let(f"torch.where({c} > {g.near('threshold', threshold, 0.0)}, {phi}, {c} - {math.sin(math.pi - m) * m})")
    hot = onehot(g, t, c, 4)
    mixed = g.plus(g.times(hot, phi), g.times(g.minus(1.0, hot), c))
    logits = g.times(mixed, scale)
    if g.miss == "another target":
        t = g.let(f"({t} + 1) % 4")
        g.floats.remove(t)
    g.after(g.let(f"F.cross_entropy({logits}, {t}, reduction='{g.one(*REDUCTIONS)}')"))


import fuzz_written  # noqa: E402, F401, I001
import fuzz_libraries  # noqa: E402, F401

FAMILIES = list(dict.fromkeys(p.family for p in PIECES))


def schedule(family: str) -> list[tuple[Piece, str]]:
    """Every piece with each of its near misses and, as often and twice more, as it is."""
    found = []
    for p in (p for p in PIECES if p.family == family):
        found += [(p, "")] * 2
        for miss in p.misses:
            found += [(p, miss), (p, "")]
    return found


def program(seed: int, main: Piece, miss: str) -> Generator:
    g = Generator(seed, miss)
    g.dtype = g.one(*main.dtypes)
    main.write(g)
    g.miss = ""
    if g.chance(0.3):
        other = g.one(*[p for p in PIECES if g.dtype in p.dtypes and p.op != main.op])
        other.write(g)
    if g.chance(0.25):
        g.disturb()
    if g.chance(0.15):
        g.preludes()
    return g

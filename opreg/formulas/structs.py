"""The C++ of a formula: the struct that a skeleton of csrc asks for."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from ..building.headers import class_names
from .algebra import add, is_option_alone, remade, sub
from .derivative import derivative
from .expression import ZERO, Expr, Variable, const, name_of, option, replaced, tensor, walk
from .lowering import lowered
from .printing import Writer, identifier
from .signature import KINDS, Argument, Signature

INDENT = "    "

# What a function of @opreg.region may ask for, made of the sums A of s y, Q of s and Y of y (s is predicted, y true):
# how often each of them is added.
REGION_SUMS: dict[str, tuple[int, int, int]] = {
    "tp": (1, 0, 0),
    "fp": (-1, 1, 0),
    "fn": (-1, 0, 1),
    "intersection": (1, 0, 0),
    "predicted": (0, 1, 0),
    "true": (0, 0, 1),
    "union": (-1, 1, 1),
}


@dataclass
class Branch:
    """One mode of a formula: what it computes where ``condition`` holds, text of C++ over the options."""

    condition: str
    value: list[Expr]
    slopes: list[Expr]


VALUE: Callable[[Branch], list[Expr]] = attrgetter("value")
SLOPES: Callable[[Branch], list[Expr]] = attrgetter("slopes")


def branches(
    signature: Signature,
    found: list[tuple[dict[str, bool], Expr]],
    inputs: Sequence[Variable],
    combined: Callable[[list[Expr]], list[Expr]] = list,
) -> list[Branch]:
    """The modes: one for each choice of flags, and beside each the one in which exponents have their defaults, if that
    spares a power: x ** gamma is a product for gamma = 2. ``combined`` makes of the slopes in the inputs those that are
    asked for."""

    def branch(condition: str, value: Expr) -> Branch:
        slopes = combined([derivative(value, tensor(it)) for it in inputs])
        return Branch(condition, lowered([value]), lowered(slopes))

    made = []
    for flags, value in found:
        condition = " && ".join(identifier(n) if on else f"!{identifier(n)}" for n, on in flags.items())
        fixed = _exponents_with_defaults(signature, value)
        if fixed:
            new = {option(a.variable): const(float(a.default)) for a in fixed}
            usual = replaced([value], new, remade)[0]
            if _powers([usual]) < _powers([value]):
                said = " && ".join(f"{identifier(a.name)} == {a.default!r}" for a in fixed)
                made.append(branch(f"{condition} && {said}" if condition else said, usual))
        made.append(branch(condition, value))
    return made


def _powers(roots: Sequence[Expr]) -> int:
    return sum(e.op in ("pow", "exp") for e in walk(*roots))


def _exponents_with_defaults(signature: Signature, value: Expr) -> list[Argument]:
    exponents = [e.args[-1] for e in walk(value) if e.op in ("pow", "exp")]
    names = {name_of(e) for e in walk(*exponents) if e.op == "option"}
    return [a for a in signature.numbers if a.name in names and a.has_default]


class Struct:
    """The text of a struct, put together."""

    def __init__(self, signature: Signature, made: list[Branch], taken: Sequence[str]) -> None:
        self.signature, self.branches = signature, made
        self.taken = [identifier(n) for n in (*taken, *(a.name for a in signature.arguments))]
        self.fields = self._find_fields()

    @property
    def name(self) -> str:
        return struct_name(self.signature)

    def _find_fields(self) -> dict[Expr, str]:
        """The options, and what is made of options alone: computed once a call, in double."""
        found: dict[Expr, str] = {}
        inside: set[Expr] = set()
        roots = [e for b in self.branches for e in (*b.value, *b.slopes)]
        for e in reversed(list(walk(*roots))):
            if e in inside and e.op != "option":
                inside.update(e.args)
            elif is_option_alone(e) and e.op != "const" and not e.is_truth and e not in found:
                if e.op == "option":
                    continue
                found[e] = f"of_options_{len(found)}"
                inside.update(e.args)
        for e in walk(*roots):
            if e.op == "option":
                found[e] = identifier(name_of(e))
        return found

    def head(self, base: str = "") -> list[str]:
        return [
            f"struct {self.name}{f' : {base}' if base else ''} {{",
            f'  static constexpr auto name = "{self.signature.name}";',
        ]

    def options(self) -> list[str]:
        """The declarations of the fields."""
        lines = [f"  {'bool' if a.kind is bool else 'Parameter'} {identifier(a.name)};" for a in self.signature.options]
        return lines + [f"  Parameter {name};" for e, name in self.fields.items() if e.op != "option"]

    def make(self, *more: str, first: str = "") -> list[str]:
        """make(): the options' domains, and what is computed of them. It takes ``more`` besides.

        ``first`` initialises the base.
        """
        takes = [f"{KINDS[a.kind][1]} {identifier(a.name)}" for a in self.signature.options]
        lines = [f"  static {self.name} make({', '.join([*takes, *more])}) {{"]
        for a in self.signature.numbers:
            name = identifier(a.name)
            lines.append(
                f'{INDENT}expect({a.domain.condition(name)}, name, "{a.domain.said(a.name)}", double({name}));'
            )
        computed = [e for e in self.fields if e.op != "option"]
        writer = Writer(
            {option(a.variable): f"T({identifier(a.name)})" for a in self.signature.numbers}, self.taken, convert=False
        )
        texts = writer.write(computed)
        if computed:
            lines.append(f"{INDENT}using T = double;")
            lines += [INDENT + line for line in writer.lines]
        members = [*([first] if first else [])]
        members += [
            identifier(a.name) if a.kind is bool else f"double({identifier(a.name)})" for a in self.signature.options
        ]
        lines.append(f"{INDENT}return {{{', '.join([*members, *texts])}}};")
        return [*lines, "  }"]

    def modes(self, takes: str = "") -> list[str]:
        if len(self.branches) == 1 and not takes:
            return []
        choice = "".join(f"{b.condition} ? {k} : " for k, b in enumerate(self.branches[:-1]))
        chosen = choice + str(len(self.branches) - 1)
        return [
            f"  static constexpr int modes = {len(self.branches)};",
            f"  int mode({takes}) const {{ return {chosen}; }}",
        ]

    def function(
        self,
        head: str,
        returned: str,
        roots: Callable[[Branch], list[Expr]],
        *,
        before: Sequence[str] = (),
        moded: bool = False,
        templated: bool = True,
    ) -> list[str]:
        """A member that computes ``roots``: ``returned`` is the text of the result with their texts in it.

        ``moded``: its mode is a parameter of the template even if there is one alone. Without a template the modes are
        told apart where it runs, in double.
        """
        several = len(self.branches) > 1 or moded
        lines = [f"  template <{'int Mode, ' if several else ''}class T>"] if templated else []
        lines.append(f"  HD {head} const {{")
        for k, branch in enumerate(self.branches):
            writer = Writer(self.fields, self.taken)
            texts = writer.write(roots(branch))
            body = [*before, *writer.lines, f"return {returned.format(*texts, all=', '.join(texts))};"]
            condition = f"if constexpr (Mode == {k})" if templated else f"if ({branch.condition})"
            if len(self.branches) > 1 and (templated or branch is not self.branches[-1]):
                body = [f"{condition} {{", *(f"  {line}" for line in body), "}"]
            lines += [INDENT + line for line in body]
        return [*lines, "  }"]


def pointwise_struct(signature: Signature, made: list[Branch], reduction: bool) -> str:
    """Of ``PointwiseOps``."""
    s = Struct(signature, made, [])
    tensors = signature.tensors
    arguments = ", ".join(f"T {identifier(a.name)}" for a in tensors)
    n = len(tensors)
    lines = [
        *s.head(),
        *_args(signature.schema(reduction=reduction)),
        f"  static constexpr int inputs = {n}, gradients = {n};",
        f"  static constexpr Shapes shapes = Shapes::{'same' if len(signature.required) == 1 else 'broadcast'};",
        *s.options(),
        "",
        *s.make(*(["Reduction"] if reduction else [])),
        *s.modes(),
        *s.function(f"T value({arguments})", "{0}", VALUE),
        *s.function(f"Gradients<T, {n}> grad({arguments})", "{{{all}}}", SLOPES),
        "};",
    ]
    return "\n".join(lines)


def row_struct(signature: Signature, made: list[Branch], nll: str) -> str:
    """Of ``RowOps``: a function of the row's -log p, times the class's weight; the mean is that of the weights."""
    s = Struct(signature, made, [nll])
    by_value = any(e.op == "input" for b in made for root in b.slopes for e in walk(root))
    before = [f"const T {identifier(nll)} = row.nll;"]
    lines = [
        *s.head("RowFormula"),
        *_args(schema_of_classes(signature)),
        "  static constexpr int inputs = 3, gradients = 1;",
        *s.options(),
        "",
        *s.make("int64_t ignore_index", "Reduction", first="{ignore_index}"),
        *s.modes("bool"),
        *s.function(
            "T value([[maybe_unused]] const Row<T>& row)", "row.weight * ({0})", VALUE, before=before, moded=True
        ),
        f"  static constexpr bool slopes_of_nll = {'true' if by_value else 'false'};",
        *s.function(
            "Slopes<T> slopes([[maybe_unused]] const Row<T>& row)",
            "{{row.weight * ({0}), T(0)}}",
            SLOPES,
            before=[f"[[maybe_unused]] {before[0]}"],
            moded=True,
        ),
        "  template <int Mode, class T>",
        "  HD T normaliser(const Row<T>& row) const {",
        f"{INDENT}return row.weight;",
        "  }",
        "};",
    ]
    return "\n".join(lines)


ENTROPY = "entropy"
"""Of a row of @opreg.row: the tensor of this name."""


def entropy_struct(signature: Signature, made: list[Branch], nll: str) -> str:
    """Of ``GroupOps``: a function of the row's -log p and entropy, of sums over its classes. With u = x - max they are
    log s - u_y and log s - sum_c e^u_c u_c / s, s = sum_c e^u_c."""
    s = Struct(signature, made, [nll, ENTROPY])
    # no option has a name that ends so
    before = [
        "const T log_sum_ = log(group_.sum[0]);",
        f"[[maybe_unused]] const T {identifier(nll)} = log_sum_ - (group_.sum[2] - group_.max[0]);",
        f"[[maybe_unused]] const T {ENTROPY} = log_sum_ - group_.sum[1] / group_.sum[0];",
    ]
    sums = """
  static constexpr int sums = 3, coefficients = 5;
  static constexpr int maxima(int) { return 1; }
  template <int Mode, class T>
  HD Values<T, 1> candidates(T x, bool) const {
    return {x};
  }
  // e^u and e^u u, and the target's score
  template <int Mode, class T>
  HD Values<T, 3> terms(const T* max, T x, bool hit) const {
    // far below the maximum e^u is 0 of whatever is finite, and e^u u as well
    T u = at_least(x - max[0], T(-1000)), e = exp_term(u);
    return {e, e * u, hit ? x : T(0)};
  }
  // With a maximum that grows, u falls by the same for all classes.
  template <class T>
  HD void carry(const T* from, const T* to, T* sum) const {
    T du = at_least(from[0] - to[0], T(-1000)), p = exp_term(du);
    sum[1] = p * (sum[1] + sum[0] * du);
    sum[0] *= p;
  }"""
    grad = """
  // a (p - [hit]) - b p (log p + entropy), a and b the slopes in the row's -log p and entropy
  template <int Mode, class T>
  HD Gradients<T, 1> grad(const Coefficients<T, 5>& c, T x, bool hit) const {
    T log_p = at_least(x - c.of[0] - c.of[1], T(-1000)), p = exp_term(log_p);
    return {p * (c.of[3] - c.of[4] * (log_p + c.of[2])) - (hit ? c.of[3] : T(0))};
  }"""
    lines = [
        *s.head(),
        *_args(schema_of_classes(signature, weight=False)),
        "  static constexpr int inputs = 2, members = 1, gradients = 1, least_classes = 1;",
        "  static constexpr Along along = Along::classes;",
        "  int64_t ignore_index;",
        *s.options(),
        "",
        *s.make("int64_t ignore_index", "Reduction", first="ignore_index"),
        *sums.splitlines(),
        *s.modes(),
        *s.function("T value(const Group<T>& group_)", "{0}", VALUE, before=before),
        *s.function(
            "Coefficients<T, 5> coefficients_of(const Group<T>& group_)",
            "{{{{group_.max[0], log_sum_, entropy, {0}, {1}}}, group_.members}}",
            SLOPES,
            before=before,
            moded=True,
        ),
        *grad.splitlines()[1:],
        "};",
    ]
    return "\n".join(lines)


def slopes_in_sums(names: Sequence[str], slopes: list[Expr]) -> list[Expr]:
    """The slopes in A, Q and Y, of those in what ``REGION_SUMS`` makes of them."""
    made = [ZERO, ZERO, ZERO]
    for name, slope in zip(names, slopes, strict=True):
        for k, sign in enumerate(REGION_SUMS[name]):
            made[k] = add(made[k], slope) if sign > 0 else sub(made[k], slope) if sign < 0 else made[k]
    return made


def region_struct(signature: Signature, made: list[Branch]) -> str:
    """Of ``RegionOps``: a function of what two regions have in common, and of what they have not."""
    names = [a.name for a in signature.tensors]
    s = Struct(signature, made, names)
    sums = ("shared_", "of_q_", "of_y_")  # no option has such a name
    given = []
    for name in names:
        plus, minus = ([n for n, k in zip(sums, REGION_SUMS[name], strict=True) if k == sign] for sign in (1, -1))
        given.append(f"[[maybe_unused]] const T {identifier(name)} = {' - '.join([' + '.join(plus), *minus])};")
    lines = [
        *s.head(f"RegionFormula<{s.name}>"),
        *_args(schema_of_classes(signature, "bool batch=False")),
        *s.options(),
        "",
        *s.make(
            "int64_t ignore_index", "bool batch", "Reduction reduction", first="{{ignore_index, reduction}, batch}"
        ),
        *s.function(
            f"Overlap<double> overlap({', '.join(f'double {n}' for n in sums)})",
            "{{{0}, {{{1}, {2}, {3}}}}}",
            lambda b: b.value + b.slopes,
            before=["using T = double;", *given],
            templated=False,
        ),
        "};",
    ]
    return "\n".join(lines)


def schema_of_classes(signature: Signature, *more: str, weight: bool = True) -> str:
    """Of a loss of logits and class indices: the function's options, and those that the op has besides."""
    required = [o.schema for o in signature.options if not o.has_default]
    others = [o.schema for o in signature.options if o.has_default]
    weights = ["Tensor? weight=None"] if weight else []
    arguments = ["Tensor input", "Tensor target", *required, *weights, *others, "int ignore_index=-100", *more]
    return ", ".join([*arguments, 'str reduction="mean"'])


def _args(schema: str) -> list[str]:
    """The schema as a constant, in as many lines as it takes."""
    text = schema.replace('"', '\\"')
    line = f'  static constexpr auto args = "{text}";'
    if len(line) <= 120:
        return [line]
    pieces = textwrap.wrap(text, 108, break_long_words=False, break_on_hyphens=False)
    spaced = [f'      "{piece} "' for piece in pieces[:-1]]
    return ["  static constexpr auto args =", *spaced, f'      "{pieces[-1]}";']


def struct_name(signature: Signature) -> str:
    name = "".join(word.capitalize() for word in signature.name.split("_"))
    return f"{name}Op" if name in class_names() else name


def family(signature: Signature, text: str, skeleton: str, header: str) -> str:
    """The header that is compiled: a family of one op."""
    return f"""#pragma once
#include <opreg/base/special.h>
#include <opreg/{header}>

namespace lossreg {{

{text}

using Ops = {skeleton}<{struct_name(signature)}>;

}}  // namespace lossreg
"""

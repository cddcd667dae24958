"""From expressions to the text of C++: a line for what is used more than once, or is long."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from .expression import Expr, name_of, number, walk

# Longer texts get a name of their own.
_LONG = 64
_OPERATORS = {
    "add": ("+", 1),
    "sub": ("-", 1),
    "mul": ("*", 2),
    "div": ("/", 2),
    "lt": ("<", 0),
    "le": ("<=", 0),
    "eq": ("==", 0),
}
_WORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const continue default
    delete do double else enum explicit export extern false float for friend goto if inline int long mutable namespace
    new not not_eq operator or or_eq private protected public register return short signed sizeof static struct switch
    template this throw true try typedef typeid typename union unsigned using virtual void volatile while xor xor_eq
    T Mode HD row args name inputs gradients modes mode shapes make value grad slopes domains in_domain expect
    abs at_least at_most relu clamp sign exp exp_negative exp_term log log1m log1p log1p_unit inverse_1p_unit
    one_minus_exp expm1 pow pow_unit sqrt atan2 detached sigmoid softplus tanh erf erfc log_cosh sin cos floor maximum
    minimum bits INFINITY NAN
    typed_by batchmean align says_broadcast numbers loss forward_mask results keeps_state
    softmax state_values share uses_shares even probability_mode share_grad has_margin logit logit_slope target_logit
    target_slope has_bias bias normaliser slopes_of_nll
    along members least_classes sums coefficients maxima candidates terms carry later later_terms coefficients_of
    place_of
    op power call result_shape slots state_shape scale pass forward with_kind has_power soft_targets batch formula close
    overlap ignore_index reduction
"""
_TAKEN = frozenset(_WORDS.split())


def identifier(name: str) -> str:
    """A name that C++, math.h and the contracts of the skeletons leave free."""
    return f"{name}_" if name in _TAKEN or name.endswith("_") else name


def literal(value: float) -> str:
    if value != value:
        return "T(NAN)"
    if math.isinf(value):
        return "T(INFINITY)" if value > 0 else "T(-INFINITY)"
    return f"T({int(value)})" if value == int(value) and abs(value) < 1e6 else f"T({value!r})"


class Writer:
    """The text of a few expressions. ``fields``: options, and what is made of them alone, by the field that has it."""

    def __init__(self, fields: dict[Expr, str], taken: Collection[str], *, convert: bool = True) -> None:
        self.fields, self.convert = fields, convert
        self.prefix = next(
            p for p in ("v", "w", "u", "part") if not any(n.startswith(p) and n[len(p) :].isdigit() for n in taken)
        )
        self.lines: list[str] = []
        self.texts: dict[Expr, tuple[str, int]] = {}

    def write(self, roots: Sequence[Expr]) -> list[str]:
        """Adds the lines that are needed; returns the texts of the roots."""
        uses = Counter(a for e in self._under(roots) for a in self._args(e)) + Counter(roots)
        for e in self._under(roots):
            text, level = self._text(e)
            named = bool(self._args(e)) and e.op != "neg" and uses[e] > 1
            if named or (len(text) > _LONG and self._args(e) and e not in roots):
                name = f"{self.prefix}{len(self.lines)}"
                self.lines.append(f"{'bool' if e.is_truth else 'T'} {name} = {text};")
                text, level = name, 4
            self.texts[e] = text, level
        return [self.texts[root][0] for root in roots]

    def _args(self, e: Expr) -> tuple[Expr, ...]:
        return () if e in self.fields else e.args

    def _under(self, roots: Iterable[Expr]) -> Iterable[Expr]:
        """Every node that is written, operands first; what a field has is no further looked at."""
        order: dict[Expr, None] = {}

        def visit(root: Expr) -> None:
            stack = [(root, False)]
            while stack:
                e, done = stack.pop()
                if done:
                    order[e] = None
                elif e not in order:
                    stack.append((e, True))
                    stack.extend((a, False) for a in reversed(self._args(e)) if a not in order)

        for root in roots:
            visit(root)
        return list(order)

    def _of(self, e: Expr, least: int) -> str:
        text, level = self.texts[e]
        return f"({text})" if level < least else text

    def _text(self, e: Expr) -> tuple[str, int]:
        """A text, and how tightly it binds: 4 a name or a call, 3 a sign, 2 a product, 1 a sum, 0 or less the rest."""
        if e in self.fields:
            return (f"T({self.fields[e]})" if self.convert else self.fields[e]), 4
        if e.op == "const":
            return (f"-{literal(-number(e))}", 3) if number(e) < 0 else (literal(number(e)), 4)
        if e.op in ("input", "option"):
            return identifier(name_of(e)), 4
        if e.op == "neg":
            x = e.args[0]
            if x.op == "sub" and self.texts[x][1] == 1:
                return f"{self._of(x.args[1], 1)} - {self._of(x.args[0], 2)}", 1
            return f"-{self._of(x, 3)}", 3
        if e.op in _OPERATORS:
            sign, level = _OPERATORS[e.op]
            tighter = level if e.op in ("add", "mul") else level + 1
            return (
                f"{self._of(e.args[0], level)} {sign} {self._of(e.args[1], max(tighter, level + (e.op != 'add')))}",
                level,
            )
        if e.op == "where":
            condition, a, b = e.args
            return f"{self._of(condition, 0)} ? {self._of(a, 1)} : {self._of(b, 1)}", -1
        if e.op in ("and", "or", "not"):
            operands = [self._of(a, 3) for a in e.args]
            return (
                (f"!{operands[0]}", 3) if e.op == "not" else ((" && " if e.op == "and" else " || ").join(operands), -1)
            )
        return f"{e.op}({', '.join(self.texts[a][0] for a in e.args)})", 4


def used_names(roots: Sequence[Expr], op: str) -> set[str]:
    """The names of the inputs, or options, under some expressions."""
    return {name_of(e) for e in walk(*roots) if e.op == op}

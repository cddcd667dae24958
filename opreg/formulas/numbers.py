"""Numbers of a formula that are known when it is called and not before: options, and what Python makes of them.

While a formula is traced each option is a float of a value that no other number has. Wherever torch hands on that very
value, to an operator or into a new tensor, it is known for the option again.
"""

import math
from collections.abc import Callable
from typing import Any, NoReturn

from . import algebra as al
from .expression import Expr, const


class Untraceable(Exception):
    """What a formula does can't be told from its numbers: the message says what."""


class Names:
    """The numbers that stand for expressions, by their value."""

    def __init__(self) -> None:
        self.expressions: dict[float, Expr] = {}

    def number(self, value: float, e: Expr) -> "Number":
        made = Number(value)
        made.expression, made.names = e, self
        self.expressions[value] = e
        for name, f in _FUNCTIONS.items():
            # math.log(option) hands its argument to C, and returns a plain float
            try:
                self.expressions.setdefault(getattr(math, name)(value), f(e))
            except (ValueError, OverflowError):
                continue
        return made

    def expression(self, value: float) -> Expr:
        if isinstance(value, Number):
            return value.expression
        return self.expressions.get(value) or const(value)


_FUNCTIONS: dict[str, Callable[[Expr], Expr]] = {
    "exp": al.exp, "expm1": al.expm1, "log": al.log, "log1p": al.log1p, "sqrt": al.sqrt, "tanh": al.tanh, "sin": al.sin,
    "cos": al.cos, "atan": al.atan, "erf": al.erf, "erfc": al.erfc, "sinh": al.sinh, "cosh": al.cosh,
    "log2": lambda e: al.scaled(1 / al.LN2, al.log(e)), "log10": lambda e: al.scaled(1 / math.log(10), al.log(e)),
}  # fmt: skip


class Number(float):
    """An option, or what arithmetic makes of options."""

    expression: Expr
    names: Names

    def _with(self, other: Any, f: Callable[[Any, Any], Any], of: Callable[[Expr, Expr], Expr], swap: bool) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        mine, theirs = float.__pos__(self), other + 0.0
        a, b = (theirs, mine) if swap else (mine, theirs)
        x, y = self.expression, self.names.expression(other)
        return self.names.number(f(a, b), of(y, x) if swap else of(x, y))

    def _branches(self, *_: Any) -> NoReturn:
        raise Untraceable(
            f"expected a formula whose path does not depend on the option {self.expression}, got a branch on it; "
            "choose by torch.where, or declare the option as a bool"
        )

    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __int__ = __round__ = __floor__ = __ceil__ = __trunc__ = _branches
    __eq__ = __ne__ = _branches
    __hash__ = float.__hash__

    def __neg__(self) -> "Number":
        return self.names.number(-float.__pos__(self), al.neg(self.expression))

    def __pos__(self) -> "Number":
        return self

    def __abs__(self) -> "Number":
        return self.names.number(abs(float.__pos__(self)), al.absolute(self.expression))


def _operator(name: str, f: Callable[[Any, Any], Any], of: Callable[[Expr, Expr], Expr]) -> None:
    setattr(Number, f"__{name}__", lambda self, other: self._with(other, f, of, False))
    setattr(Number, f"__r{name}__", lambda self, other: self._with(other, f, of, True))


for _name, _of in {"add": al.add, "sub": al.sub, "mul": al.mul, "truediv": al.div, "pow": al.power}.items():
    _operator(_name, getattr(float, f"__{_name}__"), _of)

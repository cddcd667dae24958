"""The numbers that an option, or a tensor, may be: declared as text, ``"> 0"`` or ``"in [0, 1)"``."""

import math
import re
from dataclasses import dataclass

_NUMBER = r"[-+]?(?:inf|\d+\.?\d*(?:e[-+]?\d+)?|\.\d+)"
_COMPARED = re.compile(rf"(<=|>=|<|>)\s*({_NUMBER})")
_INTERVAL = re.compile(rf"in\s*([\[(])\s*({_NUMBER})\s*,\s*({_NUMBER})\s*([\])])")


@dataclass(frozen=True)
class Domain:
    """An interval. ``low_in`` and ``high_in``: do its ends belong to it?"""

    low: float = -math.inf
    high: float = math.inf
    low_in: bool = True
    high_in: bool = True
    text: str = ""

    @classmethod
    def of(cls, name: str, text: str) -> "Domain":
        """Raises ValueError for a text that is no domain; ``name`` says whose it is."""
        text = text.strip()
        if found := _COMPARED.fullmatch(text):
            sign, bound = found[1], float(found[2])
            if sign.startswith(">"):
                return cls(low=bound, low_in=sign == ">=", text=text)
            return cls(high=bound, high_in=sign == "<=", text=text)
        found = _INTERVAL.fullmatch(text)
        if found is None or float(found[2]) >= float(found[3]):
            raise ValueError(f'expected a domain of {name} such as "> 0", ">= 0" or "in [0, 1)", got "{text}"')
        return cls(float(found[2]), float(found[3]), found[1] == "[", found[4] == "]", text)

    def __contains__(self, x: float) -> bool:
        above = x > self.low or (self.low_in and x == self.low)
        return above and (x < self.high or (self.high_in and x == self.high))

    def said(self, name: str) -> str:
        """What an error expects: "eps > 0"."""
        return f"{name} {self.text}" if self.text else f"{name} that is a number"

    def condition(self, name: str) -> str:
        """The same as C++ has it; false for a NaN."""
        parts = []
        if self.low > -math.inf or not self.low_in:
            parts.append(f"{name} {'>=' if self.low_in else '>'} {_literal(self.low)}")
        if self.high < math.inf or not self.high_in:
            parts.append(f"{name} {'<=' if self.high_in else '<'} {_literal(self.high)}")
        return " && ".join(parts) or f"{name} == {name}"

    def inside(self, near: float) -> list[float]:
        """A few numbers of it: about this one, if it belongs to it."""
        low, high = max(self.low, -1e3), min(self.high, 1e3)
        found = [near, *(x for x in (0.6 * near, 1.4 * near) if x in self)] if near in self else []
        middle = (
            (low + high) / 2
            if self.low > -math.inf and self.high < math.inf
            else low + 1.0
            if self.low > -math.inf
            else high - 1.0
        )
        return found or [middle if self.text else 0.5]

    def outside(self) -> list[float]:
        """Numbers that it refuses, beside NaN."""
        found = []
        if self.low > -math.inf:
            found.append(self.low - 1.0 if self.low_in else self.low)
        if self.high < math.inf:
            found.append(self.high + 1.0 if self.high_in else self.high)
        return found


def _literal(x: float) -> str:
    if math.isinf(x):
        return "INFINITY" if x > 0 else "-INFINITY"
    return repr(x)

"""Expressions of elements in a normal form: polynomials, fully multiplied out, over atoms.

Two programs with the same polynomial compute the same function over the reals, whatever the order of their operands,
their brackets, and the place of their constants. Atoms are leaves and functions of polynomials: sigmoid(x), a power, a
sum over dimensions. A few identities, such as sigmoid(−x) = 1 − sigmoid(x), make atoms unique too.

What is assumed, and what is not:

- Elements of leaves are finite or NaN. At an infinite one, one spelling may give NaN where another gives a number, as
  x − x·t and x·(1 − t) do. Where an intermediate result of one spelling overflows, as log(1 + eˣ) does, the other's
  value stands.
- Nothing is assumed of signs or order: x/x, √x·√x and (x²)^½ stay what they are, boxes may have x2 < x1, scores may
  require a gradient anywhere. What holds for some values only is a rule's condition, which ``graph.ranges`` proves of
  the graph, or the place is left.
- A tensor times 0 has no normal form, except where elements are compared by cases (``finite``).
- At a kink, where two slopes meet, either may be the gradient; where a loss is NaN, its gradient may be any.
"""

import contextlib
import contextvars
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from ..graph.calls import sizes, value_of

# The name of a function and its parts, which are polynomials and options; or "leaf" and what stands for the leaf.
Atom = tuple[Any, ...]
# Atoms with their exponents.
Monomial = frozenset[tuple[Atom, float]]
ONE: Monomial = frozenset()

# The most terms of a polynomial: no pattern has more.
LARGEST = 80


class TooLarge(Exception):
    """An expression has no normal form: it has more terms than any pattern, or no value."""


class NotFinite(TooLarge):
    """A constant is no real number, or a tensor is multiplied by 0, which gives NaN where it is infinite."""


# Of the normal distribution.
_ROOTS = (math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi), math.sqrt(math.pi / 2))


@lru_cache(2**12)
def rounded(x: float) -> float:
    """A number of twelve digits: so 1 − 0.7 and 0.3 are the same constant, 1/6 and 0.16667 are not.

    The roots that GELU holds are themselves, however they were rounded: 1/1.41421356237 is √½, 0.7978845608 is √(2/π).
    So are quotients of small numbers: half of 0.111111111111 is 1/18.
    """
    if x == 0 or not math.isfinite(x):
        return float(x)
    x = next((c for c in _ROOTS if abs(x - c) < 1e-11), x)
    if 1e-3 < abs(x) < 1e3:
        near = Fraction(x).limit_denominator(100)
        if abs(x - near) < 1e-11 * abs(x):
            return float(near)
    return round(float(x), 12 - 1 - math.floor(math.log10(abs(x))))


_FINITE = contextvars.ContextVar("finite", default=False)


@contextlib.contextmanager
def finite() -> Iterator[None]:
    """Elements of tensors are taken to be finite, so that a tensor times 0 is 0."""
    token = _FINITE.set(True)
    try:
        yield
    finally:
        _FINITE.reset(token)


class Poly:
    """A sum of monomials with coefficients. Equal ones are one object.

    Expressions share their parts: written out as a tree, one may be exponentially larger than it is as a graph. So
    nothing here looks into a part twice.
    """

    _known: ClassVar["WeakValueDictionary[frozenset[tuple[Monomial, float]], Poly]"] = WeakValueDictionary()
    terms: frozenset[tuple[Monomial, float]]

    def __new__(cls, terms: frozenset[tuple[Monomial, float]]) -> "Poly":
        found = cls._known.get(terms)
        if found is None:
            new = super().__new__(cls)
            new.terms = terms
            found = cls._known.setdefault(terms, new)
        return found

    def __add__(self, other: "Poly") -> "Poly":
        if len(other.terms) > len(self.terms):
            return other + self
        if len(self.terms) + len(other.terms) > LARGEST:
            return collect([*self.terms, *other.terms])
        found = dict(self.terms)
        for monomial, coefficient in other.terms:  # fewer of them, and the others stay as they are
            before = found.get(monomial)
            if before is not None:
                coefficient = rounded_sum(before, coefficient)
            if coefficient:
                found[monomial] = coefficient
            else:
                del found[monomial]
        return Poly(frozenset(found.items()))

    def __mul__(self, other: "Poly") -> "Poly":
        if len(self.terms) * len(other.terms) > LARGEST:
            raise TooLarge
        if (self.number == 0 and other.number is None) or (other.number == 0 and self.number is None):
            if _FINITE.get():
                return constant(0)
            raise NotFinite
        size, again = single(self), single(other)
        if size is not None and again is not None and size[0] == again[0] and size[0][0] == "abs":  # |z|·|z| = z²
            z: Poly = size[0][1]
            squared: Poly = z * z
            return squared.scaled(size[1] * again[1])
        return collect((product(a, b), c * d) for a, c in self.terms for b, d in other.terms)

    def __neg__(self) -> "Poly":
        return self.scaled(-1)

    def __sub__(self, other: "Poly") -> "Poly":
        return self + -other

    def scaled(self, factor: float) -> "Poly":
        if factor == 0 and self.number is None and not _FINITE.get():
            raise NotFinite
        if factor == 1:
            return self
        if factor == -1:
            return Poly(frozenset([(m, -c) for m, c in self.terms]))
        return collect((m, c * factor) for m, c in self.terms)

    @property
    def number(self) -> float | None:
        """The value of a constant; None of anything else."""
        if not self.terms:
            return 0.0
        ((monomial, coefficient),) = self.terms if len(self.terms) == 1 else ((None, 0.0),)
        return coefficient if monomial == ONE else None

    def sign(self) -> int:
        """1 or −1, and the opposite for the negative polynomial: the sign of the first monomial's coefficient."""
        return 1 if not self.terms or self.first > 0 else -1

    @cached_property
    def first(self) -> float:
        """The coefficient of the first monomial, in an order that is the same for every polynomial."""
        if len(self.terms) == 1:
            ((_, coefficient),) = self.terms
            return coefficient
        return min(self.terms, key=lambda term: repr_key(term[0]))[1]

    @cached_property
    def key(self) -> str:
        """A text by which polynomials are ordered: equal for equal ones, and short."""
        text = "+".join(sorted(f"{c}{repr_key(m)}" for m, c in self.terms))
        return text if len(text) < 200 else hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def reduced(self) -> dict[Any, "Poly"]:
        """Its sums and means that are known, by what they are over."""
        return {}

    @cached_property
    def atoms(self) -> frozenset[Atom]:
        """Its atoms, whatever their exponents."""
        return frozenset([a for monomial, _ in self.terms for a, _ in monomial])

    @cached_property
    def inside(self) -> tuple[frozenset[str], frozenset[Any]]:
        """The names of its functions, and its leaves."""
        names: set[str] = set()
        leaves: set[Any] = set()

        def visit(part: Any) -> None:
            if isinstance(part, Poly):
                names.update(part.inside[0])
                leaves.update(part.inside[1])
            elif isinstance(part, frozenset):
                for item in part:
                    visit(item)
            elif isinstance(part, tuple) and part:
                if part[0] == "leaf":
                    leaves.add(part[1])
                    return
                if isinstance(part[0], str):
                    names.add(part[0])
                for item in part:
                    if not isinstance(item, str | int | float):
                        visit(item)

        for a in self.atoms:
            visit(a)
        return frozenset(names), frozenset(leaves)

    @cached_property
    def above(self) -> dict[Any, frozenset[str]]:
        """For each leaf, the names of the functions that it is an argument of, or a part of one."""
        found: dict[Any, frozenset[str]] = {}

        def visit(part: Any, names: frozenset[str]) -> None:
            if isinstance(part, Poly):
                for leaf, more in part.above.items():
                    found[leaf] = found.get(leaf, names).union(names, more)
            elif isinstance(part, frozenset | tuple):
                if isinstance(part, tuple) and part and isinstance(part[0], str):
                    if part[0] == "leaf":
                        found[part[1]] = found.get(part[1], names) | names
                        return
                    names, part = names | {part[0]}, part[1:]
                for item in part:
                    visit(item, names)

        for a in self.atoms:
            visit(a, frozenset())
        return found

    @cached_property
    def powers(self) -> frozenset[str]:
        """The names of its functions that have an exponent somewhere, as of a square."""
        names: set[str] = set()

        def visit(part: Any) -> None:
            if isinstance(part, Poly):
                names.update(part.powers)
            elif isinstance(part, frozenset | tuple):
                if isinstance(part, tuple) and part and part[0] == "leaf":
                    return
                for item in part:
                    visit(item)

        for monomial, _ in self.terms:
            for a, exponent in monomial:
                if exponent != 1 and a[0] not in ("leaf", "sum of"):
                    names.add(a[0])
        for a in self.atoms:
            visit(a)
        return frozenset(names)

    @cached_property
    def of_numbers(self) -> bool:
        """Is it computed of tensors of one element alone? Some models hold a number as a tensor of one dimension."""
        return bool(self.inside[1]) and all(map(is_number, self.inside[1]))

    @cached_property
    def reductions(self) -> frozenset[tuple[str, Any]]:
        """Its sums and means, each by the dimensions."""
        found: set[tuple[str, Any]] = set()

        def visit(part: Any) -> None:
            if isinstance(part, Poly):
                found.update(part.reductions)
            elif isinstance(part, frozenset | tuple):
                if isinstance(part, tuple) and len(part) > 2 and part[0] in ("sum", "mean"):
                    found.add((part[0], part[2]))
                for item in part:
                    visit(item)

        for a in self.atoms:
            visit(a)
        return frozenset(found)


def is_number(leaf: Any) -> bool:
    return sizes(value_of(leaf)) in ((), (1,))


def repr_key(monomial: Monomial) -> str:
    return "*".join(sorted(f"{atom_key(a)}^{e}" for a, e in monomial))


def atom_key(atom: Any) -> str:
    if isinstance(atom, Poly):
        return atom.key
    if isinstance(atom, frozenset):
        return "{" + ",".join(sorted(map(atom_key, atom))) + "}"
    if isinstance(atom, tuple):
        return "(" + ",".join(map(atom_key, atom)) + ")"
    return str(atom)


# How many functions of functions a text shows.
_DEEPEST_TEXT = 4


def text(part: Any, most: int = 60) -> str:
    """A part of an expression as a reader would write it."""

    def written(part: Any, depth: int) -> str:
        if depth > _DEEPEST_TEXT:
            return "…"
        if isinstance(part, Poly):
            return " + ".join(sorted(term(m, c, depth) for m, c in part.terms))
        if isinstance(part, frozenset):
            return ", ".join(sorted(written(p, depth) for p in part))
        if isinstance(part, tuple) and part and part[0] in ("leaf", "sum of"):
            return str(part[1]) if part[0] == "leaf" else f"({written(part[1], depth)})"
        if isinstance(part, tuple) and part and isinstance(part[0], str):
            return f"{part[0]}({', '.join(written(p, depth + 1) for p in part[1:])})"
        return str(part)

    def monomial(m: Monomial, depth: int) -> str:
        return "·".join(sorted(written(a, depth) + (f"^{e:g}" if e != 1 else "") for a, e in m)) or "1"

    def term(m: Monomial, c: float, depth: int) -> str:
        return f"{c:g}" if not m else monomial(m, depth) if c == 1 else f"{c:g}·{monomial(m, depth)}"

    found = monomial(part, 0) if isinstance(part, frozenset) else written(part, 0)
    return found if len(found) <= most else f"{found[:most]}…"


def rounded_sum(a: float, b: float) -> float:
    """A coefficient that comes from several terms: 0 where all but the last digits are gone."""
    total = a + b
    if not math.isfinite(total):
        raise NotFinite
    return rounded(total) if abs(total) > 1e-14 else 0.0


def collect(terms: Iterable[tuple[Monomial, float]]) -> Poly:
    found: dict[Monomial, float] = {}
    for monomial, coefficient in terms:
        found[monomial] = found.get(monomial, 0.0) + coefficient
    if len(found) > LARGEST:
        raise TooLarge
    of_monomials = [(m, rounded_sum(c, 0.0)) for m, c in found.items()]
    return Poly(frozenset([term for term in of_monomials if term[1]]))


class Narrowed(TooLarge):
    """An identity does not hold everywhere: x / x is 1, but not at 0."""


def product(a: Monomial, b: Monomial) -> Monomial:
    exponents = dict(a)
    for atom, e in b:
        before = exponents.get(atom, 0)
        if before * e < 0 or (whole(before + e) and not whole(e)):  # as x · x⁻¹, or √x · √x
            raise Narrowed
        exponents[atom] = before + e
    return frozenset((atom, e) for atom, e in exponents.items() if e != 0)


def constant(x: float) -> Poly:
    return collect([(ONE, float(x))])


def atom(name: str, *parts: Any) -> Poly:
    return Poly(frozenset({(frozenset({((name, *parts), 1.0)}), 1.0)}))


def single(p: Poly) -> tuple[Atom, float] | None:
    """The atom a and the coefficient c of a polynomial c·a; None of any other polynomial."""
    if len(p.terms) != 1:
        return None
    ((monomial, coefficient),) = p.terms
    if len(monomial) != 1:
        return None
    ((found, exponent),) = monomial
    return (found, coefficient) if exponent == 1 else None


def whole(exponent: float) -> bool:
    return exponent == int(exponent)


def power(p: Poly, exponent: float) -> Poly:
    exponent = rounded(exponent)
    number = p.number
    if number is not None:
        if (number == 0 and exponent <= 0) or (number < 0 and exponent != int(exponent)):
            raise TooLarge
        return constant(number**exponent)
    if exponent == 0:
        return constant(1)
    integral = whole(exponent)
    found = single(p)
    if found is not None and found[0][0] == "abs" and whole(exponent / 2):  # |z|² = z²
        inside: Poly = found[0][1]
        return power(inside.scaled(found[1]), exponent)
    if integral and 1 <= exponent <= 4:
        result = p
        for _ in range(int(exponent) - 1):
            result = result * p
        return result
    if exponent == -1:
        z = exponential_plus_one(p)
        if z is not None:
            return sigmoid(-z)
    if len(p.terms) == 1:
        ((monomial, coefficient),) = p.terms
        if integral:
            if any(whole(e * exponent) and not whole(e) for _, e in monomial):  # as (√x)⁻²
                raise Narrowed
            return Poly(
                frozenset({(frozenset((a, e * exponent) for a, e in monomial), rounded(coefficient**exponent))})
            )
    # the base gets the coefficient 1, so that (2a + 2b)^-1 is half of (a + b)^-1
    scale = p.first
    if scale < 0 and not integral:
        scale = -scale
    base = p.scaled(1 / scale)
    if len(base.terms) == 1:
        ((monomial, coefficient),) = base.terms
        if coefficient == 1 and len(monomial) == 1:
            ((found, e),) = monomial
            if e == 1:  # another exponent stays inside, since (x²)^½ is not x
                return Poly(frozenset({(frozenset({(found, exponent)}), rounded(scale**exponent))}))
    return Poly(frozenset({(frozenset({(("sum of", base), exponent)}), rounded(scale**exponent))}))


def exponential_plus_one(p: Poly) -> Poly | None:
    """z of a polynomial 1 + exp(z); None of any other."""
    rest = p - constant(1)
    found = single(rest)
    if found is not None and found[0][0] == "exp" and found[1] == 1:
        z: Poly = found[0][1]
        return z
    return None


def sigmoid(z: Poly) -> Poly:
    return constant(1) - atom("sigmoid", -z) if z.sign() < 0 else atom("sigmoid", z)


def softplus(z: Poly) -> Poly:
    found = single(z)
    if found is not None and found[0][0] == "abs":  # log(1 + e^−|x|) = log(1 + eˣ) − max(x, 0)
        inner: Poly = found[0][1].scaled(abs(found[1]))
        return softplus(inner) - relu(inner) + (z if found[1] > 0 else constant(0))
    return atom("softplus", -z) + z if z.sign() < 0 else atom("softplus", z)


def absolute(z: Poly) -> Poly:
    if z.number is not None:
        return constant(abs(z.number))
    # the first term gets the coefficient 1, so that |2a − 2b| is twice |a − b|
    scale = z.first
    return atom("abs", z.scaled(1 / scale)).scaled(abs(scale))


def relu(z: Poly) -> Poly:
    return (z + absolute(z)).scaled(0.5)


def exponential(z: Poly) -> Poly:
    shift = dict(z.terms).get(ONE, 0.0)
    found = single(z - constant(shift)) if shift else single(z)
    if found is not None and found[0][0] == "log_softmax" and found[1] == 1:
        return atom("softmax", *found[0][1:]).scaled(shortened(math.exp(shift)))
    if not shift and found is not None and found[0][0] == "cross_entropy" and found[1] != -1:  # powers of a probability
        return power(atom("exp", z.scaled(-1 / found[1])), -found[1])
    of = log_of_sigmoid_power(z)
    return atom("exp", z) if of is None else power(sigmoid(of[0]), of[1])


def log_of_sigmoid_power(p: Poly) -> tuple[Poly, float] | None:
    """z and k of a polynomial k·log σ(z) with k > 0, which is −k·softplus(−z); None of any other.

    softplus(−z) stands as softplus(z) − z where the sign of −z is not the first one.
    """
    found = [(a, c) for m, c in p.terms if len(m) == 1 for a, e in m if a[0] == "softplus" and e == 1]
    if len(found) != 1 or found[0][1] >= 0:
        return None
    inner: Poly = found[0][0][1]
    k = -found[0][1]
    for z in (inner, -inner):
        if close(softplus(-z).scaled(-k), p):
            return z, k
    return None


def ratio(p: Poly, q: Poly) -> float | None:
    """c of p = c·q, but for the last digits of coefficients, which come from products of rounded numbers; or None."""
    if p == q:
        return 1.0
    if len(p.terms) != len(q.terms) or not p.terms:
        return None
    a, b = dict(p.terms), dict(q.terms)
    if a.keys() != b.keys():
        return None
    first = next(iter(a))
    c = a[first] / b[first]
    if not all(abs(a[m] - c * b[m]) <= 1e-9 * abs(a[m]) for m in a):
        return None
    return shortened(c)


def shortened(c: float) -> float:
    """A short number that another is but for the last digits: it is the program's own. Any other number as it is."""
    short = float(f"{c:.9g}")
    return short if abs(short - c) <= 2e-11 * abs(c) else c


def close(p: Poly, q: Poly) -> bool:
    """Are two polynomials one but for the last digits of coefficients?"""
    return ratio(p, q) == 1


def common_leaves(polys: Sequence[Poly]) -> dict[Atom, float]:
    """The leaves that every term of polynomials is multiplied or divided by once, with the exponents 1 or −1, and that
    they hold nowhere else."""
    terms = [monomial for p in polys for monomial, _ in p.terms]
    if not terms:
        return {}
    shared = frozenset.intersection(*terms)
    found = {a: e for a, e in shared if a[0] == "leaf" and e in (1, -1)}
    if found:
        rest = frozenset[Any]().union(*(leaves(without(p, found)) for p in polys))
        found = {a: e for a, e in found.items() if a[1] not in rest}
    return found


def without(p: Poly, factors: dict[Atom, float]) -> Poly:
    """A polynomial without factors that each of its terms has."""
    return Poly(frozenset((monomial.difference(factors.items()), c) for monomial, c in p.terms))


def logarithm(p: Poly) -> Poly:
    if p.number is not None:
        if p.number <= 0:
            raise NotFinite
        return constant(math.log(p.number))
    z = exponential_plus_one(p)
    if z is not None:
        return softplus(z)
    halves: dict[Poly, float] = {a[1]: c for m, c in p.terms if len(m) == 1 for a, e in m if a[0] == "exp" and e == 1}
    if len(halves) == len(p.terms) == 2 and len(set(halves.values())) == 1:
        one, other = halves
        if one == -other and halves[one] > 0:  # c·(eᶻ + e⁻ᶻ), which is 2c·cosh z
            twice: Poly = one.scaled(2)
            scale = constant(math.log(halves[one]))
            return softplus(twice) - one + scale
    found = single(p)
    if found is not None and found[1] == 1 and found[0][0] == "softmax":
        return atom("log_softmax", *found[0][1:])
    if found is not None and found[1] == 1 and found[0][0] == "sigmoid":
        return -softplus(-found[0][1])
    for_complement = single(constant(1) - p)
    if for_complement is not None and for_complement[1] == 1 and for_complement[0][0] == "sigmoid":
        return -softplus(for_complement[0][1])
    return atom("log", p)


def odd(name: str) -> Callable[[Poly], Poly]:
    return lambda z: -atom(name, -z) if z.sign() < 0 else atom(name, z)


# Comparisons with 0, and with infinity.
COMPARISONS = frozenset({"gt", "ge", "eq", "isinf"})
INDICATORS = COMPARISONS | {"one_hot", "eye"}


def compare(name: str, p: Poly) -> Poly:
    """1 where p > 0, p >= 0 or p == 0, else 0."""
    number = p.number
    if number is not None:
        return constant({"gt": number > 0, "ge": number >= 0, "eq": number == 0}[name])
    return atom(name, -p if name == "eq" and p.sign() < 0 else p)


def mask(p: Poly) -> bool:
    """Is it one comparison, or a product of several, so that it is 0 or 1 everywhere?"""
    if len(p.terms) != 1:
        return False
    ((monomial, coefficient),) = p.terms
    return bool(monomial) and coefficient == 1 and all(found[0] in COMPARISONS for found, _ in monomial)


def indicator(p: Poly) -> bool:
    """Is it a product of comparisons and indicators of classes or of a diagonal, so that it is 0 or 1 everywhere?"""
    if len(p.terms) != 1:
        return False
    ((monomial, coefficient),) = p.terms
    return bool(monomial) and coefficient == 1 and all(found[0] in INDICATORS and e > 0 for found, e in monomial)


def choices(p: Poly) -> bool:
    """Is it a small whole number everywhere, exact in any dtype: a sum of comparisons and indicators, or an index?"""
    kinds = INDICATORS | {"truncated"}
    names = [{found[0] for found, _ in monomial} for monomial, _ in p.terms]
    return any(names) and all(n <= kinds for n in names) and all(whole(c) and abs(c) <= 8 for _, c in p.terms)


def positive(p: Poly) -> bool:
    """Is it above 0 for finite elements: a sum of probabilities and the like?"""
    kinds = {"softmax", "sigmoid", "exp"}
    return bool(p.terms) and all(c > 0 and all(found[0] in kinds for found, _ in m) for m, c in p.terms)


def unmasked_targets(p: Poly, condition: Poly) -> Poly:
    """A value that counts only where a condition does not hold: class indices that were filled where it holds are
    those from before."""

    def filled(monomial: Monomial) -> bool:
        return any(a[0] == "where" and a[1] == condition for a, _ in monomial)

    result = constant(0)
    for monomial, coefficient in p.terms:
        term = constant(coefficient)
        for found, exponent in monomial:
            if found[0] == "cross_entropy":
                target: Poly = found[2]
                kept = Poly(frozenset((m, c) for m, c in target.terms if not filled(m)))
                found = (*found[:2], kept, *found[3:])
            term = term * Poly(frozenset({(frozenset({(found, exponent)}), 1.0)}))
        result = result + term
    return result


# Functions that have a value wherever their arguments have one.
_TOTAL = frozenset({"leaf", "component", "maximum", "minimum", "abs", "sigmoid", "softplus", "tanh", "atan", "clamp"})


def total(part: Any) -> bool:
    """Has a polynomial a value that is not NaN wherever its leaves have one? One with a root or a quotient has not."""
    if isinstance(part, Poly):
        return all(whole(e) and e > 0 and total(a) for monomial, _ in part.terms for a, e in monomial)
    if isinstance(part, frozenset):
        return all(map(total, part))
    if isinstance(part, tuple) and part:
        return part[0] in _TOTAL and (
            part[0] == "leaf" or all(total(p) for p in part[1:] if isinstance(p, Poly | frozenset))
        )
    return True


def clamp(z: Poly, low: float | None, high: float | None) -> Poly:
    if low == 0 and high is None:
        return relu(z)
    if low is None and high is None:
        return z
    return atom("clamp", z, low, high)


def leaves(p: Poly) -> frozenset[Any]:
    """The leaves below a polynomial."""
    return p.inside[1]


def names(p: Poly) -> frozenset[str]:
    """The names of the functions in a polynomial."""
    return p.inside[0]

"""Matrices of products of vectors, in normal form: what is a number stands outside, what transposes at the leaves."""

from ..graph.calls import sizes, value_of
from . import algebra
from .algebra import Atom, Poly, atom, constant
from .values import Opaque, Value

# Functions of elements, which a transposition goes past.
_OF_ELEMENTS = frozenset({"sum of", "softplus", "sigmoid", "exp", "tanh", "abs"})


def poly_of(a: Atom, exponent: float = 1.0) -> Poly:
    return Poly(frozenset({(frozenset({(a, exponent)}), 1.0)}))


def parted(p: Poly) -> tuple[Poly, Poly]:
    """The number and the matrix whose product a polynomial of one term is."""
    if len(p.terms) != 1:
        raise Opaque("a product of sums")
    ((monomial, coefficient),) = p.terms
    number, matrix = constant(coefficient), []
    for a, exponent in monomial:
        if poly_of(a).of_numbers:
            number = number * poly_of(a, exponent)
        else:
            matrix.append((a, exponent))
    if len(matrix) != 1 or matrix[0][1] != 1 or matrix[0][0][0] not in ("leaf", "transposed"):
        raise Opaque("a product of functions")
    return number, Poly(frozenset({(frozenset(matrix), 1.0)}))


def multiplied(a: Poly, b: Poly) -> Poly:
    """The product of two matrices."""
    (of_a, a), (of_b, b) = parted(a), parted(b)
    return of_a * of_b * atom("matmul", a, b)


def transposed(p: Poly) -> Poly:
    """The same elements with rows for columns."""

    def turned(a: Atom) -> Poly:
        name, *parts = a
        if poly_of(a).of_numbers or name == "eye":
            return poly_of(a)
        if name == "matmul":
            return atom("matmul", transposed(parts[1]), transposed(parts[0]))
        if name == "transposed":
            inner: Poly = parts[0]
            return inner
        if name == "leaf":
            shape = sizes(value_of(parts[0]))
            if shape is None or len(shape) != 2:
                raise Opaque("no matrix")
            return atom("transposed", poly_of(a))
        if name in _OF_ELEMENTS and all(isinstance(part, Poly) for part in parts):
            return atom(name, *map(transposed, parts))
        raise Opaque("no matrix")

    result = constant(0)
    for monomial, coefficient in p.terms:
        term = constant(coefficient)
        for a, exponent in monomial:
            term = term * algebra.power(turned(a), exponent)
        result = result + term
    return result


def transposed_value(x: Value) -> Value:
    if x.shape is None or len(x.shape) != 2 or x.shape != x.base:
        raise Opaque("no matrix")
    return Value(transposed(x.poly), x.shape[::-1], x.shape[::-1])

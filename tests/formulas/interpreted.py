"""Expressions computed by torch: an oracle for what is printed of them, and for their derivatives."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from opreg.formulas.expression import Expr, name_of, number, walk

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg": torch.neg, "pow": torch.pow,
    "sqrt": torch.sqrt, "abs": torch.abs, "sign": torch.sign, "exp": torch.exp, "expm1": torch.expm1, "log": torch.log,
    "log1p": torch.log1p, "sigmoid": torch.sigmoid, "softplus": torch.nn.functional.softplus, "tanh": torch.tanh,
    "sinh": torch.sinh, "cosh": torch.cosh, "sin": torch.sin, "cos": torch.cos, "atan": torch.atan, "erf": torch.erf,
    "erfc": torch.erfc, "relu": torch.relu, "floor": torch.floor, "where": torch.where, "detach": torch.detach,
    "dsigmoid": lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
    "log_cosh": lambda x: x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - math.log(2),
    "log1mexp": lambda u: torch.log(-torch.expm1(-u)),
    "lt": torch.lt, "le": torch.le, "eq": torch.eq, "and": torch.logical_and, "or": torch.logical_or,
    "not": torch.logical_not, "max": torch.maximum, "min": torch.minimum,
    "clamp_min": torch.maximum, "clamp_max": torch.minimum, "maximum": torch.maximum, "minimum": torch.minimum,
    "at_least": torch.maximum, "at_most": torch.minimum, "exp_negative": torch.exp,
    "inverse_1p_unit": lambda e: 1 / (1 + e), "log1p_unit": torch.log1p, "log1m": lambda x: torch.log1p(-x),
    "one_minus_exp": lambda u: -torch.expm1(-u), "pow_unit": torch.pow, "atan2": torch.atan2,
}  # fmt: skip


def interpreted(root: Expr, given: Mapping[str, Tensor | float]) -> Tensor:
    """The number of an expression, given tensors and options by name, in float64."""
    values: dict[Expr, Tensor] = {}
    for e in walk(root):
        if e.op == "const":
            values[e] = torch.tensor(number(e), dtype=torch.float64)
        elif e.op in ("input", "option"):
            values[e] = torch.as_tensor(given[name_of(e)], dtype=torch.float64)
        else:
            values[e] = _FUNCTIONS[e.op](*(values[a] for a in e.args))
    return values[root]

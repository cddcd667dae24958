"""Whose functions are timed: ours, eager, Inductor's, a peer's; and the check that they compute the same."""

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..op import Op
from ..testing import joined
from .cases import Case, in_dtype

# Relative to the largest entry; eager rounds after every step, so half precision is coarse.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
JUMPS = 1e-5  # of a gradient's elements
NATIVE = "torch.nn.functional."

Function = Callable[..., Any]


class Disagreement(RuntimeError):
    """Two providers compute different things: nothing is timed."""


def check_agreement(
    title: str, ours: Sequence[Tensor], eager: Sequence[Tensor], dtype: torch.dtype, other: str = "eager"
) -> None:
    """Value and gradient of ours are those of eager.

    Raises:
        Disagreement: they differ by more than ``TOLERANCE`` times eager's largest entry, or are not finite. Of a
            gradient, ten elements in a million may differ by twice that entry: where it jumps, as a sign does,
            the last digit of the input decides.
    """
    for what, a, b in zip(("value", "gradient"), ours, eager, strict=True):
        finfo = torch.finfo(dtype)
        largest = b.abs().max().item()
        # a mean's gradient may be subnormal in half precision: one step there is no disagreement
        allowed = TOLERANCE[dtype] * largest + 2 * finfo.smallest_normal * finfo.eps
        apart = (a.double() - b.double()).abs() if a.shape == b.shape else torch.tensor(math.inf)
        error = apart.max().item()
        jumps = what == "gradient" and error <= 2 * largest and (apart > allowed).sum() <= JUMPS * apart.numel()
        if not (error <= allowed or jumps):
            raise Disagreement(
                f"{title}: expected {other}'s {what} within {allowed:.1e}, got a difference of {error:.1e}"
            )


def value_and_gradient(case: Case, function: Function) -> tuple[Tensor, Tensor]:
    args, x = case.with_gradient()
    y = joined(function(**args))
    return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]


def eager_of(op: Op) -> Function:
    return op.native or op.reference


def eager_for(case: Case) -> Function:
    """The same for one case: torch's own function may have no kernel for its dtype."""
    if case.op.native is not None:
        try:
            with torch.no_grad():
                case.op.native(**case.args)
        except NotImplementedError:
            return case.op.reference
    return eager_of(case.op)


def check_values(case: Case, dtype: torch.dtype) -> None:
    """Ours against eager, and where they differ, against eager in float64: it may be eager that loses the digits."""
    ours = value_and_gradient(case, case.op.value)
    try:
        check_agreement(case.title, ours, value_and_gradient(case, eager_for(case)), dtype)
    except Disagreement:
        check_agreement(case.title, ours, value_and_gradient(in_dtype(case, torch.float64), eager_of(case.op)), dtype)


def is_native(case: Case) -> bool:
    """Is eager one function of ATen, not a composition written in Python?"""
    return any(s.startswith("aten.") for s in case.op.spellings) and eager_for(case) is case.op.native


def as_called(case: Case, args: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments as a user would write them: those that have no default by place, others where they differ."""
    defaults = case.op.defaults
    options = {n: a for n, a in args.items() if n in defaults and (isinstance(a, Tensor) or a != defaults[n])}
    return [a for name, a in args.items() if name not in defaults], options


def as_a_user(case: Case, args: Mapping[str, Any]) -> tuple[Function, list[Any], dict[str, Any]]:
    """What eager is: the function of ``torch.nn.functional``, called as a user would; else what computes the same.

    ``Op.native`` may wrap that function to take all that the op takes, which costs time at a small size.
    """
    name = next((s.removeprefix(NATIVE) for s in case.op.spellings if s.startswith(NATIVE)), None)
    if case.op.native is not None and name is not None:
        function = getattr(torch.nn.functional, name)
        places, options = as_called(case, args)
        try:
            with torch.no_grad():
                ours, result = joined(case.op.value(**case.args)), joined(function(*places, **options))
            # a function that reduces otherwise, or takes fewer dtypes, is called through the wrapper
            if torch.allclose(result.double(), ours.double(), rtol=TOLERANCE[result.dtype], atol=1e-6):
                return function, places, options
        except (TypeError, RuntimeError):
            pass
    return eager_for(case), [], dict(args)


def can_be_compiled(op: Op) -> bool:
    """An unrolled reference would take minutes, and there may be no other function."""
    return not op.unrolled or op.native is not None


def compiled(case: Case, args: Mapping[str, Any]) -> tuple[str, Function]:
    """Inductor's compilation of the eager function, else of the reference; and which of them it was.

    Where that is unrolled: the eager function with graph breaks.
    """
    second = ("native, graph breaks", case.op.native) if case.op.unrolled else ("reference", case.op.reference)
    error: Exception | None = None
    for name, text in (("native", case.op.native), second):
        if text is not None:
            torch.compiler.reset()

            def eager(text: Function = text, **args: Any) -> Any:
                return text(**args)

            function: Function = torch.compile(eager, fullgraph="breaks" not in name)
            try:
                function(**args)
            except RuntimeError as e:  # Dynamo's errors: it can't capture the function whole
                error = e
                continue
            return name, function
    raise RuntimeError(f"{case.title}: expected a function that torch.compile can capture whole") from error


@dataclass(frozen=True)
class Peer:
    """A library's function that computes what an op does, of the op's arguments by name."""

    library: str
    function: Function


@dataclass(frozen=True)
class Peers:
    """The peers of a file: ``PEERS``, op name to ``Peer``; and which libraries are here, with their versions."""

    of: Mapping[str, Peer] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def get(self, op: Op) -> Peer | None:
        peer = self.of.get(op.short)
        return peer if peer is not None and peer.library in self.versions else None


@cache
def load_peers(path: Path) -> Peers:
    spec = importlib.util.spec_from_file_location("opreg_bench_peers", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"expected a Python file with PEERS, got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    versions = {}
    for library in dict.fromkeys(peer.library for peer in module.PEERS.values()):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return Peers(module.PEERS, versions)

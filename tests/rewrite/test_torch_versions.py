"""What other versions of torch put into graphs and tables, which the rewrite must not take for functions of ATen."""

import contextlib
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import opreg
from opreg.passes.graph.calls import aten_packet
from opreg.passes.graph.surgery import overload
from opreg.passes.graph.writes import fresh
from opreg.passes.modules.trace import dropped
from opreg.passes.normal_form.evaluate import pointwise


@pytest.mark.parametrize("name", [*dir(object), "__get__", "__call__", "__set__"])
def test_attributes_of_every_object_are_no_functions_of_torch(name):
    """A graph may call ``__get__`` of a property, or whatever else Dynamo of another version leaves in it."""
    assert not fresh(name)
    assert not pointwise(name)


def test_only_functions_have_overloads():
    assert aten_packet("__eq__") is None
    assert aten_packet("name") is None
    assert aten_packet("no_such_function") is None
    assert aten_packet("sum") is torch.ops.aten.sum


def test_an_overload_of_named_dimensions_is_never_taken():
    """torch 2.11 lists them, before those of numbers."""

    class Packet:
        __name__ = "sum"
        names = torch.ops.aten.mul.Scalar
        dim_DimnameList = torch.ops.aten.mul.Scalar
        dim_IntList = torch.ops.aten.sum.dim_IntList

        def overloads(self):
            return ["names", "dim_DimnameList", "dim_IntList"]

    x = torch.fx.Graph().placeholder("x")
    assert overload(Packet(), (x, [1]), {}) is torch.ops.aten.sum.dim_IntList


def test_an_argument_that_torch_forgets_to_record():
    """F.l1_loss of torch 2.13 hands everything but its weight to a tracer: the module keeps its own forward."""

    class Weighted(torch.nn.Module):
        def forward(self, x, t, w):
            return F.l1_loss(F.silu(x), t, weight=w)

    x, t, w = torch.randn(3, 4), torch.randn(3, 4), torch.rand(3, 4)
    fused, report = opreg.fuse(Weighted())
    torch.testing.assert_close(fused(x, t, w), Weighted()(x, t, w))
    records = "weight" in fx.symbolic_trace(Weighted()).code.split("l1_loss(")[1].split("\n")[0]
    assert bool(report.swapped) == records
    assert [e.why for e in report.left] == (
        [] if records else ["torch records l1_loss without its weight: write out what weight does"]
    )


FUNCTIONS = [n for n, f in vars(F).items() if inspect.isfunction(f) and not n.startswith("_")]


def forgotten(name):
    """What a function of torch.nn.functional forgets of all that it can be given, and what of that is seen; None where
    it hands nothing to who records it."""
    function, recorded = getattr(F, name), []

    class Recorder:
        @classmethod
        def __torch_function__(cls, called, types, args=(), kwargs=None):
            recorded.append((called, dropped(called, args, kwargs or {}), {*args, *(kwargs or {}).values()}))

    given = {n: Recorder() for n in inspect.signature(function).parameters}
    with contextlib.suppress(Exception):  # of what is no call that it could record
        function(**given)
    own = [
        ({n for n, a in given.items() if a not in kept}, seen) for called, seen, kept in recorded if called is function
    ]
    return own[0] if own else None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_torch_forgets_is_seen(name):
    if (found := forgotten(name)) is not None:
        lacking, seen = found
        assert lacking == ({seen} if seen else set())


def test_most_functions_are_recorded():
    assert sum(forgotten(name) is not None for name in FUNCTIONS) > 60

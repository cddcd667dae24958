"""The checks of ``opreg.testing.check``, one a method."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ..meta.fakes import result_dtype
from ..meta.schema import bind, results_of
from ..op import Op, Sample
from .report import Report
from .samples import Maker, as_function, differentiable_function, joined, tensors_with_grad

# Finite differences cost a call for each element.
_LARGEST_FOR_DIFFERENCES = 80
# Of float32: how many units in the last place a kernel may lose by itself, half of its digits; and how many times as
# much as an argument changed by one such unit would change the result.
_UNITS, _OF_CONDITION = 2048, 16
# Below these a float32 kernel may give 0, and a number of 16 bits has no digits left.
_SMALLEST = {torch.float32: 1e-36, torch.bfloat16: 1e-36, torch.float16: 1e-6}
# Multiples of the first argument at which digits are lost, if they are.
_SCALES = (1.0, 2.0**-10, 16.0)


class Checks:
    def __init__(self, op: Op, device: str) -> None:
        self.op, self.device, self.report = op, device, Report(op.qualname)

    def run(self) -> Report:
        if self.op.mutated:
            self.update()
        else:
            for index, sample in enumerate(self.samples(torch.float64)):
                self.of_sample(index, sample)
            for dtype in _SMALLEST:
                for index, sample in enumerate(self.samples(dtype)):
                    self.precision(index, sample, dtype)
            for index, sample in enumerate(self.op.samples(Maker(torch.bfloat16, self.device))):
                self.autocast(index, sample)
        self.errors()
        return self.report

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        return self.op.samples(Maker(dtype, self.device, requires_grad=True))

    @contextmanager
    def trying(self, what: str, index: int, sample: Sample) -> Iterator[None]:
        """Counts a check; where it fails, says which it is."""
        try:
            yield
        except Exception as error:
            name = f" ({sample.name})" if sample.name else ""
            raise AssertionError(f"{self.op.qualname}: {what} of sample {index}{name}: {error}") from error
        self.report.tried[what] += 1

    def skip(self, what: str, why: str) -> None:
        self.report.skipped[what, why] += 1

    def of_sample(self, index: int, sample: Sample) -> None:
        op = self.op
        inputs = list(tensors_with_grad(op, sample).values())
        function, reference = as_function(op, sample, op.value), as_function(op, sample, op.call_reference)
        result = function(*inputs)
        with self.trying("value against the reference", index, sample):
            torch.testing.assert_close(result, reference(*inputs), equal_nan=True)
        with self.trying("the same bits again", index, sample):
            self.repeat(function, inputs)
        if result.isnan().any():  # opcheck holds NaN unequal to NaN
            return self.skip("opcheck, strides and derivatives", "the result has a NaN")
        with self.trying("opcheck: schema, fake, autograd, compile", index, sample):
            torch.library.opcheck(op.value, sample.args, sample.kwargs)
        with self.trying("other strides", index, sample):
            self.strides(sample, result)
        if not inputs:
            return self.skip("derivatives", "nothing requires a gradient")
        if not sample.smooth:
            return self.skip("derivatives", "the sample is not smooth")
        with self.trying("gradients against the reference", index, sample):
            for ours, expected in zip(gradients(function, inputs), gradients(reference, inputs), strict=True):
                torch.testing.assert_close(ours, expected)
        if sum(t.numel() for t in inputs) > _LARGEST_FOR_DIFFERENCES:
            return self.skip("finite differences and torch.func", f"more than {_LARGEST_FOR_DIFFERENCES} elements")
        in_domain = differentiable_function(op, sample)
        with self.trying("gradients against finite differences", index, sample):
            gradcheck(in_domain, inputs)
        if op.second_derivative:
            with self.trying("second derivatives against finite differences", index, sample):
                gradgradcheck(in_domain, inputs)
        else:
            self.skip("second derivatives", "the declaration says that there is none")
        with self.trying("torch.func: grad, and vmap of it", index, sample):
            self.transforms(function, inputs)

    def repeat(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        """Value and gradients have the same bits, whatever the number of threads."""
        threads, runs = torch.get_num_threads(), []
        try:
            for count in (threads, threads, 1, 2):
                torch.set_num_threads(count)
                result = function(*inputs)
                runs.append([result, *(gradients(function, inputs) if inputs and result.requires_grad else [])])
        finally:
            torch.set_num_threads(threads)
        for run in runs[1:]:
            for first, again in zip(runs[0], run, strict=True):
                torch.testing.assert_close(again, first, rtol=0, atol=0, equal_nan=True)

    def strides(self, sample: Sample, result: Tensor) -> None:
        """The same tensors with every second element of a wider one: another layout in memory."""

        def spread(a: Any) -> Any:
            if not isinstance(a, Tensor) or a.dim() == 0:
                return a
            wide = torch.stack([a.detach(), torch.full_like(a, 1)], -1)
            return wide[..., 0]

        args, kwargs = [spread(a) for a in sample.args], {n: spread(a) for n, a in sample.kwargs.items()}
        torch.testing.assert_close(joined(self.op.value(*args, **kwargs)), result.detach())

    def transforms(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        first, *rest = (t.detach() for t in inputs)
        gradient = torch.func.grad(lambda x: function(x, *rest).sum())
        expected = torch.autograd.grad(function(*inputs).sum(), inputs[0])[0]
        torch.testing.assert_close(gradient(first), expected)
        torch.testing.assert_close(torch.func.vmap(gradient)(torch.stack([first, first]))[1], expected)

    def precision(self, index: int, sample: Sample, dtype: torch.dtype) -> None:
        """A dtype against float64, of the very same arguments."""
        bound = bind(self.op.value, sample.args, sample.kwargs)
        inputs = list(tensors_with_grad(self.op, sample).values())
        name = str(dtype).removeprefix("torch.")
        with self.trying(f"dtype of the result for {name}", index, sample):
            wanted = result_dtype(bound, self.op.rule.typed_by)
            for result in results_of(self.op.value(**bound)):
                assert result.dtype == wanted, f"expected {wanted}, got {result.dtype}"
        if not inputs or not sample.smooth:
            return self.skip(f"{name} against float64", "the sample is not smooth, or nothing requires a gradient")
        # a reduced result hides what single elements lose
        function = as_function(self.op, element_wise(self.op, sample), self.op.value)
        # of a sum, small results have no more digits than the terms that cancel in them; the gradient of an argument
        # that broadcasts is one
        shape = function(*inputs).shape
        sums = not self.op.rule.pointwise or any(t.shape != shape for t in inputs)
        for scale in _SCALES[:1] if sums else _SCALES:
            scaled = [(inputs[0].detach() * scale).requires_grad_(), *inputs[1:]]
            what = f"{name} against float64" + (f", first argument x {scale:g}" if scale != 1 else "")
            try:
                exact = value_and_gradients(function, scaled, torch.float64)
            except Exception:  # an argument outside of its domain is the op's own error
                self.skip(what, "the op refuses such arguments")
                continue
            if not all(t.isfinite().all() for t in exact):
                self.skip(what, "a result is not finite")
                continue
            with self.trying(what, index, sample):
                allowed = bounds(function, scaled, exact, dtype, whole=sums)
                for triple in zip(value_and_gradients(function, scaled, dtype), exact, allowed, strict=True):
                    require_digits(*triple)

    def autocast(self, index: int, sample: Sample) -> None:
        with self.trying("autocast", index, sample), torch.autocast(self.device, dtype=torch.bfloat16):
            wanted = torch.float32 if self.op.is_loss else torch.bfloat16
            for result in results_of(self.op.value(*sample.args, **sample.kwargs)):
                assert result.dtype == wanted, f"expected {wanted} under autocast, got {result.dtype}"

    def update(self) -> None:
        """Of an op that writes to its arguments: what it writes, against the reference."""
        op = self.op
        pairs = zip(op.samples(Maker(device=self.device)), op.samples(Maker(device=self.device)), strict=True)
        for index, (ours, same) in enumerate(pairs):
            with self.trying("what it writes, against the reference", index, ours):
                op.value(*ours.args, **ours.kwargs)
                op.write_reference(*same.args, **same.kwargs)
                torch.testing.assert_close(op.written(*ours.args, **ours.kwargs), op.written(*same.args, **same.kwargs))
            if op.written(*ours.args, **ours.kwargs):
                with self.trying("opcheck", index, ours):
                    torch.library.opcheck(op.value, ours.args, ours.kwargs)

    def errors(self) -> None:
        count = 0
        for error in self.op.errors(Maker(torch.float64, self.device)):
            count += 1
            got = "no error"
            try:
                self.op.value(*error.args, **error.kwargs)
            except RuntimeError as raised:
                got = str(raised)
            if not re.search(error.message, got):
                raise AssertionError(f"{self.op.qualname}: expected the error {error.message!r}, got {got}")
            self.report.tried["messages of errors"] += 1
        if not count:
            self.skip("messages of errors", "the declaration has no error samples")


def require_digits(ours: Tensor, true: Tensor, allowed: Tensor) -> None:
    # what the dtype has no number for, it may call infinite
    error = torch.where(true.to(ours.dtype) == ours, 0.0, (ours.double() - true).abs())
    if not (error <= allowed).all():
        worst = (error / allowed).nan_to_num(torch.inf).argmax()
        expected, bound, got = (t.flatten()[worst].item() for t in (true, allowed, ours))
        raise AssertionError(f"expected {expected:.9g} within {bound:.2g}, got {got:.9g}: digits are lost")


def element_wise(op: Op, sample: Sample) -> Sample:
    """The sample without reduction."""
    if not op.reduces:
        return sample
    bound = {**bind(op.value, sample.args, sample.kwargs), "reduction": "none"}
    return Sample((), bound, sample.name, sample.smooth)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of a sum of the result's elements with different weights, in each input; 0 where there is none."""
    result = function(*inputs)
    weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype, device=result.device)
    found = torch.autograd.grad(result, inputs, weights.reshape(result.shape), allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


def value_and_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    converted = [t.detach().to(dtype).requires_grad_() for t in inputs]
    return [function(*converted).detach(), *gradients(function, converted)]


def bounds(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    exact: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    whole: bool,
) -> list[Tensor]:
    """How far from float64 a dtype's results may be: some units in the last place (``whole``: of the largest number
    that comes in or goes out, for terms of that size cancel), and some times as far as the exact results move when each
    argument moves by one unit."""
    unit = torch.finfo(torch.float32).eps if dtype == torch.float32 else torch.finfo(dtype).eps
    moved = [torch.zeros_like(t) for t in exact]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        nudged = []
        for t in inputs:
            signs = 2 * torch.randint(0, 2, t.shape, generator=generator) - 1
            nudged.append(t.detach().double() * (1 + unit * signs.to(t.device)))
        for k, t in enumerate(value_and_gradients(function, nudged, torch.float64)):
            moved[k] = torch.maximum(moved[k], (t - exact[k]).abs().nan_to_num(torch.inf))
    # 16 bits are the storage's: the arithmetic has more
    units = _UNITS if dtype == torch.float32 else 4
    sizes = [t.abs() for t in exact]
    if whole:
        finite = (t for t in (*inputs, *exact) if t.numel() and t.isfinite().all())
        largest = max((float(t.detach().abs().max()) for t in finite), default=0.0)
        sizes = [torch.full_like(t, largest) for t in exact]
    return [units * unit * t + _OF_CONDITION * m + _SMALLEST[dtype] for t, m in zip(sizes, moved, strict=True)]

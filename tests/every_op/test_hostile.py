"""What no call may do, whatever it is given: end the process, read what is not its own, keep memory."""

import ctypes
import fcntl
import gc
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile_calls
import pytest
import torch
from torch import Tensor

import opreg
from conftest import DEVICE, ROOT, run_raw, samples_of
from opreg.meta.schema import bind, results_of
from opreg.testing import Maker, joined, tensors_with_grad

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="these look at the CPU's memory")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("part", range(2))
def test_hostile_calls(part: int) -> None:
    found = hostile_calls.run(750, seed=part)
    assert not found, "\n".join(f"{number}: {call}: {wrong}" for number, call, wrong in found)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.thorough
def test_hostile_calls_under_sanitizers() -> None:
    """As in make fuzz: in a library that reports every read and write beyond an allocation, and every overflow."""
    build = ROOT / "build" / "sanitized"
    build.mkdir(parents=True, exist_ok=True)
    options = [
        *("-DLOSSREG_CUDA=OFF", "-DLOSSREG_SANITIZE=ON"),
        f"-DLOSSREG_TORCH_DIR={Path(torch.__file__).parent}",
    ]
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = ["cmake", "-S", str(ROOT / "csrc"), "-B", str(build), *options]
        for command in (configure, ["cmake", "--build", str(build), "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    found = hostile_calls.run(400, folder=build)
    assert not found, "\n".join(f"{number}: {call}: {wrong}" for number, call, wrong in found)


def resized(op: opreg.Op, dtype: torch.dtype) -> Iterator[opreg.Sample]:
    """One sample for each combination of shapes, dtypes and tensors that are there."""
    seen = set()
    for sample in samples_of(op, dtype=dtype, requires_grad=True):
        bound = bind(op.value, sample.args, sample.kwargs)
        for old in sorted({size for a in bound.values() if isinstance(a, Tensor) for size in a.shape}):
            for new in {0, min(1, old)} - {old}:
                changed = hostile_calls.of_size(bound, old, new)
                kind = tuple((a.shape, a.dtype) if isinstance(a, Tensor) else None for a in changed.values())
                if (kind, changed.get("reduction")) not in seen:
                    seen.add((kind, changed.get("reduction")))
                    yield opreg.Sample((), changed, f"{sample.name}: {old} to {new}")


def outcome(op: opreg.Op, sample: opreg.Sample, namespace: Any) -> list[Tensor] | None:
    """Result, state and gradients, or None for an error in the op's own words."""
    try:
        return run_raw(namespace, op, sample)
    except RuntimeError as error:
        if not str(error).startswith(f"{op.short}: expected"):
            raise
        return None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_at_0_and_at_1(op: opreg.Op, dtype: torch.dtype) -> None:
    for sample in resized(op, dtype):
        got = outcome(op, sample, torch.ops.lossreg)
        if got is None:
            continue
        try:
            expected = joined(op.call_reference(*sample.args, **sample.kwargs))
        except (RuntimeError, IndexError):  # what torch has no answer for, as a norm of nothing
            continue
        tolerance = 1e-5 if dtype in (torch.float64, torch.float32) else 2e-2
        results = joined(got[: len(op.results)])
        torch.testing.assert_close(results, expected.detach(), rtol=tolerance, atol=tolerance, equal_nan=True)


# what tells the dtypes apart is in test_emulator.py
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_size_at_0_and_at_1_emulated(emulated: Any, op: opreg.Op, dtype: torch.dtype) -> None:
    emulated(1)
    for sample in resized(op, dtype):
        got, same = (outcome(op, sample, n) for n in (torch.ops.lossreg_emulated, torch.ops.lossreg))
        if same is None:  # on the CPU values are looked at too
            continue
        assert got is not None
        tolerance = 1e-5 if dtype in (torch.float64, torch.float32) else 2e-2
        for k, (a, b) in enumerate(zip(got, same, strict=True)):
            if k == len(op.results) and op.forward is not None and a.shape != b.shape:
                continue  # what a backend keeps for its backward pass; the gradients show whether it is right
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def backward_call(op: opreg.Op, sample: opreg.Sample) -> dict[str, Any]:
    """What autograd gives to ``NAME_backward``."""
    bound = bind(op.value, sample.args, sample.kwargs)
    bound = {n: a.detach() if isinstance(a, Tensor) else a for n, a in bound.items()}
    wanted = tensors_with_grad(op, sample)
    mask = [n in wanted for n in op.differentiable]
    asked = {"needs_input_grad": mask} if op.forward_takes_mask else {}
    made = results_of(op.value(**bound) if op.forward is None else op.forward(**bound, **asked))
    bound.pop("dtype", None)
    kept = {} if op.forward is None else {"state": made[-1]}
    incoming = {n: torch.ones_like(t) for n, t in zip(op.gradients_of_results, made, strict=False)}
    return {**incoming, **kept, **bound, "needs_input_grad": mask}


def on_meta(a: Any) -> Any:
    return a.to("meta") if isinstance(a, Tensor) else a


def expect_error(call: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(**arguments)


def test_no_gradient_of_what_is_none(emulated: Any, op: opreg.Op) -> None:
    """Each differentiable tensor missing while the mask asks for its gradient: in the kernels and in the fakes."""
    emulated(1)
    for sample in samples_of(op, requires_grad=True):
        arguments = backward_call(op, sample)
        for k, name in enumerate(op.differentiable):
            mask = [at == k or asked for at, asked in enumerate(arguments["needs_input_grad"])]
            wrong = {**arguments, name: None, "needs_input_grad": mask}
            message = f"{op.short}(_backward)?: expected {name} to be a tensor, got None"
            for namespace in (torch.ops.lossreg, torch.ops.lossreg_emulated):
                expect_error(getattr(namespace, op.short + "_backward"), wrong, message)
            expect_error(op.backward, {n: on_meta(a) for n, a in wrong.items()}, message)


def test_mask_and_gradient_are_checked_everywhere(emulated: Any, op: opreg.Op) -> None:
    emulated(1)
    arguments = backward_call(op, samples_of(op, requires_grad=True)[0])
    (name, *_), mask = op.gradients_of_results, arguments["needs_input_grad"]
    grad = arguments[name]
    wrong = [
        ({"needs_input_grad": [*mask, True]}, "expected one entry of needs_input_grad a gradient, got"),
        ({"needs_input_grad": []}, "expected one entry of needs_input_grad a gradient, got 0"),
        ({name: torch.ones(3, *grad.shape).double()}, f"expected {name} of shape"),
        ({name: grad.long()}, f"expected {name} of dtype float64, .* got int64"),
    ]
    if "state" in arguments:
        state = arguments["state"]
        for other in (state[:-1], torch.cat([state, state]), state[None], state.half(), state.long()):
            wrong.append(({"state": other}, "expected (the .*state|state of dtype)"))
    backward = torch.ops.lossreg_emulated
    for change, message in wrong:
        for call, move in ((op.backward, lambda a: a), (op.backward, on_meta)):
            expect_error(call, {n: move(a) for n, a in {**arguments, **change}.items()}, f"{op.short}: {message}")
        expect_error(getattr(backward, op.short + "_backward"), {**arguments, **change}, f"{op.short}: {message}")


def test_meta_beside_memory_is_an_error(op: opreg.Op) -> None:
    """The fake runs then, in the kernel's place: what it returned was memory that nobody wrote."""
    sample = samples_of(op, requires_grad=True)[0]
    backward = backward_call(op, sample)
    value = {n: a for n, a in backward.items() if n in op.arguments}
    asked = {"needs_input_grad": backward["needs_input_grad"]} if op.forward_takes_mask else {}
    on_host = op.rule.on_host
    for overload, arguments in ((op.value, value), (op.forward, {**value, **asked}), (op.backward, backward)):
        tensors = [n for n, a in arguments.items() if isinstance(a, Tensor)]
        if overload is None or len(tensors) == 1:
            continue
        for count in range(1, len(tensors)):
            for names in itertools.combinations(tensors, count):
                if {*tensors} - {*names} <= {*on_host}:
                    continue
                mixed = {n: on_meta(a) if n in names else a for n, a in arguments.items()}
                expect_error(overload, mixed, f"{op.short}: expected all tensors on one device")


def test_meta_beside_memory_is_an_error_of_an_update() -> None:
    for averages, params in ((["cpu"], ["meta"]), (["meta"], ["cpu"]), (["cpu", "meta"], ["cpu", "meta"])):
        lists = [[torch.ones(2, device=d) for d in devices] for devices in (averages, params)]
        with pytest.raises(RuntimeError, match="ema_update_: expected all tensors on one device"):
            torch.ops.lossreg.ema_update_(*lists, 0.5)


def test_more_elements_than_a_number_counts_is_an_error(emulated: Any, op: opreg.Op) -> None:
    """Expanded operands of a broadcast: 2^80 elements, that is 0 in 64 bits."""
    tall, wide = torch.ones(1, 1).expand(2**40, 1), torch.ones(1, 1).expand(1, 2**40)
    for sample, reduction in itertools.product(samples_of(op, dtype=torch.float32), ("none", "mean", "sum")):
        bound = bind(op.value, sample.args, {**sample.kwargs, **({"reduction": reduction} if op.reduces else {})})
        first, second = op.tensor_arguments[:2] if len(op.tensor_arguments) > 1 else (op.tensor_arguments[0], None)
        if second is None:
            continue  # one tensor broadcasts with nothing
        for n, a in bound.items():
            if n == first:
                bound[n] = tall
            elif n == second:
                bound[n] = wide
            elif isinstance(a, Tensor):
                bound[n] = torch.ones(1, 1)
        for namespace in (torch.ops.lossreg, torch.ops.lossreg_emulated):
            expect_error(getattr(namespace, op.short), bound, f"{op.short}: expected ")


LENGTHS = (2**63 - 1, 2**63 - 2, 2**62, 2**61 + 1, 2**31, 7, -1, -(2**62), -(2**63))


@pytest.mark.parametrize("together", [False, True], ids=["rows", "concatenated"])
@pytest.mark.parametrize("name", ["input_lengths", "target_lengths"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_lengths_of_any_size(emulated: Any, name: str, together: bool, reduction: str) -> None:
    """In every entry: lengths that wrap when they are added up are invalid, as others beyond the tensors are."""
    emulated(1)
    op, make = opreg.get("ctc_loss"), Maker(torch.float32, requires_grad=True)
    x = make.normal(4, 3, 5)
    targets = torch.tensor([[1, 2], [2, 1], [3, 3]])
    right = {"input_lengths": torch.tensor([4, 4, 3]), "target_lengths": torch.tensor([2, 2, 2])}
    args = (x, targets.flatten() if together else targets)
    good = backward_call(op, opreg.Sample((*args, *right.values()), {"reduction": reduction}))
    for lengths in itertools.product(LENGTHS, (2, 2**63 - 1), (2, 2**62)):
        bound = {**good, name: torch.tensor(lengths)}
        call = {n: a for n, a in bound.items() if n in op.arguments}
        for overload in (op.value, op.forward):
            expect_error(overload, call, f"ctc_loss: expected {name} ")
        loss, state = torch.ops.lossreg_emulated.ctc_loss_forward(**call)
        assert loss.reshape(-1)[0].isnan()
        for backward, kept in (
            (op.backward, good["state"]),
            (torch.ops.lossreg_emulated.ctc_loss_backward, state),
        ):
            grad = backward(**{**bound, "state": kept})
            assert grad[:, 0].isnan().all() if lengths[0] > 0 or name == "input_lengths" else grad.shape == x.shape


def heap() -> int:
    """Bytes that malloc has given and not got back."""

    class Info(ctypes.Structure):
        _fields_ = [(f"field{k}", ctypes.c_size_t) for k in range(10)]

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("glibc before 2.33 does not count beyond 2 GiB")
    libc.mallinfo2.restype = Info
    gc.collect()  # an exception and its frames hold each other
    info = libc.mallinfo2()
    return int(info.field7 + info.field4)  # uordblks, hblkhd


@pytest.fixture
def frozen() -> Iterator[None]:
    """What exists is no business of the collector, which then takes no time."""
    gc.freeze()
    yield
    gc.unfreeze()


LEAK_CALLS = int(os.environ.get("OPREG_LEAK_CALLS", "250"))


def fails(call: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], None]:
    def run() -> None:
        try:
            call(**arguments)
        except RuntimeError:
            return
        raise AssertionError("expected an error")

    return run


def leak_calls(op: opreg.Op) -> dict[str, Callable[[], Any]]:
    """Right calls of each overload, and wrong ones of each kind of argument."""
    sample = samples_of(op, dtype=torch.float32, requires_grad=True)[0]
    backward = backward_call(op, sample)
    value = {n: a for n, a in backward.items() if n in op.arguments}
    asked = {"needs_input_grad": backward["needs_input_grad"]} if op.forward_takes_mask else {}
    calls: dict[str, Callable[[], Any]] = {
        "value": lambda: op.value(**value),
        "backward": lambda: op.backward(**backward),
        "forward": lambda: op.forward and op.forward(**value, **asked),
    }
    texts = [n for n, a in value.items() if isinstance(a, str)]
    for n in texts:
        calls[f"long {n}"] = fails(op.value, {**value, n: "x" * 4000})
        calls[f"long {n} backward"] = fails(op.backward, {**backward, n: "x" * 4000})
    if op.is_loss:
        calls["dtype"] = fails(op.value, {**value, "dtype": torch.int64})
    first = op.tensor_arguments[0]
    calls["tensor"] = fails(op.value, {**value, first: value[first].long()})
    gradient = op.gradients_of_results[0]
    calls["gradient"] = fails(op.backward, {**backward, gradient: backward[gradient].long()})
    return calls


def kept(call: Callable[[], object]) -> float:
    """Bytes of the heap that stay after a call: of three rounds the fewest, since caches grow once."""
    for _ in range(30):
        call()
    grown = []
    for _ in range(3):
        before = heap()
        for _ in range(LEAK_CALLS):
            call()
        grown.append((heap() - before) / LEAK_CALLS)
        if grown[-1] < 16:
            break
    return min(grown)


def test_calls_keep_no_memory(frozen: None, op: opreg.Op) -> None:
    with torch.no_grad():
        for name, call in leak_calls(op).items():
            assert kept(call) < 16, name


def test_an_update_keeps_no_memory(frozen: None) -> None:
    averages, params = [torch.ones(3), torch.ones(2)], [torch.zeros(3), torch.zeros(2)]
    wrong = fails(torch.ops.lossreg.ema_update_, {"averages": averages, "params": params[:1], "decay": 0.5})
    for call in (lambda: torch.ops.lossreg.ema_update_(averages, params, 0.5), wrong):
        assert kept(call) < 16

"""Without Python: the program of examples/deploy_cpp runs a package that calls the library's ops."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import opreg

ROOT = Path(__file__).resolve().parents[2]
TORCH = Path(torch.__file__).parent
ops = torch.ops.lossreg


class Model(nn.Module):
    """Activations between a model's own layers, and losses of every kind of result."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 5)

    def forward(self, input: Tensor, label: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        logits = ops.mish(self.second(ops.swish(self.first(input), 1.5)))
        return (
            logits,
            ops.focal_loss(logits, target, reduction="none"),
            ops.focal_loss(logits, target, alpha=0.9),
            ops.mse_loss(logits, target, "sum"),
            ops.cross_entropy(logits, label, label_smoothing=0.1),
            ops.cross_entropy(logits, target, reduction="none"),
            *gradients(logits, label, target),
        )


def gradients(logits: Tensor, label: Tensor, target: Tensor) -> Iterator[Tensor]:
    """What a program calls that was exported with gradients: one of two is left out, and an op that has just one."""
    one = logits.new_ones(())
    for k, mask in enumerate(([True, False], [False, True])):
        yield ops.focal_loss_backward(one, logits, target, needs_input_grad=mask)[k]
    yield ops.multi_margin_loss_backward(one, logits, label, needs_input_grad=[True])


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(rows, 5, generator=generator)
    return torch.randn(rows, 8, generator=generator), torch.randint(5, (rows,), generator=generator), target


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # cmake may come from this environment without its being activated
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    cmake = shutil.which("cmake", path=path)
    assert cmake, "cmake is not on PATH"
    build = tmp_path_factory.mktemp("deploy_cpp")
    for command in (["-S", ROOT / "examples/deploy_cpp", "-B", build, f"-DTORCH_DIR={TORCH}"], ["--build", build]):
        done = subprocess.run([cmake, *command], capture_output=True, text=True, env={**os.environ, "PATH": path})
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "run_package"


@pytest.fixture(scope="session")
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="session")
def package(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a dynamic batch, and inputs of 24 rows beside it."""
    path = tmp_path_factory.mktemp("package") / "model.pt2"
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        exported = torch.export.export(model, inputs(24), dynamic_shapes=({0: batch},) * 3)
    noted = {"aot_inductor.metadata": {"inputs": "float32 * 8; int64 *; float32 * 5"}}
    torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=noted)
    torch.save(inputs(24), path.with_name("inputs.pt"))
    return path


def run(runner: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([runner, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("rows", [[24], [16, 8], [1, 7]], ids=str)
def test_same_numbers_as_eager(runner: Path, package: Path, model: Model, tmp_path: Path, rows: list[int]) -> None:
    outputs = tmp_path / "outputs.pt"
    done = run(runner, "--library", opreg.library_path(), package, package.with_name("inputs.pt"), outputs, *rows)
    assert done.returncode == 0, done.stderr
    batches = torch.load(outputs)
    # the sizes are repeated until the rows end
    assert [len(batch[0]) for batch in batches] == rows * (24 // sum(rows))
    start = 0
    for batch in batches:
        rows_of_batch = [t[start : start + len(batch[0])] for t in inputs(24)]
        start += len(batch[0])
        with torch.no_grad():
            torch.testing.assert_close(batch, model(*rows_of_batch), rtol=1e-5, atol=1e-6)


def pseudo_huber_loss(input: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    return delta**2 * (torch.sqrt(1 + ((input - target) / delta) ** 2) - 1)


def log_dice_loss(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    return -torch.log((2 * tp + 1) / (2 * tp + fp + fn + 1))


@pytest.mark.slow
def test_ops_that_are_python_functions(runner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPREG_CACHE", str(tmp_path / "cache"))
    pointwise = opreg.pointwise("deployed", domain={"delta": "> 0"})(pseudo_huber_loss)
    region = opreg.region("deployed")(log_dice_loss)

    class Losses(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            return pointwise(2 * input, target, delta=0.5, reduction="none"), region(input, target, reduction="none")

    given = torch.randn(24, 5), torch.rand(24, 5)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Losses(), given, dynamic_shapes=({0: batch},) * 2)
    package, outputs = tmp_path / "losses.pt2", tmp_path / "outputs.pt"
    torch._inductor.aoti_compile_and_package(exported, package_path=str(package))
    torch.save(given, tmp_path / "inputs.pt")
    libraries = [argument for f in (pointwise, region) for argument in ("--library", f.library.path)]
    done = run(runner, *libraries, package, tmp_path / "inputs.pt", outputs, 24)
    assert done.returncode == 0, done.stderr
    (found,) = torch.load(outputs)
    x, t = given
    tp, fp, fn = ((s * y).sum(1) for s, y in ((x.sigmoid(), t), (x.sigmoid(), 1 - t), ((-x).sigmoid(), t)))
    expected = pseudo_huber_loss(2 * x, t, delta=0.5), log_dice_loss(tp, fp, fn)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with zipfile.ZipFile(package) as archive:
        (calls,) = (json.loads(archive.read(n)) for n in archive.namelist() if n.endswith("wrapper.json"))
    targets = {call["node"]["target"] for call in calls["nodes"]}
    assert targets == {"deployed_kernels::pseudo_huber_loss", "deployed_kernels::log_dice_loss"}


def test_package_calls_losses_and_has_activations_inlined(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        (calls,) = (json.loads(archive.read(n)) for n in archive.namelist() if n.endswith("wrapper.json"))
    targets = sorted(call["node"]["target"] for call in calls["nodes"])
    # under the name to which no Python is attached
    losses = ["cross_entropy", "cross_entropy", "focal_loss", "focal_loss", "mse_loss"]
    gradients = ["focal_loss_backward", "focal_loss_backward", "multi_margin_loss_backward"]
    assert targets == [f"lossreg_kernels::{name}" for name in sorted(losses + gradients)]


def test_no_python_in_the_process(runner: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(TORCH / "lib")}
    for file in (runner, opreg.library_path()):
        found = subprocess.run(["ldd", str(file)], capture_output=True, text=True, env=environment).stdout
        names = [line.split()[0] for line in found.splitlines()]
        assert "libtorch_cpu.so" in names
        assert not [name for name in names if "python" in name]


@pytest.mark.parametrize("gradient", ["enabled", "no_grad", "inference"])
def test_threads_share_a_package(package: Path, tmp_path: Path, gradient: str) -> None:
    """Eight threads, one loaded package, a process that has imported opreg: a thread inside of the package's lock must
    not wait for the interpreter, which another one holds while it waits for that lock."""
    mode = {"enabled": "enable_grad", "no_grad": "no_grad", "inference": "inference_mode"}[gradient]
    text = f"""
import faulthandler, threading
import torch, opreg
faulthandler.dump_traceback_later(60, exit=True)
model = torch._inductor.aoti_load_package({str(package)!r})
inputs = torch.load({str(package.with_name("inputs.pt"))!r})
want = model(*inputs)
wrong = []
def work():
    with torch.{mode}():
        for _ in range(200):
            if not all(map(torch.equal, model(*inputs), want)):
                wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("wrong:", len(wrong))
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.stdout.strip() == "wrong: 0", done.stderr[-3000:]


LIBRARY = ["--library", opreg.library_path()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["PACKAGE", "INPUTS", "OUTPUTS"], "Could not find schema for lossreg_kernels::"),
        (
            ["PACKAGE", "INPUTS", "OUTPUTS"],
            "the package calls an op that no loaded library defines; give its --library",
        ),
        (["--library", "none.so"], "expected PACKAGE INPUTS OUTPUTS"),
        (["--library"], "expected a value after --library, got nothing"),
        (["--verbose", "yes"], "expected --library or --repeat, got --verbose"),
        (["--repeat", "0"], "expected --repeat, a positive integer, got 0"),
        (["--library", "none.so", "PACKAGE", "INPUTS", "OUTPUTS"], "shared library, got none.so, which is no file"),
        (["--library", "INPUTS", "PACKAGE", "INPUTS", "OUTPUTS"], "invalid ELF header"),
        ([*LIBRARY, "none.pt2", "INPUTS", "OUTPUTS"], "that AOTInductor wrote, got none.pt2, which is no file"),
        ([*LIBRARY, "PACKAGE", "none.pt", "OUTPUTS"], "written by torch.save, got none.pt, which is no file"),
        ([*LIBRARY, "PACKAGE", "PACKAGE", "OUTPUTS"], "model.pt2, which is in another format"),
        ([*LIBRARY, "PACKAGE", "INPUTS", "none/outputs.pt"], "cannot write none/outputs.pt"),
        ([*LIBRARY, "PACKAGE", "INPUTS", "OUTPUTS", "x"], "expected ROWS, a positive integer, got x"),
    ],
)
def test_messages(runner: Path, package: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    paths = {"PACKAGE": package, "INPUTS": package.with_name("inputs.pt"), "OUTPUTS": tmp_path / "outputs.pt"}
    done = run(runner, *(paths.get(a, a) for a in arguments))
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), "which holds a Tensor"),
        ([torch.ones(3)], "which holds a GenericList"),
        ((), "which holds no rows"),
        ((torch.ones(0, 3),), "which holds no rows"),
        ((torch.ones(3), torch.ones(2)), "whose tensors differ in rows"),
        ((torch.ones(3), 1.0), "which holds more than batches of rows"),
    ],
)
def test_messages_for_inputs(runner: Path, package: Path, tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "inputs.pt")
    done = run(runner, package, tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    assert done.returncode == 1
    assert "expected INPUTS written by torch.save((tensor, ...), file), got " in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, t: (x.double(), y, t), "INPUTS[0] of dtype and sizes float32 * 8, got float64 4 8"),
        (lambda x, y, t: (x[:, :7], y, t), "INPUTS[0] of dtype and sizes float32 * 8, got float32 4 7"),
        (lambda x, y, t: (x[..., None], y, t), "INPUTS[0] of dtype and sizes float32 * 8, got float32 4 8 1"),
        (lambda x, y, t: (x[:, 0], y, t), "INPUTS[0] of dtype and sizes float32 * 8, got float32 4"),
        (lambda x, y, t: (x, y.int(), t), "INPUTS[1] of dtype and sizes int64 *, got int32 4"),
        (lambda x, y, t: (x, y), "expected 3 INPUTS, got 2"),
    ],
    ids=["dtype", "size", "more dimensions", "fewer dimensions", "index dtype", "number"],
)
def test_inputs_are_held_to_what_the_package_notes(
    runner: Path, package: Path, tmp_path: Path, change: Callable[..., tuple[Tensor, ...]], message: str
) -> None:
    torch.save(change(*inputs(4)), tmp_path / "inputs.pt")
    done = run(runner, *LIBRARY, package, tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    assert done.returncode == 1
    assert message in done.stderr


def test_error_of_an_op_reaches_the_user(runner: Path, package: Path, tmp_path: Path) -> None:
    input, label, target = inputs(4)
    label[2] = 5
    torch.save((input, label, target), tmp_path / "inputs.pt")
    done = run(runner, *LIBRARY, package, tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    assert done.returncode == 1
    assert "run_package: cross_entropy: expected a class index in [0, 5) or ignore_index -100, got 5" in done.stderr

"""Predicts every op's time on an H100, in the sizes of gpu_cases.py, and what bounds it.

    python benchmarks/predict.py --build build/py3-none-linux_x86_64 [NAME ...]     prints
    ... --output benchmarks/results/predicted-sm90.json                             writes (make predict)

It needs the machine code of a build by nvcc, NVIDIA's disassembler and the emulator, and no GPU.
"""

import argparse
import dataclasses
import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "tests/kernels")]

import torch
from torch import Tensor

import emulated
import roofline
import sass
from gpu_cases import DTYPES, GpuCase, cases, floor_bytes
from opreg.meta.schema import bind
from opreg.registry import of_namespace
from opreg.testing import tensors_with_grad

RESULTS = ROOT / "benchmarks" / "results" / "predicted-sm90.json"
BLOCKS = 2  # of each launch that the emulator runs

Row = dict[str, Any]


def eager(case: GpuCase) -> Mapping[str, tuple[roofline.Prediction, int]]:
    """Of the same function in eager torch; nothing where it looks at values, which meta tensors have not."""

    def meta(a: Any) -> Any:
        return a.detach().to("meta").requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a

    if case.op.mutated:
        return {}
    sample = dataclasses.replace(case.sample, args=tuple(map(meta, case.sample.args)))
    wanted = list(tensors_with_grad(case.op, sample).values())
    bound = bind(case.op.value, sample.args, sample.kwargs)
    bound.pop("dtype", None)
    for called in filter(None, (case.op.native, case.op.reference)):
        try:
            return roofline.of_eager(lambda called=called: called(**bound), wanted)  # type: ignore[misc]
        except (RuntimeError, NotImplementedError, ValueError):
            continue
    return {}


def predict(case: GpuCase, emulator: emulated.Emulator, kernels: Mapping[str, sass.Kernel]) -> Iterator[Row]:
    machine = roofline.H100
    natively = eager(case)
    floors = floor_bytes(case)
    for name, found in emulated.passes(emulator, case.op, case.sample, BLOCKS, traffic=True).items():
        parts = [roofline.of_launch(launch, kernels.get(launch.symbol)) for launch in found.launches]
        calls = [roofline.of_operator(line, case.dtype) for line in found.calls]
        floor = floors[name] / machine.bandwidth
        row = {"op": case.op.short, "shape": case.shape, "dtype": case.dtype, "pass": name}
        if name in natively:
            in_eager, flops = natively[name]
            floor = max(floor, flops / machine.products_of(case.dtype))
            row["eager"] = in_eager.seconds
            if any(re.match("aten::(convolution|matmul)", line) for line in found.calls):
                # what their lines do not tell: how large they are
                calls.append(roofline.Prediction(flops / machine.products_of(case.dtype), "products"))
        predicted = roofline.total([*parts, *[c for c in calls if c.seconds]])
        row |= {"predicted": predicted.seconds, "floor": floor, "bound": predicted.bound, "launches": len(parts)}
        yield {k: round(1e6 * v, 2) if isinstance(v, float) else v for k, v in row.items()}


def predictions(
    build: Path, emulator: emulated.Emulator, names: Iterable[str] = (), dtypes: Iterable[str] = tuple(DTYPES)
) -> Iterator[Row]:
    chosen = [op for op in of_namespace() if not names or op.short in names]
    objects = sass.objects(build)
    shared: dict[str, sass.Kernel] = {}
    for family in sorted({op.family for op in chosen}, key=str):
        if family in objects:
            shared |= sass.kernels_of(objects[family])
    for op in chosen:
        if not hasattr(torch.ops.lossreg_emulated, op.short):
            continue
        for dtype in dtypes:
            for case in cases(op, dtype):
                yield from predict(case, emulator, shared)


def key(row: Row) -> tuple[str, ...]:
    return row["op"], row["shape"], row["dtype"], row["pass"]


# Not bound by memory: sorts, a chain of steps, products, neighbours, windows and pairs of classes within caches.
LARGE = 4.0  # microseconds: what takes less waits for its launch
UNBOUND = re.compile(
    "lovasz|ohem|ctc|rnnt|.*conv2d|linear_|ssim|clip_|siglip|nt_xent|sup_con|affinity|multilabel_margin"
)


def share(rows: Iterable[Row], dtype: str) -> float:
    """Of the memory's speed that the catalogue reaches: geometric mean of what is least over what is predicted."""
    large = (r for r in rows if r["floor"] >= LARGE and not UNBOUND.match(r["op"]))
    chosen = (r for r in large if r["dtype"] == dtype)
    # an op may leave out what it need not read
    found = [min(1.0, r["floor"] / r["predicted"]) for r in chosen]
    return statistics.geometric_mean(found) if found else math.nan


def slower(rows: Iterable[Row]) -> list[str]:
    """Calls whose passes together are predicted slower than eager's, beyond what the model can tell."""
    ours: dict[str, float] = {}
    others: dict[str, float] = {}
    for r in rows:
        name = " ".join(key(r)[:3])
        ours[name] = ours.get(name, 0.0) + r["predicted"]
        others[name] = others.get(name, 0.0) + r.get("eager", math.inf)
    return [name for name in ours if ours[name] > 1.02 * others[name]]


def text(rows: list[Row]) -> str:
    lines = [f"{'':58} {'µs':>9} {'floor':>9} {'eager':>9} share  bound"]
    for r in rows:
        name = " ".join(key(r))
        lines.append(
            f"{name:58} {r['predicted']:9.1f} {r['floor']:9.1f} {r.get('eager', math.nan):9.1f} "
            f"{r['floor'] / r['predicted']:5.2f}  {r['bound']}, {r['launches']} launches"
        )
    lines += [f"geometric mean of the share, {dtype}: {share(rows, dtype):.3f}" for dtype in DTYPES]
    return "\n".join([*lines, f"predicted slower than eager: {'; '.join(slower(rows)) or 'none'}"])


def main() -> None:
    top = argparse.ArgumentParser("predict.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    builds = sorted(f.parent for f in ROOT.glob("build/py3-*/CMakeCache.txt"))
    top.add_argument("--build", type=Path, default=builds[0] if builds else None)
    top.add_argument("--output", type=Path)
    top.add_argument("names", nargs="*")
    args = top.parse_args()
    rows = list(predictions(args.build, emulated.load(), args.names))
    print(text(rows))
    if args.output:
        machine = {k: v for k, v in dataclasses.asdict(roofline.H100).items() if isinstance(v, (int, float))}
        lines = ",\n".join("  " + json.dumps(r, ensure_ascii=False) for r in rows)
        args.output.write_text(f'{{"machine": {json.dumps(machine)},\n "predictions": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()

"""What the ops are to reach on two CPU cores, and whether a report says that they do.

A ratio counts as a miss beyond noise only: by more than two standard errors of the two medians, 2 % at least.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..registry import get
from .timing import noise

LIGHT = (
    "l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss", "hinge_embedding_loss", "kl_div", "swish", "hard_swish",
    "mish",
)  # fmt: skip
# A float32 time of at most so many times the copy floor is memory's: half of the bytes should take half of it.
MEMORY_BOUND = 2.0

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A goal, what was measured for it, and the misses by name. ``met`` is None where nothing was measured."""

    goal: str
    met: bool | None
    found: str
    misses: tuple[str, ...] = ()


def name_of(row: Row) -> str:
    return f"{row['op']} {'×'.join(map(str, row['shape']))}".rstrip()


def margin(row: Row, *providers: str) -> float:
    return noise([row["spread"][p] for p in providers], row["rounds"])


def rows_of(report: Mapping[str, Any], size: str, dtype: str, which: str = "forward+backward") -> list[Row]:
    """With the most threads that the run had."""
    threads = report["machine"]["threads"]
    wanted = {"size": size, "dtype": dtype, "pass": which, "threads": threads}
    return [r for r in report["results"] if all(r[k] == v for k, v in wanted.items())]


def floor_text(row: Row) -> str:
    return f", {row['ratios']['ours/floor']:.2f} × the copy floor" if "ours/floor" in row["ratios"] else ""


def of_empty_call(row: Row) -> str:
    """How a call compares with one of an op that does nothing, through the same autograd."""
    seconds = row["seconds"]
    return f", {seconds['ours'] / seconds['call']:.2f} × an op that does nothing" if "call" in seconds else ""


def mean(rows: Sequence[Row], ratio: str, least: float) -> Target:
    where = f"large, float32, forward+backward: {ratio}"
    return geometric_mean(where, [r["ratios"][ratio] for r in rows if ratio in r["ratios"]], least)


def geometric_mean(where: str, found: Sequence[float], least: float) -> Target:
    goal = f"{where}, geometric mean, at least {least}"
    if not found:
        return Target(goal, None, "not measured")
    value = statistics.geometric_mean(found)
    return Target(goal, value >= least, f"{value:.2f} over {len(found)} cases")


def each(
    goal: str, rows: Sequence[Row], value: Callable[[Row], float], missed: Callable[[Row], bool],
    text: Callable[[Row], str] = lambda r: "", unit: str = "", largest: bool = True,
) -> Target:  # fmt: skip
    """A goal that every row must meet; ``found`` is the worst."""
    if not rows:
        return Target(goal, None, "not measured")
    wrong = [r for r in sorted(rows, key=value, reverse=largest) if missed(r)]
    worst = (max if largest else min)(rows, key=value)
    found = f"{len(rows) - len(wrong)} of {len(rows)} cases; the worst: {name_of(worst)} {value(worst):.2f}{unit}"
    return Target(goal, not wrong, found, tuple(f"{name_of(r)}: {value(r):.2f}{unit}{text(r)}" for r in wrong))


def never_slower(rows: Sequence[Row], provider: str, where: str) -> Target:
    name = f"{provider}/ours"
    return each(
        f"{where}: no op slower than {provider} beyond noise",
        [r for r in rows if name in r["ratios"]],
        lambda r: float(r["ratios"][name]),
        lambda r: bool(r["ratios"][name] * (1 + margin(r, "ours", provider)) < 1),
        floor_text,
        largest=False,
    )


def near_floor(rows: Sequence[Row], names: Sequence[str], most: float, what: str) -> Target:
    chosen = [r for r in rows if r["op"] in names and "ours/floor" in r["ratios"]]
    return each(
        f"large, float32, forward+backward: {what} within {most} of the copy floor",
        chosen,
        lambda r: float(r["ratios"]["ours/floor"]),
        lambda r: bool(r["ratios"]["ours/floor"] > most * (1 + margin(r, "ours", "floor"))),
    )


def in_cache(report: Mapping[str, Any], row: Row) -> float | None:
    """How much of a large case's time its arithmetic takes: what an element costs at the usual size, which fits into
    cache, beyond what a call costs at the small one. From 2/3 on half of the bytes can't make it 1.5 times as fast."""
    by_size = {
        size: [r for r in rows_of(report, size, row["dtype"], row["pass"]) if r["op"] == row["op"]]
        for size in ("small", "usual", "large")
    }
    if len({len(rows) for rows in by_size.values()}) != 1:
        return None
    small, usual, large = next(group for group in zip(*by_size.values(), strict=True) if group[2] is row)
    (few, quick), (many, slow), (most, whole) = (
        (math.prod(r["shape"]), float(r["seconds"]["ours"])) for r in (small, usual, large)
    )
    return (slow - quick) / (many - few) * most / whole if many > few else None


def half_precision(report: Mapping[str, Any]) -> Iterator[Target]:
    wide = {name_of(r): r for r in rows_of(report, "large", "float32")}
    pairs = []
    for r in rows_of(report, "large", "bfloat16"):
        of = wide.get(name_of(r))
        if of is not None and of["ratios"].get("ours/floor", 9) <= MEMORY_BOUND and "float32/ours" in r["ratios"]:
            pairs.append({**r, "in_cache": in_cache(report, of)})

    def text(r: Row) -> str:
        part = r["in_cache"]
        return floor_text(r) + ("" if part is None else f", float32 in cache takes {part:.2f} of its large time")

    where = f"large, forward+backward: bfloat16 over float32, where that is within {MEMORY_BOUND:g} of the copy floor"
    yield geometric_mean(where, [p["ratios"]["float32/ours"] for p in pairs], 1.5)
    yield each(
        f"{where}: each at least 1.2 times as fast",
        pairs,
        lambda r: float(r["ratios"]["float32/ours"]),
        lambda r: bool(r["ratios"]["float32/ours"] * (1 + margin(r, "ours", "float32")) < 1.2),
        text,
        largest=False,
    )


def more_than_eager(times: float) -> Callable[[Row], bool]:
    return lambda r: bool(1 / r["ratios"]["eager/ours"] > times * (1 + margin(r, "ours", "eager")))


def small(report: Mapping[str, Any]) -> Iterator[Target]:
    both, forward = (rows_of(report, "small", "float32", which) for which in ("forward+backward", "forward"))
    composed = [r for r in both if r["eager"] == "composition"]
    yield never_slower(composed, "eager", "small, float32, forward+backward, eager is a composition")
    native = [r for r in both if r["eager"] == "native" and "eager/ours" in r["ratios"]]
    for kind, losses, most in (("a loss", True, 1.5), ("an activation", False, 2.0)):
        yield each(
            f"small, float32, forward+backward: {kind} at most {most:g} times native ATen",
            [r for r in native if get(r["op"]).is_loss == losses],
            lambda r: 1 / r["ratios"]["eager/ours"],
            more_than_eager(most),
            of_empty_call,
        )
    yield each(
        "small, float32, no gradient: at most 4 µs more than native ATen",
        [r for r in forward if r["eager"] == "native" and "eager/ours" in r["ratios"]],
        lambda r: 1e6 * (r["seconds"]["ours"] - r["seconds"]["eager"]),
        lambda r: bool(1e6 * (r["seconds"]["ours"] - r["seconds"]["eager"]) > 4),
        of_empty_call,
        unit=" µs",
    )


def compiled_steps(report: Mapping[str, Any]) -> Iterator[Target]:
    rows = [{**s, "op": s["step"], "shape": (), "ratios": {}} for s in report.get("steps", [])]

    def ratio(what: str) -> Callable[[Row], float]:
        return lambda r: float(r[what]["other"] / r[what]["ours"])

    goal = "compiled training step: "
    slower = lambda r: bool(ratio("seconds")(r) * (1 + margin(r, "ours", "other")) < 1)  # noqa: E731
    yield each(goal + "never slower with our loss", rows, ratio("seconds"), slower, largest=False)
    more = lambda r: bool(r["memory"]["ours"] > 1.01 * r["memory"]["other"])  # noqa: E731
    yield each(goal + "never more memory (beyond 1 %)", rows, ratio("memory"), more, largest=False)


def targets(report: Mapping[str, Any]) -> list[Target]:
    """Every target, in the order in which the report lists them."""
    large = rows_of(report, "large", "float32")
    where = "large, float32, forward+backward"
    return [
        mean(large, "inductor/ours", 2.5),
        mean(large, "eager/ours", 4.0),
        never_slower(large, "inductor", where),
        never_slower(large, "eager", where),
        near_floor(large, LIGHT, 1.5, "light formulas"),
        near_floor(large, ("cross_entropy",), 2.0, "cross_entropy"),
        *half_precision(report),
        *small(report),
        *compiled_steps(report),
    ]

"""The report as text: for a terminal, and as Markdown, targets first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._tables import table
from .runner import PASSES, PROVIDERS, RATIOS
from .targets import targets

UNSTEADY = (
    0.3  # quartiles further apart than this, over the median, tell more of the machine's other work than of the op
)

Row = Mapping[str, Any]


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def unsteady(result: Row) -> bool:
    """Was the machine disturbed? Then ratios are drawn together, for all providers wait for the same time slices."""
    return any(s > UNSTEADY for s in result["spread"].values())


def in_order(names: Sequence[str], rows: Sequence[Row], key: str) -> list[str]:
    """Those of the names that any row has."""
    return [name for name in names if any(name in r[key] for r in rows)]


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f}" if seconds >= 1e-3 else f"{1e3 * seconds:.4f}"


def mebibytes(count: float | None) -> str:
    return "" if count is None else f"{count / 2**20:.1f}" if count >= 2**17 else f"{count / 2**20:.4f}"


def where_text(report: Mapping[str, Any]) -> str:
    m = report["machine"]
    where = m["gpu"] or f"{m['cpu']} ({m['capability']}), {m['cores']} cores, {m['threads']} threads"
    return f"{where}, torch {m['torch']}, opreg {m['opreg']}, Python {m['python']}, {m['date'][:10]}"


def warnings(report: Mapping[str, Any]) -> Iterator[str]:
    results, m = report["results"], report["machine"]
    if count := sum(unsteady(r) for r in results):
        load = f"load {m['load']:.1f} on {m['cores']} cores at the start"
        yield (
            f"NOT TO BE TRUSTED: {count} of {len(results)} rows are unsteady, their quartiles over {UNSTEADY:.0%} of "
            f"the median apart ({load}): measure again, undisturbed"
        )
    yield from (f"failed: {name}: {why}" for name, why in report["failed"].items())
    yield from (f"left out: {name}: {why}" for name, why in report["left_out"].items())


def bench_text(report: Mapping[str, Any]) -> str:
    """For a terminal: times in milliseconds, ratios, their geometric means."""
    results, means = report["results"], report["geometric_means"]
    if not results:
        return "\n".join(["nothing was timed", *warnings(report)])
    providers, ratios = in_order(PROVIDERS, results, "seconds"), in_order(RATIOS, results, "ratios")
    rows = []
    for r in results:
        where = [r["op"], shape_text(r["shape"]), r["dtype"], str(r["threads"]), r["pass"]]
        times = [milliseconds(r["seconds"].get(p)) for p in providers]
        rows.append([*where, *times, *(number(r["ratios"].get(x)) for x in ratios)])
    for m in means:
        where = [f"geometric mean, {m['kind']}", f"{m['size']}, {m['cases']}", m["dtype"], str(m["threads"]), m["pass"]]
        rows.append([*where, *[""] * len(providers), *(number(m["ratios"].get(x)) for x in ratios)])
    header = ["op", "shape", "dtype", "threads", "pass", *(f"{p} ms" for p in providers), *ratios]
    lines = [table(header, rows, left=5), "", where_text(report)]
    for s in report["steps"]:
        a, b = s["seconds"]["ours"], s["seconds"]["other"]
        lines.append(f"compiled step, {s['step']}: {milliseconds(a)} ms, with the other loss {milliseconds(b)} ms")
    return "\n".join([*lines, *warnings(report)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)] + [""]


def targets_text(report: Mapping[str, Any]) -> list[str]:
    found = targets(report)
    met = {True: "met", False: "MISSED", None: "not measured"}
    lines = [
        "## Targets",
        "",
        *markdown_table(["target", "", "found"], [[t.goal, met[t.met], t.found] for t in found], 3),
    ]
    for t in found:
        if t.misses:
            lines += [f"Missed, {t.goal}:", "", *(f"- {miss}" for miss in t.misses), ""]
    return lines


def ratio_cells(row: Row, names: Sequence[str]) -> list[str]:
    return [number(row["ratios"].get(name)) for name in names]


def means_text(report: Mapping[str, Any]) -> list[str]:
    means = report["geometric_means"]
    names = in_order(RATIOS, means, "ratios")
    where = ("size", "dtype", "threads", "pass")
    rows = [[m["kind"], *(str(m[w]) for w in where), str(m["cases"]), *ratio_cells(m, names)] for m in means]
    return ["## Geometric means", "", *markdown_table(["ops", *where, "cases", *names], rows, 5)]


def results_text(report: Mapping[str, Any], size: str, dtype: str, which: str) -> list[str]:
    threads = report["machine"]["threads"]
    wanted = {"size": size, "dtype": dtype, "pass": which, "threads": threads}
    chosen = [r for r in report["results"] if all(r[k] == v for k, v in wanted.items())]
    if not chosen:
        return []
    providers, names = in_order(PROVIDERS, chosen, "seconds"), in_order(RATIOS, chosen, "ratios")
    remembered = in_order(PROVIDERS, [r for r in chosen if "memory" in r], "memory")
    header = ["op", "shape", *(f"{p} ms" for p in providers), *names, "spread", *(f"{p} MiB" for p in remembered)]
    rows = []
    for r in chosen:
        times = [milliseconds(r["seconds"].get(p)) for p in providers]
        memory = [mebibytes(r.get("memory", {}).get(p)) for p in remembered]
        widest = f"{100 * max(r['spread'].values()):.0f} %"
        rows.append([r["op"], shape_text(r["shape"]), *times, *ratio_cells(r, names), widest, *memory])
    return [f"## {size}, {dtype}, {which}", "", *markdown_table(header, rows, 2)]


def threads_text(report: Mapping[str, Any]) -> list[str]:
    """Speedup over one thread, ours and eager, where both were measured."""
    most = report["machine"]["threads"]
    same = ("op", "shape", "size", "dtype", "pass")
    single = {str([r[k] for k in same]): r for r in report["results"] if r["threads"] == 1}
    pairs = [(single.get(str([r[k] for k in same])), r) for r in report["results"] if r["threads"] == most > 1]
    rows = []
    for one, all_ in pairs:
        if one is not None:
            both = [p for p in ("ours", "eager") if p in one["seconds"]]
            speedup = [number(one["seconds"][p] / all_["seconds"][p]) for p in both]
            rows.append([one["op"], shape_text(one["shape"]), *speedup])
    if not rows:
        return []
    lines = [f"## {most} threads over one", "", f"Time with one thread over that with {most}.", ""]
    return [*lines, *markdown_table(["op", "shape", "ours", "eager"], rows, 2)]


def sweep_text(report: Mapping[str, Any]) -> list[str]:
    if not report["sweep"]:
        return []
    providers = in_order(PROVIDERS, report["sweep"], "seconds")
    rows = [
        [r["op"], shape_text(r["shape"]), *(milliseconds(r["seconds"].get(p)) for p in providers)]
        for r in report["sweep"]
    ]
    header = ["op", "shape", *(f"{p} ms" for p in providers)]
    return ["## Time against size", "", f"float32, {PASSES[1]}.", "", *markdown_table(header, rows, 2)]


def steps_text(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for s in report["steps"]:
        times = [milliseconds(s["seconds"][p]) for p in ("ours", "other")]
        memory = [mebibytes(s["memory"][p]) for p in ("ours", "other")]
        rows.append([
            s["step"], *times, number(s["seconds"]["other"] / s["seconds"]["ours"]), *memory,
            number(s["memory"]["other"] / s["memory"]["ours"]), f"{100 * max(s['spread'].values()):.0f} %",
        ])  # fmt: skip
    header = ["model, loss", "ours ms", "other ms", "other/ours", "ours MiB", "other MiB", "other/ours", "spread"]
    text = "float32; forward, loss, backward, SGD; model and loss compiled as one; other: torch's loss, or written out."
    return ["## Compiled training step", "", text, "", *markdown_table(header, rows)] if rows else []


def markdown(report: Mapping[str, Any]) -> str:
    s = report["settings"]
    peers = ", ".join(f"{name} {version}" for name, version in report["machine"].get("peers", {}).items())
    lines = [f"# Benchmark, {s['device']}", "", f"{where_text(report)}.", ""]
    lines += [f"Medians of up to {s['rounds']} interleaved rounds. `opreg/bench` says what is measured.", ""]
    lines += [f"Peers: {peers}.", ""] if peers else []
    noted = [f"- {text}" for text in warnings(report)]
    lines += [*targets_text(report), *means_text(report), *steps_text(report)]
    for size in reversed(s["sizes"]):
        for dtype in s["dtypes"]:
            for which in reversed(PASSES):
                lines += results_text(report, size, dtype, which)
    lines += [*threads_text(report), *sweep_text(report)]
    return "\n".join([*lines, *(["## Notes", "", *noted] if noted else [])]).rstrip() + "\n"

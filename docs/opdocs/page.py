"""The text of an op's page, in MyST Markdown: all of it from the registry and from what is committed."""

import html
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import opreg
from opreg import Op, Sample
from opreg.catalogue import coverage, reference_text, sample_text
from opreg.faces.functions import parameters
from opreg.faces.modules import class_name, derivable
from opreg.testing import Maker

from . import facts, formula
from .curves import Drawing, draw, drawable
from .mistakes import Mistake, form, mistakes, target_names
from .pictures import legend

ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
SPECIAL = re.compile(r"([\\*_<>\[\]|#$~])")


def escaped(text: str) -> str:
    """Plain text whose signs Markdown leaves alone; what stands in double backticks is code."""
    parts = re.split(r"(``.+?``)", text)
    return "".join(f"`{p[2:-2]}`" if i % 2 else SPECIAL.sub(r"\\\1", p) for i, p in enumerate(parts))


def code(text: str) -> str:
    """Code in a table's cell or a line."""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", r"\|")


def block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """``align``: a letter a column, l or r."""
    rule = ["---:" if a == "r" else "---" for a in align.ljust(len(header), "l")]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def folded(summary: str, text: str) -> str:
    """What is opened by a click."""
    return f"<details><summary>{html.escape(summary)}</summary>\n\n{text}\n\n</details>"


def linked(text: str) -> str:
    """Escaped; papers of arXiv, and ops that are named, are links."""
    names = "|".join(sorted((op.short for op in facts.all_ops()), key=len, reverse=True))
    parts = re.split(rf"(``(?:{names})``|(?<![\w.`])(?:{names})\b(?!`))", text)
    ops = (
        f"[{escaped(p.strip('`'))}](/generated/ops/{p.strip('`')}.md)" if i % 2 else escaped(p)
        for i, p in enumerate(parts)
    )
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(ops))


def typeset(op: Op) -> str:
    """The docstring's formula with its mathematics as LaTeX."""
    written = {"math": "{{math}}`{}`", "code": "`{}`"}
    pieces = formula.pieces(facts.titled(op).get("Formula", ""), op.arguments)
    return "".join(written[p.kind].format(p.text) if p.kind in written else escaped(p.text) for p in pieces)


def annotation(kind: Any) -> str:
    if kind is inspect.Parameter.empty:
        return ""
    return (
        inspect.formatannotation(kind)
        .replace("torch._C.", "torch.")
        .replace("collections.abc.", "")
        .replace("typing.", "")
    )


def signature(function: Any) -> str:
    """Names and defaults; the types stand in the table."""
    given = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in given if p.name != "self"]
    return str(inspect.Signature(bare))


def modules(op: Op) -> list[str]:
    """The classes of ``opreg.nn`` over the op: that which its declaration makes, and those that say they are."""
    names = [class_name(op)] if derivable(op) else []
    for name in opreg.nn.__all__:
        found = inspect.getdoc(getattr(opreg.nn, name)) or ""
        if name not in names and re.search(rf"functional\.{op.short}\b", found):
            names.append(name)
    return [n for n in names if n in opreg.nn.__all__]


def calls(op: Op) -> str:
    function = getattr(opreg.functional, op.short)
    lines = [f"```{{py:function}} opreg.functional.{op.short}{signature(function)}\n```", ""]
    for name in modules(op):
        lines += [f"```{{py:class}} opreg.nn.{name}{signature(getattr(opreg.nn, name).__init__)}\n```", ""]
    return "\n".join(
        [*lines, "In graphs and in C++ it is", "", block("text", f"torch.ops.{op.value._schema}".replace("::", "."))]
    )


def arguments(op: Op) -> str:
    said = facts.arguments(op)
    rows = []
    for p in parameters(op):
        default = "" if p.default is inspect.Parameter.empty else code(repr(p.default))
        rows.append(
            [code(p.name), code(annotation(p.annotation)), default, linked(said.get(p.name, "")).replace("\n", " ")]
        )
    return table(["argument", "type", "default", ""], rows)


def example(op: Op) -> str:
    """The docstring's example as it is typed, with what is printed as a comment."""
    lines = []
    for line in inspect.cleandoc(facts.titled(op).get("Example", "")).split("\n"):
        typed = re.match(r"(>>>|\.\.\.) ?(.*)", line)
        lines.append(typed[2] if typed else f"# {line}")
    return "\n".join(lines)


def target(op: Op) -> str:
    said = facts.arguments(op)
    names = target_names(op) if op.is_loss else []
    lines = [f"`{n}`, {escaped(form(op, n))}: {linked(said.get(n, ''))}" for n in names]
    found = [m for n in names for m in mistakes(op, n)]
    lines.append(block("python", example(op)))
    if found:
        lines.append("What happens to a target of another form:\n\n" + mistakes_table(found))
    return "\n\n".join(lines)


def mistakes_table(found: Iterable[Mistake]) -> str:
    return table(
        ["given", "what happens"], [[escaped(m.given), code(m.happens) if m.error else m.happens] for m in found]
    )


def errors(op: Op) -> str:
    """Each error sample of the declaration, called, with the error that it gives."""
    rows: dict[str, str] = {}
    for sample in op.errors(Maker()):
        try:
            op.value(*sample.args, **sample.kwargs)
        except Exception as error:
            text = str(error).split("\n")[0]
            rows.setdefault(text, sample_text(Sample(sample.args, sample.kwargs)))
    said = linked(" ".join(facts.titled(op).get("Raises", "").split()))
    return f"{said}\n\n" + folded(
        f"{len(rows)} wrong calls, and the error of each",
        table(["arguments", "error"], [[code(call), code(text)] for text, call in rows.items()]),
    )


def rewriting(op: Op) -> str:
    found = facts.found_by_rewrite(op)
    lines = []
    if found.spellings:
        names = ", ".join(code(s) for s in found.spellings)
        lines.append(f"Calls of these become the op: {names}.")
    if found.rules:
        lines.append("Programs that write it out, in whatever order, become the op:")
        for name, rules in found.rules.items():
            forms = f" ({len(rules)} patterns)" if len(rules) > 1 else ""
            lines.append(folded(name + forms, block("python", facts.pattern_text(rules[0]))))
    if found.near:
        lines.append("What only looks like it stays, and the report says why:")
        lines.append("\n".join(f"- {escaped(name)}: {escaped(why)}" for name, why in found.near.items()))
    return "\n\n".join(lines) or "Nothing: torch has no function of it, and no rule looks for it written out."


def speed(op: Op) -> str:
    """The committed measurements of the op, large inputs, and the times predicted for a GPU."""
    measured = [
        r for r in facts.results() if r["op"] == op.short and r["size"] == "large" and r["pass"] == "forward+backward"
    ]
    measured = [r for r in measured if r["threads"] == r["machine"]["threads"]]
    names = [n for n in ("ours", "eager", "inductor", "peer") if any(n in r["seconds"] for r in measured)]
    parts = []
    if measured:
        m = measured[0]["machine"]
        rows = []
        for r in measured:
            ours = r["seconds"]["ours"]
            cells = []
            for n in names:
                t = r["seconds"].get(n)
                times = f" ({t / ours:.1f} ×)" if t is not None and n != "ours" else ""
                cells.append("" if t is None else f"{1e3 * t:.3g}{times}")
            rows.append(["×".join(map(str, r["shape"])), r["dtype"], *cells])
        peers = ", ".join(sorted({r["peer"] for r in measured if r.get("peer")}))
        where = f"{m['gpu'] or m['cpu']}, {m['threads']} threads, torch {m['torch']}, {m['date'][:10]}"
        parts.append(
            table(["shape", "dtype", *names], rows, "llrrrr")
            + f"\n\nMilliseconds, forward and backward, and how many times ours. {where}"
            + (f"; peer: {peers}." if peers else ".")
        )
    predicted = [r for r in facts.predictions() if r["op"] == op.short]
    if predicted:
        rows = [
            [r["shape"], r["dtype"], r["pass"], f"{r['predicted']:.1f}", f"{r['floor']:.1f}", r["bound"]]
            for r in predicted
        ]
        text = table(["shape", "dtype", "pass", "predicted", "floor", "bound by"], rows, "lllrrl")
        parts.append(folded("Predicted for an H100 (sm_90), in microseconds, from its machine code", text))
    return "\n\n".join(parts) or "Not measured yet: `make bench` does it on your machine."


def has(op: Op) -> str:
    yes = ", ".join(name for name, there in coverage(op).items() if there)
    no = ", ".join(name for name, there in coverage(op).items() if not there)
    gradient = (
        f"Gradients in {', '.join(f'`{n}`' for n in op.differentiable)}. "
        if op.differentiable and not op.mutated
        else ""
    )
    return f"{gradient}Has: {yes}." + (f" Has not: {no}." if no else "")


def written(op: Op) -> str:
    """The C++ that its kernels are made of."""
    if op.short not in facts.structs():
        return ""
    text, path = facts.structs()[op.short]
    return folded(f"The formula in C++, {path}", block("cpp", text))


def picture(op: Op, drawing: Drawing | None) -> str:
    """Value and gradient, each a picture, and a legend in words for both."""
    if drawing is None:
        return ""
    images = "\n".join(
        f"![{what} of {op.short} along {drawing.axis}](/generated/images/{op.short}-{which}.svg)"
        for what, which in (("value", "value"), ("gradient", "grad"))
    )
    lines = [f":::{{container}} curves\n{images}\n:::"]
    if len(drawing.curves) > 1:
        keys = (
            f"<span style='border-top: 3px {line} {colour}'></span> {html.escape(text)}"
            for text, colour, line in legend(drawing)
        )
        lines.append("<p class='legend'>" + "\n".join(f"<span class='key'>{k}</span>" for k in keys) + "</p>")
    return "\n\n".join([*lines, linked(drawing.says)])


def page(op: Op, drawing: Drawing | None) -> str:
    """``drawing``: its curves, which stand in ``../images``."""
    first, *rest = facts.sense(op)
    tags = " ".join(f"<span class='task'>{t}</span>" for t in facts.tasks(op))
    parts = [
        f"# {op.short}".replace("_", r"\_"),
        linked(first),
        *map(linked, rest),
        f"<p class='tasks'>{tags}</p>",
        picture(op, drawing),
        f"## Formula\n\n{{.formula}}\n{typeset(op)}",
        f"Source: {linked(op.source)}",
        f"## Example\n\n{target(op)}" if not (op.is_loss and target_names(op)) else f"## Target\n\n{target(op)}",
        f"## Call\n\n{calls(op)}",
        f"### Arguments\n\n{arguments(op)}",
        f"### Returns\n\n{linked(' '.join(facts.titled(op).get('Returns', 'Nothing.').split()))}",
        f"### Errors\n\n{errors(op)}",
        f"## What the rewrite finds\n\n{rewriting(op)}",
        f"## Speed\n\n{speed(op)}",
        f"## Definition\n\n{has(op)}",
        folded("The reference, in plain torch", block("python", reference_text(op.reference))),
        written(op),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def drawing_of(op: Op) -> Drawing | None:
    return draw(op) if drawable(op) else None


def marks(op: Op) -> list[str]:
    """The classes in HTML of an op's tasks."""
    return [f"for-{t.replace(' ', '-')}" for t in facts.tasks(op)]


def link(op: Op) -> str:
    """To the op's page; a long name breaks at its underscores."""
    return f"[{escaped(op.short).replace('_', '_<wbr>')}](/generated/ops/{op.short}.md)"


def card(op: Op, drawing: Drawing | None) -> str:
    """The op in the gallery, with the words that it is filtered by."""
    image = f"![](/generated/images/{op.short}-small.svg)" if drawing else "<span class='no-picture'>no curve</span>"
    lines = (f"[{image}](/generated/ops/{op.short}.md)", link(op), linked(facts.sense(op)[0]))
    return f":::{{container}} card-of-op {' '.join(marks(op))}\n" + "\n\n".join(lines) + "\n:::"


def task_names(ops: Sequence[Op]) -> list[str]:
    """The tasks that any of the ops is for, and behind them the families of those that are for none."""
    there = {t for op in ops for t in facts.tasks(op)}
    return [*(t for t in facts.TASKS if t in there), *sorted(there - set(facts.TASKS))]


def gallery(ops: Sequence[tuple[Op, Drawing | None]]) -> str:
    buttons = "\n".join(
        f"<button type='button' data-task='for-{t.replace(' ', '-')}'>{t}</button>"
        for t in task_names([op for op, _ in ops])
    )
    cards = "\n".join(card(op, drawing) for op, drawing in ops)
    toctree = "```{toctree}\n:hidden:\n\n" + "\n".join(f"ops/{op.short}" for op, _ in ops) + "\n```"
    intro = "Value in blue, gradient in grey, along the input. Choose a task to see what is for it."
    return (
        f"# Ops\n\n{intro}\n\n<div class='filter' role='group' aria-label='Tasks'>\n"
        f"<button type='button' data-task='' class='chosen'>all</button>\n{buttons}\n</div>\n\n"
        f"::::{{container}} gallery\n{cards}\n::::\n\n{toctree}\n"
    )


def tasks_text(ops: Sequence[Op]) -> str:
    """For each task its losses, with what each is for."""
    parts = []
    for task in task_names(ops):
        chosen = [op for op in ops if task in facts.tasks(op)]
        what = facts.TASKS[task][0] if task in facts.TASKS else "What is for none of the above."
        rows = []
        for op in chosen:
            sense = facts.sense(op)
            targets = ", ".join(form(op, n) for n in target_names(op)) if op.is_loss else ""
            rows.append([link(op), targets, linked(" ".join(sense))])
        parts.append(
            f"## {task.capitalize()}\n\n{what}\n\n" + table(["op", "target", "what it is, and what for"], rows)
        )
    return "\n\n".join(parts) + "\n"


def targets_text(ops: Sequence[Op]) -> str:
    """Every loss with the form of its target, and what happens to other forms."""
    losses = [op for op in ops if op.is_loss]
    rows, details = [], []
    for op in losses:
        said = facts.arguments(op)
        for name in target_names(op):
            rows.append([link(op), code(name), escaped(form(op, name)), linked(said.get(name, ""))])
            if found := mistakes(op, name):
                details.append(f"### {escaped(op.short)}, {escaped(name)}\n\n" + mistakes_table(found))
        if not target_names(op):
            rows.append([link(op), "", "none", "what belongs together is said by the arguments"])
    forms = table(["loss", "argument", "form", "as its documentation says"], rows)
    return f"## Every loss\n\n{forms}\n\n## What goes wrong\n\n" + "\n\n".join(details) + "\n"

"""Tables: text in columns, and HTML for notebooks."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns as wide as their widest cell: the first ``left`` ones flush left, the others flush right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, rows)])


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from html import escape  # a program that shows nothing needs none

    def line(cells: Sequence[str], tag: str) -> str:
        cells = [f"<{tag} style='text-align: left'>{escape(c)}</{tag}>" for c in cells]
        return f"<tr>{''.join(cells)}</tr>"

    return "\n".join(["<table>", line(header, "th"), *(line(row, "td") for row in rows), "</table>"])


def yes_no(value: bool) -> str:
    return "yes" if value else "no"


def pairs(facts: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in facts)

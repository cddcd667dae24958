"""A Sphinx extension that writes the pages of all ops, from the registry, before Sphinx reads its sources.

``generated/`` beside the sources holds them: a page and pictures of each op, the gallery, and the tables of the guides.
Formulas become MathML, which browsers set by themselves.
"""

from pathlib import Path
from typing import Any

GENERATED = "generated"
# the op of the guide that goes from a formula to machine code
EXAMPLE = "huber_loss"


def generate(folder: Path) -> None:
    """All that is made of the registry, into a folder. A file whose text stays is left as it is."""
    from opreg import catalogue, get

    from . import facts, machine_code, page, pictures, training

    ops = facts.all_ops()
    drawn = [(op, page.drawing_of(op)) for op in ops]
    images = folder / "images"
    for each in (images, folder / "ops"):
        each.mkdir(parents=True, exist_ok=True)
    for op, drawing in drawn:
        write(folder / "ops" / f"{op.short}.md", page.page(op, drawing))
        if drawing is not None:
            for which in ("value", "grad"):
                pictures.picture(drawing, which, images / f"{op.short}-{which}.svg")
            pictures.thumbnail(drawing, images / f"{op.short}-small.svg")
    write(folder / "gallery.md", page.gallery(drawn))
    write(folder / "tasks.md", page.tasks_text(ops))
    write(folder / "targets.md", page.targets_text(ops))
    shown = catalogue.show(get(EXAMPLE)).split("\n\nreference:")[0]
    write(folder / f"{EXAMPLE}-shown.md", page.block("text", shown) + "\n")
    write(folder / f"{EXAMPLE}-machine_code.md", machine_code.text(page.class_name(get(EXAMPLE))) + "\n")
    for name in training.names():
        training.draw(name, images / f"training-{name}.svg")
        write(folder / f"training-{name}.md", training.text(name))
    known = {op.short for op in ops}
    for old in (folder / "ops").glob("*.md"):
        if old.stem not in known:
            old.unlink()


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def mathml(writer: Any, node: Any) -> None:
    """A formula for the browser; Sphinx's renderer of the name ``mathml``."""
    from docutils import nodes
    from latex2mathml.converter import convert

    display = "block" if isinstance(node, nodes.Element) and node.tagname == "math_block" else "inline"
    # fractions and sums as large as in a formula of its own, smaller in exponents alone
    writer.body.append(convert(node.astext(), display=display).replace("<math ", "<math displaystyle='true' ", 1))
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", lambda app: generate(Path(app.srcdir) / GENERATED))
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

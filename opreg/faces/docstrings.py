"""The documentation of an op's function and of its module, from the one docstring that its declaration carries.

That has a sense, ``Args:``, ``Returns:``, ``Raises:``, ``Formula:`` and an ``Example:`` of the function. ``Source:`` is
added from the declaration, and of ``Args:`` what means the same in every op (``reduction``, ``dtype``) where it is not
written there. The module's has the arguments sorted into those of the constructor and those of the call, and the module
in the example.
"""

import ast
import inspect
import re
from collections.abc import Collection

from ..op import Op

# arguments that mean the same everywhere
COMMON = {
    "ignore_index": "the target value whose positions add nothing to the loss; any integer.",
    "reduction": '``"none"``, ``"mean"`` or ``"sum"``.',
    "dtype": "of the result; by default the promoted dtype of the tensors, float32 under autocast.",
}
LEGACY = {
    "size_average": "deprecated, as in torch.nn.",
    "reduce": "deprecated, as in torch.nn.",
    "inplace": "taken for torch's sake: the gradient needs the input, so the result is a tensor of its own.",
}

Blocks = list[tuple[str, str]]


def blocks(docstring: str) -> Blocks:
    """A docstring in its order: titles with the indented text under them, and paragraphs without a title."""
    result: Blocks = []
    for paragraph in docstring.split("\n\n"):
        if title := re.match(r"([A-Z][a-z]+):\n", paragraph):
            result.append((title[1], paragraph[title.end() :]))
        elif result and paragraph.startswith(" "):
            result[-1] = (result[-1][0], f"{result[-1][1]}\n\n{paragraph}")
        else:
            result.append(("", paragraph))
    return result


def joined(texts: Blocks) -> str:
    return "\n\n".join(f"{title}:\n{text}" if title else text for title, text in texts if text)


def entries(text: str) -> dict[str, str]:
    """The entries of ``Args:`` by the arguments' names; one that documents several, under each."""
    result: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", text):
        head = re.match(r"    (\w+(?:, \w+)*)(?: \(.*?\))?:", entry)
        for name in head[1].split(", ") if head else ():
            result[name] = entry
    return result


def chosen(documented: dict[str, str], names: Collection[str]) -> str:
    """The entries of these names, each once, in the names' order."""
    known = {n: f"    {n}: {text}" for n, text in {**COMMON, **LEGACY}.items()} | documented
    return "\n".join(dict.fromkeys(known[n] for n in names if n in known))


def op_blocks(op: Op) -> Blocks:
    """The op's docstring, and before its example the source that the declaration names."""
    result = blocks(inspect.cleandoc(op.doc or op.reference.__doc__ or ""))
    place = next((i for i, (title, _) in enumerate(result) if title == "Example"), len(result))
    result.insert(place, ("Source", f"    {op.source}"))
    return result


def function_docstring(op: Op) -> str:
    return joined([(t, chosen(entries(text), op.arguments) if t == "Args" else text) for t, text in op_blocks(op)])


def module_docstring(op: Op, name: str, options: Collection[str], tensors: Collection[str]) -> str:
    """Of the class ``name``, that has these options in its constructor and these tensors in its call."""
    result: Blocks = []
    for title, text in op_blocks(op):
        if title == "Args":
            documented = entries(text)
            result.append(("", f"The module over ``opreg.functional.{op.short}``."))
            result.append(("Args", chosen(documented, options)))
            result.append(("Call", chosen(documented, tensors)))
        elif title == "Example":
            result.append((title, module_example(op, name, options, text)))
        else:
            result.append((title, text))
    return joined(result)


def module_example(op: Op, name: str, options: Collection[str], text: str) -> str:
    """The function's example, its calls ``NAME(x, t, gamma=1.5)`` written as ``Name(gamma=1.5)(x, t)``."""
    import doctest  # which imports the debugger

    result = ""
    for piece in doctest.DocTestParser().parse(text):
        if isinstance(piece, str):
            result += piece
            continue
        lines = with_module(op, name, options, piece.source).splitlines()
        indent = " " * piece.indent
        result += f"{indent}>>> {lines[0]}\n" + "".join(f"{indent}... {line}\n" for line in lines[1:])
        result += "".join(f"{indent}{line}\n" for line in piece.want.splitlines())
    return result.rstrip("\n")


def with_module(op: Op, name: str, options: Collection[str], source: str) -> str:
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or ast.unparse(call.func).rsplit(".", 1)[-1] != op.short:
            continue
        whole = ast.get_source_segment(source, call)
        texts = [ast.get_source_segment(source, a) for a in call.args]
        named = dict(zip(op.arguments, texts, strict=False))
        named |= {str(k.arg): ast.get_source_segment(source, k.value) for k in call.keywords}
        if whole is None or "dtype" in named:
            continue
        constructor = ", ".join(f"{n}={text}" for n, text in named.items() if n in options)
        tensors = ", ".join(str(text) for n, text in named.items() if n not in options)
        return source.replace(whole, f"opreg.nn.{name}({constructor})({tensors})")
    return source

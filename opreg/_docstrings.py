"""The documentation of an op's function and of its module, from the one docstring that its declaration carries.

That docstring has a sense, and parts under the titles ``Args:``, ``Returns:``, ``Raises:``, ``Formula:``, ``Example:``.
What all ops share (``reduction``, ``dtype``, the source) is added here, where it is not written there.
"""

import ast
import doctest
import inspect
import re
from collections.abc import Collection

from .registry import Op

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
LAST = ("Raises", "Formula", "Source", "Example")


def parts(docstring: str) -> dict[str, str]:
    """The text under each title, the sense under an empty one."""
    result, title = {"": ""}, ""
    for line in docstring.splitlines():
        if found := re.fullmatch(r"([A-Z][a-z]+):{1,2}", line):
            title = found[1] + "s" * (found[1] == "Arg")
            result[title] = ""
        else:
            result[title] += line + "\n"
    return {t: text.strip("\n") for t, text in result.items()}


def joined(texts: dict[str, str]) -> str:
    return "\n\n".join(f"{title}:\n{text}" if title else text for title, text in texts.items() if text)


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


def op_parts(op: Op) -> dict[str, str]:
    texts = parts(inspect.cleandoc(op.doc or op.reference.__doc__ or ""))
    texts.setdefault("Source", f"    {op.source}")
    return texts


def function_docstring(op: Op) -> str:
    texts = op_parts(op)
    texts["Args"] = chosen(entries(texts.get("Args", "")), op.arguments)
    return joined(ordered(texts))


def module_docstring(op: Op, name: str, options: Collection[str], tensors: Collection[str]) -> str:
    """Of the class ``name``, that has these options in its constructor and these tensors in its call."""
    texts = op_parts(op)
    documented = entries(texts.get("Args", ""))
    texts[""] += f"\n\nThe module over ``opreg.functional.{op.short}``."
    texts["Args"] = chosen(documented, options)
    texts["Call"] = chosen(documented, tensors)
    texts["Example"] = module_example(op, name, options, texts.get("Example", ""))
    return joined(ordered(texts))


def ordered(texts: dict[str, str]) -> dict[str, str]:
    first = ("", "Args", "Call", "Returns")
    others = [t for t in texts if t not in (*first, *LAST)]
    return {t: texts[t] for t in (*first, *others, *LAST) if t in texts}


def module_example(op: Op, name: str, options: Collection[str], text: str) -> str:
    """The function's example, its calls ``NAME(x, t, gamma=1.5)`` written as ``Name(gamma=1.5)(x, t)``."""
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

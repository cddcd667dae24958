"""The package's .pyi files: what is made or loaded at run time, as text for type checkers and editors."""

import inspect
import textwrap
from collections.abc import Iterable, Iterator
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Any

import opreg

from .. import nn
from ..registry import of_namespace
from .functions import function, parameters, result_type
from .modules import OpModule, native_class, options_of

PACKAGE = Path(__file__).parents[1]
HEADER = "# Made of the declarations in opreg/ops when the package is installed, or by `python -m opreg stubs`.\n\n"


def write(package: Path) -> list[Path]:
    """Writes the stubs into a package's folder. Returns their paths."""
    texts = {"__init__.pyi": package_stub(), "functional.pyi": functional_stub(), "nn/__init__.pyi": nn_stub()}
    for name, text in texts.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return [package / name for name in texts]


def package_stub() -> str:
    """Each public name, and the module from which it is."""
    lines = []
    for name in vars(opreg)["__all__"]:
        value = getattr(opreg, name)
        # a plain value does not know where it is from
        own = getattr(value, "__module__", vars(opreg)["_LATER"].get(name, ""))
        module = "" if isinstance(value, ModuleType) else own.removeprefix("opreg.")
        lines.append(f"from .{module} import {name} as {name}")
    return HEADER + "\n".join([*sorted(lines), "", "__version__: str", ""])


def stub(*pieces: str) -> str:
    body = "\n".join(pieces)
    sequence = "from collections.abc import Sequence\n\n" if "Sequence[" in body else ""
    return f"{HEADER}{sequence}import torch\nfrom torch import Tensor\n\n{body}"


def functional_stub() -> str:
    functions = []
    for op in of_namespace():
        face = function(op, "opreg.functional")
        functions.append(definition(op.short, parameters(op), type_text(result_type(op)), face.__doc__))
    return stub(*functions)


def nn_stub() -> str:
    classes = [getattr(nn, name) for name in vars(nn)["__all__"]]
    derived = [cls for cls in classes if issubclass(cls, OpModule)]
    written = sorted((cls.__module__.rsplit(".", 1)[1], cls.__name__) for cls in classes if cls not in derived)
    own = [f"from .{module} import {name} as {name}" for module, name in written]
    return stub(*own, "", *map(class_stub, derived))


def class_stub(cls: type[OpModule]) -> str:
    op, name = cls.op, cls.__name__
    native = native_class(op)
    this = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    body = []
    if native is None:
        options = options_of(op)
        body += [f"{p.name}: {annotation(p)}" for p in options]
        body.append(definition("__init__", [this, *options], "None"))
    tensors = list(inspect.signature(cls.forward).parameters.values())
    body.append(definition("forward", tensors, type_text(result_type(op))))
    base = f"torch.nn.{name}" if native is not None else "torch.nn.Module"
    text = quoted(cls.__doc__) + "\n\n" + "\n".join(body)
    return f"class {name}({base}):\n" + textwrap.indent(text, "    ") + "\n"


def definition(name: str, arguments: Iterable[Parameter], returns: str, docstring: str | None = None) -> str:
    """``def NAME(...) -> ...: ...``, as ruff formats it."""
    texts = list(argument_texts(arguments))
    line = f"def {name}({', '.join(texts)}) -> {returns}:"
    # methods are indented once more
    if len(line) + 4 * (texts[:1] == ["self"]) + 4 * (docstring is None) > 120:
        line = f"def {name}(\n    " + ",\n    ".join(texts) + f",\n) -> {returns}:"
    if docstring is None:
        return f"{line} ..."
    return f"{line}\n" + textwrap.indent(quoted(docstring) + "\n", "    ")


def quoted(docstring: str | None) -> str:
    return f'{"r" if chr(92) in str(docstring) else ""}"""{docstring}\n"""'


def argument_texts(arguments: Iterable[Parameter]) -> Iterator[str]:
    keyword_only = False
    for p in arguments:
        if p.kind is Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        if p.annotation is Parameter.empty:
            yield p.name
        elif p.default is Parameter.empty:
            yield f"{p.name}: {annotation(p)}"
        else:
            yield f"{p.name}: {annotation(p)} = {value(p.default)}"


def annotation(p: Parameter) -> str:
    return type_text(p.annotation)


def type_text(annotation: Any) -> str:
    text = inspect.formatannotation(annotation)
    return text.replace("torch.Tensor", "Tensor").replace("collections.abc.", "")


def value(default: Any) -> str:
    return f'"{default}"' if isinstance(default, str) else repr(default)

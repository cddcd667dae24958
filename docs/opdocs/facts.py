"""What the site says of an op, from where it is said already: docstring, README, benchmark, rewriting rules."""

import functools
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from opreg import Op
from opreg._library import PARTIAL
from opreg.faces.docstrings import blocks, entries, function_docstring
from opreg.registry import of_namespace

if TYPE_CHECKING:
    from opreg.passes import Rule

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

# Tasks, and by which words of an op's name, sense or README family one sees that it is for it.
TASKS: dict[str, tuple[str, str]] = {
    "regression": (
        "The target is a number.",
        r"(?<!box )\bregression\b|\bunder a (normal|Poisson)|\bforecast|image restoration|\blandmark",
    ),
    "classification": (
        "The target is a class, or any number of labels.",
        r"\bclassification\b(?! score)|\bexclude each other|several classes at once|labels an? (?:image|row)"
        r"|number of labels|ends in a sigmoid|support vector|log likelihood of class|cross entropy of a linear layer",
    ),
    "imbalance": (
        "Few of the examples, or of the pixels, are those that matter.",
        r"\bimbalanced|very different (frequency|sizes)|\brare\b|most of them absent|\beasy (negatives|positions)"
        r"|hard examples|few foreground",
    ),
    "detection": (
        "Boxes, scores that rank them, heat maps of key points.",
        r"\bbox(es)?\b|\bdetection\b|\bdetectors?\b(?!, many)|\bkey points",
    ),
    "segmentation": (
        "A class for each pixel.",
        r"\bsegment|\bpixelwise|dense prediction|\bforeground|mean IoU|\bmasks?\b",
    ),
    "metric learning": (
        "What belongs together lies together: embeddings, pairs, triplets, contrast.",
        r"^pairs\b|\bembedding|\btriplet|\brank from pairs|\bcontrastive|\bpositive pairs?\b|\bmetric learning",
    ),
    "faces": ("Identities, many of them, few pictures of each.", r"\bfac(es|ial)\b|\bspeakers\b"),
    "sequences": ("The target is a sequence, and where its parts lie is not known.", r"\bsequences?\b|\bspeech\b"),
    "language models": (
        "Large vocabularies, and the activations of feed-forward layers.",
        r"language model|\bvocabular|gpt-oss|\btransformers\b|\btokens?\b",
    ),
    "distillation": (
        "The target is another distribution, or another model's scores.",
        r"\bdistillation|\bteacher|one distribution near another|divergence",
    ),
    "images": (
        "The target is an image.",
        r"image restoration|super-resolution|structural similarity|\bdenois",
    ),
    "activation": ("What stands between two layers.", r"^(activations|gated units)\b"),
}
# what is no loss can be for these alone
OF_LAYERS = ("activation", "language models")


@dataclass(frozen=True)
class Found:
    """What the rewrite finds of an op: native names, rules with a pattern each, and what only looks like it."""

    spellings: tuple[str, ...]
    rules: dict[str, list["Rule"]]
    near: dict[str, str]


def all_ops() -> list[Op]:
    return sorted(of_namespace(), key=lambda op: op.short)


def titled(op: Op) -> dict[str, str]:
    """The blocks of the docstring by title, that without one being the sense."""
    result: dict[str, str] = {}
    for title, text in blocks(function_docstring(op)):
        result[title] = f"{result[title]}\n\n{text}" if title in result else inspect.cleandoc(text)
    return result


def sense(op: Op) -> list[str]:
    """What it is, in a line, and what it is for."""
    return [" ".join(p.split()) for p in titled(op)[""].split("\n\n")]


def arguments(op: Op) -> dict[str, str]:
    """What the docstring says of each argument."""
    text = dict(blocks(function_docstring(op))).get("Args", "")
    return {n: " ".join(e.split(":", 1)[1].split()) for n, e in entries(text).items()}


def of_classes(op: Op, name: str) -> bool:
    """Are the integers of this argument numbers of classes, by its documentation? Else they are labels of any kind."""
    return "class" in arguments(op).get(name, "")


@functools.cache
def families() -> dict[str, str]:
    """Each op's family in the README's table of ops; an op that is not there yet is of its file's."""
    rows = re.findall(r"^\| ([^|]+) \| (`.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    listed = {name: " ".join(family.split()) for family, cells in rows for name in re.findall(r"`(\w+)`", cells)}
    return {op.short: listed.get(op.short, op.family.replace("_", " ")) for op in of_namespace()}


def tasks(op: Op) -> list[str]:
    """What an op is for, by the words with which its documentation says it; else its family."""
    family = families()[op.short]
    text = "\n".join([family, op.short.replace("_", " "), *sense(op)])
    asked = TASKS if op.is_loss else OF_LAYERS
    found = [task for task in asked if re.search(TASKS[task][1], text, re.IGNORECASE | re.MULTILINE)]
    return found or [family]


@functools.cache
def results() -> list[dict[str, Any]]:
    """What was measured, of every committed result."""
    return [
        {**row, "machine": report["machine"]}
        for path in sorted(RESULTS.glob("*.json"))
        for report in [json.loads(path.read_text())]
        for row in report.get("results", [])
    ]


@functools.cache
def predictions() -> list[dict[str, Any]]:
    """What is predicted of a GPU, in microseconds."""
    return [
        row for path in sorted(RESULTS.glob("predicted-*.json")) for row in json.loads(path.read_text())["predictions"]
    ]


@functools.cache
def structs() -> dict[str, tuple[str, str]]:
    """Of each op, the C++ that is written of it, and in which file: its struct, with the comment above."""
    found = {}
    for path in sorted((ROOT / "csrc").glob("*/*.h")):
        for text in re.findall(
            r"^(?:(?://|template).*\n)*struct [^\n]*{\n(?:.*\n)*?};$", path.read_text(), re.MULTILINE
        ):
            if name := re.search(r'\bname = "(\w+)"', text):
                found[name[1]] = (text, str(path.relative_to(ROOT)))
    return found


@functools.cache
def _found() -> dict[str, Found]:
    found = {op.qualname: Found(op.spellings, {}, {}) for op in of_namespace()}
    if PARTIAL:  # a library of some families has no rules
        return found
    from opreg.passes import RULES, NearMiss

    for rule in RULES:
        if isinstance(rule, NearMiss):
            name = re.split(r"\W", rule.name)[0]
            for qualname in {q for q in found if q.endswith(f"::{name}")}:
                found[qualname].near[rule.name] = rule.why
        else:
            for node in rule.replacement_graph.nodes:
                if node.op == "call_function" and (called := getattr(node.target, "_schema", None)) is not None:
                    found[called.name].rules.setdefault(rule.name, []).append(rule)
    return found


def found_by_rewrite(op: Op) -> Found:
    return _found()[op.qualname]


def pattern_text(rule: "Rule") -> str:
    """One way to write what a rule finds."""
    tensors, numbers = rule.parameters
    code = torch.fx.GraphModule({}, rule.pattern_graph).code
    body = [re.sub(r";.*", "", line.split("#")[0]).rstrip() for line in code.split("\n") if line.strip()]
    body = [
        line
        for line in body
        if line.strip() and not line.lstrip().startswith(("def ", "import ", "from ", "torch.fx._"))
    ]
    head = ", ".join([*tensors, *(["*", *numbers] if numbers else [])])
    return "\n".join([f"def pattern({head}):", *body])

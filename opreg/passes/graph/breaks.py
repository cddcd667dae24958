"""Where Dynamo broke a graph, and what a reader can change so that it does not."""

from dataclasses import dataclass

from torch import fx

from ... import _private

# By what Dynamo says of a break: what happens there, and what to write in its place.
_KINDS = {
    "Dynamic shape operator": (
        "a mask picks elements of a tensor there, and how many is not known while it is compiled",
        "choose by torch.where(mask, a, b) in the place of reading and writing x[mask]",
    ),
    "Data-dependent branching": (
        "the program branches on the value of a tensor there",
        "compute both and choose by torch.where, or branch on a number of Python",
    ),
    "Data dependent operator": (
        "a tensor becomes a number of Python there, as by item() or tolist()",
        "make that number, or that list, without a tensor",
    ),
}


_OTHER_WORDS = {
    "generic_jump": "Data-dependent branching",
    "Unsupported Tensor.item()": "Data dependent operator",
}


@dataclass(frozen=True)
class Break:
    """A graph's end that is not the end of the program."""

    # what Dynamo can't trace
    cause: str
    # what to change in the source
    remedy: str
    # the lines of source, the innermost last: the name of the file, and the number
    lines: tuple[tuple[str, int], ...]


def break_after(module: fx.GraphModule) -> Break | None:
    """The break that ends a graph of Dynamo; None where the graph ends with its function, or is not Dynamo's."""
    found = _private.graph_break(module)
    if found is None:
        return None
    text, lines = found
    head, *others = [line.strip() for line in text.strip().splitlines()]
    told = next((line.removeprefix("Explanation: ") for line in others if line.startswith("Explanation: ")), head)
    unknown = f'Dynamo says "{told.split(". ")[0].rstrip(".")}"', "write that in another way, or leave it out"
    kind = next((kind for beginning, kind in _OTHER_WORDS.items() if head.startswith(beginning)), head)
    cause, remedy = _KINDS.get(kind, unknown)
    return Break(cause, remedy, lines)

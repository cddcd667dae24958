"""``Accelerator(dynamo_backend="opreg")``, and transformers' Trainer over it: an enumeration has the backends there."""

import sys
from typing import Any

from ._imports import when_imported

_MODULE = "accelerate.utils.dataclasses"


def _add() -> None:
    kind: Any = sys.modules[_MODULE].DynamoBackend
    member = str.__new__(kind, "OPREG")
    member._name_ = member._value_ = "OPREG"
    # what an enumeration asks for a value that no member has
    kind._missing_ = staticmethod(lambda value: member if value == "OPREG" else None)


def await_it() -> None:
    """Makes ``Accelerator(dynamo_backend="opreg")`` a valid one, as soon as accelerate is imported."""
    when_imported(_MODULE, _add)

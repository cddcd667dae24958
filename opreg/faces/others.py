"""The faces of ops of other namespaces: ``opreg.functional.mylib.NAME``, ``opreg.nn.mylib.Name``."""

from collections.abc import Callable
from typing import Any

from ..op import Op
from ..registry import of_namespace


class Faces:
    """Those of one namespace, made when they are first asked for; an op that takes another's place has its own."""

    def __init__(self, place: str, namespace: str, named: Callable[[Op], str], make: Callable[[Op, str], Any]) -> None:
        self._place, self._namespace, self._named, self._make = f"{place}.{namespace}", namespace, named, make
        self._made: dict[Op, Any] = {}

    def __getattr__(self, name: str) -> Any:
        op = next((op for op in of_namespace(self._namespace) if self._named(op) == name), None)
        if op is None:
            raise AttributeError(f"{self._place!r} has no attribute {name!r}")
        if op not in self._made:
            self._made[op] = self._make(op, self._place)
        return self._made[op]

    def __dir__(self) -> list[str]:
        return sorted(filter(None, map(self._named, of_namespace(self._namespace))))

    def __repr__(self) -> str:
        return f"<{self._place}: {', '.join(dir(self))}>"

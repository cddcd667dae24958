"""Formulas that are looked for together, and what searches for them have found."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from torch import fx

from .budget import OutOfWork
from .match import F, Match, Near
from .reader import Reader
from .starts import ANCHORS, ARITHMETIC, PARTS


class Pool(Generic[F]):
    """Formulas that are looked for together, and what a search asks of all of them.

    Attributes:
        anchors: the calls from whose arguments they start.
        telling: calls without which only sums and products of numbers can be near.
    """

    def __init__(self, formulas: Iterable[F]) -> None:
        self.formulas = tuple(formulas)
        self.anchors = ANCHORS.union(*(formula.call_names for formula in self.formulas)) - ARITHMETIC
        self.telling = self.anchors | PARTS | {"max", "min"}
        self._by_words: dict[frozenset[str], list[int]] = {}
        for i, formula in enumerate(self.formulas):
            self._by_words.setdefault(formula.words, []).append(i)
        self._within: dict[frozenset[str] | None, tuple[F, ...]] = {}
        self._outcomes: dict[Any, Outcome[F]] = {}

    @classmethod
    def of(cls, formulas: Iterable[F]) -> "Pool[F]":
        """The one pool of these formulas."""
        formulas = tuple(formulas)
        key = tuple(map(id, formulas))
        pool: Pool[F] | None = _pools.get(key)
        if pool is None:
            while len(_pools) >= _MOST_POOLS:
                _pools.pop(next(iter(_pools)), None)
            pool = _pools.setdefault(key, cls(formulas))
        return pool

    def outcome(self, key: Any) -> "Outcome[F]":
        """What searches in neighbourhoods of a key have found so far; one of None is nobody else's."""
        if key is None:
            return Outcome()
        while len(self._outcomes) >= _MOST_OUTCOMES:
            self._outcomes.pop(next(iter(self._outcomes)), None)
        return self._outcomes.setdefault(key, Outcome())

    def within(self, held: frozenset[str] | None) -> tuple[F, ...]:
        """The formulas that hold no other functions than these; None: all of them."""
        if held not in self._within:
            places = [i for w, group in self._by_words.items() if held is None or w <= held for i in group]
            self._within[held] = tuple(self.formulas[i] for i in sorted(places))
        return self._within[held]


# The pools of the last rules, by the formulas' ids, which stay theirs as long as the pool has the formulas.
_pools: dict[tuple[int, ...], Pool[Any]] = {}
_MOST_POOLS, _MOST_OUTCOMES = 64, 2048


def forget() -> None:
    """Forgets what searches have found, so that the next one works as the first."""
    _pools.clear()


@dataclass
class Outcome(Generic[F]):
    """What searches in neighbourhoods that are spelled alike have found so far."""

    # with the places of nodes in a neighbourhood in the place of the nodes
    matches: list[Match[F]] = field(default_factory=list)
    nearest: Near | None = None
    # nothing more is to be found, or would be with more work
    whole: bool = False
    given_up: bool = False

    def search(self, found: Iterable[Match[F]], reader: Reader, nodes: Sequence[fx.Node]) -> Iterator[Match[F]]:
        """The matches that are new. Whoever has seen enough may stop: the next one goes on from there."""
        place, work = {n: i for i, n in enumerate(nodes)}, reader.view.work
        try:
            for match in found:
                new = match.moved(None, place)
                if new not in self.matches:
                    self.matches.append(new)
                    yield match
            self.whole = True
        except OutOfWork as out:
            self.whole = self.given_up = out.of_place
            work.given_up.add(reader.root)
        finally:
            nearest = work.nearest.get(reader.root)
            if nearest is not None:
                self.nearest = work.nearest[reader.root] = nearest.in_words()

"""How much a search may work."""

from .._rule import Formula
from ..graph.view import GraphView

# How many formulas and patterns are evaluated: for one root; for one graph; and, on average, for each of its nodes.
_FOR_A_PLACE, _FOR_A_GRAPH, _FOR_A_NODE = 1000, 4000, 20


class OutOfWork(Exception):
    """More formulas and patterns than are evaluated for one root, or for one graph."""

    def __init__(self, of_place: bool) -> None:
        super().__init__()
        # another graph may have more work left
        self.of_place = of_place


class OutOfShare(Exception):
    """More forms of one pattern than its share of the work."""


class Budget:
    """What may be evaluated for one root: so many formulas and patterns.

    As long as it is shared, no pattern takes more than a quarter of what is left when it is first tried: one of many
    numbers leaves the others their chance. What all of them leave is for those that need more.
    """

    def __init__(self, view: GraphView) -> None:
        self.spent = view.work
        of_place, of_graph = self.spent.done + _FOR_A_PLACE, _FOR_A_GRAPH + _FOR_A_NODE * len(view.position)
        self.most, self.of_place = min(of_place, of_graph), of_place <= of_graph
        self.left: dict[int, int] = {}
        self.shared = True

    def take(self) -> None:
        if self.spent.done >= self.most:
            raise OutOfWork(self.of_place)
        self.spent.done += 1

    def take_for(self, formula: Formula) -> None:
        if self.shared:
            left = self.left.get(id(formula))
            if left is None:
                left = 1 + (self.most - self.spent.done) // 4
            if left == 0:
                raise OutOfShare
            self.left[id(formula)] = left - 1
        self.take()

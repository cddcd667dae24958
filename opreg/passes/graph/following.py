"""A graph as the rewrite sees it, while it changes the graph."""

from collections.abc import Iterable, Sequence

from torch import fx

from .calls import resolve
from .view import GraphView


class FollowingView(GraphView):
    """A view that stays true while nodes are exchanged and erased, in time that does not grow with the graph.

    It is what a new view of the changed graph would be. Where that would take more than a look at the nodes that have
    changed, since something is written there, it says so.
    """

    def exchanged(self, old: fx.Node, new: Sequence[fx.Node], readers: Iterable[fx.Node]) -> bool:
        """Follows an exchange of nodes, if it can. False: a new view is needed, since something is written there.

        Args:
            old: is no longer in the graph.
            new: stand where it stood; the last one has the users that it had.
            readers: these users.
        """
        place = self.position[old]
        since = self.position.get(new[0].prev, -1.0)
        step = (place - since) / len(new)
        if step < 1e-6 or not (old in self._quiet or self._unwritten(old)):
            return False
        if any(i not in self.position and i not in new for n in new for i in n.all_input_nodes):
            return False  # reads of attributes came too
        for i, n in enumerate(new, 1):
            self.position[n], self.tensor[n] = place if n is new[-1] else since + i * step, n
        for n in (*new, *readers):
            self.calls[n] = resolve(n, self.module)
            self.prepared.pop(n, None)
            self.spelled.pop(n, None)
            self._inputs.pop(n, None)
        if self.writes and not all(self._fresh(n) for n in (old, *new) if n is not old or old in self._quiet):
            return False  # who sees a write may be others now
        if any(n in self.writing and old in self.writing[n].tensors for n in readers):
            return False
        if not all(self._writes_as_before(n) for n in (*new, *readers)):
            return False
        self._take_over(old, new)
        self._forget(old)
        self.readings = None
        return True

    def _unwritten(self, node: fx.Node) -> bool:
        """Follows that a call which was the last to write to a tensor of its own does not write to it any more, if
        nothing else shares the tensor's memory."""
        write, tensor = self.writing.get(node), self.tensor[node]
        if (
            write is None
            or tensor is node
            or self.versions[tensor][-1] is not node
            or self.names[tensor][-1] is not node
        ):
            return False
        if not write.followed or any(n not in self.names[tensor] for n in self._sharing[self._memory[node]]):
            return False
        self.writes = [w for w in self.writes if w is not write]
        del self.writing[node]
        self.versions[tensor].pop()
        self.names[tensor].pop()
        self._sharing[self._memory[node]].remove(node)
        return True

    def erased(self, node: fx.Node) -> bool:
        """Follows the erasure of a node without users, if it can. False: as above."""
        if node not in self._quiet or (self.writes and not self._fresh(node)):
            return False
        self._forget(node)
        return True

    def _writes_as_before(self, n: fx.Node) -> bool:
        """Does a node that has other inputs than before, or is new, write to the tensors it wrote to before, if any?"""
        found = next(self._writes(n), None)
        if found is None:
            self._quiet[n] = (n.args, n.kwargs)
        return found == self.writing.get(n)

    def _take_over(self, old: fx.Node, new: Sequence[fx.Node]) -> None:
        """Gives new nodes the place of an old one in all that has been found out so far."""
        last, known = new[-1], self.__dict__
        if "names" in known:
            self.names.update({n: [n] for n in new})
        if "_memory" in known:
            self._memory.update({n: n for n in new})
            if self.tensor[old] is old:
                self._memory[last] = self._memory[old]
            if "_sharing" in known:
                for n in new:
                    self._sharing.setdefault(self._memory[n], []).append(n)
        if "_complex" in known and any(i in self._complex for n in (old, *new) for i in (n, *n.all_input_nodes)):
            del known["_complex"]
        if old in self._gradients:
            before = self._gradients[old]
            if self.requires_grad(last) is not before:
                place = self.position[old]
                self._gradients = {n: a for n, a in self._gradients.items() if self.position[n] <= place}
        if "_gradients_and_writes" in known:
            own, written = self._gradients_and_writes
            for n in new:
                own[n] = self._gradient_of(n, [own[i] for i in n.all_input_nodes])
            if own[last] is not own[old] or any(answer is not False for answer in written.values()):
                del known["_gradients_and_writes"]

    def _forget(self, node: fx.Node) -> None:
        for known in (
            self.position,
            self.calls,
            self.tensor,
            self.prepared,
            self.spelled,
            self._inputs,
            self._quiet,
            self._gradients,
        ):
            known.pop(node, None)
        if "names" in self.__dict__:
            self.names.pop(node, None)

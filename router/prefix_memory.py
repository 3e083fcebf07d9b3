"""What the router believes nodes keep of prompts they have computed: bounded, and only a belief.

A node drops what it keeps when it needs the room, and does not say so. A belief that proves wrong
costs the request that followed it one turn from the start.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange

MAX_BLOCKS = 100_000
"""Of all nodes together, some 300 bytes each: 6.4 million tokens on one node, 64,000 on 100."""


class PrefixMemory:
    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._nodes: dict[NodeId, OrderedDict[bytes, LayerRange]] = {}
        """Per node, the names and the layers they were computed for, least lately used first."""
        self._blocks = 0

    def __len__(self) -> int:
        return self._blocks

    def kept_blocks(self, hops: Sequence[Hop], names: Sequence[bytes]) -> int:
        """How many of a prompt's blocks, from its start, all hops keep for their layers."""
        books = [(self._nodes.get(hop.node), hop.layers) for hop in hops]
        for count, name in enumerate(names):
            for book, layers in books:
                kept = book.get(name) if book is not None else None
                if kept is None or not kept.covers(layers):
                    return count
        return len(names)

    def keep(self, hop: Hop, names: Sequence[bytes]) -> None:
        """The hop has computed these blocks of a prompt, the first one first."""
        book = self._nodes.setdefault(hop.node, OrderedDict())
        self._blocks -= len(book)
        # The first blocks are wanted by whoever wants later ones, so they go last.
        for name in reversed(names):
            before = book.get(name)
            if before is None or not before.covers(hop.layers):
                book[name] = hop.layers if before is None else _together(before, hop.layers)
            book.move_to_end(name)
        self._blocks += len(book)
        while (over := self._blocks - self._max_blocks) > 0:
            longest = max(self._nodes.values(), key=len)
            # Down to its share at once: to look for the longest again for each costs more than all
            # else here.
            most = max(1, len(longest) - self._max_blocks // len(self._nodes))
            for _ in range(min(over, most)):
                longest.popitem(last=False)
                self._blocks -= 1

    def forget(self, node: NodeId, names: Iterable[bytes]) -> None:
        """The node does not keep these."""
        book = self._nodes.get(node)
        if book is not None:
            for name in names:
                self._blocks -= book.pop(name, None) is not None

    def forget_node(self, node: NodeId) -> None:
        """It is gone, or has other slices."""
        self._blocks -= len(self._nodes.pop(node, ()))


def _together(one: LayerRange, other: LayerRange) -> LayerRange:
    """Both where that is one range, else the newer."""
    if one.first > other.end or other.first > one.end:
        return other
    return LayerRange(min(one.first, other.first), max(one.end, other.end))

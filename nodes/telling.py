"""What a worker says of its sequences: tokens to the router and to first hops, and refusals.

Refusals are remembered, as they may be lost with a link. Decides nothing about sequences itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from helix_mq.ids import ROUTER
from helix_mq.messages.data import MAX_ROWS, Refused, RefusedItem, TokenItem, Tokens
from nodes.ledger import Ledger
from nodes.returning import Returns
from nodes.steps import Links, OutFrame


class Teller:
    def __init__(self, node: str, ledger: Ledger, returns: Returns, links: Links) -> None:
        self._node = node
        self._find = ledger.find
        self._returns = returns
        self._links = links
        self.refusals: deque[RefusedItem] = deque(maxlen=MAX_ROWS)
        """The last ones that were said."""

    def tell(self, items: Sequence[TokenItem]) -> list[OutFrame]:
        """Sends new tokens of open sequences, by epoch: to first hops where they return by
        themselves, and to the router. Gives the frames for first hops that did not go: for this
        node itself, or for want of a link."""
        find = self._find
        tokens: dict[int, list[TokenItem]] = {}
        for token in items:
            known = find((token.request, token.attempt))
            if known is None:
                continue
            group = tokens.get(known.epoch)
            if group is None:
                tokens[known.epoch] = [token]
            else:
                group.append(token)
        stay: list[OutFrame] = []
        for epoch, group in tokens.items():
            # First of all: somebody's next step waits for them.
            for frame in self._returns.frames(group, epoch):
                here = frame.peer == self._node
                if here or not self._links.send(frame.peer, frame.header, frame.buffers):
                    stay.append(frame)
        for epoch, group in tokens.items():
            # Rows with drafts give several tokens each.
            for start in range(0, len(group), MAX_ROWS):
                part = tuple(group[start : start + MAX_ROWS])
                self._links.send(ROUTER, Tokens(epoch, self._node, part), ())
        return stay

    def refuse(self, epoch: int, items: Sequence[RefusedItem]) -> None:
        self.refusals.extend(items)
        self._say(epoch, items)

    def again(self, epoch: int) -> None:
        """Refusals that were in a link may be lost, and nobody else would move those requests. The
        router passes over what it knows already."""
        self._say(epoch, list(self.refusals))

    def _say(self, epoch: int, items: Sequence[RefusedItem]) -> None:
        for start in range(0, len(items), MAX_ROWS):
            part = tuple(items[start : start + MAX_ROWS])
            self._links.send(ROUTER, Refused(epoch, self._node, part), ())

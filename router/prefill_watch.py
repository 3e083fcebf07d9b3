"""How many prompts a node is given at a time: what it computes in good time, and no more. Pure.

KV room alone does not say when to stop: nodes with much memory and little speed take hundreds of
prompts, which then wait on the node, where no queue is fair and nobody is refused in time. So
prompts wait at the router while those on their way to a first token, across a node, are more than
it computes within `patience_s`.

How fast that is, each prompt tells that has its first token: the tokens that were on their way when
it started, its own with them, took so long. The whole route is in that, its other hops and links
too; a node that is fast alone but behind a slow one is fed at the slow one's pace. A prompt that is
late already counts before it is done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from helix_mq.ids import NodeId, RequestId

AT_LEAST = 2
"""Prompts under way across a node, whatever they take: one is computed, one is on its way."""
_WEIGHT = 0.2
"""Of the newest prompt in the speed that is believed."""


@dataclass(frozen=True, slots=True)
class _Prefill:
    nodes: frozenset[NodeId]
    tokens: int
    since_s: float
    ahead: dict[NodeId, int]
    """Tokens on their way across each node when it started, its own with them."""


class PrefillWatch:
    """`patience_s`: see above; None sets no limit."""

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s
        self._under_way: dict[RequestId, _Prefill] = {}
        """In order of their start."""
        self._tokens: Counter[NodeId] = Counter()
        self._prompts: Counter[NodeId] = Counter()
        self._speeds: dict[NodeId, float] = {}
        self._late: dict[NodeId, float] = {}
        """Nodes that prompts are late on: no faster than this."""

    def start(
        self, request: RequestId, nodes: frozenset[NodeId], tokens: int, now_s: float
    ) -> None:
        """`tokens` are to be computed by every one of `nodes`, those of the request's route."""
        if self._patience_s is None:
            return
        self.leave(request)
        for node in nodes:
            self._tokens[node] += tokens
            self._prompts[node] += 1
        ahead = {node: self._tokens[node] for node in nodes}
        self._under_way[request] = _Prefill(nodes, tokens, now_s, ahead)

    def computed(self, request: RequestId, now_s: float) -> bool:
        """Its token has come. True for the first, which leaves room for another prompt."""
        prefill = self.leave(request)
        if prefill is None:
            return False
        took_s = max(1e-6, now_s - prefill.since_s)
        for node, tokens in prefill.ahead.items():
            speed = tokens / took_s
            before = self._speeds.get(node, speed)
            self._speeds[node] = before + _WEIGHT * (speed - before)
        return True

    def leave(self, request: RequestId) -> _Prefill | None:
        """It is not on a route any more."""
        prefill = self._under_way.pop(request, None)
        if prefill is not None:
            self._tokens.subtract(dict.fromkeys(prefill.nodes, prefill.tokens))
            self._prompts.subtract(prefill.nodes)
        return prefill

    def forget(self, node: NodeId) -> None:
        """It is gone, and what crossed it has left."""
        for book in (self._tokens, self._prompts, self._speeds, self._late):
            book.pop(node, None)

    def look(self, now_s: float) -> None:
        """Finds who is late; before a round of `has_room`."""
        self._late.clear()
        for prefill in self._under_way.values():
            age_s = now_s - prefill.since_s
            if age_s <= (self._patience_s or 0.0):
                return  # nor are those that started later
            for node, tokens in prefill.ahead.items():
                self._late[node] = min(tokens / age_s, self._late.get(node, tokens / age_s))

    def has_room(self, node: NodeId, tokens: int, flow_tokens_per_s: float) -> bool:
        """Whether a prompt of so many tokens may be sent across the node. The flow is believed of a
        node that has computed no prompt yet."""
        if self._patience_s is None or self._prompts[node] < AT_LEAST:
            return True
        speed = self._speeds.get(node, flow_tokens_per_s)
        speed = min(speed, self._late.get(node, speed))
        return self._tokens[node] + tokens <= speed * self._patience_s

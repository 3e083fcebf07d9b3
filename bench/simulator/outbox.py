"""What leaves a simulated node when a step ends: rows to next hops, tokens to the router, and, of
direct sequences, each token's row straight back to the first hop. Plays `nodes.worker` and
`nodes.returning`, whose rule says when a text has ended.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.simulator.flight import Row, pieces_of, sequences_of
from bench.simulator.node_parts import TOKEN, NodeParts, NodeTokens
from bench.simulator.wires import Wire
from helix_mq.ids import ROUTER, NodeId
from helix_mq.messages.data import TokenItem
from nodes.batching import SeqKey, Work
from nodes.returning import ends

Refuse = Callable[[list[tuple[SeqKey, str, str]]], None]
"""Sequences that cannot go on, each with a code and why."""


class Outbox:
    """`blocked`: next hops whose link is too full for more prefill; `on_room` is called when one
    of them is no more."""

    def __init__(
        self, name: NodeId, parts: NodeParts, refuse: Refuse, on_room: Callable[[], None]
    ) -> None:
        self.blocked: set[str] = set()
        self._name = name
        self._parts = parts
        self._refuse = refuse
        self._on_room = on_room

    def leave(self, rows: list[Row], decodes: int) -> list[Row]:
        """Sends the results of a step, its first `decodes` rows the decodes. Gives the rows that
        come back to this node itself, which holds the whole model."""
        tokens: list[TokenItem] = []
        returning: list[Row] = []
        # Decodes and prefill leave in frames of their own, the latter in pieces, as on the wire.
        urgent = rows if decodes == len(rows) else rows[:decodes]
        for hop, frame in self._onward(urgent, tokens, returning).items():
            self._send_decodes(hop, frame)
        if decodes < len(rows):
            for hop, frame in self._onward(rows[decodes:], tokens, returning).items():
                self._send_prefill(hop, frame)
        own: list[Row] = []
        stuck: list[Row] = []
        for hop, frame in sorted(_by_first_hop(returning).items()):
            if hop == self._name:
                own = frame
            elif not self._send_back(hop, frame):
                stuck += frame
        if tokens:
            self._tell(tuple(tokens))
        if stuck:
            # After the tokens, which have been sampled and count.
            why = f"{self._name} has no link to "
            nodes = [(row.seq, row.payload.node.name) for row in stuck]
            self._refuse([(seq, "no_return", why + first) for seq, first in nodes])
        return own

    def _onward(
        self, batch: list[Row], tokens: list[TokenItem], returning: list[Row]
    ) -> dict[str, list[Row]]:
        """Rows for the next hops, by hop; those that end here become tokens, and the next row of a
        direct sequence."""
        frames: dict[str, list[Row]] = {}
        rows: list[Row] = []
        last_hop = ""
        for row in batch:
            leg = row.payload
            if not leg.live:
                continue
            on = leg.next
            if on is not None:
                hop = leg.next_hop
                if hop is not last_hop:
                    last_hop = hop
                    rows = frames.setdefault(hop, [])
                rows.append(
                    Work(on.seq, row.position, row.count, on.layers, on.next_hop, row.sample, on)
                )
            elif row.sample:
                seq, position = row.seq, row.position + row.count
                tokens.append(TokenItem(seq[0], seq[1], position, TOKEN))
                first = leg.back
                if first is not None and not ends(
                    leg.sampling, (), TOKEN, position + 1 - leg.prompt_tokens
                ):
                    returning.append(
                        Work(seq, position, 1, first.layers, first.next_hop, True, first)
                    )
        return frames

    def _wire_to(self, hop: str, rows: list[Row]) -> Wire | None:
        """The link to a next hop; without one its rows are refused."""
        wire = self._parts.wires.between(self._name, hop)
        if wire is not None and wire.up:
            return wire
        why = f"{self._name} has no link to {hop}"
        self._refuse([(row.seq, "no_peer", why) for row in rows])
        return None

    def _send_decodes(self, hop: str, rows: list[Row]) -> None:
        wire, wires = self._wire_to(hop, rows), self._parts.wires
        if wire is not None:
            size = len(rows) * wires.activation_bytes
            on_rows = rows[0].payload.node.on_rows
            urgent = not self._parts.fifo_links
            wires.send(wire, size, on_rows, rows, keys_of=sequences_of, urgent=urgent)

    def _send_prefill(self, hop: str, rows: list[Row]) -> None:
        wire, wires = self._wire_to(hop, rows), self._parts.wires
        if wire is None:
            return
        on_rows, token_bytes = rows[0].payload.node.on_rows, wires.activation_bytes
        for piece in pieces_of(rows, max(1, wire.piece_bytes // token_bytes)):
            size = sum([row.count for row in piece]) * token_bytes
            wires.send(wire, size, on_rows, piece, keys_of=sequences_of, urgent=False)
        if wire.congested:
            self.blocked.add(hop)
            wire.on_room = self._has_room

    def _has_room(self, hop: str) -> None:
        self.blocked.discard(hop)
        self._on_room()

    def _send_back(self, hop: str, rows: list[Row]) -> bool:
        """Decode rows to their first hop; False where no link leads there."""
        wires = self._parts.wires
        wire = wires.between(self._name, hop)
        if wire is None or not wire.up:
            return False
        size = len(rows) * wires.token_bytes
        wires.send(wire, size, rows[0].payload.node.on_rows, rows, keys_of=sequences_of)
        return True

    def _tell(self, items: tuple[TokenItem, ...]) -> None:
        parts = self._parts
        wire = parts.wires.between(self._name, ROUTER)
        if wire is not None and wire.up:
            size = len(items) * parts.wires.token_bytes
            parts.wires.send(wire, size, parts.to_router, NodeTokens(self._name, items))


def _by_first_hop(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.payload.node.name, []).append(row)
    return found

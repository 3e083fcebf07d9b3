"""A node on the virtual clock: the production batcher, page pool and ledger, and a step's time.

Plays what `nodes.worker` does around them, without tensors: rows in, a batch whenever the device is
idle, pages before a row runs, results to the next hops when the step ends. Frees wait for the end
of the step, as on a device. What a batch takes comes from the machine type's StepTable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.simulator.flight import Leg, Row, whole
from bench.simulator.records import Recorder
from bench.simulator.step_times import StepTable
from bench.simulator.timeline import Timeline
from bench.simulator.wires import Wire, Wires
from helix_mq.errors import KvExhausted
from helix_mq.ids import ROUTER, Attempt, NodeId, RequestId
from helix_mq.layers import LayerRange
from helix_mq.messages.data import RefusedItem, ReleaseItem, TokenItem
from nodes.batching import Batcher, SeqKey, Work
from nodes.kv_pages import LayerPagePool
from nodes.ledger import Ledger, Verdict

DROPPED = frozenset({Verdict.STALE})
"""Verdicts on rows that nobody waits for; the others are refused, and the router told."""

TOKEN = 0
"""What every position holds: output lengths decide the end, never the tokens."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What all nodes of a run share."""

    timeline: Timeline
    wires: Wires
    recorder: Recorder
    to_router: Callable[[NodeTokens], None]
    refuse: Callable[[NodeRefusals], None]
    overhead_s: float


@dataclass(frozen=True, slots=True)
class NodeTokens:
    node: NodeId
    items: tuple[TokenItem, ...]


@dataclass(frozen=True, slots=True)
class NodeRefusals:
    node: NodeId
    items: tuple[RefusedItem, ...]


class SimNode:
    """One machine. Dead until `load`; `life` tells events of an earlier life from this one's."""

    def __init__(self, name: NodeId, table: StepTable, parts: NodeParts) -> None:
        self.name = name
        self.alive = False
        self.life = 0
        self.slowdown = 1.0
        """Steps take so many times as long."""
        self.steps = 0
        self.rows = 0
        self._table = table
        self._parts = parts
        self._ranges: dict[LayerRange, LayerRange] = {}
        self._clear(1, 16, 1)

    def _clear(self, pages: int, page_tokens: int, depth: int) -> None:
        self._ledger = Ledger()
        self._batcher: Batcher[Leg] = Batcher(whole, self._table.limits)
        self.pool = LayerPagePool(pages, page_tokens)
        self._legs: dict[SeqKey, Leg] = {}
        self._frees: list[SeqKey] = []
        self._depth = depth
        self._busy = False
        self._blocked: set[str] = set()

    def same(self, layers: LayerRange) -> LayerRange:
        """One object for equal ranges, so that a batch's rows compare by identity."""
        return self._ranges.setdefault(layers, layers)

    def load(self, pages: int, page_tokens: int, depth: int) -> None:
        """Holds a slice from now on, with an empty cache."""
        self._clear(pages, page_tokens, depth)
        self.alive = True

    def die(self) -> None:
        """Loses all it holds and answers nothing."""
        for leg in self._legs.values():
            leg.closed = True
        self.alive = False
        self.life += 1
        self._clear(1, 16, 1)

    @property
    def open_requests(self) -> int:
        return len(self._ledger)

    @property
    def waiting_rows(self) -> int:
        return len(self._batcher)

    def check(self) -> None:
        """Raises AssertionError if pages or sequences are unaccounted for."""
        self.pool.check()
        assert sorted(self._legs) == sorted(self._ledger.sequences())
        freed = set(self.pool.sequences()) - set(self._ledger.sequences())
        assert freed <= set(self._frees), freed

    # -- what arrives -----------------------------------------------------------

    def on_rows(self, rows: list[Row]) -> None:
        """A frame. Rows of unknown sequences are judged by the ledger, the others are queued."""
        if not self.alive:
            return
        add = self._batcher.add
        for row in rows:
            leg = row.payload
            if leg.closed:
                continue
            if not leg.opened and not self._open(row):
                continue
            add(row)
        if not self._busy:
            self._start()

    def _open(self, row: Row) -> bool:
        """The first row of a sequence: True if it may run."""
        seq = row.seq
        verdict = self._ledger.judge(seq, row.position, row.layers)
        if verdict is not Verdict.OPEN:
            if verdict not in DROPPED:
                self._refuse([(seq, verdict.value, f"{self.name}: {verdict.value}")])
            return False
        for older in self._ledger.open(seq, row.layers, row.payload.deadline_ms):
            self._close(older)
        row.payload.opened = True
        self._legs[seq] = row.payload
        return True

    def on_release(self, items: tuple[ReleaseItem, ...]) -> None:
        """The router has done with these attempts."""
        if not self.alive:
            return
        for item in items:
            self._close(SeqKey(RequestId(item.request), Attempt(item.attempt)))
        if not self._busy:
            self._start()

    def on_link_lost(self, peer: str) -> None:
        """The link to `peer` broke: all that goes there must be routed anew."""
        if not self.alive:
            return
        lost = [seq for seq, leg in self._legs.items() if leg.next_hop == peer]
        self._refuse([(s, "link_lost", f"the link {self.name} > {peer} broke") for s in lost])

    def _close(self, seq: SeqKey) -> None:
        self._batcher.remove(seq)
        leg = self._legs.pop(seq, None)
        if leg is not None:
            leg.closed = True
        if not self._ledger.close(seq):
            return
        if self._busy:
            self._frees.append(seq)
        elif seq in self.pool:
            self.pool.free(seq)

    def _refuse(self, refused: list[tuple[SeqKey, str, str]]) -> None:
        items = tuple(RefusedItem(s.request, s.attempt, code, why) for s, code, why in refused)
        for seq, _, _ in refused:
            self._close(seq)
        if items:
            self._parts.refuse(NodeRefusals(self.name, items))

    # -- steps ------------------------------------------------------------------

    def _start(self) -> None:
        """Begins a step if anything may run."""
        batch: list[Row] = []
        # Again while all that was picked is refused: what waits behind it may run.
        while not batch and (
            picked := self._batcher.next_batch(
                open_requests=len(self._ledger), depth=self._depth, blocked=self._blocked
            )
        ):
            batch = self._admit(picked)
        if not batch:
            return
        parts, now = self._parts, self._parts.timeline.now
        seconds, tokens, decodes, layers = self._cost(batch)
        end_s = now + seconds * self.slowdown + parts.overhead_s
        self._busy = True
        self.steps += 1
        self.rows += len(batch)
        parts.recorder.on_step(self.name, now, end_s, decodes, tokens, layers)
        parts.timeline.at(end_s, self._finish, (self.life, batch))

    def _admit(self, picked: list[Row]) -> list[Row]:
        """Those of the picked rows that have pages; the others are refused."""
        refused: list[tuple[SeqKey, str, str]] = []
        for row in picked:
            need = row.position + row.count
            if need > row.payload.room:
                why = self._make_room(row, need)
                if why:
                    refused.append((row.seq, KvExhausted.code, f"{self.name}: {why}"))
        if not refused:
            return picked
        self._refuse(refused)
        return [row for row in picked if not row.payload.closed]

    def _make_room(self, row: Row, tokens: int) -> str:
        """Takes pages for so many tokens; why not, where there are too few."""
        seq, pool = row.seq, self.pool
        if not row.payload.room and seq not in pool:
            pool.open(seq, row.layers)
        try:
            pool.ensure(seq, tokens)
        except KvExhausted as e:
            return e.message
        row.payload.room = pool.room_tokens(seq)
        return ""

    def _cost(self, batch: list[Row]) -> tuple[float, int, int, int]:
        """Seconds, prefill tokens, decode rows, and the layers that the step walks."""
        layers = batch[0].layers
        tokens = decodes = 0
        for row in batch:
            if row.layers is not layers:
                return self._mixed_cost(batch)
            if row.count == 1 and row.is_decode:
                decodes += 1
            else:
                tokens += row.count
        held = layers.end - layers.first
        return held * self._table.layer_s(tokens, decodes), tokens, decodes, held

    def _mixed_cost(self, batch: list[Row]) -> tuple[float, int, int, int]:
        """The same where rows run different layers of the slice."""
        pieces: dict[LayerRange, list[int]] = {}
        for row in batch:
            piece = pieces.setdefault(row.layers, [0, 0])
            piece[row.is_decode] += row.count
        tokens, decodes = (sum(column) for column in zip(*pieces.values(), strict=True))
        walked = max(p.end for p in pieces) - min(p.first for p in pieces)
        return self._table.pieces_s(pieces), tokens, decodes, walked

    def _finish(self, step: tuple[int, list[Row]]) -> None:
        """The end of a step: results go on, what was released meanwhile is freed."""
        life, batch = step
        if life != self.life:
            return
        self._busy = False
        self._forward(batch)
        for seq in self._frees:
            if seq in self.pool:
                self.pool.free(seq)
        self._frees.clear()
        if len(self._batcher):
            self._start()

    def _forward(self, batch: list[Row]) -> None:
        frames: dict[str, list[Row]] = {}
        tokens: list[TokenItem] = []
        rows: list[Row] = []
        last_hop = ""
        for row in batch:
            leg = row.payload
            if leg.closed:
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
                seq = row.seq
                tokens.append(TokenItem(seq[0], seq[1], row.position + row.count, TOKEN))
        for hop, rows in frames.items():
            self._send_rows(hop, rows)
        if tokens:
            self._send_tokens(tuple(tokens))

    def _send_rows(self, hop: str, rows: list[Row]) -> None:
        parts = self._parts
        wire = parts.wires.between(self.name, hop)
        if wire is None or not wire.up:
            why = f"{self.name} has no link to {hop}"
            self._refuse([(row.seq, "no_peer", why) for row in rows])
            return
        on_rows = rows[0].payload.node.on_rows
        token_bytes = parts.wires.activation_bytes
        # Decodes and prefill leave in frames of their own, the latter in pieces, as on the wire.
        decodes = [row for row in rows if row.is_decode]
        if decodes:
            keys = [row.seq for row in decodes]
            parts.wires.send(wire, len(decodes) * token_bytes, on_rows, decodes, keys=keys)
        if len(decodes) == len(rows):
            return
        prefill = [row for row in rows if not row.is_decode]
        for piece in pieces_of(prefill, max(1, wire.piece_bytes // token_bytes)):
            size = sum([row.count for row in piece]) * token_bytes
            keys = [row.seq for row in piece]
            parts.wires.send(wire, size, on_rows, piece, keys=keys, urgent=False)
        if wire.congested:
            self._blocked.add(hop)
            wire.on_room = self._has_room

    def _has_room(self, hop: str) -> None:
        """A link that prefill was held back for can take more."""
        self._blocked.discard(hop)
        if self.alive and not self._busy:
            self._start()

    def _send_tokens(self, items: tuple[TokenItem, ...]) -> None:
        parts = self._parts
        wire: Wire | None = parts.wires.between(self.name, ROUTER)
        if wire is not None and wire.up:
            size = len(items) * parts.wires.token_bytes
            parts.wires.send(wire, size, parts.to_router, NodeTokens(self.name, items))


def pieces_of(rows: list[Row], most: int) -> list[list[Row]]:
    """Rows in lists of at most `most` tokens each, rows cut where need be."""
    if sum([row.count for row in rows]) <= most:
        return [rows]
    pieces: list[list[Row]] = [[]]
    held = 0
    for row in rows:
        done = 0
        while done < row.count:
            if held == most:
                pieces.append([])
                held = 0
            count = min(row.count - done, most - held)
            last = done + count == row.count
            pieces[-1].append(
                Work(
                    row.seq,
                    row.position + done,
                    count,
                    row.layers,
                    row.next_hop,
                    row.sample and last,
                    row.payload,
                )
            )
            held += count
            done += count
    return pieces

"""A node on the virtual clock: the production batcher, page pool and ledger, and a step's time.

Plays what `nodes.worker` does around them, without tensors: rows in, a batch whenever the device is
idle, pages before a row runs, results to the next hops when the step ends. Frees wait for the end
of the step, as on a device. What a batch takes comes from the machine type's StepTable.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.simulator.flight import Leg, Row, whole
from bench.simulator.node_parts import NodeParts, NodeRefusals
from bench.simulator.outbox import Outbox
from bench.simulator.step_times import StepTable
from helix_mq.errors import KvExhausted
from helix_mq.ids import Attempt, NodeId, RequestId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import Heartbeat, LinkReport
from helix_mq.messages.data import RefusedItem, ReleaseItem
from nodes.batching import Batcher, SeqKey
from nodes.kv_pages import LayerPagePool
from nodes.ledger import Ledger, Verdict

DROPPED = frozenset({Verdict.STALE})
"""Verdicts on rows that nobody waits for; the others are refused, and the router told."""


@dataclass(slots=True)
class Step:
    """A batch that runs: its rows, decodes first, and what it takes at normal speed."""

    rows: list[Row]
    seconds: float
    decodes: int
    prefill_tokens: int
    layers: int


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
        self._step_s = self._expected_s = 0.0
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
        self._prompt_ends_s = 0.0
        self._out = Outbox(self.name, self._parts, self._refuse, self._has_room)

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
            leg.closed, leg.live = True, False
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

    def heartbeat(
        self, incarnation: int, epoch: int, links: tuple[LinkReport, ...] = ()
    ) -> Heartbeat:
        """What a daemon says of itself; tokens and faults are not looked at by anyone."""
        waiting, pool = self._batcher.statistics(), self.pool
        return Heartbeat(
            node=self.name,
            incarnation=incarnation,
            sequence=0,
            epoch=epoch,
            open_requests=len(self._ledger),
            waiting_rows=waiting.waiting_rows,
            waiting_tokens=waiting.waiting_tokens,
            kv_free_pages=pool.free_pages,
            kv_total_pages=pool.total_pages,
            steps=self.steps,
            step_s=self._step_s,
            tokens=0,
            layer_tokens=0,
            bad_messages=0,
            links=links,
            expected_s=self._expected_s,
        )

    # -- what arrives -----------------------------------------------------------

    def on_rows(self, rows: list[Row]) -> None:
        """A frame. Rows of unknown sequences are judged by the ledger, the others are queued."""
        if not self.alive:
            return
        self._batcher.extend([row for row in rows if row.payload.live or self._open(row)])
        if not self._busy:
            self._start()
        elif self._prompt_ends_s and rows[0].is_decode:
            # A frame of decodes (they travel apart) that comes while prompts run waits for them.
            now = self._parts.timeline.now
            self._parts.recorder.on_behind(now, len(rows) * (self._prompt_ends_s - now))

    def _open(self, row: Row) -> bool:
        """A row of a sequence that is not live: True if it may run, as the first one."""
        if row.payload.closed:
            return False
        seq = row.seq
        verdict = self._ledger.judge(seq, row.position, row.layers)
        if verdict is not Verdict.OPEN:
            if verdict not in DROPPED:
                self._refuse([(seq, verdict.value, f"{self.name}: {verdict.value}")])
            return False
        for older in self._ledger.open(seq, row.layers, row.payload.deadline_ms):
            self._close(older)
        row.payload.live = True
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
        # Nothing waits there any more that would say when there is room again.
        self._out.blocked.discard(peer)
        why = f"the link {self.name} > {peer} broke"
        lost = [seq for seq, leg in self._legs.items() if leg.next_hop == peer]
        self._refuse([(seq, "link_lost", why) for seq in lost])
        back = [seq for seq, leg in self._legs.items() if leg.back and leg.back.node.name == peer]
        self._refuse([(seq, "no_return", why) for seq in back])

    def _close(self, seq: SeqKey) -> None:
        self._batcher.remove(seq)
        leg = self._legs.pop(seq, None)
        if leg is not None:
            leg.closed, leg.live = True, False
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
        step: Step | None = None
        # Again while all that was picked is refused: what waits behind it may run.
        while step is None and (
            picked := self._batcher.next_batch(
                open_requests=len(self._ledger), depth=self._depth, blocked=self._out.blocked
            )
        ):
            step = self._admit(picked)
        if step is None:
            return
        parts, now = self._parts, self._parts.timeline.now
        end_s = now + step.seconds * self.slowdown + parts.overhead_s
        self._busy = True
        self._prompt_ends_s = end_s if step.prefill_tokens else 0.0
        self.steps += 1
        self._step_s += end_s - now
        self._expected_s += step.seconds + parts.overhead_s
        self.rows += len(step.rows)
        parts.recorder.on_step(
            self.name, now, end_s, step.decodes, step.prefill_tokens, step.layers
        )
        parts.timeline.at(end_s, self._finish, (self.life, step))

    def _admit(self, picked: list[Row]) -> Step | None:
        """Takes pages for the picked rows; those without are refused. None if none are left."""
        refused: list[tuple[SeqKey, str, str]] = []
        layers = picked[0].layers
        tokens = decodes = 0
        alike = True
        for row in picked:
            count = row.count
            need = row.position + count
            if need > row.payload.room and (why := self._make_room(row, need)):
                refused.append((row.seq, KvExhausted.code, f"{self.name}: {why}"))
            if row.layers is not layers:
                alike = False
            if count == 1 and row.is_decode:
                decodes += 1
            else:
                tokens += count
        if refused:
            self._refuse(refused)
            left = [row for row in picked if row.payload.live]
            return self._admit(left) if left else None
        if alike:
            walked = layers.end - layers.first
            seconds = walked * self._table.layer_s(tokens, decodes)
        else:
            seconds, walked = self._mixed_cost(picked)
        return Step(picked, seconds, decodes, tokens, walked)

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

    def _mixed_cost(self, batch: list[Row]) -> tuple[float, int]:
        """Seconds, and layers walked, of a batch whose rows run different layers of the slice."""
        pieces: dict[LayerRange, list[int]] = {}
        for row in batch:
            piece = pieces.setdefault(row.layers, [0, 0])
            piece[row.is_decode] += row.count
        walked = max(p.end for p in pieces) - min(p.first for p in pieces)
        return self._table.pieces_s(pieces), walked

    def _finish(self, done: tuple[int, Step]) -> None:
        """The end of a step: results go on, what was released meanwhile is freed."""
        life, step = done
        if life != self.life:
            return
        self._busy = False
        if own := self._out.leave(step.rows, step.decodes):
            self._batcher.extend(own)
        for seq in self._frees:
            if seq in self.pool:
                self.pool.free(seq)
        self._frees.clear()
        if len(self._batcher):
            self._start()

    def _has_room(self) -> None:
        """A link that prefill was held back for can take more."""
        if self.alive and not self._busy:
            self._start()

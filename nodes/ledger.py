"""Which sequences are open on this node, and which must never be served again. Pure.

A sequence (request, attempt) opens with its first row, at position 0 or at the end of a prefix
whose pages the engine is asked for before the row runs, and closes by release, refusal or deadline.
Closed ones leave a tombstone: rows still on their way when the release overtook them
are refused instead of opening the sequence, and its pages, again.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from helix_mq.ids import Attempt, RequestId
from helix_mq.layers import LayerRange
from nodes.batching import SeqKey

MAX_TOMBSTONES = 200_000
"""About 20 MiB; at 1,000 requests/s it remembers three minutes, far longer than a frame travels."""

MAX_OPEN = 16_384
"""Far more than there are pages for; each takes about 2 KiB here, and time in every step."""


class Verdict(StrEnum):
    """What to do with an arriving row."""

    OPEN = "open"
    CONTINUE = "continue"
    STALE = "stale"
    """Of a released or older attempt: dropped, nobody waits for it."""
    OUT_OF_ORDER = "out_of_order"
    """A gap in the sequence: something was lost, the router must re-route."""
    WRONG_LAYERS = "wrong_layers"
    FULL = "overloaded"
    """MAX_OPEN sequences are open."""


@dataclass(slots=True)
class OpenSequence:
    seq: SeqKey
    layers: LayerRange
    next_position: int
    deadline_ms: int
    drafts: int = 0
    """Of its last row: the next one may begin before those of them that were wrong."""
    epoch: int = 0
    """The newest its rows came under."""
    returned_by: str = ""
    """The last hop, where that hands tokens to this node itself."""
    over: bool = False
    """A newer attempt has been seen, or was closed."""


class Ledger:
    def __init__(self) -> None:
        self._open: dict[SeqKey, OpenSequence] = {}
        self.opened: Mapping[SeqKey, OpenSequence] = self._open
        """Those that are open now."""
        self.find = cast(Callable[[tuple[int, int]], OpenSequence | None], self._open.get)
        """An open one by its plain numbers: making a key of them takes longer than the look-up."""
        self._newest: dict[RequestId, Attempt] = {}
        self._tombstones: OrderedDict[RequestId, Attempt] = OrderedDict()
        self.due_ms = sys.maxsize
        """No deadline of an open sequence is earlier: `expired` need not be asked before."""

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, seq: SeqKey) -> bool:
        return seq in self._open

    def any_open(self, sequences: Iterable[SeqKey]) -> bool:
        return not self._open.keys().isdisjoint(sequences)

    def sequences(self) -> list[SeqKey]:
        return list(self._open)

    def is_over(self, seq: SeqKey) -> bool:
        """It was closed, or a newer attempt has been seen."""
        dead = self._tombstones.get(seq.request)
        if dead is not None and seq.attempt <= dead:
            return True
        newest = self._newest.get(seq.request)
        return newest is not None and seq.attempt < newest

    def judge(
        self, seq: SeqKey, position: int, layers: LayerRange, *, resumes: bool = False
    ) -> Verdict:
        """What to do with a row of `seq` starting at `position`; changes nothing. `resumes`: it
        may be the sequence's first, with what is before it kept from others."""
        if self.is_over(seq):
            return Verdict.STALE
        known = self._open.get(seq)
        if known is None:
            if position != 0 and not resumes:
                return Verdict.OUT_OF_ORDER
            return Verdict.OPEN if len(self._open) < MAX_OPEN else Verdict.FULL
        if known.layers != layers:
            return Verdict.WRONG_LAYERS
        if not 0 <= known.next_position - position <= known.drafts:
            # A repeated row is as wrong as a missing one: it would write its KV twice. Only drafts
            # that were wrong are written over.
            return Verdict.OUT_OF_ORDER
        return Verdict.CONTINUE

    def follow(
        self,
        request: int,
        attempt: int,
        position: int,
        count: int,
        layers: LayerRange,
        epoch: int,
        drafts: int,
    ) -> SeqKey | None:
        """`judge` and `advance` in one for what nearly every row is: the next one of an open
        sequence, whose key is given. None, and nothing is changed, where there is more to say
        about it."""
        known = self.find((request, attempt))
        if known is None:
            return None
        if known.over or not 0 <= known.next_position - position <= known.drafts:
            return None
        if known.layers is not layers:
            # Stops are remembered, so mostly it is the same object; comparing takes longer.
            if known.layers != layers:
                return None
            known.layers = layers
        known.next_position = position + count
        known.drafts = drafts
        if epoch > known.epoch:
            known.epoch = epoch
        return known.seq

    def open(
        self, seq: SeqKey, layers: LayerRange, deadline_ms: int, position: int = 0
    ) -> list[SeqKey]:
        """Opens `seq`; gives older attempts of the same request, which must be closed now."""
        older = []
        newest = self._newest.get(seq.request)
        if newest is not None and newest < seq.attempt:
            older.append(SeqKey(seq.request, newest))
            self._pass_over(older[0])
        self._newest[seq.request] = seq.attempt
        self._open[seq] = OpenSequence(seq, layers, position, deadline_ms)
        if 0 < deadline_ms < self.due_ms:
            self.due_ms = deadline_ms
        return older

    def advance(
        self, seq: SeqKey, position: int, count: int, epoch: int = 0, drafts: int = 0
    ) -> None:
        """A row of `seq` may run; the last `drafts` of its tokens may be taken back by the next."""
        known = self._open[seq]
        known.next_position = position + count
        known.drafts = drafts
        known.epoch = max(known.epoch, epoch)

    def shorten(self, seq: SeqKey, position: int, count: int, drafts: int) -> bool:
        """Of the row that came last, `count` tokens from `position` on, only the first and so many
        drafts will run. False, and nothing is changed, if others have come behind it."""
        known = self._open.get(seq)
        if known is None or known.next_position != position + count:
            return False
        known.next_position = position + 1 + drafts
        known.drafts = drafts
        return True

    def expect_from(self, seq: SeqKey, last_hop: str) -> None:
        """Tokens of the open `seq` may come from its last hop, too."""
        self._open[seq].returned_by = last_hop

    def epoch(self, seq: SeqKey) -> int:
        """The newest epoch that rows of the open `seq` came under."""
        return self._open[seq].epoch

    def outside(self, epochs: Container[int]) -> list[SeqKey]:
        """Open sequences that have come under none of `epochs`, or not lately."""
        return [s for s, o in self._open.items() if o.epoch not in epochs]

    def close(self, seq: SeqKey) -> bool:
        """Closes `seq` for good, open or not; True if it was open."""
        was = self._open.pop(seq, None)
        if was is not None:
            # Whoever has it still does not let its rows in.
            was.over = True
        newest = self._newest.get(seq.request)
        if newest == seq.attempt:
            del self._newest[seq.request]
        elif newest is not None and newest < seq.attempt:
            self._pass_over(SeqKey(seq.request, newest))
        dead = self._tombstones.pop(seq.request, None)
        self._tombstones[seq.request] = max(dead if dead is not None else seq.attempt, seq.attempt)
        if len(self._tombstones) > MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)
        return was is not None

    def _pass_over(self, seq: SeqKey) -> None:
        """Its rows are stale from now on."""
        known = self._open.get(seq)
        if known is not None:
            known.over = True

    def close_all(self) -> list[SeqKey]:
        """Closes every open sequence, e.g. when the placement changes or the router is gone."""
        closed = list(self._open)
        for seq in closed:
            self.close(seq)
        return closed

    def expired(self, now_ms: int) -> list[SeqKey]:
        """Open sequences whose deadline has passed."""
        if now_ms < self.due_ms:
            return []
        deadlines = [(s, o.deadline_ms) for s, o in self._open.items() if o.deadline_ms > 0]
        self.due_ms = min((deadline for _, deadline in deadlines), default=sys.maxsize)
        return [s for s, deadline in deadlines if deadline <= now_ms]

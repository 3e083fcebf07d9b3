"""Which rows run in the next step: continuous, layer-aware batching. Pure; no torch, no clock.

A node's waiting work is a queue per request, because the tokens of one sequence must run in order.
A step takes decodes first, then prefill chunks up to a token budget, so that one long prompt never
holds up the decodes behind it. Decodes are spread: with `depth` stages in a route, a batch takes no
more than a few times open/depth of them, because decodes that all travel in one batch leave every
other stage idle (docs/simulator.md has the measurements).

Guarantees: tokens of a request are handed out once and in order; a request whose next hop is
blocked or whose decodes are held keeps its place; with anything runnable waiting, `next_batch` is
never empty.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import msgspec

from helix_mq.ids import Attempt, RequestId
from helix_mq.layers import LayerRange

P = TypeVar("P")

MAX_WAITING_ROWS = 131_072
"""Credit counts bytes, but a row of one token takes some 2 KiB here and a few bytes on the wire."""


class SeqKey(NamedTuple):
    """One attempt of one request: what owns KV pages on a node."""

    request: RequestId
    attempt: Attempt


class Work(msgspec.Struct, Generic[P], frozen=True):
    """`count` consecutive tokens of a sequence from `position` on, to run through `layers`.

    A struct, since one is made for every row at every hop: a frozen dataclass takes ten times as
    long to make.
    """

    seq: SeqKey
    position: int
    count: int
    layers: LayerRange
    next_hop: str
    """Where the result goes: the next node, or the router for a last hop."""
    sample: bool
    """The last of these tokens is the sequence's last."""
    payload: P
    """Opaque; cut by the `cut` function given to the batcher."""
    drafts: tuple[int, ...] = ()
    """Token ids of a decode behind its first, which are guessed; it is never cut."""

    @property
    def is_decode(self) -> bool:
        return self.count == 1 + len(self.drafts) and self.sample and self.position > 0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much runs in one step.

    `prefill_tokens`: of all prompts together, beside the decodes (`helix_mq.step_budget` says how
    many suit a machine). `max_rows`: decodes, and prompts beside them. `spread`: decodes of a step,
    as a multiple of an even share of those open over the stages. 1 keeps decodes waiting that
    would cost next to nothing more; without a bound they end up in one convoy, and every stage but
    one idles. `min_decodes`: below it a step costs the same anyway.
    """

    prefill_tokens: int = 128
    max_rows: int = 256
    min_decodes: int = 4
    spread: float = 5.0


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    waiting_requests: int
    waiting_rows: int
    waiting_tokens: int
    batches: int
    rows: int
    decode_rows: int


class Batcher(Generic[P]):
    def __init__(self, cut: Callable[[P, int, int], P], limits: BatchLimits | None = None) -> None:
        """`cut(payload, start, stop)` gives the part of a payload for those tokens of a Work."""
        self._cut = cut
        self.limits = limits or BatchLimits()
        self._always = min(self.limits.max_rows, self.limits.min_decodes)
        """So many decodes go together, however many are open."""
        # The next work of each sequence, oldest turn first; decodes and prefills apart, so that
        # a step looks only at what it takes. What a sequence has behind it is rare.
        self._decodes: OrderedDict[SeqKey, Work[P]] = OrderedDict()
        self._prefills: OrderedDict[SeqKey, Work[P]] = OrderedDict()
        self._behind: dict[SeqKey, deque[Work[P]]] = {}
        self._waiting_tokens = 0
        self.waiting_rows = 0
        self.only_decodes = False
        """Whether the last batch had nothing else."""
        self._batches = self._rows = self._decode_rows = 0

    def add(self, work: Work[P]) -> None:
        self.extend((work,))

    def extend(self, works: Iterable[Work[P]]) -> None:
        """Adds works in order; a frame's rows at once, since there are many to a frame."""
        decodes, prefills = self._decodes, self._prefills
        rows = tokens = 0
        for work in works:
            seq = work.seq
            rows += 1
            tokens += work.count
            if seq in decodes or seq in prefills:
                self._behind.setdefault(seq, deque()).append(work)
            elif not work.drafts:
                # `Work.is_decode` in place.
                if work.count == 1 and work.sample and work.position > 0:
                    decodes[seq] = work
                else:
                    prefills[seq] = work
            elif work.is_decode:
                decodes[seq] = work
            else:
                prefills[seq] = work
        self.waiting_rows += rows
        self._waiting_tokens += tokens

    def passes(self, decodes: int, depth: int) -> bool:
        """Whether so many decodes, all that are open, would be the next batch if they waited here;
        then they may go past with passed()."""
        return not self.waiting_rows and (
            decodes <= self._always or decodes <= self._cap(decodes, depth)
        )

    def passed(self, decodes: int) -> None:
        """They were a batch."""
        self.only_decodes = True
        self._batches += 1
        self._rows += decodes
        self._decode_rows += decodes

    def _cap(self, open_requests: int, depth: int) -> int:
        """Decodes of a step at most."""
        limits = self.limits
        share = math.ceil(limits.spread * open_requests / max(1, depth))
        return min(limits.max_rows, max(limits.min_decodes, share))

    def remove(self, seq: SeqKey) -> list[Work[P]]:
        """Takes a sequence out, e.g. released; gives back what it had waiting."""
        work = self._decodes.pop(seq, None) or self._prefills.pop(seq, None)
        if work is None:
            return []
        works = [work, *self._behind.pop(seq, ())]
        self._waiting_tokens -= sum(w.count for w in works)
        self.waiting_rows -= len(works)
        return works

    def __len__(self) -> int:
        return self.waiting_rows

    @property
    def prompts_wait(self) -> bool:
        """Something besides decodes may be next."""
        return bool(self._prefills or self._behind)

    def next_batch(
        self,
        *,
        open_requests: int,
        depth: int,
        blocked: Container[str] = (),
        held: Container[SeqKey] = (),
    ) -> list[Work[P]]:
        """The rows of the next step, taken out of the queue; empty if nothing may run.

        `open_requests`: sequences with KV here, running or waiting elsewhere in the pipeline.
        `blocked`: next hops whose link has no credit; their prefill stays, their decodes go, since
        a decode is a few KiB and waiting for it stalls a whole pipeline round.
        `held`: sequences whose decodes stay, too.
        """
        if not self.waiting_rows:
            return []
        line = self._decodes
        if len(line) <= self._always and len(line) == self.waiting_rows and not held:
            # Decodes only, and few: what most steps of a cluster with little to do are.
            batch = list(line.values())
            line.clear()
            self.waiting_rows = self._waiting_tokens = 0
            self.passed(len(batch))
            return batch
        cap = self._cap(open_requests, depth)
        more_behind = bool(self._behind)
        batch = self._take_decodes(cap, held)
        decodes = len(batch)
        if self._prefills:
            # Tokens of one sequence depend on each other: never two rows of it in one step.
            taken = {work.seq for work in batch} if more_behind else ()
            self._take_prefills(batch, taken, blocked)
        if batch:
            self.only_decodes = decodes == len(batch)
            self._batches += 1
            self._rows += len(batch)
            self._decode_rows += decodes
        return batch

    def statistics(self) -> BatcherStatistics:
        return BatcherStatistics(
            waiting_requests=len(self._decodes) + len(self._prefills),
            waiting_rows=self.waiting_rows,
            waiting_tokens=self._waiting_tokens,
            batches=self._batches,
            rows=self._rows,
            decode_rows=self._decode_rows,
        )

    def _enqueue(self, work: Work[P]) -> None:
        """Puts a sequence's next work at the end of its line."""
        if work.is_decode:
            self._decodes[work.seq] = work
        else:
            self._prefills[work.seq] = work

    def _take_decodes(self, most: int, held: Container[SeqKey]) -> list[Work[P]]:
        line = self._decodes
        if held:
            free = [seq for seq in line if seq not in held]
            batch = [line.pop(seq) for seq in free[:most]]
        else:
            batch = list(islice(line.values(), most))
            if len(batch) == len(line):
                line.clear()
            else:
                for work in batch:
                    del line[work.seq]
        self.waiting_rows -= len(batch)
        for work in batch:
            self._waiting_tokens -= work.count
        if self._behind:
            for work in batch:
                self._follow(work.seq)
        return batch

    def _take_prefills(
        self,
        batch: list[Work[P]],
        taken: Container[SeqKey],
        blocked: Container[str],
    ) -> None:
        budget, room = self.limits.prefill_tokens, self.limits.max_rows
        for seq, work in list(self._prefills.items()):
            if budget <= 0 or room <= 0:
                break
            if work.next_hop in blocked or seq in taken:
                continue
            piece = self._take_piece(work, budget)
            room -= 1
            batch.append(piece)
            budget -= piece.count

    def _take_piece(self, work: Work[P], tokens: int) -> Work[P]:
        """So many tokens of a waiting prefill at most; the rest goes to the end of the line, so
        that prompts share the budget in turn."""
        del self._prefills[work.seq]
        if work.count <= tokens:
            self.waiting_rows -= 1
            self._waiting_tokens -= work.count
            self._follow(work.seq)
            return work
        self._waiting_tokens -= tokens
        rest = msgspec.structs.replace(
            work,
            position=work.position + tokens,
            count=work.count - tokens,
            payload=self._cut(work.payload, tokens, work.count),
        )
        self._enqueue(rest)
        return msgspec.structs.replace(
            work, count=tokens, sample=False, payload=self._cut(work.payload, 0, tokens)
        )

    def _follow(self, seq: SeqKey) -> None:
        """What a sequence has behind the work just taken is next."""
        behind = self._behind.get(seq)
        if behind is None:
            return
        self._enqueue(behind.popleft())
        if not behind:
            del self._behind[seq]

"""Which rows run in the next step: continuous, layer-aware batching. Pure; no torch, no clock.

A node's waiting work is a queue per request, because the tokens of one sequence must run in order.
A step takes decodes first, then prefill chunks up to a token budget, so that one long prompt never
holds up the decodes behind it. Decodes are spread: with `depth` stages in a route, a batch takes
about open/depth of them, because decodes that all travel in one batch leave every other stage idle.

Guarantees: tokens of a request are handed out once and in order; a request whose next hop is
blocked keeps its place; with anything runnable waiting, `next_batch` is never empty.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from helix_mq.ids import Attempt, RequestId
from helix_mq.layers import LayerRange

P = TypeVar("P")


class SeqKey(NamedTuple):
    """One attempt of one request: what owns KV pages on a node."""

    request: RequestId
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Work(Generic[P]):
    """`count` consecutive tokens of a sequence from `position` on, to run through `layers`."""

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

    @property
    def is_decode(self) -> bool:
        return self.count == 1 and self.sample and self.position > 0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`step_tokens`: all tokens of a step; `chunk_tokens`: of one prompt in a step."""

    step_tokens: int = 256
    chunk_tokens: int = 128
    max_rows: int = 256
    min_decodes: int = 4
    """Spreading never makes batches smaller than this: below it a step costs the same anyway."""


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
        self._queues: OrderedDict[SeqKey, deque[Work[P]]] = OrderedDict()
        self._waiting_tokens = 0
        self._waiting_rows = 0
        self._batches = self._rows = self._decode_rows = 0

    def add(self, work: Work[P]) -> None:
        self._queues.setdefault(work.seq, deque()).append(work)
        self._waiting_tokens += work.count
        self._waiting_rows += 1

    def remove(self, seq: SeqKey) -> list[Work[P]]:
        """Takes a sequence out, e.g. released; gives back what it had waiting."""
        queue = self._queues.pop(seq, None)
        if queue is None:
            return []
        self._waiting_tokens -= sum(w.count for w in queue)
        self._waiting_rows -= len(queue)
        return list(queue)

    def __len__(self) -> int:
        return self._waiting_rows

    def next_batch(
        self,
        *,
        open_requests: int,
        depth: int,
        blocked: Container[str] = (),
    ) -> list[Work[P]]:
        """The rows of the next step, taken out of the queue; empty if nothing may run.

        `open_requests`: sequences with KV here, running or waiting elsewhere in the pipeline.
        `blocked`: next hops whose link has no credit; their prefill stays, their decodes go, since
        a decode is a few KiB and waiting for it stalls a whole pipeline round.
        """
        limits = self.limits
        cap = max(limits.min_decodes, -(-open_requests // max(1, depth)))
        cap = min(cap, limits.max_rows)
        batch: list[Work[P]] = []
        budget = limits.step_tokens
        for seq in [s for s, q in self._queues.items() if q[0].is_decode]:
            if len(batch) >= cap or budget <= 0:
                break
            batch.append(self._take(seq, 1))
            budget -= 1
        decodes = len(batch)
        # Tokens of one sequence depend on each other: never two rows of it in one step.
        taken = {work.seq for work in batch}
        prefills = (
            s
            for s, q in list(self._queues.items())
            if s not in taken and not q[0].is_decode and q[0].next_hop not in blocked
        )
        for seq in prefills:
            if budget <= 0 or len(batch) >= limits.max_rows:
                break
            piece = self._take(seq, min(budget, limits.chunk_tokens))
            batch.append(piece)
            budget -= piece.count
        if batch:
            self._batches += 1
            self._rows += len(batch)
            self._decode_rows += decodes
        return batch

    def statistics(self) -> BatcherStatistics:
        return BatcherStatistics(
            waiting_requests=len(self._queues),
            waiting_rows=self._waiting_rows,
            waiting_tokens=self._waiting_tokens,
            batches=self._batches,
            rows=self._rows,
            decode_rows=self._decode_rows,
        )

    def _take(self, seq: SeqKey, tokens: int) -> Work[P]:
        queue = self._queues[seq]
        work = queue[0]
        if work.count <= tokens:
            queue.popleft()
            self._waiting_rows -= 1
            taken = work
        else:
            taken = replace(
                work, count=tokens, sample=False, payload=self._cut(work.payload, 0, tokens)
            )
            queue[0] = replace(
                work,
                position=work.position + tokens,
                count=work.count - tokens,
                payload=self._cut(work.payload, tokens, work.count),
            )
        self._waiting_tokens -= taken.count
        if queue:
            # Served sequences go to the back, so that prompts share the budget in turn.
            self._queues.move_to_end(seq)
        else:
            del self._queues[seq]
        return taken

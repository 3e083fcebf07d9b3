"""What a worker and its surroundings hand each other: steps, their results, an engine, links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from helix_mq.foreseen import Foreseen, PackedHeader
from helix_mq.frames import Buffer
from helix_mq.messages.data import FrameHeader, RefusedItem, TokenItem
from nodes.batching import BatchLimits, SeqKey, Work
from nodes.payload import Payload
from nodes.step_expectation import StepExpectation
from nodes.tracing import Tracer

Batch = list[Work[Payload]]


def use_up(batch: Batch) -> None:
    """Takes a step's rows off the frames that they came in; those of one frame mostly stand
    together."""
    use, count = batch[0].payload.use, 0
    for work in batch:
        if work.payload.use is not use:
            use.take(count)
            use, count = work.payload.use, 0
        count += work.count
    use.take(count)


class OutFrame(msgspec.Struct, frozen=True, gc=False):
    """One frame to one peer, complete but for epoch and sender."""

    # These two are structs, as one is made in every step.

    peer: str
    header: FrameHeader | PackedHeader
    buffers: tuple[Buffer, ...]
    sequences: frozenset[SeqKey]


class StepResult(msgspec.Struct, frozen=True, gc=False):
    frames: list[OutFrame]
    tokens: list[TokenItem]
    seconds: float
    num_tokens: int
    layer_tokens: int
    refused: Sequence[RefusedItem] = ()
    """Rows that came to no token; the others of the step did."""
    began_s: float = 0.0
    """On the process's performance counter, as `computed_s`; 0 where an engine does not say."""
    computed_s: float = 0.0
    """All results were on the host; what is left is to make frames of them."""


class StepEngine(Protocol):
    """What the worker needs of an engine; `nodes.engine.Engine` is the real one."""

    def admit(self, work: Work[Payload]) -> RefusedItem | None:
        """Reserves pages for a row about to run, or says why not. Loop thread, device idle."""
        ...

    def draft_room(self, work: Work[Payload]) -> int:
        """How many of the row's drafts have pages that nobody else needs. Loop thread, device
        idle."""
        ...

    def run(self, batch: Batch) -> StepResult:
        """Runs one step. Device thread."""
        ...

    def begin(self, batch: Batch) -> int | None:
        """Has threads of its own run it, where it can: gives a file that can be read when they have
        ended, until end(). None where it is for run(). Loop thread, device idle."""
        ...

    def again(self, batch: Batch, payload: memoryview) -> int | None:
        """As admit() and begin(), of all rows of a frame that was foreseen and its payload, where
        they were the last step, too. None, having done nothing, where they are for admit()."""
        ...

    def end(self) -> StepResult | None:
        """What came of it; None where run() must do it again, to say what is wrong. Loop thread."""
        ...

    def free(self, seq: SeqKey) -> None: ...

    def check(self) -> None:
        """Raises AssertionError if a page is lost or doubly held."""
        ...

    @property
    def free_pages(self) -> int: ...

    @property
    def total_pages(self) -> int: ...

    @property
    def cached_pages(self) -> int: ...


class Links(Protocol):
    """What the worker needs of the data plane; `helix_mq.dataplane.DataPlane` is the real one."""

    @property
    def foreseen(self) -> dict[bytes, Foreseen]:
        """Frames that are known before they come, by their headers."""
        ...

    def send(self, peer: str, header: msgspec.Struct, buffers: Sequence[Buffer] = ()) -> bool: ...

    def blocked_peers(self) -> set[str]: ...

    def overdraft(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The pipeline's depth, and how large a step may be."""

    depth: int = 1
    limits: BatchLimits = BatchLimits()
    expectation: StepExpectation | None = None
    """What steps should take, where that has been measured."""
    tracer: Tracer | None = None
    """Of the node; a worker without one has its own, which nobody asks."""


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    open_requests: int
    waiting_rows: int
    waiting_tokens: int
    kv_free_pages: int
    kv_total_pages: int
    steps: int
    step_s: float
    tokens: int
    layer_tokens: int
    expected_s: float = 0.0
    """What the steps counted in `step_s` should have taken; 0 where that is not known."""
    kv_cached_pages: int = 0
    """Of those free: beginnings of prompts are kept in them until their room is needed."""

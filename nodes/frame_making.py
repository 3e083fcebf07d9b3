"""What leaves a step: one frame for all rows that go to one peer. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from helix_mq.ids import ROUTER
from helix_mq.messages.data import DIRECT, SAMPLE, VERIFY, FrameHeader, Row
from nodes.batching import Work
from nodes.payload import Payload
from nodes.steps import Batch, OutFrame

Wire = Callable[[int, int, str], tuple[str, memoryview]]
"""(first token, end, peer): wire dtype and bytes of these of the activations that leave."""


def in_order(batch: Batch) -> Batch:
    """The batch as it is to run, so that each frame's activations are one piece of the step's.
    Decodes leave apart from the rest, so that they can go first."""
    if len(batch) == 1:
        return batch
    return sorted(
        batch,
        key=lambda w: (w.next_hop, not w.is_decode, w.payload.epoch, w.payload.is_tokens),
    )


def frames_of(node: str, works: Batch, width: int, wire: Wire) -> list[OutFrame]:
    """Of works `in_order`; those whose route ends here are passed over."""
    frames: list[OutFrame] = []
    start = at = 0
    while start < len(works):
        first = works[start]
        peer, epoch, decode = first.next_hop, first.payload.epoch, first.is_decode
        end, count = start + 1, first.count
        while (
            end < len(works)
            and works[end].next_hop == peer
            and works[end].payload.epoch == epoch
            and works[end].is_decode == decode
        ):
            count += works[end].count
            end += 1
        if peer != ROUTER:
            rows = works if end - start == len(works) else works[start:end]
            frames.append(frame_of(node, rows, width, *wire(at, at + count, peer)))
            at += count
        start = end
    return frames


def frame_of(
    node: str, works: Sequence[Work[Payload]], width: int, dtype: str, payload_bytes: memoryview
) -> OutFrame:
    """Of works that go to one peer under one epoch."""
    course = works[0].payload.use.course
    if course is not None:
        known = course.leave(works, dtype)
        if known is not None:
            return OutFrame(works[0].next_hop, known[0], (payload_bytes,), known[1])
    routes: dict[bytes, int] = {}
    rows: list[Row] = []
    histories: list[memoryview] = []
    for work in works:
        payload, seq = work.payload, work.seq
        spec = payload.spec if work.sample else None
        if spec is not None and payload.history is not None:
            histories.append(payload.history.data.cast("B"))
        # In the order of the fields: by their names it takes twice as long.
        rows.append(
            Row(
                seq.request,
                seq.attempt,
                work.position,
                work.count,
                routes.setdefault(payload.route_blob, len(routes)),
                payload.hop + 1,
                (SAMPLE if work.sample else 0)
                | (VERIFY if work.drafts else 0)
                | (DIRECT if payload.direct else 0),
                payload.deadline_ms,
                spec,
                payload.blocks.names if payload.blocks is not None else b"",
                work.drafts,
            )
        )
    first = works[0]
    header = FrameHeader(
        epoch=first.payload.epoch,
        sender=node,
        dtype=dtype,
        width=width,
        rows=tuple(rows),
        routes=tuple(routes),
    )
    if course is not None:
        course.left(works, header)
    buffers: tuple[memoryview, ...] = (payload_bytes,)
    if histories:
        buffers += (histories[0] if len(histories) == 1 else memoryview(b"".join(histories)),)
    return OutFrame(first.next_hop, header, buffers, frozenset([w.seq for w in works]))

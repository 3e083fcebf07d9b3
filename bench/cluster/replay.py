"""What happened in a live run, told to the simulator's Recorder in the order of time. Pure.

So every figure is computed by the same code on both sides and means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.cluster.load import Asked
from bench.cluster.paced import NodeLog
from bench.cluster.ways import PART_S, ShaperLog
from bench.simulator.records import Recorder

Told = tuple[float, int, Callable[[Recorder], None]]


def replay(
    recorder: Recorder,
    asked: Sequence[Asked],
    nodes: Sequence[NodeLog],
    shaper: ShaperLog,
    began_s: float,
) -> None:
    """Times in the logs are of one clock; `began_s` on it is the run's 0."""
    events: list[Told] = []
    for number, request in enumerate(asked):
        for at_s, tell in _request(str(number), request, began_s):
            events.append((at_s, len(events), tell))
    for node in nodes:
        for step in node.steps:
            at_s = step.began_s - began_s
            tell = partial(
                Recorder.on_step,
                node=node.node,
                start_s=at_s,
                end_s=step.ended_s - began_s,
                decode_rows=step.decodes,
                prefill_tokens=step.prefill_tokens,
                layers=step.layers,
            )
            events.append((at_s, len(events), tell))
    for way in shaper.ways:
        for part, nbytes in sorted(way.bytes_by_part.items()):
            at_s = part * PART_S - began_s
            if -PART_S < at_s < 0:
                # The run began within this part.
                at_s = 0.0
            tell = partial(
                Recorder.on_link,
                src=way.source,
                dst=way.target,
                start_s=at_s,
                end_s=at_s + nbytes / way.bytes_per_s,
                size_bytes=nbytes,
            )
            events.append((at_s, len(events), tell))
    for at_s, _, tell in sorted(events, key=lambda e: e[:2]):
        if at_s >= 0:
            tell(recorder)


def _request(
    name: str, request: Asked, began_s: float
) -> Iterator[tuple[float, Callable[[Recorder], None]]]:
    lengths = request.lengths
    # Sent at the very beginning: not before it for want of a few microseconds.
    at_s = max(0.0, request.sent_s - began_s)
    yield (
        at_s,
        partial(
            Recorder.on_arrival,
            request=name,
            at_s=at_s,
            prompt_tokens=lengths.prompt_tokens,
            output_tokens=lengths.output_tokens,
        ),
    )
    for token_s in request.tokens_s:
        token_at_s = token_s - began_s
        yield token_at_s, partial(Recorder.on_token, request=name, at_s=token_at_s, count=1)
    if request.ended_s is not None:
        end_s, ok = request.ended_s - began_s, bool(request.ok)
        yield (
            end_s,
            partial(Recorder.on_end, request=name, at_s=end_s, ok=ok, reason=request.reason),
        )

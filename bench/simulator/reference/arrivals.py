"""From the wire to the queues: which requests have arrived when a node looks for work.

Segments stand for one arrival per request; this keeps the order that those would have. At the very
end of a step (nodes in lockstep make that common) what arrives at that time is taken in.
"""

from __future__ import annotations

from heapq import heappop, heappush

from bench.simulator.reference.parts import NodeState, Segment


class Arrivals:
    """Reads inboxes. `prompt_tokens` and `context` are the engine's lists by query."""

    __slots__ = ("_context", "_prompt_tokens")

    def __init__(self, prompt_tokens: list[int], context: list[int]) -> None:
        self._prompt_tokens = prompt_tokens
        self._context = context

    def drain(self, node: NodeState, now: float) -> None:
        """Moves what has arrived by `now` from the inbox to the queues, in order of arrival."""
        inbox = node.inbox
        while inbox and inbox[0][0] <= now:
            segment = heappop(inbox)
            last = segment[2]
            if inbox and inbox[0][0] < last and inbox[0][0] <= now:
                self._interleaved(node, segment, now)
                return
            self.accept(node, segment, now)

    def accept(self, node: NodeState, segment: Segment, now: float) -> None:
        """Queues what has arrived of `segment` by `now`; the rest goes back to the inbox."""
        if segment[2] > now:
            segment = self._split(node, segment, now)
        _, _, _, _, group, prompts, tokens, context, entry = segment
        node.arrived_tokens += tokens if prompts else len(group)
        queue = node.queues[entry]
        if queue:
            queue += group
            node.queue_prompts[entry] += prompts
            node.queue_tokens[entry] += tokens
            node.queue_context[entry] += context
        else:
            node.queues[entry] = group
            node.queue_prompts[entry] = prompts
            node.queue_tokens[entry] = tokens
            node.queue_context[entry] = context
            node.occupied |= 1 << entry

    def _split(self, node: NodeState, segment: Segment, now: float) -> Segment:
        """The part that has arrived by `now` (not empty); the rest goes back to the inbox."""
        first, sequence, last, gap, group, prompts, tokens, _, entry = segment
        count = 1
        at = first + gap
        while at <= now and count < len(group) - 1:
            count += 1
            at = first + count * gap
        arrived, rest = group[:count], group[count:]
        length = self._context
        rest_context = sum(map(length.__getitem__, rest))
        heappush(node.inbox, (at, sequence, last, gap, rest, 0, 0, rest_context, entry))
        context = sum(map(length.__getitem__, arrived))
        return (first, sequence, at, gap, arrived, prompts, tokens, context, entry)

    def _interleaved(self, node: NodeState, segment: Segment, now: float) -> None:
        """As `drain` where arrivals on several links interleave: sorts them one by one."""
        inbox = node.inbox
        segments = [segment]
        while inbox and inbox[0][0] <= now:
            segments.append(heappop(inbox))
        arrivals: list[tuple[float, int, int, int]] = []
        for part in segments:
            taken = part if part[2] <= now else self._split(node, part, now)
            first, sequence, _, gap, group, _, _, _, entry = taken
            for position, query in enumerate(group):
                arrivals.append((first + position * gap, sequence, query, entry))
        arrivals.sort()
        for _, _, query, entry in arrivals:
            size = self._prompt_tokens[query]
            if not node.queues[entry]:
                node.queues[entry] = []
                node.queue_prompts[entry] = 0
                node.queue_tokens[entry] = 0
                node.queue_context[entry] = 0
                node.occupied |= 1 << entry
            node.queues[entry].append(query)
            node.arrived_tokens += size or 1
            if size:
                node.queue_prompts[entry] += 1
                node.queue_tokens[entry] += size
            else:
                node.queue_context[entry] += self._context[query]

"""The event loop of compatibility mode: nodes walk their layers, links send one by one.

A node is one event per layer step. What travels is not: requests of one batch cross a link as one
segment of evenly spaced arrivals, and a node reads its inbox only when it looks for work. Arrival
times and order are those of one event per request, at a fraction of the events.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import pairwise
from math import inf
from typing import Protocol

from bench.simulator.reference.arrivals import Arrivals
from bench.simulator.reference.parts import LinkState, NodeState, Segment
from bench.simulator.reference.queries import Query
from bench.simulator.reference.reading import ReferenceDataError
from bench.simulator.reference.tally import Tally

STEP, WAKE, BACK, ARRIVAL = range(4)


class Scheduler(Protocol):
    """Chooses the whole way of a query when it arrives."""

    def route(self, query: int, prompt_tokens: int, now_s: float) -> list[LinkState] | None:
        """Links from the coordinator back to it, or None with nothing changed if none is left."""

    def decode_sent(self, query: int) -> None: ...

    def query_ended(self, query: int) -> None: ...


class Feeder(Protocol):
    """Decides when the next query enters."""

    def begin(self, engine: Engine) -> None: ...

    def prompt_ended(self, engine: Engine, now_s: float) -> None: ...

    def query_ended(self, engine: Engine, now_s: float) -> None: ...

    def refused(self, query: int, now_s: float) -> None:
        """The scheduler found no way for `query`."""


class HopWatcher(Protocol):
    """Told of each batch that leaves a node, before it goes on."""

    def left(self, node: NodeState, batch: Sequence[int], now_s: float) -> None: ...

    def sent(self, query: int, now_s: float) -> None:
        """`query` leaves the coordinator."""


class Engine:
    """One run. `queries` are taken in order; state by query index lives in parallel lists."""

    def __init__(
        self,
        nodes: list[NodeState],
        queries: Sequence[Query],
        scheduler: Scheduler,
        feeder: Feeder,
        tally: Tally,
        watcher: HopWatcher | None = None,
    ) -> None:
        self.nodes = nodes
        self.queries = queries
        self.tally = tally
        self.events = 0
        self.now_s = 0.0
        self.in_flight = 0
        self._scheduler = scheduler
        self._feeder = feeder
        self._watcher = watcher
        self._heap: list[tuple[float, int, int]] = []
        self._sequence = 0
        self._next_query = 0
        self._first_link: dict[int, LinkState] = {}
        self._prompt_tokens = [0] * len(queries)
        self._context = [0] * len(queries)
        self._left = [0] * len(queries)
        self._arrivals = Arrivals(self._prompt_tokens, self._context)
        self._sent_s = [0.0] * len(queries)

    def arrive_at(self, at_s: float) -> bool:
        """Puts the next query of the sequence on the calendar; False if there is none left."""
        if self._next_query >= len(self.queries):
            return False
        self._push(at_s, self._next_query * 4 + ARRIVAL)
        self._next_query += 1
        return True

    @property
    def idle(self) -> bool:
        """True if nothing is left on the calendar."""
        return not self._heap

    def begin(self) -> None:
        self._feeder.begin(self)

    def advance(self, until_s: float) -> None:
        """Runs until the calendar is empty or the next event lies after `until_s`."""
        heap = self._heap
        nodes = self.nodes
        events = 0
        while heap and heap[0][0] <= until_s:
            now, _, code = heappop(heap)
            events += 1
            kind = code & 3
            if kind == STEP:
                self._step_ended(nodes[code >> 2], now)
            elif kind == WAKE:
                node = nodes[code >> 2]
                if not node.busy and node.wake_s == now:
                    # Only the first: of arrivals at the very same time, it starts the node alone.
                    self._arrivals.accept(node, heappop(node.inbox), now)
                    self._start(node, 0, now)
            else:
                self.now_s = now
                if kind == BACK:
                    self._came_back(code >> 2, now)
                else:
                    self._arrived(code >> 2, now)
        self.events += events

    def _push(self, at_s: float, code: int) -> None:
        self._sequence += 1
        heappush(self._heap, (at_s, self._sequence, code))

    def _arrived(self, query: int, now: float) -> None:
        tokens = self.queries[query].prompt_tokens
        path = self._scheduler.route(query, tokens, now)
        if path is None:
            self._feeder.refused(query, now)
            return
        for link, following in pairwise(path):
            node = link.target
            if node is not None and node.only_link is None:
                node.next_link[query] = following
        self.in_flight += 1
        self._first_link[query] = path[0]
        self._prompt_tokens[query] = tokens
        self._context[query] = tokens
        self._left[query] = self.queries[query].output_tokens
        self._leave_coordinator(query, now)

    def _leave_coordinator(self, query: int, now: float) -> None:
        self._sent_s[query] = now
        if self._watcher is not None:
            self._watcher.sent(query, now)
        link = self._first_link[query]
        tokens = self._prompt_tokens[query]
        if tokens:
            self._send_prompt(link, query, now)
        else:
            self._send_decodes(link, [query], self._context[query], now)

    def _came_back(self, query: int, now: float) -> None:
        latency = now - self._sent_s[query]
        tokens = self._prompt_tokens[query]
        if tokens:
            self._prompt_tokens[query] = 0
            self.tally.prompt_done(now, query, tokens, latency)
        else:
            self.tally.decode_done(now, query, latency)
            self._context[query] += 1
            self._left[query] -= 1
        if self._left[query]:
            self._scheduler.decode_sent(query)
            self._leave_coordinator(query, now)
            if tokens:
                self._feeder.prompt_ended(self, now)
            return
        self.tally.finished_queries += 1
        self.in_flight -= 1
        self._scheduler.query_ended(query)
        del self._first_link[query]
        for node in self.nodes:
            node.next_link.pop(query, None)
        self._feeder.query_ended(self, now)

    def _step_ended(self, node: NodeState, now: float) -> None:
        following = node.layer + 1
        batch = node.batch
        if following == node.layers:
            following = 0
            if self._watcher is not None:
                self._watcher.left(node, batch, now)
            self._depart(node, now)
        else:
            queue = node.queues[following]
            if queue:
                queue += batch
                if node.batch_prompts:
                    node.queue_prompts[following] += node.batch_prompts
                    node.queue_tokens[following] += node.batch_tokens
                node.queue_context[following] += node.batch_context
            else:
                node.queues[following] = batch
                node.queue_prompts[following] = node.batch_prompts
                node.queue_tokens[following] = node.batch_tokens
                node.queue_context[following] = node.batch_context
                node.occupied |= 1 << following
        inbox = node.inbox
        if inbox and inbox[0][0] <= now:
            self._arrivals.drain(node, now)
        if node.occupied:
            self._start(node, following, now)
            return
        node.busy = False
        node.batch = []
        if inbox:
            node.wake_s = inbox[0][0]
            self._push(node.wake_s, node.index * 4 + WAKE)

    def _start(self, node: NodeState, from_layer: int, now: float) -> None:
        """Runs what waits at the next layer that has any, from `from_layer` on, cyclically."""
        higher = node.occupied >> from_layer
        if higher:
            layer = from_layer + (higher & -higher).bit_length() - 1
        else:
            layer = (node.occupied & -node.occupied).bit_length() - 1
        batch = node.queues[layer]
        prompts = node.queue_prompts[layer]
        tokens = node.queue_tokens[layer]
        context = node.queue_context[layer]
        if (
            prompts > node.limit_prompts
            or tokens > node.limit_tokens
            or context > node.limit_context
            or len(batch) - prompts > node.limit_decodes
        ):
            batch, prompts, tokens, context = self._select(node, layer)
        else:
            node.queues[layer] = []
            node.occupied ^= 1 << layer
        node.batch = batch
        node.batch_prompts = prompts
        node.batch_tokens = tokens
        node.batch_context = context
        node.layer = layer
        decodes = len(batch) - prompts
        duration = node.prefill_s[tokens] + node.decode_s[decodes]
        if not layer:
            duration += node.arrived_tokens * node.arrived_s_per_token
            node.arrived_tokens = 0
        node.busy = True
        node.wake_s = inf
        self._sequence += 1
        heappush(self._heap, (now + duration, self._sequence, node.index * 4))

    def _select(self, node: NodeState, layer: int) -> tuple[list[int], int, int, int]:
        """Takes from the queue, in order, what fits the limits; the rest stays in order."""
        batch: list[int] = []
        rest: list[int] = []
        prompts = tokens = context = decodes = 0
        for query in node.queues[layer]:
            size = self._prompt_tokens[query]
            if size:
                if prompts < node.limit_prompts and tokens + size <= node.limit_tokens:
                    prompts += 1
                    tokens += size
                    batch.append(query)
                else:
                    rest.append(query)
            else:
                length = self._context[query]
                if decodes < node.limit_decodes and context + length <= node.limit_context:
                    decodes += 1
                    context += length
                    batch.append(query)
                else:
                    rest.append(query)
        if not batch:
            raise ReferenceDataError(
                f"node {node.setup.number}: a request of {self._context[rest[0]]} tokens is larger "
                f"than the node may ever batch",
                param="limits",
            )
        node.queues[layer] = rest
        node.queue_prompts[layer] -= prompts
        node.queue_tokens[layer] -= tokens
        node.queue_context[layer] -= context
        if not rest:
            node.occupied ^= 1 << layer
        return batch, prompts, tokens, context

    def _depart(self, node: NodeState, now: float) -> None:
        link = node.only_link
        if link is not None:
            self._send(link, node.batch, node.batch_prompts, node.batch_context, now)
            return
        groups: dict[int, list[int]] = {}
        by_index: dict[int, LinkState] = {}
        next_link = node.next_link
        for query in node.batch:
            link = next_link[query]
            index = link.index
            if index in groups:
                groups[index].append(query)
            else:
                groups[index] = [query]
                by_index[index] = link
        sizes = self._prompt_tokens
        for index, group in groups.items():
            prompts = sum(1 for query in group if sizes[query]) if node.batch_prompts else 0
            self._send(by_index[index], group, prompts, -1, now)

    def _send(
        self, link: LinkState, group: list[int], prompts: int, context: int, now: float
    ) -> None:
        """Sends `group` in order; `context` is the decodes' total context, -1 if not known."""
        if not prompts:
            if context < 0:
                context = sum(map(self._context.__getitem__, group))
            self._send_decodes(link, group, context, now)
            return
        run: list[int] = []
        for query in group:
            if self._prompt_tokens[query]:
                if run:
                    self._send(link, run, 0, -1, now)
                    run = []
                self._send_prompt(link, query, now)
            else:
                run.append(query)
        if run:
            self._send(link, run, 0, -1, now)

    def _send_prompt(self, link: LinkState, query: int, now: float) -> None:
        tokens = self._prompt_tokens[query]
        free = link.free_s if link.free_s > now else now
        link.free_s = free = free + tokens * link.s_per_token
        at = free + link.latency_s
        if link.target is None:
            self._push(at, query * 4 + BACK)
            return
        self._sequence += 1
        segment = (at, self._sequence, at, 0.0, [query], 1, tokens, 0, link.entry)
        self._deliver(link.target, segment)

    def _send_decodes(self, link: LinkState, group: list[int], context: int, now: float) -> None:
        gap = link.s_per_token
        free = link.free_s if link.free_s > now else now
        latency = link.latency_s
        node = link.target
        if node is None:
            for query in group:
                free += gap
                self._push(free + latency, query * 4 + BACK)
            link.free_s = free
            return
        first = free + gap + latency
        if len(group) == 1:
            link.free_s = free + gap
            last = first
        else:
            link.free_s = free + len(group) * gap
            last = first + (len(group) - 1) * gap
        self._sequence += 1
        self._deliver(node, (first, self._sequence, last, gap, group, 0, 0, context, link.entry))

    def _deliver(self, node: NodeState, segment: Segment) -> None:
        heappush(node.inbox, segment)
        if not node.busy and segment[0] < node.wake_s:
            node.wake_s = segment[0]
            self._push(segment[0], node.index * 4 + WAKE)

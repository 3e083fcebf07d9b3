"""The four request schedulers of the published simulator, as its notes describe them.

Each chooses a query's whole way when it arrives. Here only for comparison: what serves real
requests are the router's own schedulers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.simulator.reference.parts import LinkState, NodeState
from bench.simulator.reference.setup import COORDINATOR

MIN_FLOW_SHARE = 0.05
"""A next hop with less of its sender's outgoing flow is never chosen."""

MEAN_OUTPUT_TOKENS = 240


class MaxFlowScheduler:
    """Interleaved weighted round robin on the flow, with expected KV use as a mask.

    Expected length of a query: prompt + 240 x `output_ratio` tokens on every layer of its way. A
    node is masked out if with the query on all its layers it would pass `high_water` of its room.
    """

    def __init__(
        self,
        nodes: Sequence[NodeState],
        links: Sequence[LinkState],
        num_layers: int,
        *,
        output_ratio: float,
        high_water: float,
    ) -> None:
        self._choices = _choices(links)
        for choices in self._choices.values():
            floor = MIN_FLOW_SHARE * sum(link.flow for link in choices)
            choices[:] = [link for link in choices if link.flow >= floor and link.flow > 0]
        self._load = [0.0] * len(links)
        self._expected_output = MEAN_OUTPUT_TOKENS * output_ratio
        self._room = [node.setup.kv_entries * high_water for node in nodes]
        self._used = [0.0] * len(nodes)
        self._paths: dict[int, tuple[list[LinkState], float]] = {}
        self._layer_room = [0.0] * num_layers
        self._nodes = nodes
        for node in nodes:
            for layer in range(node.setup.first, node.setup.end):
                self._layer_room[layer] += node.setup.kv_entries / node.layers

    def route(self, query: int, prompt_tokens: int, now_s: float) -> list[LinkState] | None:
        expected = prompt_tokens + self._expected_output
        load = self._load
        path: list[LinkState] = []
        before: list[tuple[int, float]] = []
        at = COORDINATOR
        while True:
            best: LinkState | None = None
            best_load = 0.0
            for link in self._choices[at]:
                node = link.target
                if node is not None and (
                    prompt_tokens > node.limit_tokens
                    or self._used[node.index] + expected * node.layers > self._room[node.index]
                ):
                    continue
                new_load = load[link.index] + prompt_tokens / link.flow
                if best is None or new_load < best_load:
                    best, best_load = link, new_load
            if best is None:
                for index, value in before:
                    load[index] = value
                return None
            before.append((best.index, load[best.index]))
            load[best.index] = best_load
            path.append(best)
            if best.target is None:
                break
            at = best.dst
        self._paths[query] = (path, expected)
        self._reserve(path, expected)
        return path

    def decode_sent(self, query: int) -> None:
        load = self._load
        for link in self._paths[query][0]:
            load[link.index] += 1 / link.flow

    def query_ended(self, query: int) -> None:
        path, expected = self._paths.pop(query)
        self._reserve(path, -expected)

    def bottleneck(self) -> float:
        """Expected KV use over room of the fullest layer, all its holders taken together."""
        use = [0.0] * len(self._layer_room)
        for node in self._nodes:
            share = self._used[node.index] / node.layers
            for layer in range(node.setup.first, node.setup.end):
                use[layer] += share
        return max(a / b for a, b in zip(use, self._layer_room, strict=True))

    def _reserve(self, path: list[LinkState], expected: float) -> None:
        for link in path:
            if link.target is not None:
                used_layers = link.target.layers - link.entry
                self._used[link.target.index] += expected * used_layers


class RandomScheduler:
    """Each hop uniformly at random."""

    def __init__(self, links: Sequence[LinkState], seed: int) -> None:
        self._choices = _choices(links)
        self._random = random.Random(seed)

    def route(self, query: int, prompt_tokens: int, now_s: float) -> list[LinkState] | None:
        path: list[LinkState] = []
        at = COORDINATOR
        while True:
            choices = self._choices[at]
            path.append(choices[0] if len(choices) == 1 else self._random.choice(choices))
            if path[-1].target is None:
                return path
            at = path[-1].dst

    def decode_sent(self, query: int) -> None: ...

    def query_ended(self, query: int) -> None: ...


class ShortestQueueScheduler:
    """Each hop to a node with the fewest requests on it now; equals are drawn from at random.

    The first of equals would do badly: queues are often empty, and all choices would pile up there.
    """

    def __init__(self, links: Sequence[LinkState], seed: int) -> None:
        self._choices = _choices(links)
        self._random = random.Random(seed)

    def route(self, query: int, prompt_tokens: int, now_s: float) -> list[LinkState] | None:
        path: list[LinkState] = []
        at = COORDINATOR
        while True:
            choices = self._choices[at]
            if len(choices) == 1:
                path.append(choices[0])
            else:
                lengths = [_queue_length(link) for link in choices]
                least = min(lengths)
                path.append(
                    self._random.choice(
                        [k for k, n in zip(choices, lengths, strict=True) if n == least]
                    )
                )
            if path[-1].target is None:
                return path
            at = path[-1].dst

    def decode_sent(self, query: int) -> None: ...

    def query_ended(self, query: int) -> None: ...


class SwarmScheduler:
    """Each hop to the least priority; choosing adds the smoothed hop time to it.

    A hop's time runs from leaving the sender until leaving the node it went to. Smoothing: 0.8 of
    the old value, 0.2 of the new; it starts at 0.05 s.
    """

    SMOOTHING = 0.8
    FIRST_HOP_S = 0.05

    def __init__(self, nodes: Sequence[NodeState], links: Sequence[LinkState]) -> None:
        self._choices = _choices(links)
        self._priority = [0.0] * len(links)
        self._hop_s = [self.FIRST_HOP_S] * len(links)
        self._inward: list[dict[int, int]] = [{} for _ in nodes]
        self._paths: dict[int, list[LinkState]] = {}
        self._sent_s: dict[int, float] = {}

    def route(self, query: int, prompt_tokens: int, now_s: float) -> list[LinkState] | None:
        path: list[LinkState] = []
        at = COORDINATOR
        while True:
            choices = self._choices[at]
            link = choices[0]
            if len(choices) > 1:
                link = min(choices, key=self._priority_of)
                self._priority[link.index] += self._hop_s[link.index]
            path.append(link)
            if link.target is None:
                break
            self._inward[link.target.index][query] = link.index
            at = link.dst
        self._paths[query] = path
        self._sent_s[query] = now_s
        return path

    def _priority_of(self, link: LinkState) -> float:
        return self._priority[link.index]

    def sent(self, query: int, now_s: float) -> None:
        self._sent_s[query] = now_s

    def left(self, node: NodeState, batch: Sequence[int], now_s: float) -> None:
        inward = self._inward[node.index]
        sent_s = self._sent_s
        hop_s = self._hop_s
        for query in batch:
            index = inward[query]
            old = hop_s[index]
            hop_s[index] = self.SMOOTHING * old + (1 - self.SMOOTHING) * (now_s - sent_s[query])
            sent_s[query] = now_s

    def decode_sent(self, query: int) -> None: ...

    def query_ended(self, query: int) -> None:
        del self._sent_s[query]
        for link in self._paths.pop(query):
            if link.target is not None:
                del self._inward[link.target.index][query]


def _choices(links: Sequence[LinkState]) -> dict[int, list[LinkState]]:
    choices: dict[int, list[LinkState]] = {}
    for link in links:
        choices.setdefault(link.src, []).append(link)
    return choices


def _queue_length(link: LinkState) -> int:
    return 0 if link.target is None else link.target.waiting()

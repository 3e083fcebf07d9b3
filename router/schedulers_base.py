"""What every request scheduler offers, and what the core tells it. No scheduler lives here.

A scheduler chooses whole routes. It looks at the graph it was last given, at KV room as the caller
knows it, and at what it has been told since; never at a clock or at chance it was not seeded with,
so equal calls in equal order give equal routes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import Route
from helix_mq.messages.control import Heartbeat
from router.routes import FlowWeights, RoomFor

Method = Literal["maxflow", "swarm", "random", "shortest-queue"]
METHODS: tuple[Method, ...] = ("maxflow", "swarm", "random", "shortest-queue")


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Which scheduler, and the seed of those that draw lots. ConfigError for any other method.

    `prefer_near`: max flow leaves far links alone while near ones carry what is asked for.
    """

    method: Method = "maxflow"
    seed: int = 0
    prefer_near: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"scheduling.method = {self.method!r}: choose one of {', '.join(METHODS)}",
                param="scheduling.method",
            )


class RequestScheduler(Protocol):
    """`work_tokens` is what a request has to prefill: prompt and tokens emitted so far."""

    def choose(self, work_tokens: int, room_for: RoomFor) -> Route | None:
        """A route for a request, or None if no route has room on every hop.

        Only a complete route counts as chosen. That there is one does not depend on the method.
        """
        ...

    def replace(self, weights: FlowWeights) -> None:
        """Another graph: nodes came or went, or their speeds are known better."""
        ...

    def next_nodes(self, source: NodeId) -> Iterable[NodeId]:
        """The nodes that routes may go to from `source` (ROUTER to begin with)."""
        ...

    def wants(self, tokens_per_s: float) -> None:
        """So much is asked for of late, prompts and output together."""
        ...

    def on_token(self, route: Route, elapsed_s: float) -> None:
        """A decode went round `route` and was back after `elapsed_s`."""
        ...

    def on_left(self, route: Route, work_tokens: int) -> None:
        """A request chosen this route for with this work is no longer on it."""
        ...

    def on_beat(self, beat: Heartbeat) -> None:
        """A member's counters, every heartbeat interval."""
        ...


class Deaf:
    """For schedulers to inherit: hears nothing of what happens after the choice."""

    def wants(self, tokens_per_s: float) -> None:
        """Not looked at."""

    def on_token(self, route: Route, elapsed_s: float) -> None:
        """Not looked at."""

    def on_left(self, route: Route, work_tokens: int) -> None:
        """Not looked at."""

    def on_beat(self, beat: Heartbeat) -> None:
        """Not looked at."""

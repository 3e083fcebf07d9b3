"""What all simulated nodes of a run share, and what they tell the router. Plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.simulator.records import Recorder
from bench.simulator.timeline import Timeline
from bench.simulator.wires import Wires
from helix_mq.ids import NodeId
from helix_mq.messages.data import RefusedItem, TokenItem

TOKEN = 0
"""What every position holds: output lengths decide the end, never the tokens."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What all nodes of a run share."""

    timeline: Timeline
    wires: Wires
    recorder: Recorder
    to_router: Callable[[NodeTokens], None]
    refuse: Callable[[NodeRefusals], None]
    overhead_s: float
    fifo_links: bool


@dataclass(frozen=True, slots=True)
class NodeTokens:
    node: NodeId
    items: tuple[TokenItem, ...]


@dataclass(frozen=True, slots=True)
class NodeRefusals:
    node: NodeId
    items: tuple[RefusedItem, ...]

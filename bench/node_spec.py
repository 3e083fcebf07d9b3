"""What a node that is held to step times is started with: see `bench.cluster.node`."""

from __future__ import annotations

import msgspec

from solver.objective import Points

HELD_NODE = "bench.cluster.node"
"""The module that such a node runs, with the path of its NodeSpec in JSON."""


class NodeSpec(msgspec.Struct, frozen=True):
    """`settings`: its node.toml. `prefill`, `decode`: seconds of one layer. `ways`: endpoint as the
    cluster knows it -> where this node dials instead. `log`: where a NodeLog is written at the
    end."""

    settings: str
    prefill: Points
    decode: Points
    ways: dict[str, str]
    log: str

"""The moving parts of a compatibility run as lean mutable records: nodes and links.

No decisions here; the engine reads and writes these directly, millions of times.
"""

from __future__ import annotations

from math import floor, inf

from bench.simulator.reference.setup import COORDINATOR, NodeSetup, Setup

HOST_COPY_S_PER_BYTE = 1 / 4e9 + 1 / 5e9
"""The published simulator's charge for moving arrived activations to the device, per byte."""

Segment = tuple[float, int, float, float, list[int], int, int, int, int]
"""Requests that arrive one after another on one link: first arrival (s), sequence, last arrival
(s), gap (s), requests, how many are prompts (0, or 1 alone), prompt tokens, decode context tokens,
entry layer (relative to the node's first)."""


class NodeState:
    """A node that walks its layers. Queues, counts and `occupied` bits are by relative layer."""

    __slots__ = (
        "arrived_s_per_token",
        "arrived_tokens",
        "batch",
        "batch_context",
        "batch_prompts",
        "batch_tokens",
        "busy",
        "decode_s",
        "inbox",
        "index",
        "layer",
        "layers",
        "limit_context",
        "limit_decodes",
        "limit_prompts",
        "limit_tokens",
        "next_link",
        "occupied",
        "only_link",
        "prefill_s",
        "queue_context",
        "queue_prompts",
        "queue_tokens",
        "queues",
        "setup",
        "wake_s",
    )

    def __init__(self, index: int, setup: NodeSetup, cluster: Setup) -> None:
        self.index = index
        self.setup = setup
        self.layers = layers = setup.end - setup.first
        times = cluster.times[setup.type_name]
        self.prefill_s = times.prefill_s
        self.decode_s = times.decode_s
        self.arrived_s_per_token = cluster.activation_bytes * HOST_COPY_S_PER_BYTE
        self.arrived_tokens = 0
        self.limit_prompts = setup.limits.prompt_requests
        self.limit_tokens = setup.limits.prompt_tokens
        self.limit_decodes = setup.limits.decode_requests
        self.limit_context = setup.limits.decode_context_tokens
        self.queues: list[list[int]] = [[] for _ in range(layers)]
        self.queue_prompts = [0] * layers
        self.queue_tokens = [0] * layers
        self.queue_context = [0] * layers
        self.occupied = 0
        self.batch: list[int] = []
        self.batch_prompts = 0
        self.batch_tokens = 0
        self.batch_context = 0
        self.layer = 0
        self.busy = False
        self.wake_s = inf
        self.inbox: list[Segment] = []
        self.only_link: LinkState | None = None
        self.next_link: dict[int, LinkState] = {}

    def waiting(self) -> int:
        """Requests on the node now, in a queue or in the running batch."""
        return sum(map(len, self.queues)) + len(self.batch)


class LinkState:
    """A link that sends one request at a time. `target` is None on links to the coordinator."""

    __slots__ = (
        "dst",
        "entry",
        "flow",
        "free_s",
        "index",
        "latency_s",
        "s_per_token",
        "src",
        "target",
    )

    def __init__(self, index: int, src: int, dst: int, flow: float, latency_s: float) -> None:
        self.index = index
        self.src = src
        self.dst = dst
        self.flow = flow
        self.latency_s = latency_s
        self.free_s = 0.0
        self.s_per_token = 0.0
        self.entry = 0
        self.target: NodeState | None = None


def build_nodes(setup: Setup) -> list[NodeState]:
    return [NodeState(index, node, setup) for index, node in enumerate(setup.nodes)]


def build_links(setup: Setup, nodes: list[NodeState], *, by_flow: bool) -> list[LinkState]:
    """Links in file order, speeds as the published simulator allots them.

    `by_flow` (its max-flow scheduler): each link gets its share of flow of both NICs, in whole
    bytes/s. Otherwise an equal share of the sender's NIC. Links without flow get no speed in the
    first case, and are never used.
    """
    by_number = {node.setup.number: node for node in nodes}
    out_flow: dict[int, float] = {}
    in_flow: dict[int, float] = {}
    out_count: dict[int, int] = {}
    for link in setup.links:
        out_flow[link.src] = out_flow.get(link.src, 0.0) + (link.flow or 0.0)
        in_flow[link.dst] = in_flow.get(link.dst, 0.0) + (link.flow or 0.0)
        out_count[link.src] = out_count.get(link.src, 0) + 1
    links = []
    for index, link in enumerate(setup.links):
        state = LinkState(index, link.src, link.dst, link.flow or 0.0, link.latency_s)
        source = by_number.get(link.src)
        target = by_number.get(link.dst)
        state.target = target
        if source is not None and target is not None:
            state.entry = source.setup.end - target.setup.first
        nic_out = (
            setup.coordinator_nic_out_bytes_per_s
            if source is None
            else source.setup.nic_out_bytes_per_s
        )
        nic_in = (
            setup.coordinator_nic_in_bytes_per_s
            if target is None
            else target.setup.nic_in_bytes_per_s
        )
        if by_flow:
            speed = 0.0
            if state.flow > 0:
                out_share = nic_out * (state.flow / out_flow[link.src])
                in_share = nic_in * (state.flow / in_flow[link.dst])
                speed = floor(min(link.bytes_per_s, out_share, in_share))
        else:
            speed = min(nic_out / out_count[link.src], link.bytes_per_s, nic_in)
        token_bytes = setup.token_bytes
        if COORDINATOR not in (link.src, link.dst):
            token_bytes += setup.activation_bytes
        state.s_per_token = token_bytes / speed if speed > 0 else inf
        links.append(state)
    for node in nodes:
        outward = [link for link in links if link.src == node.setup.number]
        node.only_link = outward[0] if len(outward) == 1 else None
    return links

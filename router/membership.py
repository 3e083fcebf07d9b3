"""Who is in the cluster, what each node holds, and whether the model is covered. Pure.

A node is JOINED (no layers yet), LOADING, READY or FAILED (could not load). A name
belongs to the newest incarnation that registered under it; what an older one says is answered by a
rejection, so that two processes never serve under one name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from helix_mq.ids import ROUTER, Epoch, NodeId
from helix_mq.layers import LayerRange, Placement, describe_ranges, uncovered
from helix_mq.messages.control import Heartbeat, LinkReport, Ready, Register
from helix_mq.models.quantisation import Quantisation, WeightForm

_STRIDE_S = 1.0
"""Between two looks at who is silent, on a loaded machine."""


class NodeState(StrEnum):
    JOINED = "joined"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Member:
    register: Register
    last_heard_s: float
    state: NodeState = NodeState.JOINED
    layers: LayerRange | None = None
    epoch: Epoch = Epoch(0)
    ready: Ready | None = None
    failure: str = ""
    beat: Heartbeat | None = None

    @property
    def name(self) -> NodeId:
        return NodeId(self.register.node)

    @property
    def form(self) -> WeightForm:
        """How it holds weights."""
        return WeightForm(self.register.dtype_bytes, Quantisation(self.register.quantise))

    @property
    def serves(self) -> bool:
        return self.state is NodeState.READY


class Membership:
    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._members: dict[NodeId, Member] = {}

    def __contains__(self, node: str) -> bool:
        return node in self._members

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter([self._members[name] for name in sorted(self._members)])

    def get(self, node: str) -> Member | None:
        return self._members.get(NodeId(node))

    def is_current(self, node: str, incarnation: int) -> bool:
        member = self._members.get(NodeId(node))
        return member is not None and member.register.incarnation == incarnation

    def join(self, register: Register, now_s: float) -> Member:
        """Adds the node, or refreshes it when the same incarnation registers again."""
        member = Member(register, now_s)
        self._members[member.name] = member
        return member

    def leave(self, node: str) -> Member | None:
        return self._members.pop(NodeId(node), None)

    def hear(self, node: str, incarnation: int, now_s: float) -> Member | None:
        """Marks a sign of life; None if this incarnation is not (or no longer) a member."""
        if not self.is_current(node, incarnation):
            return None
        member = self._members[NodeId(node)]
        member.last_heard_s = now_s
        return member

    def looked(self, now_s: float, gone_s: float) -> None:
        """Heartbeats are looked for again, `gone_s` after the last time. Where that is long, this
        process stood still itself (suspended, say): what came meanwhile is unread yet, and nobody's
        silence."""
        if gone_s > _STRIDE_S:
            for member in self._members.values():
                member.last_heard_s = min(now_s, member.last_heard_s + gone_s)

    def silent(self, now_s: float, dead_after_s: float) -> list[Member]:
        """Members not heard from for longer than `dead_after_s`.

        A node that loads weights may be slow to speak, and nothing depends on it yet: it gets ten
        times as long.
        """
        return [
            m
            for _, m in sorted(self._members.items())
            if now_s - m.last_heard_s > dead_after_s * (10 if m.state is NodeState.LOADING else 1)
        ]

    def serving(self) -> list[Member]:
        return [m for _, m in sorted(self._members.items()) if m.serves]

    def all_can(self, nodes: Iterable[NodeId], feature: str) -> bool:
        """Whether the programs of all these nodes have the feature, as they registered."""
        members = [self._members.get(node) for node in nodes]
        return all(m is not None and feature in m.register.features for m in members)

    def link_reports(self, own: Iterable[LinkReport]) -> Iterator[tuple[NodeId, list[LinkReport]]]:
        """By sender, what the router (`own`) and each node said last of their links to who is here.
        Others speak of a node that has left until they speak again."""
        beats = ((m.name, m.beat.links) for _, m in self._members.items() if m.beat is not None)
        for sender, reports in ((ROUTER, own), *beats):
            yield sender, [r for r in reports if r.peer == ROUTER or r.peer in self._members]

    def on_one_device(self, nodes: Collection[NodeId]) -> bool:
        """Whether these nodes, more than one, take their device from each other."""
        members = [self._members.get(node) for node in nodes]
        said = {m.register.device_id if m is not None else "" for m in members}
        return len(members) > 1 and len(said) == 1 and "" not in said

    def live_placement(self, without: Collection[NodeId] = ()) -> Placement:
        """What the ready nodes hold, together."""
        return Placement(
            self._num_layers,
            {
                m.name: m.layers
                for m in self.serving()
                if m.layers is not None and m.name not in without
            },
        )

    def missing_text(self, leaving: Collection[NodeId] = ()) -> str:
        """Why the model is not covered without those that leave, in words; empty when it is.

        `layers 12-17 are on no live node (beta is loading them)`
        """
        missing = self.live_placement(leaving).missing()
        if not missing:
            return ""
        text = f"{describe_ranges(missing)} {_verb(missing)} on no live node"
        reasons = []
        for name in sorted(self._members):
            member = self._members[name]
            if member.layers is None or (member.serves and name not in leaving):
                continue
            if not any(_overlap(member.layers, gap) for gap in missing):
                continue
            reasons.append(f"{name} is leaving" if name in leaving else _why_not(member))
        return f"{text} ({'; '.join(reasons)})" if reasons else text


def _why_not(member: Member) -> str:
    match member.state:
        case NodeState.LOADING:
            return f"{member.name} is loading {member.layers}"
        case NodeState.FAILED:
            return f"{member.name} could not load {member.layers}: {member.failure}"
        case _:
            return f"{member.name} is {member.state}"


def _verb(ranges: tuple[LayerRange, ...]) -> str:
    return "is" if len(ranges) == 1 and len(ranges[0]) == 1 else "are"


def _overlap(a: LayerRange, b: LayerRange) -> bool:
    return a.first < b.end and b.first < a.end


def is_covered(num_layers: int, ranges: Iterable[LayerRange]) -> bool:
    return not uncovered(num_layers, ranges)

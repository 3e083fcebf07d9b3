"""A placement giving way to another: slices load beside the old, flow shifts, the old go. Pure.

An epoch is one whole placement. A shift has nodes load their slices of the next epoch while the
present one serves; when all are ready new requests take the new epoch, and those on their way stay
on the old until they end or its time is up. What no request needs any more is freed (Retain). A way
of several waypoints (router.waypoints) is walked one shift after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from helix_mq.ids import Epoch, NodeId
from helix_mq.layers import LayerRange, uncovered
from helix_mq.messages.control import Assign, Ready, Retain, SliceRef
from router.membership import Member, Membership
from router.waypoints import Slices, moved

EpochsInUse = Mapping[NodeId, Collection[Epoch]]
"""Epochs of the requests that cross each node."""

Order = tuple[Member, Assign | Retain]


@dataclass(frozen=True, slots=True)
class RelocationSettings:
    """`drain_s`: how long requests may stay on slices that are to go. `load_s`: how long a shift
    may wait for its nodes before it is given up."""

    drain_s: float = 30.0
    load_s: float = 1800.0


@dataclass(slots=True)
class Shift:
    """`absent`: slices of nodes that were lost, and are theirs again when they come back."""

    epoch: Epoch
    slices: dict[NodeId, LayerRange]
    absent: dict[NodeId, LayerRange]
    ends_s: float
    readies: dict[NodeId, Ready] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.readies.keys() == self.slices.keys()


class Relocation:
    """Where the cluster is on its way from one placement to another, if it is."""

    def __init__(self, membership: Membership, num_layers: int, settings: RelocationSettings):
        self.shift: Shift | None = None
        self.reason = ""
        self._membership = membership
        self._num_layers = num_layers
        self._settings = settings
        self._ahead: deque[Slices] = deque()
        self._old_until_s: dict[NodeId, float] = {}
        """Nodes with a slice that is to go, and until when requests may stay on it."""
        self._telling: set[NodeId] = set()
        """Nodes that may hold more epochs than they are to."""
        self._told: dict[NodeId, tuple[int, tuple[Epoch, ...]]] = {}
        """By node: incarnation and epochs of its last Retain."""

    @property
    def active(self) -> bool:
        """A placement is being made, or the next one waits for old slices to go."""
        return self.shift is not None or bool(self._ahead)

    @property
    def unsettled(self) -> bool:
        """`orders` is to be asked: something is to be freed, or a shift is to begin."""
        return bool(self._telling) or (self.shift is None and bool(self._ahead))

    def begin(self, way: list[Slices], reason: str) -> None:
        """Sets out on a way; its first shift begins when `orders` is asked next."""
        assert not self.active
        self._ahead.extend(way)
        self.reason = reason

    def orders(self, epoch: Epoch, in_use: EpochsInUse, now_s: float) -> list[Order]:
        """What nodes are to be told now: to free what nobody uses, to load what comes next."""
        orders = self._retains(in_use)
        if self.shift is None and self._ahead and not self._old_until_s:
            orders += self._start(self._ahead.popleft(), Epoch(epoch + 1), now_s)
        return orders

    def overdue(self, now_s: float) -> frozenset[NodeId]:
        """Nodes whose old slices have waited long enough for their requests."""
        return frozenset(n for n, until_s in self._old_until_s.items() if until_s <= now_s)

    def late(self, now_s: float) -> bool:
        """The shift has waited too long for its nodes."""
        return self.shift is not None and self.shift.ends_s <= now_s

    def ready(self, node: NodeId, ready: Ready) -> bool:
        """A node has loaded something; True if that was the shift's."""
        shift = self.shift
        if shift is None or ready.epoch != shift.epoch or node not in shift.slices:
            return False
        layers = shift.slices[node]
        if (ready.first, ready.end) != (layers.first, layers.end):
            return False
        shift.readies[node] = ready
        return True

    def switched(self, now_s: float) -> list[NodeId]:
        """The shift is complete and its slices serve: gives the nodes whose slice is another, or
        that have none, now."""
        shift = self.shift
        assert shift is not None
        self.shift = None
        gone: list[NodeId] = []
        for member in self._membership:
            if member.layers is not None:
                self._telling.add(member.name)
                if shift.slices.get(member.name) != member.layers:
                    gone.append(member.name)
                    self._old_until_s[member.name] = now_s + self._settings.drain_s
        return gone

    def tidy(self, node: NodeId) -> None:
        """The node may hold slices of epochs that nobody knows here, of a router before this."""
        self._telling.add(node)
        # It has registered, perhaps again: what it was told last may have been lost.
        self._told.pop(node, None)

    def abort(self) -> None:
        """The present placement stays; what has been loaded for the next is freed."""
        if self.shift is not None:
            self._telling.update(self.shift.slices)
        self.shift = None
        self._ahead.clear()

    def lost(self, node: NodeId, *, for_good: bool) -> bool:
        """A node is gone. False if what is being made no longer covers the model without it. Not
        `for_good`: its place is kept, as it is when nothing is being made."""
        self._old_until_s.pop(node, None)
        self._telling.discard(node)
        self._told.pop(node, None)
        if for_good:
            self._ahead = deque({n: r for n, r in s.items() if n != node} for s in self._ahead)
        if self.shift is not None:
            layers = self.shift.slices.pop(node, None)
            self.shift.readies.pop(node, None)
            if layers is not None and not for_good:
                self.shift.absent[node] = layers
        wanted = [*([self.shift.slices] if self.shift is not None else []), *self._ahead]
        return not any(uncovered(self._num_layers, self._there(s).values()) for s in wanted)

    def _there(self, slices: Slices) -> dict[NodeId, LayerRange]:
        return {n: r for n, r in slices.items() if self._membership.get(n) is not None}

    def reconnected(self, node: NodeId) -> list[Assign]:
        """What a node is to be told again; its epochs follow with the next orders."""
        self._told.pop(node, None)
        self._telling.add(node)
        shift = self.shift
        if shift is None or node not in shift.slices or node in shift.readies:
            return []
        return [self._order(shift.epoch, shift.slices[node])]

    def rejoined(self, member: Member) -> list[Assign]:
        """What is told again to a process that is waited for and does not serve yet: its orders, or
        its answer, may have been lost with its connection."""
        shift, name = self.shift, member.name
        if shift is None or name not in shift.slices:
            return []
        said, held = shift.readies.get(name), member.register.holding
        if said is not None and held == SliceRef(said.epoch, said.first, said.end):
            return []
        shift.readies.pop(name, None)
        self.tidy(name)
        return [self._order(shift.epoch, shift.slices[name])]

    def _order(self, epoch: Epoch, layers: LayerRange) -> Assign:
        depth = max(1, round(self._num_layers / len(layers)))
        return Assign(epoch, layers.first, layers.end, depth)

    def _start(self, slices: Slices, epoch: Epoch, now_s: float) -> list[Order]:
        present = self._there(slices)
        absent = {n: r for n, r in slices.items() if n not in present}
        self.shift = Shift(epoch, present, absent, now_s + self._settings.load_s)
        orders: list[Order] = []
        for name, layers in present.items():
            member = self._membership.get(name)
            assert member is not None, name
            orders.append((member, self._order(epoch, layers)))
            if member.layers is None and member.register.holding is not None:
                # It came back with slices from before.
                self.tidy(name)
            # Its reconnects and restarts are told by what it was told last.
            self._told.pop(name, None)
        return orders

    def _retains(self, in_use: EpochsInUse) -> list[Order]:
        orders: list[Order] = []
        for name in sorted(self._telling):
            member = self._membership.get(name)
            if member is None:
                self._telling.discard(name)
                continue
            # Where a node has no slice any more, the epoch it had is old as well.
            serves = {member.epoch} if member.layers is not None else set[Epoch]()
            keep = set(in_use.get(name, ()))
            old = bool(keep - serves)
            keep |= serves
            shift = self.shift
            if shift is not None and name in shift.slices:
                keep.add(shift.epoch)
            told = (member.register.incarnation, tuple(sorted(keep)))
            if self._told.get(name) != told:
                self._told[name] = told
                orders.append((member, Retain(told[1])))
            if not old:
                self._telling.discard(name)
                self._old_until_s.pop(name, None)
        return orders


def changes(now: Slices, target: Slices) -> str:
    """`alpha: layers 0-3, beta: nothing` for those that change."""
    changed = set(moved(now, target)) | (now.keys() - target.keys())
    return ", ".join(f"{n}: {target.get(n, 'nothing')}" for n in sorted(changed))

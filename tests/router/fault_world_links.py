"""The links of a FaultWorld: messages travel in order, or are lost when a link breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from helix_mq.ids import ROUTER, NodeId
from helix_mq.messages.data import Refused, Tokens
from router import events as ev
from tests.router.fault_world_node import Message, RowsFrame, SimNode, Traveller
from tests.router.fault_world_time import Timeline

LOST_AFTER_S = 3.0
"""How long rows wait for a link that is down (dataplane.LOST_AFTER_S)."""


@dataclass(slots=True, eq=False)
class Link:
    """One direction between two processes. `generation` counts connections: what was under way in
    an earlier one is lost."""

    source: str
    target: str
    up: bool = False
    generation: int = 0
    down_since_s: float = 0.0
    last_arrival_s: float = 0.0
    waiting: list[Message] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PeerList:
    """Whom a node may exchange rows with."""

    incarnations: Mapping[str, int]


class Network:
    """Both directions between all processes, and each node's connection to the router's control
    socket. `nodes`: who lives, by name; shared with the world. `handle`: the router."""

    def __init__(
        self, time: Timeline, nodes: dict[str, SimNode], handle: Callable[[ev.Event], None]
    ) -> None:
        self._time = time
        self._nodes = nodes
        self._handle = handle
        self._links: dict[tuple[str, str], Link] = {}
        self._cut: set[tuple[str, str]] = set()
        self._control_cut: set[str] = set()
        self._router_peers: Mapping[str, int] = {}

    # -- faults -----------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        self._cut.add((source, target))
        self.refresh()

    def cut_control(self, name: str) -> None:
        self._control_cut.add(name)
        self.refresh()

    def mend(self) -> None:
        self._cut.clear()
        self._control_cut.clear()
        self.refresh()

    def ended(self, node: SimNode) -> None:
        """A process is gone, and what waited in it."""
        for link in self._links.values():
            if link.source == node.name:
                link.waiting.clear()
        self.refresh()

    def router_ended(self) -> None:
        """The router's process is gone, and what was under way to it and from it. The next one
        knows nobody."""
        self._router_peers = {}
        for link in self._links.values():
            if link.source in (ROUTER, "control"):
                link.waiting.clear()
            if link.up and {link.source, link.target} & {ROUTER, "control"}:
                link.up, link.down_since_s = False, self._time.now_s
                link.generation += 1
                if link.target == ROUTER:
                    self._tell_lost(link.source, ROUTER)
        self.refresh()

    # -- messages ---------------------------------------------------------------

    def send(self, source: str, target: str, message: Message) -> bool:
        """False when there is no link at all. Over one that is down, rows wait for a while and all
        else for as long as it takes."""
        peers = self._peers_of(source)
        if target not in peers:
            return False
        link = self._links.setdefault((source, target), Link(source, target))
        if link.up:
            self._travel(link, message)
            return True
        link.waiting.append(message)
        if isinstance(message, Traveller | RowsFrame):
            generation = link.generation

            def hopeless() -> None:
                if not link.up and link.generation == generation:
                    link.waiting = _without_rows(link.waiting)
                    link.generation += 1
                    self._tell_lost(source, target)

            self._time.later(LOST_AFTER_S, hopeless)
        return True

    def control(self, node: SimNode, event: ev.Event) -> None:
        self._travel(self._control_link(node, outward=False), event)

    def tell(self, node: SimNode, message: object) -> None:
        """Something from the router's control socket. Bound now: the node may have another process
        when it arrives."""
        self._travel(self._control_link(node, outward=True), message)

    def down_s(self, source: str, target: str) -> float:
        link = self._links.get((source, target))
        if link is None or link.up:
            return 0.0 if link is not None else 1e-3
        return max(1e-3, self._time.now_s - link.down_since_s)

    def _peers_of(self, name: str) -> Mapping[str, int]:
        if name == ROUTER:
            return self._router_peers
        node = self._nodes.get(name)
        return node.peers if node is not None else {}

    def list_peers(self, source: str, peers: Mapping[str, int]) -> None:
        """Links to who is not listed any more go, and those to a process before the present one,
        with all that waits there."""
        before = self._peers_of(source)
        if source == ROUTER:
            self._router_peers = peers
        else:
            self._nodes[source].peers = peers
        for target, incarnation in before.items():
            link = self._links.get((source, target))
            if link is not None and peers.get(target) != incarnation:
                link.up, link.down_since_s = False, self._time.now_s
                link.generation += 1
                link.waiting.clear()
        self.refresh()

    def _control_link(self, node: SimNode, *, outward: bool) -> Link:
        mine = f"{node.name}#{node.incarnation}"
        key = ("control", mine) if outward else (mine, "control")
        return self._links.setdefault(key, Link(*key))

    def _travel(self, link: Link, message: object) -> None:
        if not link.up:
            return
        generation = link.generation
        at_s = max(link.last_arrival_s, self._time.now_s + self._time.draw.uniform(0.001, 0.03))
        link.last_arrival_s = at_s

        def arrive() -> None:
            if link.generation == generation:
                self._arrive(link, message)

        self._time.later(at_s - self._time.now_s, arrive)

    def _arrive(self, link: Link, message: object) -> None:
        if link.target == "control":
            self._handle(message)  # type: ignore[arg-type]
        elif link.target == ROUTER:
            assert isinstance(message, Tokens | Refused)
            is_tokens = isinstance(message, Tokens)
            self._handle(ev.TokensArrived(message) if is_tokens else ev.RowsRefused(message))  # type: ignore[arg-type]
        elif link.source == "control":
            node = self._nodes.get(link.target.split("#")[0])
            if node is not None and f"{node.name}#{node.incarnation}" == link.target:
                node.do(lambda: self._node_hears(node, message))
        else:
            node = self._nodes.get(link.target)
            if node is not None:
                node.do(lambda: node.on_data(message))  # type: ignore[arg-type]

    def _node_hears(self, node: SimNode, message: object) -> None:
        if isinstance(message, PeerList):
            self.list_peers(node.name, message.incarnations)
        else:
            assert isinstance(message, msgspec.Struct)
            node.on_control(message)

    def refresh(self) -> None:
        """Links break and come up by what is alive, listed and cut."""
        names = [ROUTER, *self._nodes]
        for source in names:
            for target in self._peers_of(source):
                self._links.setdefault((source, target), Link(source, target))
        for node in self._nodes.values():
            for outward in (False, True):
                self._control_link(node, outward=outward)
        for link in list(self._links.values()):
            wanted = self._connects(link)
            if link.up and not wanted:
                self._go_down(link)
            elif wanted and not link.up:
                self._time.later(
                    self._time.draw.uniform(0.02, 0.3), lambda link=link: self._come_up(link)
                )  # type: ignore[misc]

    def _connects(self, link: Link) -> bool:
        if "control" in (link.source, link.target):
            mine = link.target if link.source == "control" else link.source
            name, _, incarnation = mine.partition("#")
            node = self._nodes.get(name)
            alive = node is not None and str(node.incarnation) == incarnation
            return alive and name not in self._control_cut
        if link.source != ROUTER and link.source not in self._nodes:
            return False
        listed = self._peers_of(link.source).get(link.target)
        target = self._nodes.get(link.target)
        alive = 0 if link.target == ROUTER else target.incarnation if target is not None else None
        return (
            listed is not None and listed == alive and (link.source, link.target) not in self._cut
        )

    def _go_down(self, link: Link) -> None:
        link.up, link.down_since_s = False, self._time.now_s
        link.generation += 1
        if "control" in (link.source, link.target):
            return
        source, target = link.source, link.target
        link.waiting = _without_rows(link.waiting)
        self._time.later(
            self._time.draw.uniform(0.001, 0.05), lambda: self._tell_lost(source, target)
        )

    def _tell_lost(self, source: str, target: str) -> None:
        if source == ROUTER:
            self._handle(ev.LinkLost(NodeId(target)))
            return
        node = self._nodes.get(source)
        if node is not None:
            node.do(lambda: node.on_link_lost(target))

    def _come_up(self, link: Link) -> None:
        if link.up or not self._connects(link):
            return
        link.up = True
        waiting, link.waiting = link.waiting, []
        for message in waiting:
            self._travel(link, message)
        if "control" in (link.source, link.target):
            # One connection, both ways at once; the node speaks first.
            mine = link.target if link.source == "control" else link.source
            node = self._nodes[mine.split("#")[0]]
            for outward in (False, True):
                self._control_link(node, outward=outward).up = True
            node.do(node.say_register)


def _without_rows(waiting: list[Message]) -> list[Message]:
    return [m for m in waiting if not isinstance(m, Traveller | RowsFrame)]

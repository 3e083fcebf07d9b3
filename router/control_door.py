"""Who speaks on the router's control socket: routing ids to registrations, messages to events.

Where to answer is kept of members, and of strangers for the one answer they get: names are free on
plain sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from helix_mq.errors import FrameError
from helix_mq.frames import Message
from helix_mq.ids import NodeId
from helix_mq.messages import control
from helix_mq.transport import Delivery
from router import events as ev
from router.security import RouterSecurity

NO_HELLO = "no_hello"
"""The reason of a message from who is no member (any more)."""

Process = tuple[str, int]
"""A node's name, and its process' incarnation."""


class ControlDoor:
    def __init__(self, security: RouterSecurity, is_current: Callable[[str, int], bool]) -> None:
        """`is_current`: whether a process is a member."""
        self._security = security
        self._is_current = is_current
        self._routing_ids: dict[Process, bytes] = {}

    def __len__(self) -> int:
        return len(self._routing_ids)

    def event(self, message: Message, delivery: Delivery) -> ev.Event:
        """What a message means. Raises FrameError for one that does not belong here."""
        header = message.header
        match header:
            case control.Register():
                self._security.check_name(header.node, delivery.user, header.data_public_key)
                self._routing_ids[header.node, header.incarnation] = delivery.peer
                return ev.NodeRegistered(header)
            case control.Heartbeat():
                key = (header.node, header.incarnation)
                # Of strangers, too, so that a node the router does not know can be told so.
                if self._routing_ids.setdefault(key, delivery.peer) != delivery.peer:
                    raise FrameError("a heartbeat in another's name", reason="identity")
                return ev.NodeBeat(header)
            case control.Ready():
                return ev.NodeReady(*self.sender(delivery), header)
            case control.AssignFailed():
                return ev.NodeAssignFailed(*self.sender(delivery), header)
            case control.Drain():
                return ev.NodeDraining(*self.sender(delivery))
            case control.Leave():
                return ev.NodeGone(*self.sender(delivery), header.reason or "it said goodbye")
            case _:
                raise FrameError(f"{message.kind.name} on the control socket", reason="kind")

    def forget_stranger(self, header: msgspec.Struct) -> None:
        """After its message has been answered."""
        if isinstance(header, control.Register | control.Heartbeat) and not self._is_current(
            header.node, header.incarnation
        ):
            self._routing_ids.pop((header.node, header.incarnation), None)

    def keep(self, current: Collection[Process]) -> None:
        """The last words to those that left have been sent."""
        for key in [k for k in self._routing_ids if k not in current]:
            del self._routing_ids[key]

    def routing_id(self, node: str, incarnation: int) -> bytes | None:
        """Where to answer a process."""
        return self._routing_ids.get((node, incarnation))

    def process(self, routing_id: bytes) -> tuple[NodeId, int] | None:
        """The process that has registered under a routing id."""
        for (node, incarnation), known in self._routing_ids.items():
            if known == routing_id:
                return NodeId(node), incarnation
        return None

    def sender(self, delivery: Delivery) -> tuple[NodeId, int]:
        """Who speaks: the registration under this routing id, never what a message claims."""
        sender = self.process(delivery.peer)
        if sender is None:
            raise FrameError("a control message before a registration", reason=NO_HELLO)
        return sender

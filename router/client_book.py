"""Which clients are there and which streams are whose, with bounds on both. Pure.

A stream is found by its name (to resume), by its submission (sent again after a break), and by the
connection it goes to. `overdue` says what nobody will ask for any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from helix_mq.errors import QueueFull
from router.client_streams import ClientStream


@dataclass(frozen=True, slots=True)
class ClientBounds:
    """silent_s: a client not heard from for so long has its streams cancelled.
    replay_s: how long a stream that was delivered whole can still be resumed.
    max_streams: open and kept for replay together.
    clients_per_user: connections with the same key; the others keep their share.
    """

    max_clients: int = 4096
    clients_per_user: int = 1024
    streams_per_client: int = 256
    max_streams: int = 16_384
    silent_s: float = 30.0
    replay_s: float = 30.0
    sweep_s: float = 1.0


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    clients: int
    open_streams: int
    kept_streams: int
    """Ended, kept for a client that may come back."""
    bad_messages: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Peer:
    """One connection; `streams` are those on their way to it, by reference."""

    id: bytes
    user: str | None
    heard_s: float
    streams: dict[int, ClientStream] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Overdue:
    """`abandoned`: their client has gone. `silent`: connected, but it says nothing."""

    abandoned: tuple[ClientStream, ...]
    silent: tuple[ClientStream, ...]


class ClientBook:
    def __init__(self, bounds: ClientBounds) -> None:
        self._bounds = bounds
        self._peers: dict[bytes, Peer] = {}
        self._by_name: dict[str, ClientStream] = {}
        self._by_submission: dict[tuple[str | None, int], ClientStream] = {}

    @property
    def clients(self) -> int:
        return len(self._peers)

    def streams(self) -> list[ClientStream]:
        return list(self._by_name.values())

    def heard(self, peer_id: bytes, user: str | None, now_s: float) -> Peer:
        """The connection that has just spoken. Raises QueueFull when there are too many."""
        peer = self._peers.get(peer_id)
        if peer is None:
            if len(self._peers) >= self._bounds.max_clients:
                raise QueueFull("too many clients are connected", retry_after_s=10.0)
            if user is not None and self._connections(user) >= self._bounds.clients_per_user:
                raise QueueFull("too many clients are connected with this key", retry_after_s=10.0)
            peer = self._peers[peer_id] = Peer(peer_id, user, now_s)
        peer.heard_s = now_s
        return peer

    def _connections(self, user: str) -> int:
        return sum(peer.user == user for peer in self._peers.values())

    def named(self, name: str, user: str | None) -> ClientStream | None:
        """The stream of that name, if it is that user's."""
        stream = self._by_name.get(name)
        return stream if stream is not None and stream.user == user else None

    def submitted(self, user: str | None, reference: int) -> ClientStream | None:
        return self._by_submission.get((user, reference))

    def add(self, peer: Peer, stream: ClientStream) -> None:
        """Takes a new stream in. Raises QueueFull; ended ones that were delivered give way."""
        # Ended ones that their client has not taken count: it may never take them.
        if len(peer.streams) >= self._bounds.streams_per_client:
            raise QueueFull(
                f"{len(peer.streams)} streams of this client are open or not yet read; the limit "
                f"is {self._bounds.streams_per_client}",
                retry_after_s=1.0,
            )
        if len(self._by_name) >= self._bounds.max_streams:
            oldest = next((s for s in self._by_name.values() if s.ended), None)
            if oldest is None:
                raise QueueFull(
                    f"{len(self._by_name)} streams of clients are open, which is the limit",
                    retry_after_s=5.0,
                )
            self.forget(oldest)
        self._by_name[stream.name] = stream
        self._by_submission[stream.user, stream.reference] = stream
        peer.streams[stream.reference] = stream

    def restore(self, stream: ClientStream) -> None:
        """Takes in a stream of the router's earlier life, whose client is away."""
        self._by_name[stream.name] = stream
        self._by_submission[stream.user, stream.reference] = stream

    def attach(self, stream: ClientStream, peer: Peer, reference: int, index: int | None) -> None:
        """Moves a stream to another connection. Raises InvalidRequest; see ClientStream.attach."""
        old = self._peers.get(stream.peer) if stream.peer is not None else None
        old_reference = stream.reference
        stream.attach(peer.id, reference, index)
        if old is not None:
            old.streams.pop(old_reference, None)
        self._by_submission.pop((stream.user, old_reference), None)
        self._by_submission[stream.user, reference] = stream
        peer.streams[reference] = stream

    def delivered(self, stream: ClientStream) -> None:
        """Its client has it all: it no longer counts among the connection's streams."""
        self._take_off(stream)

    def disconnect(self, peer_id: bytes, now_s: float) -> None:
        peer = self._peers.pop(peer_id, None)
        if peer is not None:
            for stream in peer.streams.values():
                stream.detach(now_s)

    def forget(self, stream: ClientStream) -> None:
        self._take_off(stream)
        self._by_name.pop(stream.name, None)
        if self._by_submission.get((stream.user, stream.reference)) is stream:
            del self._by_submission[stream.user, stream.reference]

    def overdue(self, now_s: float) -> Overdue:
        """What to cancel now; forgets what has ended and will not be asked for."""
        quiet_since_s = now_s - self._bounds.silent_s
        abandoned: list[ClientStream] = []
        for stream in self.streams():
            away = stream.peer is None and stream.away_since_s < quiet_since_s
            if not stream.ended:
                if away:
                    abandoned.append(stream)
            elif away or self._replayed(stream, now_s):
                self.forget(stream)
        silent: list[ClientStream] = []
        for peer in list(self._peers.values()):
            if peer.heard_s < quiet_since_s:
                silent += [s for s in peer.streams.values() if not s.ended]
                if not peer.streams:
                    del self._peers[peer.id]
        return Overdue(tuple(abandoned), tuple(silent))

    def _replayed(self, stream: ClientStream, now_s: float) -> bool:
        ended_s = stream.ended_s if stream.ended_s is not None else now_s
        return stream.delivered and now_s - ended_s > self._bounds.replay_s

    def _take_off(self, stream: ClientStream) -> None:
        peer = self._peers.get(stream.peer) if stream.peer is not None else None
        if peer is not None and peer.streams.get(stream.reference) is stream:
            del peer.streams[stream.reference]

"""Links and network cards on the virtual clock: who waits for whose bytes.

A frame passes the sender's NIC, the link and the receiver's NIC; each sends one frame at a time and
begins with a frame as soon as its first byte is there (cut-through), so an idle way takes size /
(slowest rate) + latency. What waits for a link waits in production's queue (helix_mq.link_queue):
decodes pass prompt chunks, first in, first out otherwise, as at the NICs. A link that is down loses
what is on it and what waits for it.

Production hands a link a little more than it carries in a round trip (helix_mq.pacing); here the
next frame is chosen when the link is free, which is that without its last 20 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Any, NamedTuple

from bench.simulator.records import Recorder
from bench.simulator.timeline import Timeline
from helix_mq.ids import ROUTER
from helix_mq.link_queue import LinkQueue
from helix_mq.outlink import MIN_PIECE_BYTES
from helix_mq.pacing import QUEUE_S
from solver.problem import Problem
from solver.token_return import links_of, round_trip_s


class Nic:
    """One machine's network card; 0 seconds per byte is one that never limits."""

    __slots__ = ("in_free_s", "in_s_per_byte", "out_free_s", "out_s_per_byte")

    def __init__(self, in_bytes_per_s: float, out_bytes_per_s: float) -> None:
        self.in_s_per_byte = 1 / in_bytes_per_s if in_bytes_per_s else 0.0
        self.out_s_per_byte = 1 / out_bytes_per_s if out_bytes_per_s else 0.0
        self.in_free_s = self.out_free_s = 0.0


class Frame(NamedTuple):
    """What to do when its last byte is there, and whose rows it holds."""

    size_bytes: int
    handler: Callable[[Any], None]
    argument: Any


class Wire:
    """One directed link between two machines; `life` rises when it goes down.

    `piece_bytes`: bulk goes in pieces of so many bytes, or of one token. `on_room`: called when the
    link can take prefill again that it was `congested` for.
    """

    __slots__ = (
        "awake",
        "dst",
        "dst_nic",
        "free_s",
        "latency_s",
        "life",
        "on_room",
        "piece_bytes",
        "queue",
        "s_per_byte",
        "src",
        "src_nic",
        "up",
    )

    def __init__(
        self, ends: tuple[str, str], nics: tuple[Nic, Nic], s_per_byte: float, latency_s: float
    ) -> None:
        self.src, self.dst = ends
        self.src_nic, self.dst_nic = nics
        self.s_per_byte = s_per_byte
        self.latency_s = latency_s
        self.free_s = 0.0
        self.up = True
        self.life = 0
        self.queue: LinkQueue[Frame] = LinkQueue()
        self.awake = False
        self.piece_bytes = max(MIN_PIECE_BYTES, int(QUEUE_S / 2 / s_per_byte))
        self.on_room: Callable[[str], None] | None = None

    @property
    def congested(self) -> bool:
        """As a sender sees it: new prefill had better wait (helix_mq.outlink)."""
        return self.queue.urgent_frames > 0 or self.queue.bulk_frames > 1

    def go_down(self) -> None:
        self.up = False
        self.life += 1
        self.queue.clear()


class Wires:
    """All links of a problem. The router is both its source and its sink."""

    def __init__(self, problem: Problem, timeline: Timeline, recorder: Recorder) -> None:
        self.token_bytes = problem.token_bytes
        self.activation_bytes = problem.activation_bytes
        self._timeline = timeline
        self._on_link = recorder.on_link
        self._nics: dict[str, Nic] = {ROUTER: Nic(0.0, 0.0)}
        for node in problem.nodes:
            self._nics[node.name] = Nic(node.nic_in_bytes_per_s, node.nic_out_bytes_per_s)
        self._links = links_of(problem)
        # Made when first asked for: of a large cluster's million links few are ever used.
        self._wires: dict[tuple[str, str], Wire] = {}
        self.frames = 0

    def between(self, src: str, dst: str) -> Wire | None:
        """The link, or None where the problem has none."""
        wire = self._wires.get((src, dst))
        if wire is None and (link := self._links.get((src, dst))) is not None:
            nics = self._nics[src], self._nics[dst]
            wire = Wire((src, dst), nics, 1 / link.bytes_per_s, link.latency_s)
            self._wires[src, dst] = wire
        return wire

    def round_trip_s(self, src: str, dst: str) -> float | None:
        """As the sender would measure it; None where there is no such link."""
        return round_trip_s(self._links, src, dst)

    def control_latency_s(self, src: str, dst: str) -> float:
        """Of small messages, which go between any two machines, over others where need be."""
        link = self._links.get((src, dst)) or self._links.get((dst, src))
        return link.latency_s if link is not None else 0.0

    def send(
        self,
        wire: Wire,
        size_bytes: int,
        handler: Callable[[Any], None],
        argument: Any,
        *,
        keys_of: Callable[[Any], Collection[Hashable]] | None = None,
        urgent: bool = True,
    ) -> None:
        """Runs `handler(argument)` when the last byte is there; never, if the link goes down.

        `keys_of(argument)`: the sequences with rows in it, asked when it has to wait. Frames that
        are not `urgent` let others pass.
        """
        frame = Frame(size_bytes, handler, argument)
        if not wire.awake and wire.free_s <= self._timeline.now:
            self._start(wire, frame)
            return
        keys = keys_of(argument) if keys_of is not None else ()
        wire.queue.push(frame, size_bytes, keys, urgent=urgent)
        if not wire.awake:
            wire.awake = True
            self._timeline.at(wire.free_s, self._next, (wire, wire.life))

    def _next(self, woken: tuple[Wire, int]) -> None:
        """The link is free and frames wait for it."""
        wire, life = woken
        found = wire.queue.next_frame(_always, _always) if life == wire.life else None
        if found is None:
            wire.awake = len(wire.queue) > 0
            if wire.awake:
                self._timeline.at(wire.free_s, self._next, (wire, wire.life))
            return
        congested = wire.congested
        wire.queue.sent()
        self._start(wire, found[0])
        wire.awake = len(wire.queue) > 0
        if wire.awake:
            self._timeline.at(wire.free_s, self._next, (wire, wire.life))
        if congested and not wire.congested and wire.on_room is not None:
            wire.on_room(wire.dst)

    def _start(self, wire: Wire, sent: Frame) -> None:
        """Puts a frame on the link, which is free."""
        size_bytes = sent.size_bytes
        now = self._timeline.now
        nic = wire.src_nic
        start_s = nic.out_free_s
        if start_s < now:
            start_s = now
        nic.out_free_s = out_end_s = start_s + size_bytes * nic.out_s_per_byte
        end_s = start_s + size_bytes * wire.s_per_byte
        if end_s < out_end_s:
            end_s = out_end_s
        wire.free_s = end_s
        self.frames += 1
        self._on_link(wire.src, wire.dst, start_s, end_s, size_bytes)
        frame = (wire, end_s + wire.latency_s, size_bytes, wire.life, sent.handler, sent.argument)
        self._timeline.at(start_s + wire.latency_s, self._reaches_nic, frame)

    def _reaches_nic(self, frame: tuple[Wire, float, int, int, Callable[[Any], None], Any]) -> None:
        """The first byte is at the receiver's NIC, which may be busy with other frames."""
        wire, last_byte_s, size_bytes, _, _, _ = frame
        nic = wire.dst_nic
        start_s = nic.in_free_s
        if start_s < self._timeline.now:
            start_s = self._timeline.now
        # A slow link's frame comes in drops: between them the NIC has time for others.
        nic.in_free_s = end_s = start_s + size_bytes * nic.in_s_per_byte
        if end_s < last_byte_s:
            end_s = last_byte_s
        self._timeline.at(end_s, _delivered, frame)


def _delivered(frame: tuple[Wire, float, int, int, Callable[[Any], None], Any]) -> None:
    wire, _, _, life, handler, argument = frame
    if wire.life == life:
        handler(argument)


def _always(nbytes: int) -> bool:
    return True

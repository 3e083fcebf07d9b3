"""Links and network cards on the virtual clock: who waits for whose bytes.

A frame passes the sender's NIC, the link and the receiver's NIC; each sends one frame at a time,
first in, first out, and begins with a frame as soon as its first byte is there (cut-through), so an
idle way takes size / (slowest rate) + latency. A link that is down loses what is on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.simulator.records import Recorder
from bench.simulator.timeline import Timeline
from helix_mq.ids import ROUTER, NodeId
from solver.problem import SINK, SOURCE, Problem


class Nic:
    """One machine's network card; 0 seconds per byte is one that never limits."""

    __slots__ = ("in_free_s", "in_s_per_byte", "out_free_s", "out_s_per_byte")

    def __init__(self, in_bytes_per_s: float, out_bytes_per_s: float) -> None:
        self.in_s_per_byte = 1 / in_bytes_per_s if in_bytes_per_s else 0.0
        self.out_s_per_byte = 1 / out_bytes_per_s if out_bytes_per_s else 0.0
        self.in_free_s = self.out_free_s = 0.0


class Wire:
    """One directed link between two machines; `life` rises when it goes down."""

    __slots__ = (
        "dst",
        "dst_nic",
        "free_s",
        "latency_s",
        "life",
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
        self._wires: dict[tuple[str, str], Wire] = {}
        for link in problem.links:
            if link.bytes_per_s > 0:
                src = ROUTER if link.src == SOURCE else link.src
                dst = ROUTER if link.dst == SINK else link.dst
                self._wires[src, dst] = self._wire(src, dst, 1 / link.bytes_per_s, link.latency_s)
        self.frames = 0

    def _wire(self, src: str, dst: str, s_per_byte: float, latency_s: float) -> Wire:
        return Wire((src, dst), (self._nics[src], self._nics[dst]), s_per_byte, latency_s)

    def between(self, src: str, dst: str) -> Wire | None:
        """The link, or None where the problem has none."""
        return self._wires.get((src, dst))

    def of_node(self, node: NodeId) -> list[Wire]:
        """All links of a node, both ways, in a fixed order."""
        return [wire for ends, wire in sorted(self._wires.items()) if node in ends]

    def control_latency_s(self, src: str, dst: str) -> float:
        """Of small messages, which go between any two machines, over others where need be."""
        wire = self._wires.get((src, dst)) or self._wires.get((dst, src))
        return wire.latency_s if wire is not None else 0.0

    def send(
        self, wire: Wire, size_bytes: int, handler: Callable[[Any], None], argument: Any
    ) -> None:
        """Runs `handler(argument)` when the last byte is there; never, if the link goes down."""
        now = self._timeline.now
        nic = wire.src_nic
        start_s = nic.out_free_s
        if start_s < now:
            start_s = now
        nic.out_free_s = out_end_s = start_s + size_bytes * nic.out_s_per_byte
        if start_s < wire.free_s:
            start_s = wire.free_s
        end_s = start_s + size_bytes * wire.s_per_byte
        if end_s < out_end_s:
            end_s = out_end_s
        wire.free_s = end_s
        self.frames += 1
        self._on_link(wire.src, wire.dst, start_s, end_s, size_bytes)
        frame = (wire, end_s + wire.latency_s, size_bytes, wire.life, handler, argument)
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

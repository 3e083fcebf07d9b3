"""One direction between two machines: when bytes that enter it now arrive. Pure.

The model is the simulator's (bench.simulator.wires): a frame passes the sender's NIC, the link and
the receiver's NIC, each one after another, and begins with each as soon as its first byte is there;
the latency comes on top. All connections between two machines share the way between them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import msgspec

from solver.problem import Problem
from solver.token_return import links_of

PART_S: Final = 0.01
"""What enters a way is counted by parts of this length. Shorter than any way out of a region, so
that a token that a client has seen in time left nothing to a part that ends too late to count."""


class WaySpec(msgspec.Struct, frozen=True):
    """`listen_port` is where `source` connects to reach `target`, who listens at `target_port`."""

    source: str
    target: str
    listen_port: int
    target_port: int
    bytes_per_s: float
    latency_s: float


class ShaperSpec(msgspec.Struct, frozen=True):
    """`nics`: bytes/s out of and into each machine; those not named are never the limit. `log`:
    where a ShaperLog is written at the end."""

    ways: tuple[WaySpec, ...]
    nics: dict[str, tuple[float, float]]
    log: str


class WayLog(msgspec.Struct, frozen=True):
    """`bytes_by_part`: what entered the way in each PART_S of the machine's monotonic clock, by the
    number of the part."""

    source: str
    target: str
    bytes_per_s: float
    bytes_by_part: dict[int, int]


class ShaperLog(msgspec.Struct, frozen=True):
    ways: tuple[WayLog, ...]
    late_s: float
    """The longest that bytes were delivered after their time."""
    mean_late_s: float


@dataclass(slots=True)
class Nic:
    """Seconds per byte, 0 for a card that never limits; until when it is busy each way."""

    out_s_per_byte: float = 0.0
    in_s_per_byte: float = 0.0
    out_free_s: float = 0.0
    in_free_s: float = 0.0


@dataclass(slots=True)
class Way:
    source_nic: Nic
    target_nic: Nic
    s_per_byte: float
    latency_s: float
    free_s: float = 0.0
    """When the link can begin with the next byte."""
    bytes_by_part: Counter[int] = field(default_factory=Counter)

    def put(self, now_s: float, nbytes: int) -> float:
        """Bytes enter now; when the last of them has arrived."""
        starts_s = max(now_s, self.free_s, self.source_nic.out_free_s)
        self.source_nic.out_free_s = out_s = starts_s + nbytes * self.source_nic.out_s_per_byte
        self.free_s = sent_s = max(starts_s + nbytes * self.s_per_byte, out_s)
        reaches_s = max(starts_s + self.latency_s, self.target_nic.in_free_s)
        self.target_nic.in_free_s = in_s = reaches_s + nbytes * self.target_nic.in_s_per_byte
        self.bytes_by_part[int(now_s / PART_S)] += nbytes
        return max(sent_s + self.latency_s, in_s)


def machine_links(problem: Problem) -> dict[tuple[str, str], tuple[float, float]]:
    """(source, target) -> (bytes/s, seconds) of every link that carries anything, the router under
    its own name."""
    return {ends: (k.bytes_per_s, k.latency_s) for ends, k in links_of(problem).items()}

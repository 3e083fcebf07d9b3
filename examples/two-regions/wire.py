"""A long wire between two network namespaces, for kernels without tc's netem.

    ip netns exec A python wire.py B --one-way-ms 20 --rate-mbit 100

Makes the device `wan` in this namespace and in namespace B, and carries packets between them. Each
way has its own rate and its own delay, as two of netem's queues would have:

    packet ──> waits for the ones before it ──> takes size / rate ──> 20 ms ──> other end

What would wait for longer than `QUEUE_S` is dropped, so TCP finds out how fast the wire is. Ends,
and takes both devices along, with the process.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import struct
import subprocess
import time
from collections import deque
from dataclasses import dataclass, field

QUEUE_S = 0.2
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MAX_PACKET_BYTES = 65_535
_READS = 256
"""Packets of one direction in a row; then the other has its turn."""


@dataclass(slots=True)
class Way:
    """One direction. Pure: says when a packet is through."""

    one_way_s: float
    bytes_per_s: float
    dropped: int = 0
    _free_s: float = 0.0
    _under_way: deque[tuple[float, bytes]] = field(default_factory=deque)

    def put(self, packet: bytes, now_s: float) -> None:
        starts_s = max(now_s, self._free_s)
        if starts_s - now_s > QUEUE_S:
            self.dropped += 1
            return
        self._free_s = starts_s + len(packet) / self.bytes_per_s
        self._under_way.append((self._free_s + self.one_way_s, packet))

    def take(self, now_s: float) -> bytes | None:
        """The next packet that has arrived."""
        if self._under_way and self._under_way[0][0] <= now_s:
            return self._under_way.popleft()[1]
        return None

    def next_s(self) -> float | None:
        return self._under_way[0][0] if self._under_way else None


def open_device(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def carry(here: int, there: int, one_way_s: float, bytes_per_s: float) -> None:
    """For ever."""
    ways = [
        (here, there, Way(one_way_s, bytes_per_s)),
        (there, here, Way(one_way_s, bytes_per_s)),
    ]
    while True:
        due = [at for at in (way.next_s() for _, _, way in ways) if at is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        select.select([here, there], [], [], wait_s)
        for source, target, way in ways:
            _read(source, way)
            while (packet := way.take(time.monotonic())) is not None:
                _write(target, packet)


def _read(source: int, way: Way) -> None:
    for _ in range(_READS):
        try:
            packet = os.read(source, _MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            # The device is not up yet.
            return
        way.put(packet, time.monotonic())


def _write(target: int, packet: bytes) -> None:
    try:
        os.write(target, packet)
    except OSError:
        # Not up, or full: what any wire does then.
        return


def main() -> None:
    parser = argparse.ArgumentParser(description="A wire between two network namespaces.")
    parser.add_argument("namespace", help="of the other end")
    parser.add_argument("--one-way-ms", type=float, default=20.0)
    parser.add_argument("--rate-mbit", type=float, default=100.0)
    given = parser.parse_args()
    there = open_device("wan-there")
    here = open_device("wan")
    # A device keeps its file when it moves.
    move = ["ip", "link", "set", "wan-there", "netns", given.namespace, "name", "wan"]
    subprocess.run(move, check=True)
    carry(here, there, given.one_way_ms / 1e3, given.rate_mbit * 1e6 / 8)


if __name__ == "__main__":
    main()

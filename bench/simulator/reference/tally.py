"""Counts and latencies of finished iterations inside the measuring window, and the log's hash.

Percentiles are sorted[int(n x p)], as in the published figures.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

PERCENTILES = (0.05, 0.25, 0.50, 0.75, 0.95, 0.99)
HASH_CHUNK_BYTES = 1 << 16
_RECORD = struct.Struct("<dIB")


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds; `percentiles` by names p5 ... p99. All zero where `count` is."""

    count: int
    mean_s: float
    percentiles_s: Mapping[str, float]
    max_s: float

    def as_dict(self) -> dict[str, float]:
        return {
            "n": self.count,
            "mean": self.mean_s,
            **self.percentiles_s,
            "max": self.max_s,
        }


class Tally:
    """Collects iterations that end in [start_s, end_s] and hashes all of them in order."""

    def __init__(self, start_s: float, end_s: float) -> None:
        self.start_s = start_s
        self.end_s = end_s
        self.prompt_latencies_s = array("d")
        self.decode_latencies_s = array("d")
        self.window_prompt_tokens = 0
        self.finished_prompts = 0
        self.finished_decodes = 0
        self.finished_queries = 0
        self._log = bytearray()
        self._digest = blake2b(digest_size=16)

    def prompt_done(self, now_s: float, query: int, tokens: int, latency_s: float) -> None:
        self.finished_prompts += 1
        if self.start_s <= now_s <= self.end_s:
            self.prompt_latencies_s.append(latency_s)
            self.window_prompt_tokens += tokens
        self._record(now_s, query, 1)

    def decode_done(self, now_s: float, query: int, latency_s: float) -> None:
        self.finished_decodes += 1
        if self.start_s <= now_s <= self.end_s:
            self.decode_latencies_s.append(latency_s)
        self._record(now_s, query, 0)

    def _record(self, now_s: float, query: int, kind: int) -> None:
        self._log += _RECORD.pack(now_s, query, kind)
        if len(self._log) >= HASH_CHUNK_BYTES:
            self._digest.update(self._log)
            self._log.clear()

    def log_hash(self) -> str:
        """Hash of (time, query, kind) of every iteration so far, in order of completion."""
        self._digest.update(self._log)
        self._log.clear()
        return self._digest.hexdigest()


def summarise(latencies_s: array[float]) -> Latencies:
    ordered = sorted(latencies_s)
    count = len(ordered)
    if not count:
        return Latencies(0, 0.0, {f"p{round(p * 100)}": 0.0 for p in PERCENTILES}, 0.0)
    return Latencies(
        count=count,
        mean_s=sum(ordered) / count,
        percentiles_s={f"p{round(p * 100)}": ordered[int(count * p)] for p in PERCENTILES},
        max_s=ordered[-1],
    )

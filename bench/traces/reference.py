"""The length, arrival and request files published with the reference system's artifact.

Three kinds, told apart by their first line: lengths alone, requests with arrival times, and counts
of arrivals in bins of 3 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.traces.rows import Row, TraceError, header_of, read_rows
from bench.traces.types import Arrival, Lengths

ARRIVAL, PROMPT, OUTPUT = "arrival_s_after_start", "input_tokens", "output_tokens"
COUNT = "requests_in_3s_bin"
BIN_S = 3.0


def has_arrivals(path: Path) -> bool:
    """Whether the file says when requests come. TraceError if it says nothing of requests."""
    header = header_of(path)
    if COUNT in header:
        raise TraceError(
            path, 1, 0, f"counts of arrivals have no lengths: use them as arrivals=bins({path})"
        )
    return ARRIVAL in header


def read_lengths(path: Path) -> Iterator[Lengths]:
    """Token counts in the file's order. Streams."""
    for row in read_rows(path, (PROMPT, OUTPUT)):
        yield _lengths(row, 0)


def read_arrivals(path: Path) -> Iterator[Arrival]:
    """Requests with their times, which must ascend. Streams."""
    last_s = 0.0
    for row in read_rows(path, (ARRIVAL, PROMPT, OUTPUT)):
        at_s = row.seconds(0)
        if at_s < last_s:
            raise row.error(0, f"{at_s} is before the row above it")
        last_s = at_s
        yield Arrival(at_s, _lengths(row, 1))


def read_counts(path: Path) -> Iterator[int]:
    """Arrivals in each bin of BIN_S seconds. Streams."""
    for row in read_rows(path, (COUNT,)):
        yield row.tokens(0)


def _lengths(row: Row, first: int) -> Lengths:
    prompt_tokens, output_tokens = row.tokens(first), row.tokens(first + 1)
    if not (prompt_tokens and output_tokens):
        index = first if not prompt_tokens else first + 1
        raise row.error(index, "is 0: a request has at least one token")
    return Lengths(prompt_tokens, output_tokens)

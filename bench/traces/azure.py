"""Azure's LLM inference traces: when requests came to a production service, and their tokens.

Files of 2023 (conversation and code: Patel et al., "Splitwise", ISCA 2024) and of 2024 (a week of
each: Stojkovic et al., "DynamoLLM", HPCA 2025) have the columns TIMESTAMP, ContextTokens and
GeneratedTokens. Timestamps are ISO, with seven decimals in 2023, with six and an offset in 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.traces.rows import Row, read_rows, shown
from bench.traces.types import Arrival, Lengths

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_BACKWARD_S = 60.0
"""Rows are logged in nearly the order of their times; more than this is another file's row."""


def read_azure(path: Path) -> Iterator[Arrival]:
    """Requests in the file's order, in seconds from the first. Streams.

    A row without prompt or output tokens asks nothing of a cluster and is left out. A time before
    the one above it counts as that one. TraceError with line and column for a bad row.
    """
    start: datetime | None = None
    last_s = 0.0
    for row in read_rows(path, COLUMNS):
        time = _time(row)
        prompt_tokens, output_tokens = row.tokens(1), row.tokens(2)
        if start is None:
            start = time
        at_s = (time - start).total_seconds()
        if at_s < last_s - MAX_BACKWARD_S:
            raise row.error(0, f"{shown(row.cells[0])} is far before the row above it")
        last_s = max(last_s, at_s)
        if prompt_tokens and output_tokens:
            yield Arrival(last_s, Lengths(prompt_tokens, output_tokens))


def _time(row: Row) -> datetime:
    try:
        time = datetime.fromisoformat(row.cells[0])
    except ValueError:
        raise row.error(0, f"{shown(row.cells[0])} is not an ISO time") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)

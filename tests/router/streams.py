"""Streams of a whole cluster as its client and its first hops see them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from router.events import SendRow
from router.service import Generation
from tests.cluster import Cluster, Result


def rows_sent(c: Cluster) -> list[SendRow]:
    """Rows that the router sends from now on."""
    sent: list[SendRow] = []
    add = c.app._outgoing.add_row

    def added(row: SendRow) -> None:
        sent.append(row)
        add(row)

    c.app._outgoing.add_row = added  # type: ignore[method-assign]
    return sent


async def results(c: Cluster, wanted: Sequence[Generation]) -> list[Result]:
    return list(await asyncio.gather(*(c.run(generation) for generation in wanted)))


def seen(result: Result) -> tuple[object, ...]:
    """All that a client can tell of a stream but its times and the last digits of numbers."""
    end = result.finish
    told = [(d.index, d.token, d.text, d.logprob and d.logprob.token) for d in result.deltas]
    return told, end.finish_reason, end.stop_reason, end.output_tokens

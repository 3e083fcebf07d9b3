"""Streams that run all the time, each token held against the one right answer as it comes.

Nothing is raised for what goes wrong with a stream: it is written down, and the run goes on.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.chaos.catalogue import Known
from helix_mq.client import Client
from helix_mq.errors import HelixError
from helix_mq.sdk.token_stream import TokenStream

CANCEL_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Trouble:
    """What was wrong with a stream. `kind`: lost, wrong, repeated, missing, or text."""

    kind: str
    stream: str
    text: str


@dataclass(slots=True)
class Running:
    """One request under way. `longest_gap_s`: between two of its tokens, or before the first."""

    name: str
    known: Known
    cancel_after: int | None
    tokens: int = 0
    reroutes: int = 0
    longest_gap_s: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Tally:
    """Of all ended requests. `rerouted`: requests that were moved at least once."""

    finished: int = 0
    cancelled: int = 0
    tokens: int = 0
    rerouted: int = 0
    reroutes: int = 0
    most_reroutes: int = 0
    gaps_s: list[float] = field(default_factory=list)
    """The longest gap of each request that was moved."""
    troubles: list[Trouble] = field(default_factory=list)


class Load:
    """`streams` requests at any time, drawn from the catalogue by the seed."""

    def __init__(
        self, client: Client, catalogue: Sequence[Known], streams: int, seed: int, deadline_s: float
    ) -> None:
        self.tally = Tally()
        self.running: dict[str, Running] = {}
        self._client = client
        self._catalogue = catalogue
        self._streams = streams
        self._seed = seed
        self._deadline_s = deadline_s
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._waiting_for: list[tuple[int, asyncio.Event]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._one_after_another(i), name=f"load-{i}")
            for i in range(self._streams)
        ]

    async def stop(self) -> None:
        """No new requests; returns when those under way have ended."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def abandon(self) -> None:
        """Ends all streams now, before the client is closed: they would ask it again and again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def tokens_more(self, count: int) -> None:
        """Returns when `count` tokens have come from now on."""
        seen = asyncio.Event()
        self._waiting_for.append((self.tally.tokens + count, seen))
        await seen.wait()

    async def ended(self, requests: Sequence[Running]) -> None:
        for request in requests:
            await request.done.wait()

    def describe_running(self) -> str:
        counts = Counter(f"{r.tokens}/{len(r.known.token_ids)}" for r in self.running.values())
        return f"{len(self.running)} streams at {dict(counts)}"

    async def _one_after_another(self, stream: int) -> None:
        number = 0
        while not self._stopping:
            draw = random.Random(f"load/{self._seed}/{stream}/{number}")
            known = draw.choice(self._catalogue)
            cancel_after = None
            if draw.random() < CANCEL_SHARE and len(known.token_ids) > 1:
                cancel_after = draw.randrange(1, len(known.token_ids))
            running = Running(f"{stream}/{number}", known, cancel_after)
            self.running[running.name] = running
            try:
                await self._run(running)
            finally:
                del self.running[running.name]
                running.done.set()
            number += 1

    async def _run(self, running: Running) -> None:
        ask = running.known.ask
        stream = self._client.stream(ask.prompt, **ask.options(self._deadline_s))
        text = ""
        try:
            async with stream:
                text = await self._read(running, stream)
                result = stream.result()
        except HelixError as e:
            self._trouble("lost", running, f"{type(e).__name__}: {e}")
            return
        running.reroutes = result.timings.reroutes
        self._count(running)
        known = running.known
        if running.cancel_after is not None and result.finish_reason == "cancelled":
            # It may have ended by itself before the router heard of the wish.
            self.tally.cancelled += 1
            return
        self.tally.finished += 1
        if running.tokens < len(known.token_ids):
            at = f"ended after {running.tokens} of {len(known.token_ids)} tokens"
            self._trouble("missing", running, at)
        elif (text, result.finish_reason) != (known.text, known.finish_reason):
            what = f"{result.finish_reason} {text[-40:]!r}, not {known.finish_reason}"
            self._trouble("text", running, f"{what} {known.text[-40:]!r}")

    async def _read(self, running: Running, stream: TokenStream) -> str:
        loop, known = asyncio.get_running_loop(), running.known
        last_s, text = loop.time(), ""
        async for token in stream:
            now_s = loop.time()
            running.longest_gap_s = max(running.longest_gap_s, now_s - last_s)
            last_s = now_s
            text += token.text
            if token.id is None:
                continue
            at = running.tokens
            running.tokens += 1
            self._saw_token()
            if token.index != at:
                kind = "repeated" if token.index < at else "missing"
                self._trouble(kind, running, f"token {token.index} where {at} is due")
            elif at >= len(known.token_ids) or token.id != known.token_ids[at]:
                due = known.token_ids[at] if at < len(known.token_ids) else "the end"
                self._trouble("wrong", running, f"token {at} is {token.id}, not {due}")
            if running.cancel_after == running.tokens:
                stream.cancel()
        return text

    def _saw_token(self) -> None:
        self.tally.tokens += 1
        for entry in [e for e in self._waiting_for if e[0] <= self.tally.tokens]:
            entry[1].set()
            self._waiting_for.remove(entry)

    def _count(self, running: Running) -> None:
        if running.reroutes:
            tally = self.tally
            tally.rerouted += 1
            tally.reroutes += running.reroutes
            tally.most_reroutes = max(tally.most_reroutes, running.reroutes)
            tally.gaps_s.append(running.longest_gap_s)

    def _trouble(self, kind: str, running: Running, text: str) -> None:
        ask = running.known.ask
        how = "greedy" if ask.temperature == 0 else f"seed {ask.seed}"
        about = f"{len(ask.prompt)} prompt tokens, {how}: {text}"
        self.tally.troubles.append(Trouble(kind, running.name, about))

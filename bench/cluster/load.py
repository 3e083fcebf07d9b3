"""The load of a live run: so many users, each of whom asks again when answered, over the SDK.

Lengths are taken in the order in which the simulator takes them. Prompts are random token ids, so
that no two begin alike. What happened is kept with times of the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.cluster.stand_in import MAX_CONTEXT, VOCABULARY
from bench.traces.types import Lengths
from helix_mq.client import Client
from helix_mq.errors import ConfigError, HelixError

DEADLINE_S = 3600.0


@dataclass(slots=True)
class Asked:
    """One request; `ok` None while it runs."""

    lengths: Lengths
    sent_s: float
    tokens_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    ok: bool | None = None
    reason: str = ""


class ClosedLoad:
    """`run` until cancelled, or for as long as asked."""

    def __init__(self, endpoint: str, lengths: Iterator[Lengths], at_once: int, seed: int) -> None:
        self.asked: list[Asked] = []
        self._endpoint = endpoint
        self._lengths = lengths
        self._at_once = at_once
        self._draw = random.Random(seed)

    async def run(self, seconds: float) -> float:
        """Asks for so long, then leaves; when it began."""
        async with Client(self._endpoint) as client:
            began_s = time.monotonic()
            users = [asyncio.create_task(self._user(client)) for _ in range(self._at_once)]
            try:
                done, _ = await asyncio.wait(
                    users, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION
                )
                for user in done:
                    user.result()
            finally:
                for user in users:
                    user.cancel()
                await asyncio.gather(*users, return_exceptions=True)
        return began_s

    async def _user(self, client: Client) -> None:
        while True:
            lengths = next(self._lengths, None)
            if lengths is None:
                return
            if lengths.prompt_tokens + lengths.output_tokens > MAX_CONTEXT:
                raise ConfigError(
                    f"--workload: a request of {lengths.prompt_tokens} + {lengths.output_tokens} "
                    f"tokens; the emulation takes {MAX_CONTEXT} at most: bound the lengths",
                    param="workload",
                )
            await self._ask(client, lengths)

    async def _ask(self, client: Client, lengths: Lengths) -> None:
        prompt = [self._draw.randrange(VOCABULARY) for _ in range(lengths.prompt_tokens)]
        asked = Asked(lengths, time.monotonic())
        self.asked.append(asked)
        try:
            stream = client.stream(
                prompt,
                max_tokens=lengths.output_tokens,
                ignore_eos=True,
                temperature=0.0,
                deadline_s=DEADLINE_S,
            )
            async with stream:
                async for token in stream:
                    if token.id is not None:
                        asked.tokens_s.append(time.monotonic())
                asked.ok, asked.reason = True, stream.result().finish_reason
        except HelixError as e:
            asked.ok, asked.reason = False, e.code
            # Refused at once it must not ask again at once.
            await asyncio.sleep(0.1)
        asked.ended_s = time.monotonic()

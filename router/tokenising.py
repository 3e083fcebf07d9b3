"""Texts to token ids for the edges, without holding up the event loop.

Short texts are tokenised where they come, as long as there are few of them in one turn of the loop.
Longer ones wait for one of a few threads, whose library releases the interpreter's lock. Those that
cannot fit the context are refused first, and what waits is bounded.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from helix_mq.errors import QueueFull
from helix_mq.models.tokenizer import Tokenizer

MAX_TURN_CHARS = 4_000
"""Tokenised on the loop between two turns of it: about 1 ms on one core."""
MAX_WAITING_CHARS = 8 * 1024 * 1024
"""Of longer texts together; some ten seconds of work for a core."""


class Tokenising:
    def __init__(self, tokenizer: Tokenizer, longest: Callable[[], int]) -> None:
        """`longest`: tokens of the longest sequence that the cluster holds at present."""
        self._tokenizer = tokenizer
        self._longest = longest
        self._turn_chars = 0
        self._waiting_chars = 0
        # One core is left for the loop where there are several.
        self._threads = asyncio.Semaphore(max(1, min(4, (os.cpu_count() or 1) - 1)))

    @property
    def waiting_chars(self) -> int:
        """Of texts that are in threads, or wait for one."""
        return self._waiting_chars

    async def text(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text. Raises ContextExceeded, InvalidRequest or QueueFull."""
        most = self._most_tokens()
        self._tokenizer.check_fits(len(text), most, "prompt")

        def encode() -> list[int]:
            return self._tokenizer.encode(text, add_special_tokens=special, most_tokens=most)

        return await self._run(encode, len(text))

    async def chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of (role, content) messages under the chat template. Raises as `text` does."""
        most = self._most_tokens()
        turns = [{"role": role, "content": content} for role, content in messages]

        def encode() -> list[int]:
            return self._tokenizer.apply_chat_template(turns, most_tokens=most)

        # A message without a text has markup around it, too.
        return await self._run(encode, sum(len(content) + 8 for _, content in messages))

    def _most_tokens(self) -> int:
        """A prompt leaves room for one token of the answer."""
        return self._longest() - 1

    async def _run(self, encode: Callable[[], list[int]], chars: int) -> list[int]:
        if self._takes_on_loop(chars):
            return encode()
        if self._waiting_chars and self._waiting_chars + chars > MAX_WAITING_CHARS:
            raise QueueFull("too much text waits to be tokenised", retry_after_s=1.0)
        self._waiting_chars += chars
        try:
            await self._threads.acquire()
        except BaseException:
            self._waiting_chars -= chars
            raise
        work = asyncio.ensure_future(asyncio.to_thread(encode))

        def done(work: asyncio.Future[list[int]]) -> None:
            self._threads.release()
            self._waiting_chars -= chars
            if not work.cancelled():
                work.exception()

        work.add_done_callback(done)
        # Who asked may be gone before the thread is done, which nothing can stop.
        return await asyncio.shield(work)

    def _takes_on_loop(self, chars: int) -> bool:
        """One request may bring a thousand short texts, and many may come at once."""
        if self._turn_chars + chars > MAX_TURN_CHARS:
            return False
        if not self._turn_chars:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._turn_chars += max(1, chars)
        return True

    def _next_turn(self) -> None:
        self._turn_chars = 0

"""What is to be done between two steps of a worker, in turn: e.g. enlarging its KV cache."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


class Chores:
    def __init__(self) -> None:
        self.waiting: deque[tuple[Job, asyncio.Future[None]]] = deque()
        """The first may be in progress."""

    def add(self, job: Job) -> asyncio.Future[None]:
        """Done when `job` is, with what it raised; cancelled when it will not be done."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((job, done))
        return done

    def over(self, error: Exception | None) -> None:
        """The first one has been done, or raised this."""
        _, done = self.waiting.popleft()
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    def give_up(self) -> None:
        """Nobody will do what waits."""
        while self.waiting:
            self.waiting.popleft()[1].cancel()

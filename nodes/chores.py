"""What is to be done between two steps of a worker, in turn: e.g. enlarging its KV cache."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

Job = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Chore:
    job: Job
    done: asyncio.Future[None]


class Chores:
    def __init__(self) -> None:
        self._waiting: deque[_Chore] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, job: Job) -> asyncio.Future[None]:
        """Done when `job` is, with what it raised; cancelled when it will not be done."""
        chore = _Chore(job, asyncio.get_running_loop().create_future())
        self._waiting.append(chore)
        return chore.done

    async def do_next(self, run: Callable[[Job], Awaitable[None]]) -> None:
        """Has the next one run. It waits here until it has been."""
        chore = self._waiting[0]
        try:
            await run(chore.job)
        except Exception as e:
            if not chore.done.done():
                chore.done.set_exception(e)
        else:
            if not chore.done.done():
                chore.done.set_result(None)
        self._waiting.popleft()

    def give_up(self) -> None:
        """Nobody will do what waits."""
        while self._waiting:
            self._waiting.popleft().done.cancel()

"""What wakes one sleeper: an asyncio.Event for a loop that waits thousands of times a second."""

from __future__ import annotations

import asyncio


class Bell:
    """Rings are kept until the next `listen`. One task waits at a time."""

    __slots__ = ("_rung", "_sleeper")

    def __init__(self) -> None:
        self._rung = False
        self._sleeper: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self._rung = True
        sleeper = self._sleeper
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    def listen(self) -> None:
        """From now on only what rings afterwards counts."""
        self._rung = False

    async def wait(self) -> None:
        """Until it has rung since the last `listen`."""
        if self._rung:
            return
        assert self._sleeper is None
        self._sleeper = asyncio.get_running_loop().create_future()
        try:
            await self._sleeper
        finally:
            self._sleeper = None

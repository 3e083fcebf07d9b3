"""Tells the service manager how this process does: systemd's sd_notify protocol.

Ready, what it does in words, stopping, and a sign of life for the watchdog. That sign comes from
the event loop, and only while the process can say that its work goes on (`Health.stuck`): a loop
that turns beside a device that hangs is not alive. Without NOTIFY_SOCKET everything here is silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from typing import Protocol

from helix_mq.logs import one_line

log = logging.getLogger(__name__)

STATUS_S = 2.0
"""How often the status is looked at; it is sent when it has changed."""

_MAX_STATUS = 400


class Health(Protocol):
    """What a process knows of itself. Called from the event loop, must not block."""

    def status(self) -> str:
        """What it does, in a few words."""
        ...

    def stuck(self) -> str:
        """What has stood still for so long that a restart is due; empty when nothing has."""
        ...


class Notifier:
    """One datagram socket. `watchdog_s`: signs of life must not be further apart than this."""

    def __init__(self, address: bytes | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s if address is not None else None
        self._failed = False
        self._socket: socket.socket | None = None
        if address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> Notifier:
        """As the service manager's variables say; silent without them."""
        named = environ.get("NOTIFY_SOCKET", "")
        if named[:1] not in ("/", "@"):
            if named:
                log.warning("NOTIFY_SOCKET=%s: neither a path nor an abstract address", named)
            return cls(None)
        address = os.fsencode(named)
        if named[0] == "@":
            address = b"\0" + address[1:]
        return cls(address, _watchdog_s(environ, pid))

    @property
    def active(self) -> bool:
        return self._socket is not None

    def send(self, fields: Mapping[str, str]) -> bool:
        """One message; False when it could not be sent now."""
        if self._socket is None or self._address is None:
            return True
        lines = (f"{name}={one_line(value, _MAX_STATUS)}" for name, value in fields.items())
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as e:
            if not self._failed:
                log.warning("the service manager cannot be told: %s", e.strerror)
            self._failed = True
            return False
        self._failed = False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Announcer:
    """Keeps the service manager informed from `start` to `close`.

    `stop` is the event that ends the process; ending may take `stopping_s`.
    """

    def __init__(
        self, notifier: Notifier, health: Health, stop: asyncio.Event, *, stopping_s: float = 0.0
    ) -> None:
        self._notifier = notifier
        self._health = health
        self._stop = stop
        self._stopping_s = stopping_s
        self._waiting: dict[str, str] = {}
        """What could not be sent yet."""
        self._status = ""
        self._stuck = ""
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def start(cls, health: Health, stop: asyncio.Event, *, stopping_s: float = 0.0) -> Announcer:
        """Of this process."""
        made = cls(Notifier.of(os.environ, os.getpid()), health, stop, stopping_s=stopping_s)
        if made._notifier.active:
            made._task = asyncio.create_task(made._run(), name="announcer")
        return made

    def ready(self) -> None:
        """The process serves, or will without anything else from its operator."""
        self._waiting["READY"] = "1"
        self.turn()

    def turn(self) -> None:
        """Says what is to be said now."""
        if not self._notifier.active:
            return
        if self._stop.is_set() and not self._stopping:
            self._stopping = True
            self._waiting["STOPPING"] = "1"
            if self._stopping_s:
                self._waiting["EXTEND_TIMEOUT_USEC"] = str(int(self._stopping_s * 1e6))
        self._look()
        if self._waiting and self._notifier.send(self._waiting):
            self._waiting.clear()

    def _look(self) -> None:
        stuck = self._health.stuck()
        if stuck and not self._stuck:
            log.error("%s: the watchdog gets no sign of life until that ends", stuck)
        elif self._stuck and not stuck:
            log.warning("work goes on: the watchdog gets its signs of life again")
        self._stuck = stuck
        status = stuck or (
            f"stopping: {self._health.status()}" if self._stopping else self._health.status()
        )
        if status != self._status:
            self._waiting["STATUS"] = self._status = status
        # Never one that is old: it would say that the process was well once.
        self._waiting.pop("WATCHDOG", None)
        if self._notifier.watchdog_s is not None and not stuck:
            self._waiting["WATCHDOG"] = "1"

    async def _run(self) -> None:
        """A turn at half the watchdog's time, as systemd asks, and as soon as `stop` is set."""
        every_s = min(STATUS_S, (self._notifier.watchdog_s or STATUS_S * 2) / 2)
        while True:
            try:
                self.turn()
            except Exception:
                # Not knowing how one does is no sign of life.
                log.exception("the service manager could not be told how this process does")
            if self._stopping:
                await asyncio.sleep(every_s)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._stop.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._notifier.close()


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    """WATCHDOG_USEC, unless it is meant for another process."""
    wanted, whom = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not wanted or (whom and whom != str(pid)):
        return None
    if not (wanted.isdecimal() and wanted.isascii() and int(wanted) > 0):
        log.warning("WATCHDOG_USEC=%s: not a number of microseconds; no watchdog", wanted)
        return None
    return int(wanted) / 1e6

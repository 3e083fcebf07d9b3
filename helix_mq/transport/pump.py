"""Drives one zmq socket from the event loop: wakes on its FD, works in bounded slices.

A zmq FD tells of commands in the socket's mailbox, once: a call that happens to read the mailbox
(a send does) takes the wake-up with it. So whoever touches the socket has the pump look again on
the loop's next turn, once for all that is done in this turn. Works under asyncio and uvloop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import zmq
from zmq import zmq_poll

log = logging.getLogger(__name__)

SLICE_MESSAGES = 256
SLICE_S = 0.0005
"""A slice of work ends after so many messages or so much time, and goes on after other tasks. A
turn of the loop may have several: a listener's, some connections'."""


_POLLIN = int(zmq.POLLIN)


class Pump:
    """Calls `step` whenever the socket may have something.

    `step` does a bounded piece of work without blocking and says whether more is waiting. It must
    leave the socket drained when it says no.
    """

    def __init__(self, socket: zmq.Socket[bytes], step: Callable[[], bool], where: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket
        self._step = step
        self._where = where
        self._fd = int(socket.getsockopt(zmq.FD))
        self.reads = [(socket, _POLLIN)]
        """`zmq_poll(pump.reads, 0)` is empty where there is nothing to receive, for which the FD
        will ring. Asking takes less than half of the time that a receive does which finds nothing,
        and no Python calls, of which asking for zmq.EVENTS makes two."""
        self._due = False
        self._poked = False
        self.poked = False
        """Whether this step is one that was asked for: most often there is nothing to receive."""
        self.stopped = False
        self._loop.add_reader(self._fd, self._run)
        # What came in before the reader was there has already rung its bell.
        self.poke()

    def poke(self) -> None:
        """A step on the loop's next turn, whether there is something to receive or not."""
        self._poked = True
        self.look()

    def look(self) -> None:
        """A step on the loop's next turn if there is something to receive then."""
        if not self._due and not self.stopped:
            self._due = True
            self._loop.call_soon(self._run_due)

    def stop(self) -> None:
        """No step runs after this."""
        if not self.stopped:
            self.stopped = True
            self._loop.remove_reader(self._fd)

    def _run_due(self) -> None:
        self._due = False
        self.poked, self._poked = self._poked, False
        try:
            idle = not self.poked and (self.stopped or not zmq_poll(self.reads, 0))
        except zmq.ZMQError:
            # The step comes to it as well, and says so.
            idle = False
        if not idle:
            self._run()
            self.poked = False

    def _run(self) -> None:
        if self.stopped:
            return
        try:
            more = self._step()
        except zmq.ZMQError as e:
            # Only a closed context or socket ends here; steps handle the rest themselves.
            log.error("%s: the socket failed: %s", self._where, e)
            self.stop()
            return
        if more:
            self.poke()

"""Every open stream of a client: what arrives goes to it, a new connection picks all up.

Sends through one function and reads a clock; no sockets, no tasks. A Submit carries a reference
chosen at random, so that one that is sent again after a reconnect is known to be the same.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

import msgspec

from helix_mq.clock import Clock
from helix_mq.errors import HelixError, InvalidRequest, QueueFull
from helix_mq.messages import client
from helix_mq.packing import pack
from helix_mq.sdk.errors import rebuilt
from helix_mq.sdk.stream_state import StreamState

log = logging.getLogger(__name__)

MAX_SUBMIT_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""Of one request on the wire, its header's framing left out."""

Send = Callable[[msgspec.Struct], bool]


def new_reference() -> int:
    """A stream's number: nobody else guesses it, nobody else draws it."""
    return secrets.randbits(62)


class OpenStream:
    """A stream's state, and the event that wakes its reader."""

    def __init__(self, state: StreamState) -> None:
        self.state = state
        self.news = asyncio.Event()
        self.cancelling = False


class Streams:
    def __init__(self, send: Send, clock: Clock, max_streams: int) -> None:
        """`send` gives False when the link takes no more."""
        self._send = send
        self._clock = clock
        self._max = max_streams
        self._open: dict[int, OpenStream] = {}
        self.connected = False

    def __len__(self) -> int:
        return len(self._open)

    def open(self, submit: client.Submit) -> OpenStream:
        """Submits at once, or as soon as the link is back. Raises InvalidRequest or QueueFull."""
        size = len(pack(submit))
        if size > MAX_SUBMIT_BYTES:
            raise InvalidRequest(
                f"the request takes {size} bytes on the wire; at most {MAX_SUBMIT_BYTES} fit",
                param="prompt",
            )
        if len(self._open) >= self._max:
            raise QueueFull(
                f"{len(self._open)} streams of this client are open, its max_streams", param=None
            )
        stream = OpenStream(StreamState(submit, self._clock.now_s()))
        if self.connected and not self._send(submit):
            raise QueueFull("the link to the router takes no more now", retry_after_s=1.0)
        self._open[submit.reference] = stream
        return stream

    def cancel(self, stream: OpenStream) -> None:
        """Asks the router to end it; what it has sent until then still arrives."""
        if not stream.state.ended and not stream.cancelling:
            stream.cancelling = True
            if self.connected:
                self._send(client.Cancel(stream.state.reference))

    def close(self, stream: OpenStream) -> None:
        """Forgets the stream; cancels it if it has not ended."""
        if self._open.pop(stream.state.reference, None) is not None:
            self.cancel(stream)

    def cancel_all(self) -> None:
        for stream in self._open.values():
            self.cancel(stream)

    def on_up(self) -> None:
        """A new connection: the router gets every stream again, from where it broke off."""
        self.connected = True
        # First something small: until a peer's first message is whole it may be anybody, and one
        # that sends a lot without one is cut. A large Submit over a slow link would be taken so.
        self._send(client.Keepalive(0))
        for stream in self._open.values():
            self._restart(stream)

    def on_down(self) -> None:
        self.connected = False

    def fail_all(self, error: HelixError) -> None:
        for stream in self._open.values():
            stream.state.fail(error)
            stream.news.set()
        self._open.clear()

    def on_message(self, message: msgspec.Struct) -> bool:
        """False when it is none of the kinds that belong to a stream."""
        match message:
            case client.Accepted() | client.Delta() | client.Done() | client.Failed():
                stream = self._open.get(message.reference)
                if stream is not None:
                    self._apply(stream, message)
                return True
            case _:
                return False

    def _apply(
        self,
        stream: OpenStream,
        message: client.Accepted | client.Delta | client.Done | client.Failed,
    ) -> None:
        state, whole = stream.state, True
        match message:
            case client.Accepted():
                state.accepted(message)
            case client.Delta():
                whole = state.delta(message, self._clock.now_s())
            case client.Done():
                whole = state.finish(message, self._clock.now_s())
            case client.Failed():
                state.fail(rebuilt(message))
        if not whole:
            log.warning("a message of stream %x was lost; resuming it", state.reference)
            self._restart(stream)
        if state.ended:
            del self._open[state.reference]
        if state.readable:
            stream.news.set()

    def _restart(self, stream: OpenStream) -> None:
        state = stream.state
        if state.request is None:
            self._send(state.submit)
        else:
            self._send(client.Resume(state.reference, state.request, state.next_index))
        if stream.cancelling:
            self._send(client.Cancel(state.reference))

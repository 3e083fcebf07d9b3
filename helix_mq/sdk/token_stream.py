"""What `Client.stream` returns: an async iterator of tokens that cancels when it is left early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from helix_mq.errors import DeadlineExceeded, LocalError
from helix_mq.messages import client
from helix_mq.sdk.results import Completion, Token
from helix_mq.sdk.streams import OpenStream, Streams

DEADLINE_GRACE_S = 2.0
"""The router ends a request at its deadline; this much later the client does so itself."""

Connect = Callable[[], Awaitable[Streams]]


class TokenStream:
    """Iterate to get Tokens; `result()` gives the whole afterwards. One reader.

    Nothing is sent before the first step. Leaving it early cancels the request: by `aclose`, by
    `async with`, and when the last reference to it goes.
    """

    def __init__(self, connect: Connect, submit: client.Submit) -> None:
        self._connect = connect
        self._submit = submit
        self._streams: Streams | None = None
        self._stream: OpenStream | None = None
        self._loop = asyncio.get_running_loop()
        self._give_up_at: float | None = None
        self._closed = False

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> Token:
        """Raises what ended the stream, if it was not the end of the text."""
        if self._closed:
            raise StopAsyncIteration
        stream = self._stream or await self._start()
        while True:
            token = stream.state.take()
            if token is not None:
                return token
            if stream.state.error is not None:
                raise stream.state.error
            if stream.state.done is not None:
                raise StopAsyncIteration
            await self._wait(stream)

    async def __aenter__(self) -> TokenStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream here, and at the router if it still runs there."""
        self._closed = True
        if self._streams is not None and self._stream is not None:
            self._streams.close(self._stream)

    def cancel(self) -> None:
        """Asks the router to stop; the stream ends soon, with finish_reason `cancelled`."""
        if self._streams is not None and self._stream is not None:
            self._streams.cancel(self._stream)
        else:
            self._closed = True

    def result(self) -> Completion:
        """The whole generation. Raises what ended it, or LocalError while it still runs."""
        state = self._stream.state if self._stream is not None else None
        if state is not None and state.error is not None:
            raise state.error
        if state is None or state.done is None:
            raise LocalError("the stream has not ended: read it to its end first")
        return state.completion()

    async def _start(self) -> OpenStream:
        self._streams = await self._connect()
        self._stream = self._streams.open(self._submit)
        if self._submit.deadline_s is not None:
            self._give_up_at = self._loop.time() + self._submit.deadline_s + DEADLINE_GRACE_S
        return self._stream

    async def _wait(self, stream: OpenStream) -> None:
        stream.news.clear()
        try:
            async with asyncio.timeout_at(self._give_up_at):
                await stream.news.wait()
        except TimeoutError:
            assert self._streams is not None
            self._streams.close(stream)
            stream.state.fail(
                DeadlineExceeded(
                    f"the deadline of {self._submit.deadline_s} s has passed and the router has "
                    "not answered"
                )
            )

    def __del__(self) -> None:
        streams, stream = self._streams, self._stream
        if streams is None or stream is None or stream.state.ended or self._loop.is_closed():
            return
        # The collector may run anywhere; sockets belong to the loop's thread.
        self._loop.call_soon_threadsafe(streams.close, stream)

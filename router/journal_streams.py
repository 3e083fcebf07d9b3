"""The streams of open requests, and the journal before them.

A client is told nothing that the journal does not have: its request is accepted, and each event
given out, when its record is kept. The next decode step does not wait for that. Without a journal
everything is given out at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

from helix_mq.clock import Clock
from helix_mq.errors import HelixError, JournalUnavailable
from helix_mq.ids import RequestId
from router.journal import Journal
from router.journal_records import Ended, Opened, TokenKept
from router.metrics import RouterMetrics
from router.service import Broken, Delta, EventStream, Generation, Origin, StreamEvent

_SECRET_BYTES = 18


class JournaledStreams:
    """`lost`: told of a request whose record could not be kept; it is to be cancelled."""

    def __init__(
        self,
        journal: Journal | None,
        clock: Clock,
        metrics: RouterMetrics,
        lost: Callable[[RequestId], None],
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._metrics = metrics
        self._lost = lost
        self._streams: dict[RequestId, EventStream] = {}

    def check(self) -> None:
        """Raises JournalUnavailable when no request can be accepted."""
        if self._journal is not None:
            self._journal.check()

    def open(self, request: RequestId, prompt_tokens: int, origin: Origin) -> EventStream:
        """A stream for a request that is about to be submitted, and may still be refused."""
        secret = origin.secret or secrets.token_urlsafe(_SECRET_BYTES)
        stream = EventStream(request, prompt_tokens, secret, accepted=self._journal is None)
        self._streams[request] = stream
        return stream

    def forget(self, request: RequestId) -> None:
        """It was refused."""
        del self._streams[request]

    def opened(
        self,
        stream: EventStream,
        generation: Generation,
        origin: Origin,
        deadline_ms: int,
        served: tuple[str, str],
    ) -> None:
        """Writes down a request that the core has taken. `served`: the model's name and digest."""
        if self._journal is None:
            return
        request = stream.request
        origin = Origin(
            stream.secret, origin.user, origin.reference, origin.first or request, origin.choice
        )
        record = Opened(request, generation, origin, *served, self._now_ms(), deadline_ms)
        self._journal.append(record, partial(self._decided, stream))

    def _decided(self, stream: EventStream, kept: bool) -> None:
        if kept:
            stream.accept()
            return
        self._streams.pop(stream.request, None)
        try:
            assert self._journal is not None
            self._journal.check()
            refusal: HelixError = JournalUnavailable("the router is shutting down")
        except JournalUnavailable as e:
            refusal = e
        stream.refuse(refusal)
        self._lost(stream.request)

    def restore(self, request: RequestId, prompt_tokens: int, secret: str) -> EventStream:
        """A stream of the router's earlier life, whose client may come back."""
        stream = self._streams[request] = EventStream(request, prompt_tokens, secret)
        return stream

    def emit(self, request: RequestId, event: StreamEvent, *, past: bool = False) -> None:
        """An event of a request, whether anyone reads its stream or not."""
        stream = self._streams.get(request)
        if not isinstance(event, Delta):
            self._streams.pop(request, None)
        if past:
            if stream is not None:
                stream.push(event)
            return
        self._metrics.saw(request, event)
        if self._journal is None:
            if stream is not None:
                stream.push(event)
            return
        then = partial(_give, stream, event) if stream is not None else None
        if not isinstance(event, Delta):
            self._journal.append(Ended(request, self._now_ms(), event), then)
        else:
            assert event.token is not None, "every delta of the core has a token"
            token = TokenKept(request, event.index, event.token, self._now_ms(), event.logprob)
            self._journal.append(token, then)

    def break_all(self, error: HelixError) -> None:
        """Ends every stream here; what the journal has of them stays open."""
        for stream in self._streams.values():
            stream.push(Broken(error))
        self._streams.clear()

    def _now_ms(self) -> int:
        return int(self._clock.wall_s() * 1000)


def _give(stream: EventStream, event: StreamEvent, kept: bool) -> None:
    """Also when it is not kept: the seed would bring the same token back."""
    stream.push(event)

"""The router's sockets for SDK clients: submissions in, streams out, bounded per client and in all.

A client that breaks off may come back on a new connection and resume; one that stays silent has
its streams cancelled. Bad messages are counted, and answered where they name a stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from helix_mq.clock import Clock, SystemClock
from helix_mq.errors import (
    ConnectionLost,
    FrameError,
    HelixError,
    InvalidRequest,
    LocalError,
    NotServing,
    QueueFull,
)
from helix_mq.frames import decode, encode
from helix_mq.messages import client
from helix_mq.sdk.errors import failed
from helix_mq.transport import Delivery, Limits, Listener, Transport
from router.client_book import ClientBook, ClientBounds, ClientStatistics, Peer
from router.client_faults import reference_of
from router.client_requests import generation_of
from router.client_streams import ClientStream
from router.journal_records import EndedStream
from router.restore_clients import KeptStreams, RunningStream
from router.security import RouterSecurity
from router.service import EventStream, Finished, Origin, Service

log = logging.getLogger(__name__)

_LIMITS = Limits(max_message_bytes=4 * 1024 * 1024, max_parts=2, backlog_bytes=16 * 1024 * 1024)
_RETRY_S = 0.02
_MAX_REASONS = 1000

Work = Callable[[], Awaitable[None]]


class ClientSockets:
    def __init__(
        self,
        service: Service,
        transport: Transport,
        endpoint: str,
        security: RouterSecurity,
        *,
        bounds: ClientBounds | None = None,
        clock: Clock | None = None,
        kept: KeptStreams | None = None,
    ) -> None:
        """`kept`: streams of the router's earlier life; then those of this one are kept, too."""
        self._kept = kept
        self._service = service
        self._transport = transport
        self._endpoint = endpoint
        self._security = security
        self._bounds = bounds or ClientBounds()
        self._book = ClientBook(self._bounds)
        self._clock = clock or SystemClock()
        self._listener: Listener | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stalled: dict[str, ClientStream] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._kept_until_s = 0.0
        self._bad: Counter[str] = Counter()
        self._closing = False

    @property
    def endpoint(self) -> str:
        """The real one, after start."""
        assert self._listener is not None
        return self._listener.endpoint

    async def start(self) -> None:
        """Binds. Raises ConfigError when the address cannot be used."""
        self._listener = await self._transport.listen(
            self._endpoint,
            self._on_delivery,
            limits=_LIMITS,
            security=self._security.server(),
            insecure=self._security.insecure,
            on_disconnect=self._on_disconnect,
        )
        self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="clients-sweep")
        self._kept_until_s = self._clock.now_s() + self._bounds.silent_s
        for running in self._kept.running if self._kept is not None else ():
            self._restore(running)
        self._security.on_revoked(lambda _: self._drop_revoked())
        self._drop_revoked()

    def stop_taking(self) -> None:
        """The router is about to close: with a journal, requests are left to the one after it."""
        self._closing = True

    async def close(self) -> None:
        """Tells every open stream, then closes the socket. Streams that the router keeps over a
        restart are not ended: their clients come back for them."""
        self.stop_taking()
        for stream in self._book.streams() if self._kept is None else ():
            stream.fail(_stopping(), self._clock.now_s())
            self._flush(stream)
        tasks = list(self._tasks.values())
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._retry is not None:
            self._retry.cancel()
        if self._listener is not None:
            await self._listener.close()

    def statistics(self) -> ClientStatistics:
        streams = self._book.streams()
        ended = sum(stream.ended for stream in streams)
        return ClientStatistics(
            clients=self._book.clients,
            open_streams=len(streams) - ended,
            kept_streams=ended,
            bad_messages=tuple(sorted(self._bad.items())),
        )

    # -- messages in --------------------------------------------------------

    def _on_delivery(self, delivery: Delivery) -> None:
        try:
            message = decode(delivery.parts).header
        except FrameError as e:
            self._count_bad(e)
            self._refuse(delivery, InvalidRequest(f"the message cannot be used: {e}"))
            return
        try:
            peer = self._book.heard(delivery.peer, delivery.user, self._clock.now_s())
        except QueueFull as e:
            self._refuse(delivery, e)
            return
        match message:
            case client.Submit():
                self._submit(peer, message)
            case client.Cancel():
                stream = peer.streams.get(message.reference)
                if stream is not None:
                    self._stop(stream)
            case client.Resume():
                self._resume(peer, message)
            case client.Keepalive():
                self._send(peer.id, message)
            case client.Models():
                serving = self._service.standing().serving
                self._send(peer.id, client.Models((self._service.model_name,), serving))
            case _:
                self._count_bad(FrameError(type(message).__name__, reason="kind"))

    def _submit(self, peer: Peer, submit: client.Submit) -> None:
        before = self._book.submitted(peer.user, submit.reference)
        if before is not None:
            # The same submission over a new connection: its answer was lost with the old one.
            if before.peer != peer.id:
                self._attach(before, peer, submit.reference, None)
            return
        kept = self._kept.take_submitted(peer.user, submit.reference) if self._kept else None
        if kept is not None:
            self._load(kept, peer, submit.reference, None)
            return
        if self._closing and self._kept is not None:
            return  # it is said again to the router that comes after this one
        stream = ClientStream(peer.id, peer.user, submit.reference, self._clock.now_s())
        try:
            if self._closing:
                raise _stopping()
            self._book.add(peer, stream)
        except HelixError as e:
            self._send(peer.id, failed(submit.reference, e))
            return
        self._start(stream, partial(self._run, stream, submit))

    def _resume(self, peer: Peer, message: client.Resume) -> None:
        name = message.request.rpartition(".")[2]
        stream = self._book.named(name, peer.user)
        if stream is None and self._kept is not None:
            kept = self._kept.take_named(name, peer.user)
            if kept is not None:
                self._load(kept, peer, message.reference, message.index)
                return
        if stream is None:
            gone = ConnectionLost(
                "the router does not know this stream any more: it restarted without a journal, or "
                "the connection was away for too long; submit the request again"
            )
            self._send(peer.id, failed(message.reference, gone))
            return
        self._attach(stream, peer, message.reference, message.index)

    def _attach(self, stream: ClientStream, peer: Peer, reference: int, index: int | None) -> None:
        try:
            self._book.attach(stream, peer, reference, index)
        except InvalidRequest as e:
            self._send(peer.id, failed(reference, e))
            self._stop(stream)
            return
        self._flush(stream)

    # -- one stream ---------------------------------------------------------

    def _restore(self, running: RunningStream) -> None:
        """A stream that goes on whether its client is back yet or not."""
        stream = ClientStream.restored(running.opened, self._clock.now_s())
        self._book.restore(stream)
        self._start(stream, partial(self._follow, stream, running.events))

    def _load(self, ended: EndedStream, peer: Peer, reference: int, index: int | None) -> None:
        """A stream that ended before the router restarted: its client lacks some of it."""
        stream = ClientStream(
            peer.id, ended.user, reference, self._clock.now_s(), kept_name=ended.secret
        )
        try:
            self._book.add(peer, stream)
        except HelixError as e:
            self._send(peer.id, failed(reference, e))
            return
        self._attach(stream, peer, reference, index)
        self._start(stream, partial(self._replay, ended, stream))

    def _start(self, stream: ClientStream, work: Work) -> None:
        self._tasks[stream.name] = asyncio.create_task(
            self._guarded(stream, work), name=f"sdk-{stream.reference:x}"
        )

    async def _replay(self, ended: EndedStream, stream: ClientStream) -> None:
        assert self._kept is not None
        loaded = await self._kept.load(ended)
        if loaded is None:
            raise ConnectionLost("the router has forgotten this stream; submit the request again")
        opened, events = loaded
        stream.accept(opened.request, opened.model, len(opened.generation.prompt_ids))
        await self._follow(stream, events)

    async def _run(self, stream: ClientStream, submit: client.Submit) -> None:
        service = self._service
        generation = await generation_of(service, submit, stream.user or "")
        if stream.cancelled:
            prompt = len(generation.prompt_ids)
            never_ran = Finished("cancelled", prompt, 0, 0.0, 0.0, 0.0, 0)
            stream.record(never_ran, self._clock.now_s())
            return
        origin = Origin(stream.name, stream.user, stream.reference)
        events = service.submit(generation, origin)
        # Known from here on, so that a cancel finds it.
        stream.request = events.request
        await events.accepted()
        stream.accept(events.request, service.model_name, events.prompt_tokens)
        self._flush(stream)
        await self._follow(stream, events)

    async def _follow(self, stream: ClientStream, events: EventStream) -> None:
        async for event in events:
            stream.record(event, self._clock.now_s())
            self._flush(stream)

    async def _guarded(self, stream: ClientStream, work: Work) -> None:
        """Whatever goes wrong with a stream, its client hears of it."""
        try:
            await work()
        except HelixError as e:
            if not (self._closing and self._kept is not None and isinstance(e, NotServing)):
                stream.fail(e, self._clock.now_s())
        except Exception:
            log.exception("a fault while serving stream %s", stream.name)
            fault = LocalError("an internal error; the router's log says more")
            stream.fail(fault, self._clock.now_s())
        finally:
            self._tasks.pop(stream.name, None)
            if stream.ended:
                self._flush(stream)

    def _stop(self, stream: ClientStream) -> None:
        """Has it cancelled, now or as soon as it is submitted."""
        stream.cancelled = True
        if stream.request is not None and not stream.ended:
            self._service.cancel(stream.request)

    def _flush(self, stream: ClientStream) -> None:
        """Sends what the client lacks, as far as its connection takes it."""
        while stream.peer is not None:
            message = stream.next_message(self._service.tokenizer)
            if message is None:
                break
            if not self._send(stream.peer, message):
                self._stalled[stream.name] = stream
                self._retry_soon()
                break
            stream.sent()
        if stream.delivered:
            self._book.delivered(stream)

    def _send(self, peer: bytes, message: msgspec.Struct) -> bool:
        return self._listener is not None and self._listener.send(peer, encode(message))

    def _retry_soon(self) -> None:
        if self._retry is None and not self._closing:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._retry_stalled)

    def _retry_stalled(self) -> None:
        self._retry = None
        stalled, self._stalled = self._stalled, {}
        full: set[bytes | None] = set()
        for name, stream in stalled.items():
            if stream.peer in full:
                # One message shows that a connection takes no more; hundreds cost as much work.
                self._stalled[name] = stream
                continue
            self._flush(stream)
            if name in self._stalled:
                full.add(stream.peer)

    # -- clients that go away -----------------------------------------------

    def _on_disconnect(self, peer_id: bytes) -> None:
        self._book.disconnect(peer_id, self._clock.now_s())

    def _drop_revoked(self) -> None:
        for stream in [s for s in self._book.streams() if not self._security.allows(s.user)]:
            self._stop(stream)
            stream.detach(self._clock.now_s())

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._bounds.sweep_s)
            self.sweep()

    def sweep(self) -> None:
        """Cancels what nobody will ask for any more, and forgets what has ended so."""
        if self._kept is not None and self._clock.now_s() > self._kept_until_s:
            self._kept.forget()
        overdue = self._book.overdue(self._clock.now_s())
        for stream in overdue.abandoned:
            self._stop(stream)
        for stream in overdue.silent:
            self._stop(stream)
            silence = ConnectionLost(
                f"the router has not heard from this client for {self._bounds.silent_s:.0f} s and "
                "cancelled its request"
            )
            stream.fail(silence, self._clock.now_s())
            self._flush(stream)

    # -- bad messages -------------------------------------------------------

    def _count_bad(self, error: FrameError) -> None:
        if len(self._bad) < _MAX_REASONS or error.reason in self._bad:
            self._bad[error.reason] += 1
        if self._bad[error.reason] == 1:
            log.warning("bad message from a client (%s): %s", error.reason, error)

    def _refuse(self, delivery: Delivery, error: HelixError) -> None:
        """Answers a message that is not used, where it names a stream."""
        reference = reference_of(delivery)
        if reference is not None:
            self._send(delivery.peer, failed(reference, error))


def _stopping() -> NotServing:
    return NotServing("the router is shutting down", retry_after_s=5.0)

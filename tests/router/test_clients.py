"""The SDK and the router's client sockets together, in memory and over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from helix_mq.client import Client
from helix_mq.clock import VirtualClock
from helix_mq.errors import (
    ConnectionLost,
    ContextExceeded,
    DeadlineExceeded,
    InvalidRequest,
    KvExhausted,
    LocalError,
    NotServing,
    QueueFull,
    UnknownModel,
)
from helix_mq.frames import decode, encode
from helix_mq.keys import AllowList, KeyPair
from helix_mq.messages import client as wire
from helix_mq.sampling import SamplingParams
from helix_mq.sdk.options import ClientOptions
from helix_mq.transport import (
    Connection,
    Delivery,
    EndpointUnavailable,
    LinkState,
    MemoryTransport,
    ServerSecurity,
    Transport,
    ZmqTransport,
)
from router.client_book import ClientBounds
from router.clients import ClientSockets
from router.security import RouterSecurity
from router.service import Generation
from router.settings import SecuritySection
from tests.echo_service import EchoService

FAST = ClientOptions(connect_timeout_s=5, reconnect_timeout_s=5, keepalive_s=0.05)


@dataclass
class Setup:
    transport: Transport
    sockets: ClientSockets
    service: EchoService

    def client(self, options: ClientOptions = FAST) -> Client:
        return Client(self.sockets.endpoint, transport=self.transport, options=options)

    async def restart(self) -> None:
        """A listener at the same place that knows no stream of the old one."""
        endpoint = self.sockets.endpoint
        await self.sockets.close()
        self.sockets = ClientSockets(self.service, self.transport, endpoint, no_keys())
        async with asyncio.timeout(20):
            while True:
                try:
                    await self.sockets.start()
                    return
                except EndpointUnavailable:
                    # ZeroMQ gives a port back a moment after the socket is closed.
                    await asyncio.sleep(0.01)


def no_keys() -> RouterSecurity:
    return RouterSecurity(SecuritySection())


@pytest.fixture(params=["memory", "zmq"])
async def setup(request: pytest.FixtureRequest, service: EchoService) -> AsyncIterator[Setup]:
    transport: Transport = MemoryTransport() if request.param == "memory" else ZmqTransport()
    endpoint = "mem://clients" if request.param == "memory" else "tcp://127.0.0.1:0"
    sockets = ClientSockets(service, transport, endpoint, no_keys())
    await sockets.start()
    running = Setup(transport, sockets, service)
    yield running
    await running.sockets.close()
    await transport.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (states without an event of their own)
            await asyncio.sleep(0.005)


def greedy(service: EchoService, prompt: str, max_tokens: int) -> Generation:
    ids = tuple(service.tokenizer.encode(prompt))
    return Generation(ids, SamplingParams(temperature=0.0, max_tokens=max_tokens))


async def test_a_stream_gives_tokens_then_the_whole(setup: Setup) -> None:
    async with setup.client() as client:
        stream = client.stream("hello", max_tokens=9, temperature=0)
        tokens = [token async for token in stream]
    want = setup.service.text_of(greedy(setup.service, "hello", 9))
    assert "".join(t.text for t in tokens) == want
    assert [t.index for t in tokens] == list(range(9))
    result = stream.result()
    assert result.text == want
    assert result.token_ids == tuple(t.id for t in tokens)
    assert (result.usage.prompt_tokens, result.usage.output_tokens) == (5, 9)
    assert result.finish_reason == "length"
    assert result.model == "echo"
    assert 0 < result.timings.ttft_s <= result.timings.total_s
    assert result.timings.tokens_per_s > 0
    assert result.logprobs is None


async def test_generate_chat_and_models(setup: Setup) -> None:
    async with setup.client() as client:
        whole = await client.generate([1, 2, 3], max_tokens=4, temperature=0)
        chat = await client.chat([{"role": "user", "content": "hi"}], max_tokens=3, seed=5)
        models = await client.models()
    assert setup.service.submitted[0].prompt_ids == (1, 2, 3)
    assert whole.text == setup.service.text_of(setup.service.submitted[0])
    ids = setup.service.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert setup.service.submitted[1].prompt_ids == tuple(ids)
    assert setup.service.submitted[1].sampling.seed == 5
    assert chat.usage.output_tokens == 3
    assert models.names == ("echo",)
    assert models.serving


async def test_every_option_reaches_the_service(setup: Setup) -> None:
    async with setup.client() as client:
        await client.generate(
            "x",
            model="echo",
            max_tokens=3,
            min_tokens=2,
            temperature=1,
            top_p=0.5,
            top_k=7,
            min_p=0.1,
            repetition_penalty=1.5,
            presence_penalty=-1,
            frequency_penalty=2,
            logit_bias={9: 1, 3: -2.5},
            seed=-1,
            stop=["zzz", "yyy"],
            stop_token_ids=[8],
            ignore_eos=True,
            deadline_s=30,
            priority=1,
        )
    got = setup.service.submitted[0]
    assert got.sampling == SamplingParams(
        temperature=1.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        logit_bias=((3, -2.5), (9, 1)),
        seed=(1 << 63) - 1,
        max_tokens=3,
        min_tokens=2,
        stop_token_ids=(8,),
        ignore_eos=True,
    )
    assert (got.stop, got.deadline_s, got.priority) == (("zzz", "yyy"), 30.0, 1)


async def test_the_router_decides_what_was_left_open(setup: Setup) -> None:
    async with setup.client() as client:
        whole = await client.generate("x")
    sampling = setup.service.submitted[0].sampling
    assert sampling.max_tokens == 40 == whole.usage.output_tokens
    assert sampling.seed > 1000


async def test_logprobs_come_with_their_tokens(setup: Setup) -> None:
    async with setup.client() as client:
        whole = await client.generate("x", max_tokens=3, logprobs=True, top_logprobs=2)
    assert whole.logprobs is not None
    assert [lp.id for lp in whole.logprobs] == list(whole.token_ids)
    assert whole.logprobs[0].text == setup.service.tokenizer.token_text(whole.token_ids[0])
    assert [t.logprob for t in whole.logprobs[0].top] == [0.0, -0.5]


async def test_a_stop_string_ends_the_text(setup: Setup) -> None:
    text = setup.service.text_of(greedy(setup.service, "abc", 20))
    stop = text[5:8]
    async with setup.client() as client:
        whole = await client.generate("abc", max_tokens=20, temperature=0, stop=stop)
    assert whole.text == text[: text.index(stop)]
    assert whole.finish_reason == "stop"


async def test_many_streams_at_once_do_not_mix(setup: Setup) -> None:
    async with setup.client() as client:
        prompts = [f"prompt {i}" for i in range(50)]
        whole = await asyncio.gather(
            *(client.generate(p, max_tokens=20, temperature=0) for p in prompts)
        )
    for prompt, got in zip(prompts, whole, strict=True):
        assert got.text == setup.service.text_of(greedy(setup.service, prompt, 20))


@pytest.mark.parametrize("way", ["break", "aclose", "cancel", "with", "client"])
async def test_leaving_a_stream_cancels_it(setup: Setup, way: str) -> None:
    setup.service.hold_at = 3
    async with setup.client() as client:
        stream = client.stream("hold", max_tokens=30)
        if way == "with":
            async with stream:
                await anext(stream)
        else:
            await anext(stream)
        if way == "aclose":
            await stream.aclose()
        elif way == "cancel":
            client.cancel(stream)
            async for _ in stream:
                pass
            assert stream.result().finish_reason == "cancelled"
        elif way == "break":
            del stream
        if way != "client":
            await setup.service.until_open(0)
    await setup.service.until_open(0)
    assert len(setup.service.cancelled) == 1


async def test_errors_arrive_as_they_were_raised(setup: Setup) -> None:
    async with setup.client() as client:
        with pytest.raises(UnknownModel, match="'other'"):
            await client.generate("x", model="other")
        with pytest.raises(ContextExceeded, match="do not fit"):
            await client.generate("x", max_tokens=5000)
        setup.service.refusal = QueueFull("full", retry_after_s=7.5)
        with pytest.raises(QueueFull, match="full") as refused:
            await client.generate("x")
        assert refused.value.retry_after_s == 7.5
        setup.service.refusal = None
        setup.service.break_at = (4, KvExhausted("no page"))
        stream = client.stream("x", max_tokens=10)
        for _ in range(4):
            await anext(stream)
        with pytest.raises(KvExhausted, match="no page"):
            await anext(stream)
        with pytest.raises(KvExhausted):
            stream.result()


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_k": -5}, "top_k"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": float("inf")}, "deadline_s"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"priority": 9}, "priority"),
        ({"temprature": 1.0}, "temprature"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ],
)
async def test_wrong_arguments_raise_where_they_are_made(
    options: dict[str, object], param: str
) -> None:
    client = Client("mem://nowhere", transport=MemoryTransport())
    with pytest.raises(InvalidRequest) as refused:
        client.stream("x", **options)  # type: ignore[arg-type]
    assert refused.value.param == param


async def test_wrong_prompts_raise_where_they_are_made() -> None:
    client = Client("mem://nowhere", transport=MemoryTransport())
    wrong: list[object] = [[], ["x"], [-1], [1 << 40], 7, b"x"]
    for prompt in wrong:
        with pytest.raises(InvalidRequest) as refused:
            client.stream(prompt)  # type: ignore[arg-type]
        assert refused.value.param == "prompt"
    for messages in ([], ["x"], [{"role": "user"}], [{"role": "", "content": "x"}], "hi"):
        with pytest.raises(InvalidRequest):
            client.stream_chat(messages)  # type: ignore[arg-type]


async def test_a_client_that_is_not_connected_says_so() -> None:
    client = Client("mem://nowhere", transport=MemoryTransport())
    with pytest.raises(LocalError, match="not connected"):
        await client.generate("x")


async def test_no_router_says_what_to_check() -> None:
    options = ClientOptions(connect_timeout_s=0.2)
    with pytest.raises(ConnectionLost, match=r"no router at tcp://127\.0\.0\.1:9.*check"):
        async with Client("tcp://127.0.0.1:9", options=options):
            pass


async def test_a_listener_that_does_not_answer_says_what_to_check() -> None:
    transport = MemoryTransport()
    await transport.listen("mem://mute", lambda delivery: None)
    client = Client("mem://mute", transport=transport, options=ClientOptions(0.2))
    with pytest.raises(ConnectionLost, match=r"has not answered.*`clients` address"):
        await client.connect()
    await client.close()
    await transport.close()


async def test_a_router_that_falls_silent_ends_the_streams() -> None:
    transport = MemoryTransport()
    answers: list[Callable[[], None]] = []

    def answer_models_only(delivery: Delivery) -> None:
        if isinstance(decode(delivery.parts).header, wire.Models):
            listener.send(delivery.peer, encode(wire.Models(("m",), True)))
            answers.append(lambda: None)

    listener = await transport.listen("mem://quiet", answer_models_only)
    options = ClientOptions(keepalive_s=0.02, router_silent_s=0.1)
    async with Client("mem://quiet", transport=transport, options=options) as client:
        with pytest.raises(ConnectionLost, match="has not answered"):
            await client.generate("x")
    assert answers
    await transport.close()


async def test_a_deadline_holds_even_if_the_router_does_not_answer(setup: Setup) -> None:
    setup.service.hold_at = 0
    async with setup.client() as client:
        with pytest.raises(DeadlineExceeded, match="has passed"):
            await client.generate("x", deadline_s=0.05)
    await setup.service.until_open(0)


class Cuttable(MemoryTransport):
    """Connections whose link a test can cut, as a network would."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Connection] = []

    async def connect(self, *args: object, **kwargs: object) -> Connection:  # type: ignore[override]
        connection = await super().connect(*args, **kwargs)  # type: ignore[arg-type]
        self.made.append(connection)
        return connection

    def cut(self) -> None:
        link = self.made[0]._link  # type: ignore[attr-defined]
        if link is not None:
            link.cut()


@pytest.mark.parametrize("cut_after", range(0, 24, 3))
async def test_a_cut_link_repeats_and_loses_nothing(service: EchoService, cut_after: int) -> None:
    transport = Cuttable()
    sockets = ClientSockets(service, transport, "mem://clients", no_keys())
    await sockets.start()
    async with Client("mem://clients", transport=transport, options=FAST) as client:
        stream = client.stream("cut me", max_tokens=24, temperature=0)
        tokens = []
        if cut_after == 0:
            # Before anything can have been answered: the submission itself may be lost.
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            transport.cut()
            tokens.append(await first)
        async for token in stream:
            tokens.append(token)
            if len(tokens) % max(1, cut_after) == 0:
                transport.cut()
        assert [t.index for t in tokens] == list(range(24))
        want = service.text_of(greedy(service, "cut me", 24))
        assert stream.result().text == want == "".join(t.text for t in tokens)
    await sockets.close()
    await transport.close()
    assert len(service.submitted) == 1, "a repeated submission must not run twice"


async def test_a_router_that_forgot_the_stream_ends_it_clearly(setup: Setup) -> None:
    setup.service.hold_at = 2
    async with setup.client() as client:
        stream = client.stream("gone", max_tokens=9)
        await anext(stream)
        setup.sockets._book.forget(setup.sockets._book.streams()[0])
        await setup.restart()
        with pytest.raises(ConnectionLost, match="does not know this stream"):
            await anext(stream), await anext(stream), await anext(stream)
    for request in list(setup.service.open):
        setup.service.cancel(request)


async def test_a_router_that_stops_says_so(setup: Setup) -> None:
    setup.service.hold_at = 1
    async with setup.client() as client:
        stream = client.stream("x", max_tokens=9)
        await anext(stream)
        await setup.sockets.close()
        with pytest.raises(NotServing, match="shutting down"):
            await anext(stream)
    for request in list(setup.service.open):
        setup.service.cancel(request)


async def test_a_client_reconnects_after_the_router_restarts(setup: Setup) -> None:
    async with setup.client() as client:
        await client.generate("one", max_tokens=2)
        await setup.restart()
        whole = await client.generate("two", max_tokens=2, temperature=0)
    assert whole.text == setup.service.text_of(greedy(setup.service, "two", 2))


async def test_a_router_that_stays_away_fails_open_streams(service: EchoService) -> None:
    transport = MemoryTransport()
    sockets = ClientSockets(service, transport, "mem://clients", no_keys())
    await sockets.start()
    service.hold_at = 1
    options = ClientOptions(reconnect_timeout_s=0.1)
    async with Client("mem://clients", transport=transport, options=options) as client:
        stream = client.stream("x", max_tokens=5)
        await anext(stream)
        listener = sockets._listener
        assert listener is not None
        await listener.close()
        with pytest.raises(ConnectionLost, match=r"after 0 s.*check that it runs"):
            await anext(stream)
        with pytest.raises(ConnectionLost):
            await client.generate("y")
    for request in list(service.open):
        service.cancel(request)
    await sockets.close()


# -- the router's side, driven by hand ----------------------------------------


class RawClient:
    """Sends messages of the protocol and keeps what comes back."""

    def __init__(self) -> None:
        self.got: list[msgspec.Struct] = []
        self.news = asyncio.Event()
        self.connection: Connection | None = None
        self.up = asyncio.Event()

    async def connect(self, transport: Transport, endpoint: str) -> None:
        self.connection = await transport.connect(
            endpoint, self._on_delivery, on_state=self._on_state
        )
        await self.up.wait()

    def _on_state(self, state: LinkState) -> None:
        if state.connected:
            self.up.set()

    def _on_delivery(self, delivery: Delivery) -> None:
        self.got.append(decode(delivery.parts).header)
        self.news.set()

    def send(self, *messages: msgspec.Struct) -> None:
        assert self.connection is not None
        for message in messages:
            self.connection.send(encode(message))

    async def until_kind(self, kind: type[msgspec.Struct]) -> msgspec.Struct:
        async with asyncio.timeout(20):
            while not any(isinstance(m, kind) for m in self.got):
                self.news.clear()
                await self.news.wait()
        return next(m for m in self.got if isinstance(m, kind))


def submit(reference: int, prompt: str = "x", max_tokens: int = 5) -> wire.Submit:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return wire.Submit(reference, "", prompt, None, None, sampling, True, True, (), None)


@dataclass
class Bench:
    transport: MemoryTransport
    sockets: ClientSockets
    service: EchoService
    clock: VirtualClock

    async def raw(self) -> RawClient:
        raw = RawClient()
        await raw.connect(self.transport, "mem://clients")
        return raw


@pytest.fixture
async def bench(service: EchoService) -> AsyncIterator[Bench]:
    transport, clock = MemoryTransport(), VirtualClock()
    bounds = ClientBounds(max_clients=3, streams_per_client=2, max_streams=4, sweep_s=1e6)
    sockets = ClientSockets(
        service, transport, "mem://clients", no_keys(), bounds=bounds, clock=clock
    )
    await sockets.start()
    yield Bench(transport, sockets, service, clock)
    service.go.set()
    await sockets.close()
    await transport.close()
    for request in list(service.open):
        service.cancel(request)


async def test_resume_replays_from_the_asked_delta_even_after_the_end(bench: Bench) -> None:
    raw = await bench.raw()
    raw.send(submit(7))
    accepted = await raw.until_kind(wire.Accepted)
    assert isinstance(accepted, wire.Accepted)
    await raw.until_kind(wire.Done)
    again = await bench.raw()
    again.send(wire.Resume(9, accepted.request, 3))
    await again.until_kind(wire.Done)
    assert [m.index for m in again.got if isinstance(m, wire.Delta)] == [3, 4]
    assert {m.reference for m in again.got} == {9}  # type: ignore[attr-defined]
    again.send(wire.Resume(9, accepted.request, 6))
    failed = await again.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "there are 5" in failed.message


async def test_a_stream_is_kept_for_its_grace_and_no_longer(bench: Bench) -> None:
    raw = await bench.raw()
    raw.send(submit(7))
    accepted = await raw.until_kind(wire.Accepted)
    assert isinstance(accepted, wire.Accepted)
    await raw.until_kind(wire.Done)
    bench.clock.advance(29)
    bench.sockets.sweep()
    assert bench.sockets.statistics().kept_streams == 1
    bench.clock.advance(2)
    bench.sockets.sweep()
    assert bench.sockets.statistics().kept_streams == 0
    raw.send(wire.Resume(7, accepted.request, 0))
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert failed.code == "connection_lost"


async def test_a_silent_client_has_its_streams_cancelled_and_is_told(bench: Bench) -> None:
    bench.service.hold_at = 1
    raw = await bench.raw()
    raw.send(submit(7))
    await raw.until_kind(wire.Delta)
    bench.clock.advance(20)
    raw.send(wire.Keepalive(1))
    await raw.until_kind(wire.Keepalive)
    bench.clock.advance(20)
    bench.sockets.sweep()
    assert len(bench.service.open) == 1, "it was heard 20 s ago"
    bench.clock.advance(11)
    bench.sockets.sweep()
    assert not bench.service.open
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "not heard from this client for 30 s" in failed.message


async def test_a_client_that_went_away_has_its_streams_cancelled(bench: Bench) -> None:
    bench.service.hold_at = 1
    raw = await bench.raw()
    raw.send(submit(7))
    await raw.until_kind(wire.Delta)
    assert raw.connection is not None
    await raw.connection.close()
    await until(lambda: bench.sockets.statistics().clients == 0)
    bench.clock.advance(29)
    bench.sockets.sweep()
    assert bench.service.open, "it may still come back"
    bench.clock.advance(2)
    bench.sockets.sweep()
    assert not bench.service.open
    await until(lambda: bench.sockets.statistics().open_streams == 0)
    bench.sockets.sweep()
    assert bench.sockets.statistics().kept_streams == 0


async def test_bounds_on_streams_and_clients(bench: Bench) -> None:
    bench.service.hold_at = 0
    raw = await bench.raw()
    raw.send(submit(1), submit(2), submit(3))
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert (failed.reference, failed.code, failed.http_status) == (3, "queue_full", 429)
    second, third, fourth = await bench.raw(), await bench.raw(), await bench.raw()
    second.send(submit(4), submit(5))
    third.send(submit(6))
    failed = await third.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "which is the limit" in failed.message
    fourth.send(submit(8))
    failed = await fourth.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "too many clients" in failed.message
    await bench.service.until_open(4)


async def test_ended_streams_give_way_to_new_ones(bench: Bench) -> None:
    raw = await bench.raw()
    for reference in range(10):
        raw.got.clear()
        raw.send(submit(reference))
        await raw.until_kind(wire.Done)
    assert bench.sockets.statistics().kept_streams == 4


async def test_another_user_cannot_resume_a_stream(bench: Bench) -> None:
    bench.service.hold_at = 1
    raw = await bench.raw()
    raw.send(submit(7))
    accepted = await raw.until_kind(wire.Accepted)
    assert isinstance(accepted, wire.Accepted)
    stream = bench.sockets._book.streams()[0]
    stream.user = "somebody else's key"
    thief = await bench.raw()
    thief.send(wire.Resume(7, accepted.request, 0))
    failed = await thief.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "does not know" in failed.message
    assert not any(isinstance(m, wire.Delta) for m in thief.got)


async def test_bad_messages_are_counted_and_answered_where_possible(bench: Bench) -> None:
    raw = await bench.raw()
    assert raw.connection is not None
    bad = msgspec.structs.replace(submit(5), priority=9)
    raw.connection.send(encode(bad))
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert (failed.reference, failed.http_status) == (5, 400)
    raw.connection.send([b"\x01\x40", b"\xff\xff"])
    raw.connection.send([b"\x01\xf0", b"\x90"])
    raw.connection.send([b"x"])
    raw.send(wire.Done(1, "stop", 1, 1, wire.Timings(0, 0, 0, 0)))
    raw.send(submit(6))
    await raw.until_kind(wire.Done)
    counts = dict(bench.sockets.statistics().bad_messages)
    assert counts == {"bad_field": 1, "not_msgpack": 1, "unknown_kind": 1, "parts": 1, "kind": 1}


async def test_exactly_one_of_prompt_messages_ids(bench: Bench) -> None:
    raw = await bench.raw()
    both = msgspec.structs.replace(submit(5), token_ids=(1, 2))
    raw.send(both)
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "exactly one" in failed.message
    raw.got.clear()
    raw.send(msgspec.structs.replace(submit(6), prompt=None, token_ids=(1, 999_999)))
    failed = await raw.until_kind(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert "999999 is outside the vocabulary" in failed.message


async def test_a_cancel_right_behind_the_submission_counts(bench: Bench) -> None:
    raw = await bench.raw()
    raw.send(submit(5), wire.Cancel(5))
    done = await raw.until_kind(wire.Done)
    assert isinstance(done, wire.Done)
    assert done.finish_reason == "cancelled"
    assert not bench.service.open


async def test_a_slow_connection_gets_everything_in_order(bench: Bench) -> None:
    raw = await bench.raw()
    listener = bench.sockets._listener
    assert listener is not None
    refusals = iter([False, True, False, False, True, True] * 3)
    real_send = listener.send

    def sticky(peer: bytes, parts: object) -> bool:
        return next(refusals, True) and real_send(peer, parts)  # type: ignore[arg-type]

    listener.send = sticky  # type: ignore[method-assign]
    raw.send(submit(5, max_tokens=20))
    await raw.until_kind(wire.Done)
    assert [m.index for m in raw.got if isinstance(m, wire.Delta)] == list(range(20))


async def test_keys_are_asked_for_and_shown(service: EchoService, tmp_path: Path) -> None:
    server, friend, stranger = KeyPair.new(), KeyPair.new(), KeyPair.new()
    security = no_keys()
    security.key, security.allow = server, AllowList({"friend": friend.public})
    assert isinstance(security.server(), ServerSecurity)
    transport = ZmqTransport()
    sockets = ClientSockets(service, transport, "tcp://127.0.0.1:0", security)
    await sockets.start()
    try:
        async with Client(sockets.endpoint, key=friend, server_key=server.public) as client:
            assert (await client.generate("x", max_tokens=2)).usage.output_tokens == 2
        with pytest.raises(ConnectionLost, match=r"allow-list.*keys allow"):
            async with Client(sockets.endpoint, key=stranger, server_key=server.public):
                pass
    finally:
        await sockets.close()
        await transport.close()

"""Keys taken back while the cluster serves: on real sockets, by the file that the commands edit."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from helix_mq.client import Client
from helix_mq.errors import ConnectionLost
from helix_mq.frames import encode
from helix_mq.keys import allow_key, load_key, revoke_key
from helix_mq.messages import client, control, data
from helix_mq.sdk.options import ClientOptions
from helix_mq.sdk.token_stream import TokenStream
from helix_mq.transport import ClientSecurity, Delivery, KeyPair, LinkPhase, LinkState
from router.clients import ClientSockets
from tests.cluster import Cluster, Result, greedy
from tests.held_steps import held_steps
from tests.journey.test_curve import secured

TWO_ENDS = {"a": "0:3", "b": "3:6", "c": "3:6"}
NAMES = {name: name for name in TWO_ENDS}
IN_FORCE_S = 10.0
"""2 s are promised, and kept by a machine that has nothing else to do."""
TOKENS = 150


async def knock(c: Cluster, endpoint: str, key: KeyPair, server: str) -> LinkState:
    """What becomes of a new connection that says everything it would like to."""
    answers: asyncio.Queue[Delivery | LinkState] = asyncio.Queue()
    connection = await c.transport.connect(
        endpoint,
        answers.put_nowait,
        security=ClientSecurity(key, server),
        on_state=answers.put_nowait,
    )
    for message in (
        data.LinkHello("b", 1, 1),
        control.Heartbeat("b", 1, 1, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0, ()),
        client.Models(()),
    ):
        connection.send(encode(message))
    async with asyncio.timeout(240):
        heard = await answers.get()
    await connection.close()
    assert isinstance(heard, LinkState), "nobody answers it"
    return heard


async def listen(stream: TokenStream) -> tuple[int, str]:
    """How many tokens come before the connection is lost, and what is said about that."""
    heard = 0
    try:
        async for _ in stream:
            heard += 1
    except ConnectionLost as e:
        return heard, e.message
    raise AssertionError("the stream came to its end")


async def tokens(c: Cluster, prompts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Of all prompts at once."""
    results = await asyncio.gather(*(c.run(greedy(p, TOKENS)) for p in prompts))
    return [r.token_ids for r in results]


async def asked_until(
    over: asyncio.Event, c: Cluster, prompts: list[tuple[int, ...]]
) -> list[list[Result]]:
    """Of all prompts at once, each again and again; of each all results."""

    async def again(prompt: tuple[int, ...]) -> list[Result]:
        results = [await c.run(greedy(prompt, TOKENS))]
        while not over.is_set():
            results.append(await c.run(greedy(prompt, TOKENS)))
        return results

    return await asyncio.gather(*map(again, prompts))


async def test_a_revoked_node_is_out_at_once_and_its_requests_go_on(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with secured(tiny_folder, tmp_path, NAMES, TWO_ENDS) as c:
        await c.ready()
        await c.until(lambda: len(c.app.core.cluster.membership.serving()) == 3, "all are ready")
        # Flows follow measured speeds: of a few, all might go the other way.
        prompts = [tuple(range(i, i + 9)) for i in range(16)]
        wanted = await tokens(c, prompts)
        worker = c.daemons["b"].worker
        assert worker is not None
        out = asyncio.Event()
        # What goes through b stays there until b is out.
        with held_steps(c, "b"):
            runs = asyncio.create_task(asked_until(out, c, prompts))
            await c.until(lambda: worker.statistics().open_requests > 0, "some go through b")
            started_s = time.monotonic()
            assert revoke_key(tmp_path / "allow.toml", "b")
            await c.until(lambda: "b" not in c.app.core.cluster.membership, "it is out")
            out.set()
        b, key = c.daemons["b"], load_key(tmp_path / "b.key")
        a, listeners = c.daemons["a"], [c.app._control, c.app._plane._listener]
        listeners.append(a._plane._listener)

        def heard_of() -> list[object]:
            peers = [p for x in listeners for p in x._peers.values()]  # type: ignore[union-attr]
            return [p for p in peers if p.user == key.public]

        await c.until(lambda: not heard_of() and not b._control_up, "every connection is cut")
        await c.until(lambda: "b" not in a._plane._out, "a sends nothing there")
        assert time.monotonic() - started_s < IN_FORCE_S
        assert "left: its key was taken off the allow-list" in caplog.text, "not by its silence"
        await c.until(lambda: not b._plane._out["a"].connected, "nor does it hear")

        results = await runs
        assert [{r.token_ids for r in of_prompt} for of_prompt in results] == [{w} for w in wanted]
        moved = sum(r.finish.reroutes for of_prompt in results for r in of_prompt)
        assert moved > 0, "those that went through b took another way"
        # It does not know yet that nobody waits for what it had begun.
        await c.until(
            lambda: not (worker._loop.busy or worker.statistics().waiting_rows), "it rests"
        )
        steps, came = b._slices.statistics().steps, a._plane.bad_messages.copy()
        for endpoint, server in (
            (c.app.control_endpoint, c.app.security.public_key),
            (c.app._data_endpoint, c.app.security.public_key),
            (a._data_endpoint, load_key(tmp_path / "a.key").public),
        ):
            state = await knock(c, endpoint, key, server)
            assert state.phase is LinkPhase.REFUSED
            assert "not on the peer's allow-list" in state.reason
        assert await tokens(c, prompts) == wanted
        assert b._slices.statistics().steps == steps, "nothing is computed there any more"
        assert a._plane.bad_messages == came, "and nothing is heard from there"

        # The key is let in again: it is not the node's process that was at fault.
        allow_key(tmp_path / "allow.toml", "b", key.public)
        await c.until(lambda: len(c.app.core.cluster.membership.serving()) == 3, "it is back")
        assert await tokens(c, prompts) == wanted
        await c.quiet()


async def test_a_revoked_client_hears_nothing_more_and_its_requests_end(
    tiny_folder: Path, tmp_path: Path
) -> None:
    people = ("alice", "mallory")
    nodes = {"a": "0:3", "b": "3:6"}
    async with secured(tiny_folder, tmp_path, {n: n for n in nodes}, nodes, people) as c:
        await c.ready()
        sockets = ClientSockets(c.app, c.transport, "tcp://127.0.0.1:0", c.app.security)
        await sockets.start()
        options = ClientOptions(reconnect_timeout_s=1.0)
        alice, mallory = (
            Client(
                sockets.endpoint,
                key=tmp_path / f"{name}.key",
                server_key=c.app.security.public_key,
                options=options,
            )
            for name in people
        )
        short: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
        long = short | {"max_tokens": 480}
        async with alice, mallory:
            wanted = (await alice.generate("hello", **short)).token_ids
            theirs = [mallory.stream("hello", **long) for _ in range(3)]
            for stream in theirs:
                await stream.__aenter__()
                await anext(stream)
            started_s = time.monotonic()
            with held_steps(c, "b"):
                revoke_key(tmp_path / "allow.toml", "mallory")
                await c.until(lambda: c.app.core.statistics().running == 0, "they were cancelled")
            assert time.monotonic() - started_s < IN_FORCE_S
            alices = asyncio.create_task(alice.generate("hello", **short))
            for stream in theirs:
                heard, end = await listen(stream)
                assert heard + 1 < 480
                assert "not on the peer's allow-list" in end
            with pytest.raises(ConnectionLost):
                await mallory.generate("hello", max_tokens=1)
            assert (await alices).token_ids == wanted
            state = await knock(
                c,
                sockets.endpoint,
                load_key(tmp_path / "mallory.key"),
                c.app.security.public_key,
            )
            assert state.phase is LinkPhase.REFUSED
            assert sockets.statistics().clients == 1
        await sockets.close()
        await c.quiet()


async def test_an_allow_list_that_cannot_be_read_changes_nothing(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = {"a": "0:6"}
    async with secured(tiny_folder, tmp_path, {"a": "a"}, nodes) as c:
        await c.ready()
        (tmp_path / "allow.toml").write_text("a = not toml")
        await c.until(lambda: "stays in force" in caplog.text, "the log says so")
        assert c.app.status().serving
        assert (await c.run(greedy((1, 2, 3), 5))).finish.output_tokens == 5

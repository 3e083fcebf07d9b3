"""A node that becomes slow while it serves, as real processes: its share of new requests falls
within seconds, and comes back when it has recovered. No request fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.chaos.catalogue import Ask, Known, answer_all, draw_asks
from bench.chaos.cluster import ChaosCluster, Plan
from bench.chaos.load import Load
from bench.chaos.tiny_model import write_tiny_model
from helix_mq.client import Client

pytestmark = [pytest.mark.journey, pytest.mark.alone, pytest.mark.timeout(900)]

NODES = ("one", "two")
STREAMS = 16
RUNNING_S = 0.030
MOST_STOPPED_S = 0.6
"""Heartbeats still come in time."""
ROUNDS = 6
SHORT = [Ask(tuple(range(100 + i, 164 + i)), 2, 1.0, i, ignore_eos=True) for i in range(8)]
"""All alike, so that bytes are requests."""
FALLS_WITHIN_S = 10.0
"""On a quiet machine it is 5 s or less; tests/router/test_live_flow_changes.py counts the beats."""
RISES_WITHIN_S = 60.0
"""Recovery has to be proved for longer, by the few requests that the node still gets."""


@contextmanager
def slowed(pid: int, already: float) -> Iterator[None]:
    """The process runs for a third of the time only. On a machine where everything takes `already`
    times as long it would have got no more anyhow: there, for a third of its part."""
    stopped_s = min(MOST_STOPPED_S, RUNNING_S * (3 * max(1.0, already) - 1))
    process = psutil.Process(pid)
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            process.suspend()
            over.wait(stopped_s)
            process.resume()
            over.wait(RUNNING_S)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Seen:
    """By node: part of the flow, slowdown, and bytes that the router has sent to it."""

    flow: dict[str, float]
    slowdown: dict[str, float]
    sent_bytes: dict[str, float]

    @property
    def share(self) -> float:
        """Of the flow, through the first node."""
        return self.flow["one"] / sum(self.flow.values())

    def sent_since(self, before: Seen) -> float:
        """The first node's part of what the router has sent since."""
        sent = {n: self.sent_bytes[n] - before.sent_bytes[n] for n in NODES}
        return sent["one"] / sum(sent.values())


async def look(http: httpx.AsyncClient) -> Seen:
    flow: dict[str, float] = {}
    slowdown: dict[str, float] = {}
    sent_bytes: dict[str, float] = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            if sample.name == "helix_mq_node_flow_tokens_per_second":
                flow[sample.labels["node"]] = sample.value
            elif sample.name == "helix_mq_node_slowdown":
                slowdown[sample.labels["node"]] = sample.value
            elif sample.name == "helix_mq_link_sent_bytes_total" and (
                sample.labels["sender"] == "@router"
            ):
                sent_bytes[sample.labels["receiver"]] = sample.value
    return Seen(flow, slowdown, sent_bytes)


async def until(
    http: httpx.AsyncClient, condition: Callable[[Seen], bool], what: str, within_s: float
) -> tuple[float, Seen]:
    """Seconds it took, and what was seen then."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    while True:
        seen = await look(http)
        took_s = loop.time() - started_s
        if condition(seen):
            return took_s, seen
        assert took_s < within_s, f"{what}: not within {within_s:.0f} s; last seen: {seen}"
        await asyncio.sleep(0.1)


async def test_work_leaves_a_slow_node_and_comes_back(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    plan = Plan(model, dict.fromkeys(NODES, "0:6"), node_memory="256MiB", gates=False)
    async with (
        ChaosCluster(plan, tmp_path / "cluster") as cluster,
        httpx.AsyncClient(base_url=cluster.url, timeout=240) as http,
    ):
        await cluster.whole(240)
        async with Client(cluster.clients) as client:
            known = await answer_all(client, draw_asks(5, 24, 256, 200))

            def even(seen: Seen) -> bool:
                return 0.4 < seen.share < 0.6

            async with loaded(client, known) as load:
                _, before = await until(http, even, "equal nodes have equal shares", 60)
                already = max(before.slowdown.values())
                with slowed(cluster.children["one"].pid, already):
                    fell_s, fallen = await until(
                        http, lambda s: s.share < 0.33, "the share falls", FALLS_WITHIN_S
                    )
                    # What was routed before stays where it is, and would be counted.
                    await load.stop()
                    idle = await look(http)
                    shares = [idle.share]
                    for _ in range(ROUNDS):
                        await answer_all(client, SHORT, at_once=len(SHORT))
                        shares.append((await look(http)).share)
                    routed = (await look(http)).sent_since(idle)
            async with loaded(client, known):
                rose_s, risen = await until(http, even, "the share comes back", RISES_WITHIN_S)
    print(f"{before.share:.2f} of the flow fell to {fallen.share:.2f} in {fell_s:.1f} s")
    share = sum(shares) / len(shares)
    print(f"{routed:.2f} of new work went to it, {share:.2f} of the flow was its")
    print(f"back at {risen.share:.2f} in {rose_s:.1f} s")
    # Other programs may have slowed the other node meanwhile: the flow at the time is the measure.
    assert routed < share + 0.15


@asynccontextmanager
async def loaded(client: Client, known: Sequence[Known]) -> AsyncIterator[Load]:
    """With STREAMS requests under way; at the end all of them must have been answered rightly."""
    load = Load(client, known, STREAMS, seed=1, deadline_s=120)
    load.start()
    try:
        yield load
    finally:
        await load.stop()
    assert load.tally.troubles == []
    assert load.tally.finished > 0

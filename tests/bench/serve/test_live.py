"""The whole of `bench serve`: load processes against a real cluster, over HTTP and by the SDK."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.serve.paced import Pace, serve_paced
from bench.serve.run import ServeRun, Standing
from bench.serve.types import Closed, HttpTarget, Job, Rate, SdkTarget
from helix_mq.errors import LocalError
from router.clients import ClientSockets
from router.gateway import GatewayServer
from router.settings import AdmissionSection, HttpSection
from tests.cluster import Cluster, cluster, endpoint
from tests.held_steps import held_steps

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

SMALL_BYTES = 1 << 20
"""Room for a request or two beside the model."""
VLLM_ONLY = {"burstiness", "generated_texts", "itls", "queue_times", "rtfx"}
WORKLOAD = "synthetic:prompt=uniform(4,40),output=uniform(2,12)"


@dataclass
class Ways:
    url: str
    sdk: str
    cluster: Cluster


@asynccontextmanager
async def ways(folder: Path, **options: object) -> AsyncIterator[Ways]:
    async with cluster(folder, {"a": "0:6"}, zmq=True, **options) as c:  # type: ignore[arg-type]
        sockets = ClientSockets(c.app, c.transport, endpoint(c.transport, "sdk"), c.app.security)
        gateway = GatewayServer(c.app, HttpSection(port=0), c.app.metrics)
        await sockets.start()
        await gateway.start()
        try:
            yield Ways(gateway.url + "/v1", sockets.endpoint, c)
            await c.quiet()
        finally:
            await gateway.stop()
            await sockets.close()


async def helix_mq(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "helix_mq",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def a_job(target: HttpTarget | SdkTarget, **more: object) -> Job:
    given: dict[str, object] = {
        "target": target,
        "workload": WORKLOAD,
        "arrivals": Closed(4),
        "seed": 1,
        "requests": 24,
        "seconds": None,
        "warmup": 4,
        "deadline_s": 60.0,
        **more,
    }
    return Job(**given)  # type: ignore[arg-type]


async def test_the_command_measures_a_cluster_by_both_ways(
    tiny_folder: Path, tmp_path: Path
) -> None:
    load = ("--workload", WORKLOAD, "--tokenizer", str(tiny_folder), "--deadline", "60")
    http, sdk, picture = tmp_path / "http.json", tmp_path / "sdk.json", tmp_path / "http.svg"
    async with ways(tiny_folder) as at:
        code, out, err = await helix_mq(
            *("bench", "serve", "--url", at.url, "--requests", "24", "--concurrency", "4"),
            *("--processes", "2", "--goodput", "e2el:60", "--detailed", "--json"),
            *("--out", str(http), "--plot", str(picture), *load),
        )
        assert code == 0, err
        code, text, err = await helix_mq(
            *("bench", "serve", "--sdk", at.sdk, "--requests", "24", "--rate", "30"),
            *("--out", str(sdk), *load),
        )
        assert code == 0, err
    assert "24 served" in text
    assert "TTFT" in text
    first, second = json.loads(http.read_text()), json.loads(sdk.read_text())
    assert json.loads(out) == first
    # The same requests with the same tokens, whatever the way, the processes and the arrivals.
    for found in (first, second):
        assert (found["completed"], found["failed"]) == (24, 0)
        assert 0 < found["median_ttft_ms"] <= found["p99_ttft_ms"] <= found["p99_e2el_ms"]
        assert found["output_throughput"] * found["duration"] == pytest.approx(
            found["total_output_tokens"]
        )
    assert first["model_id"] == "tiny"
    assert first["total_input_tokens"] == second["total_input_tokens"]
    assert first["total_output_tokens"] == second["total_output_tokens"]
    # Names are those of a file of `vllm bench serve --save-detailed`; what it has and ours has not
    # is in docs/bench.md.
    theirs = json.loads((Path(__file__).parent / "vllm-serve.json").read_text("utf-8"))
    assert set(first) - set(theirs) == {"helix_mq"}
    assert set(theirs) - set(first) == VLLM_ONLY
    assert len(first["ttfts"]) == 24
    assert sum(first["output_lens"]) == first["total_output_tokens"]
    assert first["request_goodput"] == pytest.approx(first["request_throughput"])
    assert len(first["helix_mq"]["load"]["cpu_share"]) == 2
    # By the SDK every token is an event.
    assert second["helix_mq"]["tokens_per_event"] == 1
    assert second["request_rate"] == 30
    assert picture.read_text().startswith("<?xml")
    code, table, err = await helix_mq("bench", "compare", str(http), str(sdk))
    assert code == 0, err
    assert "mean_ttft_ms" in table
    assert "the same" in table


async def test_what_a_full_cluster_refuses_is_told_apart(tiny_folder: Path) -> None:
    async with ways(
        tiny_folder, memory_bytes=SMALL_BYTES, admission=AdmissionSection(max_waiting=1)
    ) as at:
        for target in (HttpTarget(at.url, "tiny"), SdkTarget(at.sdk)):
            job = a_job(
                target, arrivals=Closed(8), requests=40, warmup=0, tokenizer=str(tiny_folder)
            )
            before = at.cluster.app.picture().router.refused
            with held_steps(at.cluster):
                running = asyncio.create_task(
                    ServeRun(job, 1, print, lambda _: None).run(asyncio.Event())
                )
                # However fast it is, it is full once.
                await at.cluster.until(
                    lambda: running.done() or at.cluster.app.picture().router.refused > before,  # noqa: B023
                    "one is refused",
                )
            measured = await running
            kinds = {o.kind for o in measured.outcomes}
            assert kinds == {"served", "refused"}, {o.reason for o in measured.outcomes}
            refused = {o.reason for o in measured.outcomes if o.kind == "refused"}
            assert refused <= {"429 queue_full", "503 cluster_full"}


@asynccontextmanager
async def paced(pace: Pace) -> AsyncIterator[HttpTarget]:
    server = await serve_paced(pace)
    try:
        yield HttpTarget(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "paced")
    finally:
        server.close()


@pytest.mark.alone
async def test_what_is_measured_is_what_was_done() -> None:
    """The server's own times bound the client's from below: nothing is seen before it was sent."""
    pace = Pace(ttft_s=0.05, tpot_s=0.004)
    shown: list[float] = []

    def show(standing: Standing) -> None:
        shown.append(standing.elapsed_s)

    async with paced(pace) as target:
        job = a_job(target, workload="synthetic:prompt=9,output=21", arrivals=Rate(40.0), warmup=2)
        measured = await ServeRun(job, 2, print, show).run(asyncio.Event())
    assert [o.number for o in measured.outcomes] == list(range(24))
    assert {(o.kind, o.tokens, o.events, o.prompt_tokens) for o in measured.outcomes} == {
        ("served", 21, 21, 9)
    }
    real = sorted(pace.real_ttft_s[2:])
    seen = sorted(o.first_s - o.sent_s for o in measured.outcomes if o.first_s is not None)
    assert all(client >= server for client, server in zip(seen, real, strict=True))
    assert measured.gaps.histogram.count == 24 * 20
    tpot = [(o.last_s - o.first_s) / 20 for o in measured.outcomes if o.first_s and o.last_s]
    # However late single bytes are, over a whole answer that is little.
    assert sum(tpot) / 24 == pytest.approx(sum(pace.real_tpot_s) / len(pace.real_tpot_s), rel=0.3)
    assert measured.lag.histogram.count > 0
    assert len(measured.cpu_shares) == 2
    assert shown


async def test_a_run_that_is_stopped_gives_what_there_is() -> None:
    stop = asyncio.Event()

    def show(standing: Standing) -> None:
        if standing.kinds["served"] >= 3:
            stop.set()

    async with paced(Pace(ttft_s=0.01, tpot_s=0.01)) as target:
        job = a_job(target, requests=100_000, arrivals=Closed(2))
        measured = await ServeRun(job, 1, print, show).run(stop)
    assert measured.stopped
    assert len(measured.outcomes) >= 3
    assert measured.left == 2
    assert {o.kind for o in measured.outcomes} == {"served"}


async def test_nothing_is_measured_where_no_warm_up_request_ends_well() -> None:
    async with paced(Pace(0.0, 0.0)) as target:
        pass
    with pytest.raises(LocalError, match=r"none of 4 .* broken: no connection to 127\.0\.0\.1"):
        await ServeRun(a_job(target), 2, print, lambda _: None).run(asyncio.Event())


async def test_a_process_that_dies_is_an_error_not_a_short_result(tmp_path: Path) -> None:
    job = a_job(HttpTarget("http://127.0.0.1:1/v1", "m"), tokenizer=str(tmp_path), warmup=0)
    with pytest.raises(Exception, match=r"tokenizer\.json"):
        await ServeRun(job, 1, print, lambda _: None).run(asyncio.Event())

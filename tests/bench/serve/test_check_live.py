"""The live check of the load client: what is read of vLLM's file, and what two clients' rounds say.
The check itself is run by hand. `vllm-serve.json` is a file of `vllm bench serve` 0.32, of two
requests on a router of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from bench.chaos.tiny_model import write_tiny_model
from bench.serve.arrivals import own_part
from bench.serve.check_figures import FIGURES
from bench.serve.check_spread import Side, agreement
from bench.serve.check_vllm import (
    SameLoad,
    of_ours,
    of_vllm,
    ours_command,
    record_of,
    recorded_ms,
    request_lines,
    span_of_vllm,
    vllm_command,
)
from bench.serve.check_watch import Spent, run_client
from bench.serve.prompts import Prompts
from bench.serve.types import Closed, HttpTarget, Job
from bench.traces.workload import open_workload
from helix_mq.clock import VirtualClock
from helix_mq.errors import LocalError
from helix_mq.ids import RequestId
from router.metrics import RouterMetrics
from router.service import Delta, Finished
from tests.echo_service import EchoService

REAL_LOAD = SameLoad("synthetic:prompt=16,output=8", 1, 2, 2)
REAL = Path(__file__).parent / "vllm-serve.json"


def test_a_real_file_of_vllms_is_read() -> None:
    found = json.loads(REAL.read_text("utf-8"))
    figures = of_vllm(found, REAL_LOAD)
    assert set(figures) == set(FIGURES)
    start_s, end_s = span_of_vllm(found)
    assert end_s - start_s == pytest.approx(16 / figures["output_throughput"], rel=1e-3)
    assert figures["mean_ttft_ms"] == pytest.approx(sum(found["ttfts"]) / 2 * 1e3, rel=1e-3)


@pytest.mark.parametrize("read", [of_ours, of_vllm])
@pytest.mark.parametrize(
    "change", [{"failed": 1, "completed": 1, "errors": ["x"]}, {"total_output_tokens": 15}]
)
def test_figures_of_another_load_are_none(
    change: dict[str, object], read: Callable[[dict[str, object], SameLoad], object]
) -> None:
    found = json.loads(REAL.read_text("utf-8"))
    with pytest.raises(LocalError, match=r"served|tokens came"):
        read(found | change, REAL_LOAD)


def test_both_send_the_same(tmp_path: Path) -> None:
    same = SameLoad("synthetic:prompt=uniform(3,9),output=uniform(2,5)", 7, 3, 5)
    model = write_tiny_model(tmp_path / "model")
    theirs = vllm_command("http://h:1", "m", same, model, Path("/p"), Path("/out/r.json"))
    given = dict(pairwise(theirs))
    assert given["--max-concurrency"] == "3"
    assert given["--num-prompts"] == "5"
    assert given["--result-dir"] == "/out"
    assert given["--result-filename"] == "r.json"
    given = dict(pairwise(ours_command("http://h:1", "m", same, model, Path("/out"))))
    assert given["--concurrency"] == "3"
    assert given["--requests"] == "5"
    job = Job(
        target=HttpTarget("http://h:1/v1", "m", False, "", {}),
        workload=given["--workload"],
        arrivals=Closed(3),
        seed=int(given["--seed"]),
        requests=5,
        seconds=None,
        warmup=2,
        deadline_s=60.0,
        tokenizer=given["--tokenizer"],
    )
    prompts = Prompts(job.seed, Path(job.tokenizer))
    sent = [
        {
            "prompt": prompts.text(due.number, due.lengths.prompt_tokens),
            "output_tokens": due.lengths.output_tokens,
        }
        for due in own_part(job, open_workload(job.workload, job.seed))
    ]
    rows = [json.loads(line) for line in request_lines(same, model).splitlines()]
    assert rows == sent
    assert len({row["output_tokens"] for row in rows}) > 1


def _side(ttft: float, rate: float, cpu_s: float = 1.0) -> Side:
    figures = {"mean_ttft_ms": ttft, "median_ttft_ms": ttft, "output_throughput": rate}
    return Side(figures, {"mean_ttft_ms": 90.0}, 10.0, cpu_s, 5.0, 4.0)


def test_agreement_is_of_medians_and_beside_each_ones_own_spread() -> None:
    rounds = [
        {"ours": _side(100, 50), "vllm": _side(103, 50)},
        {"ours": _side(110, 49), "vllm": _side(104, 52, 2.0)},
        {"ours": _side(99, 60), "vllm": _side(99, 48)},
    ]
    found = agreement(rounds)
    assert found["difference"] == {
        "mean_ttft_ms": round(100 / 103 - 1, 4),
        "median_ttft_ms": round(100 / 103 - 1, 4),
        "output_throughput": 0.0,
    }
    assert found["agree"] is True
    spread = found["own_spread"]
    assert isinstance(spread, dict)
    assert spread["ours"]["output_throughput"] == round(60 / 49 - 1, 4)
    medians = found["medians"]
    assert isinstance(medians, dict)
    assert medians["vllm"]["client_cpu_share"] == 0.1
    assert found["beside_server_ms"] == {"ours": {"mean_ttft_ms": 10}, "vllm": {"mean_ttft_ms": 13}}
    assert found["difference_beside_server"] == {"mean_ttft_ms": round(-3 / 103, 4)}
    far = [{"ours": _side(100, 50), "vllm": _side(106, 50)}]
    assert agreement(far)["agree"] is False


def test_the_routers_own_record_is_of_the_same_requests(tiny_folder: Path) -> None:
    clock = VirtualClock()
    metrics, status = RouterMetrics(clock), EchoService(tiny_folder).status()

    def serve(number: int, ttft_s: float, total_s: float) -> None:
        metrics.accepted(RequestId(number), 16)
        clock.advance(ttft_s)
        metrics.saw(RequestId(number), Delta(0, 5, "a"))
        clock.advance(total_s - ttft_s)
        metrics.saw(RequestId(number), Finished("length", 16, 1, 0.0, ttft_s, total_s, 0))

    def record() -> dict[str, tuple[float, float]]:
        return record_of(metrics.render(status)[0].decode())

    serve(0, 9.0, 10.0)
    before = record()
    serve(1, 0.25, 1.0)
    serve(2, 0.75, 2.0)
    found = recorded_ms(before, record(), REAL_LOAD)
    assert found == {"mean_ttft_ms": 500, "mean_e2el_ms": 1500}
    serve(3, 0.75, 2.0)
    with pytest.raises(LocalError, match="3 requests"):
        recorded_ms(before, record(), REAL_LOAD)
    with pytest.raises(LocalError, match="time_to_first_token"):
        record_of("")


def test_processor_time_is_read_between_samples() -> None:
    spent = Spent()
    assert spent.until(1.0) == 0.0
    for at_s, cpu_s in ((0.0, 0.0), (1.0, 0.5), (2.0, 1.5), (3.0, 1.4)):
        spent.add(at_s, cpu_s)
    assert spent.between((0.5, 1.5)) == pytest.approx(0.75)
    assert spent.between((-1.0, 9.0)) == 1.5


async def test_a_client_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no such endpoint"):
        await run_client((sys.executable, "-c"), ["raise SystemExit('no such endpoint')"], tmp_path)


async def test_a_client_ends_with_what_it_started_when_the_check_is_told_to_end(
    tmp_path: Path,
) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    child = f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    async with server, asyncio.timeout(240):
        running = asyncio.create_task(run_client((sys.executable, "-c"), [code], tmp_path))
        await came.wait()
        assert not gone.is_set()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await gone.wait()

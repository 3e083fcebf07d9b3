"""The demo as a user runs it: real processes, the real model, and exactly transformers' tokens."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import openai
import psutil
import pytest
import pytest_asyncio
import torch
import transformers

from helix_mq.demo import DemoCluster, DemoPlan, make_plan
from helix_mq.models.resolve import find_demo_gguf, resolve_model
from helix_mq.models.tokenizer import Tokenizer

pytestmark = [pytest.mark.journey, pytest.mark.alone, pytest.mark.model, pytest.mark.timeout(900)]

QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colours.",
    "Write a haiku about rain.",
    "What is 12 times 12?",
    "Explain gravity to a child.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "List five fruits.",
    "What does DNA stand for?",
    "Why do cats purr?",
    "Give me a synonym for happy.",
    "What is a prime number?",
    "How do plants make food?",
    "Tell me a short joke.",
    "What is the largest planet?",
    "Define photosynthesis in one sentence.",
    "What causes tides?",
    "Write a Python function that adds two numbers.",
    "What year did the first moon landing happen?",
    "Summarise the water cycle.\nUse two lines. \u2602 \u6c34",
)


async def demo_process(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "helix_mq",
        "demo",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_demo_once_ends_after_the_answer() -> None:
    process = await demo_process("--once", "--max-tokens", "12")
    async with asyncio.timeout(240):
        out = (await process.communicate())[0].decode()
    assert process.returncode == 0, out
    assert "12 tokens," in out
    assert "time to first token" in out
    assert "waiting: layers" in out


async def said(process: asyncio.subprocess.Process, words: bytes) -> None:
    """Reads on until it says this."""
    assert process.stdout is not None
    async for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"it ended without {words!r}")


async def demo_that_stays() -> tuple[asyncio.subprocess.Process, list[psutil.Process]]:
    """With its router and nodes, after the first answer."""
    process = await demo_process("--port", "0", "--max-tokens", "4")
    await said(process, b"Ctrl-C stops everything")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 4
    return process, children


async def test_ctrl_c_stops_every_process() -> None:
    async with asyncio.timeout(240):
        process, children = await demo_that_stays()
        # A node that leaves, as one does that is drained, takes nobody with it.
        beta = next(c for c in children if "beta.toml" in " ".join(c.cmdline()))
        beta.send_signal(signal.SIGTERM)
        await said(process, b"beta has left the cluster")
        process.send_signal(signal.SIGINT)
        rest = (await process.communicate())[0].decode()
    assert process.returncode == 0, rest
    assert "stopped" in rest
    assert not [c for c in children if _runs(c)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_second_ctrl_c_leaves_no_process_behind() -> None:
    async with asyncio.timeout(240):
        process, children = await demo_that_stays()
        # One that does not hear: the demo is waiting for it when the second signal comes.
        children[-1].suspend()
        process.send_signal(signal.SIGINT)
        await said(process, b"stopping router and nodes")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 128 + signal.SIGINT
        for child in children:
            while _runs(child):  # noqa: ASYNC110  (nobody here is its parent any more)
                await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Running:
    cluster: DemoCluster
    plan: DemoPlan


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """For the tests below, each of which leaves it as it was; last, as it runs to their end."""
    plan = make_plan(resolve_model(find_demo_gguf()), "smol", 0)
    cluster = DemoCluster(plan, tmp_path_factory.mktemp("demo"), lambda text: None)
    try:
        await cluster.start()
        await cluster.wait_ready(240)
        yield Running(cluster, plan)
    finally:
        await cluster.stop()


def client(plan: DemoPlan) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{plan.url}/v1", api_key="none", max_retries=0, timeout=240)


def reference_texts(questions: tuple[str, ...], max_tokens: int) -> list[str]:
    """What transformers answers, greedily, from the same weights in float32: all at once, padded on
    the left and masked, which reads the weights once per step and not once per question."""
    folder = resolve_model(find_demo_gguf())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_folder(folder)
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": q}]) for q in questions]
    longest, pad = max(map(len, prompts)), 2
    out = model.generate(
        torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor(
            [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        ),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=pad,
    )
    return [tokenizer.decode(row[longest:].tolist()) for row in out]


async def ask(o: openai.AsyncOpenAI, question: str, max_tokens: int) -> str:
    stream = await o.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": question}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
    )
    return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])


@pytest.mark.asyncio(loop_scope="module")
async def test_answers_equal_transformers_alone_and_64_at_once(demo: Running) -> None:
    plan = demo.plan
    expected = await asyncio.to_thread(reference_texts, QUESTIONS, 24)
    async with client(plan) as o:
        at_once = await asyncio.gather(*(ask(o, q, 24) for q in QUESTIONS))
        assert at_once == expected
        # Three or four streams of each question, of another length than its neighbours'.
        mixed = [(q, 3 + i * 7 % 13) for i, q in enumerate(QUESTIONS)]
        alone = {(q, n): await ask(o, q, n) for q, n in mixed}
        mixed = [mixed[i % len(mixed)] for i in range(64)]
        together = await asyncio.gather(*(ask(o, q, n) for q, n in mixed))
        assert together == [alone[pair] for pair in mixed]
        await all_pages_back(plan)


async def all_pages_back(plan: DemoPlan) -> None:
    """Waits until the nodes' heartbeats say that no page and no request is held."""
    async with httpx.AsyncClient(base_url=plan.url, timeout=240) as http, asyncio.timeout(240):
        while True:
            text = (await http.get("/metrics")).text
            used = [
                float(line.rsplit(" ", 1)[1])
                for line in text.splitlines()
                if line.startswith("helix_mq_node_kv_pages{") and 'kind="used"' in line
            ]
            if len(used) == 3 and not any(used) and "helix_mq_running_requests 0.0" in text:
                return
            await asyncio.sleep(0.2)


@pytest.mark.asyncio(loop_scope="module")
async def test_closed_connections_and_bursts_leave_nothing_behind(demo: Running) -> None:
    cluster, plan = demo.cluster, demo.plan
    async with client(plan) as o:

        async def leave_early(i: int) -> None:
            stream = await o.chat.completions.create(
                model="smol",
                messages=[{"role": "user", "content": QUESTIONS[i % 20]}],
                max_tokens=2000,
                stream=True,
            )
            async for _ in stream:
                break
            await stream.close()

        await asyncio.gather(*(leave_early(i) for i in range(16)))
        await all_pages_back(plan)
        sizes = [psutil.Process(cluster.pid_of(n)).memory_info().rss for n in ("router", "alpha")]
        assert max(sizes) < 2 << 30, sizes
        # Ports that speak ZeroMQ get HTTP, and the HTTP port gets noise: all serve on.
        for endpoint in (plan.control, plan.clients, plan.data):
            host, port = endpoint.removeprefix("tcp://").split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + os.urandom(100_000))
            writer.close()
        _, writer = await asyncio.open_connection("127.0.0.1", plan.http_port)
        writer.write(os.urandom(10_000))
        writer.close()
        assert await ask(o, QUESTIONS[0], 5)

"""What the demo shows: progress while loading, the first answer as it streams, where to go next."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import httpx

from helix_mq.demo import DemoCluster, make_plan, work_folder
from helix_mq.errors import LocalError
from helix_mq.models.resolve import DEMO_NAME, find_demo_gguf, resolve_model

_READY_TIMEOUT_S = 300.0


class DemoRun:
    """One `helix-mq demo`."""

    def __init__(
        self, model: Path | None, prompt: str, max_tokens: int, port: int, once: bool
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._port = port
        self._once = once
        self._cluster: DemoCluster | None = None

    def kill(self) -> None:
        """Nobody waits for an end in order any more, but no process is to stay."""
        if self._cluster is not None:
            self._cluster.kill()

    async def main(self, stop: asyncio.Event) -> None:
        """Until the answer with --once, else until a signal. Raises HelixError in words."""
        source = self._model or find_demo_gguf()
        name = self._model.stem if self._model is not None else DEMO_NAME
        say(f"model: {name}")
        folder = await asyncio.to_thread(resolve_model, source, progress=_progress)
        with work_folder() as work:
            plan = make_plan(folder, name, 0 if self._once else self._port)
            cluster = self._cluster = DemoCluster(plan, Path(work), say)
            stopped = asyncio.create_task(stop.wait())
            try:
                say("starting a router and three nodes on loopback")
                await cluster.start()
                await _first(stopped, cluster.wait_ready(_READY_TIMEOUT_S))
                if not stop.is_set():
                    await _first(stopped, self._chat(plan.url, name))
                if not stop.is_set() and not self._once:
                    _where_to_go(plan.url, plan.clients, name)
                    await _first(stopped, cluster.wait_for_a_death())
            except TimeoutError:
                raise LocalError(
                    f"the cluster was not ready within {_READY_TIMEOUT_S:.0f} s"
                ) from None
            finally:
                stopped.cancel()
                say("stopping router and nodes")
                await cluster.stop()
        say("stopped")

    async def _chat(self, url: str, model: str) -> None:
        say(f"\n> {self._prompt}\n")
        started_s = time.perf_counter()
        first_s = None
        tokens = 0
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            async for event in _stream_chat(http, model, self._prompt, self._max_tokens):
                if event["choices"] and (text := event["choices"][0]["delta"].get("content")):
                    first_s = first_s or time.perf_counter()
                    print(text, end="", flush=True)
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
        ended_s = time.perf_counter()
        ttft_s = (first_s or ended_s) - started_s
        rate = (tokens - 1) / max(ended_s - started_s - ttft_s, 1e-9)
        say(f"\n\n{tokens} tokens, {rate:.1f} tokens/s, time to first token {ttft_s * 1000:.0f} ms")


async def _stream_chat(
    http: httpx.AsyncClient, model: str, prompt: str, max_tokens: int
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed chat completion, by plain HTTP as any client would see them."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise LocalError(f"the endpoint answered {(await answer.aread()).decode()[:500]}")
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise LocalError(str(event["error"]["message"]))
                yield event


async def _first(stopped: asyncio.Task[bool], work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end, or until a signal asks to stop."""
    working = asyncio.create_task(work)
    try:
        await asyncio.wait([stopped, working], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def _where_to_go(url: str, clients: str, model: str) -> None:
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32}
    )
    say(
        f"""
endpoint:  {url}/v1        (OpenAI-compatible; model {model})
  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{body}'
metrics:   {url}/metrics
SDK:       helix_mq.Client("{clients}")
  helix-mq prompt --connect {clients} "Hello!"

Ctrl-C stops everything."""
    )


def _progress(fraction: float, text: str) -> None:
    """A line that overwrites itself on a terminal; start, end and quarters elsewhere."""
    if sys.stdout.isatty():
        print(f"\r  {text}: {fraction:4.0%}\033[K", end="\n" if fraction >= 1 else "", flush=True)
    elif fraction >= 1:
        say(f"  {text}")


def say(text: str) -> None:
    print(text, flush=True)

"""The load, in a process of its own: a Job as JSON on stdin, a LoadResult as JSON on stdout.

Plain HTTP/1.1 on asyncio streams, a connection per request: a client library would spend more of
the machine on a request than the router does, and would be measured instead of it.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from bench.overload_types import (
    BROKEN,
    HUNG,
    LATE,
    REFUSED,
    SERVED,
    Job,
    LoadResult,
    Outcome,
    Sender,
)

_REFUSALS = (429, 503)
_DEADLINE = "deadline_exceeded"
_LETTERS = string.ascii_lowercase + " "


@dataclass(slots=True)
class _Seen:
    """What has come of one request so far."""

    status: int = 0
    code: str = ""
    retry_after_s: float | None = None
    first_s: float | None = None
    tokens: int = 0
    done: bool = False


class LoadMaker:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._draw = random.Random(job.seed)
        self._outcomes: list[Outcome] = []
        self._began_s = 0.0

    async def run(self) -> LoadResult:
        job = self._job
        cpu_s = time.process_time()
        self._began_s = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        if job.rate_per_s is None:
            tasks = {asyncio.create_task(self._one_after_another()) for _ in range(job.at_once)}
        else:
            due_s = self._draw.expovariate(job.rate_per_s)
            while due_s < job.seconds:
                await asyncio.sleep(due_s - self._now_s())
                task = asyncio.create_task(self._one(due_s))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due_s += self._draw.expovariate(job.rate_per_s)
        if tasks:
            left_s = job.seconds - self._now_s() + job.grace_s
            _, open_tasks = await asyncio.wait(tasks, timeout=max(0.0, left_s))
            for task in open_tasks:
                task.cancel()
            await asyncio.gather(*open_tasks, return_exceptions=True)
        wall_s = time.monotonic() - self._began_s
        return LoadResult(tuple(self._outcomes), time.process_time() - cpu_s, wall_s)

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def _one_after_another(self) -> None:
        while self._now_s() < self._job.seconds:
            await self._one(self._now_s())

    async def _one(self, due_s: float) -> None:
        job = self._job
        number = self._draw.choices(range(len(job.senders)), [s.share for s in job.senders])[0]
        sender = job.senders[number]
        wanted = self._draw.randint(*job.output_tokens)
        head, body = self._request(sender, wanted)
        seen, sent_s, kind = _Seen(), self._now_s(), ""
        try:
            await self._exchange(head + body, seen)
        except asyncio.CancelledError:
            kind = HUNG
        except (OSError, EOFError, ValueError) as e:
            seen.code = seen.code or f"{type(e).__name__}: {e}"
        self._outcomes.append(
            Outcome(
                number,
                kind or _kind(seen, wanted),
                seen.status,
                seen.code,
                seen.retry_after_s,
                due_s,
                sent_s,
                seen.first_s,
                self._now_s(),
                seen.tokens,
            )
        )

    def _request(self, sender: Sender, wanted: int) -> tuple[bytes, bytes]:
        job = self._job
        letters = self._draw.choices(_LETTERS, k=self._draw.randint(*job.prompt_tokens))
        body = json.dumps(
            {
                "model": job.model,
                "prompt": "".join(letters),
                "max_tokens": wanted,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                "priority": sender.priority,
                "deadline_s": sender.deadline_s,
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {job.host}\r\nconnection: close\r\n"
            f"authorization: Bearer {sender.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return head.encode(), body

    async def _exchange(self, request: bytes, seen: _Seen) -> None:
        reader, writer = await asyncio.open_connection(self._job.host, self._job.port)
        try:
            writer.write(request)
            seen.status, headers = await _read_head(reader)
            if seen.status != 200:
                retry_after = headers.get("retry-after")
                seen.retry_after_s = float(retry_after) if retry_after is not None else None
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                seen.code = str(json.loads(body)["error"]["code"])
                return
            async for event in _events(reader):
                self._take(event, seen)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _take(self, event: bytes, seen: _Seen) -> None:
        if event == b"[DONE]":
            seen.done = True
            return
        if seen.first_s is None and not event.startswith(b'{"error"'):
            seen.first_s = self._now_s()
        # Reading every chunk as JSON would be most of this process's work.
        if event.startswith(b'{"error"'):
            seen.code = str(json.loads(event)["error"]["code"])
        elif b'"choices":[]' in event:
            seen.tokens = int(json.loads(event)["usage"]["completion_tokens"])


def _kind(seen: _Seen, wanted: int) -> str:
    if seen.done and not seen.code and seen.tokens == wanted:
        return SERVED
    if seen.status in _REFUSALS:
        return REFUSED
    return LATE if seen.code == _DEADLINE else BROKEN


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split(" ")[1]), {n.strip().lower(): v.strip() for n, _, v in pairs}


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The data of server-sent events in a chunked body; one chunk holds whole events."""
    while size := int(await reader.readline() or b"0", 16):
        chunk = (await reader.readexactly(size + 2))[:-2]
        for line in chunk.split(b"\n"):
            if line.startswith(b"data: "):
                yield line[len(b"data: ") :]


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    result = asyncio.run(LoadMaker(job).run())
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()

"""Texts of any length and number leave the event loop alone: where they are tokenised, and when not
at all. No clocks: what is looked at is threads, turns of the loop, and calls."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helix_mq.errors import ContextExceeded, HelixError, QueueFull
from helix_mq.models.chat_template import Rendered
from helix_mq.models.tokenizer import Tokenizer
from router import tokenising
from router.gateway import generate
from router.tokenising import MAX_TURN_CHARS, Tokenising

ROOMY = 1 << 20


class Watched(Tokenizer):
    """Notes the thread and the characters of every call that tokenises; `gate` holds threads up."""

    calls: list[tuple[int, int]]
    gate: threading.Event

    def encode(self, text: str, **options: Any) -> list[int]:
        self._note(len(text))
        return super().encode(text, **options)

    def apply_chat_template(self, messages: Any, **options: Any) -> list[int]:
        self._note(sum(len(m["content"]) for m in messages))
        return super().apply_chat_template(messages, **options)

    def _note(self, chars: int) -> None:
        self.calls.append((threading.get_ident(), chars))
        assert self.gate.wait(60)

    def on_this_thread(self) -> int:
        """Characters."""
        return sum(chars for ident, chars in self.calls if ident == threading.get_ident())


async def until(condition: Callable[[], bool]) -> None:
    """Polls what no event tells; the bound is a test's deadline, not a pause."""
    for _ in range(60_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came about")


@pytest.fixture
def watched(tiny_folder: Path) -> Watched:
    tokenizer = Watched.from_folder(tiny_folder)
    assert isinstance(tokenizer, Watched)
    tokenizer.calls, tokenizer.gate = [], threading.Event()
    tokenizer.gate.set()
    return tokenizer


@pytest.fixture
def unhurried_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(before)


async def test_long_texts_never_reach_the_loops_thread(watched: Watched) -> None:
    texts = Tokenising(watched, lambda: ROOMY)
    long = "x" * (MAX_TURN_CHARS + 1)
    assert len(await texts.text(long, special=True)) == len(long)
    assert len(await texts.chat([("user", long)])) > len(long)
    assert watched.on_this_thread() == 0
    assert texts.waiting_chars == 0


async def test_short_texts_are_not_worth_a_thread(watched: Watched) -> None:
    texts = Tokenising(watched, lambda: ROOMY)
    await texts.text("hello", special=True)
    await texts.chat([("user", "hello")])
    assert watched.on_this_thread() == 10


async def test_a_thousand_short_texts_do_not_make_one_long_turn(watched: Watched) -> None:
    """Of one request, which asks for them one after another, or of many that come at once."""
    texts = Tokenising(watched, lambda: ROOMY)
    for _ in range(100):
        await texts.text("x" * 1000, special=True)
    turns: list[int] = []
    before = 0

    def turn() -> None:
        nonlocal before
        turns.append(watched.on_this_thread() - before)
        before += turns[-1]

    loop = asyncio.get_running_loop()
    turn()
    pending = [asyncio.ensure_future(texts.text("x" * 1000, special=True)) for _ in range(100)]
    while not all(p.done() for p in pending):
        await asyncio.sleep(0)
        loop.call_soon(turn)
    turn()
    assert max(turns[1:]) <= MAX_TURN_CHARS
    assert len(watched.calls) == 200


async def test_the_loop_turns_while_a_thread_tokenises(
    tiny_folder: Path, unhurried_threads: None
) -> None:
    """The library holds the interpreter's lock in most of its methods: seconds for such a text, in
    which the loop would not turn at all. Threads here give the lock away only of their own accord,
    so that one which keeps it has the loop turn exactly never."""
    tokenizer = Tokenizer.from_folder(tiny_folder)
    texts = Tokenising(tokenizer, lambda: ROOMY)
    inside = {"turns": 0}
    real = tokenizer._tokenizer

    class Counting:
        """Counts the loop's turns between entering the library and coming back from it."""

        def __getattr__(self, name: str) -> Any:
            found = getattr(real, name)
            return counted(found) if name.startswith("encode") else found

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            before = turns
            try:
                return call(*args, **options)
            finally:
                inside["turns"] += turns - before

        return run

    tokenizer._tokenizer = Counting()  # type: ignore[assignment]
    turns = 0
    work = asyncio.ensure_future(texts.text("some words, " * 60_000, special=True))
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert len(work.result()) == 720_000
    assert inside["turns"] > 10


async def test_what_cannot_fit_is_refused_without_tokenising(watched: Watched) -> None:
    """Byte-level, and `<|assistant|>` is the longest token: 13 characters."""
    texts = Tokenising(watched, lambda: 512)
    with pytest.raises(ContextExceeded, match="6644 characters are more than fit into 511 tokens"):
        await texts.text("x" * (511 * 13 + 1), special=True)
    assert not watched.calls
    with pytest.raises(ContextExceeded, match="prompt: 6643 tokens are more than the 511"):
        await texts.text("x" * (511 * 13), special=True)
    assert len(await texts.text("<|assistant|>" * 511, special=True)) == 511


async def test_long_chats_are_refused_before_tokenising(watched: Watched) -> None:
    texts = Tokenising(watched, lambda: 512)
    encoded: list[str] = []

    def encode(prompt: Rendered, most_tokens: int | None) -> list[int]:
        encoded.append(prompt.text)
        return []

    watched._encode_template = encode  # type: ignore[method-assign]
    with pytest.raises(ContextExceeded, match=r"messages: \d+ characters are more than fit") as e:
        await texts.chat([("user", "x" * 7000)])
    assert e.value.param == "messages"
    assert not encoded


async def test_what_waits_is_bounded(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "MAX_WAITING_CHARS", 20_000)
    texts = Tokenising(watched, lambda: ROOMY)
    watched.gate.clear()
    asked = [asyncio.ensure_future(texts.text("x" * 6000, special=True)) for _ in range(5)]
    await until(lambda: sum(a.done() for a in asked) == 2)
    assert texts.waiting_chars == 18_000
    watched.gate.set()
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(e, QueueFull) for e in ends] == [False] * 3 + [True] * 2
    assert texts.waiting_chars == 0
    assert len(await texts.text("x" * 30_000, special=True)) == 30_000, "alone it may be longer"


async def test_a_thread_counts_until_it_is_done_though_nobody_waits(watched: Watched) -> None:
    texts = Tokenising(watched, lambda: ROOMY)
    watched.gate.clear()
    asked = [asyncio.ensure_future(texts.text("x" * 5000, special=True)) for _ in range(20)]
    await until(lambda: bool(watched.calls))
    running = len(watched.calls)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert 5000 <= texts.waiting_chars <= 5000 * 4
    assert len(watched.calls) >= running
    watched.gate.set()
    await until(lambda: texts.waiting_chars == 0)
    assert len(watched.calls) <= 4, "those that had not begun never do"


async def test_an_error_nobody_waits_for_is_quiet(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    texts = Tokenising(watched, lambda: 6000)
    watched.gate.clear()
    asked = asyncio.ensure_future(texts.text("x" * 7000, special=True))
    await until(lambda: bool(watched.calls))
    asked.cancel()
    watched.gate.set()
    await until(lambda: texts.waiting_chars == 0)
    assert not caplog.records


async def test_large_bodies_are_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing a megabyte of small objects takes a third of a second, and many may come at once."""
    read: list[tuple[int, int]] = []

    def make(body: Any, service: Any) -> Any:
        read.append((threading.get_ident(), len(body["prompt"])))
        raise HelixError("enough")

    endpoint = generate.GenerateEndpoint(
        make,
        object(),  # type: ignore[arg-type]
        object(),  # type: ignore[arg-type]
        generate.OpenRequests(),
        object(),  # type: ignore[arg-type]
        max_body_bytes=1 << 20,
        timings=generate.Timings(),
    )
    for size in (10, generate.LARGE_BODY_BYTES):
        with pytest.raises(HelixError, match="enough"):
            await endpoint._dialect(b'{"prompt": "' + b"x" * size + b'"}')
    here = threading.get_ident()
    assert [(ident == here, size) for ident, size in read] == [
        (True, 10),
        (False, generate.LARGE_BODY_BYTES),
    ]

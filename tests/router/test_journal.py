"""The journal on the loop: callbacks in order and only for what is kept, refusals while it fails,
values and reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from helix_mq.clock import SystemClock
from helix_mq.errors import ConfigError, JournalUnavailable, LocalError
from helix_mq.ids import RequestId
from helix_mq.sampling import SamplingParams
from router import journal as journal_module
from router.journal import Journal
from router.journal_records import Ended, Opened, Record, TokenKept
from router.journal_store import JournalStore
from router.service import Finished, Generation, Origin

FINISHED = Finished("stop", 4, 1, 0.0, 0.0, 0.0, 0)


def open_journal(path: Path, *, max_bytes: int = 1 << 28, keep_s: float = 3600.0) -> Journal:
    return Journal(JournalStore(path, fsync="off", max_bytes=max_bytes), keep_s, SystemClock())


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = open_journal(tmp_path / "j.db")
    journal.start()
    yield journal
    await journal.close()


def opened(number: int, prompt_tokens: int = 4) -> Opened:
    generation = Generation(tuple(range(prompt_tokens)), SamplingParams())
    return Opened(RequestId(number), generation, Origin("s" * 8), "m", "d", 1, 2)


def token(number: int, index: int) -> TokenKept:
    return TokenKept(RequestId(number), index, 7, 3)


async def kept(journal: Journal, record: Record) -> bool:
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    journal.append(record, answer.set_result)
    async with asyncio.timeout(240):
        return await answer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():  # noqa: ASYNC110  (the writer's state has no event here)
            await asyncio.sleep(0.005)


async def test_callbacks_come_in_order_and_after_the_commit(journal: Journal) -> None:
    seen: list[int] = []
    last: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    journal.append(opened(1))
    for index in range(5000):
        journal.append(token(1, index), lambda kept, index=index: seen.append(index))
    journal.append(Ended(RequestId(1), 9, FINISHED), last.set_result)
    assert not seen, "nothing is kept before the loop has turned"
    assert await last
    assert seen == list(range(5000))
    found = await journal.read(lambda store: store.request(RequestId(1)))
    assert found is not None
    assert len(found.tokens) == 5000
    statistics = journal.statistics()
    assert (statistics.pending_records, statistics.pending_bytes) == (0, 0)
    # What gathers during a commit goes with the next one.
    assert 1 <= statistics.commits < 100


async def test_an_earlier_life_is_read_before_the_next(tmp_path: Path) -> None:
    first = open_journal(tmp_path / "j.db")
    first.start()
    await kept(first, opened(5))
    await kept(first, token(5, 0))
    first.put("placement", b"abc")
    await first.close()
    second = open_journal(tmp_path / "j.db")
    assert second.life == first.life + 1
    assert [(s.opened.request, len(s.tokens)) for s in second.left] == [(5, 1)]
    assert second.highest_request == 5
    assert second.get("placement") == b"abc"
    assert second.get("other") is None
    second.start()
    await second.close()


async def test_values_are_replaced_and_bounded(journal: Journal) -> None:
    journal.put("a", b"1")
    journal.put("a", b"2")
    assert journal.get("a") == b"2"
    with pytest.raises(ValueError, match="at most"):
        journal.put("a", b"x" * (journal_module.MAX_VALUE_BYTES + 1))
    with pytest.raises(ValueError, match="kept"):
        journal.put("n" * 65, b"")
    for number in range(255):
        journal.put(f"v{number}", b"")
    with pytest.raises(ValueError, match="256 values"):
        journal.put("one too many", b"")
    assert await journal.read(lambda store: store.values()["a"]) == b"2"


async def test_a_full_journal_refuses_and_lets_what_runs_go_on(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.db", max_bytes=1 << 20)
    journal.start()
    journal.check()
    # Open requests fill it: nothing of them may go.
    number = 0
    while await kept(journal, opened(number + 1, 4000)):
        number += 1
    with pytest.raises(JournalUnavailable, match="full") as refused:
        journal.check()
    assert refused.value.http_status == 503
    assert refused.value.retry_after_s is not None
    assert journal.statistics().failing
    # Tokens of a running request are given out at once, and kept for later.
    assert not await kept(journal, token(1, 0))
    assert journal.statistics().pending_records >= 2
    # What ends makes no room while its end cannot be written either ... until the operator does.
    store = journal._writer._store
    store._db.execute("PRAGMA max_page_count = 100000")
    await until(lambda: not journal.statistics().failing)
    journal.check()
    assert await kept(journal, token(1, 1))
    found = await journal.read(lambda store: store.request(RequestId(1)))
    assert found is not None
    assert [t.index for t in found.tokens] == [0, 1]
    await journal.close()


async def test_ended_requests_make_room_by_themselves(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.db", max_bytes=1 << 20)
    journal.start()
    for number in range(1, 200):
        await kept(journal, opened(number, 4000))
        await kept(journal, Ended(RequestId(number), number, FINISHED))
    await until(lambda: not journal.statistics().failing)
    assert await kept(journal, opened(1000))
    assert (tmp_path / "j.db").stat().st_size <= 1 << 20
    await journal.close()


async def test_a_backlog_refuses_new_requests(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_PENDING_BYTES", 5000)
    for index in range(20):
        journal.append(token(1, index))
    with pytest.raises(JournalUnavailable, match="behind"):
        journal.check()
    await kept(journal, token(1, 20))
    journal.check()


async def test_a_read_that_fails_says_so(journal: Journal) -> None:
    def broken(store: JournalStore) -> int:
        raise ValueError("no such thing")

    with pytest.raises(LocalError, match="no such thing"):
        await journal.read(broken)


async def test_a_writer_that_dies_refuses_for_good(journal: Journal) -> None:
    generation = Generation((1,), SamplingParams(), owner="\ud800")
    poison = Opened(RequestId(1), generation, Origin("s"), "m", "d", 1, 2)
    assert not await kept(journal, poison)
    with pytest.raises(JournalUnavailable, match="writer died"):
        journal.check()
    with pytest.raises((JournalUnavailable, LocalError)):
        await journal.read(lambda store: store.highest_request())


async def test_after_the_close_nothing_is_kept(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j.db")
    journal.start()
    answers: list[bool] = []
    journal.append(opened(1), answers.append)
    await journal.close()
    assert answers == [True], "what was given before the close is written"
    journal.append(opened(2), answers.append)
    assert answers == [True, False]
    with pytest.raises(JournalUnavailable):
        await journal.read(lambda store: 1)
    await journal.close()


def test_a_record_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    store = JournalStore(tmp_path / "j.db", fsync="off", max_bytes=1 << 28)
    store.write([opened(1), token(1, 0), token(1, 2)])
    store.close()
    with pytest.raises(ConfigError, match="gap") as refused:
        open_journal(tmp_path / "j.db")
    assert refused.value.param == "journal.path"

"""What a client is told waits for the journal; without one it is told at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from helix_mq.clock import SystemClock
from helix_mq.errors import JournalUnavailable
from helix_mq.ids import RequestId
from helix_mq.sampling import SamplingParams
from router.journal import Journal
from router.journal_store import JournalStore
from router.journal_streams import JournaledStreams
from router.metrics import RouterMetrics
from router.service import NO_ORIGIN, Broken, Delta, EventStream, Finished, Generation

GENERATION = Generation((1, 2), SamplingParams())
END = Finished("stop", 2, 2, 0.0, 0.0, 0.0, 0)
ONE = RequestId(1)


class Desk:
    def __init__(self, journal: Journal | None) -> None:
        self.lost: list[RequestId] = []
        clock = SystemClock()
        self.streams = JournaledStreams(journal, clock, RouterMetrics(clock), self.lost.append)

    def submit(self) -> EventStream:
        stream = self.streams.open(ONE, 2, NO_ORIGIN)
        self.streams.opened(stream, GENERATION, NO_ORIGIN, 10, ("tiny", "digest"))
        return stream

    def answer(self) -> None:
        self.streams.emit(ONE, Delta(0, 5, "a"))
        self.streams.emit(ONE, Delta(1, 6, "b"))
        self.streams.emit(ONE, END)


def journal_at(path: Path) -> Journal:
    store = JournalStore(path, fsync="off", max_bytes=1 << 26)
    return Journal(store, 60.0, SystemClock())


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def read(stream: EventStream) -> list[object]:
    async with asyncio.timeout(240):
        return [event async for event in stream]


async def test_nothing_is_told_before_it_is_kept(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "j.db")
    desk = Desk(journal)
    stream = desk.submit()
    desk.answer()
    told = asyncio.create_task(read(stream))
    accepted = asyncio.create_task(stream.accepted())
    await turns()
    # The writer has not begun, so nothing is on the disk.
    assert not told.done()
    assert not accepted.done()
    assert stream.undecided
    journal.start()
    await accepted
    assert await told == [Delta(0, 5, "a"), Delta(1, 6, "b"), END]
    assert not desk.lost
    await journal.close()
    again = journal_at(tmp_path / "j.db")
    assert again.left == []
    again.start()
    found = await again.read(lambda store: store.request(ONE))
    assert found is not None
    assert [t.token for t in found.tokens] == [5, 6]
    assert found.opened.origin.secret == stream.secret
    await again.close()


async def test_without_a_journal_all_is_told_at_once() -> None:
    desk = Desk(None)
    stream = desk.submit()
    assert not stream.undecided
    desk.answer()
    assert await read(stream) == [Delta(0, 5, "a"), Delta(1, 6, "b"), END]


async def test_what_cannot_be_kept_is_refused_and_cancelled(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "j.db")
    desk = Desk(journal)
    # Closed under it, the file takes nothing any more.
    journal._writer._store._db.close()
    stream = desk.submit()
    desk.streams.emit(ONE, Delta(0, 5, "a"))
    journal.start()
    with pytest.raises(JournalUnavailable):
        await stream.accepted()
    assert desk.lost == [ONE]
    events = await read(stream)
    assert isinstance(events[-1], Broken)
    with pytest.raises(JournalUnavailable):
        desk.streams.check()
    await journal.close()


async def test_a_stream_nobody_reads_is_kept_too(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "j.db")
    desk = Desk(journal)
    desk.submit()
    desk.streams.break_all(JournalUnavailable("gone"))
    desk.answer()
    journal.start()
    await journal.close()
    assert journal_at(tmp_path / "j.db").left == []


async def test_past_events_are_told_and_not_written_again(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "j.db")
    desk = Desk(journal)
    stream = desk.streams.restore(ONE, 2, "secret-of-old")
    desk.streams.emit(ONE, Delta(0, 5, "a"), past=True)
    assert journal.statistics().pending_records == 0
    desk.streams.emit(ONE, END)
    journal.start()
    assert await read(stream) == [Delta(0, 5, "a"), END]
    assert stream.name == "1.secret-of-old"
    await journal.close()

"""The journal's file: what is written is read back, whatever killed the writer; bad ones are
named."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helix_mq.errors import ConfigError, DeadlineExceeded, QueueFull
from helix_mq.ids import RequestId
from helix_mq.sampling import SamplingParams
from router.journal_records import (
    BadRecord,
    Ended,
    Opened,
    Record,
    StoredRequest,
    TokenKept,
    Value,
)
from router.journal_store import JournalStore
from router.service import Broken, Finished, Generation, Origin, TokenLogprob

MAX_BYTES = 1 << 28


def store(path: Path, **options: object) -> JournalStore:
    wanted: dict[str, object] = {"fsync": "off", "max_bytes": MAX_BYTES, **options}
    return JournalStore(path, **wanted)  # type: ignore[arg-type]


def opened(number: int, *, first: int | None = None, reference: int | None = None) -> Opened:
    sampling = SamplingParams(
        temperature=0.7, seed=(1 << 63) - number, logit_bias=((5, -1.5),), stop_token_ids=(7,)
    )
    generation = Generation(
        tuple(range(number, number + 40)), sampling, ("end", "\u2602"), None, 1, "owner", True
    )
    origin = Origin(f"secret-{number}", "user", reference, RequestId(first or number), 0)
    return Opened(RequestId(number), generation, origin, "tiny", "digest", 1_000, 2_000)


def token(request: int, index: int) -> TokenKept:
    logprob = None
    if request % 2:
        logprob = TokenLogprob(index, -0.1234567890123456, ((index, -1e-9), (3, -1e30)))
    return TokenKept(RequestId(request), index, 100 + index, 1_500 + index, logprob)


FINISHED = Finished("stop", 40, 3, 0.1, 0.25, 1.5, 2, "\u6c34")


def test_everything_of_a_request_is_read_back(tmp_path: Path) -> None:
    journal = store(tmp_path / "j.db")
    one = opened(1, reference=(1 << 62) - 1)
    refused = QueueFull("full", retry_after_s=2.5, param="x")
    journal.write([one, token(1, 0), token(1, 1), opened(2), token(2, 0), Value("a", b"\x00\xff")])
    journal.write(
        [Ended(RequestId(1), 3_000, FINISHED), Ended(RequestId(2), 3_001, Broken(refused))]
    )
    journal.close()
    journal = store(tmp_path / "j.db")
    assert journal.life == 2
    assert journal.open_requests() == []
    found = journal.request(RequestId(1))
    assert found is not None
    assert found.opened.generation == one.generation
    assert found.opened.origin == one.origin
    assert (found.opened.model, found.opened.model_digest) == ("tiny", "digest")
    assert (found.opened.arrived_ms, found.opened.deadline_ms) == (1_000, 2_000)
    assert found.opened.life == 1
    assert found.tokens == (token(1, 0), token(1, 1))
    assert found.ended == Ended(RequestId(1), 3_000, FINISHED)
    other = journal.request(RequestId(2))
    assert other is not None
    assert other.ended is not None
    assert isinstance(other.ended.end, Broken)
    error = other.ended.end.error
    assert isinstance(error, QueueFull)
    assert (error.message, error.param, error.retry_after_s) == ("full", "x", 2.5)
    assert journal.values() == {"a": b"\x00\xff"}
    assert journal.highest_request() == 2
    journal.close()


def test_a_stop_string_that_can_never_occur_is_left_out(tmp_path: Path) -> None:
    journal = store(tmp_path / "j.db")
    generation = Generation((1,), SamplingParams(), ("a\ud800b", "x"))
    journal.write([Opened(RequestId(1), generation, Origin("s"), "m", "d", 1, 2)])
    assert journal.open_requests()[0].opened.generation.stop == ("x",)
    journal.close()


def test_choices_are_found_by_the_first_ones_name(tmp_path: Path) -> None:
    journal = store(tmp_path / "j.db")
    journal.write([opened(1), opened(2, first=1), opened(3, first=1), opened(4)])

    def ids(first: int, secret: str) -> list[int]:
        return [found.opened.request for found in journal.named(RequestId(first), secret)]

    assert ids(1, "secret-1") == [1, 2, 3]
    assert ids(1, "secret-2") == []
    # A later choice has no name of its own.
    assert ids(2, "secret-2") == []
    assert ids(4, "secret-4") == [4]
    assert ids(9, "secret-9") == []
    journal.close()


def test_ended_streams_are_listed_newest_first(tmp_path: Path) -> None:
    journal = store(tmp_path / "j.db")
    journal.write([opened(n, reference=n if n != 2 else None) for n in (1, 2, 3, 4)])
    journal.write([Ended(RequestId(n), 10 - n, FINISHED) for n in (1, 2, 3)])
    assert [s.request for s in journal.ended_streams(10)] == [1, 3]
    assert [s.request for s in journal.ended_streams(1)] == [1]
    journal.close()


# -- whatever killed the writer -------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> list[list[Record]]:
    """What a router writes: requests open, get tokens in order, end; in batches of any size."""
    records: list[Record] = []
    tokens: dict[int, int] = {}
    for _ in range(draw(st.integers(1, 40))):
        number = draw(st.integers(1, 4))
        if number not in tokens:
            tokens[number] = 0
            records.append(opened(number, reference=number))
        elif tokens[number] >= 0:
            if draw(st.integers(0, 5)) == 0:
                records.append(Ended(RequestId(number), len(records), FINISHED))
                tokens[number] = -1
            else:
                records.append(token(number, tokens[number]))
                tokens[number] += 1
        else:
            records.append(Value("v", bytes([len(records)])))
    found: list[list[Record]] = []
    while records:
        size = draw(st.integers(1, 6))
        found.append(records[:size])
        records = records[size:]
    return found


def state_after(done: list[list[Record]]) -> tuple[list[StoredRequest], dict[str, bytes]]:
    """The open requests, and the values, that the batches leave."""
    records = [record for batch in done for record in batch]
    ended = {r.request for r in records if isinstance(r, Ended)}
    left = []
    for record in records:
        if isinstance(record, Opened) and record.request not in ended:
            tokens = tuple(
                r for r in records if isinstance(r, TokenKept) and r.request == record.request
            )
            left.append(StoredRequest(record, tokens, None))
    values = {r.name: r.data for r in records if isinstance(r, Value)}
    return sorted(left, key=lambda s: s.opened.request), values


def as_written(stored: StoredRequest) -> StoredRequest:
    """Without the life, which only the file gives."""
    o = stored.opened
    plain = Opened(
        o.request, o.generation, o.origin, o.model, o.model_digest, o.arrived_ms, o.deadline_ms
    )
    return StoredRequest(plain, stored.tokens, stored.ended)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(written=batches(), data=st.data())
def test_a_kill_at_any_byte_leaves_whole_batches(
    tmp_path: Path, written: list[list[Record]], data: st.DataObject
) -> None:
    """The files as they were when some part of a commit had reached the disk: what is read is what
    the batches up to some point left, and all of those that were reported as kept."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    journal = store(folder / "j.db")
    kept = data.draw(st.integers(0, len(written) - 1))
    for batch in written[:kept]:
        journal.write(batch)
    wal = folder / "j.db-wal"
    before_bytes = wal.stat().st_size
    journal.write(written[kept])
    torn = data.draw(st.integers(before_bytes, wal.stat().st_size))
    copy = folder / "copy"
    copy.mkdir()
    shutil.copy(folder / "j.db", copy / "j.db")
    (copy / "j.db-wal").write_bytes(wal.read_bytes()[:torn])
    journal.close()
    again = store(copy / "j.db")
    found = ([as_written(s) for s in again.open_requests()], again.values())
    again.close()
    assert found in (state_after(written[:kept]), state_after(written[: kept + 1]))
    if torn < wal_bytes_of(written[kept]) + before_bytes:
        assert found == state_after(written[:kept])


def wal_bytes_of(batch: list[Record]) -> int:
    """Certainly not a whole commit: it takes at least one page."""
    return 4096 if batch else 0


# -- what cannot be used --------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        store(path)
    assert refused.value.param == "journal.path"
    assert str(path) in refused.value.message
    return refused.value.message


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("shopping list\n" * 1000)
    assert "not a database" in refusal(path)
    assert path.read_text().startswith("shopping list")


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    assert "is no journal of a router" in refusal(path)
    assert path.read_bytes() == before


def test_a_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    assert "format 99" in refusal(path)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = store(path)
    journal.write([opened(n) for n in range(1, 200)])
    journal.close()
    data = bytearray(path.read_bytes())
    data[2 * 4096 : 12 * 4096] = b"\x5a" * (10 * 4096)
    path.write_bytes(data)
    text = refusal(path)
    assert "damaged" in text or "malformed" in text
    assert "move it away" in text


def test_two_routers_cannot_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.journal_store._LOCK_WAIT_S", 0.05)
    first = store(tmp_path / "j.db")
    assert "in use by another router" in refusal(tmp_path / "j.db")
    first.close()
    store(tmp_path / "j.db").close()


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    journal = store(tmp_path / "j.db")
    journal.write([opened(1)])
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file
    journal.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be opened" in refusal(tmp_path / "file" / "j.db")


def test_a_record_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = store(path)
    journal.write([opened(1)])
    journal.close()
    db = sqlite3.connect(path)
    db.execute("UPDATE requests SET body = '[1,2]'")
    db.commit()
    db.close()
    journal = store(path)
    with pytest.raises(BadRecord):
        journal.open_requests()
    journal.close()


# -- bounds ---------------------------------------------------------------------------


def test_ended_requests_go_when_their_time_is_over(tmp_path: Path) -> None:
    journal = store(tmp_path / "j.db")
    for n in range(1, 200):
        journal.write([opened(n), token(n, 0), Ended(RequestId(n), n, FINISHED)])
    journal.write([opened(200), token(200, 0)])
    assert journal.prune(100) == 99
    assert journal.request(RequestId(99)) is None
    assert journal.request(RequestId(100)) is not None
    assert len(journal.open_requests()) == 1
    journal.close()


def test_a_full_file_refuses_and_makes_room_of_what_has_ended(tmp_path: Path) -> None:
    journal = store(tmp_path / "j.db", max_bytes=1 << 20)
    number = 0

    def fill() -> None:
        nonlocal number
        while True:
            number += 1
            records: list[Record] = [opened(number), *(token(number, i) for i in range(200))]
            journal.write([*records, Ended(RequestId(number), number, FINISHED)])

    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill()
    assert (tmp_path / "j.db").stat().st_size <= 1 << 20
    assert journal.prune(0) > 0
    assert journal.used_bytes() <= 0.9 * (1 << 20)
    # The newest stay.
    assert journal.request(RequestId(1)) is None
    assert journal.request(RequestId(number - 1)) is not None
    journal.write([opened(number), *(token(number, i) for i in range(200))])
    assert [s.opened.request for s in journal.open_requests()] == [number]
    journal.close()


def test_the_error_of_a_deadline_keeps_its_kind(tmp_path: Path) -> None:
    journal = store(tmp_path / "j.db")
    late = Broken(DeadlineExceeded("too late \ud800"))
    journal.write([opened(1), Ended(RequestId(1), 5, late)])
    found = journal.request(RequestId(1))
    assert found is not None
    assert found.ended is not None
    assert isinstance(found.ended.end, Broken)
    assert isinstance(found.ended.end.error, DeadlineExceeded)
    journal.close()

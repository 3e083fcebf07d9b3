"""The journal's file: SQLite in WAL mode, written in transactions that are whole or not there.

Used by one thread at a time and by one router at a time (the file is locked). A batch of records
is a handful of statements, whatever its size: every call into SQLite gives up the interpreter's
lock, and gets it back late while the event loop is busy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from helix_mq.errors import ConfigError
from helix_mq.ids import RequestId
from router.journal_records import (
    BadRecord,
    Ended,
    EndedStream,
    Opened,
    Record,
    StoredRequest,
    TokenKept,
    Value,
    body_of,
    end_of,
    ended_of,
    logprob_of,
    opened_of,
    token_of,
)

Fsync = Literal["always", "normal", "off"]

_APPLICATION = 0x48454C58
_VERSION = 1
_SYNCHRONOUS = {"always": "FULL", "normal": "NORMAL", "off": "OFF"}
_PAGE_BYTES = 4096
_MAX_WAL_BYTES = 16 * 1024 * 1024
_LOCK_WAIT_S = 10.0
"""A router that was killed may take a moment to be gone."""
_PRUNE_STEP = 64
_FULL_SHARE = 0.9
"""Ended requests go early when the file is filled so far."""

_SCHEMA = """
CREATE TABLE life (starts INTEGER NOT NULL);
INSERT INTO life VALUES (0);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL, secret TEXT NOT NULL, user TEXT,
    reference INTEGER, life INTEGER NOT NULL, deadline_ms INTEGER NOT NULL, body TEXT NOT NULL
);
CREATE INDEX requests_first ON requests (first);
CREATE TABLE tokens (
    request INTEGER NOT NULL, position INTEGER NOT NULL, token INTEGER NOT NULL,
    at_ms INTEGER NOT NULL, logprob TEXT, PRIMARY KEY (request, position)
) WITHOUT ROWID;
CREATE TABLE ends (request INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX ends_at ON ends (at_ms);
CREATE TABLE named (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
"""


def _insert(table: str, columns: int) -> str:
    values = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(columns))
    # What is there stays: a client may have seen it.
    return f"INSERT OR IGNORE INTO {table} SELECT {values} FROM json_each(?)"


_INSERT_REQUESTS = _insert("requests", 8)
_INSERT_TOKENS = _insert("tokens", 5)
_INSERT_ENDS = _insert("ends", 3)
_REQUEST = "SELECT id, first, secret, user, reference, life, deadline_ms, body FROM requests"


class JournalStore:
    """Methods raise sqlite3.Error where they say nothing else."""

    def __init__(self, path: Path, *, fsync: Fsync, max_bytes: int) -> None:
        """Opens or makes the file. Raises ConfigError for one that cannot be used."""
        self.path = path
        self.max_bytes = max_bytes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # What people asked and were answered is nobody else's; SQLite's other files follow.
            path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as e:
            raise _unusable(path, f"cannot be opened: {e}") from None
        try:
            self._prepare(fsync)
        except ConfigError:
            self._db.close()
            raise
        except sqlite3.Error as e:
            self._db.close()
            if "locked" in str(e):
                raise _unusable(path, "is in use by another router") from None
            raise _unusable(path, f"cannot be used: {e}") from None

    def _prepare(self, fsync: Fsync) -> None:
        db = self._db
        # One process at a time, and no shared memory beside the file.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        empty = self._number("PRAGMA page_count") == 0
        if empty:
            db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        elif (marked := self._number("PRAGMA application_id")) != _APPLICATION:
            raise _unusable(
                self.path, f"is no journal of a router (application id {marked:#x})", moved=False
            )
        elif (version := self._number("PRAGMA user_version")) != _VERSION:
            raise _unusable(
                self.path, f"has format {version}, this version of helix_mq reads {_VERSION}"
            )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[fsync]}")
        db.execute(f"PRAGMA journal_size_limit = {_MAX_WAL_BYTES}")
        if not empty:
            verdict = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            if verdict != "ok":
                raise _unusable(self.path, f"is damaged: {' '.join(verdict.split())}")
        with self._transaction():
            if empty:
                for statement in _SCHEMA.strip().split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
                db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute("UPDATE life SET starts = starts + 1")
            self.life = self._number("SELECT starts FROM life")
        page_bytes = self._number("PRAGMA page_size")
        # The hard bound: at it writes fail like on a full disk.
        db.execute(f"PRAGMA max_page_count = {max(64, self.max_bytes // page_bytes)}")

    def close(self) -> None:
        self._db.close()

    # -- writing ------------------------------------------------------------

    def write(self, records: Sequence[Record]) -> None:
        """All of them, or none when it raises."""
        opened, tokens, ends, values = [], [], [], []
        for record in records:
            match record:
                case Opened():
                    opened.append(self._request_row(record))
                case TokenKept(request, index, token, at_ms, logprob):
                    tokens.append((request, index, token, at_ms, logprob_of(logprob)))
                case Ended(request, at_ms, end):
                    ends.append((request, at_ms, end_of(end)))
                case Value(name, data):
                    values.append((name, data))
        with self._transaction():
            self._insert(_INSERT_REQUESTS, opened)
            self._insert(_INSERT_TOKENS, tokens)
            self._insert(_INSERT_ENDS, ends)
            self._db.executemany("INSERT OR REPLACE INTO named VALUES (?, ?)", values)

    def _request_row(self, opened: Opened) -> tuple[object, ...]:
        origin = opened.origin
        return (
            opened.request,
            opened.first,
            origin.secret,
            origin.user,
            origin.reference,
            self.life,
            opened.deadline_ms,
            body_of(opened),
        )

    def _insert(self, statement: str, rows: Sequence[object]) -> None:
        if rows:
            self._db.execute(statement, (msgspec.json.encode(rows).decode(),))

    @contextmanager
    def _transaction(self) -> Any:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def prune(self, ended_before_ms: int) -> int:
        """Forgets requests that ended before then, and the oldest ended ones while the file is
        nearly full. How many went."""
        went = 0
        while True:
            full = self.used_bytes() > _FULL_SHARE * self.max_bytes
            limit = (1 << 62) if full else ended_before_ms
            rows = self._db.execute(
                "SELECT request FROM ends WHERE at_ms < ? ORDER BY at_ms LIMIT ?",
                (limit, _PRUNE_STEP),
            ).fetchall()
            if not rows:
                return went
            self._forget([row[0] for row in rows])
            went += len(rows)

    def _forget(self, requests: Iterable[int]) -> None:
        ids = (msgspec.json.encode(list(requests)).decode(),)
        chosen = "IN (SELECT value FROM json_each(?))"
        with self._transaction():
            self._db.execute(f"DELETE FROM tokens WHERE request {chosen}", ids)
            self._db.execute(f"DELETE FROM requests WHERE id {chosen}", ids)
            self._db.execute(f"DELETE FROM ends WHERE request {chosen}", ids)

    # -- reading ------------------------------------------------------------

    def used_bytes(self) -> int:
        """Of the file, pages that hold nothing left out."""
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._number("PRAGMA page_size")

    def highest_request(self) -> int:
        return self._number("SELECT coalesce(max(id), 0) FROM requests")

    def open_requests(self) -> list[StoredRequest]:
        """Those without an end, oldest first. Raises BadRecord."""
        return self._stored(f"{_REQUEST} WHERE id NOT IN (SELECT request FROM ends) ORDER BY id")

    def request(self, request: RequestId) -> StoredRequest | None:
        """Raises BadRecord."""
        found = self._stored(f"{_REQUEST} WHERE id = ?", request)
        return found[0] if found else None

    def named(self, first: RequestId, secret: str) -> list[StoredRequest]:
        """All choices of the request of this name, none if there is no such. Raises BadRecord."""
        known = self._db.execute(
            "SELECT 1 FROM requests WHERE id = ? AND first = ? AND secret = ?",
            (first, first, secret),
        ).fetchone()
        if known is None:
            return []
        return self._stored(f"{_REQUEST} WHERE first = ? ORDER BY id", first)

    def ended_streams(self, limit: int) -> list[EndedStream]:
        """Of SDK clients, newest end first."""
        rows = self._db.execute(
            "SELECT id, secret, user, reference FROM ends JOIN requests ON id = request "
            "WHERE reference NOT NULL ORDER BY at_ms DESC LIMIT ?",
            (limit,),
        )
        return [EndedStream(RequestId(row[0]), *row[1:]) for row in rows]

    def values(self) -> dict[str, bytes]:
        return dict(self._db.execute("SELECT name, data FROM named"))

    def _stored(self, query: str, *arguments: object) -> list[StoredRequest]:
        found = []
        for row in self._db.execute(query, arguments).fetchall():
            opened = opened_of(*row)
            ended = self._db.execute(
                "SELECT request, at_ms, body FROM ends WHERE request = ?", (opened.request,)
            ).fetchone()
            found.append(
                StoredRequest(
                    opened,
                    self._tokens(opened.request),
                    ended_of(*ended) if ended is not None else None,
                )
            )
        return found

    def _tokens(self, request: RequestId) -> tuple[TokenKept, ...]:
        rows = self._db.execute(
            "SELECT request, position, token, at_ms, logprob FROM tokens WHERE request = ? "
            "ORDER BY position",
            (request,),
        ).fetchall()
        tokens = tuple(token_of(*row) for row in rows)
        if any(token.index != i for i, token in enumerate(tokens)):
            raise BadRecord(f"request {request:x} has a gap in its tokens")
        return tokens

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])


def _unusable(path: Path, what: str, *, moved: bool = True) -> ConfigError:
    remedy = (
        "move it away to start without the requests in it" if moved else "give another journal.path"
    )
    return ConfigError(f"journal.path = {path}: {what}; {remedy}", param="journal.path")

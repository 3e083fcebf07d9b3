"""Files that are read again when they have changed, and only then."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from helix_mq import watched_files
from helix_mq.errors import ConfigError
from helix_mq.watched_files import WatchedFiles, reload_for_ever


def test_a_change_counts_once_and_when_it_has_settled(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    files = WatchedFiles(one, two)
    assert not files.changed()
    one.write_text("")
    assert not files.changed(), "an editor may be about to write"
    one.write_text("22")
    assert not files.changed()
    assert files.changed()
    assert not files.changed()
    os.replace(one, two)
    assert not files.changed()
    assert files.changed(), "one is gone and one has come"
    assert not files.changed()


async def test_a_bad_file_is_told_and_the_next_good_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched_files, "LOOK_S", 0.001)
    path = tmp_path / "list"
    path.write_text("first")
    read: list[str] = []
    news = asyncio.Event()

    def reload() -> None:
        news.set()
        text = path.read_text()
        if text == "bad":
            raise ConfigError("list: not a list")
        if text == "worse":
            raise RuntimeError("a fault of our own")
        read.append(text)

    task = asyncio.create_task(reload_for_ever(WatchedFiles(path), reload, "the list"))
    for text in ("bad", "worse", "second"):
        path.write_text(text)
        async with asyncio.timeout(240):
            await news.wait()
        news.clear()
    task.cancel()
    assert read == ["second"]
    assert "the list: what was read before stays in force: list: not a list" in caplog.text
    assert "a fault of our own" in caplog.text

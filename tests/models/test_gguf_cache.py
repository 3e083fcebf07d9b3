"""The cache of converted models: once per file, whole or not at all; and what a user may name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helix_mq.errors import ConfigError, ModelFormatError
from helix_mq.models import gguf_import
from helix_mq.models.config import ModelConfig
from helix_mq.models.gguf_import import cached_folder, import_gguf
from helix_mq.models.resolve import default_cache, resolve_model

Write = Callable[..., Any]


def test_a_file_is_converted_once(
    tmp_path: Path, write_gguf: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    folder = import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")

    def never(*args: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf_import, "convert", never)
    assert import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache") == folder


def test_a_changed_file_is_another_model(tmp_path: Path, write_gguf: Write) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    first = cached_folder(file, tmp_path)
    os.utime(file, ns=(1, 1))
    assert cached_folder(file, tmp_path) != first


def test_what_a_killed_conversion_left_is_cleared_away(tmp_path: Path, write_gguf: Write) -> None:
    file, cache = tmp_path / "ti[ny].gguf", tmp_path / "cache"
    write_gguf(file)
    target = cached_folder(file, cache)
    left = target.parent / f".{target.name}-abc123"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    target.mkdir()
    (target / "tokenizer.json").write_bytes(b"half")
    folder = import_gguf(file, cache)
    assert ModelConfig.from_folder(folder).num_layers == 2
    assert not left.exists()


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, write_gguf: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf")

    def fails(file: Path, folder: Path, *rest: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_import, "convert", fails)
    with pytest.raises(ConfigError, match="No space left") as refusal:
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    assert "HELIX_MQ_CACHE" in refusal.value.message
    assert not [p for p in (tmp_path / "cache" / "gguf").iterdir() if p.is_dir()]


def test_a_cache_that_is_a_file_is_a_settings_error(tmp_path: Path, write_gguf: Write) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(ConfigError, match="HELIX_MQ_CACHE"):
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")


IMPORT = """
import pathlib, sys
from helix_mq.models.gguf_import import import_gguf
said = []
folder = import_gguf(*map(pathlib.Path, sys.argv[1:]), lambda fraction, text: said.append(text))
print(sum("writing" in text for text in said), folder)
"""


def test_processes_that_start_together_convert_once(tmp_path: Path, write_gguf: Write) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    command = [
        sys.executable,
        "-c",
        IMPORT,
        *map(str, (tmp_path / "tiny.gguf", tmp_path / "cache")),
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=240)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(written for written, _ in answers) == ["0", "0", "1"]
    assert len({folder for _, folder in answers}) == 1


# What a user names.


def test_resolving_folders_and_files(tmp_path: Path, write_gguf: Write) -> None:
    write_gguf(tmp_path / "tiny.GGUF")
    folder = resolve_model(tmp_path / "tiny.GGUF", cache=tmp_path / "cache")
    assert resolve_model(str(folder)) == folder
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize(
    ("name", "word"),
    [("nothing-here", "no such"), ("empty-folder", "config.json"), ("w.safetensors", "folder")],
)
def test_what_is_no_model_is_refused_in_words(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "w.safetensors").write_bytes(b"x")
    with pytest.raises(ModelFormatError, match=word):
        resolve_model(tmp_path / name)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIX_MQ_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")
    monkeypatch.delenv("HELIX_MQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/helix_mq")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "helix_mq"

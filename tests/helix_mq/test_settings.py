"""Settings: flags over environment over file over defaults; every fault named, no traceback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ByteSize, Field, ValidationError

from helix_mq.errors import ConfigError
from helix_mq.settings import Section, Settings, load, read_toml


class Http(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535)
    keys: tuple[str, ...] = ()


class Demo(Settings):
    name: str
    window: ByteSize = ByteSize(1024)
    level: Literal["debug", "info"] = "info"
    timeout_s: float | None = Field(None, gt=0)
    folder: Path | None = None
    http: Http = Http()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("HELIX_MQ_")]:
        monkeypatch.delenv(name)


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "demo.toml"
    path.write_text(text, encoding="utf-8")
    return path


def fault(path: Path | None, flags: dict[str, object] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(Demo, path, flags)
    return caught.value


def test_each_source_wins_over_the_one_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml(tmp_path, 'name = "file"\nwindow = "2KiB"\n[http]\nhost = "file"\nport = 1\n')
    loaded = load(Demo, path)
    assert (loaded.name, loaded.window, loaded.http) == ("file", 2048, Http(host="file", port=1))
    monkeypatch.setenv("HELIX_MQ_NAME", "environment")
    monkeypatch.setenv("HELIX_MQ_HTTP__PORT", "2")
    loaded = load(Demo, path)
    assert (loaded.name, loaded.http) == ("environment", Http(host="file", port=2))
    loaded = load(Demo, path, {"name": "flag", "http.port": 3, "http.host": None, "window": None})
    assert (loaded.name, loaded.window, loaded.http) == ("flag", 2048, Http(host="file", port=3))
    monkeypatch.delenv("HELIX_MQ_NAME")
    assert load(Demo, path, {"http.keys": ("k",)}).http == Http(host="file", port=2, keys=("k",))


def test_one_load_leaves_nothing_behind_for_the_next(tmp_path: Path) -> None:
    load(Demo, toml(tmp_path, 'name = "first"\nwindow = 77\n'))
    assert load(Demo, None, {"name": "second"}).window == 1024
    assert Demo.file_values == {}
    assert fault(None).param == "name"


def test_settings_are_frozen() -> None:
    loaded = load(Demo, None, {"name": "x"})
    with pytest.raises(ValidationError):
        loaded.name = "y"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        loaded.http.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "param", "words"),
    [
        ("", "name", ["name: missing, and it has no default"]),
        ('name = "x"\nnmae = 1', "nmae", ["nmae: there is no such setting"]),
        ('name = "x"\n[http]\nprot = 1', "http.prot", ["http.prot: there is no such setting"]),
        ('name = "x"\n[http]\nport = 70000', "http.port", ["http.port = 70000", "65535"]),
        ('name = "x"\nlevel = "loud"', "level", ["level = 'loud'", "'debug' or 'info'"]),
        ('name = "x"\nwindow = "much"', "window", ["window = 'much'"]),
        ('name = "x"\ntimeout_s = 0', "timeout_s", ["timeout_s = 0", "greater than 0"]),
        ('name = "x"\nhttp = 3', "http", ["http = 3"]),
        ("name = 5", "name", ["name = 5", "string"]),
    ],
)
def test_faults_name_file_field_value_and_what_is_wrong(
    tmp_path: Path, text: str, param: str, words: list[str]
) -> None:
    path = toml(tmp_path, text)
    error = fault(path)
    assert error.param == param
    assert str(error).startswith(f"{path}: ")
    for word in words:
        assert word in str(error)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = str(fault(toml(tmp_path, "window = -1\nlevle = 2\n[http]\nport = true\n")))
    assert "name: missing" in text
    assert "levle: there is no such setting" in text
    assert "http.port" in text or "window" in text


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    error = fault(toml(tmp_path, f'name = "x"\nlevel = "{"l" * 5000}"\n'))
    assert len(str(error)) < 400
    assert "..." in str(error)


@pytest.mark.parametrize(
    ("name", "value"), [("HELIX_MQ_HTTP__PORT", "eighty"), ("HELIX_MQ_HTTP", "{not json")]
)
def test_faults_in_the_environment_are_told_in_words(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert "http" in str(fault(None, {"name": "x"})).lower()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert str(fault(missing)) == f"{missing}: no such file"
    assert "not valid TOML" in str(fault(toml(tmp_path, "name = ")))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in str(fault(binary))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)


def test_a_secret_file_or_dotenv_is_not_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("HELIX_MQ_NAME=dotenv\n")
    monkeypatch.chdir(tmp_path)
    assert fault(None).param == "name"

"""The file of API keys: digests only, read with care, edited in place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from helix_mq.api_keys import (
    KeyLimits,
    add_api_key,
    digest_of,
    read_api_keys,
    revoke_api_key,
)
from helix_mq.cli import keys as commands
from helix_mq.errors import CallerError
from helix_mq.key_files import KeyFileError

DIGEST = "0" * 64


def test_a_key_is_told_once_and_kept_as_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "api.toml"
    limits = KeyLimits(requests_per_min=60, max_concurrent=4)
    key = add_api_key(path, "alice", limits, operator=False)
    root = add_api_key(path, "root", KeyLimits(), operator=True)
    assert key != root
    assert len(key) > 40
    text = path.read_text()
    assert key not in text
    assert root not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_api_keys(path)
    assert found["alice"].digest == digest_of(key)
    assert found["alice"].limits == limits
    assert found["alice"].limits.text() == "requests_per_min 60, max_concurrent 4"
    assert [k.operator for k in found.values()] == [False, True]
    with pytest.raises(KeyFileError, match="there is a key named alice"):
        add_api_key(path, "alice", KeyLimits(), operator=True)
    path.write_text(path.read_text() + "# a note")
    add_api_key(path, "bob", KeyLimits(), operator=False)
    assert revoke_api_key(path, "alice")
    assert not revoke_api_key(path, "alice")
    assert sorted(read_api_keys(path)) == ["bob", "root"]
    assert "# a note\n" in path.read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alice = 5", "alice"),
        ("alice = {}", "digest"),
        ('alice = { digest = "hmq-a-key-itself" }', "digest"),
        (f'alice = {{ digest = "{DIGEST}", operater = true }}', "operater"),
        (f'alice = {{ digest = "{DIGEST}", operator = "yes" }}', "operator"),
        (f'alice = {{ digest = "{DIGEST}", requests_per_min = 0 }}', "requests_per_min"),
        (f'a = {{ digest = "{DIGEST}" }}\nb = {{ digest = "{DIGEST}" }}', "a and b are the same"),
        (f'"../etc" = {{ digest = "{DIGEST}" }}', "letters, digits"),
        ("alice = {", "not valid TOML"),
    ],
)
def test_broken_files_are_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "api.toml"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=words) as refused:
        read_api_keys(path)
    assert "hmq-a-key-itself" not in str(refused.value)


def test_a_file_everybody_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "api.toml"
    add_api_key(path, "a", KeyLimits(), operator=False)
    path.chmod(0o666)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_api_keys(path)


def test_a_key_that_is_not_on_one_line_is_not_half_revoked(tmp_path: Path) -> None:
    path = tmp_path / "api.toml"
    text = f'[alice]\ndigest = "{DIGEST}"\n'
    path.write_text(text)
    with pytest.raises(KeyFileError, match="by hand"):
        revoke_api_key(path, "alice")
    assert path.read_text() == text


@given(st.text(max_size=5000))
def test_any_text_has_a_digest(text: str) -> None:
    assert len(digest_of(text)) == 32


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    commands.register(app)

    def run(*args: str) -> str:
        result = CliRunner().invoke(app, ["keys", "api", *args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    key = run("new", "alice", "--requests-per-min", "5").strip()
    run("new", "root", "--operator")
    assert read_api_keys(Path("keys/api.toml"))["alice"].digest == digest_of(key)
    alice, root = run("list").splitlines()
    assert alice.split() == [
        "alice", digest_of(key).hex()[:8], alice.split()[2], "requests_per_min", "5",
    ]  # fmt: skip
    assert root.endswith("  operator")
    run("revoke", "alice")
    assert [line.split()[0] for line in run("list").splitlines()] == ["root"]
    for args, words in (
        (["revoke", "alice"], "alice has no key in keys/api.toml"),
        (["list", "--file", "none.toml"], "helix-mq keys api new NAME"),
        (["new", "a/b"], "letters, digits"),
        (["new", "root"], "there is a key named root"),
    ):
        failed = CliRunner().invoke(app, ["keys", "api", *args])
        assert isinstance(failed.exception, CallerError), args
        assert words in str(failed.exception)
    assert os.listdir("keys") == ["api.toml"]
